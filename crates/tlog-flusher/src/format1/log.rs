//! The handle of an open log of format 1.

use std::sync::Arc;

use tlog_codec::BlockEntry;
use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, LogPosition, VdiskId};
use tlog_quorum::StoreSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::opening::{OpenError, settled_end};
use super::tail::Recent;
use super::writer::Writer;
use crate::log::{AppendError, CloseReason, Durability, LogEnd, PositionedBlock, cost};
use crate::lookup::LookupError;
use crate::metric;
use crate::settings::LogSettings;

pub(super) enum Command {
    Append(PositionedBlock, OwnedSemaphorePermit),
    Flush,
    Close,
    Status(oneshot::Sender<Format1Status>),
}

/// A vdisk's log of format 1, open for writing. Dropping it stops the writer without flushing; [`Format1Log::close`] flushes.
///
/// **Nothing fences another writer.** Make sure that there is none.
#[derive(Debug)]
pub struct Format1Log {
    set: StoreSet,
    settings: LogSettings,
    end: LogEnd,
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    durability: watch::Receiver<Durability>,
    recent: Arc<Recent>,
}

/// A writer of format 1 at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format1Status {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// The newest aggregation that is durable; none in an empty log.
    pub newest: Option<AggregationId>,
    /// Aggregations that this writer has stored.
    pub stored: u64,
    /// Whether one is on its way to the stores.
    pub in_flight: bool,
    /// Blocks that wait to be flushed.
    pub waiting_blocks: usize,
    /// The stores, in order.
    pub stores: Vec<Format1StoreStatus>,
    /// More stores that may be lost for good without losing what this writer has stored: always m.
    pub losses_survived: usize,
}

/// One store, as a writer of format 1 sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format1StoreStatus {
    /// What a person calls it.
    pub address: String,
    /// What it said when it did not take what is being stored; it is tried again. Until it does nothing is acknowledged.
    pub error: Option<String>,
}

impl Format1Log {
    /// Opens the log for writing: finds where it ends and makes that the same on all stores. All n must answer, and none may
    /// know a log of format 2. Of the policy in `settings` the number in flight does not count: it is one.
    pub async fn open(set: StoreSet, keys: Keys, settings: LogSettings) -> Result<Self, OpenError> {
        settings.check()?;
        let began = Instant::now();
        let tail = settled_end(&set, &keys, settings.retry_after).await?;
        let end = tail.end();
        let recent = Arc::new(Recent::new(&tail));
        let durable = end.last.map(|sequence| LogPosition { generation: end.generation, sequence });
        let (tell, durability) = watch::channel(Durability { durable, closed: None });
        let (commands, queue) = mpsc::channel(1024);
        let writer =
            Writer::new(set.clone(), keys, settings.clone(), tail.newest(), Arc::clone(&recent), tell);
        tokio::spawn(writer.run(queue));
        let vdisk = set.vdisk();
        metric::opened(vdisk, 0, began.elapsed());
        tracing::warn!(%vdisk, last = ?end.last, newest = %tail.newest(),
            "log opened in format 1: no other server may write this vdisk, nothing would stop it; and what it seals can be \
             forged and compared without a key (one nonce for everything)");
        let room = Arc::new(Semaphore::new(settings.max_unflushed_bytes));
        Ok(Self { set, settings, end, commands, room, durability, recent })
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        self.set.vdisk()
    }

    /// Where the log ended when it was opened. Its generation is 1 and its session unknown; `first` is the first sequence of the
    /// last run without gaps, as far back as was looked (about 1024 blocks).
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// Takes the next block. Waits while more than the set number of bytes is not durable, and flushes these then. Blocks must
    /// come in the log's order: rising sequences without gaps within a generation.
    pub async fn append(&self, block: PositionedBlock) -> Result<(), AppendError> {
        let cost = cost(&block.block).min(self.settings.max_unflushed_bytes);
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let permit = match Arc::clone(&self.room).try_acquire_many_owned(cost) {
            Ok(permit) => permit,
            Err(_) => self.wait_for_room(cost).await?,
        };
        self.commands.send(Command::Append(block, permit)).await.map_err(|_| self.closed())
    }

    /// What is held back for a full aggregation may be what the room is needed for: it is flushed first.
    async fn wait_for_room(&self, cost: u32) -> Result<OwnedSemaphorePermit, AppendError> {
        self.flush().await?;
        let mut closed = self.durability.clone();
        tokio::select! {
            permit = Arc::clone(&self.room).acquire_many_owned(cost) => permit.map_err(|_| self.closed()),
            _ = closed.wait_for(|state| state.closed.is_some()) => Err(self.closed()),
        }
    }

    /// Makes everything appended so far durable without waiting for full aggregations. Answers once that is under way, not
    /// when it is done; see [`Format1Log::durability`].
    pub async fn flush(&self) -> Result<(), AppendError> {
        self.commands.send(Command::Flush).await.map_err(|_| self.closed())
    }

    /// What is durable, as it grows, and whether the log has closed. The position never steps back. Durable is what all n stores
    /// hold.
    pub fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.clone()
    }

    /// What the log durably holds at a position; none where that is not remembered: beyond about 1024 blocks before the
    /// opening, and 4096 in all. A client that comes back from further behind is taken for one that starts over, which stores
    /// again what was stored, and loses nothing.
    pub async fn find(&self, position: LogPosition) -> Result<Option<BlockEntry>, LookupError> {
        Ok(self.recent.find(position))
    }

    /// Flushes, waits until everything is durable or that has failed, and closes. Again, or on a log that has closed by itself:
    /// answers at once.
    pub async fn close(&self) -> Result<(), AppendError> {
        // Where the writer is gone already, its last word is in the watch.
        let _ = self.commands.send(Command::Close).await;
        let mut durability = self.durability.clone();
        let reason = match durability.wait_for(|state| state.closed.is_some()).await {
            Ok(state) => state.closed.clone(),
            Err(_) => None,
        };
        match reason {
            Some(CloseReason::Requested) => Ok(()),
            Some(reason) => Err(AppendError(reason)),
            None => Err(self.closed()),
        }
    }

    /// What the writer shows of itself; none where it has closed.
    pub async fn status(&self) -> Option<Format1Status> {
        let (answer, status) = oneshot::channel();
        self.commands.send(Command::Status(answer)).await.ok()?;
        status.await.ok()
    }

    fn closed(&self) -> AppendError {
        let reason = self.durability.borrow().closed.clone();
        AppendError(reason.unwrap_or_else(|| CloseReason::Failed("the writer stopped".to_owned())))
    }
}
