//! The data of a disk at a moment, each block once, from as few aggregations as have it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use tlog_ambient::blocking;
use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, BlockIndex, Timestamp, VdiskId};
use tlog_quorum::ReadError;
use tokio::sync::mpsc;

use crate::disk_state::DiskState;
use crate::format1::{Format1Error, StoredFormat};
use crate::in_flight::run_bounded;
use crate::job::{DiskBlock, Job, JobKey, jobs};
use crate::metric;
use crate::reader::LogReader;

/// What a disk is restored into. No byte is written twice. Calls may block: they are made on threads for that, several at once.
pub trait RestoreTarget: Send + Sync + 'static {
    /// Makes it so many bytes long; the first call.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Whether everything in it is zero at first. If not, all of its bytes are written.
    fn begins_as_zeros(&self) -> bool {
        true
    }

    /// Makes a range zeros; of a target that does not begin as zeros, for what the disk has no content of.
    fn write_zeros_at(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Writes the data of a block at its byte offset. May leave out zeros, if it begins as zeros.
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

/// Takes a disk and forgets it: for measuring what reading it costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTarget;

impl RestoreTarget for NoTarget {
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&self, _: u64, data: &[u8]) -> io::Result<()> {
        std::hint::black_box(data);
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
    /// Position in history: the timestamp of the aggregation that was read last. A restore goes from the newest back, one into a
    /// slave from the oldest on.
    pub position: Timestamp,
    /// Bytes of shards that were read for it.
    pub read_bytes: u64,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Aggregations that were read; as often as that was, where one was read more than once.
    pub aggregations: u64,
    /// Aggregations that have something that is needed.
    pub aggregations_needed: u64,
    /// Aggregations of history up to the moment; none where that is not known, with a part in format 1 below one in format 2.
    pub aggregations_of_history: Option<u64>,
    /// Blocks that were written.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Bytes of shards that were read for it; heads, from which the disk state is, do not count.
    pub read_bytes: u64,
    /// Bytes of the target.
    pub len: u64,
    /// What an interrupted restore had done already; not in what is above.
    pub before: RestoredBefore,
}

/// What of a disk was there already when a restore went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoredBefore {
    /// Aggregations of which everything that is needed was there.
    pub aggregations: u64,
    /// Blocks of these.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
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

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) key: JobKey,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    read_bytes: u64,
    newest_timestamp: Timestamp,
}

impl LogReader {
    /// Reads the data of a disk state and writes each block once. `state` must come from a reader of the same log. Every block
    /// is proven by its hash before it is written; a shard that is missing or damaged costs another read. `progress` is called
    /// after each aggregation. The newest aggregation is read first.
    pub async fn restore<T: RestoreTarget>(
        &self,
        keys: &VdiskKeys,
        state: &DiskState,
        target: Arc<T>,
        options: &RestoreOptions,
        progress: impl FnMut(&RestoreProgress) + Send,
    ) -> Result<RestoreSummary, RestoreError> {
        let vdisk = self.vdisk();
        let len = restored_len(state, options)?;
        let on_target = |act: fn(&T, u64) -> io::Result<()>, target: Arc<T>| async move {
            let result = blocking(move || act(&target, len)).await;
            result.map_err(|source| RestoreError::Target { vdisk: vdisk.clone(), source })
        };
        on_target(T::set_len, target.clone()).await?;
        if !target.begins_as_zeros() {
            for (offset, len) in gaps(state, len) {
                let target = target.clone();
                let zeroed = blocking(move || target.write_zeros_at(offset, len)).await;
                zeroed.map_err(|source| RestoreError::Target { vdisk: vdisk.clone(), source })?;
            }
        }
        let jobs = jobs(state).into_iter().rev();
        let so_far = RestoreProgress::before(state);
        let done = self.run_jobs(keys, state, jobs, so_far, &target, options.memory, None, progress).await?;
        on_target(|target, _| target.sync(), target).await?;
        Ok(self.summary(state, &done, RestoredBefore::default(), len))
    }

