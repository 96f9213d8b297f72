//! The handle of an open log.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tlog_codec::{BlockEntry, Opener, Record, Sealer, VdiskKeys};
use tlog_proto::{
    AggregationNumber, Block, Epoch, Generation, LogPosition, Sequence, SessionId, Timestamp, VdiskId,
};
use tlog_quorum::StoreSet;
use tlog_store::{LogState, ShardStore};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::extra::{Extra, ExtraContent, ExtraError, StoredAggregation};
use crate::format1::{ChainTail, foundation};
use crate::lookup::{Lookup, LookupError, first_of_generation};
use crate::metric;
use crate::open_error::OpenError;
use crate::pruning::{PruneError, Pruned};
use crate::recovery::{Opening, Recovered, recover};
use crate::scrub::{ScrubError, ScrubProgress, ScrubReport, scrub};
use crate::settings::LogSettings;
use crate::status::LogStatus;
use crate::writer::Writer;

/// Bytes that a block takes beside its data while it is not durable: for bounding memory.
const BLOCK_OVERHEAD: usize = 256;

/// Bytes that a block is counted with.
pub(crate) fn cost(block: &Block) -> usize {
    block.size().saturating_add(BLOCK_OVERHEAD)
}

/// How often an opening that takes long shows how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A block and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionedBlock {
    /// Which generation its sequence belongs to.
    pub generation: Generation,
    /// The client instance that sent it.
    pub session: SessionId,
    /// The block.
    pub block: Block,
}

/// Where a log ended when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The newest generation; 0 in an empty log.
    pub generation: Generation,
    /// First sequence of that generation.
    pub first: Sequence,
    /// Last sequence of it; none in an empty log.
    pub last: Option<Sequence>,
    /// Who wrote the last block.
    pub session: SessionId,
}

/// How far a log is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Everything up to and including this is durable. None while nothing is.
    pub durable: Option<LogPosition>,
    /// Set once, when the log closes.
    pub closed: Option<CloseReason>,
}

/// Why a log closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// [`Log::close`] was called and everything appended is durable.
    Requested,
    /// A newer opening has taken the log over.
    Fenced,
    /// Something appended could not be made durable; or the log was dropped without being closed.
    Failed(String),
}

impl CloseReason {
    /// For metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            CloseReason::Requested => "requested",
            CloseReason::Fenced => "fenced",
            CloseReason::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Requested => f.write_str("it was closed"),
            CloseReason::Fenced => f.write_str("a newer writer has taken it over"),
            CloseReason::Failed(why) => write!(f, "{why}"),
        }
    }
}

/// Nothing can be appended any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log is closed: {0}")]
pub struct AppendError(pub CloseReason);

pub(crate) enum Command {
    /// Blocks that follow each other, and the room that they take together.
    Append(Vec<PositionedBlock>, OwnedSemaphorePermit),
    Extra(Extra),
    Prune(AggregationNumber, oneshot::Sender<Result<Pruned, PruneError>>),
    Flush,
    Close,
    Status(oneshot::Sender<LogStatus>),
}

/// A vdisk's log, open for writing. Dropping it stops the writer without flushing; [`Log::close`] flushes.
#[derive(Debug)]
pub struct Log {
    set: StoreSet,
    opener: Opener,
    settings: LogSettings,
    epoch: Epoch,
    end: LogEnd,
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    durability: watch::Receiver<Durability>,
    lookup: Mutex<Lookup>,
    /// What was before aggregation 1, where the log was empty when it was opened.
    before: ChainTail,
}

impl Log {
    /// Opens the log for writing: fences older writers, recovers the end, and waits until all of it is durable. What the
    /// log then holds stays for ever; what an older writer had in flight and is not adopted never comes back.
    ///
    /// Where the log is new and the stores have history of format 1, it goes on from there: `keys` must have the keys of format
    /// 1, and [`Log::end`] is the end of that history, in generation 1.
    pub async fn open(set: StoreSet, keys: VdiskKeys, settings: LogSettings) -> Result<Self, OpenError> {
        Self::open_as(set, keys, settings, Opening::Usual, |_| {}).await
    }

