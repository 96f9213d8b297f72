//! What was decided gets onto the disk: records behind the last ones, segments, syncs; and what follows where that fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Attendant, RESERVE, is_full, kind_of, unavailable};
use crate::StoreErrorKind;
use crate::directory::crash::{Step, reached};
use crate::directory::files::{
    guard, preallocate, segment_path, segments, sync_directory, unfinished_path, write_parts_at,
};
use crate::directory::index::{Index, Tail};
use crate::directory::log::{Log, erase};
use crate::directory::record::{Batch, Body, Cursor, Position, State};
use crate::directory::scan::Event;
use crate::log_state::LogMeta;

impl Attendant {
    pub(super) fn write_alone(
        &self,
        index: &mut Index,
        meta: LogMeta,
        body: impl FnOnce(&Index, LogMeta, Position) -> Body,
        length: u32,
    ) -> Result<(), StoreErrorKind> {
        let room = |index: &Index| {
            index.tail.is_some_and(|tail| u64::from(tail.cursor.offset) + u64::from(length) <= tail.room)
        };
        if !room(index) {
            let old = index.meta.clone().ok_or(StoreErrorKind::NoLog)?;
            self.begin_segment(index, old, length, Index::state_record)?;
        }
        let tail = index.tail.ok_or(StoreErrorKind::NoLog)?;
        let position = Position { segment: tail.segment, offset: tail.cursor.offset };
        let (epoch, committed) = (meta.epoch, meta.committed);
        let body = body(index, meta, position);
        let known = match &body {
            Body::State(state) => Event::State(position, state.clone()),
            _ => Event::Mark(epoch, committed),
        };
        let mut batch = Batch::new(tail.cursor);
        batch.push(body, epoch, committed).ok_or_else(|| unavailable("a record does not fit a segment"))?;
        self.write(tail.segment, &batch).map_err(|error| kind_of(&error))?;
        index.apply(known);
        index.tail = Some(Tail { cursor: batch.cursor, ..tail });
        self.log.remove_dead_segments(index);
        Ok(())
    }

    pub(super) fn make_known(&self, segment: u64, cursor: Cursor, events: Vec<Event>) {
        let mut index = guard(&self.log.index);
        let Some(index) = index.as_mut() else { return };
        events.into_iter().for_each(|event| index.apply(event));
        if let Some(tail) = index.tail.filter(|tail| tail.segment == segment) {
            index.tail = Some(Tail { cursor, ..tail });
        }
        self.log.remove_dead_segments(index);
    }

    /// Writes and syncs. After an error nothing of it counts: it is taken back, and where even that fails, or more than room
    /// was missing, nothing is written to this log any more.
    pub(super) fn write(&self, segment: u64, batch: &Batch) -> io::Result<()> {
        let log = &self.log;
        let file = log.shared.files.get(&log.vdisk, &log.directory, segment)?;
        let result = self.write_to(&file, batch);
        if let Err(error) = &result {
            let end = u64::from(batch.cursor.offset);
            let taken_back = is_full(error) && erase_up_to(&file, batch.at.into(), end).is_ok();
            if !taken_back {
                self.fail(error);
            }
        }
        result
    }

