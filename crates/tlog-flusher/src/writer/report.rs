//! What is told of an open log: how its stores are, and what they lack.

use tlog_proto::AggregationNumber;
use tlog_store::NumberRanges;
use tokio::time::Instant;

use super::Writer;
use crate::lane::{Lane, LaneStanding};
use crate::status::{LaneState, LogStatus, StoreStatus, losses_survived};

impl Writer {
    /// Committed numbers that a store is known to lack, and that can be filled in.
    pub(super) fn missing(&self, lane: &Lane) -> NumberRanges {
        let committed = self.tracker.committed();
        let mut missing = lane.missed.clone();
        if !lane.is_member() {
            missing.insert_range(self.first..=committed);
            if let Some(rest) = lane.refill.as_ref().and_then(|refill| refill.rest()) {
                missing.remove_range(self.first..=AggregationNumber(rest.start().0.saturating_sub(1)));
            }
        }
        missing.remove_range(committed.next()..=AggregationNumber(u64::MAX));
        missing
    }

    /// How many more stores may be lost, and how many aggregations are not on all stores.
    pub(super) fn spare(&self) -> (usize, u64) {
        let committed = self.tracker.committed();
        let lacking: Vec<NumberRanges> =
            self.lanes.iter().filter_map(|lane| lane.lacking(self.first, committed)).collect();
        let mut behind = NumberRanges::new();
        lacking.iter().flat_map(NumberRanges::iter).for_each(|range| behind.insert_range(range));
        if lacking.len() < self.lanes.len() {
            behind.insert_range(self.first..=committed);
        }
        (losses_survived(self.set.quorums().data(), &lacking), behind.count())
    }

    pub(super) fn status(&self) -> LogStatus {
        let now = Instant::now();
        let average = self.sent.1.checked_div(self.sent.0);
        let stores = self.lanes.iter().zip(self.set.stores()).map(|(lane, port)| {
            let missing = self.missing(lane);
            StoreStatus {
                address: port.address().to_string(),
                state: match lane.standing {
                    LaneStanding::Active => LaneState::Active,
                    LaneStanding::Away { .. } | LaneStanding::Probing => LaneState::Away,
                    _ => LaneState::Filling,
                },
                out_since: lane.out_since.map(|since| since.wall),
                out_for: lane.out_since.map(|since| now.saturating_duration_since(since.instant)),
                error: lane.error.clone(),
                missing: missing.count(),
                first_missing: missing.first(),
                missing_bytes: average.map(|average| average.saturating_mul(missing.count())),
                unrepairable: lane.unrepairable.clone(),
                fills_failed: lane.fills_failed,
                unanswered_bytes: lane.unanswered_bytes(),
            }
        });
        let stores: Vec<StoreStatus> = stores.collect();
        let (survived, behind) = self.spare();
        let quorums = self.set.quorums();
        LogStatus {
            vdisk: self.set.vdisk().clone(),
            epoch: self.start.epoch,
            committed: self.tracker.committed(),
            in_flight: self.in_flight.len(),
            waiting_blocks: self.aggregator.len(),
            losses_survived: survived,
            losses_survived_when_complete: quorums.total() - quorums.data(),
            behind,
            stores,
        }
    }
}
