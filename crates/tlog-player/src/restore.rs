//! The data of a disk at a moment, each block once, from as few aggregations as have it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, Block, BlockIndex, Operation, Timestamp, VdiskId};
use tlog_quorum::ReadError;

use crate::disk_state::{DiskState, Source};
use crate::format1::{Format1Error, StoredFormat};
use crate::in_flight::run_bounded;
use crate::metric;
use crate::reader::{LogReader, Unreadable};

/// What a disk is restored into. It begins as all zeros, and no byte is written twice. Calls may block: they are made on
/// threads for that, several at once.
pub trait RestoreTarget: Send + Sync + 'static {
    /// Makes it so many bytes long; the first call.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Writes the data of a block at its byte offset. May leave out zeros.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes what was written durable, where the target can; the last call.
    fn sync(&self) -> io::Result<()>;
}

/// A disk in memory.
#[derive(Debug, Default)]
pub struct MemoryTarget {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryTarget {
    /// What was restored so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RestoreTarget for MemoryTarget {
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let more = len.saturating_sub(bytes.len());
        bytes.try_reserve_exact(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let end = usize::try_from(offset).ok().and_then(|at| Some((at, at.checked_add(data.len())?)));
        let place = end.and_then(|(at, end)| bytes.get_mut(at..end)).ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// How to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The target is at least so long: the disk's real length, where that is known. The log knows only where content ends.
    pub min_len: u64,
    /// Bytes of memory for what is being read, about. One aggregation is read even if it takes more.
    pub memory: u64,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { min_len: 0, memory: 128 << 20 }
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Aggregations that were read.
    pub aggregations: u64,
    /// Aggregations that have something that is needed.
    pub aggregations_total: u64,
    /// Blocks that were written.
    pub blocks: u64,
    /// Blocks that the disk has.
    pub blocks_total: u64,
    /// Bytes that were written, zeros included.
    pub bytes: u64,
    /// Bytes of content that the disk has.
    pub bytes_total: u64,
    /// Position in history: highest timestamp of the aggregations that were read.
    pub position: Timestamp,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Aggregations that were read.
    pub aggregations: u64,
    /// Blocks that were written.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Bytes of the target.
    pub len: u64,
}

/// A disk cannot be restored. The target then has some blocks and not others.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Too few shards of an aggregation are whole and in reach.
    #[error("{source}; bring back stores")]
    DataLost {
        /// Which aggregation, and what each store has.
        #[source]
        source: ReadError,
    },
    /// It was removed while it was being read.
    #[error(
        "vdisk {vdisk}: history below aggregation {first} was removed while it was being read; begin again"
    )]
    Pruned {
        /// The vdisk.
        vdisk: VdiskId,
        /// Lowest number that is kept now.
        first: AggregationNumber,
    },
    /// An aggregation of format 1 cannot be read.
    #[error(transparent)]
    Format1(#[from] Format1Error),
    /// An aggregation does not open: the key is not there, or is not the right one.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Open {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
    /// An aggregation does not have the block that its manifest has: the state is that of another log.
    #[error("vdisk {vdisk}, aggregation {number}: it does not have block {index} where the disk state says")]
    OtherState {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// Which block.
        index: BlockIndex,
    },
    /// The disk would be longer than 2^64 bytes.
    #[error(
        "vdisk {vdisk}: with blocks of {block_size} bytes, the disk would be longer than 2^64 bytes; say the right block size"
    )]
    TooLong {
        /// The vdisk.
        vdisk: VdiskId,
        /// Bytes of a block.
        block_size: u32,
    },
    /// The target failed.
    #[error("vdisk {vdisk}: what it is restored to cannot be written: {source}")]
    Target {
        /// The vdisk.
        vdisk: VdiskId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An aggregation of which blocks are needed.
pub(crate) struct Job {
    pub(crate) format: StoredFormat,
    pub(crate) number: AggregationNumber,
    pub(crate) source: Source,
    /// Position in the aggregation, and which block it is.
    blocks: Vec<(u32, BlockIndex)>,
}

/// What became of it.
struct Written {
    blocks: u64,
    bytes: u64,
    newest_timestamp: Timestamp,
}

impl LogReader {
    /// Reads the data of a disk state and writes each block once. `state` must come from a reader of the same log. Every block
    /// is proven by its hash before it is written; a shard that is missing or damaged costs another read. `progress` is called
    /// after each aggregation.
    pub async fn restore<T: RestoreTarget>(
        &self,
        keys: &VdiskKeys,
        state: &DiskState,
        target: Arc<T>,
        options: &RestoreOptions,
        mut progress: impl FnMut(&RestoreProgress) + Send,
    ) -> Result<RestoreSummary, RestoreError> {
        let vdisk = self.vdisk();
        let too_long = || RestoreError::TooLong { vdisk: vdisk.clone(), block_size: state.block_size() };
        let len = state.disk_len().ok_or_else(too_long)?.max(options.min_len);
        let on_target = |act: fn(&T, u64) -> io::Result<()>, target: Arc<T>| async move {
            let result = blocking(move || act(&target, len)).await;
            result.map_err(|source| RestoreError::Target { vdisk: vdisk.clone(), source })
        };
        on_target(T::set_len, target.clone()).await?;

        let jobs = jobs(state);
        let mut so_far = RestoreProgress {
            aggregations_total: jobs.len() as u64,
            blocks_total: state.block_count() as u64,
            bytes_total: state.content_bytes(),
            ..RestoreProgress::default()
        };
        progress(&so_far);
        let opener = Opener::new(keys.clone());
        let run = |job| self.restore_one(job, opener.clone(), state.block_size(), target.clone());
        run_bounded(jobs, options.memory, run, |written: Written| {
            so_far.aggregations += 1;
            so_far.blocks += written.blocks;
            so_far.bytes += written.bytes;
            so_far.position = so_far.position.max(written.newest_timestamp);
            progress(&so_far);
        })
        .await?;
        on_target(|target, _| target.sync(), target).await?;
        let RestoreProgress { aggregations, blocks, bytes, .. } = so_far;
        Ok(RestoreSummary { aggregations, blocks, bytes, len })
    }

    async fn restore_one<T: RestoreTarget>(
        &self,
        job: Job,
        opener: Opener,
        block_size: u32,
        target: Arc<T>,
    ) -> Result<Written, RestoreError> {
        let vdisk = self.vdisk().clone();
        self.with_blocks(job, opener, move |job, blocks| {
            let blocks = job.needed(&vdisk, blocks)?;
            write_blocks(job, &blocks, &vdisk, block_size, &*target)
        })
        .await
    }

    /// Reads the blocks of an aggregation and hands them on, on a thread for what blocks or computes for long.
    pub(crate) async fn with_blocks<R: Send + 'static>(
        &self,
        job: Job,
        opener: Opener,
        work: impl FnOnce(&Job, &[Block]) -> Result<R, RestoreError> + Send + 'static,
    ) -> Result<R, RestoreError> {
        let vdisk = self.vdisk().clone();
        if job.format == StoredFormat::One {
            let blocks = self.fetch_link(job.source.id).await?.aggregation.blocks;
            return blocking(move || work(&job, &blocks)).await;
        }
        let candidate = self.fetch(job.number, job.source.id).await.map_err(|error| match error {
            Unreadable::Lost(source) => RestoreError::DataLost { source },
            Unreadable::Pruned { first } => RestoreError::Pruned { vdisk: vdisk.clone(), first },
        })?;
        blocking(move || {
            let opened = opener.blocks(&candidate.head, &candidate.payloads);
            let blocks = opened.map_err(|source| RestoreError::Open { vdisk, number: job.number, source })?;
            work(&job, &blocks)
        })
        .await
    }
}

