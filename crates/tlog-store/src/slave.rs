//! The port of a slave: the block storage that a disk can switch to when its own is lost.
//!
//! A slave cluster is one or more *data stores*, and a *metadata store* (which may be the first of them). Block i of a vdisk is on
//! data store `i mod (number of data stores)`, as it was written; a deleted block is not there. This layout is that of existing
//! servers, which read it when they switch. Beside it each store keeps a few facts, so that nobody goes on from blocks that are
//! not what they should be:
//!
//! ```text
//! data store       SlavePart     which fill it belongs to, its place in the cluster, and how far the log was applied to it
//! metadata store   SlaveRecord   whether a syncer may write, how far the log was applied to all, and to each
//! both             Epoch         the highest that was promised: whoever has a lower one changes nothing any more
//! ```
//!
//! `docs/slave-sync.md` has the rules that a syncer builds on this.

mod memory;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{
    AggregationId, AggregationNumber, BlockIndex, Epoch, LogPosition, Sequence, Timestamp, VdiskId,
};

pub use self::memory::{MemorySlave, SlaveGate};
use crate::StoreError;

/// Most changes in one [`SlaveStore::apply`].
pub const MOST_CHANGES: usize = 1024;

/// One store of a slave cluster: a data store, the metadata store, or both.
///
/// Every operation is atomic. One that fails with [`StoreErrorKind::Unavailable`](crate::StoreErrorKind::Unavailable) may have happened
/// all the same. An operation with an epoch is refused as *fenced* if the store has promised a higher one, and answers
/// [`SlaveOutcome::Changed`] if it knows a lower one or none: then it has lost what it was told.
#[async_trait]
pub trait SlaveStore: fmt::Debug + Send + Sync + 'static {
    /// What a person calls this store. Never has a secret in it.
    fn address(&self) -> Arc<str>;

    /// What a data store has.
    async fn part(&self, vdisk: &VdiskId) -> Result<PartState, StoreError>;

    /// Promises an epoch on a data store. Refused as fenced unless it is higher than the store's.
    async fn raise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError>;

    /// Says what a data store belongs to. Its blocks stay, and are counted.
    async fn begin(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        part: &SlavePart,
    ) -> Result<SlaveOutcome, StoreError>;

    /// Removes all blocks from a data store, and what it belongs to.
    async fn clear(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<SlaveOutcome, StoreError>;

    /// Makes changes to blocks of a data store, all or none, and says how far the log is applied to it with them. Only if the store
    /// belongs to the fill, the log is applied to it as far as the step says, and there are as many blocks as there were after the last
    /// change; what comes late, or a second time, does nothing.
    /// No block twice, and at most [`MOST_CHANGES`].
    async fn apply(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreError>;

    /// What the metadata store has.
    async fn record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreError>;

    /// Promises an epoch on the metadata store. Refused as fenced unless it is higher than the store's, and, for one who comes
    /// back ([`Claim::Back`]), unless nobody else has been promised one since.
    async fn promise(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<(), StoreError>;

    /// Replaces the record on the metadata store. Where it has a fill, the sequence that existing servers read follows from its position.
    async fn keep(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreError>;
}

/// What became of an operation that needs the store to be as the caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum SlaveOutcome {
    /// It is done.
    Done,
    /// The store is not as the caller knows it: it was wiped, restarted from an older copy, or given to another fill. Nothing was
    /// written.
    Changed,
}

/// How one asks for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Whoever had the slave before is to stop.
    Over,
    /// The caller had it and lost touch; if another has taken it over since, the caller is to stop.
    Back,
}

/// How far a log is applied: up to and including one of its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlavePoint {
    /// The aggregation of that write. 0: before the first of format 2.
    pub aggregation: AggregationNumber,
    /// How many blocks of it. With number 0: how many of an aggregation of format 1 that was not applied as a whole; else 0.
    pub blocks: u32,
    /// Id of that aggregation, which stands for everything before it. With number 0: of what aggregation 1 follows.
    pub id: AggregationId,
}

impl SlavePoint {
    /// Before the first write of a log that begins in format 2.
    pub const START: SlavePoint =
        SlavePoint { aggregation: AggregationNumber(0), blocks: 0, id: AggregationId::BEFORE_FIRST };

    /// What tells which of two points of one log is the later one.
    pub fn place(&self) -> (AggregationNumber, u32) {
        (self.aggregation, self.blocks)
    }
}

/// `aggregation:blocks:id`, as it is stored.
impl fmt::Display for SlavePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.aggregation, self.blocks, self.id)
    }
}

/// A text that is no point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a point of a log is aggregation:blocks:id, such as 17:25: and 64 hexadecimal digits")]
pub struct NoSlavePoint;

impl FromStr for SlavePoint {
    type Err = NoSlavePoint;

