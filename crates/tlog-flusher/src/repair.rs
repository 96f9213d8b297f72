//! Bringing a store up to date: one that missed something, and one that came back empty.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;
use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, EncodedShard};
use tlog_proto::{AggregationNumber, Epoch};
use tlog_quorum::{Candidate, Pacer, ShardCondition, StoreSet, Survey, covers, doubtful, place_of};
use tlog_store::{
    FillOutcome, LogState, Members, NumberRanges, Shard, ShardStore, StartRecord, StoreError, StoreErrorKind,
    StoreIdentity,
};
use tokio::time::Instant;

use crate::metric;

/// So many aggregations are made again at once while nothing is written ...
const AT_ONCE: usize = 4;
/// ... unless they are as large as this.
const LARGE: u64 = 1 << 20;

/// Puts shards onto one store that the others give back.
#[derive(Clone, Debug)]
pub(crate) struct Filler {
    pub(crate) set: StoreSet,
    pub(crate) store: usize,
    /// Stores to read from, those first that answer soonest.
    pub(crate) sources: Vec<usize>,
    /// Stores that are known to be out: nobody waits for them.
    pub(crate) out: Vec<usize>,
    /// So many members must be in reach: start records are on that many, and with fewer what was ruled out might be taken for what
    /// counts.
    pub(crate) quorum: usize,
    /// What is below is removed while it is being filled in.
    pub(crate) kept_from: KeptFrom,
    pub(crate) pacer: Arc<Pacer>,
    /// Whether the writer has something to do: then filling takes half the time at most.
    pub(crate) busy: Arc<AtomicBool>,
}

/// The lowest number that a log keeps, as it rises.
#[derive(Clone, Debug)]
pub(crate) struct KeptFrom(Arc<AtomicU64>);

impl KeptFrom {
    pub(crate) fn new(first: AggregationNumber) -> Self {
        Self(Arc::new(AtomicU64::new(first.0)))
    }

    pub(crate) fn raise(&self, first: AggregationNumber) {
        self.0.fetch_max(first.0, Ordering::Relaxed);
    }

    fn get(&self) -> AggregationNumber {
        AggregationNumber(self.0.load(Ordering::Relaxed))
    }
}

/// What became of filling one slot.
enum Filling {
    /// It holds the right shard now; so many bytes were read.
    Filled(u64),
    /// Every store answered, and too few whole shards are left.
    Unreadable,
    /// Too few stores answered.
    NotNow,
    /// It is not to be there any more.
    Removed,
}

impl Filler {
    /// What the stores have, if enough of them are those that the log knows.
    async fn survey(&self) -> Result<Survey, RefillError> {
        let survey = self.set.survey_of(|i| !self.out.contains(&i)).await;
        let answered = survey.views.iter().filter(|view| view.answer.is_ok()).count();
        if survey.is_new() && answered >= self.quorum {
            // To an opening all of them would be as good as members. To us it was there a moment ago. Where too few answer, nobody says that
            // it is gone.
            return Err(RefillError::Deleted);
        }
        survey.require_members(self.quorum).map_err(|too_few| RefillError::Source(too_few.to_string()))?;
        Ok(survey)
    }

    /// Fills one number after the other, a few at once while the log is idle, until `outcome` answers false.
    async fn fill_all(
        &self,
        survey: &Survey,
        mut numbers: impl Iterator<Item = AggregationNumber>,
        mut outcome: impl FnMut(AggregationNumber, Result<Filling, StoreError>) -> bool,
    ) {
        let mut largest = LARGE;
        loop {
            let narrow = largest >= LARGE || self.busy.load(Ordering::Relaxed);
            let round: Vec<_> = numbers.by_ref().take(if narrow { 1 } else { AT_ONCE }).collect();
            if round.is_empty() {
                return;
            }
            let began = Instant::now();
            let fillings = join_all(round.iter().map(|number| self.fill_one(survey, *number))).await;
            largest = 0;
            let (mut bytes, mut go_on) = (0, true);
            for (number, filling) in round.into_iter().zip(fillings) {
                if let Ok(Filling::Filled(read)) = filling {
                    bytes += read;
                    largest = largest.max(read);
                }
                go_on &= outcome(number, filling);
            }
            if !go_on {
                return;
            }
            if self.busy.load(Ordering::Relaxed) {
                tokio::time::sleep(began.elapsed()).await;
            }
            self.pacer.read(bytes).await;
        }
    }

