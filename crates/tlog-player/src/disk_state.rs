//! A disk at a moment: which write of each block counts, and where its data is.

use std::collections::BTreeMap;

use tlog_codec::{BlockEntry, PlainBody};
use tlog_proto::{AggregationId, AggregationNumber, BlockHash, BlockIndex, Timestamp, VdiskId, hash_many};

use crate::format1::StoredFormat;
use crate::history::HistoryError;
use crate::moment::{MomentError, MomentReached};
use crate::records::RecordsError;

/// What a person may have to say before a disk can be put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Where it is uncertain whether the newest writes were acknowledged, go without them.
    pub accept_uncertain_end: bool,
    /// Where the beginning of history was removed, take blocks that were not written since as zeros. Right only where
    /// everything was written again after it.
    pub accept_pruned_base: bool,
    /// Makes the disk from all of history although there is a checkpoint, as long as all of history is there.
    pub ignore_checkpoints: bool,
    /// Bytes of a block, where they are known from elsewhere. Else the longest block of the log counts.
    pub block_size: Option<u32>,
}

/// Where the data of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// In which format that aggregation is stored.
    pub format: StoredFormat,
    /// The aggregation that has it; in format 1 counted from the oldest.
    pub aggregation: AggregationNumber,
    /// Which of the aggregation's blocks it is, from 0.
    pub position: u32,
    /// Where its data begins in the aggregation's body, as far as that is not compressed.
    pub place_in_body: u32,
    /// Bytes of data.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

/// A disk at a moment: which write of each block counts, without the data.
#[derive(Clone, Debug)]
pub struct DiskState {
    pub(crate) vdisk: VdiskId,
    pub(crate) reached: Option<MomentReached>,
    pub(crate) block_size: u32,
    /// By rising index. Blocks that were deleted or never written are not here; they read as zeros.
    pub(crate) blocks: Vec<(BlockIndex, BlockPlace)>,
    /// The aggregations that have data of `blocks`.
    pub(crate) sources: Sources,
}

/// By format and number, which is the log's order.
pub(crate) type Sources = BTreeMap<(StoredFormat, AggregationNumber), Source>;

/// An aggregation that is needed to restore a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) id: AggregationId,
    /// Bytes of memory that reading it takes, about.
    pub(crate) cost: u64,
    pub(crate) newest_timestamp: Timestamp,
    /// Its body, where blocks can be read out of it alone.
    pub(crate) plain: Option<PlainBody>,
    /// It is part of a checkpoint.
    pub(crate) is_checkpoint: bool,
}

/// The disk at a moment cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DiskStateError {
    /// The log has no such moment.
    #[error(transparent)]
    Moment(#[from] MomentError),
    /// History cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// What the log says about itself cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A manifest does not open: the key is not there, or is not the right one.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Manifest {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
    /// A checkpoint does not have what its record says.
    #[error(
        "vdisk {vdisk}: the checkpoint that aggregation {number} records is not what was stored: {what}; run tlog verify"
    )]
    Checkpoint {
        /// The vdisk.
        vdisk: VdiskId,
        /// Number of its record.
        number: AggregationNumber,
        /// What is wrong.
        what: &'static str,
    },
    /// The longest block at the moment is shorter than later ones, and it is not only one short block at the end of the disk.
    #[error(
        "vdisk {vdisk}: blocks have {then} bytes at that moment and {now} later, so where they belong is not clear; say the block size"
    )]
    BlockSizeUnclear {
        /// The vdisk.
        vdisk: VdiskId,
        /// Longest block up to the moment.
        then: u32,
        /// Longest block of the whole log.
        now: u32,
    },
    /// A block is longer than the block size that was given.
    #[error("vdisk {vdisk}: block {index} has {length} bytes, more than the block size of {block_size}")]
    BlockTooLong {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which block.
        index: BlockIndex,
        /// Its length.
        length: u32,
        /// The block size given.
        block_size: u32,
    },
}
impl DiskState {
    /// A disk that nothing was written to.
    pub fn empty(vdisk: VdiskId, block_size: u32) -> Self {
        Self { vdisk, reached: None, block_size, blocks: Vec::new(), sources: BTreeMap::new() }
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// Where in the log the moment is; none where the log is empty.
    pub fn reached(&self) -> Option<&MomentReached> {
        self.reached.as_ref()
    }

    /// Bytes of a block; 0 where nothing was ever written and no size was given.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many blocks have content.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes up to the end of the highest block that has content; none where that does not fit 64 bits. A disk may be longer,
    /// with zeros at its end: the log does not know.
    pub fn disk_len(&self) -> Option<u64> {
        match self.blocks.last() {
            None => Some(0),
            Some((index, place)) => index.offset(self.block_size)?.checked_add(u64::from(place.length)),
        }
    }

    /// Bytes of content.
    pub fn content_bytes(&self) -> u64 {
        self.blocks.iter().map(|(_, place)| u64::from(place.length)).sum()
    }

    /// The blocks that have content, by rising index.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (BlockIndex, &BlockPlace)> {
        self.blocks.iter().map(|(index, place)| (*index, place))
    }

