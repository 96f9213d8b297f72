//! Restoring over what is there: a block device, or anything else that does not begin as zeros.
//!
//! Every byte is written. What the disk has no content of is made zeros in whole ranges, by the device itself where it can, so that a
//! device that is thinly provisioned stays thin.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use tlog_codec::VdiskKeys;

use crate::disk_state::DiskState;
use crate::reader::LogReader;
use crate::restore::{RestoreError, RestoreOptions, RestoreProgress, RestoreSummary, RestoreTarget};

/// Ranges that a device makes zeros begin and end at a multiple of this.
const ALIGNED: u64 = 4096;
/// Zeros that are written at once, where that has to be done by hand.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file or device that is written over, from its beginning to its end. It keeps its length.
#[derive(Debug)]
pub struct InPlaceTarget {
    file: File,
    len: u64,
}

impl InPlaceTarget {
    /// Takes what is open for reading and writing.
    pub fn new(mut file: File) -> io::Result<Self> {
        // A block device says its length only at its end.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }

    /// Bytes that it has.
    pub fn capacity(&self) -> u64 {
        self.len
    }
}

impl RestoreTarget for InPlaceTarget {
    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.len {
            return Err(io::Error::other(format!("the disk has {len} bytes, and there are {}", self.len)));
        }
        Ok(())
    }

    fn begins_as_zeros(&self) -> bool {
        false
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_zeros_at(&self, offset: u64, len: u64) -> io::Result<()> {
        zero_range(&self.file, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Makes a range zeros, with no space taken for it where that is possible.
pub(crate) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let (from, to) = (offset.next_multiple_of(ALIGNED), end - end % ALIGNED);
    if from >= to {
        return write_zeros(file, offset, end);
    }
    write_zeros(file, offset, from)?;
    // Both promise that zeros are read afterwards. To discard would be faster, and promises nothing.
    let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
    let mut done = false;
    for way in ways {
        match fallocate(file, way | FallocateFlags::KEEP_SIZE, from, to - from) {
            Ok(()) => {
                done = true;
                break;
            }
            // Whoever cannot do it says so in one of these ways; a device whose sectors are larger than usual, for one.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !done {
        write_zeros(file, from, to)?;
    }
    write_zeros(file, to, end)
}

fn write_zeros(file: &File, mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        let len = usize::try_from(to - from).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..len).unwrap_or_default(), from)?;
        from += len as u64;
    }
    Ok(())
}

/// A disk cannot be restored to a block device. Where writing has begun, the device has some of it and not the rest.
#[derive(Debug, thiserror::Error)]
pub enum RestoreDeviceError {
    /// It is something else.
    #[error("{} is not a block device", path.display())]
    NotADevice {
        /// What is there.
        path: PathBuf,
    },
    /// It is mounted, or something else has claimed it.
    #[error(
        "{} is in use: it is mounted, swapped to, or part of something; unmount it, or restore to a file",
        path.display()
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// The disk does not fit.
    #[error("{} has {capacity} bytes, and the disk {len}; take a larger device, or restore to a file", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Bytes that it has.
        capacity: u64,
        /// Bytes that the disk has.
        len: u64,
    },
    /// The system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Writes a disk over a block device, all of it: behind the end of the disk there are zeros. Takes the device for itself meanwhile, and
/// refuses one that is mounted or otherwise in use, or that is too small; then nothing of it was changed. It cannot be gone on with
/// after an interruption: the device then holds half a disk until a restore to it completes.
pub async fn restore_to_device(
    reader: &LogReader,
    keys: &VdiskKeys,
    state: &DiskState,
    path: &Path,
    options: &RestoreOptions,
    progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<RestoreSummary, RestoreDeviceError> {
    let failed = |what| move |source| RestoreDeviceError::Io { what, path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed("look at"))?;
    if !metadata.file_type().is_block_device() {
        return Err(RestoreDeviceError::NotADevice { path: path.to_owned() });
    }
    let exclusive = OFlags::EXCL.bits() as i32;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => RestoreDeviceError::InUse { path: path.to_owned() },
        _ => failed("open")(source),
    })?;
    let target = InPlaceTarget::new(file).map_err(failed("look at"))?;
    let (len, capacity) = (crate::restore::restored_len(state, options)?, target.capacity());
    if len > capacity {
        return Err(RestoreDeviceError::TooSmall { path: path.to_owned(), capacity, len });
    }
    let whole = RestoreOptions { min_len: capacity, ..*options };
    Ok(reader.restore(keys, state, Arc::new(target), &whole, progress).await?)
}
