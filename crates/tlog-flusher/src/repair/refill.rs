//! A store that came back empty, from nothing to everything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tlog_codec::EncodedAggregation;
use tlog_proto::{AggregationNumber, Epoch};
use tlog_quorum::{ShardCondition, StoreSet, Survey, covers, doubtful, place_of};
use tlog_store::{LogState, Members, ShardStore, StartRecord, StoreError, StoreErrorKind, StoreIdentity};

use super::{Filler, Filling, shard_of};

/// A store that came back empty and has everything up to a number now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refilled {
    pub(crate) identity: StoreIdentity,
    pub(crate) up_to: AggregationNumber,
    /// Lowest number that it keeps.
    pub(crate) first: AggregationNumber,
    pub(crate) shards: u64,
    pub(crate) bytes: u64,
}

/// Why a store could not be refilled.
#[derive(Debug)]
pub(crate) enum RefillError {
    Store(StoreError),
    /// Too few other stores, or a store that belongs elsewhere.
    Source(String),
    /// Of a committed number too few whole shards are left.
    Lost(AggregationNumber),
    /// No store knows the log any more.
    Deleted,
}

/// How far a refill is.
#[derive(Debug, Default)]
pub(crate) struct RefillProgress {
    /// Everything below is there.
    next: AtomicU64,
    last: AtomicU64,
}

impl RefillProgress {
    /// Committed numbers that are still to be filled in, as of when the refill began; none before it got that far.
    pub(crate) fn rest(&self) -> Option<std::ops::RangeInclusive<AggregationNumber>> {
        let next = self.next.load(Ordering::Relaxed);
        let last = self.last.load(Ordering::Relaxed);
        (next > 0).then_some(AggregationNumber(next)..=AggregationNumber(last))
    }
}

/// Which place a store was filled for, or is being filled: two places behind which is one store must not both fill it, the
/// shards of one would stand where the other's belong. What is claimed once stays so while the log is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims(Arc<Mutex<BTreeMap<StoreIdentity, usize>>>);

impl Claims {
    /// The error is the place that has it already.
    fn claim(&self, identity: StoreIdentity, store: usize) -> Result<(), usize> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = *claims.entry(identity).or_insert(store);
        if owner == store { Ok(()) } else { Err(owner) }
    }
}

/// What the writer hands to a refill.
#[derive(Clone, Debug)]
pub(crate) struct RefillOrder {
    pub(crate) filler: Filler,
    pub(crate) start: StartRecord,
    pub(crate) members: Members,
    pub(crate) committed: AggregationNumber,
    /// What this opening adopted and has not committed again, by rising number.
    pub(crate) adopted: Vec<EncodedAggregation>,
    pub(crate) claims: Claims,
    pub(crate) progress: Arc<RefillProgress>,
}

/// Makes an empty store ready to be a member: start records, what is committed, every committed shard, and what was adopted. It
/// is not a member before the writer has told all others.
///
/// What was adopted may have been acknowledged by the writer before, with the store's old identity among the W that held it. A
/// store that became a member without it would leave one holder too few, unnoticed.
pub(crate) async fn refill(order: RefillOrder) -> Result<Refilled, RefillError> {
    let RefillOrder { filler, start, members, committed, adopted, claims, progress } = order;
    let (set, store, quorum) = (&filler.set, filler.store, filler.quorum);
    let source = |why: &str| RefillError::Source(why.to_owned());
    let survey = filler.survey().await?;
    let port = set.stores().get(store).cloned().ok_or_else(|| source("no such store"))?;
    let mut records: Vec<StartRecord> =
        survey.starts().into_iter().filter(|record| record.epoch < start.epoch).collect();
    records.push(start);
    let mut state = set.within_limit(&port, port.status(set.vdisk())).await.map_err(RefillError::Store)?;
    own_place(set, store, &members, &state).await?;
    tellable(set, quorum, &survey, store, &state, &records).await.map_err(RefillError::Source)?;
    let identity = match state.identity {
        Some(identity) => identity,
        None => {
            let first = records.first().map_or(Epoch(1), |record| record.epoch);
            let promised = set.within_limit(&port, port.promise(set.vdisk(), first)).await;
            // Whoever was faster there is no newer writer: those promise nothing on a blank store.
            state = promised.map_err(|error| match error.is_fenced() {
                true => source("somebody else began to fill it"),
                false => RefillError::Store(error),
            })?;
            state.identity.ok_or_else(|| source("it does not tell its identity"))?
        }
    };
    let first = survey.first().max(filler.kept_from.get());
    if state.first > first {
        // It takes nothing below that any more, and whether it was told so on behalf of this log nobody here knows.
        return Err(RefillError::Source(format!(
            "it was in use before and has removed what is below aggregation {}, and the log still keeps what is from {first} on: empty it; \
             it is filled then",
            state.first
        )));
    }
    claims.claim(identity, store).map_err(|other| same_store(set, store, other))?;
    prepare(set, &port, state.epoch, &records, &members).await.map_err(RefillError::Store)?;
    let publish = port.publish(set.vdisk(), start.epoch, committed);
    set.within_limit(&port, publish).await.map_err(RefillError::Store)?;
    if first > AggregationNumber(1) && first <= committed.next() {
        let prune = port.prune(set.vdisk(), start.epoch, first);
        set.within_limit(&port, prune).await.map_err(RefillError::Store)?;
    }
    progress.last.store(committed.0, Ordering::Relaxed);
    progress.next.store(first.0, Ordering::Relaxed);
    let (mut stopped, mut shards, mut bytes) = (None, 0, 0);
    let outcome = |number: AggregationNumber, filling| {
        let error = match filling {
            Ok(Filling::Filled(read)) => {
                shards += 1;
                bytes += read;
                progress.next.fetch_max(number.0 + 1, Ordering::Relaxed);
                return true;
            }
            Ok(Filling::Removed) => {
                progress.next.fetch_max(number.0 + 1, Ordering::Relaxed);
                return true;
            }
            Ok(Filling::Unreadable) => RefillError::Lost(number),
            Ok(Filling::NotNow) => {
                RefillError::Source(format!("aggregation {number} cannot be read right now"))
            }
            Err(error) => RefillError::Store(error),
        };
        stopped.get_or_insert(error);
        false
    };
    filler.fill_all(&survey, (first.0..=committed.0).map(AggregationNumber), outcome).await;
    if let Some(error) = stopped {
        return Err(error);
    }
    #[cfg(test)]
    let adopted = if crate::broken::is_broken(crate::broken::Rule::Adopted) { Vec::new() } else { adopted };
    for aggregation in &adopted {
        let number = aggregation.header.number;
        let shard = shard_of(aggregation, store, start.epoch).ok_or_else(|| source("no such shard"))?;
        let append = port.append(set.vdisk(), number, shard, committed);
        set.within_limit(&port, append).await.map_err(RefillError::Store)?;
    }
    let up_to = adopted.last().map_or(committed, |aggregation| aggregation.header.number.max(committed));
    // What was filled in went to one and the same store, and is there.
    let state = set.within_limit(&port, port.status(set.vdisk())).await.map_err(RefillError::Store)?;
    let kept = first.max(filler.kept_from.get())..=up_to;
    if state.identity != Some(identity) || !state.held.missing_in(kept).is_empty() {
        return Err(source("it was emptied or replaced while it was filled"));
    }
    Ok(Refilled { identity, up_to: committed, first: state.first, shards, bytes })
}

