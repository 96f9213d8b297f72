//! Logs of stored format 1: where their chain ends, and reading its links.
//!
//! Nothing in format 1 has a number, an epoch or an identity. A store has shards under the ids of their aggregations and, for each
//! vdisk, a list of the last few ids ([`ChainSurvey`]). Which of these is the newest that counts follows from all lists and
//! from what can be read ([`StoreSet::chain_end`], decided in [`end`]); from there the chain is walked back, each aggregation
//! naming the one before it ([`ChainWalk`]). `docs/format.md` has the rules.

mod end;
mod link;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, VdiskId};
use tlog_store::{ChainStore, StoreError, StoreErrorKind};

use crate::Quorums;
use crate::survey::{StoreSet, TooFewStores};
pub use link::{Link, LinkCondition, LinkError, LinkFault, LinkRead};

/// What all stores have in a vdisk's list of last ids.
#[derive(Debug)]
pub struct ChainSurvey {
    vdisk: VdiskId,
    quorums: Quorums,
    /// The stores, in order. Newest id first; empty where a store has no list, or is of a kind that cannot have one.
    pub lists: Vec<Result<Vec<AggregationId>, StoreError>>,
}

impl ChainSurvey {
    /// Whether any store that answered has a list.
    pub fn exists(&self) -> bool {
        self.lists.iter().flatten().any(|list| !list.is_empty())
    }

    /// How many stores answered.
    pub fn answered(&self) -> usize {
        self.lists.iter().filter(|answer| answer.is_ok()).count()
    }

    /// An error that names the stores which did not answer, unless at least `needed` did.
    pub fn require(&self, needed: usize) -> Result<(), TooFewStores> {
        let counted = self.answered();
        if counted >= needed {
            return Ok(());
        }
        let missing = self.lists.iter().filter_map(|answer| answer.as_ref().err());
        let missing = missing.map(ToString::to_string).collect();
        Err(TooFewStores {
            vdisk: self.vdisk.clone(),
            counted,
            needed,
            total: self.quorums.total(),
            missing,
            same: Vec::new(),
        })
    }
}

/// Where a chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    vdisk: VdiskId,
    /// The newest aggregation that counts and can be read; none where there is no chain, or nothing of it can be read.
    pub newest: Option<AggregationId>,
    /// Newer ones that cannot be read now and may have been acknowledged. Empty: the end is certain.
    pub doubts: Vec<LinkError>,
}

impl ChainEnd {
    /// The newest aggregation, where nothing newer is in doubt.
    pub fn certain(self) -> Result<Option<AggregationId>, ChainEndError> {
        if self.doubts.is_empty() {
            return Ok(self.newest);
        }
        Err(ChainEndError::Unclear { vdisk: self.vdisk, doubts: self.doubts })
    }
}

/// Where a chain ends cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainEndError {
    /// Nothing opens.
    #[error(
        "vdisk {vdisk}: its history of format 1 does not open under this private key and nonce; set those of the server that wrote it"
    )]
    Key {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// Something newer than what can be read may have been acknowledged.
    #[error(
        "vdisk {vdisk}: the end of its history of format 1 cannot be told: {}; bring back the stores that hold it",
        doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unclear {
        /// The vdisk.
        vdisk: VdiskId,
        /// What cannot be read.
        doubts: Vec<LinkError>,
    },
}

impl StoreSet {
    /// Whether any of the stores is of a kind that can have logs of format 1.
    pub fn may_have_chain(&self) -> bool {
        self.stores().iter().any(|store| store.chains().is_some())
    }

    /// How many stores must answer before a reader knows that there is no chain, and can read one that is there. Any m may have
    /// come back empty, so that one more has to say that it knows nothing.
    pub fn chain_quorum(&self) -> usize {
        let redundancy = self.quorums().redundancy();
        redundancy.data().max(redundancy.parity() + 1)
    }

    /// The port for format 1 of each store.
    pub fn chain_stores(&self) -> Vec<Option<Arc<dyn ChainStore>>> {
        self.stores().iter().map(|store| store.chains()).collect()
    }

    /// Asks every store for the vdisk's list.
    pub async fn chain_survey(&self) -> ChainSurvey {
        let asked = self.stores().iter().map(|store| async move {
            match store.chains() {
                None => Ok(Vec::new()),
                Some(chains) => self.within_limit(store, chains.last_links(self.vdisk())).await,
            }
        });
        let lists = join_all(asked).await;
        ChainSurvey { vdisk: self.vdisk().clone(), quorums: self.quorums(), lists }
    }

