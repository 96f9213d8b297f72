//! What the server needs of storage, in its own words. Whoever runs a server supplies it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tlog_proto::{
    Block, BlockHash, BlockIndex, Generation, LogPosition, Operation, Sequence, SessionId, Timestamp, VdiskId,
};
use tokio::sync::watch;

/// Opens the logs of vdisks.
#[async_trait]
pub trait LogStorage: Send + Sync + 'static {
    /// Opens a vdisk's log for writing. A writer that has it open elsewhere, in this process or another one, is fenced at
    /// its next write. The server opens a vdisk once and closes it before it opens it again.
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError>;
}

/// A vdisk's log, open for writing.
#[async_trait]
pub trait VdiskLog: Send + Sync + 'static {
    /// Where the log ended when it was opened; all of that is durable.
    fn end(&self) -> LogEnd;

    /// Whether generations are stored. A log that does not is in generation 1 whenever it is opened, whatever was begun before.
    fn keeps_generations(&self) -> bool {
        true
    }

    /// Takes the next blocks of the log, at least one. Positions rise: within a generation the sequences follow each other without gaps,
    /// a new generation starts at any sequence. Waits while too many bytes are not durable yet, and then makes them durable
    /// without waiting for a full aggregation: nothing else will. Never called while an earlier call has not answered; the
    /// server drops the future only when it gives the log up.
    async fn append(&self, blocks: Vec<OrderedBlock>) -> Result<(), Closed>;

    /// Makes everything appended so far durable soon, without waiting for a full aggregation. Does not wait. May be called
    /// while an append waits for room; then it is about what was appended before that one. Calling it with nothing to
    /// flush costs nothing.
    fn flush(&self);

    /// What is durable, as it grows, and whether the log has closed. The position never steps back. A log that was opened
    /// with something in it begins with its end. The sender lives as long as the log.
    fn durability(&self) -> watch::Receiver<Durability>;

    /// What the log durably holds at a position of its newest generation; none where it holds nothing there. Reads storage.
    ///
    /// Asked only for clients without a session number that come back lower than the log's end, one position at a
    /// time and rising: keeping the aggregation that was read last makes it cheap. The server may drop the future.
    async fn find(&self, position: LogPosition) -> Result<Option<BlockDigest>, Closed>;

    /// Asks whether this is still the newest writer of the log, and fails where it is known not to be. Asked before a client
    /// that comes is told where the log ends: a writer that was idle while another server had the log does not know of it. False
    /// where it cannot be told. The server may drop the future.
    async fn confirm(&self) -> Result<bool, Closed>;

    /// Flushes what was appended, waits until it is durable or that has failed, and closes the log. Calling it again, or on a
    /// log that has closed by itself, answers at once. Answers whether everything appended is durable.
    async fn close(&self) -> Result<(), Closed>;
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The newest generation; 0 in an empty log, in which the first one to be written is 1.
    pub generation: Generation,
    /// The first sequence of that generation. Meaningless in an empty log.
    pub first: Sequence,
    /// The last sequence of that generation; none in an empty log.
    pub last: Option<Sequence>,
    /// Who wrote the last block.
    pub session: SessionId,
}

/// A block and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedBlock {
    /// Which generation its sequence belongs to.
    pub generation: Generation,
    /// The client instance that sent it.
    pub session: SessionId,
    /// The block.
    pub block: Block,
}

impl OrderedBlock {
    /// Its place.
    pub fn position(&self) -> LogPosition {
        LogPosition { generation: self.generation, sequence: self.block.sequence }
    }
}

/// What tells two blocks apart that came under the same sequence.
///
/// Of the hash only the first 16 bytes, which is what a log keeps at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDigest {
    /// Which block of the vdisk.
    pub index: BlockIndex,
    /// Set or delete.
    pub operation: Operation,
    /// The client's time.
    pub timestamp: Timestamp,
    /// Bytes of data.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

impl From<&Block> for BlockDigest {
    fn from(block: &Block) -> Self {
        let BlockHash(hash) = block.hash;
        let mut hash_prefix = [0; 16];
        for (to, from) in hash_prefix.iter_mut().zip(hash) {
            *to = from;
        }
        Self {
            index: block.index,
            operation: block.operation,
            timestamp: block.timestamp,
            length: u32::try_from(block.data.len()).unwrap_or(u32::MAX),
            hash_prefix,
        }
    }
}

/// How far a log is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Everything up to and including this is durable. None while nothing is.
    pub durable: Option<LogPosition>,
    /// Set once, when the log closes: nothing becomes durable any more.
    pub closed: Option<CloseReason>,
}

/// Why a log closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// [`VdiskLog::close`] was called and everything is durable.
    Requested,
    /// A newer writer has taken the log over.
    Fenced,
    /// What was appended could not be made durable. The text is for a person.
    Failed(String),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Requested => f.write_str("it was closed"),
            CloseReason::Fenced => f.write_str("a newer writer has taken it over"),
            CloseReason::Failed(why) => write!(f, "a flush failed: {why}"),
        }
    }
}

/// The log is closed; nothing can be appended to it any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log is closed: {0}")]
pub struct Closed(pub CloseReason);

/// Why a vdisk's log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server is not to serve this vdisk; the client gets `InvalidVdiskId`.
    #[error("vdisk {0} is not known here")]
    UnknownVdisk(VdiskId),
    /// The log cannot be opened; the client gets `InternalServerError`.
    #[error("the log cannot be opened: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What follows a vdisk's log and keeps another storage cluster up to date.
#[async_trait]
pub trait SlaveSync: Send + Sync + 'static {
    /// Answers once the slave holds everything up to `position` (none: the log is empty), then stops the syncer of that
    /// vdisk: its slave is now somebody's primary. The server drops the future when the client that asked is gone; the
    /// syncer then goes on. Asked again after it stopped, it answers at once: synced, if the slave held that when it
    /// stopped; else an error, since it never will.
    async fn wait_and_stop(
        &self,
        vdisk: &VdiskId,
        position: Option<LogPosition>,
    ) -> Result<SlaveSyncOutcome, SlaveSyncError>;
}

/// How a wait for the slave ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlaveSyncOutcome {
    /// The slave holds everything; its syncer has stopped.
    Synced,
    /// The vdisk has no slave.
    NoSlave,
}

/// The slave could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[error("the slave could not be brought up to date: {0}")]
pub struct SlaveSyncError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
