//! The file of a restore: a new one, or the one of an interrupted restore with what of it can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::fs::{SeekFrom, statvfs};
use rustix::io::Errno;
use tlog_codec::BlockEntry;
use tlog_proto::{BlockHash, BlockIndex};

use super::journal::{Begun, Told};
use super::{ResumableFile, ResumeError, ResumeOptions, Standing};
use crate::disk_state::{BlockPlace, DiskState};
use crate::file::{RestoreFileError, SparseFile, directory_of, failed};
use crate::in_place::zero_range;
use crate::job::{Job, JobKey};
use crate::moment::Moment;
use crate::restore::{RestoreError, RestoreTarget, RestoredBefore, blocking};

/// Bytes that are read back at once.
const BATCH: u64 = 1 << 20;

/// A file to write to, and what of it is there.
pub(super) struct Opened {
    pub(super) target: Arc<SparseFile>,
    pub(super) done: BTreeSet<JobKey>,
}

impl Opened {
    /// The jobs that are not done, in their order, and what is done.
    pub(super) fn left(
        &self,
        state: &DiskState,
        jobs: impl Iterator<Item = (u64, Job)>,
    ) -> (Vec<(u64, Job)>, RestoredBefore) {
        let (mut left, mut before) = (Vec::new(), RestoredBefore::default());
        for (cost, job) in jobs {
            if self.done.contains(&job.key()) {
                before.aggregations += 1;
                let (blocks, bytes) = job.needs(state);
                before.blocks += blocks;
                before.bytes += bytes;
            } else {
                left.push((cost, job));
            }
        }
        (left, before)
    }
}

impl ResumableFile {
    /// Goes on with what was begun, where that can be; else begins.
    pub(super) async fn begin(
        &mut self,
        state: &Arc<DiskState>,
        asked: Moment,
        len: u64,
        options: &ResumeOptions,
    ) -> Result<Opened, ResumeError> {
        let found = match std::mem::replace(&mut self.standing, Standing::Nothing) {
            Standing::Begun(told) => self.reopen(*told, len)?,
            _ => None,
        };
        if !options.ignore_free_space {
            self.require_space(state)?;
        }
        if let Some((file, done)) = found {
            let file = Arc::new(file);
            let (state, read) = (state.clone(), file.clone());
            let whole = blocking(move || {
                clear_gaps(&state, &read, len)?;
                whole(&state, &read, done)
            })
            .await;
            let done = whole.map_err(|source| failed("read", &self.temporary, source))?;
            return Ok(Opened { target: Arc::new(SparseFile::resumed(file)), done });
        }
        // A journal without its file is of no use, and a file without its journal neither.
        self.keep = false;
        self.journal.clear().map_err(|source| failed("write to", self.journal.path(), source))?;
        let file = self.create()?;
        let target = Arc::new(SparseFile::new(file));
        let sized = target.clone();
        let sized = blocking(move || sized.set_len(len)).await;
        sized.map_err(|source| RestoreError::Target { vdisk: state.vdisk().clone(), source })?;
        let metadata =
            target.file().metadata().map_err(|source| failed("look at", &self.temporary, source))?;
        // A disk that nothing was written to has no moment, and needs no journal: there is nothing to do.
        if let Some(&reached) = state.reached() {
            let begun = Begun {
                vdisk: state.vdisk().clone(),
                reached,
                newest: asked == Moment::Newest,
                block_size: state.block_size(),
                len,
                file: metadata.ino(),
            };
            let begun = self.journal.begin(&begun);
            begun.map_err(|source| failed("write to", self.journal.path(), source))?;
        }
        Ok(Opened { target, done: BTreeSet::new() })
    }