    /// Runs one operation of format 1 on each store that `on` chooses, within the time limit. None for the others; a store of a
    /// kind that cannot have format 1 answers with an error.
    pub async fn on_chains<T, F>(
        &self,
        on: impl Fn(usize) -> bool,
        mut operation: impl FnMut(usize, Arc<dyn ChainStore>) -> F,
    ) -> Vec<Option<Result<T, StoreError>>>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let calls = self.stores().iter().enumerate().map(|(i, store)| {
            let call = on(i).then(|| store.chains().map(|chains| operation(i, chains)));
            async move {
                match call? {
                    Some(call) => Some(self.within_limit(store, call).await),
                    None => {
                        let source = std::io::Error::other("this kind of store cannot hold format 1");
                        let kind = StoreErrorKind::Unavailable { source };
                        Some(Err(StoreError::new(&*store.address(), kind)))
                    }
                }
            }
        });
        join_all(calls).await
    }

    /// Finds the newest aggregation that counts. Reads what the lists name, as far as it takes to tell.
    pub async fn chain_end(&self, survey: &ChainSurvey, keys: &Keys) -> Result<ChainEnd, ChainEndError> {
        let lists: Vec<&[AggregationId]> =
            survey.lists.iter().flatten().map(Vec::as_slice).filter(|list| !list.is_empty()).collect();
        let mut judged = BTreeMap::new();
        let mut errors = BTreeMap::new();
        let fronts: Vec<AggregationId> = lists.iter().filter_map(|list| list.first().copied()).collect();
        // Mostly all lists begin with the same id, which can be read; nothing else is looked at then.
        let all = lists.iter().flat_map(|list| list.iter().copied());
        for id in fronts.iter().copied().chain(all) {
            if judged.contains_key(&id) {
                continue;
            }
            let read = self.link(id, keys, LinkRead::Enough).await;
            judged.insert(id, read.as_ref().map(|link| link.prev).map_err(|error| error.fault.clone()));
            if let Err(error) = read {
                errors.insert(id, error);
            } else if fronts.iter().all(|front| *front == id) {
                break;
            }
        }
        let silent = survey.lists.len() - survey.answered();
        let data = self.quorums().data();
        let unsettled =
            errors.values().filter(|error| may_become_readable(error, survey, data)).map(|error| error.id);
        let end::Choice { newest, doubtful } =
            end::choose(&lists, &judged, &unsettled.collect(), silent, self.quorums().redundancy());
        if newest.is_none() && errors.values().any(|error| error.fault == LinkFault::Key) {
            return Err(ChainEndError::Key { vdisk: self.vdisk().clone() });
        }
        let doubts = doubtful.into_iter().filter_map(|id| errors.remove(&id)).collect();
        Ok(ChainEnd { vdisk: self.vdisk().clone(), newest, doubts })
    }

    /// Walks a chain back from one of its aggregations.
    pub fn chain_walk(&self, from: AggregationId, keys: &Keys, read: LinkRead) -> ChainWalk {
        ChainWalk { set: self.clone(), keys: keys.clone(), read, next: from, guard: LoopGuard::default() }
    }
}

/// Whether stores that answered with their list, and then not with their shard, could make it readable.
fn may_become_readable(error: &LinkError, survey: &ChainSurvey, data_shards: usize) -> bool {
    let LinkFault::TooFew { present, .. } = error.fault else { return false };
    let failed =
        error.conditions.iter().zip(&survey.lists).filter(|((_, condition), list)| {
            list.is_ok() && matches!(condition, LinkCondition::Unreachable(_))
        });
    let failed = failed.count();
    failed > 0 && present + failed >= data_shards
}

/// The aggregations of a chain, from new to old.
#[derive(Debug)]
pub struct ChainWalk {
    set: StoreSet,
    keys: Keys,
    read: LinkRead,
    next: AggregationId,
    guard: LoopGuard,
}

impl ChainWalk {
    /// The id of what [`Self::next`] reads; none at the beginning of the chain.
    pub fn next_id(&self) -> Option<AggregationId> {
        (self.next != AggregationId::BEFORE_FIRST).then_some(self.next)
    }

    /// The next older one; none after the first of the chain. After an error it is read again.
    pub async fn next(&mut self) -> Result<Option<Link>, LinkError> {
        let Some(id) = self.next_id() else { return Ok(None) };
        if self.guard.is_loop(id) {
            let (vdisk, fault) = (self.set.vdisk().clone(), LinkFault::Loop);
            return Err(LinkError { vdisk, id, fault, conditions: Vec::new() });
        }
        let link = self.set.link(id, &self.keys, self.read).await?;
        self.guard.handle_passed(id);
        self.next = link.prev;
        Ok(Some(link))
    }
}

/// Notices a chain that leads back to itself, without keeping all of its ids: it remembers one, and another one after twice as
/// many steps.
///
/// An id is the hash of what names the one before it, so that there is no such chain while BLAKE2b holds; a walk ends all
/// the same.
#[derive(Debug, Default)]
struct LoopGuard {
    remembered: Option<AggregationId>,
    steps: u64,
    until: u64,
}

impl LoopGuard {
    fn is_loop(&self, id: AggregationId) -> bool {
        self.remembered == Some(id)
    }

    fn handle_passed(&mut self, id: AggregationId) {
        self.steps += 1;
        if self.steps >= self.until {
            (self.remembered, self.steps, self.until) = (Some(id), 0, (self.until * 2).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_leads_back_to_itself_is_noticed_wherever_it_does() {
        for before in 0..20u64 {
            for length in 1..20 {
                let id = |n: u64| {
                    let mut id = [1; 32];
                    id[..8].copy_from_slice(&n.to_le_bytes());
                    AggregationId(id)
                };
                let at = |step: u64| if step < before { step } else { before + (step - before) % length };
                let mut guard = LoopGuard::default();
                let ended = (0..200).find(|step| {
                    let id = id(at(*step));
                    let ended = guard.is_loop(id);
                    guard.handle_passed(id);
                    ended
                });
                let ended = ended.unwrap_or_else(|| panic!("{before} before a loop of {length}"));
                assert!(ended >= before + length, "{ended} is too early: {before} before a loop of {length}");
            }
        }
        let mut guard = LoopGuard::default();
        for n in 1..1000u16 {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_le_bytes());
            assert!(!guard.is_loop(AggregationId(id)), "{n}");
            guard.handle_passed(AggregationId(id));
        }
    }
}
