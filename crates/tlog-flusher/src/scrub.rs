//! Scrub: reads every shard, finds what is missing or damaged, and puts it back.

use tlog_proto::AggregationNumber;
use tlog_quorum::{Candidate, Pacer, ShardCondition, Standing, StoreSet, Survey, TooFewStores};
use tlog_store::NumberRanges;

use crate::metric;
use crate::recovery::opening_quorum;
use crate::repair::{rebuilt_shard, stored};

/// How far a scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Aggregations looked at.
    pub done: u64,
    /// Aggregations to look at.
    pub total: u64,
    /// Shards put back so far.
    pub refilled: u64,
}

/// What a scrub found on one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreScrub {
    /// What a person calls it.
    pub address: String,
    /// Whether it could be looked at: it answers and is a member.
    pub counted: bool,
    /// Numbers under which it held nothing, or what was ruled out.
    pub missing: NumberRanges,
    /// Numbers under which it held something damaged.
    pub damaged: NumberRanges,
    /// Of both, what was put back.
    pub refilled: NumberRanges,
    /// Why it could not be looked at, or the last error while putting back.
    pub error: Option<String>,
}

/// What a scrub found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Aggregations looked at.
    pub aggregations: u64,
    /// The stores, in order.
    pub stores: Vec<StoreScrub>,
    /// Aggregations of which too few whole shards are left.
    pub unreadable: NumberRanges,
}

impl ScrubReport {
    /// Whether every store holds every shard, now.
    pub fn is_whole(&self) -> bool {
        let store_whole = |store: &StoreScrub| {
            store.counted && store.missing.count() + store.damaged.count() == store.refilled.count()
        };
        self.unreadable.is_empty() && self.stores.iter().all(store_whole)
    }
}

/// Why a scrub could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// Too few stores to tell what counts.
    #[error(transparent)]
    TooFewStores(#[from] TooFewStores),
}

/// Scrubs everything that is committed, reading at most `rate` bytes per second. Safe beside a writer: what is committed never
/// changes.
pub async fn scrub(
    set: &StoreSet,
    rate: u64,
    mut progress: impl FnMut(ScrubProgress),
) -> Result<ScrubReport, ScrubError> {
    let survey = set.survey().await;
    survey.require(opening_quorum(set))?;
    let (first, committed) = (survey.first(), survey.committed());
    let total = (committed.0 + 1).saturating_sub(first.0);
    let stores = survey
        .views
        .iter()
        .enumerate()
        .map(|(store, view)| StoreScrub {
            address: view.address.clone(),
            counted: view.standing == Standing::Member,
            missing: NumberRanges::new(),
            damaged: NumberRanges::new(),
            refilled: NumberRanges::new(),
            error: survey.reason(store),
        })
        .collect();
    for store in survey.views.iter().enumerate().filter_map(|(store, _)| survey.reason(store)) {
        tracing::warn!(vdisk = %set.vdisk(), store, "a store takes no part in this scrub");
    }
    let mut report = ScrubReport { aggregations: total, stores, unreadable: NumberRanges::new() };
    let pacer = Pacer::new(rate);
    let mut kept_from = first;
    for (done, number) in (1..).zip((first.0..=committed.0).map(AggregationNumber)) {
        let (candidates, conditions) = set.all_shards(&survey, number).await;
        let is_gone = |condition: &ShardCondition| {
            !matches!(condition, ShardCondition::Held(_) | ShardCondition::Unreachable)
        };
        // History may be removed meanwhile, from one store after the other: what is gone then is not lost.
        if number >= kept_from && conditions.iter().any(is_gone) {
            kept_from = kept_from.max(set.survey().await.first());
        }
        let conditions = if number < kept_from { Vec::new() } else { conditions };
        let whole = candidates.iter().find(|candidate| candidate.is_whole());
        if whole.is_none() && number >= kept_from {
            report.unreadable.insert(number);
        }
        for (store, condition) in conditions.iter().enumerate() {
            mend(set, &survey, number, store, condition, whole, &mut report).await;
        }
        let refilled = report.stores.iter().map(|store| store.refilled.count()).sum();
        progress(ScrubProgress { done, total, refilled });
        let read: usize = candidates.iter().flat_map(|c| c.payloads.iter().flatten()).map(|p| p.len()).sum();
        pacer.read(read as u64).await;
    }
    let count =
        |of: fn(&StoreScrub) -> &NumberRanges| report.stores.iter().map(|store| of(store).count()).sum();
    if let (Some(from), Some(to)) = (report.unreadable.first(), report.unreadable.last()) {
        tracing::error!(vdisk = %set.vdisk(), aggregations = report.unreadable.count(), %from, %to,
            "too few whole shards are left to read some aggregations");
    }
    metric::scrubbed(count(|store| &store.missing), count(|store| &store.damaged), report.unreadable.count());
    Ok(report)
}

/// Notes what is wrong with one slot, and puts the right shard there where that is possible.
async fn mend(
    set: &StoreSet,
    survey: &Survey,
    number: AggregationNumber,
    store: usize,
    condition: &ShardCondition,
    whole: Option<&Candidate>,
    report: &mut ScrubReport,
) {
    let Some(found) = report.stores.get_mut(store) else {
        return;
    };
    match condition {
        ShardCondition::Unreachable => return,
        ShardCondition::Held(id) if whole.is_none_or(|candidate| candidate.head.id == *id) => return,
        ShardCondition::Damaged(_) => found.damaged.insert(number),
        ShardCondition::Held(_) | ShardCondition::RuledOut(_) | ShardCondition::Missing => {
            found.missing.insert(number)
        }
    }
    let (Some(candidate), Some(port)) = (whole, set.stores().get(store)) else {
        return;
    };
    let Some(shard) = rebuilt_shard(candidate, store) else {
        return;
    };
    match set.within_limit(port, port.fill(set.vdisk(), number, shard)).await {
        Ok(outcome) if stored(outcome) => found.refilled.insert(number),
        // It was told of it between the two questions, or a writer that was late brought the shard.
        Ok(_)
            if is_pruned(set, store, number).await
                || is_whole_by_now(set, survey, number, store, candidate).await =>
        {
            let number = number..=number;
            found.missing.remove_range(number.clone());
            found.damaged.remove_range(number);
        }
        Ok(_) => {
            found.error =
                Some(format!("aggregation {number}: the store holds it to be whole, the reader does not"))
        }
        Err(error) => {
            // Said once for a store: one that is full refuses every shard.
            if found.error.is_none() {
                tracing::warn!(vdisk = %set.vdisk(), %number, %error, "shards could not be put back");
            }
            found.error = Some(error.to_string());
        }
    }
}

/// Whether what a store holds under a number is right when it is read once more.
async fn is_whole_by_now(
    set: &StoreSet,
    survey: &Survey,
    number: AggregationNumber,
    store: usize,
    right: &Candidate,
) -> bool {
    let (_, conditions) = set.all_shards(survey, number).await;
    matches!(conditions.get(store), Some(ShardCondition::Held(id)) if *id == right.head.id)
}

/// Whether a store has removed what it had under a number, since that history is not to be kept.
async fn is_pruned(set: &StoreSet, store: usize, number: AggregationNumber) -> bool {
    match set.stores().get(store) {
        Some(port) => {
            let state = set.within_limit(port, port.status(set.vdisk())).await;
            state.is_ok_and(|state| state.first > number)
        }
        None => false,
    }
}