    /// Opens a log of which more stores were lost for good than [`Log::open`] can go on without, by the operator's word: every
    /// place must answer, those of the lost stores with an empty one, which is filled. Answers when so many stores are filled that
    /// the log is as safe as any other; until then nothing is written, and `progress` is shown from time to time. Given up in the
    /// middle, it can be made again. Where enough stores are left, the same as [`Log::open`].
    ///
    /// Refused where what is left does not tell what was acknowledged ([`ReplaceError`](crate::ReplaceError),
    /// [`OpenError::DataLost`], [`OpenError::UncertainEnd`]): whether the operator is wrong or the loss too large, nothing
    /// acknowledged is ever given up here. A lost store that comes back later is none of the log's any more.
    pub async fn open_replacing(
        set: StoreSet,
        keys: VdiskKeys,
        settings: LogSettings,
        progress: impl FnMut(&LogStatus),
    ) -> Result<Self, OpenError> {
        Self::open_as(set, keys, settings, Opening::Replacing, progress).await
    }

    async fn open_as(
        set: StoreSet,
        keys: VdiskKeys,
        settings: LogSettings,
        opening: Opening,
        mut progress: impl FnMut(&LogStatus),
    ) -> Result<Self, OpenError> {
        settings.check()?;
        let began = Instant::now();
        let mut foundation = foundation(&set, keys.format1()).await?;
        let recovered = recover(&set, opening, &mut foundation).await?;
        if let Some(last) = recovered.last.as_ref().filter(|last| !keys.has(last.key_id)) {
            return Err(OpenError::ForeignKey { vdisk: set.vdisk().clone(), id: last.key_id });
        }
        let set = recovered.set.clone();
        let (before, end) = match recovered.last {
            Some(_) => (ChainTail::empty(), log_end(&set, &recovered).await?),
            None => {
                let before = foundation.into_tail();
                let end = before.end();
                (before, end)
            }
        };
        let (epoch, adopted) = (recovered.start.epoch, recovered.adopted.len() as u64);
        let last_number = recovered.start.number.0 - 1;
        let (commands, queue) = mpsc::channel(1024);
        let durable = end.last.map(|sequence| LogPosition { generation: end.generation, sequence });
        let (tell, mut durability) = watch::channel(Durability { durable: None, closed: None });
        let sealer = Sealer::new(keys.clone(), set.quorums().redundancy());
        let vdisk = set.vdisk().clone();
        let (ready, mut told) = oneshot::channel();
        let writer = Writer::new(set.clone(), sealer, settings.clone(), recovered, durable, tell, ready);
        let mut task = AbortOnDrop(Some(tokio::spawn(writer.run(queue))));

        // Nothing is served before what was adopted is durable again, and enough stores take part.
        let ready = loop {
            match tokio::time::timeout(PROGRESS_EVERY, &mut told).await {
                Ok(answer) => break answer.is_ok(),
                Err(_) => {
                    let (answer, status) = oneshot::channel();
                    if commands.send(Command::Status(answer)).await.is_ok()
                        && let Ok(status) = status.await
                    {
                        progress(&status);
                    }
                }
            }
        };
        if !ready {
            let closed = durability.wait_for(|state| state.closed.is_some()).await;
            let why = closed.ok().and_then(|state| state.closed.clone());
            return Err(OpenError::NotRewritten {
                vdisk,
                needed: set.quorums().write(),
                why: why.unwrap_or_else(|| CloseReason::Failed("the writer stopped".to_owned())).to_string(),
            });
        }
        task.0 = None;
        metric::opened(&vdisk, adopted, began.elapsed());
        tracing::info!(%vdisk, %epoch, aggregations = last_number, adopted, "log opened");
        Ok(Self {
            opener: Opener::new(keys),
            epoch,
            end,
            commands,
            room: Arc::new(Semaphore::new(settings.max_unflushed_bytes)),
            durability,
            lookup: Mutex::default(),
            before,
            set,
            settings,
        })
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        self.set.vdisk()
    }

