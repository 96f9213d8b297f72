//! What a log's writer shows of itself.

use std::time::Duration;

use tlog_proto::{AggregationNumber, Epoch, Timestamp, VdiskId};
use tlog_store::NumberRanges;

/// One store, as the writer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// What a person calls it.
    pub address: String,
    /// Whether it takes part.
    pub state: LaneState,
    /// Since when it has not, by the clock on the wall.
    pub out_since: Option<Timestamp>,
    /// For how long it has not.
    pub out_for: Option<Duration>,
    /// Why it does not take part, or what it said last when it failed.
    pub error: Option<String>,
    /// Committed aggregations whose shard it lacks and will be given, as far as that is known. While it is away that grows with
    /// what is written; what it lost in the meantime shows when it is back.
    pub missing: u64,
    /// The lowest of these.
    pub first_missing: Option<AggregationNumber>,
    /// About how many bytes these shards have: by the average of what this writer has stored. None before it has stored any.
    pub missing_bytes: Option<u64>,
    /// What it lacks beside these, and what cannot be made from the other stores either: too few whole shards are left. Tried
    /// again when a store more is there.
    pub unrepairable: NumberRanges,
    /// How often it could not be filled, one time after the other, for the reason in `error`. The writer goes on trying.
    pub fills_failed: u32,
    /// Bytes of memory that are kept because it has not answered yet.
    pub unanswered_bytes: u64,
}

/// Whether a store takes part in writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// It does.
    Active,
    /// It failed and is asked again from time to time.
    Away,
    /// It came back empty and is being filled; it counts for nothing until then.
    Filling,
}

impl LaneState {
    /// For logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            LaneState::Active => "active",
            LaneState::Away => "away",
            LaneState::Filling => "filling",
        }
    }
}

/// A log's writer at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// This opening.
    pub epoch: Epoch,
    /// Highest committed aggregation.
    pub committed: AggregationNumber,
    /// Aggregations on their way to the stores.
    pub in_flight: usize,
    /// Blocks that wait to be flushed.
    pub waiting_blocks: usize,
    /// The stores, in order.
    pub stores: Vec<StoreStatus>,
    /// So many more stores, whichever, may be lost for good right now with everything acknowledged still readable: a lower bound,
    /// from what the writer knows that the stores hold.
    pub losses_survived: usize,
    /// The same once every store holds everything: m.
    pub losses_survived_when_complete: usize,
    /// Committed aggregations that are not known to be on all n stores.
    pub behind: u64,
}

impl LogStatus {
    /// Whether every store takes part and holds everything that is committed.
    pub fn is_complete(&self) -> bool {
        self.behind == 0 && self.stores.iter().all(|store| store.state == LaneState::Active)
    }
}

/// How many stores more may be lost, given what each store lacks of which something is known. Of every number, those that hold
/// it less k; the least of all numbers counts.
pub(crate) fn losses_survived(data: usize, lacking: &[NumberRanges]) -> usize {
    // Sweep over the ends of all ranges: cheap, however long the history is.
    let mut changes: Vec<(u64, i64)> = Vec::new();
    for range in lacking.iter().flat_map(NumberRanges::iter) {
        changes.push((range.start().0, 1));
        changes.push((range.end().0.saturating_add(1), -1));
    }
    changes.sort_unstable();
    let (mut without, mut most) = (0i64, 0i64);
    for (_, change) in changes {
        without += change;
        most = most.max(without);
    }
    lacking.len().saturating_sub(usize::try_from(most).unwrap_or(0)).saturating_sub(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn losses_survived_is_what_counting_every_number_again_says(
            data in 1usize..4,
            lacking in prop::collection::vec(prop::collection::btree_set(1u64..12, 0..8), 0..6)
        ) {
            let holders = |number: u64| lacking.iter().filter(|lacks| !lacks.contains(&number)).count();
            let expected = (1..12).map(|number| holders(number).saturating_sub(data)).min().unwrap();
            let ranges: Vec<NumberRanges> = lacking
                .iter()
                .map(|lacks| lacks.iter().map(|number| AggregationNumber(*number)).collect())
                .collect();
            prop_assert_eq!(losses_survived(data, &ranges), expected);
        }
    }
}
