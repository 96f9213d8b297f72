//! Restoring to a file so that it can be gone on with, whatever ends it: an error, a signal, the loss of power.
//!
//! ```text
//! .NAME.restoring           the disk, as far as it is there
//! .NAME.restoring.journal   which restore it is, and which aggregations are done ([`journal`])
//!
//! lock -> begin | go on -> aggregations -> (sync the file -> note what is done)* -> complete -> rename -> journal removed
//! ```
//!
//! The journal is believed in what it says is missing; what it says is done is read back and compared with the manifests before it
//! counts. So whatever happens to the two files, nothing else than the disk ever comes under the name.

mod begin;
mod journal;
mod noting;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use tlog_codec::VdiskKeys;
use tlog_proto::{BlockIndex, VdiskId};

use self::journal::{Complete, Found, Journal, NotLocked, Told};
use crate::compare::compare_with_file;
use crate::disk_state::DiskState;
use crate::file::{RestoreFileError, appear, destination, failed, sync_directory_of};
use crate::format1::StoredFormat;
use crate::job::jobs;
use crate::moment::{Moment, MomentReached};
use crate::reader::LogReader;
use crate::restore::{
    RestoreError, RestoreOptions, RestoreProgress, RestoreSummary, RestoreTarget, RestoredBefore, blocking,
    restored_len,
};

/// How to restore to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeOptions {
    /// How to restore.
    pub restore: RestoreOptions,
    /// After so many bytes, or a second, what was written is synced and noted. That much is done again after an interruption.
    pub sync_bytes: u64,
    /// Reads all of the file back before it comes under its name, and compares it with the manifests.
    pub check: bool,
    /// Begins also where the file system says that it has too little space: one that compresses may have enough.
    pub ignore_free_space: bool,
}

impl Default for ResumeOptions {
    fn default() -> Self {
        let restore = RestoreOptions::default();
        Self { restore, sync_bytes: 64 << 20, check: false, ignore_free_space: false }
    }
}

/// A restore that was begun and is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Of which vdisk.
    pub vdisk: VdiskId,
    /// To which moment, as it was found in the log.
    pub reached: MomentReached,
    /// No moment had been named: it was the newest one then.
    pub newest: bool,
    /// In blocks of so many bytes.
    pub block_size: u32,
    /// Bytes of the file.
    pub len: u64,
    /// Aggregations that are done.
    pub aggregations: u64,
}

impl Unfinished {
    /// The moment, so that the log has it again.
    pub fn moment(&self) -> Moment {
        let MomentReached { format, aggregation, position, blocks, of, .. } = self.reached;
        match format {
            StoredFormat::Two if blocks == of => Moment::Aggregation(aggregation),
            _ => Moment::Sequence { generation: Some(position.generation), sequence: position.sequence },
        }
    }
}

/// A disk cannot be restored to a file. Nothing else than before is under its name. Where something was restored already, it is kept
/// beside it, and the next restore of the same moment goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Another process, or another part of this one, restores to the same file.
    #[error("another restore to {} is running; wait for it, or restore to another file", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// What was begun there is another restore, which is left as it is.
    #[error(
        "a restore to {} was begun and not finished: of vdisk {}, up to aggregation {}, generation {}, sequence {}, in blocks of {} bytes, \
         {} bytes; go on with that one, or begin anew",
        path.display(), begun.vdisk, begun.reached.aggregation, begun.reached.position.generation, begun.reached.position.sequence,
        begun.block_size, begun.len
    )]
    OtherRestore {
        /// The file.
        path: PathBuf,
        /// The other restore.
        begun: Box<Unfinished>,
    },
    /// What was begun there was begun by another version, and is left as it is.
    #[error(
        "a restore to {} was begun by another version of this program (journal version {version}); finish it with that one, or begin anew",
        path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Version of the journal.
        version: u8,
    },
    /// The content of the disk does not fit the file system.
    #[error(
        "the disk has {needed} bytes of content, and there is room for {free} in {}; make room, or restore to another file system",
        directory.display()
    )]
    NoSpace {
        /// Where the file was to be.
        directory: PathBuf,
        /// Bytes of content, without blocks of zeros.
        needed: u64,
        /// Bytes that are free, with what was restored already.
        free: u64,
    },
    /// It was said that it is to stop.
    #[error("the restore to {} was interrupted; {aggregations} aggregations are done and are not read again", path.display())]
    Interrupted {
        /// The file.
        path: PathBuf,
        /// Aggregations that are done; with none of them nothing was kept.
        aggregations: u64,
    },
    /// Reading back found something else than was written. Nothing was kept.
    #[error(
        "what is read back of {} is not what was written: {different} blocks differ, the first is {first}; do not trust this file system",
        path.display()
    )]
    ReadBack {
        /// The file, before it came under its name.
        path: PathBuf,
        /// How many blocks differ.
        different: u64,
        /// The first of them.
        first: BlockIndex,
    },
    /// Something is under the name, the file system refused something, or the disk cannot be restored.
    #[error(transparent)]
    File(#[from] RestoreFileError),
}

