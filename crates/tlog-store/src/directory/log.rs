//! One log in a directory: finding what its segments say, and reading shards.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tlog_proto::{AggregationNumber, VdiskId};

use super::commit::Pending;
use super::files::{OpenFiles, guard, remove_unfinished, segments, sync_directory, write_parts_at};
use super::index::{Index, Place, Tail};
use super::lock::Lock;
use super::reads::Reads;
use super::record::{Batch, Body, Cursor, HEADER, Header, Kind, record_len};
use super::scan::{Event, Extent, Scanned, scan};
use crate::observe::Appends;
use crate::{Head, HeadSlot, LogState, Shard, ShardSlot, StoreErrorKind};

/// How often a reader starts over because the writer deleted what it was about to read.
const TRIES: usize = 20;
const KEEP_GOING: &str = "segments keep being deleted";
/// Numbers looked up at once for heads.
const LOOKED_UP: usize = 256;

/// What all logs of a store share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) address: Arc<str>,
    pub(super) appends: Appends,
    /// None where the store was opened for reading. It is released when the last log with work in flight is gone.
    pub(super) lock: Option<Lock>,
    pub(super) files: OpenFiles,
    pub(super) first_segment_bytes: u32,
    pub(super) max_segment_bytes: u32,
}

impl Shared {
    pub(super) fn writing(&self) -> bool {
        self.lock.is_some()
    }
}

/// One log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) vdisk: VdiskId,
    pub(super) directory: PathBuf,
    /// None until it is asked for the first time. Where this process writes, only what is durable is in it.
    pub(super) index: Mutex<Option<Index>>,
    pub(super) queue: Mutex<Queue>,
    pub(super) reads: Mutex<Reads>,
}

/// How a segment ended, as far as it was read.
struct Taken {
    /// In a write that was not finished.
    torn: bool,
    /// There are records in it that were acknowledged and are rotten.
    rotten: bool,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) pending: VecDeque<Pending>,
    /// Whether somebody is seeing to it.
    pub(super) attended: bool,
    /// Why nothing is written here any more.
    pub(super) failed: Option<String>,
}

/// The bytes of a record that are asked for.
enum Found {
    Nothing,
    Damaged,
    Record(Header, Bytes),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Head,
    Whole,
}