    /// The epoch of this opening. A store that has seen a higher one has been opened by somebody else since.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where the log ended when it was opened.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// Takes the next block. Waits while more than the set number of bytes is not durable, and flushes these then. Blocks must come in the log's
    /// order: rising sequences without gaps within a generation.
    pub async fn append(&self, block: PositionedBlock) -> Result<(), AppendError> {
        self.append_all(vec![block]).await
    }

    /// Takes the next blocks, as if each were appended after the other; costs less. Dropped in the middle, the first of them may have been taken.
    pub async fn append_all(&self, blocks: Vec<PositionedBlock>) -> Result<(), AppendError> {
        let bytes = blocks.iter().fold(0_usize, |bytes, block| bytes.saturating_add(cost(&block.block)));
        if let Some(permit) = self.room_now(bytes) {
            return self.send(Command::Append(blocks, permit)).await;
        }
        for block in blocks {
            let permit = self.room_for(cost(&block.block)).await?;
            self.send(Command::Append(vec![block], permit)).await?;
        }
        Ok(())
    }

    async fn send(&self, command: Command) -> Result<(), AppendError> {
        self.commands.send(command).await.map_err(|_| self.closed())
    }

    /// Stores a part of an image of the log at an earlier moment, whose time is `about`; its blocks rise in their indexes. Answers when
    /// it is committed.
    pub async fn append_checkpoint(
        &self,
        blocks: Vec<Block>,
        about: Timestamp,
    ) -> Result<StoredAggregation, ExtraError> {
        let bytes = blocks.iter().map(cost).sum();
        self.append_extra(ExtraContent::Checkpoint { blocks, about }, bytes).await
    }

    /// Stores something that is to be known about the log. Answers when it is committed.
    pub async fn append_record(&self, record: Record) -> Result<StoredAggregation, ExtraError> {
        self.append_extra(ExtraContent::Record(Box::new(record)), BLOCK_OVERHEAD).await
    }

    async fn append_extra(
        &self,
        content: ExtraContent,
        bytes: usize,
    ) -> Result<StoredAggregation, ExtraError> {
        let permit = self.room_for(bytes).await?;
        let (told, stored) = oneshot::channel();
        let command = Command::Extra(Extra { content, permit, told });
        self.commands.send(command).await.map_err(|_| self.closed())?;
        stored.await.unwrap_or_else(|_| Err(self.closed().into()))
    }

    /// Removes all history below `first` from the stores: at once from those that answer, from the others when they are back.
    /// Answers when those that answer have done it. What is below cannot be read any more: whoever calls this has made sure that nobody
    /// needs it. The last committed aggregation always stays.
    ///
    /// A writer that another one has taken the log from removes nothing, as far as that one had begun before this call.
    pub async fn prune(&self, first: AggregationNumber) -> Result<Pruned, PruneError> {
        if !self.confirm().await? {
            return Err(PruneError::NotConfirmed);
        }
        let (told, pruned) = oneshot::channel();
        self.commands.send(Command::Prune(first, told)).await.map_err(|_| self.closed())?;
        pruned.await.unwrap_or_else(|_| Err(self.closed().into()))
    }

