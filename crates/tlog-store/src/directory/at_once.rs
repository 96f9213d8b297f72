//! Reading what the system has in memory, here and now.
//!
//! Waking a thread and being woken by it costs more than copying a shard that is cached. So whoever asks looks first, without ever waiting:
//! for a lock, for a file to be opened, for the disk. Where that would have to be waited for, and where anything is not as it should be, it is
//! left to the threads of [`reads`](super::reads), which find out the same anew, wait for it, and count what is damaged.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use tlog_proto::AggregationNumber;

use super::index::{Index, Place};
use super::log::{Log, Part, checked};
use super::record::{Cursor, HEADER, Header};
use crate::{Shard, ShardSlot};

/// Most bytes that are read here: a tenth of a millisecond, for which other tasks of the thread wait.
const MOST: usize = 512 << 10;

/// Where a record is, in a file that is open.
struct Found {
    file: Arc<File>,
    offset: u64,
    head_len: u32,
    payload_len: u32,
}

impl Log {
    /// A shard as the writer had left it when this was called or later; none where it would have to be waited for.
    pub(super) fn shard_at_once(&self, number: AggregationNumber) -> Option<ShardSlot> {
        let Found { file, offset, head_len, payload_len } = self.find_at_once(number)?;
        let bytes = read_at_once(&file, offset, HEADER + head_len as usize + payload_len as usize)?;
        let (Header { epoch, id, .. }, mut content) =
            checked(&bytes, Part::Whole, number, (head_len, payload_len))?;
        let head = content.split_to(head_len as usize);
        Some(ShardSlot::Held(Shard { epoch, id, head, payload: content.split_to(payload_len as usize) }))
    }

    /// The record of a shard up to the end of its head part, by the index as it is; none where it would have to be waited for.
    pub(super) fn head_at_once(&self, number: AggregationNumber) -> Option<(Header, Bytes)> {
        let Found { file, offset, head_len, payload_len } = self.found(self.place(number).ok()??)?;
        let bytes = read_at_once(&file, offset, HEADER + head_len as usize)?;
        checked(&bytes, Part::Head, number, (head_len, payload_len))
    }

    /// Has the system begin to read the heads of these, so that a disk has all of them to do at once and nobody waits for one after the
    /// other. What cannot be asked for is only read later.
    pub(super) fn will_read_heads(&self, numbers: &[AggregationNumber]) {
        for &number in numbers {
            let place = self.place(number).ok().flatten();
            if let Some(Found { file, offset, head_len, .. }) = place.and_then(|place| self.found(place)) {
                let length = NonZeroU64::new(HEADER as u64 + u64::from(head_len));
                let _ = fadvise(&file, offset, length, Advice::WillNeed);
            }
        }
    }

    /// Bytes of a payload, unchecked; none where they would have to be waited for.
    pub(super) fn parts_at_once(
        &self,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Option<Vec<Bytes>> {
        let Found { file, offset, head_len, payload_len } = self.find_at_once(number)?;
        if parts.iter().any(|part| part.start > part.end || part.end > payload_len)
            || parts.iter().map(Range::len).sum::<usize>() > MOST
        {
            return None;
        }
        let payload_at = offset + HEADER as u64 + u64::from(head_len);
        let read = |part: &Range<u32>| read_at_once(&file, payload_at + u64::from(part.start), part.len());
        parts.iter().map(read).collect()
    }

    fn find_at_once(&self, number: AggregationNumber) -> Option<Found> {
        let place = {
            let index = self.index.try_lock().ok()?;
            let index = index.as_ref().filter(|index| index.meta.is_some())?;
            if !self.shared.writing() && !self.is_up_to_date(index)? {
                return None;
            }
            index.slots.get(number)?.place
        };
        self.found(place)
    }

    fn found(&self, place: Place) -> Option<Found> {
        let Place::At(position, head_len, payload_len) = place else { return None };
        let file = self.shared.files.get_open(&self.vdisk, position.segment)?;
        Some(Found { file, offset: position.offset.into(), head_len, payload_len })
    }

    /// Whether another process has written nothing since the index was read.
    fn is_up_to_date(&self, index: &Index) -> Option<bool> {
        let tail = index.tail?;
        let file = self.shared.files.get_open(&self.vdisk, tail.segment)?;
        let Cursor { offset, link, previous_len, .. } = tail.cursor;
        let metadata = file.metadata().ok()?;
        if metadata.nlink() == 0 || u64::from(offset) + HEADER as u64 > metadata.len() {
            return Some(false);
        }
        let next = read_at_once(&file, offset.into(), HEADER)?;
        let previous = read_at_once(&file, offset.checked_sub(previous_len)?.into(), HEADER)?;
        let is_there = Header::parse(&previous).is_some_and(|header| header.check == link);
        Some(is_there && next.iter().all(|byte| *byte == 0))
    }
}

/// So many bytes of a file, if all of them are in memory.
fn read_at_once(file: &File, offset: u64, length: usize) -> Option<Bytes> {
    if length > MOST {
        return None;
    }
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let rest = &mut [IoSliceMut::new(rest)];
        match preadv2(file, rest, offset + filled as u64, ReadWriteFlags::NOWAIT) {
            Ok(read) if read > 0 => filled += read,
            // Not in memory, or a file system that cannot tell; the end of the file, and errors, are looked at by who waits.
            _ => return None,
        }
    }
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use tlog_proto::{AggregationId, Epoch, VdiskId};