    /// Where the data of a block is; none where it has no content and reads as zeros.
    pub fn get(&self, index: BlockIndex) -> Option<&BlockPlace> {
        let at = self.blocks.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        self.blocks.get(at).map(|(_, place)| place)
    }

    /// The blocks that have content, from this index on, by rising index: for finding what an image does not have any more.
    pub fn blocks_from(&self, index: BlockIndex) -> impl Iterator<Item = (BlockIndex, &BlockPlace)> {
        let at = self.blocks.partition_point(|(other, _)| *other < index);
        self.blocks.iter().skip(at).map(|(index, place)| (*index, place))
    }

    /// The blocks of this disk that another one has not, or has otherwise, as a disk state of its own; and those that only the other
    /// one has. Compares lengths and 128 bits of the hashes.
    pub fn apart_from(&self, other: &DiskState) -> (DiskState, Vec<BlockIndex>) {
        let same = |a: &BlockPlace, b: &BlockPlace| (a.length, a.hash_prefix) == (b.length, b.hash_prefix);
        let differs = |(index, place): &&(BlockIndex, BlockPlace)| {
            other.get(*index).is_none_or(|theirs| !same(place, theirs))
        };
        let blocks: Vec<(BlockIndex, BlockPlace)> = self.blocks.iter().filter(differs).copied().collect();
        let gone = other.blocks.iter().map(|(index, _)| *index).filter(|index| self.get(*index).is_none());
        let gone = gone.collect();
        (DiskState { blocks, ..self.clone() }, gone)
    }

    /// Whether a block of an image differs from the disk. Compares 128 bits of the hash, or with zeros where the block has no
    /// content; a short block is followed by zeros.
    pub fn differs(&self, index: BlockIndex, data: &[u8]) -> bool {
        self.differ([(index, data)]).first().copied().unwrap_or(true)
    }

    /// The same for many blocks, in order: faster, as they are hashed together.
    pub fn differ<'a>(&self, blocks: impl IntoIterator<Item = (BlockIndex, &'a [u8])>) -> Vec<bool> {
        let mut differs = Vec::new();
        let mut to_hash: Vec<(usize, &'a [u8], [u8; 16])> = Vec::new();
        for (at, (index, data)) in blocks.into_iter().enumerate() {
            let Some(place) = self.get(index) else {
                differs.push(!is_zero(data));
                continue;
            };
            differs.push(true); // unless its hash says otherwise
            if let Some((data, rest)) = data.split_at_checked(place.length as usize)
                && is_zero(rest)
            {
                to_hash.push((at, data, place.hash_prefix));
            }
        }
        let hashes: Vec<BlockHash> = hash_many(to_hash.iter().map(|(_, data, _)| *data));
        for ((at, _, expected), hash) in to_hash.iter().zip(&hashes) {
            if let Some(differs) = differs.get_mut(*at) {
                *differs = BlockEntry::prefix_of(hash) != *expected;
            }
        }
        differs
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
