//! Who wrote a block, and when: from manifests alone.

use std::collections::VecDeque;

use tlog_codec::{BlockEntry, VdiskKeys};
use tlog_proto::{BlockIndex, Operation, SessionId};

use crate::disk_state::{DiskStateError, ReadOptions};
use crate::format1::Passed;
use crate::moment::{Moment, MomentError, Span};
use crate::reader::LogReader;
use crate::writes::{Search, WalkProgress, WritePlace, Writes};

/// One write of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockWrite {
    /// Where in the log it is.
    pub place: WritePlace,
    /// Client instance that wrote it; unknown in format 1.
    pub session: SessionId,
    /// Set or delete.
    pub operation: Operation,
    /// Bytes of data; 0 for a delete.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

/// The writes of one block from new to old. Made by [`LogReader::blame`]. Reads no further than it is asked.
pub struct Blame {
    writes: Writes,
    index: BlockIndex,
    search: Search,
    accept_pruned_base: bool,
    span: Option<Span>,
    /// Of the aggregation that was passed last, newest first.
    found: VecDeque<BlockWrite>,
}

impl LogReader {
    /// Who wrote a block, up to a moment: the last write that is part of the disk's state at it first, then those before.
    ///
    /// Reads heads only, from the end of the log down to the last answer that is taken; of a part in format 1 everything. Of the
    /// options the block size says nothing. `keys` must be those of the reader's vdisk.
    pub fn blame(
        &self,
        keys: &VdiskKeys,
        index: BlockIndex,
        moment: Moment,
        options: &ReadOptions,
    ) -> Result<Blame, MomentError> {
        self.check_moment(moment, options)?;
        Ok(Blame {
            writes: Writes::new(self, keys),
            index,
            search: Search::new(moment),
            accept_pruned_base: options.accept_pruned_base,
            span: None,
            found: VecDeque::new(),
        })
    }

    /// Bytes of the longest block of the log, which is what offsets on the disk are counted by; none where nothing was written.
    /// Reads all heads, and of a part in format 1 everything. Needs no key but those of format 1.
    pub async fn longest_block(&self, keys: &VdiskKeys) -> Result<Option<u32>, DiskStateError> {
        let mut writes = Writes::new(self, keys);
        let mut longest = None;
        while let Some(passing) = writes.next().await? {
            longest = longest.max(Some(passing.passed.block_size));
        }
        Ok(longest)
    }
}

impl Blame {
    /// The next older write of the block; none before its first one. Where history was removed below, and that was not accepted,
    /// it ends with [`MomentError::BasePruned`] instead: there may have been older writes.
    pub async fn next(&mut self) -> Result<Option<BlockWrite>, DiskStateError> {
        self.next_telling(|_| {}).await
    }

    /// The same, which says after each aggregation how far it is.
    pub async fn next_telling(
        &mut self,
        mut progress: impl FnMut(&WalkProgress) + Send,
    ) -> Result<Option<BlockWrite>, DiskStateError> {
        loop {
            if let Some(write) = self.found.pop_front() {
                return Ok(Some(write));
            }
            let Some(passing) = self.writes.next().await? else {
                self.end()?;
                return Ok(None);
            };
            progress(&self.writes.progress());
            let (passed, session) = (passing.passed, passing.session);
            Span::add(&mut self.span, &passed);
            if self.search.reached().is_some() || self.search.may_be_in(&passed) {
                let entries = self.writes.entries(passing)?;
                let part = self.search.handle(&passed, &entries);
                let entries = entries.get(..part).unwrap_or_default();
                let of_block = entries.iter().enumerate().filter(|(_, entry)| entry.index == self.index);
                self.found
                    .extend(of_block.rev().map(|(at, entry)| BlockWrite::new(&passed, session, at, entry)));
            }
        }
    }

    /// The last write of any block that is part of the state at the moment; none before the first answer, or where there is none.
    pub fn reached(&self) -> Option<&WritePlace> {
        self.search.reached()
    }

    /// How far it has read.
    pub fn progress(&self) -> WalkProgress {
        self.writes.progress()
    }

    fn end(&self) -> Result<(), MomentError> {
        let reader = self.writes.reader();
        self.search.end(reader, self.span.as_ref())?;
        let first = reader.extent().first;
        if first.0 > 1 && !self.accept_pruned_base {
            return Err(MomentError::BasePruned { vdisk: reader.vdisk().clone(), first });
        }
        Ok(())
    }
}

impl BlockWrite {
    fn new(passed: &Passed, session: SessionId, at: usize, entry: &BlockEntry) -> Self {
        Self {
            place: WritePlace::new(passed, at, entry),
            session,
            operation: entry.operation,
            length: entry.length,
            hash_prefix: entry.hash_prefix,
        }
    }
}