    /// Runs jobs in their order; each is told to `finished` once it was written. Answers what is done then.
    #[allow(clippy::too_many_arguments)] // each is one of its own
    pub(crate) async fn run_jobs<T: RestoreTarget>(
        &self,
        keys: &VdiskKeys,
        state: &DiskState,
        jobs: impl IntoIterator<Item = (u64, Job)>,
        mut so_far: RestoreProgress,
        target: &Arc<T>,
        memory: u64,
        finished: Option<mpsc::Sender<Written>>,
        mut progress: impl FnMut(&RestoreProgress) + Send,
    ) -> Result<RestoreProgress, RestoreError> {
        progress(&so_far);
        let opener = Opener::new(keys.clone());
        let run = |job| {
            let written = self.restore_one(job, opener.clone(), state, target.clone());
            let finished = finished.clone();
            async move {
                let written = written.await?;
                if let Some(finished) = finished {
                    let told = finished.send(written).await;
                    // Who listens has failed, and says why.
                    let ended = |_| io::Error::other("what is done cannot be noted any more");
                    let vdisk = self.vdisk().clone();
                    told.map_err(ended).map_err(|source| RestoreError::Target { vdisk, source })?;
                }
                Ok::<_, RestoreError>(written)
            }
        };
        run_bounded(jobs, memory, run, |written: Written| {
            so_far.aggregations += 1;
            so_far.blocks += written.blocks;
            so_far.bytes += written.bytes;
            so_far.read_bytes += written.read_bytes;
            so_far.position = written.newest_timestamp;
            progress(&so_far);
        })
        .await?;
        Ok(so_far)
    }

    /// `done` includes what was done before.
    pub(crate) fn summary(
        &self,
        state: &DiskState,
        done: &RestoreProgress,
        before: RestoredBefore,
        len: u64,
    ) -> RestoreSummary {
        let of_history = state.reached().and_then(|reached| match reached.format {
            StoredFormat::One => Some(reached.aggregation.0),
            StoredFormat::Two if self.has_format1() => None,
            StoredFormat::Two => Some((reached.aggregation.0 + 1).saturating_sub(self.extent().first.0)),
        });
        RestoreSummary {
            aggregations: done.aggregations - before.aggregations,
            aggregations_needed: state.sources().len() as u64,
            aggregations_of_history: of_history,
            blocks: done.blocks - before.blocks,
            bytes: done.bytes - before.bytes,
            read_bytes: done.read_bytes,
            len,
            before,
        }
    }

    async fn restore_one<T: RestoreTarget>(
        &self,
        job: Job,
        opener: Opener,
        state: &DiskState,
        target: Arc<T>,
    ) -> Result<Written, RestoreError> {
        let (vdisk, block_size) = (self.vdisk().clone(), state.block_size());
        let written = self.with_data(job, state, opener, move |job, blocks| {
            write_blocks(job, blocks, &vdisk, block_size, &*target)
        });
        let (written, read_bytes) = written.await?;
        Ok(Written { read_bytes, ..written })
    }
}

impl RestoreProgress {
    /// Nothing is done yet.
    pub(crate) fn before(state: &DiskState) -> Self {
        Self {
            aggregations_total: state.sources().len() as u64,
            blocks_total: state.block_count() as u64,
            bytes_total: state.content_bytes(),
            ..Self::default()
        }
    }
}

fn write_blocks(
    job: &Job,
    blocks: &[DiskBlock],
    vdisk: &VdiskId,
    block_size: u32,
    target: &impl RestoreTarget,
) -> Result<Written, RestoreError> {
    let mut bytes = 0;
    for block in blocks {
        let offset = block.index.offset(block_size);
        let offset = offset.ok_or_else(|| RestoreError::TooLong { vdisk: vdisk.clone(), block_size })?;
        let written = target.write_at(offset, &block.data);
        written.map_err(|source| RestoreError::Target { vdisk: vdisk.clone(), source })?;
        bytes += block.data.len() as u64;
    }
    let blocks = blocks.len() as u64;
    metric::restored(blocks, bytes);
    let newest_timestamp = job.source.newest_timestamp;
    Ok(Written { key: job.key(), blocks, bytes, read_bytes: 0, newest_timestamp })
}

/// Bytes of what a disk is restored to.
pub(crate) fn restored_len(state: &DiskState, options: &RestoreOptions) -> Result<u64, RestoreError> {
    let (vdisk, block_size) = (state.vdisk(), state.block_size());
    let too_long = || RestoreError::TooLong { vdisk: vdisk.clone(), block_size };
    Ok(state.disk_len().ok_or_else(too_long)?.max(options.min_len))
}

/// What the disk has no content of, up to `len`: offsets and lengths.
fn gaps(state: &DiskState, len: u64) -> Vec<(u64, u64)> {
    let block_size = state.block_size();
    let offset = |index: BlockIndex| index.offset(block_size).unwrap_or(u64::MAX);
    let content = state.blocks().map(|(index, place)| (offset(index), u64::from(place.length)));
    let mut gaps = Vec::new();
    let mut at = 0;
    for (offset, length) in content.chain([(len, 0)]) {
        if offset > at {
            gaps.push((at, offset - at));
        }
        at = offset.saturating_add(length);
    }
    gaps
}
