//! Walking the records of a segment, and deciding what a record means that cannot be read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tlog_proto::{AggregationNumber, Epoch};

use super::record::{ALIGN, Cursor, HEADER, Header, Kind, MAGIC, Position, State};

/// What a record does to the index. Writing a record and finding it in a file give the same event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// This is the log's state now.
    State(Position, State),
    /// A shard, with the log's epoch and `committed`.
    Shard(Position, Header),
    /// The log's epoch and `committed`.
    Mark(Epoch, AggregationNumber),
    /// A shard of this number and epoch was stored here, and its header is rotten.
    Lost(Position, AggregationNumber, Epoch),
}

impl Event {
    /// What a record says that has no body to read.
    pub(super) fn of(position: Position, header: &Header) -> Self {
        match header.kind {
            Kind::Shard => Event::Shard(position, *header),
            // The state itself is not at hand; these two also stand in the header.
            Kind::Mark | Kind::State => Event::Mark(header.log_epoch, header.committed),
        }
    }
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) events: Vec<Event>,
    /// Behind the last record.
    pub(super) cursor: Cursor,
    /// Something that is no record stands behind the last record: a write that was not finished, or is going on.
    pub(super) torn: bool,
    /// Records that were acknowledged and are rotten.
    pub(super) rotten: u64,
}

/// Which segment is walked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// One that is not written to any more: all in it was acknowledged. Only headers and states are read.
    Sealed,
    /// The one that is written to. It can end in a write that was not finished, so every byte is checked; a bad record is rot
    /// only if a later one proves that it was acknowledged.
    Tail,
    /// The same, asked for what is new since the last walk: where zeros stand there is nothing, and no search.
    TailAgain,
}

/// Walks the records of a segment from `cursor` on.
pub(super) fn scan(file: &File, segment: u64, cursor: Cursor, extent: Extent) -> io::Result<Scanned> {
    let tail = extent != Extent::Sealed;
    let step = match extent {
        Extent::Tail => 256 << 10,
        Extent::Sealed | Extent::TailAgain => 4 << 10,
    };
    let mut walk = Walk::new(file, step)?;
    let mut found = Scanned { events: Vec::new(), cursor, torn: false, rotten: 0 };
    loop {
        let at = found.cursor.offset;
        let position = Position { segment, offset: at };
        let header = walk.header(at)?.filter(|header| header.link == found.cursor.link);
        let behind = header.and_then(|header| Some((header, Cursor::behind(at, &header)?)));
        if let Some((header, behind)) = behind {
            let event = walk.event(position, &header, tail)?;
            if event.is_none() && tail && !walk.was_acknowledged(at, behind.offset)? {
                found.torn = true;
                return Ok(found);
            }
            if event.is_none() {
                found.rotten += 1;
                tracing::warn!(segment, offset = at, kind = ?header.kind, "a record is rotten");
            }
            found.events.push(event.unwrap_or_else(|| Event::of(position, &header)));
            found.cursor = behind;
            continue;
        }
        let garbage = walk.has_garbage(at)?;
        if !garbage && extent == Extent::TailAgain {
            return Ok(found);
        }
        let next = walk.next_header(at.saturating_add(ALIGN))?;
        let acknowledged = match at {
            // A segment gets its name when its first record is durable.
            0 => true,
            _ if tail => walk.was_acknowledged(at, at)?,
            _ => garbage || next.is_some(),
        };
        let next = next.filter(|_| acknowledged);
        if acknowledged {
            found.rotten += 1;
            tracing::warn!(segment, offset = at, "the header of a record is rotten");
        }
        let Some((offset, header)) = next else {
            found.torn = garbage && !acknowledged;
            if acknowledged {
                // Nothing behind it can be told apart; nothing is written over it.
                let end =
                    u32::try_from(walk.length / u64::from(ALIGN) * u64::from(ALIGN)).unwrap_or(u32::MAX);
                found.cursor.offset = at.max(end);
            }
            return Ok(found);
        };
        if header.previous_number > AggregationNumber(0) {
            let position = Position { segment, offset: offset.saturating_sub(header.previous_len).max(at) };
            found.events.push(Event::Lost(position, header.previous_number, header.previous_epoch));
        }
        // What comes next stands behind the rotten one, whatever it says itself.
        found.cursor = Cursor {
            offset,
            link: header.link,
            previous_len: header.previous_len,
            previous_number: header.previous_number,
            previous_epoch: header.previous_epoch,
        };
    }
}

/// Reads a file through a window, so that small records do not cost a system call each.
struct Walk<'f> {
    file: &'f File,
    length: u64,
    step: usize,
    at: u64,
    bytes: Vec<u8>,
}

impl<'f> Walk<'f> {
    fn new(file: &'f File, step: usize) -> io::Result<Self> {
        Ok(Self { file, length: file.metadata()?.len(), step, at: 0, bytes: Vec::new() })
    }