    /// Rebuilds one aggregation and fills the store's slot.
    async fn fill_one(&self, survey: &Survey, number: AggregationNumber) -> Result<Filling, StoreError> {
        let Self { set, store, sources, .. } = self;
        let is_removed = || number < self.kept_from.get();
        if is_removed() {
            return Ok(Filling::Removed);
        }
        let order: Vec<usize> =
            sources.iter().copied().filter(|source| source != store).chain([*store]).collect();
        let candidate = match set.committed_aggregation(survey, number, &order).await {
            Ok(candidate) => candidate,
            Err(_) if is_removed() => return Ok(Filling::Removed),
            Err((_, conditions)) => {
                let silent =
                    |(i, _): (usize, &LogState)| conditions.get(i) == Some(&ShardCondition::Unreachable);
                // A blank store has answered too: that it holds nothing which counts.
                let all_known = survey.unreachable_len() == 0 && !survey.counted().any(silent);
                return Ok(if all_known { Filling::Unreadable } else { Filling::NotNow });
            }
        };
        let (Some(port), Some(shard)) = (set.stores().get(*store), rebuilt_shard(&candidate, *store)) else {
            return Ok(Filling::NotNow);
        };
        reached(Point::BeforeFill);
        set.within_limit(port, port.fill(set.vdisk(), number, shard)).await?;
        reached(Point::AfterFill);
        let bytes = candidate.payloads.iter().flatten().map(|payload| payload.len() as u64).sum();
        metric::filled(bytes);
        Ok(Filling::Filled(bytes))
    }
}

/// What a backfill did before it ended.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    pub(crate) filled: NumberRanges,
    /// Bytes that were read for it.
    pub(crate) bytes: u64,
    pub(crate) error: Option<StoreError>,
    /// Numbers of which too few whole shards were found.
    pub(crate) unreadable: NumberRanges,
}

/// Puts the shards of committed numbers onto a store that lacks them.
pub(crate) async fn backfill(
    filler: Filler,
    epoch: Epoch,
    committed: AggregationNumber,
    numbers: NumberRanges,
) -> Filled {
    let mut done = Filled::default();
    let set = &filler.set;
    let Some(port) = set.stores().get(filler.store) else { return done };
    // A store fills only what it knows as committed.
    if let Err(error) = set.within_limit(port, port.publish(set.vdisk(), epoch, committed)).await {
        done.error = Some(error);
        return done;
    }
    let Ok(survey) = filler.survey().await else { return done };
    let numbers = numbers.iter().flat_map(|range| range.start().0..=range.end().0).map(AggregationNumber);
    let numbers: Vec<AggregationNumber> = numbers.collect();
    let outcome = |number, filling| match filling {
        Ok(Filling::Filled(bytes)) => {
            done.filled.insert(number);
            done.bytes += bytes;
            true
        }
        Ok(Filling::Removed) => {
            done.filled.insert(number);
            true
        }
        Ok(Filling::Unreadable) => {
            done.unreadable.insert(number);
            true
        }
        Ok(Filling::NotNow) => false,
        Err(error) => {
            done.error = Some(error);
            false
        }
    };
    filler.fill_all(&survey, numbers.into_iter(), outcome).await;
    done
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

/// What probing a store that was away found.
#[derive(Debug)]
pub(crate) enum Probe {
    /// The same store as before; it lacks these committed numbers, and keeps none below `first`.
    Back { missed: NumberRanges, first: AggregationNumber },
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
///
/// A store that answers the first question and not the next is asked once more at once: one that was restarted says so to the
/// first write, and would else be left out for another pause.
pub(crate) async fn probe(order: ProbeOrder) -> Result<Probe, StoreError> {
    let port = order.set.stores().get(order.store).cloned();
    let answers = match port {
        Some(port) => order.set.within_limit(&port, port.status(order.set.vdisk())).await,
        None => return Ok(Probe::Blank),
    };
    answers?;
    match ask_back(order.clone()).await {
        Err(error) if error.is_retryable() => ask_back(order).await,
        answer => answer,
    }
}

async fn ask_back(order: ProbeOrder) -> Result<Probe, StoreError> {
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
    Ok(Probe::Back { missed, first: state.first })
}

/// Whether a fill changed the store.
pub(crate) fn stored(outcome: FillOutcome) -> bool {
    outcome == FillOutcome::Stored
}