    /// None where it is not free.
    fn room_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()
    }

    async fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, AppendError> {
        // What is larger than all the room takes all of it.
        let bytes = bytes.min(self.settings.max_unflushed_bytes);
        match self.room_now(bytes) {
            Some(permit) => Ok(permit),
            None => self.wait_for_room(u32::try_from(bytes).unwrap_or(u32::MAX)).await,
        }
    }

    /// What is held back for a full aggregation may be what the room is needed for: it is flushed first.
    async fn wait_for_room(&self, cost: u32) -> Result<OwnedSemaphorePermit, AppendError> {
        self.flush().await?;
        let mut closed = self.durability.clone();
        tokio::select! {
            biased;
            _ = closed.wait_for(|state| state.closed.is_some()) => Err(self.closed()),
            permit = Arc::clone(&self.room).acquire_many_owned(cost) => permit.map_err(|_| self.closed()),
        }
    }

    /// Makes everything appended so far durable without waiting for full aggregations. Answers once that is under way, not
    /// when it is done; see [`Log::durability`].
    pub async fn flush(&self) -> Result<(), AppendError> {
        self.commands.send(Command::Flush).await.map_err(|_| self.closed())
    }

    /// What is durable, as it grows, and whether the log has closed. The position never steps back.
    pub fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.clone()
    }

    /// What the log durably holds at a position.
    pub async fn find(&self, position: LogPosition) -> Result<Option<BlockEntry>, LookupError> {
        let last = self.status().await.ok_or(LookupError::Closed)?.committed;
        if let Some(entry) = self.before.find(position) {
            return Ok(Some(entry));
        }
        self.lookup.lock().await.find(&self.set, &self.opener, last, position).await
    }

    /// Asks the stores whether a newer writer has begun to take the log over; then nothing more can be appended here. Waits for so
    /// many answers that every opening that was over before has one of its stores among them. False where these many do not come.
    /// Changes nothing: the next append finds out in any case.
    pub async fn confirm(&self) -> Result<bool, AppendError> {
        if self.durability.borrow().closed.is_some() {
            return Err(self.closed());
        }
        let status = |store: &Arc<dyn ShardStore>| {
            let (set, store) = (self.set.clone(), Arc::clone(store));
            async move { set.within_limit(&store, store.status(set.vdisk())).await }
        };
        let mut answers: FuturesUnordered<_> = self.set.stores().iter().map(status).collect();
        let quorums = self.set.quorums();
        let mut missing = quorums.total() + 1 - quorums.opening();
        while let Some(answer) = answers.next().await {
            // What does not answer, or is another store than it was, tells nothing.
            let Ok(LogState { identity: Some(_), epoch, .. }) = answer else { continue };
            if epoch > self.epoch {
                return Err(AppendError(CloseReason::Fenced));
            }
            missing -= 1;
            if missing == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Flushes, waits until everything is durable or that has failed, tells the stores what is committed, and closes. Again,
    /// or on a log that has closed by itself: answers at once.
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
    pub async fn status(&self) -> Option<LogStatus> {
        let (answer, status) = oneshot::channel();
        self.commands.send(Command::Status(answer)).await.ok()?;
        status.await.ok()
    }

    /// Reads every shard of everything committed and puts back what is missing or damaged, reading at most `rate` bytes per
    /// second. Writing goes on meanwhile.
    pub async fn scrub(
        &self,
        rate: u64,
        progress: impl FnMut(ScrubProgress),
    ) -> Result<ScrubReport, ScrubError> {
        scrub(&self.set, rate, progress).await
    }

    /// Waits until no store lacks anything that could be filled in: every store is active and misses nothing. Answers false
    /// when that is not so after `limit`, or the log closes.
    pub async fn wait_until_complete(&self, limit: Duration) -> bool {
        let complete = async {
            loop {
                let Some(status) = self.status().await else {
                    return false;
                };
                let whole = |store: &crate::StoreStatus| {
                    store.state == crate::LaneState::Active && store.missing == 0
                };
                if status.stores.iter().all(whole) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, complete).await.unwrap_or(false)
    }

    fn closed(&self) -> AppendError {
        let reason = self.durability.borrow().closed.clone();
        AppendError(reason.unwrap_or_else(|| CloseReason::Failed("the writer stopped".to_owned())))
    }
}

async fn log_end(set: &StoreSet, recovered: &Recovered) -> Result<LogEnd, OpenError> {
    let Some(last) = &recovered.last else {
        return Ok(LogEnd::default());
    };
    // The newest generation began before the committed end, or among what was adopted after it.
    let first = match &recovered.committed_last {
        Some(header) if header.generation == last.generation => {
            first_of_generation(set, &recovered.survey, header).await?
        }
        _ => {
            let mut adopted = recovered.adopted.iter().map(|aggregation| &aggregation.header);
            let first = adopted.find(|header| header.generation == last.generation);
            first.unwrap_or(last).first_sequence
        }
    };
    Ok(LogEnd { generation: last.generation, first, last: Some(last.last_sequence), session: last.session })
}

/// Stops the writer's task where an opening fails or is given up in the middle.
struct AbortOnDrop(Option<tokio::task::JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