impl Job {
    /// Of the aggregation's blocks those that are needed.
    pub(crate) fn needed<'a>(
        &self,
        vdisk: &VdiskId,
        blocks: &'a [Block],
    ) -> Result<Vec<&'a Block>, RestoreError> {
        let needed = self.blocks.iter().map(|&(position, index)| {
            let block = blocks.get(position as usize);
            let block = block.filter(|b| b.index == index && b.operation == Operation::Set);
            block.ok_or_else(|| RestoreError::OtherState { vdisk: vdisk.clone(), number: self.number, index })
        });
        needed.collect()
    }
}

fn write_blocks(
    job: &Job,
    blocks: &[&Block],
    vdisk: &VdiskId,
    block_size: u32,
    target: &impl RestoreTarget,
) -> Result<Written, RestoreError> {
    let mut bytes = 0;
    for block in blocks {
        let offset = block.offset(block_size);
        let offset = offset.ok_or_else(|| RestoreError::TooLong { vdisk: vdisk.clone(), block_size })?;
        let written = target.write_at(offset, &block.data);
        written.map_err(|source| RestoreError::Target { vdisk: vdisk.clone(), source })?;
        bytes += block.size() as u64;
    }
    let blocks = blocks.len() as u64;
    metric::restored(blocks, bytes);
    Ok(Written { blocks, bytes, newest_timestamp: job.source.newest_timestamp })
}

/// What is to be read, oldest first, each with what it costs.
pub(crate) fn jobs(state: &DiskState) -> Vec<(u64, Job)> {
    type Needed = std::collections::BTreeMap<(StoredFormat, AggregationNumber), Vec<(u32, BlockIndex)>>;
    let mut blocks = Needed::default();
    for (index, place) in state.blocks() {
        blocks.entry((place.format, place.aggregation)).or_default().push((place.position, index));
    }
    let job = |((format, number), blocks)| {
        let source = *state.sources().get(&(format, number))?;
        Some((source.cost, Job { format, number, source, blocks }))
    };
    blocks.into_iter().filter_map(job).collect()
}

/// Runs something that computes or blocks for long on a thread for that.
pub(crate) async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels it, and then nothing waits for the result.
            Err(_) => std::future::pending().await,
        },
    }
}
