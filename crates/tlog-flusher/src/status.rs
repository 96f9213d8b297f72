//! What a log's writer shows of itself.

use std::time::Duration;

use tlog_proto::{AggregationNumber, Epoch, VdiskId};

/// One store, as the writer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// What a person calls it.
    pub address: String,
    /// Whether it takes part.
    pub state: LaneState,
    /// For how long it has not.
    pub out_for: Option<Duration>,
    /// What it said last when it failed.
    pub error: Option<String>,
    /// Committed aggregations whose shard it lacks.
    pub missing: u64,
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
    /// More stores that may be lost for good right now without losing what is acknowledged.
    pub losses_survived: usize,
}
