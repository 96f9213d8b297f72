//! Why a slave cannot simply be gone on with.

use tlog_proto::{AggregationId, AggregationNumber, Sequence};
use tlog_store::slave::SlavePoint;

/// Why the blocks of a slave are not known to be those of its disk at any moment, or how to go on from there is not known.
///
/// Nothing is applied then, so that nothing gets worse. `tlog slave resync` fills the slave anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NeedsResync {
    /// Somebody filled it and did not say with what.
    #[error("it has {blocks} blocks and no position: nobody knows of which moment they are")]
    BlocksWithoutPosition {
        /// How many blocks.
        blocks: u64,
    },
    /// What it has is of an existing server's syncer.
    #[error(
        "all it has for a position is sequence {sequence}, as servers of 1.1.0-alpha write it, and {why}"
    )]
    LegacyPosition {
        /// That sequence.
        sequence: Sequence,
        /// Why it is not enough.
        why: LegacyFault,
    },
    /// The metadata store has forgotten the record.
    #[error(
        "metadata store {address} has lost its record: data stores belong to a fill that it does not know. That a disk has switched to the \
         slave would be forgotten with it"
    )]
    MetadataLost {
        /// The store.
        address: String,
    },
    /// A data store has forgotten everything, or has blocks that are not of this fill.
    #[error(
        "data store {address} does not belong to it any more: it was wiped, replaced, or filled by somebody else"
    )]
    StoreReplaced {
        /// The store.
        address: String,
    },
    /// A data store has forgotten its newest writes.
    #[error(
        "data store {address} has lost writes: the log must be applied to it up to {} and is up to {}",
        shown(should),
        shown(has)
    )]
    StoreLostWrites {
        /// The store.
        address: String,
        /// How far the log is applied to it.
        has: SlavePoint,
        /// How far it must be.
        should: SlavePoint,
    },
    /// There are more or fewer blocks than the log has left there.
    #[error(
        "data store {address} has {has} blocks where the log left {should}: somebody else writes to it, or its server evicts what it is to keep"
    )]
    BlocksChanged {
        /// The store.
        address: String,
        /// Blocks that it has.
        has: u64,
        /// Blocks that it should have.
        should: u64,
    },
    /// The data stores are named in another order, or there are more or fewer: blocks are not where they are looked for.
    #[error(
        "data store {address} was store {was_index} of {was_stores} when it was filled, and is {index} of {stores} now"
    )]
    OtherShape {
        /// The store.
        address: String,
        /// Its place then, from 0.
        was_index: u32,
        /// How many data stores there were.
        was_stores: u32,
        /// Its place now.
        index: u32,
        /// How many there are.
        stores: u32,
    },
    /// It was somebody's primary, and who started it again did not vouch that nothing was written to it.
    #[error("it was stopped and started again, and may have been written to meanwhile")]
    WasStopped,
    /// The log is not the one that was applied.
    #[error(
        "it follows another log: aggregation {aggregation} has id {found} in this one, and {expected} was applied"
    )]
    OtherLog {
        /// Which aggregation; 0: what comes before the first.
        aggregation: AggregationNumber,
        /// The id that was applied.
        expected: AggregationId,
        /// The id that the log has.
        found: AggregationId,
    },
    /// The log ends before what was applied.
    #[error(
        "it has aggregation {applied}, and the log ends at {last}: the log was deleted and begun anew, or its stores were set back"
    )]
    SlaveAhead {
        /// What was applied.
        applied: AggregationNumber,
        /// Where the log ends.
        last: AggregationNumber,
    },
    /// History that is still to be applied was removed.
    #[error(
        "aggregation {next} would have to be read, and the log begins at {first}: what is before was removed"
    )]
    Pruned {
        /// Where reading would begin.
        next: AggregationNumber,
        /// Lowest number that is kept.
        first: AggregationNumber,
    },
    /// What comes next in the log is in format 1, which cannot be applied write by write.
    #[error(
        "history of the disk that it does not hold is in format 1, which cannot be applied write by write"
    )]
    Format1,
    /// It was restored to a moment within history of format 1.
    #[error("it was restored to a moment within history of format 1, from which nothing leads on")]
    Format1Moment,
}

/// Why a position of an existing server's syncer is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LegacyFault {
    /// No write of the log has that sequence.
    #[error("no write of the log has it")]
    Unknown,
    /// Several have.
    #[error("several writes of the log have it")]
    Ambiguous,
    /// It lies within history of format 1, which cannot be applied write by write.
    #[error("it is not the last one of the history of format 1")]
    WithinFormat1,
    /// History was removed, which may have had it too.
    #[error("the beginning of the log was removed, which may have had it too")]
    Pruned,
    /// The stores are not what such a syncer leaves.
    #[error("data stores say that something else was applied to them")]
    Contradicted,
}

fn shown(point: &SlavePoint) -> String {
    format!("block {} of aggregation {}", point.blocks, point.aggregation)
}

impl NeedsResync {
    /// What a person does about it, as the end of a sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            NeedsResync::MetadataLost { .. } | NeedsResync::BlocksWithoutPosition { .. } => {
                "look whether a disk has switched to it; if none has: tlog slave resync --nobody-uses-it"
            }
            NeedsResync::OtherLog { .. }
            | NeedsResync::SlaveAhead { .. }
            | NeedsResync::LegacyPosition { why: LegacyFault::Unknown, .. } => {
                "look which of the two is the disk; if the log is, tlog slave resync --discard loses what only the slave holds"
            }
            NeedsResync::Pruned { .. } => "tlog slave resync --accept-pruned-base",
            _ => "tlog slave resync",
        }
    }

    /// A short name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            NeedsResync::BlocksWithoutPosition { .. } => "blocks_without_position",
            NeedsResync::LegacyPosition { .. } => "legacy_position",
            NeedsResync::MetadataLost { .. } => "metadata_lost",
            NeedsResync::StoreReplaced { .. } => "store_replaced",
            NeedsResync::StoreLostWrites { .. } => "store_lost_writes",
            NeedsResync::BlocksChanged { .. } => "blocks_changed",
            NeedsResync::OtherShape { .. } => "other_shape",
            NeedsResync::WasStopped => "was_stopped",
            NeedsResync::OtherLog { .. } => "other_log",
            NeedsResync::SlaveAhead { .. } => "slave_ahead",
            NeedsResync::Pruned { .. } => "pruned",
            NeedsResync::Format1 => "format1",
            NeedsResync::Format1Moment => "format1_moment",
        }
    }
}