    fn from_str(text: &str) -> Result<Self, NoSlavePoint> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(NoSlavePoint);
        let aggregation = next()?.parse().map(AggregationNumber).map_err(|_| NoSlavePoint)?;
        let blocks = next()?.parse().map_err(|_| NoSlavePoint)?;
        let mut id = AggregationId([0; 32]);
        hex::decode_to_slice(next()?, &mut id.0).map_err(|_| NoSlavePoint)?;
        if parts.next().is_some() { Err(NoSlavePoint) } else { Ok(Self { aggregation, blocks, id }) }
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Another one than all there are.
            pub fn random() -> Result<Self, tlog_ambient::RandomError> {
                let mut bytes = [0; 16];
                tlog_ambient::fill_random(&mut bytes).map(|()| Self(bytes))
            }

            /// From 32 hexadecimal digits.
            pub fn parse(text: &str) -> Option<Self> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_id! {
    /// One filling of a slave cluster from nothing. Stores of different fills do not belong together.
    FillId
}
random_id! {
    /// Who was promised an epoch: one syncer, or one command.
    SlaveOwner
}

/// What a data store belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlavePart {
    /// Which fill.
    pub fill: FillId,
    /// Which data store of the cluster, from 0.
    pub index: u32,
    /// How many data stores the cluster has.
    pub stores: u32,
    /// The last write of the log that was applied to this store, or where the fill began. None while a restore fills it.
    pub applied: Option<SlavePoint>,
}

/// What a data store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartState {
    /// Highest epoch promised.
    pub epoch: Epoch,
    /// What it belongs to; none where no fill has begun, or it was forgotten.
    pub part: Option<SlavePart>,
    /// Blocks that are there.
    pub blocks: u64,
    /// Blocks that were there after the last change by way of this port; where there are others now, somebody else has changed
    /// them, or the server has evicted them.
    pub counted: u64,
}

/// One block, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChange {
    /// Which block of the vdisk.
    pub index: BlockIndex,
    /// Its content; none: it is to have none.
    pub data: Option<Bytes>,
}

/// What an apply takes a data store from, and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlaveStep {
    /// Which fill the store must belong to.
    pub fill: FillId,
    /// How far the log must be applied to it.
    pub from: Option<SlavePoint>,
    /// How far it is then.
    pub to: Option<SlavePoint>,
}

/// How far a log is applied to all data stores of a slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlavePosition {
    /// Up to here.
    pub point: SlavePoint,
    /// The write there; none before the first.
    pub last: Option<LastWrite>,
}

/// A write, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrite {
    /// Its generation and sequence.
    pub position: LogPosition,
    /// When, as the client's clock had it.
    pub timestamp: Timestamp,
}

/// What the metadata store keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlaveRecord {
    /// Whether a syncer may write.
    pub mark: SlaveMark,
    /// Which fill the data stores must belong to; none where none has begun.
    pub fill: Option<FillId>,
    /// How far the log is applied, at least. None where no fill is complete.
    pub position: Option<SlavePosition>,
    /// Of each data store, the last write applied to it at or before the position.
    pub applied: Vec<SlavePoint>,
}

/// Whether a syncer may write to a slave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SlaveMark {
    /// It may.
    #[default]
    Running,
    /// It may not: the slave is somebody's primary.
    Stopped,
    /// It may not: a restore fills the slave, or was interrupted while it did.
    Restoring(Restoring),
}

/// How far a restore into a slave is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restoring {
    /// The moment that is restored.
    pub target: SlavePosition,
    /// Everything is written from the sources up to this one, in their order: format and number.
    pub done: Option<(u8, AggregationNumber)>,
    /// Aggregations that have blocks which are needed, and those of them that are done.
    pub aggregations: (u64, u64),
    /// Blocks that the disk has.
    pub blocks: u64,
}

/// What the metadata store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordState {
    /// Highest epoch promised.
    pub epoch: Epoch,
    /// Who was promised it.
    pub owner: Option<SlaveOwner>,
    /// The record; that of a store which knows nothing has no fill.
    pub record: SlaveRecord,
    /// The sequence that existing servers write and read.
    pub legacy_sequence: Option<Sequence>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_as_it_is_written_and_nothing_else_is_one() {
        let point =
            SlavePoint { aggregation: AggregationNumber(17), blocks: 25, id: AggregationId([0xab; 32]) };
        for point in [point, SlavePoint::START] {
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        let id = "0".repeat(64);
        for bad in
            ["", "1", "1:2", "1:2:00", &format!("-1:2:{id}"), &format!("1:2:{id}:"), &format!("1:x:{id}")]
        {
            assert_eq!(bad.parse::<SlavePoint>(), Err(NoSlavePoint), "{bad:?}");
        }
    }
}
