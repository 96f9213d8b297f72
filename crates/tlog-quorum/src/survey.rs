//! Asking all stores of a log at once, and what their answers mean together.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    LogState, Members, NumberRanges, ShardStore, StartRecord, StoreError, StoreErrorKind, StoreIdentity,
};

use crate::Quorums;
use crate::health::Health;

/// No writer has more aggregations on their way than this: so far above a start record may what it rules out lie.
pub const MAX_IN_FLIGHT: usize = 1024;

/// The n stores of one vdisk's log, in order: store i holds shard i. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreSet {
    vdisk: VdiskId,
    stores: Arc<[Arc<dyn ShardStore>]>,
    quorums: Quorums,
    timeout: Duration,
    /// How the stores have answered lately, whichever clone asked them.
    health: Arc<Health>,
}

impl StoreSet {
    /// Takes exactly n stores; a store that does not answer within `timeout` counts as out of reach. None where the number
    /// of stores is not n.
    pub fn new(
        vdisk: VdiskId,
        stores: Vec<Arc<dyn ShardStore>>,
        quorums: Quorums,
        timeout: Duration,
    ) -> Option<Self> {
        (stores.len() == quorums.total()).then(|| {
            let health = Arc::new(Health::new(stores.len()));
            Self { vdisk, stores: stores.into(), quorums, timeout, health }
        })
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// How many must answer for what.
    pub fn quorums(&self) -> Quorums {
        self.quorums
    }

    /// Time limit of one operation on one store.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The stores, in order.
    pub fn stores(&self) -> &[Arc<dyn ShardStore>] {
        &self.stores
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// The same stores, with the quorums that a log needs which was written under another W.
    #[must_use]
    pub fn as_written(&self, survey: &Survey) -> Self {
        let quorums = self.quorums.with_earlier_write(survey.members.write_quorum.into());
        Self { quorums, ..self.clone() }
    }

    /// An error where the log was written with other numbers of shards than these stores are read with.
    pub fn check_shape(&self, survey: &Survey) -> Result<(), OtherShape> {
        let Members { identities, data_shards, .. } = &survey.members;
        let (total, data) = (self.stores.len(), self.quorums.data());
        if survey.is_new() || (identities.len() == total && [0, data].contains(&usize::from(*data_shards))) {
            return Ok(());
        }
        let log_data = if *data_shards == 0 { None } else { Some(usize::from(*data_shards)) };
        Err(OtherShape { vdisk: self.vdisk.clone(), log_total: identities.len(), log_data, total, data })
    }

    /// Runs one operation on a store within the time limit.
    pub async fn within_limit<T>(
        &self,
        store: &Arc<dyn ShardStore>,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, operation).await {
            Ok(answer) => answer,
            Err(_) => {
                let source = std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("no answer within {:?}", self.timeout),
                );
                Err(StoreError::new(&*store.address(), StoreErrorKind::Unavailable { source }))
            }
        }
    }

    /// Runs one operation on all stores at once; answers in their order.
    pub async fn on_all<'a, T, F>(
        &'a self,
        mut operation: impl FnMut(usize, &'a Arc<dyn ShardStore>) -> F,
    ) -> Vec<Result<T, StoreError>>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let calls =
            self.stores.iter().enumerate().map(|(i, store)| self.within_limit(store, operation(i, store)));
        join_all(calls).await
    }

    /// Asks every store for its status. Changes nothing.
    pub async fn survey(&self) -> Survey {
        self.survey_of(|_| true).await
    }

    /// Asks some of the stores for their status; the others count as out of reach. Nobody then waits for a store of which it is
    /// known that it does not answer.
    pub async fn survey_of(&self, asked: impl Fn(usize) -> bool) -> Survey {
        let status = |i: usize, store: &Arc<dyn ShardStore>| {
            let (store, ask) = (Arc::clone(store), asked(i));
            async move {
                if ask {
                    return store.status(&self.vdisk).await;
                }
                let source = std::io::Error::other("not asked: it is out");
                Err(StoreError::new(&*store.address(), StoreErrorKind::Unavailable { source }))
            }
        };
        let answers = self.on_all(status).await;
        self.assess(answers)
    }

    /// What answers to `status` or `promise` mean together.
    pub fn assess(&self, answers: Vec<Result<LogState, StoreError>>) -> Survey {
        let members = answers
            .iter()
            .flatten()
            .map(|state| &state.members)
            .max_by_key(|members| members.version())
            .cloned()
            .unwrap_or_default();
        let views = self
            .stores
            .iter()
            .zip(answers)
            .enumerate()
            .map(|(i, (store, answer))| StoreView {
                address: store.address().to_string(),
                standing: standing(&members, i, &answer),
                answer,
            })
            .collect();
        Survey { vdisk: self.vdisk.clone(), quorums: self.quorums, members, views }
    }
}

