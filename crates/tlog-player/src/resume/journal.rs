//! What of an interrupted restore is done, in a file beside the one that is restored.
//!
//! ```text
//! journal = frame*                                     a frame that is cut short or does not fit its checksum ends it
//! frame   = bytes of body (4) | CRC-32C of these and body (4) | body
//! body    = 'B' "tlog restore" | version (1) | vdisk: length (1), text
//!               | format (1) | aggregation (8) | id (32) | blocks (4) | of (4) | generation (8) | sequence (8) | timestamp (8)
//!               | newest (1) | block size (4) | bytes (8) | file (8)
//!         | 'D' (format (1) | aggregation (8))*        written to the file, which was synced before this
//!         | 'C' bytes (8) | modified, ns (8)           the file is complete and synced; what is missing is its name
//! ```
//!
//! Little-endian. The first frame, and only that, is a 'B': without one there is nothing to go on with. Whoever restores holds an
//! exclusive `flock` on the journal, which the kernel releases however the process dies.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp, VdiskId};

use crate::format1::StoredFormat;
use crate::job::JobKey;
use crate::moment::MomentReached;

const MAGIC: &[u8] = b"Btlog restore";
const VERSION: u8 = 1;
/// Aggregations in one 'D'; with more there are several.
const MOST_IN_ONE: usize = 4096;
/// No frame is longer.
const MOST_BYTES: usize = 1 << 20;

/// Which restore it is: the disk, and the moment as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) vdisk: VdiskId,
    pub(crate) reached: MomentReached,
    /// No moment was named: it was the newest then.
    pub(crate) newest: bool,
    pub(crate) block_size: u32,
    pub(crate) len: u64,
    /// Inode of the file.
    pub(crate) file: u64,
}

/// How a file was left that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Complete {
    pub(crate) len: u64,
    pub(crate) modified: u64,
}

/// What a journal tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) begun: Begun,
    pub(crate) done: BTreeSet<JobKey>,
    pub(crate) complete: Option<Complete>,
}

/// What was found in a journal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: it was just made.
    Empty,
    /// Something that cannot be read from its beginning.
    Unreadable,
    /// It was written by another version.
    OtherVersion(u8),
    Told(Box<Told>),
}

/// Why there is no journal to write to.
#[derive(Debug)]
pub(crate) enum NotLocked {
    /// Somebody else writes to it.
    Busy,
    Io(io::Error),
}

impl From<io::Error> for NotLocked {
    fn from(error: io::Error) -> Self {
        NotLocked::Io(error)
    }
}

/// A journal that nobody else writes to, as long as this is there.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    /// Bytes of whole frames; the next one goes there.
    end: u64,
}

impl Journal {
    /// Opens a journal or makes an empty one, and reads it.
    pub(crate) fn open(path: PathBuf) -> Result<(Self, Found), NotLocked> {
        let mut file = Self::lock(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (found, end) = read(&bytes);
        Ok((Self { file, path, end: end as u64 }, found))
    }

    fn lock(path: &Path) -> Result<File, NotLocked> {
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(NotLocked::Busy),
                Err(error) => return Err(io::Error::from(error).into()),
            }
            // Whoever held it before may have removed it, and another one may be there.
            match std::fs::metadata(path) {
                Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(file),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets everything in it.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.end = 0;
        self.file.set_len(0)?;
        self.file.sync_all()
    }

    /// Begins anew.
    pub(crate) fn begin(&mut self, begun: &Begun) -> io::Result<()> {
        self.clear()?;
        self.append(&encode_begun(begun))
    }

    /// Notes aggregations. What they wrote must have been synced.
    pub(crate) fn done(&mut self, done: &[JobKey]) -> io::Result<()> {
        for some in done.chunks(MOST_IN_ONE) {
            let mut body = vec![b'D'];
            for (format, number) in some {
                body.push(format.number());
                body.extend(number.0.to_le_bytes());
            }
            self.append(&body)?;
        }
        Ok(())
    }

    /// Notes that everything is there, and synced.
    pub(crate) fn complete(&mut self, complete: Complete) -> io::Result<()> {
        let mut body = vec![b'C'];
        body.extend(complete.len.to_le_bytes());
        body.extend(complete.modified.to_le_bytes());
        self.append(&body)
    }

    /// Removes it. The lock stays until it is dropped.
    pub(crate) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let length = (body.len() as u32).to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&length), body).to_le_bytes();
        let frame = [&length[..], &crc, body].concat();
        // What is behind the end is torn, and must not come to life behind this one.
        self.file.set_len(self.end)?;
        self.file.write_all_at(&frame, self.end)?;
        self.file.sync_data()?;
        self.end += frame.len() as u64;
        Ok(())
    }
}

