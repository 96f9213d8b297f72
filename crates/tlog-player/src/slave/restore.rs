//! Putting a disk at a moment into a slave's cluster.
//!
//! ```text
//! the mark "restoring"  ->  every block removed  ->  each block once, all stores side by side  ->  counted
//!                                   ->  stores say what they belong to  ->  position, and the mark is gone
//! ```
//!
//! Until the last step nobody takes what is there for a disk. Which aggregations are done is noted on the way, in the order in which
//! they are read, which is the same for the same moment: whoever begins again for it goes on there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, Block, Epoch, Timestamp, VdiskId};
use tlog_store::slave::{
    BlockChange, Claim, FillId, LastWrite, Restoring, SlaveMark, SlavePoint, SlavePosition, SlaveRecord,
    SlaveStep,
};
use tokio::time::Instant;

use super::cluster::{COMMAND, SlaveCluster, SlaveError, SlaveState, new_fill};
use super::follow::FollowError;
use super::needs_resync::NeedsResync;
use super::standing::Standing;
use crate::disk_state::{DiskState, DiskStateError};
use crate::format1::StoredFormat;
use crate::in_flight::run_bounded;
use crate::job::{Job, jobs};
use crate::metric;
use crate::reader::LogReader;
use crate::restore::{RestoreError, RestoreProgress};

/// Blocks and bytes that one store is given at once; one block that is larger goes alone.
const MOST_CHANGES: usize = 256;
const MOST_BYTES: usize = 1 << 20;
/// How often what is done is noted.
const NOTE_EVERY: Duration = Duration::from_millis(500);

/// How to restore into a slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlaveRestoreOptions {
    /// Bytes of memory for what is being read, about. One aggregation is read even if it takes more.
    pub memory: u64,
    /// Replace what is there.
    pub overwrite: bool,
    /// Also where the slave is stopped, and with that somebody's primary.
    pub overwrite_stopped: bool,
    /// For a resync: also where it may have been forgotten that the slave was stopped. The caller vouches that no disk uses it.
    pub nobody_uses_it: bool,
    /// For a resync: also where the log lacks what the slave holds, which is lost then.
    pub discard: bool,
}

impl Default for SlaveRestoreOptions {
    fn default() -> Self {
        Self {
            memory: 128 << 20,
            overwrite: false,
            overwrite_stopped: false,
            nobody_uses_it: false,
            discard: false,
        }
    }
}

/// What a restore into a slave did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlaveRestoreSummary {
    /// The moment that was restored. A syncer goes on from there.
    pub position: SlavePosition,
    /// Whether it went on where another one had been interrupted.
    pub resumed: bool,
    /// Aggregations that were read, this time.
    pub aggregations: u64,
    /// Blocks that were written, this time.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Blocks that the disk has.
    pub blocks_total: u64,
}