    fn write_to(&self, file: &File, batch: &Batch) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::other("its segment was deleted by somebody else"));
        }
        reached(Step::BeforeWrite);
        write_parts_at(file, &batch.parts, batch.at)?;
        reached(Step::AfterWrite);
        self.timed_sync(file)?;
        reached(Step::AfterSync);
        Ok(())
    }

    fn timed_sync(&self, file: &File) -> io::Result<()> {
        let begun = Instant::now();
        file.sync_data()?;
        metrics::histogram!("tlog_store_sync_seconds", "store" => Arc::clone(&self.log.shared.address))
            .record(begun.elapsed());
        Ok(())
    }

    /// Refuses all further writes. After a sync that failed, what the system then calls durable need not be.
    pub(super) fn fail(&self, error: &io::Error) {
        let Log { shared, vdisk, queue, .. } = &*self.log;
        tracing::error!(store = %shared.address, %vdisk, %error, "a write failed; the log takes no more until the store is reopened");
        guard(queue)
            .failed
            .get_or_insert_with(|| format!("an earlier write failed ({error}); reopen the store"));
    }

    /// Begins a segment with a state, behind which there is room for `needed` bytes at least.
    ///
    /// It gets its name only when its first record is durable, so that every segment begins with a whole state. The one
    /// before is cut to what is in it first: by its missing room readers know that there is another one.
    pub(super) fn begin_segment(
        &self,
        index: &mut Index,
        meta: LogMeta,
        needed: u32,
        state: impl Fn(&Index, LogMeta, Position) -> State,
    ) -> Result<(), StoreErrorKind> {
        let Log { shared, vdisk, directory, .. } = &*self.log;
        let segment = index.tail.map_or(1, |tail| tail.segment + 1);
        let position = Position { segment, offset: 0 };
        let state = state(index, meta, position);
        let mut batch = Batch::new(Cursor::first(vdisk, segment));
        let (epoch, committed) = (state.meta.epoch, state.meta.committed);
        let body = Body::State(state.clone());
        batch.push(body, epoch, committed).ok_or_else(|| unavailable("too many starts"))?;
        let least = batch.cursor.offset.checked_add(needed).and_then(|least| least.checked_add(RESERVE));
        let least = least.ok_or_else(|| unavailable("a record does not fit a segment"))?;
        let room = index.tail.map_or(0, |tail| tail.room.min(u32::MAX.into()) as u32);
        let wanted =
            room.saturating_mul(2).clamp(shared.first_segment_bytes, shared.max_segment_bytes).max(least);

        if index.tail.is_none() {
            self.make_directory().map_err(|error| kind_of(&error))?;
        }
        let unfinished = unfinished_path(directory, segment);
        let room = match self.make_segment(&unfinished, &batch, wanted, least) {
            Ok(room) => room,
            Err(error) => {
                let _ = std::fs::remove_file(&unfinished);
                return Err(kind_of(&error));
            }
        };
        reached(Step::SegmentWritten);
        let finish = || {
            if let Some(tail) = index.tail {
                let file = shared.files.get(vdisk, directory, tail.segment)?;
                reached(Step::SegmentBeforeCut);
                file.set_len(tail.cursor.offset.into())?;
                file.sync_all()?;
                reached(Step::SegmentCut);
            }
            std::fs::rename(&unfinished, segment_path(directory, segment))?;
            reached(Step::SegmentNamed);
            sync_directory(directory)
        };
        if let Err(error) = finish() {
            self.fail(&error);
            return Err(kind_of(&error));
        }
        reached(Step::SegmentDurable);
        index.add_segment(segment);
        index.apply(Event::State(position, state));
        index.tail = Some(Tail { segment, cursor: batch.cursor, room: room.into() });
        self.log.remove_dead_segments(index);
        Ok(())
    }

    pub(super) fn make_directory(&self) -> io::Result<()> {
        let directory = &self.log.directory;
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // Left over from a log that was never finished; anything else would have been found when it was loaded.
            Err(_) if !segments(directory)?.is_empty() => {
                return Err(io::Error::other("segments appeared that this store did not write"));
            }
            _ => {}
        }
        directory.parent().map_or(Ok(()), sync_directory)
    }

    /// Answers how long the file is: `wanted`, or less where there is no room for that.
    fn make_segment(
        &self,
        path: &std::path::Path,
        batch: &Batch,
        wanted: u32,
        least: u32,
    ) -> io::Result<u32> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let mut room = wanted;
        while let Err(error) = preallocate(&file, room) {
            if !is_full(&error) || room == least {
                return Err(error);
            }
            room = (room / 2).max(least);
        }
        reached(Step::SegmentReserved);
        write_parts_at(&file, &batch.parts, 0)?;
        file.sync_all()?;
        Ok(room)
    }
}

fn erase_up_to(file: &File, from: u64, to: u64) -> io::Result<()> {
    // Where the file system could not reserve the room, the file can be shorter.
    erase(file, from, to.min(file.metadata()?.len()))
}
