//! Filling one store with what the others give back.

mod probe;
mod refill;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::future::join_all;
use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, EncodedShard};
use tlog_proto::{AggregationNumber, Epoch};
use tlog_quorum::{Candidate, Pacer, ShardCondition, StoreSet, Survey};
use tlog_store::{FillOutcome, LogState, NumberRanges, Shard, StoreError};
use tokio::time::Instant;

pub(crate) use self::probe::{Probe, ProbeOrder, probe};
pub(crate) use self::refill::{
    Claims, RefillError, RefillOrder, RefillProgress, Refilled, refill, same_store,
};
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

/// Whether a fill changed the store.
pub(crate) fn stored(outcome: FillOutcome) -> bool {
    outcome == FillOutcome::Stored
}