impl From<RestoreError> for ResumeError {
    fn from(error: RestoreError) -> Self {
        ResumeError::File(error.into())
    }
}

/// A file to restore to, that nobody else restores to as long as this is there.
#[derive(Debug)]
pub struct ResumableFile {
    path: PathBuf,
    temporary: PathBuf,
    overwrite: bool,
    journal: Journal,
    standing: Standing,
    /// There is something to go on with: both files stay.
    keep: bool,
}

/// What was found beside the file.
#[derive(Debug)]
enum Standing {
    Nothing,
    Begun(Box<Told>),
    /// All of it, and it is under its name; only the journal was left.
    Named(Box<Told>),
}

impl ResumableFile {
    /// Looks at what is there. `overwrite`: a file under the name may be replaced. `fresh`: what was begun is not to be gone on with;
    /// it is removed when a restore begins.
    pub fn lock(path: &Path, overwrite: bool, fresh: bool) -> Result<Self, ResumeError> {
        let found = destination(path, true)?;
        let exists = || Err(RestoreFileError::Exists { path: path.to_owned() }.into());
        let is_there = found.try_exists().map_err(|source| failed("look at", path, source))?;
        let temporary = beside(&found, ".restoring")?;
        let journal = beside(&found, ".restoring.journal")?;
        if is_there && !overwrite && !journal.exists() {
            return exists();
        }
        let (journal, told) = match Journal::open(journal.clone()) {
            Ok(opened) => opened,
            Err(NotLocked::Busy) => return Err(ResumeError::Busy { path: path.to_owned() }),
            Err(NotLocked::Io(source)) => return Err(failed("open", &journal, source).into()),
        };
        let mut file = Self {
            path: found,
            temporary,
            overwrite,
            journal,
            standing: Standing::Nothing,
            keep: matches!(told, Found::OtherVersion(_) | Found::Told(_)),
        };
        match told {
            Found::Told(told) if !fresh => file.standing = file.stands(told),
            Found::OtherVersion(version) if !fresh => {
                return Err(ResumeError::OtherVersion { path: path.to_owned(), version });
            }
            Found::Unreadable => {
                tracing::warn!(journal = %file.journal.path().display(), "it cannot be read, the restore begins anew");
            }
            _ => {}
        }
        if is_there && !overwrite && !matches!(file.standing, Standing::Named(_)) {
            return exists();
        }
        Ok(file)
    }

    fn stands(&self, told: Box<Told>) -> Standing {
        let is_named = told.complete.is_some_and(|complete| {
            is_as_left(&self.path, told.begun.file, complete)
                // Where the name was given by a link, the other name may be left.
                && (!self.temporary.exists() || is_as_left(&self.temporary, told.begun.file, complete))
        });
        if is_named { Standing::Named(told) } else { Standing::Begun(told) }
    }

