//! The port: what a store can do, and what it answers.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};

use crate::{ChainStore, NumberRanges};

/// One of the k + m stores of a vdisk's log.
///
/// Every operation is atomic and, once it has answered, as durable as the store can make it. An operation that fails
/// with [`StoreErrorKind::Unavailable`] may have happened all the same (its answer was lost). Where a log is not known
/// to the store - because it never was, or because the store was wiped - `status` and `promise` say so
/// ([`LogState::identity`] is none, or new), and every other operation is refused with [`StoreErrorKind::NoLog`].
#[async_trait]
pub trait ShardStore: fmt::Debug + Send + Sync + 'static {
    /// What a person calls this store, such as `file:/srv/tlog/store-0`. Never has a secret in it.
    fn address(&self) -> Arc<str>;

    /// Refused as fenced unless `epoch` is higher than the store's; else stores it, so that no writer of a lower epoch
    /// can write here any more, and answers what the store has. Makes the log (and its identity) where there is none.
    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError>;

    /// Refused as fenced if the store's epoch is higher than the record's. Else drops the shards at and above the record's
    /// number that an older epoch wrote, records it in `starts` (forgetting entries with the same or a higher number),
    /// raises the store's epoch to it, and keeps `members` unless what it has is newer.
    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError>;

    /// Refused as fenced if the store's epoch is higher than the shard's, or if a newer epoch's shard is under the number
    /// already (a fill can have brought it where no promise was heard). Else stores the shard under its number,
    /// replacing what an older (or the same) epoch wrote there, and raises epoch, head and committed. Below `first`
    /// nothing is stored: that history was pruned.
    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError>;

    /// Refused as fenced if the store's epoch is higher; else raises epoch and committed. Sent by a writer that has been
    /// idle for a moment.
    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError>;

    /// For a number at or below the store's `committed` only, else [`StoreErrorKind::NotCommitted`]. Stores the shard where
    /// the slot is empty, damaged, or holds another id; leaves alone what is whole. Needs no epoch: what a committed
    /// number holds never changes. The caller vouches that the shard is that of the committed aggregation.
    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError>;

    /// Removes history below `first`, which becomes the lowest number kept; its space comes back. Never lowers `first`.
    /// Refused as fenced if the store's epoch is higher, and as not committed where `first` is above `committed` + 1. Does
    /// not raise the epoch.
    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError>;

    /// Removes the log and everything in it. Refused as fenced if the store's epoch is higher than `epoch`: whoever deletes a log
    /// has it promised first, so that no writer is left. A store that does not know the log has nothing to do.
    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError>;

    /// Head parts of the aggregations in `range` that the store holds, lowest first. Stops early once `max_bytes` of head
    /// parts are collected: the entry that reaches it is the last, so there is at least one where the store holds one.
    /// Ask again from the last number + 1.
    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError>;

    /// The whole shard under a number.
    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError>;

    /// Bytes of the payload under a number, as they are: nothing is checked. For who can tell by other means whether they are right, and
    /// does not want all of it. None where the store has nothing whole there, or less than was asked for.
    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        let ShardSlot::Held(shard) = self.shard(vdisk, number).await? else { return Ok(None) };
        let part = |part: &Range<u32>| {
            let range = part.start as usize..part.end as usize;
            shard.payload.get(range.clone()).map(|_| shard.payload.slice(range))
        };
        Ok(parts.iter().map(part).collect())
    }

    /// What the store has, without changing anything. Everything it answers is durable on the store by then.
    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError>;

    /// The vdisks that the store knows a log of, in order of name.
    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError>;

    /// Whether what this store answers as done is still there after it was restarted, as far as it can be found out by asking.
    async fn durability(&self) -> Result<StoreDurability, StoreError>;

    /// The logs of stored format 1 that are on the same store; none where this kind of store cannot have any.
    fn chains(&self) -> Option<Arc<dyn ChainStore>> {
        None
    }
}

/// What a store says of its own durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreDurability {
    /// What it has answered survives its restart.
    Durable,
    /// It may not. Why, and what to change, for a person.
    Volatile(String),
    /// It does not tell. Why.
    Unknown(String),
}

impl StoreDurability {
    /// For logs, metrics and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Volatile(_) => "volatile",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Why it is not known to be durable; none where it is.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Durable => None,
            Self::Volatile(why) | Self::Unknown(why) => Some(why),
        }
    }
}

/// What is stored under one number on one store.
///
/// The store keeps `epoch` and `id` beside the bytes and uses them for its decisions; `head` and `payload` mean nothing to
/// it. `head` is what a reader of head parts gets: everything of the stored shard but the payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Shard {
    /// Which opening of the log wrote it.
    pub epoch: Epoch,
    /// Id of the aggregation that it is a shard of.
    pub id: AggregationId,
    /// The self-describing part.
    pub head: Bytes,
    /// The shard's share of the body.
    pub payload: Bytes,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Shard(epoch {}, id {}, {} + {} bytes)",
            self.epoch,
            self.id,
            self.head.len(),
            self.payload.len()
        )
    }
}

/// The answer to reading one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardSlot {
    /// Nothing is stored under the number.
    Empty,
    /// Something is, but the store itself can tell that it is not what was written.
    Damaged,
    /// This.
    Held(Shard),
}