/// What is in the whole frames at the beginning, and how many bytes these have.
fn read(bytes: &[u8]) -> (Found, usize) {
    let mut rest = bytes;
    let Some(first) = take_frame(&mut rest) else {
        return (if bytes.is_empty() { Found::Empty } else { Found::Unreadable }, 0);
    };
    let begun = match decode_begun(first) {
        Ok(begun) => begun,
        Err(found) => return (found, 0),
    };
    let mut told = Told { begun, done: BTreeSet::new(), complete: None };
    let mut end = bytes.len() - rest.len();
    while let Some(body) = take_frame(&mut rest) {
        if decode_note(body, &mut told).is_none() {
            break;
        }
        end = bytes.len() - rest.len();
    }
    (Found::Told(Box::new(told)), end)
}

fn take_frame<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut at = *rest;
    let length = take::<4>(&mut at)?;
    let crc = u32::from_le_bytes(take::<4>(&mut at)?);
    let body_bytes = u32::from_le_bytes(length) as usize;
    let (body, after) = at.split_at_checked(body_bytes).filter(|_| body_bytes <= MOST_BYTES)?;
    if crc32c::crc32c_append(crc32c::crc32c(&length), body) != crc {
        return None;
    }
    *rest = after;
    Some(body)
}

fn decode_note(body: &[u8], told: &mut Told) -> Option<()> {
    let (kind, mut rest) = body.split_first()?;
    match kind {
        b'D' => {
            while !rest.is_empty() {
                let format = take_format(&mut rest)?;
                told.done.insert((format, AggregationNumber(take_u64(&mut rest)?)));
            }
        }
        b'C' => {
            let complete = Complete { len: take_u64(&mut rest)?, modified: take_u64(&mut rest)? };
            told.complete = rest.is_empty().then_some(complete);
        }
        _ => return None,
    }
    Some(())
}

fn encode_begun(begun: &Begun) -> Vec<u8> {
    let Begun { vdisk, reached, newest, block_size, len, file } = begun;
    let mut body = MAGIC.to_vec();
    body.push(VERSION);
    body.push(vdisk.as_str().len() as u8);
    body.extend(vdisk.as_str().as_bytes());
    body.push(reached.format.number());
    body.extend(reached.aggregation.0.to_le_bytes());
    body.extend(reached.id.0);
    body.extend(reached.blocks.to_le_bytes());
    body.extend(reached.of.to_le_bytes());
    body.extend(reached.position.generation.0.to_le_bytes());
    body.extend(reached.position.sequence.0.to_le_bytes());
    body.extend(reached.timestamp.0.to_le_bytes());
    body.push(u8::from(*newest));
    body.extend(block_size.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(file.to_le_bytes());
    body
}

fn decode_begun(body: &[u8]) -> Result<Begun, Found> {
    let mut rest = body.strip_prefix(MAGIC).ok_or(Found::Unreadable)?;
    match take::<1>(&mut rest) {
        Some([VERSION]) => {}
        Some([other]) => return Err(Found::OtherVersion(other)),
        None => return Err(Found::Unreadable),
    }
    let mut decode = || {
        let [length] = take::<1>(&mut rest)?;
        let vdisk;
        (vdisk, rest) = rest.split_at_checked(length.into())?;
        let vdisk = VdiskId::new(std::str::from_utf8(vdisk).ok()?).ok()?;
        let reached = MomentReached {
            format: take_format(&mut rest)?,
            aggregation: AggregationNumber(take_u64(&mut rest)?),
            id: AggregationId(take(&mut rest)?),
            blocks: u32::from_le_bytes(take(&mut rest)?),
            of: u32::from_le_bytes(take(&mut rest)?),
            position: LogPosition {
                generation: Generation(take_u64(&mut rest)?),
                sequence: Sequence(take_u64(&mut rest)?),
            },
            timestamp: Timestamp(take_u64(&mut rest)?),
        };
        let newest = take::<1>(&mut rest)? != [0];
        let block_size = u32::from_le_bytes(take(&mut rest)?);
        let (len, file) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
        rest.is_empty().then_some(Begun { vdisk, reached, newest, block_size, len, file })
    };
    decode().ok_or(Found::Unreadable)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

fn take_format(rest: &mut &[u8]) -> Option<StoredFormat> {
    match take::<1>(rest)? {
        [1] => Some(StoredFormat::One),
        [2] => Some(StoredFormat::Two),
        _ => None,
    }
}