/// Whether what a store says counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// One of the log's stores: it counts in every quorum.
    Member,
    /// It answers, but with another identity than the log remembers, or none: wiped, replaced, or never filled. It counts
    /// in no quorum.
    Blank,
    /// It did not answer.
    Unreachable,
}

fn standing(members: &Members, store: usize, answer: &Result<LogState, StoreError>) -> Standing {
    let Ok(state) = answer else {
        return Standing::Unreachable;
    };
    if members.identities.is_empty() {
        return Standing::Member; // nobody knows the log: it is new, and all its stores may begin it
    }
    match (members.identities.get(store), state.identity) {
        (Some(Some(expected)), Some(actual)) if *expected == actual => Standing::Member,
        _ => Standing::Blank,
    }
}

/// One store's answer and what it is worth.
#[derive(Debug)]
pub struct StoreView {
    /// What a person calls the store.
    pub address: String,
    /// Whether the answer counts.
    pub standing: Standing,
    /// What it said.
    pub answer: Result<LogState, StoreError>,
}

/// What all stores of a log said at one time.
#[derive(Debug)]
pub struct Survey {
    vdisk: VdiskId,
    quorums: Quorums,
    /// The newest list of members; empty where no store knows the log.
    pub members: Members,
    /// The stores, in order.
    pub views: Vec<StoreView>,
}

impl Survey {
    /// Answers that count, with the number of their store.
    pub fn counted(&self) -> impl Iterator<Item = (usize, &LogState)> {
        self.views.iter().enumerate().filter_map(|(i, view)| match (&view.answer, view.standing) {
            (Ok(state), Standing::Member) => Some((i, state)),
            _ => None,
        })
    }

    /// How many answers count.
    pub fn counted_len(&self) -> usize {
        self.counted().count()
    }

    /// Stores that have not answered.
    pub fn unreachable_len(&self) -> usize {
        self.views.iter().filter(|view| view.standing == Standing::Unreachable).count()
    }

    /// Whether no store that answered knows the log.
    pub fn is_new(&self) -> bool {
        self.members.identities.is_empty()
    }

    /// Highest epoch that any store has promised, blank ones included.
    pub fn highest_epoch(&self) -> Epoch {
        self.views.iter().flat_map(|view| &view.answer).map(|state| state.epoch).max().unwrap_or_default()
    }

    /// Highest number known as committed.
    pub fn committed(&self) -> AggregationNumber {
        self.counted().map(|(_, state)| state.committed).max().unwrap_or_default()
    }

    /// Lowest number kept: what is below was pruned.
    pub fn first(&self) -> AggregationNumber {
        self.counted().map(|(_, state)| state.first).max().unwrap_or_default().max(AggregationNumber(1))
    }

    /// Highest number under which any store holds something.
    pub fn head(&self) -> AggregationNumber {
        self.counted().map(|(_, state)| state.head()).max().unwrap_or_default()
    }

    /// Who began where, from all stores that count, by rising number and epoch. Left out is what a later opening began at or
    /// below: it rules out nothing more.
    pub fn starts(&self) -> Vec<StartRecord> {
        let all: BTreeSet<StartRecord> =
            self.counted().flat_map(|(_, state)| state.starts.iter().copied()).collect();
        let mut starts: Vec<StartRecord> = Vec::new();
        for record in all {
            // Epochs rise here, so that the newest is the last.
            starts.retain(|older| older.number < record.number);
            starts.push(record);
        }
        starts
    }

    /// Whether a later opening has ruled out what `epoch` wrote under `number`: it must never come back.
    pub fn rules_out(&self, epoch: Epoch, number: AggregationNumber) -> bool {
        let over = |record: &StartRecord| record.epoch > epoch && record.number <= number;
        self.counted().any(|(_, state)| state.starts.iter().any(over))
    }

    /// Identity of each store as it answered; none where it did not, or knows no log.
    pub fn identities(&self) -> Vec<Option<StoreIdentity>> {
        let identity = |view: &StoreView| view.answer.as_ref().ok().and_then(|state| state.identity);
        self.views.iter().map(identity).collect()
    }

    /// Places behind which is one and the same store, such as two addresses of one server.
    pub fn same_stores(&self) -> Vec<(usize, usize)> {
        let identities = self.identities();
        let known = || identities.iter().enumerate().filter_map(|(i, identity)| Some((i, (*identity)?)));
        let twin = |(i, of): (usize, StoreIdentity)| {
            known().find(|(other, its)| *other > i && *its == of).map(|(other, _)| (i, other))
        };
        known().filter_map(twin).collect()
    }

    /// The place whose store answered at another place, `store`: addresses in another order, or two of one server. Its shards
    /// are those of that place; nothing may be filled in there.
    pub fn belongs_to(&self, store: usize) -> Option<usize> {
        let identity = self.views.get(store)?.answer.as_ref().ok()?.identity?;
        place_of(&self.members, store, identity)
    }