/// A disk cannot be restored into a slave. Where writing has begun, the slave says that it holds half a disk; the same restore goes on
/// where this one ended.
#[derive(Debug, thiserror::Error)]
pub enum SlaveRestoreError {
    /// There is something, and it was not said that it may be replaced.
    #[error(
        "vdisk {vdisk}: the cluster holds {blocks} blocks of it{} already; choose another cluster, or say that they may be replaced",
        position.map(|point| format!(" (up to aggregation {})", point.aggregation)).unwrap_or_default()
    )]
    Occupied {
        /// The vdisk.
        vdisk: VdiskId,
        /// Blocks on all data stores.
        blocks: u64,
        /// How far a log is applied to it, if that is known.
        position: Option<SlavePoint>,
    },
    /// A restore of another moment was interrupted there, and it was not said that it may be replaced.
    #[error(
        "vdisk {vdisk}: the cluster holds half of another moment (up to aggregation {}); finish that restore, or say that it may be replaced",
        target.aggregation
    )]
    OtherRestore {
        /// The vdisk.
        vdisk: VdiskId,
        /// The moment of that one.
        target: SlavePoint,
    },
    /// The slave is somebody's primary, and it was not said that it may be replaced all the same.
    #[error(
        "vdisk {vdisk}: the slave is stopped, since a disk has switched to it: its blocks are the only ones that are up to date. Start it first if that is over"
    )]
    Stopped {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// That the slave was stopped may have been forgotten, and nobody vouched that no disk has switched to it.
    #[error(
        "vdisk {vdisk}: the slave holds {blocks} blocks, and {reason}; if a disk has switched to it they are the only ones that are up to \
         date. Look first, and say that nobody uses it"
    )]
    MayBeInUse {
        /// The vdisk.
        vdisk: VdiskId,
        /// Blocks on all data stores.
        blocks: u64,
        /// Why that is not known.
        reason: Box<NeedsResync>,
    },
    /// The log lacks what the slave holds, and it was not said that this may be lost.
    #[error(
        "vdisk {vdisk}: the log does not have what the slave holds: {reason}. The slave is up to {}, the log to {}; what only the slave \
         holds would be lost. Look first which of the two is the disk, and say that the slave may be discarded",
        slave.map_or_else(|| "nobody knows where".to_owned(), |last| last.position.to_string()),
        log.map_or_else(|| "nothing".to_owned(), |last| last.position.to_string())
    )]
    WouldDiscard {
        /// The vdisk.
        vdisk: VdiskId,
        /// What tells.
        reason: Box<NeedsResync>,
        /// The last write that the slave certainly holds, if it is known.
        slave: Option<LastWrite>,
        /// The last write of the log; none where it is empty.
        log: Option<LastWrite>,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] FollowError),
    /// At the end a store does not have what it was given.
    #[error(
        "vdisk {vdisk}: data store {address} has {has} blocks at the end of the restore, and should have {should}: it has lost some, or somebody else writes to it. Begin again"
    )]
    Incomplete {
        /// The vdisk.
        vdisk: VdiskId,
        /// The store.
        address: String,
        /// Blocks that it has.
        has: u64,
        /// Blocks that it should have.
        should: u64,
    },
    /// A store of the slave failed, or another has taken the slave over.
    #[error(transparent)]
    Slave(#[from] SlaveError),
    /// The disk at the moment cannot be told.
    #[error(transparent)]
    DiskState(#[from] DiskStateError),
    /// Its data cannot be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Puts a disk state into a cluster, each block once, and says where in the log that is, so that a syncer can go on. `state` must come
/// from a reader of the same log. Refuses a cluster that has blocks of the vdisk, unless the options say otherwise; the same moment
/// that was interrupted is gone on with.
pub async fn restore_to_slave(
    reader: &LogReader,
    keys: &VdiskKeys,
    state: &DiskState,
    slave: &SlaveCluster,
    options: &SlaveRestoreOptions,
    mut progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<SlaveRestoreSummary, SlaveRestoreError> {
    let target = target_of(state);
    let found = slave.state().await?;
    if let Plan::IsThere = plan(slave, &found, &target, options)? {
        return Ok(SlaveRestoreSummary {
            position: target,
            resumed: true,
            aggregations: 0,
            blocks: 0,
            bytes: 0,
            blocks_total: state.block_count() as u64,
        });
    }
    let epoch = slave.promise(&found, COMMAND, Claim::Over).await?;
    slave.raise(epoch).await?;
    // From here on nobody else changes it; before, somebody may have.
    let plan = plan(slave, &slave.state().await?, &target, options)?;
    let (fill, done, resumed) = match plan {
        Plan::GoOn { fill, done } => (fill, done, true),
        Plan::Anew | Plan::IsThere => (new_fill()?, None, false),
    };
    let mut jobs = jobs(state);
    jobs.sort_by_key(|(_, job)| key(job));
    let total = jobs.len() as u64;
    let left: Vec<(u64, Job)> = jobs.into_iter().filter(|(_, job)| Some(key(job)) > done).collect();
    let notes = Notes {
        slave: slave.clone(),
        epoch,
        fill,
        restoring: Restoring {
            target,
            done,
            aggregations: (total, total - left.len() as u64),
            blocks: state.block_count() as u64,
        },
        order: left.iter().map(|(_, job)| key(job)).collect(),
        finished: Mutex::default(),
        noting: tokio::sync::Mutex::new(Noted { count: 0, at: Instant::now() }),
    };
    notes.note(0).await?;
    if !resumed {
        slave.clear(epoch).await?;
    }
    slave.begin(epoch, fill, None).await?;
    tracing::info!(vdisk = %slave.vdisk(), aggregations = left.len(), of = total, "restoring into {slave}");

    let mut so_far = RestoreProgress {
        aggregations: total - left.len() as u64,
        aggregations_total: total,
        blocks_total: state.block_count() as u64,
        bytes_total: state.content_bytes(),
        ..RestoreProgress::default()
    };
    let before = so_far.aggregations;
    progress(&so_far);
    let notes = Arc::new(notes);
    let opener = Opener::new(keys.clone());
    let run = |(at, job): (usize, Job)| write_one(reader.clone(), opener.clone(), notes.clone(), at, job);
    let numbered = left.into_iter().enumerate().map(|(at, (cost, job))| (cost, (at, job)));
    run_bounded(numbered, options.memory, run, |written: Written| {
        so_far.aggregations += 1;
        so_far.blocks += written.blocks;
        so_far.bytes += written.bytes;
        so_far.position = so_far.position.max(written.newest_timestamp);
        progress(&so_far);
    })
    .await?;
    notes.note(notes.order.len()).await?;
    complete(slave, epoch, fill, state, target).await?;
    Ok(SlaveRestoreSummary {
        position: target,
        resumed,
        aggregations: so_far.aggregations - before,
        blocks: so_far.blocks,
        bytes: so_far.bytes,
        blocks_total: so_far.blocks_total,
    })
}

/// Where in the log a disk state is.
pub(super) fn target_of(state: &DiskState) -> SlavePosition {
    let Some(reached) = state.reached() else {
        return SlavePosition { point: SlavePoint::START, last: None };
    };
    let (id, blocks) = (reached.id, reached.blocks);
    let point = match reached.format {
        StoredFormat::Two => SlavePoint { aggregation: reached.aggregation, blocks, id },
        // Aggregation 1 of format 2 follows that one, if it is the newest.
        StoredFormat::One if blocks == reached.of => SlavePoint { id, ..SlavePoint::START },
        StoredFormat::One => SlavePoint { id, blocks, ..SlavePoint::START },
    };
    SlavePosition {
        point,
        last: Some(LastWrite { position: reached.position, timestamp: reached.timestamp }),
    }
}

/// What a source is called in the notes.
///
/// Parts of a checkpoint come last, whatever their numbers: where a restore that was interrupted finds a newer checkpoint, its
/// parts are not taken for what was done.
fn key(job: &Job) -> (u8, AggregationNumber) {
    let what = if job.source.is_checkpoint { 3 } else { job.format.number() };
    (what, job.number)
}

enum Plan {
    /// The same restore was interrupted.
    GoOn { fill: FillId, done: Option<(u8, AggregationNumber)> },
    /// Everything that is there goes first.
    Anew,
    /// It is complete: only the answer was lost.
    IsThere,
}

fn plan(
    slave: &SlaveCluster,
    state: &SlaveState,
    target: &SlavePosition,
    options: &SlaveRestoreOptions,
) -> Result<Plan, SlaveRestoreError> {
    let vdisk = slave.vdisk().clone();
    match (state.standing(), state.record.record.fill) {
        (Standing::Blank, _) => Ok(Plan::Anew),
        (Standing::Stopped, _) if options.overwrite_stopped => Ok(Plan::Anew),
        (Standing::Stopped, _) => Err(SlaveRestoreError::Stopped { vdisk }),
        (Standing::Restoring(restoring), Some(fill)) if restoring.target == *target => {
            let stores = state.parts.len() as u32;
            let is_whole = (0..).zip(&state.parts).all(|(at, (_, state))| {
                let part = state.part.as_ref();
                part.is_some_and(|part| (part.fill, part.index, part.stores) == (fill, at, stores))
            });
            Ok(if is_whole { Plan::GoOn { fill, done: restoring.done } } else { Plan::Anew })
        }
        (Standing::Filled { position, applied, .. }, _)
            if !options.overwrite
                && position == *target
                && applied.iter().all(|applied| *applied == target.point) =>
        {
            Ok(Plan::IsThere)
        }
        _ if options.overwrite => Ok(Plan::Anew),
        (Standing::Restoring(restoring), _) => {
            Err(SlaveRestoreError::OtherRestore { vdisk, target: restoring.target.point })
        }
        _ => {
            let position = state.position().map(|position| position.point);
            Err(SlaveRestoreError::Occupied { vdisk, blocks: state.blocks(), position })
        }
    }
}

/// What became of one aggregation.
struct Written {
    blocks: u64,
    bytes: u64,
    newest_timestamp: Timestamp,
}

async fn write_one(
    reader: LogReader,
    opener: Opener,
    notes: Arc<Notes>,
    at: usize,
    job: Job,
) -> Result<Written, SlaveRestoreError> {
    let newest_timestamp = job.source.newest_timestamp;
    let blocks = reader.with_blocks(job, opener, |_, blocks| Ok(blocks.to_vec())).await?;
    let bytes = blocks.iter().map(|block| block.size() as u64).sum();
    let written = Written { blocks: blocks.len() as u64, bytes, newest_timestamp };
    notes.write(blocks).await?;
    metric::restored(written.blocks, written.bytes);
    notes.finished(at).await?;
    Ok(written)
}

/// Where blocks go, and how much is done, on the metadata store.
struct Notes {
    slave: SlaveCluster,
    epoch: Epoch,
    fill: FillId,
    /// As it was at the beginning.
    restoring: Restoring,
    /// What is to be read, in order.
    order: Vec<(u8, AggregationNumber)>,
    finished: Mutex<Finished>,
    /// One at a time notes, so that a note never replaces a later one.
    noting: tokio::sync::Mutex<Noted>,
}

struct Noted {
    count: usize,
    at: Instant,
}

/// Aggregations finish in any order.
#[derive(Default)]
struct Finished {
    /// So many, from the first on.
    all: usize,
    /// Places of those above.
    above: BTreeSet<usize>,
}

impl Notes {
    /// Writes blocks, on all stores side by side.
    async fn write(&self, blocks: Vec<Block>) -> Result<(), SlaveError> {
        let mut of_store: Vec<Vec<BlockChange>> = vec![Vec::new(); self.slave.data().len()];
        for Block { index, data, .. } in blocks {
            if let Some(changes) = of_store.get_mut(self.slave.store_of(index)) {
                changes.push(BlockChange { index, data: Some(data) });
            }
        }
        let step = SlaveStep { fill: self.fill, from: None, to: None };
        let write = async |(store, changes): (usize, &Vec<BlockChange>)| {
            let mut rest = changes.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(at_once(rest));
                self.slave.apply(store, self.epoch, &step, now).await?;
                rest = later;
            }
            Ok(())
        };
        try_join_all(of_store.iter().enumerate().map(write)).await.map(drop)
    }

    async fn finished(&self, at: usize) -> Result<(), SlaveError> {
        {
            let mut finished = self.lock();
            finished.above.insert(at);
            while finished.above.first() == Some(&finished.all) {
                finished.above.pop_first();
                finished.all += 1;
            }
        }
        if let Ok(mut noted) = self.noting.try_lock()
            && noted.at.elapsed() >= NOTE_EVERY
        {
            let all = self.lock().all;
            if all > noted.count {
                self.note(all).await?;
            }
            *noted = Noted { count: all, at: Instant::now() };
        }
        Ok(())
    }

    /// Notes that so many of those in `order` are done.
    async fn note(&self, count: usize) -> Result<(), SlaveError> {
        let mut restoring = self.restoring;
        if let Some(last) = count.checked_sub(1).and_then(|last| self.order.get(last)) {
            restoring.done = Some(*last);
            restoring.aggregations.1 += count as u64;
        }
        let (mark, fill) = (SlaveMark::Restoring(restoring), Some(self.fill));
        self.slave.keep(self.epoch, &SlaveRecord { mark, fill, position: None, applied: Vec::new() }).await
    }

    fn lock(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of these go at once; one at least.
fn at_once(changes: &[BlockChange]) -> usize {
    let mut bytes = 0;
    let fits = |change: &&BlockChange| {
        bytes += change.data.as_ref().map_or(0, |data| data.len());
        bytes <= MOST_BYTES
    };
    changes.iter().take(MOST_CHANGES).take_while(fits).count().max(1)
}

/// Counts what is there, and says that it is a disk.
async fn complete(
    slave: &SlaveCluster,
    epoch: Epoch,
    fill: FillId,
    state: &DiskState,
    target: SlavePosition,
) -> Result<(), SlaveRestoreError> {
    let mut should = vec![0; slave.data().len()];
    for (index, _) in state.blocks() {
        if let Some(count) = should.get_mut(slave.store_of(index)) {
            *count += 1;
        }
    }
    let found = slave.state().await?;
    for ((address, part), should) in found.parts.iter().zip(should) {
        if part.blocks != should {
            // What is noted as done is not all there: whoever begins again begins from nothing.
            let mark = SlaveMark::Restoring(Restoring {
                target,
                done: None,
                aggregations: (0, 0),
                blocks: state.block_count() as u64,
            });
            let fill = Some(new_fill()?);
            slave.keep(epoch, &SlaveRecord { mark, fill, position: None, applied: Vec::new() }).await?;
            let (vdisk, address, has) = (slave.vdisk().clone(), address.clone(), part.blocks);
            return Err(SlaveRestoreError::Incomplete { vdisk, address, has, should });
        }
    }
    slave.begin(epoch, fill, Some(target.point)).await?;
    let applied = vec![target.point; slave.data().len()];
    let record = SlaveRecord { mark: SlaveMark::Running, fill: Some(fill), position: Some(target), applied };
    slave.keep(epoch, &record).await?;
    Ok(())
}
