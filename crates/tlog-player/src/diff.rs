//! Which blocks differ between two moments of a disk: from manifests alone, and from no more of them than it takes.
//!
//! ```text
//!   newest --------------------------------------------------------------------------------> oldest
//!     nothing yet   | later moment       | earlier moment
//!                   | first met of each  | first met of each block that was written in between: as it is at the earlier one.
//!                   | block: as it is at | Ends as soon as that is known of all of them.
//!                   | the later one      |
//! ```
//!
//! Blocks that were not written in between cannot differ, so nothing is kept of them: memory is that of the blocks which were.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use tlog_codec::{BlockEntry, VdiskKeys};
use tlog_proto::{BlockHash, BlockIndex, Operation};

use crate::checkpoint::FromImage;
use crate::disk_state::{BlockPlace, DiskStateError, ReadOptions};
use crate::moment::{Moment, MomentError, Span};
use crate::reader::LogReader;
use crate::writes::{Search, WalkProgress, WritePlace, Writes};

/// What a block holds, without the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockContent {
    /// Bytes of data; zeros follow up to the block size.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

/// A block that differs between two moments. Where it has no content, it reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedBlock {
    /// Which block.
    pub index: BlockIndex,
    /// What it holds at the moment `from`; none where it was deleted or never written.
    pub from: Option<BlockContent>,
    /// What it holds at the moment `to`; none where it was deleted or never written.
    pub to: Option<BlockContent>,
}

/// What differs between two moments of a disk. Made by [`LogReader::diff`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDiff {
    /// The last write that is part of the state at `from`; none where the log is empty.
    pub from: Option<WritePlace>,
    /// The same at `to`.
    pub to: Option<WritePlace>,
    /// The blocks that differ, by rising index.
    pub blocks: Vec<ChangedBlock>,
}

impl DiskDiff {
    /// The indexes of the blocks that differ, as runs, rising.
    pub fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
        for index in self.blocks.iter().map(|block| block.index.get()) {
            match ranges.last_mut() {
                Some(last) if last.end() + 1 == index => *last = *last.start()..=index,
                _ => ranges.push(index..=index),
            }
        }
        ranges
    }

    /// Bytes of content that the blocks that differ have at `to`: what has to be copied to go there from `from`.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().filter_map(|block| block.to).map(|content| u64::from(content.length)).sum()
    }

    /// How many of the blocks that differ have no content at `to`.
    pub fn cleared(&self) -> usize {
        self.blocks.iter().filter(|block| block.to.is_none()).count()
    }
}

impl LogReader {
    /// Which blocks differ between two moments, by the state of the disk at each; either of them may be the earlier one.
    ///
    /// A block that was written and written back does not differ, one that was deleted is one that was never written, and so is one
    /// of zeros. Content is compared by its length and 128 bits of its hash. A block that only became longer or shorter by zeros at
    /// its end counts as different.
    ///
    /// Reads heads only, down from the end of the log until everything is known; of a part in format 1 everything. Where history
    /// was removed below, what is not known then is taken from a checkpoint; where no one fits, that is an error if it could matter. A
    /// moment of which an image is all that is left is compared by the whole state of the disk, which takes memory for it. Of the options
    /// the block size says nothing. `keys` must be those of the reader's vdisk. `progress` is told after each aggregation.
    pub async fn diff(
        &self,
        keys: &VdiskKeys,
        from: Moment,
        to: Moment,
        options: &ReadOptions,
        mut progress: impl FnMut(&WalkProgress) + Send,
    ) -> Result<DiskDiff, DiskStateError> {
        self.check_moment(from, options)?;
        self.check_moment(to, options)?;
        let mut writes = Writes::new(self, keys);
        let mut comparing = Comparing::new(from, to);
        while !comparing.is_done()
            && let Some(passing) = writes.next().await?
        {
            let passed = passing.passed;
            Span::add(&mut comparing.span, &passed);
            let looking = comparing.from.may_be_in(&passed) || comparing.to.may_be_in(&passed);
            if looking || comparing.from.reached().is_some() || comparing.to.reached().is_some() {
                let entries = writes.entries(passing)?;
                let from = comparing.from.handle(&passed, &entries);
                let to = comparing.to.handle(&passed, &entries);
                comparing.gather(&entries, from, to);
            }
            progress(&writes.progress());
        }
        let first = self.extent().first;
        if first.0 > 1 && !comparing.has_both() {
            return self.diff_of_states(keys, from, to, options).await;
        }
        if !comparing.is_done() {
            comparing.from.end(self, comparing.span.as_ref())?;
            comparing.to.end(self, comparing.span.as_ref())?;
        }
        if comparing.open > 0 && first.0 > 1 {
            let earlier = if comparing.reversed { to } else { from };
            match self.blocks_in_image(keys, earlier, &comparing.open_blocks()).await? {
                Some(image) => comparing.take_image(&image),
                None if options.accept_pruned_base => {}
                None => return Err(MomentError::BasePruned { vdisk: self.vdisk().clone(), first }.into()),
            }
        }
        Ok(comparing.finish())
    }