    fn reopen(&self, told: Told, len: u64) -> Result<Option<(File, BTreeSet<JobKey>)>, RestoreFileError> {
        let opened = OpenOptions::new().read(true).write(true).open(&self.temporary);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| failed("open", &self.temporary, source))?,
        };
        let metadata = file.metadata().map_err(|source| failed("look at", &self.temporary, source))?;
        let is_it = metadata.is_file() && metadata.ino() == told.begun.file && metadata.len() == len;
        if !is_it {
            tracing::warn!(path = %self.temporary.display(), "it is not the file that was begun with; the restore begins anew");
        }
        Ok(is_it.then_some((file, told.done)))
    }

    /// A new file, which only those may read who may read the one that it replaces.
    fn create(&self) -> Result<File, RestoreFileError> {
        match std::fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &self.temporary, error));
            }
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&self.temporary);
        let file = file.map_err(|source| failed("create", &self.temporary, source))?;
        if let Ok(replaced) = std::fs::metadata(&self.path) {
            let kept = file.set_permissions(replaced.permissions());
            kept.map_err(|source| failed("set the permissions of", &self.temporary, source))?;
        }
        Ok(file)
    }

    /// Nothing is set aside for it: that would fill what is to be holes.
    fn require_space(&self, state: &DiskState) -> Result<(), ResumeError> {
        let directory = directory_of(&self.path);
        let Ok(system) = statvfs(directory) else { return Ok(()) };
        if system.f_blocks == 0 {
            return Ok(()); // it does not tell
        }
        let taken = std::fs::metadata(&self.temporary).map_or(0, |file| file.blocks() * 512);
        let free = system.f_bavail.saturating_mul(system.f_frsize).saturating_add(taken);
        let needed = bytes_but_zeros(state);
        if needed > free {
            return Err(ResumeError::NoSpace { directory: directory.to_owned(), needed, free });
        }
        Ok(())
    }
}

/// Bytes of content in blocks that are not all zeros.
fn bytes_but_zeros(state: &DiskState) -> u64 {
    let mut zeros: BTreeMap<u32, [u8; 16]> = BTreeMap::new();
    let content = state.blocks().filter(|(_, place)| {
        let length = place.length;
        let zero = zeros
            .entry(length)
            .or_insert_with(|| BlockEntry::prefix_of(&BlockHash::of(&vec![0; length as usize])));
        place.hash_prefix != *zero
    });
    content.map(|(_, place)| u64::from(place.length)).sum()
}

/// Of aggregations that are said to be done those of which everything that is needed can be read back.
fn whole(state: &DiskState, file: &File, mut done: BTreeSet<JobKey>) -> io::Result<BTreeSet<JobKey>> {
    let block_size = u64::from(state.block_size());
    let mut broken = BTreeSet::new();
    let mut batch: Vec<(BlockIndex, &BlockPlace)> = Vec::new();
    let mut buffer = Vec::new();
    let said: Vec<_> = state.blocks().filter(|(_, place)| done.contains(&key(place))).collect();
    let adjoin = |a: &BlockIndex, b: &BlockIndex| a.get() + 1 == b.get();
    for run in said.chunk_by(|(a, _), (b, _)| adjoin(a, b)) {
        for some in run.chunks(usize::try_from(BATCH / block_size.max(1)).unwrap_or(1).max(1)) {
            batch.clear();
            batch.extend_from_slice(some);
            let (Some((first, _)), Some((last, place))) = (batch.first(), batch.last()) else { continue };
            let bytes = (last.get() - first.get()) * block_size + u64::from(place.length);
            buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut buffer, first.offset(state.block_size()).unwrap_or(u64::MAX))?;
            let data = batch.iter().zip(buffer.chunks(state.block_size() as usize));
            // What is behind a short block is not part of it.
            let data = data.map(|((index, place), data)| {
                (*index, data.get(..place.length as usize).unwrap_or_default())
            });
            for ((_, place), differs) in batch.iter().zip(state.differ(data)) {
                if differs {
                    broken.insert(key(place));
                }
            }
        }
    }
    if !broken.is_empty() {
        tracing::warn!(aggregations = broken.len(), "what was noted as done is not there, and is read again");
    }
    done.retain(|key| !broken.contains(key));
    Ok(done)
}

/// Makes zeros what has no content: nobody writes there, and what somebody else wrote would stay.
fn clear_gaps(state: &DiskState, file: &File, len: u64) -> io::Result<()> {
    let (mut at, mut data) = (0, next_data(file, 0));
    let size = state.block_size();
    let content = state.blocks().map(|(index, place)| {
        let from = index.offset(size).unwrap_or(u64::MAX);
        (from, from.saturating_add(u64::from(place.length)))
    });
    for (from, to) in content.chain([(len, len)]) {
        if data < at {
            data = next_data(file, at);
        }
        if at < from && data < from {
            zero_range(file, at, from - at)?;
        }
        at = at.max(to);
    }
    Ok(())
}

/// Where a file has something from an offset on, that may be zeros; above all where it has nothing more. Where the file system does not
/// tell, it may be right there.
fn next_data(file: &File, from: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(data) => data,
        Err(Errno::NXIO) => u64::MAX,
        Err(_) => from,
    }
}

fn key(place: &BlockPlace) -> JobKey {
    (place.format, place.aggregation)
}
