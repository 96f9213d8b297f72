//! Bringing a store up to date: one that missed something, and one that came back empty.

use std::sync::Arc;
use std::time::Duration;

use tlog_codec::{EncodedAggregation, EncodedShard};
use tlog_proto::{AggregationNumber, Epoch};
use tlog_quorum::{Candidate, ShardCondition, StoreSet, Survey, covers, doubtful};
use tlog_store::{
    FillOutcome, LogState, Members, NumberRanges, Shard, ShardStore, StartRecord, StoreError, StoreErrorKind,
    StoreIdentity,
};

use crate::metric;
use crate::recovery::opening_quorum;

/// What a backfill did before it ended.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) filled: NumberRanges,
    pub(crate) error: Option<StoreError>,
    /// Numbers of which too few whole shards were found.
    pub(crate) unreadable: NumberRanges,
}

/// Puts the shards of committed numbers onto a store that lacks them, reading at most `rate` bytes per second.
pub(crate) async fn backfill(set: StoreSet, store: usize, numbers: NumberRanges, rate: u64) -> Filled {
    let mut done = Filled { filled: NumberRanges::new(), error: None, unreadable: NumberRanges::new() };
    let survey = set.survey().await;
    // Start records are on that many stores: with fewer in reach, what was ruled out might be taken for what counts.
    if survey.require(opening_quorum(&set)).is_err() {
        return done;
    }
    let mut pace = Pace::new(rate);
    for number in numbers.iter().flat_map(|range| range.start().0..=range.end().0).map(AggregationNumber) {
        match fill_one(&set, &survey, store, number).await {
            Ok(Filling::Filled(bytes)) => {
                done.filled.insert(number);
                pace.read(bytes).await;
            }
            Ok(Filling::Unreadable) => done.unreadable.insert(number),
            Ok(Filling::NotNow) => break,
            Err(error) => {
                done.error = Some(error);
                break;
            }
        }
    }
    done
}

/// What became of filling one slot.
enum Filling {
    /// It holds the right shard now; so many bytes were read.
    Filled(u64),
    /// Every store answered, and too few whole shards are left.
    Unreadable,
    /// Too few stores answered.
    NotNow,
}

/// Rebuilds one aggregation and fills one store's slot.
async fn fill_one(
    set: &StoreSet,
    survey: &Survey,
    store: usize,
    number: AggregationNumber,
) -> Result<Filling, StoreError> {
    let (candidates, conditions) = set.all_shards(survey, number).await;
    let candidate = candidates.iter().find(|candidate| candidate.is_whole());
    let Some((candidate, shard)) = candidate.and_then(|c| Some((c, rebuilt_shard(c, store)?))) else {
        let silent = |(i, _): (usize, &LogState)| conditions.get(i) == Some(&ShardCondition::Unreachable);
        let all_known = survey.counted_len() == set.stores().len() && !survey.counted().any(silent);
        return Ok(if all_known { Filling::Unreadable } else { Filling::NotNow });
    };
    let Some(port) = set.stores().get(store) else {
        return Ok(Filling::NotNow);
    };
    set.within_limit(port, port.fill(set.vdisk(), number, shard)).await?;
    let bytes = candidate.payloads.iter().flatten().map(|payload| payload.len() as u64).sum();
    metric::filled(bytes);
    Ok(Filling::Filled(bytes))
}

/// The shard that `store` should hold.
pub(crate) fn rebuilt_shard(candidate: &Candidate, store: usize) -> Option<Shard> {
    shard_of(&candidate.rebuild().ok()?, store, candidate.epoch)
}

/// The shard of an aggregation that `store` holds, as the writer of `epoch` stores it.
pub(crate) fn shard_of(aggregation: &EncodedAggregation, store: usize, epoch: Epoch) -> Option<Shard> {
    let EncodedShard { head, payload } = aggregation.shard(store, epoch)?;
    Some(Shard { epoch, id: aggregation.id, head, payload })
}

