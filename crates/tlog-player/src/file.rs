//! Restoring into a sparse file, which appears under its name only when it is complete.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tlog_codec::VdiskKeys;

use crate::disk_state::{DiskState, is_zero};
use crate::in_place::zero_range;
use crate::reader::LogReader;
use crate::restore::{RestoreError, RestoreOptions, RestoreProgress, RestoreSummary, RestoreTarget};

/// Bytes that a file system keeps or leaves out as one; zeros are left out in such pieces.
const PIECE: usize = 4096;

/// A file in which zeros are holes. It must be empty at first.
#[derive(Debug)]
pub struct SparseFile {
    file: Arc<File>,
    /// What is to be zeros may be something else: after a loss of power, for one.
    may_have_more: bool,
}

impl SparseFile {
    /// Takes an empty file that is open for writing.
    pub fn new(file: File) -> Self {
        Self { file: Arc::new(file), may_have_more: false }
    }

    /// Takes a file that some of the same disk was written to.
    pub(crate) fn resumed(file: Arc<File>) -> Self {
        Self { file, may_have_more: true }
    }

    pub(crate) fn file(&self) -> Arc<File> {
        self.file.clone()
    }
}

impl RestoreTarget for SparseFile {
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Runs of pieces that are not zero, so that an ordinary block is one write.
        let mut at = 0;
        for run in data.chunks(PIECE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len = run.iter().map(|piece| piece.len()).sum::<usize>();
            let bytes = data.get(at..at + len).unwrap_or_default();
            if !is_zero(bytes) {
                self.file.write_all_at(bytes, offset + at as u64)?;
            } else if self.may_have_more {
                zero_range(&self.file, offset + at as u64, len as u64)?;
            }
            at += len;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// How to restore to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Replace a file that is there. Until the restore is complete the old one stays as it is.
    pub overwrite: bool,
    /// How to restore.
    pub restore: RestoreOptions,
}

/// A disk cannot be restored to a file. Nothing is left under the file's name that was not there before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFileError {
    /// A file is there, and it was not said that it may be replaced.
    #[error("{} is there already; choose another name, or say that it may be replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something else is there: a directory, a device.
    #[error("{} is not a regular file; restore to a file beside it and copy that", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The file system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Restores into a new file beside `path`, makes that durable and renames it to `path`. After an error, or where the future is
/// dropped, the new file is gone and what was under the name is still there.
pub async fn restore_to_file(
    reader: &LogReader,
    keys: &VdiskKeys,
    state: &DiskState,
    path: &Path,
    options: &FileOptions,
    progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<RestoreSummary, RestoreFileError> {
    let path = destination(path, options.overwrite)?;
    let (temporary, file) = Temporary::beside(&path)?;
    if let Ok(replaced) = std::fs::metadata(&path) {
        let kept = file.set_permissions(replaced.permissions());
        kept.map_err(|source| failed("set the permissions of", &temporary.path, source))?;
    }
    let target = Arc::new(SparseFile::new(file));
    let summary = reader.restore(keys, state, target, &options.restore, progress).await?;
    appear(&temporary.path, &path, options.overwrite)?;
    tracing::info!(vdisk = %reader.vdisk(), path = %path.display(), blocks = summary.blocks, "restored");
    Ok(summary)
}

/// The file that is to appear: where the name is a link, what it leads to. Refuses early what would fail at the end.
pub(crate) fn destination(path: &Path, overwrite: bool) -> Result<PathBuf, RestoreFileError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(source) => Err(failed("look at", path, source)),
        Ok(found) if !found.is_file() => Err(RestoreFileError::NotAFile { path: path.to_owned() }),
        Ok(_) if !overwrite => Err(RestoreFileError::Exists { path: path.to_owned() }),
        Ok(_) => path.canonicalize().map_err(|source| failed("look at", path, source)),
    }
}

pub(crate) fn failed(what: &'static str, path: &Path, source: io::Error) -> RestoreFileError {
    RestoreFileError::Io { what, path: path.to_owned(), source }
}

/// A file that is removed unless it is renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<(Self, File), RestoreFileError> {
        let not_a_file = || RestoreFileError::NotAFile { path: path.to_owned() };
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or_else(not_a_file)?);
        let mut random = [0; 8];
        tlog_ambient::fill_random(&mut random)
            .map_err(|e| failed("name a file beside", path, io::Error::other(e.to_string())))?;
        name.push(format!(".{}.restoring", hex::encode(random)));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|source| failed("create", &temporary, source))?;
        Ok((Self { path: temporary }, file))
    }
}

/// Gives a complete file its name, for good. Without `overwrite` nothing is replaced, not even what has appeared in the meantime.
pub(crate) fn appear(temporary: &Path, path: &Path, overwrite: bool) -> Result<(), RestoreFileError> {
    let rename = || std::fs::rename(temporary, path).map_err(|source| failed("rename to", path, source));
    if overwrite {
        rename()?;
    } else {
        // A rename would replace what has appeared in the meantime, a link does not.
        match std::fs::hard_link(temporary, path) {
            Ok(()) => {
                let removed = std::fs::remove_file(temporary);
                removed.map_err(|source| failed("remove", temporary, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RestoreFileError::Exists { path: path.to_owned() });
            }
            // Some file systems have no links.
            Err(_) => {
                destination(path, false)?;
                rename()?;
            }
        }
    }
    sync_directory_of(path)
}

/// Makes the name of a file durable.
pub(crate) fn sync_directory_of(path: &Path) -> Result<(), RestoreFileError> {
    let directory = directory_of(path);
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| failed("sync the directory", directory, source))
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a file that is not complete stays behind");
        }
    }
}