impl Log {
    pub(super) fn new(shared: Arc<Shared>, vdisk: VdiskId, directory: PathBuf) -> Self {
        Self {
            shared,
            vdisk,
            directory,
            index: Mutex::default(),
            queue: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> Result<LogState, StoreErrorKind> {
        self.with_index(|index| Ok(index.state()))
    }

    /// A shard as the index has it now.
    pub(super) fn shard_now(&self, number: AggregationNumber) -> Result<ShardSlot, StoreErrorKind> {
        self.shard_at(number, |log| log.place(number))
    }

    /// What is at a place that was looked up before.
    pub(super) fn shard_in(
        &self,
        index: &Index,
        number: AggregationNumber,
    ) -> Result<ShardSlot, StoreErrorKind> {
        self.shard_at(number, |_| Ok(index.slots.get(number).map(|slot| slot.place)))
    }

    fn shard_at(
        &self,
        number: AggregationNumber,
        place: impl Fn(&Self) -> Result<Option<Place>, StoreErrorKind>,
    ) -> Result<ShardSlot, StoreErrorKind> {
        Ok(match self.read(number, Part::Whole, place)? {
            Found::Nothing => ShardSlot::Empty,
            Found::Damaged => ShardSlot::Damaged,
            Found::Record(header, mut bytes) => {
                let head = bytes.split_to(header.head_len as usize);
                let payload = bytes.split_to(header.payload_len as usize);
                ShardSlot::Held(Shard { epoch: header.epoch, id: header.id, head, payload })
            }
        })
    }

    pub(super) fn heads(
        &self,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreErrorKind> {
        self.require_log()?;
        let (mut heads, mut collected) = (Vec::new(), 0);
        let (mut from, last) = range.into_inner();
        loop {
            let numbers: Vec<AggregationNumber> = self.with_index(|index| {
                Ok(index.slots.range(from..=last).take(LOOKED_UP).map(|(number, _)| number).collect())
            })?;
            let mut asked_for = false;
            for (at, &number) in numbers.iter().enumerate() {
                let cached = self.head_at_once(number).map(|(header, head)| Found::Record(header, head));
                if cached.is_none() && !std::mem::replace(&mut asked_for, true) {
                    self.will_read_heads(numbers.get(at..).unwrap_or_default());
                }
                let found = match cached {
                    Some(found) => found,
                    None => self.read(number, Part::Head, |log| log.place(number))?,
                };
                let slot = match found {
                    // Dropped since it was looked up.
                    Found::Nothing => continue,
                    Found::Damaged => HeadSlot::Damaged,
                    Found::Record(Header { epoch, id, .. }, head) => {
                        collected += head.len();
                        HeadSlot::Held(Head { epoch, id, head })
                    }
                };
                heads.push((number, slot));
                if collected >= max_bytes {
                    return Ok(heads);
                }
            }
            match numbers.last() {
                Some(&number) if numbers.len() == LOOKED_UP && number < last => from = number.next(),
                _ => return Ok(heads),
            }
        }
    }

    /// Brings the index up to date; an error where it has no log.
    pub(super) fn require_log(&self) -> Result<(), StoreErrorKind> {
        let known = |index: &mut Index| index.meta.as_ref().map(|_| ()).ok_or(StoreErrorKind::NoLog);
        self.with_index(known)
    }

    pub(super) fn place(&self, number: AggregationNumber) -> Result<Option<Place>, StoreErrorKind> {
        // A reader's index was brought up to date when the operation began.
        let index = guard(&self.index);
        Ok(index.as_ref().and_then(|index| index.slots.get(number)).map(|slot| slot.place))
    }

    /// Bytes of a payload as the index has it now, unchecked.
    pub(super) fn parts_now(
        &self,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreErrorKind> {
        for _ in 0..TRIES {
            let Some(Place::At(at, head_len, payload_len)) = self.place(number)? else { return Ok(None) };
            if parts.iter().any(|part| part.start > part.end || part.end > payload_len) {
                return Ok(None);
            }
            let Some(file) = self.file(at.segment)? else { continue };
            let payload_at = u64::from(at.offset) + HEADER as u64 + u64::from(head_len);
            let read = |part: &Range<u32>| {
                let (bytes, read) = read_at(&file, payload_at + u64::from(part.start), part.len());
                read.map(|()| bytes).map_err(|source| StoreErrorKind::Unavailable { source })
            };
            return parts.iter().map(read).collect::<Result<Vec<Bytes>, _>>().map(Some);
        }
        Err(StoreErrorKind::Unavailable { source: io::Error::other(KEEP_GOING) })
    }

    /// The file of a segment; none where it was deleted meanwhile, and the index was brought up to date.
    fn file(&self, segment: u64) -> Result<Option<Arc<File>>, StoreErrorKind> {
        match self.shared.files.get(&self.vdisk, &self.directory, segment) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.look_again();
                Ok(None)
            }
            Err(source) => Err(StoreErrorKind::Unavailable { source }),
        }
    }

    /// Reads and checks a record. `place` is asked again where the segment has been deleted meanwhile.
    fn read(
        &self,
        number: AggregationNumber,
        part: Part,
        place: impl Fn(&Self) -> Result<Option<Place>, StoreErrorKind>,
    ) -> Result<Found, StoreErrorKind> {
        for _ in 0..TRIES {
            let (at, head_len, payload_len) = match place(self)? {
                None => return Ok(Found::Nothing),
                Some(Place::Lost(_)) => return Ok(Found::Damaged),
                Some(Place::At(position, head_len, payload_len)) => (position, head_len, payload_len),
            };
            let body = head_len as usize + if part == Part::Whole { payload_len as usize } else { 0 };
            let Some(file) = self.file(at.segment)? else { continue };
            let (bytes, read) = read_at(&file, at.offset.into(), HEADER + body);
            let found =
                read.as_ref().ok().and_then(|()| checked(&bytes, part, number, (head_len, payload_len)));
            return Ok(match found {
                Some((header, content)) => Found::Record(header, content),
                None => {
                    self.count_damaged(1);
                    let error = read.err().map(tracing::field::display);
                    tracing::warn!(store = %self.shared.address, vdisk = %self.vdisk, %number, error, "a shard is damaged");
                    Found::Damaged
                }
            });
        }
        Err(StoreErrorKind::Unavailable { source: io::Error::other(KEEP_GOING) })
    }

    /// After a segment was not there. The writer has taken it out of its index before it deleted it.
    fn look_again(&self) {
        if !self.shared.writing() {
            *guard(&self.index) = None;
            // An error shows where the index is asked for again.
            let _ = self.with_index(|_| Ok(()));
        }
    }

    /// Gives `act` the index, up to date.
    pub(super) fn with_index<T>(
        &self,
        act: impl FnOnce(&mut Index) -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreErrorKind> {
        let mut slot = guard(&self.index);
        let index = match slot.take() {
            None => self.follow(Index::default()),
            Some(index) if self.shared.writing() => Ok(index),
            Some(index) => self.refresh(index),
        }
        .map_err(|source| StoreErrorKind::Unavailable { source })?;
        let index = slot.insert(index);
        if index.meta.is_none() && index.segments().next().is_some() {
            let what = format!("no state can be read in the segments of {}", self.directory.display());
            return Err(StoreErrorKind::Damaged { what });
        }
        act(index)
    }

    /// Reads what is new since the index was made.
    fn refresh(&self, mut index: Index) -> io::Result<Index> {
        let Some(tail) = index.tail else {
            return self.follow(index);
        };
        let file = match self.shared.files.get(&self.vdisk, &self.directory, tail.segment) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.follow(Index::default()),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if metadata.nlink() == 0 || !is_still_there(&file, &tail.cursor)? {
            self.shared.files.forget_vdisk(&self.vdisk);
            return self.follow(Index::default());
        }
        let Taken { torn, .. } = self.take_in(&mut index, &file, tail.segment, Extent::TailAgain)?;
        let ended = index.tail.is_some_and(|tail| u64::from(tail.cursor.offset) >= metadata.len());
        if ended || torn { self.follow(index) } else { Ok(index) }
    }

    /// Reads the segments from the index's last one on.
    fn follow(&self, mut index: Index) -> io::Result<Index> {
        if self.shared.writing() {
            remove_unfinished(&self.directory)?;
        }
        for _ in 0..TRIES {
            let there = segments(&self.directory)?;
            let from = index.tail.map_or(0, |tail| tail.segment);
            match self.take_in_all(&mut index, there.iter().copied().filter(|&segment| segment >= from)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.shared.writing() => {
                    index = Index::default();
                    self.shared.files.forget_vdisk(&self.vdisk);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self.shared.writing() {
                self.remove_dead_segments(&mut index);
                return Ok(index);
            }
            // What made a segment superfluous is in one that was there before it went: only a listing that did not change
            // while we read is one of a moment.
            if segments(&self.directory)? == there {
                index.keep_segments(&there);
                return Ok(index);
            }
        }
        Err(io::Error::other("the segments keep changing while they are read"))
    }

    fn take_in_all(&self, index: &mut Index, segments: impl Iterator<Item = u64>) -> io::Result<()> {
        let mut segments = segments.peekable();
        while let Some(segment) = segments.next() {
            let extent = if segments.peek().is_some() { Extent::Sealed } else { Extent::Tail };
            let file = self.shared.files.get(&self.vdisk, &self.directory, segment)?;
            let Taken { torn, rotten } = self.take_in(index, &file, segment, extent)?;
            if torn && self.shared.writing() {
                self.cut_torn_tail(index, &file, rotten)?;
            }
        }
        Ok(())
    }

    /// Reads on in one segment.
    fn take_in(&self, index: &mut Index, file: &File, segment: u64, extent: Extent) -> io::Result<Taken> {
        let known = index.tail.filter(|tail| tail.segment == segment).map(|tail| tail.cursor);
        let cursor = known.unwrap_or_else(|| Cursor::first(&self.vdisk, segment));
        let Scanned { events, cursor, torn, rotten } = scan(file, segment, cursor, extent)?;
        // A record can be in the file and not be durable: another process is about to sync it, or died before it did.
        if extent != Extent::Sealed && !events.is_empty() {
            file.sync_data()?;
        }
        if known.is_none() && extent != Extent::Sealed {
            sync_directory(&self.directory)?;
        }
        self.count_damaged(rotten);
        index.add_segment(segment);
        index.tail = Some(Tail { segment, cursor, room: file.metadata()?.len() });
        events.into_iter().for_each(|event: Event| index.apply(event));
        Ok(Taken { torn, rotten: rotten > 0 })
    }

    /// What tells of a rotten record that it was acknowledged can be the write that is cut off: then a mark in its place tells it from now
    /// on. Else the rotten record were the torn tail the next time, and gone.
    fn cut_torn_tail(&self, index: &mut Index, file: &File, rotten: bool) -> io::Result<()> {
        let Index { tail: Some(tail), meta, .. } = index else { return Ok(()) };
        let (epoch, committed) = meta.as_ref().map(|meta| (meta.epoch, meta.committed)).unwrap_or_default();
        let mut batch = Batch::new(tail.cursor);
        if rotten
            && batch.push(Body::Mark, epoch, committed).is_some()
            && u64::from(batch.cursor.offset) <= tail.room
        {
            write_parts_at(file, &batch.parts, batch.at)?;
            file.sync_data()?;
            tail.cursor = batch.cursor;
        }
        let tail = *tail;
        let (segment, offset) = (tail.segment, tail.cursor.offset);
        tracing::info!(store = %self.shared.address, vdisk = %self.vdisk, segment, offset, "cut off a torn tail");
        metrics::counter!("tlog_store_torn_tails_total", "store" => Arc::clone(&self.shared.address))
            .increment(1);
        erase(file, offset.into(), tail.room)
    }

    /// Deletes what nothing needs any more.
    pub(super) fn remove_dead_segments(&self, index: &mut Index) {
        for segment in index.take_dead_segments() {
            self.shared.files.forget(&self.vdisk, segment);
            let path = super::files::segment_path(&self.directory, segment);
            // It is found superfluous again when the store is opened the next time.
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(store = %self.shared.address, path = %path.display(), %error, "a segment cannot be deleted");
            }
        }
    }

    fn count_damaged(&self, records: u64) {
        if records == 0 {
            return;
        }
        metrics::counter!("tlog_store_damaged_records_total", "store" => Arc::clone(&self.shared.address))
            .increment(records);
    }
}

/// The header and what is behind it of a shard's record, as far as it was read, if it is what was written under this number with these lengths
/// of head part and payload.
pub(super) fn checked(
    bytes: &Bytes,
    part: Part,
    number: AggregationNumber,
    lengths: (u32, u32),
) -> Option<(Header, Bytes)> {
    let header = Header::parse(bytes)?;
    let content = bytes.slice(HEADER..);
    let (head, payload) = content.split_at_checked(lengths.0 as usize)?;
    let is_it = header.kind == Kind::Shard
        && header.number == number
        && (header.head_len, header.payload_len) == lengths
        && crc32c::crc32c(head) == header.head_check
        && (part == Part::Head || crc32c::crc32c(payload) == header.payload_check);
    is_it.then_some((header, content))
}

/// So many bytes of a file, into memory that is not made zero first. Where they cannot all be read, zeros in their place and why.
fn read_at(file: &File, offset: u64, length: usize) -> (Bytes, io::Result<()>) {
    let mut bytes = Vec::with_capacity(length);
    let mut read = Ok(());
    while read.is_ok() && bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => read = Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => read = Err(error.into()),
        }
    }
    bytes.resize(length, 0); // and no longer, where the vector had more room than was asked for
    (bytes.into(), read)
}

/// Whether the record that a reader saw last is still where it was. A writer that ran out of room takes back what it had
/// begun to write.
fn is_still_there(file: &File, cursor: &Cursor) -> io::Result<bool> {
    if cursor.previous_len == 0 {
        return Ok(cursor.offset == 0);
    }
    let mut bytes = [0; HEADER];
    let Some(offset) = cursor.offset.checked_sub(cursor.previous_len) else {
        return Ok(false);
    };
    match file.read_exact_at(&mut bytes, offset.into()) {
        Ok(()) => Ok(Header::parse(&bytes).is_some_and(|header| header.check == cursor.link)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the bytes from `from` to `to` zero, where they are not, and that durable.
pub(super) fn erase(file: &File, from: u64, to: u64) -> io::Result<()> {
    const AT_ONCE: usize = 256 << 10;
    let mut bytes = vec![0; AT_ONCE];
    let mut at = from;
    while at < to {
        let length = (to - at).min(AT_ONCE as u64) as usize;
        let Some(bytes) = bytes.get_mut(..length) else {
            break;
        };
        file.read_exact_at(bytes, at)?;
        if bytes.iter().any(|&byte| byte != 0) {
            bytes.fill(0);
            file.write_all_at(bytes, at)?;
        }
        at += length as u64;
    }
    file.sync_data()
}

/// Bytes that a shard takes in a segment; none where it is too long for any.
pub(super) fn shard_len(shard: &Shard) -> Option<u32> {
    record_len(shard.head.len(), shard.payload.len())
}