    /// Why a store does not count, for a person; none where it does.
    pub fn reason(&self, store: usize) -> Option<String> {
        let view = self.views.get(store).filter(|view| view.standing != Standing::Member)?;
        Some(match (&view.answer, self.belongs_to(store).and_then(|place| self.views.get(place))) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Some(place)) => {
                format!(
                    "{} is the store that holds the shards of {}: check the order of the addresses",
                    view.address, place.address
                )
            }
            (Ok(_), None) => format!("{} is blank: it was wiped or replaced", view.address),
        })
    }

    /// An error that names the stores which do not count, unless at least `needed` do. Also an error, whatever is needed,
    /// where one store is behind two places.
    pub fn require(&self, needed: usize) -> Result<(), TooFewStores> {
        if self.same_stores().is_empty() { self.require_members(needed) } else { Err(self.too_few(needed)) }
    }

    /// The same for a writer that has the log open and goes on with the stores that are right.
    pub fn require_members(&self, needed: usize) -> Result<(), TooFewStores> {
        if self.counted_len() >= needed { Ok(()) } else { Err(self.too_few(needed)) }
    }

    fn too_few(&self, needed: usize) -> TooFewStores {
        let address = |i: usize| self.views.get(i).map(|view| view.address.clone()).unwrap_or_default();
        TooFewStores {
            vdisk: self.vdisk.clone(),
            counted: self.counted_len(),
            needed,
            total: self.quorums.total(),
            missing: (0..self.views.len()).filter_map(|store| self.reason(store)).collect(),
            same: self.same_stores().into_iter().map(|(one, other)| (address(one), address(other))).collect(),
        }
    }
}

/// The place other than `store` that a list of members has an identity at.
pub fn place_of(members: &Members, store: usize, identity: StoreIdentity) -> Option<usize> {
    let at = |(place, member): (usize, &Option<StoreIdentity>)| {
        (place != store && *member == Some(identity)).then_some(place)
    };
    members.identities.iter().enumerate().find_map(at)
}

/// Numbers under which a store may hold what was ruled out while it was away: it has not heard of one of `starts`, and what an
/// older writer may have left at and above that number was not dropped. Most of them are right; only the heads tell.
pub fn doubtful(starts: &[StartRecord], state: &LogState) -> NumberRanges {
    let mut doubtful = NumberRanges::new();
    for record in starts {
        if state.starts.iter().any(|own| covers(own, record)) {
            continue;
        }
        // What a later start of its own has cleared is not in doubt, nor what no older writer can have reached.
        let cleared =
            state.starts.iter().filter(|own| own.epoch >= record.epoch).map(|own| own.number.0).min();
        let reached = record.number.0.saturating_add(MAX_IN_FLIGHT as u64);
        let end = cleared.map_or(reached, |cleared| cleared.min(reached));
        for held in state.held.iter() {
            let (first, last) =
                (held.start().0.max(record.number.0), held.end().0.min(end.saturating_sub(1)));
            doubtful.insert_range(AggregationNumber(first)..=AggregationNumber(last));
        }
    }
    doubtful
}

/// Whether a store that has the start record `own` rules out all that `record` does.
pub fn covers(own: &StartRecord, record: &StartRecord) -> bool {
    own.epoch >= record.epoch && own.number <= record.number
}

/// A log has other numbers of shards than the settings say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherShape {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// n of the log.
    pub log_total: usize,
    /// k of the log, where its stores tell.
    pub log_data: Option<usize>,
    /// n as set.
    pub total: usize,
    /// k as set.
    pub data: usize,
}

impl fmt::Display for OtherShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, log_total, log_data, total, data } = self;
        write!(f, "the log of vdisk {vdisk} is on {log_total} stores")?;
        if let Some(log_data) = log_data {
            write!(f, " ({log_data}+{})", log_total.saturating_sub(*log_data))?;
        }
        write!(f, ", not on {total} ({data}+{}); check data-shards, parity-shards and storage", total - data)
    }
}

impl std::error::Error for OtherShape {}

/// Not enough stores for what was to be done: some do not answer or do not count, or one is behind two places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooFewStores {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// Stores that count.
    pub counted: usize,
    /// Stores that are needed.
    pub needed: usize,
    /// Stores that the log has.
    pub total: usize,
    /// Each store that does not count, and why.
    pub missing: Vec<String>,
    /// Pairs of addresses behind which is one and the same store. Then nothing is done, however many stores count.
    pub same: Vec<(String, String)>,
}

impl fmt::Display for TooFewStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, counted, needed, total, missing, same } = self;
        if let Some((one, other)) = same.first() {
            return write!(
                f,
                "vdisk {vdisk}: {one} and {other} are one and the same store; each of the {total} shards needs a store of its \
                 own: correct the addresses"
            );
        }
        write!(
            f,
            "vdisk {vdisk}: {counted} of {total} stores can be counted on, {needed} are needed; bring back: {}",
            missing.join("; ")
        )
    }
}

impl std::error::Error for TooFewStores {}