/// The head part of what is stored under a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which opening of the log wrote it.
    pub epoch: Epoch,
    /// Id of the aggregation, as the store keeps it beside the bytes.
    pub id: AggregationId,
    /// The self-describing part of the shard.
    pub head: Bytes,
}

/// One entry of the answer to [`ShardStore::heads`]. Numbers that are empty have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadSlot {
    /// Something is there, but the store itself can tell that it is not what was written.
    Damaged,
    /// This.
    Held(Head),
}

/// What a fill did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillOutcome {
    /// The shard is stored now.
    Stored,
    /// It was there already, whole; or its number is below `first`, where nothing is kept any more.
    AlreadyHeld,
}

/// "The writer of this epoch began at this number": whatever an older epoch wrote at or above it was ruled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StartRecord {
    /// Epoch of the opening.
    pub epoch: Epoch,
    /// The first number that it writes.
    pub number: AggregationNumber,
}

/// Random number that a store gives a log when it first hears of it. A wiped or replaced store has another one, or none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreIdentity(pub [u8; 16]);

impl fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreIdentity({self})")
    }
}

/// The identities of a log's stores, kept on all of them. Of two lists the one with the higher (epoch, change) counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Epoch of the writer that made the list.
    pub epoch: Epoch,
    /// Counts the lists of one writer.
    pub change: u64,
    /// Identity of store i; none where that store has not been seen yet.
    pub identities: Vec<Option<StoreIdentity>>,
    /// k of the log; 0 where the list does not tell.
    pub data_shards: u8,
    /// The fewest stores that held what was acknowledged and is not known as committed yet; 0 where the list does not tell. An
    /// opening or reader with another write quorum in its settings must still count on this one.
    pub write_quorum: u8,
}

impl Members {
    /// What decides which of two lists counts.
    pub fn version(&self) -> (Epoch, u64) {
        (self.epoch, self.change)
    }
}

/// Everything a store knows of a log, but the shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Who the store is for this log; none where it does not know the log.
    pub identity: Option<StoreIdentity>,
    /// Highest epoch promised.
    pub epoch: Epoch,
    /// Who began where, by rising number.
    pub starts: Vec<StartRecord>,
    /// The newest list of members that it was given.
    pub members: Members,
    /// Highest number known as committed.
    pub committed: AggregationNumber,
    /// Lowest number kept; 1 until history is pruned.
    pub first: AggregationNumber,
    /// Numbers under which something is stored. The highest one is the store's head.
    pub held: NumberRanges,
}

impl LogState {
    /// Highest number held, 0 where there is none.
    pub fn head(&self) -> AggregationNumber {
        self.held.last().unwrap_or_default()
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("store {address}: {kind}")]
pub struct StoreError {
    /// [`ShardStore::address`] of the store.
    pub address: String,
    /// What happened.
    #[source]
    pub kind: StoreErrorKind,
}

/// What happened on a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreErrorKind {
    /// A newer opening of the log holds a promise: this writer must stop.
    #[error("fenced: epoch {promised} is promised to a newer writer")]
    Fenced {
        /// The store's epoch, or that of the newer shard in the way.
        promised: Epoch,
    },
    /// The store knows no log of this vdisk: it was wiped or replaced, or the log was never opened.
    #[error("knows no log of this vdisk")]
    NoLog,
    /// A fill or prune of a number that the store does not know as committed.
    #[error("number {number} is above {committed}, the highest that the store knows as committed")]
    NotCommitted {
        /// The number asked for.
        number: AggregationNumber,
        /// The store's `committed`.
        committed: AggregationNumber,
    },
    /// Another process writes here.
    #[error("in use by another process ({holder}); stop it, or use another directory")]
    Locked {
        /// Who: process id and what it said of itself.
        holder: String,
    },
    /// The store takes no writes.
    #[error("takes no writes (opened for reading, or on a read-only medium)")]
    ReadOnly,
    /// No room is left.
    #[error("is full: {source}")]
    Full {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What the store keeps of the log contradicts itself, in a way that it cannot mend.
    #[error("its records of this log are damaged: {what}")]
    Damaged {
        /// Which record, where.
        what: String,
    },
    /// It cannot be reached, does not answer in time, or an operation failed. Whether it happened is not known.
    #[error("is not available: {source}")]
    Unavailable {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl StoreErrorKind {
    /// A short name for counters.
    pub fn name(&self) -> &'static str {
        match self {
            StoreErrorKind::Fenced { .. } => "fenced",
            StoreErrorKind::NoLog => "no_log",
            StoreErrorKind::NotCommitted { .. } => "not_committed",
            StoreErrorKind::Locked { .. } => "locked",
            StoreErrorKind::ReadOnly => "read_only",
            StoreErrorKind::Full { .. } => "full",
            StoreErrorKind::Damaged { .. } => "damaged",
            StoreErrorKind::Unavailable { .. } => "unavailable",
        }
    }
}

impl StoreError {
    /// Puts the two together.
    pub fn new(address: impl Into<String>, kind: StoreErrorKind) -> Self {
        Self { address: address.into(), kind }
    }

    /// Whether the same call may work later without anybody doing anything to the log.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable { .. } | StoreErrorKind::Full { .. })
    }

    /// Whether a newer writer has taken the log over.
    pub fn is_fenced(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Fenced { .. })
    }
}