/// A store that another place of the log has, or that holds shards of another place, is not filled: shards would stand where
/// others belong, and redundancy would be gone without a trace.
async fn own_place(
    set: &StoreSet,
    store: usize,
    members: &Members,
    state: &LogState,
) -> Result<(), RefillError> {
    if let Some(other) = state.identity.and_then(|identity| place_of(members, store, identity)) {
        return Err(same_store(set, store, other));
    }
    let moved = set.shard_of_another_place(store, &state.held).await.map_err(RefillError::Store)?;
    let Some((number, place)) = moved else { return Ok(()) };
    Err(RefillError::Source(format!(
        "{} holds shards of {} (aggregation {number}): it was moved here from another place; check the order of the addresses, or \
         empty it",
        address(set, store),
        address(set, place)
    )))
}

/// Says that two addresses lead to one store.
pub(crate) fn same_store(set: &StoreSet, store: usize, other: usize) -> RefillError {
    RefillError::Source(format!(
        "{} is the same store as {}: each shard needs a store of its own; correct the addresses",
        address(set, store),
        address(set, other)
    ))
}

fn address(set: &StoreSet, store: usize) -> Arc<str> {
    set.stores().get(store).map_or_else(|| "another store".into(), |port| port.address())
}

/// Start records can be copied only in the order of their epochs. A disk that was in use before and is put back may have
/// passed the epoch of one that it lacks: an append of the running writer reached it, say. It may become a member all the
/// same where enough others have that record, where too few can ever have had it, or where nothing is left anywhere that the
/// record rules out.
async fn tellable(
    set: &StoreSet,
    quorum: usize,
    survey: &Survey,
    store: usize,
    state: &LogState,
    records: &[StartRecord],
) -> Result<(), String> {
    let has = |state: &LogState, record| state.starts.iter().any(|own| covers(own, record));
    let total = survey.views.len();
    let newest = records.last().map_or(Epoch(0), |record| record.epoch);
    for record in records.iter().filter(|record| record.epoch < state.epoch && !has(state, record)) {
        let others = || survey.counted().filter(|(other, _)| *other != store);
        let have = others().filter(|(_, state)| has(state, record)).count();
        if have >= quorum || have + (total - 1 - others().count()) < quorum {
            continue;
        }
        let mut moot = survey.unreachable_len() == 0;
        for (other, state) in others().filter(|(_, state)| !has(state, record)) {
            // Below the newest epoch an older writer's shard could still arrive.
            moot &= state.epoch >= newest;
            for range in doubtful(std::slice::from_ref(record), state).iter() {
                let located = set.heads(survey, range).await;
                moot &= located.iter().all(|located| {
                    !matches!(
                        located.conditions.get(other),
                        Some(ShardCondition::RuledOut(_) | ShardCondition::Unreachable) | None
                    )
                });
            }
        }
        if !moot {
            return Err(format!(
                "it was in use before the opening of epoch {} and can no longer be told of it: bring back the stores that are away, or \
                 empty it; it is filled then",
                record.epoch
            ));
        }
    }
    Ok(())
}

/// Copies the start records, oldest first, onto a store that has promised `epoch`.
async fn prepare(
    set: &StoreSet,
    port: &Arc<dyn ShardStore>,
    epoch: Epoch,
    records: &[StartRecord],
    members: &Members,
) -> Result<(), StoreError> {
    // Those of epochs that the store has passed would be refused.
    for record in records.iter().filter(|record| record.epoch >= epoch) {
        set.within_limit(port, port.start(set.vdisk(), *record, members)).await?;
    }
    let newest = records.last().map_or(Epoch(0), |record| record.epoch);
    if epoch <= newest {
        return Ok(());
    }
    Err(StoreError::new(&*port.address(), StoreErrorKind::Fenced { promised: epoch }))
}