/// Bounds a rate of reading, on average.
pub(crate) struct Pace {
    rate: u64,
    owed: Duration,
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), owed: Duration::ZERO }
    }

    /// So many bytes were read: waits as long as that may take. Many small waits are made as one.
    pub(crate) async fn read(&mut self, bytes: u64) {
        self.owed += Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        if self.owed >= Duration::from_millis(10) {
            tokio::time::sleep(std::mem::take(&mut self.owed)).await;
        }
    }
}

/// A store that came back empty and has everything up to a number now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refilled {
    pub(crate) identity: StoreIdentity,
    pub(crate) up_to: AggregationNumber,
}

/// Why a store could not be refilled.
#[derive(Debug)]
pub(crate) enum RefillError {
    Store(StoreError),
    /// Too few other stores, or a number that cannot be rebuilt.
    Source(String),
}

/// What the writer hands to a refill.
#[derive(Clone, Debug)]
pub(crate) struct RefillOrder {
    pub(crate) set: StoreSet,
    pub(crate) store: usize,
    pub(crate) start: StartRecord,
    pub(crate) members: Members,
    pub(crate) committed: AggregationNumber,
    /// What this opening adopted and has not committed again, by rising number.
    pub(crate) adopted: Vec<EncodedAggregation>,
    pub(crate) rate: u64,
}

/// Makes an empty store ready to be a member: start records, what is committed, every committed shard, and what was adopted. It
/// is not a member before the writer has told all others.
///
/// What was adopted may have been acknowledged by the writer before, with the store's old identity among the W that held it. A
/// store that became a member without it would leave one holder too few, unnoticed.
pub(crate) async fn refill(order: RefillOrder) -> Result<Refilled, RefillError> {
    let RefillOrder { set, store, start, members, committed, adopted, rate } = order;
    let source = |why: &str| RefillError::Source(why.to_owned());
    let survey = set.survey().await;
    survey.require(opening_quorum(&set)).map_err(|too_few| RefillError::Source(too_few.to_string()))?;
    let port = set.stores().get(store).cloned().ok_or_else(|| source("no such store"))?;
    let mut records: Vec<StartRecord> =
        survey.starts().into_iter().filter(|record| record.epoch < start.epoch).collect();
    records.push(start);
    let state = set.within_limit(&port, port.status(set.vdisk())).await.map_err(RefillError::Store)?;
    tellable(&set, &survey, store, &state, &records).await.map_err(RefillError::Source)?;
    let identity = prepare(&set, &port, state, &records, &members).await.map_err(RefillError::Store)?;
    let publish = port.publish(set.vdisk(), start.epoch, committed);
    set.within_limit(&port, publish).await.map_err(RefillError::Store)?;
    let first = survey.first();
    if first > AggregationNumber(1) && first <= committed.next() {
        let prune = port.prune(set.vdisk(), start.epoch, first);
        set.within_limit(&port, prune).await.map_err(RefillError::Store)?;
    }
    let mut pace = Pace::new(rate);
    for number in (first.0..=committed.0).map(AggregationNumber) {
        let filling = fill_one(&set, &survey, store, number).await.map_err(RefillError::Store)?;
        let why = match filling {
            Filling::Filled(bytes) => {
                pace.read(bytes).await;
                continue;
            }
            Filling::Unreadable => "has too few whole shards left",
            Filling::NotNow => "cannot be read right now",
        };
        return Err(RefillError::Source(format!("aggregation {number} {why}")));
    }
    #[cfg(test)]
    let adopted =
        if crate::exploration::is_broken(crate::exploration::Rule::Adopted) { Vec::new() } else { adopted };
    for aggregation in &adopted {
        let number = aggregation.header.number;
        let shard = shard_of(aggregation, store, start.epoch).ok_or_else(|| source("no such shard"))?;
        let append = port.append(set.vdisk(), number, shard, committed);
        set.within_limit(&port, append).await.map_err(RefillError::Store)?;
    }
    let up_to = adopted.last().map_or(committed, |aggregation| aggregation.header.number.max(committed));
    // What was filled in went to one and the same store, and is there.
    let state = set.within_limit(&port, port.status(set.vdisk())).await.map_err(RefillError::Store)?;
    if state.identity != Some(identity) || !state.held.missing_in(first..=up_to).is_empty() {
        return Err(source("it was emptied or replaced while it was filled"));
    }
    Ok(Refilled { identity, up_to: committed })
}

