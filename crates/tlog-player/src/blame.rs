//! Who wrote a block, and when: from manifests alone.

use std::collections::{BTreeSet, VecDeque};

use tlog_codec::{BlockEntry, VdiskKeys};
use tlog_proto::{AggregationNumber, BlockIndex, LogPosition, Operation, SessionId};

use crate::checkpoint::{Checkpoint, InPart};
use crate::disk_state::{DiskStateError, ReadOptions};
use crate::format1::{Passed, StoredFormat};
use crate::moment::{Moment, MomentError, Span};
use crate::reader::LogReader;
use crate::writes::{Search, WalkProgress, WritePlace, Writes};

/// One write of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockWrite {
    /// Where in the log it is. Where it is known from a checkpoint, the part of that which has a copy of it, and the generation is that of
    /// the checkpoint's moment; its own may be an earlier one.
    pub place: WritePlace,
    /// The record of the checkpoint that it is known from, where the aggregation that had it was removed.
    pub checkpoint: Option<AggregationNumber>,
    /// Client instance that wrote it; unknown in format 1, and where it is known from a checkpoint.
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
    keys: VdiskKeys,
    accept_pruned_base: bool,
    span: Option<Span>,
    /// Whether any write was answered.
    any: bool,
    image: Image,
    /// Of the aggregation that was passed last, newest first.
    found: VecDeque<BlockWrite>,
}

/// What images say, where the beginning of history was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    NotAsked,
    /// It was answered from a checkpoint; what was before that is not known.
    Has,
    /// The block had content, and who wrote it is not known.
    HasContent,
    /// A checkpoint says that the block had no content.
    HasNot,
}

impl LogReader {
    /// Who wrote a block, up to a moment: the last write that is part of the disk's state at it first, then those before.
    ///
    /// Reads heads only, from the end of the log down to the last answer that is taken; of a part in format 1 everything. Where no write
    /// of the block is kept, a checkpoint may have the last one before. Of the options the block size says nothing. `keys` must be those of
    /// the reader's vdisk.
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
            keys: keys.clone(),
            accept_pruned_base: options.accept_pruned_base,
            span: None,
            any: false,
            image: Image::NotAsked,
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
    /// it ends with [`MomentError::BasePruned`] instead: there may have been older writes. Where none is kept and a checkpoint says that
    /// the block had no content, it ends with none.
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
                self.any = true;
                return Ok(Some(write));
            }
            let Some(passing) = self.writes.next().await? else {
                let write = self.write_in_image().await?;
                if write.is_none() {
                    self.end()?;
                }
                return Ok(write);
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

    /// Whether a checkpoint, and no write that is kept, says that the block had no content.
    pub fn is_empty_in_checkpoint(&self) -> bool {
        self.image == Image::HasNot
    }

    /// How far it has read.
    pub fn progress(&self) -> WalkProgress {
        self.writes.progress()
    }

    /// The last write of it that an image has, where none is kept. Once.
    async fn write_in_image(&mut self) -> Result<Option<BlockWrite>, DiskStateError> {
        let reader = self.writes.reader();
        if reader.extent().first.0 <= 1 || self.any || self.image != Image::NotAsked {
            return Ok(None);
        }
        let wanted = BTreeSet::from([self.index]);
        let Some(image) = reader.blocks_in_image(&self.keys, self.search.moment(), &wanted).await? else {
            return Ok(None);
        };
        let in_part = image.blocks.get(&self.index);
        // A delete in an image clears what the one below it has, and is no write of anybody.
        let Some(in_part) = in_part.filter(|in_part| in_part.entry.operation == Operation::Set) else {
            self.image = Image::HasNot;
            return Ok(None);
        };
        // Images of single moments share what is equal with later ones: a block may be there as a later write of the same content.
        if !image.checkpoint.is_base(reader.extent().first) {
            self.image = Image::HasContent;
            return Ok(None);
        }
        self.image = Image::Has;
        Ok(Some(BlockWrite::from_image(&image.checkpoint, in_part)))
    }

    fn end(&self) -> Result<(), MomentError> {
        if self.image == Image::HasNot {
            return Ok(());
        }
        let reader = self.writes.reader();
        if self.image == Image::NotAsked {
            self.search.end(reader, self.span.as_ref())?;
        }
        let first = reader.extent().first;
        if self.image == Image::HasContent || first.0 > 1 && !self.accept_pruned_base {
            return Err(MomentError::BasePruned { vdisk: reader.vdisk().clone(), first });
        }
        Ok(())
    }
}

impl BlockWrite {
    fn new(passed: &Passed, session: SessionId, at: usize, entry: &BlockEntry) -> Self {
        Self {
            place: WritePlace::new(passed, at, entry),
            checkpoint: None,
            session,
            operation: entry.operation,
            length: entry.length,
            hash_prefix: entry.hash_prefix,
        }
    }

    fn from_image(checkpoint: &Checkpoint, &InPart { number, id, at, entry }: &InPart) -> Self {
        let generation = checkpoint.record.place.position.generation;
        Self {
            place: WritePlace {
                format: StoredFormat::Two,
                aggregation: Some(number),
                id,
                block: at as u32,
                position: LogPosition { generation, sequence: entry.sequence },
                timestamp: entry.timestamp,
            },
            checkpoint: Some(checkpoint.number),
            session: SessionId::UNKNOWN,
            operation: entry.operation,
            length: entry.length,
            hash_prefix: entry.hash_prefix,
        }
    }
}
