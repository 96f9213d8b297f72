//! Open files, few of them: a store can have tens of thousands of segments.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tlog_proto::VdiskId;

use crate::StoreIdentity;

/// A lock whose holder never leaves half a change behind, so that a panic elsewhere does not matter.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Key = (VdiskId, u64);

/// The files used last. One that is taken out of it stays open for whoever holds it.
#[derive(Debug)]
pub(super) struct OpenFiles {
    writing: bool,
    most: usize,
    files: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// With the turn in which it was used last.
    files: HashMap<Key, (u64, Arc<File>)>,
    turn: u64,
}

impl OpenFiles {
    pub(super) fn new(writing: bool, most: usize) -> Self {
        Self { writing, most, files: Mutex::default() }
    }

    /// The segment's file, open for reading, and for writing if this store writes.
    pub(super) fn get(&self, vdisk: &VdiskId, directory: &Path, segment: u64) -> io::Result<Arc<File>> {
        let key = (vdisk.clone(), segment);
        let mut recent = guard(&self.files);
        recent.turn += 1;
        let turn = recent.turn;
        if let Some((used, file)) = recent.files.get_mut(&key) {
            *used = turn;
            return Ok(Arc::clone(file));
        }
        drop(recent);
        let path = segment_path(directory, segment);
        let file = Arc::new(OpenOptions::new().read(true).write(self.writing).open(path)?);
        self.put(key, Arc::clone(&file));
        Ok(file)
    }

    /// The same where it is open already, and nobody else is looking for one.
    pub(super) fn get_open(&self, vdisk: &VdiskId, segment: u64) -> Option<Arc<File>> {
        let mut recent = self.files.try_lock().ok()?;
        recent.turn += 1;
        let turn = recent.turn;
        let (used, file) = recent.files.get_mut(&(vdisk.clone(), segment))?;
        *used = turn;
        Some(Arc::clone(file))
    }

    fn put(&self, key: Key, file: Arc<File>) {
        let mut recent = guard(&self.files);
        recent.turn += 1;
        let turn = recent.turn;
        recent.files.insert(key, (turn, file));
        while recent.files.len() > self.most {
            let oldest = recent.files.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.map(|key| recent.files.remove(&key));
        }
    }

    pub(super) fn forget(&self, vdisk: &VdiskId, segment: u64) {
        guard(&self.files).files.remove(&(vdisk.clone(), segment));
    }

    pub(super) fn forget_vdisk(&self, vdisk: &VdiskId) {
        guard(&self.files).files.retain(|(of, _), _| of != vdisk);
    }
}

const ENDING: &str = "seg";
/// A segment that is being made. It becomes one by its name, once its first record is durable.
const UNFINISHED: &str = "new";

pub(super) fn segment_path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:020}.{ENDING}"))
}

pub(super) fn unfinished_path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment:020}.{UNFINISHED}"))
}

fn number_of(name: &str, ending: &str) -> Option<u64> {
    let (number, found) = name.split_once('.')?;
    (found == ending && number.len() == 20).then(|| number.parse().ok()).flatten()
}

/// The segments in a directory, in order; none where the directory is not there.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in entries(directory)? {
        segments.extend(number_of(&entry?, ENDING));
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Takes away what a crash left of a segment that was being made.
pub(super) fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in entries(directory)? {
        if let Some(segment) = number_of(&entry?, UNFINISHED) {
            std::fs::remove_file(unfinished_path(directory, segment))?;
        }
    }
    Ok(())
}

/// What the directory of a deleted log is called until its files are gone. No vdisk has such a name.
const DELETED: &str = ".deleted-";

/// Where a log goes that is deleted. Its identity is in the name: no two logs have the same.
pub(super) fn deleted_path(directory: &Path, identity: &StoreIdentity) -> PathBuf {
    directory.with_file_name(format!("{DELETED}{identity}"))
}

/// Takes away what a crash left of logs that were deleted. What cannot be removed only takes room.
pub(super) fn remove_deleted(directory: &Path) {
    let names = entries(directory).map(|names| names.filter_map(Result::ok).collect::<Vec<_>>());
    for name in names.unwrap_or_default().iter().filter(|name| name.starts_with(DELETED)) {
        let path = directory.join(name);
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "what is left of a deleted log cannot be removed");
        }
    }
}

/// The legible names in a directory; none where it is not there.
pub(super) fn entries(directory: &Path) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let legible = |entry: io::Result<std::fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name().into_string().ok().map(Ok),
        Err(error) => Some(Err(error)),
    };
    Ok(entries.into_iter().flatten().filter_map(legible))
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Gives a new file its room, zeroed. Where the file system cannot reserve it, the file is just long.
pub(super) fn preallocate(file: &File, bytes: u32) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes.into()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes.into()),
        Err(error) => Err(error.into()),
    }
}

/// Writes the parts behind each other.
pub(super) fn write_parts_at(file: &File, parts: &[Bytes], offset: u32) -> io::Result<()> {
    /// What the system takes at once (IOV_MAX).
    const AT_ONCE: usize = 1024;
    let mut offset = u64::from(offset);
    for parts in parts.chunks(AT_ONCE) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = slices.as_mut_slice();
        while !left.is_empty() {
            match rustix::io::pwritev(file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