    /// What was begun here and is not finished.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let (Standing::Begun(told) | Standing::Named(told)) = &self.standing else { return None };
        let begun = &told.begun;
        Some(Unfinished {
            vdisk: begun.vdisk.clone(),
            reached: begun.reached,
            newest: begun.newest,
            block_size: begun.block_size,
            len: begun.len,
            aggregations: told.done.len() as u64,
        })
    }

    /// Which moment to restore when this one is asked for. Where the newest one is, and was when this restore began, the one that it
    /// began with: half a disk of then and half a disk of now would be no disk.
    pub fn moment(&self, vdisk: &VdiskId, asked: Moment) -> Moment {
        match self.unfinished() {
            Some(begun) if asked == Moment::Newest && begun.newest && begun.vdisk == *vdisk => begun.moment(),
            _ => asked,
        }
    }

    /// Restores a disk, or what is missing of it. `state` must come from a reader of the same log, for the moment that
    /// [`ResumableFile::moment`] answered for `asked`. It is an error if another moment was begun here. When `stop` ends, what was
    /// written until then is noted and the restore ends as interrupted.
    #[allow(clippy::too_many_arguments)] // each is one of its own
    pub async fn restore(
        mut self,
        reader: &LogReader,
        keys: &VdiskKeys,
        state: &Arc<DiskState>,
        asked: Moment,
        options: &ResumeOptions,
        stop: impl Future<Output = ()> + Send,
        progress: impl FnMut(&RestoreProgress) + Send,
    ) -> Result<RestoreSummary, ResumeError> {
        let len = restored_len(state, &options.restore)?;
        let is_this = match self.unfinished() {
            None => true,
            Some(begun) => {
                let is_this = begun.vdisk == *state.vdisk()
                    && Some(&begun.reached) == state.reached()
                    && (begun.block_size, begun.len) == (state.block_size(), len);
                if !is_this && matches!(self.standing, Standing::Begun(_)) {
                    return Err(ResumeError::OtherRestore {
                        path: self.path.clone(),
                        begun: Box::new(begun),
                    });
                }
                is_this
            }
        };
        if let Standing::Named(_) = self.standing {
            if is_this {
                // Whoever gave it the name may have ended before that was durable.
                sync_directory_of(&self.path)?;
                return self.was_complete(reader, state, len);
            }
            // What the journal was of is finished, so it is of no use to anybody.
            self.standing = Standing::Nothing;
            if !self.overwrite {
                self.keep = false;
                return Err(RestoreFileError::Exists { path: self.path.clone() }.into());
            }
        }
        if let Some(complete) = self.is_complete() {
            tracing::debug!(path = %self.temporary.display(), ?complete, "complete, and only its name is missing");
            self.name()?;
            return self.was_complete(reader, state, len);
        }
        let result = self.restore_data(reader, keys, state, asked, len, options, stop, progress).await;
        if let Ok(summary) = &result {
            tracing::info!(vdisk = %reader.vdisk(), path = %self.path.display(), blocks = summary.blocks,
                before = summary.before.blocks, "restored");
        }
        result
    }

    #[allow(clippy::too_many_arguments)]
    async fn restore_data(
        &mut self,
        reader: &LogReader,
        keys: &VdiskKeys,
        state: &Arc<DiskState>,
        asked: Moment,
        len: u64,
        options: &ResumeOptions,
        stop: impl Future<Output = ()> + Send,
        progress: impl FnMut(&RestoreProgress) + Send,
    ) -> Result<RestoreSummary, ResumeError> {
        let begun = self.begin(state, asked, len, options).await?;
        let (left, before) = begun.left(state, jobs(state).into_iter().rev());
        let so_far = RestoreProgress {
            aggregations: before.aggregations,
            blocks: before.blocks,
            bytes: before.bytes,
            ..RestoreProgress::before(state)
        };
        let (finished, to_note) = tokio::sync::mpsc::channel(noting::AHEAD);
        let (target, memory) = (&begun.target, options.restore.memory);
        let work = async {
            let work = reader.run_jobs(keys, state, left, so_far, target, memory, Some(finished), progress);
            tokio::select! {
                biased;
                () = stop => None,
                done = work => Some(done),
            }
        };
        let noting = noting::note(&mut self.journal, target, to_note, options.sync_bytes);
        let (worked, noted) = tokio::join!(work, noting);
        let aggregations = before.aggregations + noted.count;
        self.keep = aggregations > 0;
        let interrupted = || ResumeError::Interrupted { path: self.path.clone(), aggregations };
        noted.result.map_err(|source| failed("note what is done of", &self.temporary, source))?;
        let done = worked.ok_or_else(interrupted)??;
        self.finish(state, &begun.target, options.check).await?;
        Ok(reader.summary(state, &done, before, len))
    }

    /// All of it is written.
    async fn finish(
        &mut self,
        state: &Arc<DiskState>,
        target: &Arc<crate::file::SparseFile>,
        check: bool,
    ) -> Result<(), ResumeError> {
        let at = &self.temporary;
        // Nothing may have been written at all.
        let synced = target.clone();
        let synced = blocking(move || synced.sync()).await;
        synced.map_err(|source| failed("sync", at, source))?;
        if check {
            let file = target.file();
            // So that it is read from where it is kept, if the system is so kind.
            let _only_advice = fadvise(&*file, 0, None, Advice::DontNeed);
            let found = compare_with_file(state, file, |_, _| {}).await;
            let found = found.map_err(|source| failed("read back", at, source))?;
            if let Some(&first) = found.first_different.first() {
                self.keep = false;
                let (path, different) = (self.temporary.clone(), found.different);
                return Err(ResumeError::ReadBack { path, different, first });
            }
        }
        let metadata = target.file().metadata().map_err(|source| failed("look at", at, source))?;
        let noted = self.journal.complete(Complete { len: metadata.len(), modified: modified(&metadata) });
        noted.map_err(|source| failed("write to", self.journal.path(), source))?;
        // From here on the file is worth keeping even if it is empty.
        self.keep = true;
        self.name()
    }

    /// Gives the file its name. The journal goes when this is dropped.
    fn name(&mut self) -> Result<(), ResumeError> {
        appear(&self.temporary, &self.path, self.overwrite)?;
        self.keep = false;
        Ok(())
    }

    /// What is beside the name is complete.
    fn is_complete(&self) -> Option<Complete> {
        let Standing::Begun(told) = &self.standing else { return None };
        told.complete.filter(|complete| is_as_left(&self.temporary, told.begun.file, *complete))
    }

    /// An earlier restore has done everything.
    fn was_complete(
        mut self,
        reader: &LogReader,
        state: &DiskState,
        len: u64,
    ) -> Result<RestoreSummary, ResumeError> {
        self.keep = false;
        let done = RestoreProgress::before(state);
        let done = RestoreProgress {
            aggregations: done.aggregations_total,
            blocks: done.blocks_total,
            bytes: done.bytes_total,
            ..done
        };
        let RestoreProgress { aggregations, blocks, bytes, .. } = done;
        Ok(reader.summary(state, &done, RestoredBefore { aggregations, blocks, bytes }, len))
    }
}

impl Drop for ResumableFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Gone already where it has its name.
        let removed = std::fs::remove_file(&self.temporary).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = removed.and_then(|()| self.journal.remove()) {
            tracing::warn!(path = %self.temporary.display(), %error, "what is of no use any more stays behind");
        }
    }
}

/// Whether a file is the one that was left complete, and nobody has written to it since.
fn is_as_left(path: &Path, file: u64, complete: Complete) -> bool {
    std::fs::metadata(path).is_ok_and(|found| {
        found.ino() == file && found.len() == complete.len && modified(&found) == complete.modified
    })
}

fn modified(metadata: &std::fs::Metadata) -> u64 {
    (metadata.mtime() as u64).wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec() as u64)
}

fn beside(path: &Path, ending: &str) -> Result<PathBuf, RestoreFileError> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(|| RestoreFileError::NotAFile { path: path.to_owned() })?);
    name.push(ending);
    Ok(path.with_file_name(name))
}