/// Start records can be copied only in the order of their epochs. A disk that was in use before and is put back may have
/// passed the epoch of one that it lacks: an append of the running writer reached it, say. It may become a member all the
/// same where enough others have that record, where too few can ever have had it, or where nothing is left anywhere that the
/// record rules out.
async fn tellable(
    set: &StoreSet,
    survey: &Survey,
    store: usize,
    state: &LogState,
    records: &[StartRecord],
) -> Result<(), String> {
    let has = |state: &LogState, record| state.starts.iter().any(|own| covers(own, record));
    let (quorum, total) = (opening_quorum(set), survey.views.len());
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

/// Makes the log on an empty store and copies the start records, oldest first. Answers its identity.
async fn prepare(
    set: &StoreSet,
    port: &Arc<dyn ShardStore>,
    state: LogState,
    records: &[StartRecord],
    members: &Members,
) -> Result<StoreIdentity, StoreError> {
    let LogState { mut epoch, mut identity, .. } = state;
    if identity.is_none() {
        let first = records.first().map_or(Epoch(1), |record| record.epoch);
        identity = set.within_limit(port, port.promise(set.vdisk(), first)).await?.identity;
        epoch = first;
    }
    // Those of epochs that the store has passed would be refused.
    for record in records.iter().filter(|record| record.epoch >= epoch) {
        set.within_limit(port, port.start(set.vdisk(), *record, members)).await?;
    }
    let newest = records.last().map_or(Epoch(0), |record| record.epoch);
    match identity {
        Some(identity) if epoch <= newest => Ok(identity),
        Some(_) => Err(StoreError::new(port.address(), StoreErrorKind::Fenced { promised: epoch })),
        None => Err(StoreError::new(port.address(), StoreErrorKind::NoLog)),
    }
}

/// What probing a store that was away found.
#[derive(Debug)]
pub(crate) enum Probe {
    /// The same store as before; it lacks these committed numbers.
    Back { missed: NumberRanges },
    /// It is another store now, or an empty one.
    Blank,
}

/// What the writer hands to a probe.
#[derive(Clone, Debug)]
pub(crate) struct ProbeOrder {
    pub(crate) set: StoreSet,
    pub(crate) store: usize,
    pub(crate) start: StartRecord,
    /// All start records that the opening found.
    pub(crate) starts: Arc<[StartRecord]>,
    pub(crate) members: Members,
    pub(crate) committed: AggregationNumber,
    /// Lowest number that the log keeps.
    pub(crate) first: AggregationNumber,
}

/// Asks a store that was away, and brings its start record up to date. What it holds is asked after that: the start record
/// drops some.
pub(crate) async fn probe(order: ProbeOrder) -> Result<Probe, StoreError> {
    let ProbeOrder { set, store, start, starts, members, committed, first } = order;
    let Some(port) = set.stores().get(store).cloned() else {
        return Ok(Probe::Blank);
    };
    let expected = members.identities.get(store).copied().flatten();
    let before = set.within_limit(&port, port.status(set.vdisk())).await?;
    if before.identity.is_none() || before.identity != expected {
        return Ok(Probe::Blank);
    }
    let identity = set.within_limit(&port, port.start(set.vdisk(), start, &members)).await?;
    let same = set.within_limit(&port, port.publish(set.vdisk(), start.epoch, committed)).await?;
    let state = set.within_limit(&port, port.status(set.vdisk())).await?;
    if [Some(identity), Some(same), state.identity].iter().any(|identity| *identity != expected) {
        return Ok(Probe::Blank);
    }
    let mut missed = state.held.missing_in(first.max(state.first)..=committed);
    // Filling finds out which of these are right.
    for range in doubtful(&starts, &state).iter() {
        missed.insert_range(*range.start()..=committed.min(*range.end()));
    }
    Ok(Probe::Back { missed })
}

/// Whether a fill changed the store.
pub(crate) fn stored(outcome: FillOutcome) -> bool {
    outcome == FillOutcome::Stored
}