    /// None where the file ends before.
    fn get(&mut self, at: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(length as u64).filter(|&end| end <= self.length) else {
            return Ok(None);
        };
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            let wanted = (length.max(self.step) as u64).min(self.length - at);
            self.bytes.resize(wanted as usize, 0);
            self.at = at;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, at) {
                self.bytes.clear();
                // It was cut while we looked: then it ends before.
                return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
            }
        }
        let start = (at - self.at) as usize;
        Ok(self.bytes.get(start..start + length))
    }

    /// A header whose record lies within the file.
    fn header(&mut self, at: u32) -> io::Result<Option<Header>> {
        let header = self.get(at.into(), HEADER)?.and_then(Header::parse);
        let fits = |header: &Header| {
            header.record_len().is_some_and(|length| u64::from(at) + u64::from(length) <= self.length)
        };
        Ok(header.filter(fits))
    }

    /// None where head part or payload is not what was written.
    fn event(
        &mut self,
        position: Position,
        header: &Header,
        check_shards: bool,
    ) -> io::Result<Option<Event>> {
        let body = u64::from(position.offset) + HEADER as u64;
        let (head_len, payload_len) = (header.head_len as usize, header.payload_len as usize);
        match header.kind {
            Kind::Mark => {}
            Kind::State => {
                let head = self.get(body, head_len)?;
                let head = head.filter(|head| crc32c::crc32c(head) == header.head_check);
                return Ok(head.and_then(State::parse).map(|state| Event::State(position, state)));
            }
            Kind::Shard if check_shards => {
                let Some(bytes) = self.get(body, head_len + payload_len)? else {
                    return Ok(None);
                };
                let (head, payload) = bytes.split_at(head_len);
                if crc32c::crc32c(head) != header.head_check
                    || crc32c::crc32c(payload) != header.payload_check
                {
                    return Ok(None);
                }
            }
            Kind::Shard => {}
        }
        Ok(Some(Event::of(position, header)))
    }

    /// Whether something other than zeros stands where a header would.
    fn has_garbage(&mut self, at: u32) -> io::Result<bool> {
        let length = (HEADER as u64).min(self.length.saturating_sub(at.into()));
        let bytes = self.get(at.into(), length as usize)?;
        Ok(bytes.is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0)))
    }

    /// Whether what stands at `at` was acknowledged: a record at or behind `from` was written when all up to above `at` was
    /// durable. What an abandoned write left behind never says so: it began at or below where the log then ended, and a
    /// log's end never moves down.
    fn was_acknowledged(&mut self, at: u32, mut from: u32) -> io::Result<bool> {
        while let Some((offset, header)) = self.next_header(from)? {
            if header.batch > at {
                return Ok(true);
            }
            from = offset + ALIGN;
        }
        Ok(false)
    }

    /// The first header at or behind `from`, found by its look.
    fn next_header(&mut self, from: u32) -> io::Result<Option<(u32, Header)>> {
        let mut at = u64::from(from);
        while at + HEADER as u64 <= self.length {
            match seek(self.file, SeekFrom::Data(at)) {
                Ok(data) => at = at.max(data / u64::from(ALIGN) * u64::from(ALIGN)),
                Err(Errno::NXIO) => return Ok(None),
                // A file system that cannot tell where data is.
                Err(_) => {}
            }
            let length = self.length.saturating_sub(at).min(64 << 10) as usize;
            let Some(bytes) = self.get(at, length)? else {
                return Ok(None);
            };
            let place = bytes.chunks(ALIGN as usize).position(|chunk| chunk.starts_with(&MAGIC));
            let Some(place) = place else {
                at += (length as u64).next_multiple_of(ALIGN.into());
                continue;
            };
            at += (place * ALIGN as usize) as u64;
            let Ok(offset) = u32::try_from(at) else {
                return Ok(None);
            };
            if let Some(header) = self.header(offset)? {
                return Ok(Some((offset, header)));
            }
            at += u64::from(ALIGN);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;
    use tlog_proto::{AggregationId, VdiskId};

    use super::*;
    use crate::directory::record::{Batch, Body};
    use crate::log_state::LogMeta;
    use crate::{Shard, StoreIdentity};

    const ROOM: usize = 16 << 10;

    fn beginning() -> Cursor {
        Cursor::first(&VdiskId::new("disk").unwrap(), 1)
    }

    fn shard(payload: &[u8]) -> Shard {
        let (head, payload) = (Bytes::from_static(b"head"), Bytes::copy_from_slice(payload));
        Shard { epoch: Epoch(1), id: AggregationId([1; 32]), head, payload }
    }

    /// A segment as it is on disk, to which batches are written one by one.
    struct Segment {
        bytes: Vec<u8>,
        cursor: Cursor,
    }

    impl Segment {
        fn new() -> Self {
            let mut segment = Self { bytes: vec![0; ROOM], cursor: beginning() };
            let meta = LogMeta::created(StoreIdentity([1; 16]), Epoch(1)).unwrap();
            segment.cursor = segment.write(vec![Body::State(State { meta, cuts: Vec::new() })]);
            segment
        }

        /// Writes a batch where the last one that was acknowledged ended. Answers the cursor behind it.
        fn write(&mut self, bodies: Vec<Body>) -> Cursor {
            let mut batch = Batch::new(self.cursor);
            for body in bodies {
                batch.push(body, Epoch(1), AggregationNumber(0)).unwrap();
            }
            let bytes = batch.parts.concat();
            self.bytes[batch.at as usize..][..bytes.len()].copy_from_slice(&bytes);
            batch.cursor
        }

        fn write_shards(&mut self, shards: &[(u64, &[u8])]) -> Cursor {
            let body =
                |&(number, payload): &(u64, &[u8])| Body::Shard(AggregationNumber(number), shard(payload));
            self.write(shards.iter().map(body).collect())
        }

        fn flip(&mut self, at: u32) {
            self.bytes[at as usize] ^= 1;
        }

        fn scan(&self, extent: Extent) -> Scanned {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&self.bytes).unwrap();
            scan(&file, 1, beginning(), extent).unwrap()
        }
    }

    fn numbers(found: &Scanned) -> Vec<u64> {
        let number = |event: &Event| match event {
            Event::Shard(_, header) => Some(header.number.0),
            Event::Lost(_, number, _) => Some(number.0 + 1000),
            Event::State(..) | Event::Mark(..) => None,
        };
        found.events.iter().filter_map(number).collect()
    }

    #[test]
    fn a_batch_of_which_only_the_end_arrived_is_a_torn_tail() {
        let mut segment = Segment::new();
        segment.cursor = segment.write_shards(&[(1, b"one")]);
        let end = segment.cursor;
        let behind = segment.write_shards(&[(2, b"two"), (3, b"three"), (4, b"four")]);
        assert_eq!(numbers(&segment.scan(Extent::Tail)), [1, 2, 3, 4]);
        segment.flip(end.offset + 20);
        for extent in [Extent::Tail, Extent::TailAgain] {
            let found = segment.scan(extent);
            assert_eq!((numbers(&found), found.cursor, found.torn, found.rotten), (vec![1], end, true, 0));
        }
        // A batch after it proves that it was whole once.
        segment.cursor = behind;
        segment.write_shards(&[(5, b"five")]);
        let found = segment.scan(Extent::Tail);
        assert_eq!((numbers(&found), found.torn, found.rotten), (vec![1, 1002, 3, 4, 5], false, 1));
    }

    #[test]
    fn what_an_abandoned_write_left_behind_is_not_taken_in() {
        let mut segment = Segment::new();
        segment.write_shards(&[(1, b"abandoned"), (2, b"abandoned")]);
        let end = segment.write_shards(&[(1, b"repeated!")]);
        let found = segment.scan(Extent::Tail);
        assert_eq!((numbers(&found), found.cursor, found.rotten), (vec![1], end, 0));
        // Nor is it evidence that the write that came in its place was acknowledged.
        segment.flip(end.offset - 10);
        let found = segment.scan(Extent::Tail);
        assert_eq!(
            (numbers(&found), found.cursor, found.torn, found.rotten),
            (vec![], segment.cursor, true, 0)
        );
    }

    #[test]
    fn of_several_headers_rotten_in_a_row_the_last_is_named_and_the_rest_is_found() {
        let mut segment = Segment::new();
        let mut ends = vec![segment.cursor.offset];
        for number in 1..=5 {
            segment.cursor = segment.write_shards(&[(number, b"payload")]);
            ends.push(segment.cursor.offset);
        }
        segment.bytes[ends[1] as usize..ends[3] as usize].fill(0);
        for extent in [Extent::Tail, Extent::Sealed] {
            let found = segment.scan(extent);
            assert_eq!((numbers(&found), found.rotten), (vec![1, 1003, 4, 5], 1), "{extent:?}");
            assert_eq!(found.cursor.offset, segment.cursor.offset);
        }
    }

    #[test]
    fn a_payload_that_looks_like_records_is_no_record() {
        let mut other = Segment::new();
        let end = other.write_shards(&[(77, b"other"), (78, b"other")]);
        let copied = other.bytes[..end.offset as usize].to_vec();
        let mut segment = Segment::new();
        segment.cursor = segment.write_shards(&[(1, &copied)]);
        segment.cursor = segment.write_shards(&[(2, b"two")]);
        assert_eq!(numbers(&segment.scan(Extent::Tail)), [1, 2]);
        assert_eq!(numbers(&segment.scan(Extent::Sealed)), [1, 2]);
    }
}