    use super::*;
    use crate::{DirectoryOptions, DirectoryStore, HeadSlot, Members, ShardStore, StartRecord};

    fn disk() -> VdiskId {
        VdiskId::new("disk").unwrap()
    }

    fn shard(epoch: u64, number: u64) -> Shard {
        let payload = Bytes::from(vec![number as u8 | 1; 5000]);
        let id = AggregationId([number as u8; 32]);
        Shard { epoch: Epoch(epoch), id, head: Bytes::from_static(b"head"), payload }
    }

    async fn begin(store: &DirectoryStore, epoch: u64, number: u64) {
        store.promise(&disk(), Epoch(epoch)).await.unwrap();
        let start = StartRecord { epoch: Epoch(epoch), number: AggregationNumber(number) };
        store.start(&disk(), start, &Members::default()).await.unwrap();
    }

    async fn append(store: &DirectoryStore, epoch: u64, number: u64) {
        let (number, committed) = (AggregationNumber(number), AggregationNumber(0));
        store.append(&disk(), number, shard(epoch, number.0), committed).await.unwrap();
    }

    /// A log of three shards, and the two that have it: one that writes and one that reads.
    async fn written(directory: &Path) -> (DirectoryStore, DirectoryStore) {
        let writer = DirectoryStore::open(directory, DirectoryOptions::default()).unwrap();
        begin(&writer, 1, 1).await;
        for number in 1..=3 {
            append(&writer, 1, number).await;
        }
        (writer, DirectoryStore::open_read_only(directory).unwrap())
    }

    fn at_once(store: &DirectoryStore, number: u64) -> Option<ShardSlot> {
        store.log(&disk(), false).unwrap().shard_at_once(AggregationNumber(number))
    }

    async fn waited_for(store: &DirectoryStore, number: u64) -> ShardSlot {
        store.shard(&disk(), AggregationNumber(number)).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_read_at_once_is_what_a_thread_reads() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, reader) = written(directory.path()).await;
        assert_eq!(at_once(&reader, 2), None, "nothing was looked up yet");
        for store in [&writer, &reader] {
            let log = store.log(&disk(), false).unwrap();
            for number in 1..=3 {
                let held = ShardSlot::Held(shard(1, number));
                assert_eq!(waited_for(store, number).await, held);
                assert_eq!(log.shard_now(AggregationNumber(number)).unwrap(), held);
                let at_once = at_once(store, number);
                assert!(at_once.is_none() || at_once == Some(held), "{at_once:?}");
                let parts = [10..20, 0..5000];
                let read = log.parts_now(AggregationNumber(number), &parts).unwrap();
                let at_once = log.parts_at_once(AggregationNumber(number), &parts);
                assert!(at_once.is_none() || at_once == read, "{at_once:?}");
                let beyond = std::slice::from_ref(&(0..5001));
                assert_eq!(log.parts_at_once(AggregationNumber(number), beyond), None);
            }
            assert_eq!(at_once(store, 4), None);
        }
    }

    #[tokio::test]
    async fn what_another_process_did_since_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, reader) = written(directory.path()).await;
        assert_eq!(waited_for(&reader, 3).await, ShardSlot::Held(shard(1, 3)));
        append(&writer, 1, 4).await;
        assert_eq!(at_once(&reader, 3), None, "what is new was not read yet");
        assert_eq!(waited_for(&reader, 4).await, ShardSlot::Held(shard(1, 4)));
        begin(&writer, 2, 3).await; // which drops 3 and 4
        assert_eq!(at_once(&reader, 4), None);
        assert_eq!(waited_for(&reader, 4).await, ShardSlot::Empty);
        append(&writer, 2, 3).await;
        assert_eq!(waited_for(&reader, 3).await, ShardSlot::Held(shard(2, 3)));
        writer.delete(&disk(), Epoch(3)).await.unwrap();
        assert_eq!(at_once(&reader, 1), None);
    }

    #[tokio::test]
    async fn what_is_damaged_is_left_to_who_counts_it() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = written(directory.path()).await;
        let log = writer.log(&disk(), false).unwrap();
        let Found { file, offset, .. } = log.find_at_once(AggregationNumber(2)).unwrap();
        file.write_all_at(b"x", offset + HEADER as u64 + 100).unwrap();
        assert_eq!(at_once(&writer, 2), None);
        assert_eq!(waited_for(&writer, 2).await, ShardSlot::Damaged);
        assert_eq!(waited_for(&writer, 1).await, ShardSlot::Held(shard(1, 1)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_system_has_forgotten_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = written(directory.path()).await;
        let log = writer.log(&disk(), false).unwrap();
        for number in [1, 2, 3].into_iter().cycle().take(30) {
            let Found { file, .. } = log.find_at_once(AggregationNumber(number)).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            let range = AggregationNumber(1)..=AggregationNumber(3);
            let heads = writer.heads(&disk(), range, usize::MAX).await.unwrap();
            let ids: Vec<AggregationId> = heads
                .iter()
                .map(|(_, slot)| match slot {
                    HeadSlot::Held(head) => head.id,
                    HeadSlot::Damaged => panic!("damaged"),
                })
                .collect();
            assert_eq!(ids, [1, 2, 3].map(|number| shard(1, number).id));
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            assert_eq!(waited_for(&writer, number).await, ShardSlot::Held(shard(1, number)));
        }
    }
}
