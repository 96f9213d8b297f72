//! Restoring to what can only be written from its beginning to its end: a pipe.
//!
//! ```text
//! blocks by rising index:  | window 1 | window 2 | ...    each as long as its content fits half of the memory
//! for each window:  the aggregations that have one of its blocks, several at once within the other half  ->  its blocks, copied
//!                   ->  written in order, with zeros for what has no content
//! ```
//!
//! An aggregation is read once for every window that it has a block of. A disk that was written from its beginning to its end costs
//! hardly more than a restore to a file; one that was written all over costs, in the worst case, all of its aggregations for every
//! window. What is not in the window is never kept: it would be what memory is for.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::BlockIndex;

use crate::disk_state::DiskState;
use crate::in_flight::run_bounded;
use crate::job::{DiskBlock, Job, jobs_of};
use crate::metric;
use crate::reader::LogReader;
use crate::restore::{
    RestoreError, RestoreOptions, RestoreProgress, RestoreSummary, RestoredBefore, blocking, restored_len,
};

/// What keeping a block takes beyond its data, about.
const BLOCK_COST: u64 = 64;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Blocks of a window, by rising index.
type Blocks = BTreeMap<BlockIndex, Vec<u8>>;

/// Writes a disk from its beginning to its end, zeros as zeros, and flushes at the end. Of what was written before an error everything is
/// right, and more is missing. An aggregation may be read more than once (see [`RestoreSummary::aggregations`]): the more memory the
/// options give, the less often.
pub async fn restore_in_order<W: Write + Send + 'static>(
    reader: &LogReader,
    keys: &VdiskKeys,
    state: &DiskState,
    out: W,
    options: &RestoreOptions,
    mut progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<RestoreSummary, RestoreError> {
    let vdisk = reader.vdisk();
    let target = |source| RestoreError::Target { vdisk: vdisk.clone(), source };
    let len = restored_len(state, options)?;
    let opener = Opener::new(keys.clone());
    let mut out = InOrder { out, at: 0, block_size: state.block_size() };
    let windows = windows(state, options.memory / 2);
    let jobs_of_window = |window: &Range<usize>| {
        jobs_of(state, state.blocks().skip(window.start).take(window.len())).into_iter().rev()
    };
    let aggregations_total = windows.iter().map(|window| jobs_of_window(window).len() as u64).sum();
    let mut so_far = RestoreProgress { aggregations_total, ..RestoreProgress::before(state) };
    progress(&so_far);
    for window in &windows {
        let mut blocks = Blocks::new();
        let run = |job: Job| {
            let (opener, timestamp) = (opener.clone(), job.source.newest_timestamp);
            async move {
                let copied = reader.with_data(job, state, opener, |_, blocks| {
                    // A block keeps all of what it was read with, a copy does not.
                    let copy = |block: &DiskBlock| (block.index, block.data.to_vec());
                    Ok(blocks.iter().map(copy).collect::<Vec<_>>())
                });
                Ok::<_, RestoreError>((copied.await?, timestamp))
            }
        };
        run_bounded(jobs_of_window(window), options.memory / 2, run, |((copied, read_bytes), timestamp)| {
            blocks.extend(copied);
            so_far.aggregations += 1;
            so_far.read_bytes += read_bytes;
            so_far.position = timestamp;
            progress(&so_far);
        })
        .await?;
        let written = (blocks.len() as u64, blocks.values().map(|data| data.len() as u64).sum());
        out = blocking(move || out.write(&blocks)).await.map_err(target)?;
        metric::restored(written.0, written.1);
        so_far.blocks += written.0;
        so_far.bytes += written.1;
        progress(&so_far);
    }
    blocking(move || out.finish(len)).await.map_err(target)?;
    Ok(reader.summary(state, &so_far, RestoredBefore::default(), len))
}

/// The blocks of a state in pieces whose content takes at most so much memory, or is one block.
fn windows(state: &DiskState, memory: u64) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, (_, place)) in state.blocks().enumerate() {
        let cost = u64::from(place.length) + BLOCK_COST;
        if at > start && bytes + cost > memory {
            windows.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += cost;
    }
    if start < state.block_count() {
        windows.push(start..state.block_count());
    }
    windows
}

struct InOrder<W> {
    out: W,
    /// Bytes that were written.
    at: u64,
    block_size: u32,
}

impl<W: Write> InOrder<W> {
    fn write(mut self, blocks: &Blocks) -> io::Result<Self> {
        for (index, data) in blocks {
            self.write_zeros_to(index.offset(self.block_size).ok_or(io::ErrorKind::FileTooLarge)?)?;
            self.out.write_all(data)?;
            self.at += data.len() as u64;
        }
        Ok(self)
    }

    fn write_zeros_to(&mut self, to: u64) -> io::Result<()> {
        while self.at < to {
            let len = usize::try_from(to - self.at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.out.write_all(ZEROS.get(..len).unwrap_or_default())?;
            self.at += len as u64;
        }
        Ok(())
    }

    fn finish(mut self, len: u64) -> io::Result<()> {
        self.write_zeros_to(len)?;
        self.out.flush()
    }
}