    /// The same by all of the disk at both, which is known also where only an image of it is left.
    async fn diff_of_states(
        &self,
        keys: &VdiskKeys,
        from: Moment,
        to: Moment,
        options: &ReadOptions,
    ) -> Result<DiskDiff, DiskStateError> {
        // Where blocks are on the disk does not matter.
        let options = ReadOptions { block_size: Some(u32::MAX), ..*options };
        let from = self.disk_state(keys, from, &options).await?;
        let to = self.disk_state(keys, to, &options).await?;
        let (changed, gone) = to.apart_from(&from);
        let mut zeros = Zeros::default();
        let indexes = changed.blocks().map(|(index, _)| index).chain(gone);
        let mut blocks: Vec<ChangedBlock> = indexes
            .map(|index| ChangedBlock {
                index,
                from: from.get(index).map(BlockContent::from),
                to: to.get(index).map(BlockContent::from),
            })
            .filter(|block| zeros.differ(block.from, block.to))
            .collect();
        blocks.sort_unstable_by_key(|block| block.index);
        Ok(DiskDiff {
            from: from.reached().map(WritePlace::from),
            to: to.reached().map(WritePlace::from),
            blocks,
        })
    }
}

impl From<&BlockPlace> for BlockContent {
    fn from(&BlockPlace { length, hash_prefix, .. }: &BlockPlace) -> Self {
        Self { length, hash_prefix }
    }
}

/// A block that was written between the moments.
struct Candidate {
    later: Option<BlockContent>,
    /// None while it was not met.
    earlier: Option<Option<BlockContent>>,
}

/// The comparison while the log is walked from new to old.
struct Comparing {
    from: Search,
    to: Search,
    span: Option<Span>,
    candidates: HashMap<BlockIndex, Candidate>,
    /// How many candidates were not met before the earlier moment.
    open: usize,
    /// Whether `from` is the later moment; known where the log tells them apart.
    reversed: bool,
}

impl Comparing {
    fn new(from: Moment, to: Moment) -> Self {
        let (from, to) = (Search::new(from), Search::new(to));
        Self { from, to, span: None, candidates: HashMap::new(), open: 0, reversed: false }
    }

    fn has_both(&self) -> bool {
        self.from.reached().is_some() && self.to.reached().is_some()
    }

    fn is_done(&self) -> bool {
        self.has_both() && self.open == 0
    }

    /// The candidates of which it is not known how they were at the earlier moment.
    fn open_blocks(&self) -> BTreeSet<BlockIndex> {
        let open = self.candidates.iter().filter(|(_, candidate)| candidate.earlier.is_none());
        open.map(|(index, _)| *index).collect()
    }

    /// Takes them as they are in an image. What that does not have had no content.
    fn take_image(&mut self, image: &FromImage) {
        for (index, in_part) in &image.blocks {
            if let Some(candidate) = self.candidates.get_mut(index) {
                candidate.earlier = Some(content(&in_part.entry));
            }
        }
        self.open = 0;
    }

    /// Takes the blocks of the next older aggregation in: of them, so many are part of the state at each moment.
    fn gather(&mut self, entries: &[BlockEntry], from: usize, to: usize) {
        self.reversed |= from > to;
        let (earlier, later) = (from.min(to), from.max(to));
        for entry in entries.get(earlier..later).unwrap_or_default().iter().rev() {
            self.candidates.entry(entry.index).or_insert_with(|| {
                self.open += 1;
                Candidate { later: content(entry), earlier: None }
            });
        }
        for entry in entries.get(..earlier).unwrap_or_default().iter().rev() {
            if let Some(Candidate { earlier: earlier @ None, .. }) = self.candidates.get_mut(&entry.index) {
                *earlier = Some(content(entry));
                self.open -= 1;
            }
        }
    }

    fn finish(self) -> DiskDiff {
        let mut zeros = Zeros::default();
        let changed = self.candidates.into_iter().filter_map(|(index, candidate)| {
            // What was never met was never written.
            let (later, earlier) = (candidate.later, candidate.earlier.flatten());
            let (from, to) = if self.reversed { (later, earlier) } else { (earlier, later) };
            zeros.differ(from, to).then_some(ChangedBlock { index, from, to })
        });
        let mut blocks: Vec<ChangedBlock> = changed.collect();
        blocks.sort_unstable_by_key(|block| block.index);
        DiskDiff { from: self.from.reached().copied(), to: self.to.reached().copied(), blocks }
    }
}

fn content(entry: &BlockEntry) -> Option<BlockContent> {
    let &BlockEntry { length, hash_prefix, .. } = entry;
    (entry.operation == Operation::Set).then_some(BlockContent { length, hash_prefix })
}

/// Longest block that is looked at for being all zeros; hashing takes memory for it. A longer one counts as content.
const LONGEST_ZEROS: u32 = 16 << 20;

/// Hash prefixes of blocks of zeros, by length.
#[derive(Default)]
struct Zeros(HashMap<u32, [u8; 16]>);

impl Zeros {
    fn differ(&mut self, one: Option<BlockContent>, other: Option<BlockContent>) -> bool {
        one != other && !(self.reads_as_zeros(one) && self.reads_as_zeros(other))
    }

    fn reads_as_zeros(&mut self, content: Option<BlockContent>) -> bool {
        let Some(BlockContent { length, hash_prefix }) = content else { return true };
        let of_length = |&length: &u32| BlockEntry::prefix_of(&BlockHash::of(&vec![0; length as usize]));
        length <= LONGEST_ZEROS && *self.0.entry(length).or_insert_with_key(of_length) == hash_prefix
    }
}
