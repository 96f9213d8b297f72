//! One write on a vdisk.

use bytes::Bytes;

use crate::{BlockHash, BlockIndex, Sequence, Timestamp};

/// What a block does to its place on the vdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The block now has this content.
    Set,
    /// The block has no content any more; it reads as zeros.
    Delete,
}

impl Operation {
    /// The number on the wire: 1 set, 2 delete.
    pub fn number(self) -> u8 {
        match self {
            Operation::Set => 1,
            Operation::Delete => 2,
        }
    }

    /// None for any other number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Operation::Set),
            2 => Some(Operation::Delete),
            _ => None,
        }
    }
}

/// One write, whole: the hash is that of the data, a set has data and a delete has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The client's number of this write.
    pub sequence: Sequence,
    /// Which block of the vdisk.
    pub index: BlockIndex,
    /// Set or delete.
    pub operation: Operation,
    /// When, as the client's clock had it.
    pub timestamp: Timestamp,
    /// BLAKE2b-256 of `data`.
    pub hash: BlockHash,
    /// The content; empty for a delete.
    pub data: Bytes,
}

impl Block {
    /// A write of `data`. Computes the hash.
    pub fn set(sequence: Sequence, index: BlockIndex, timestamp: Timestamp, data: Bytes) -> Self {
        Self { sequence, index, operation: Operation::Set, timestamp, hash: BlockHash::of(&data), data }
    }

    /// A deletion: from now on the block reads as zeros.
    pub fn delete(sequence: Sequence, index: BlockIndex, timestamp: Timestamp) -> Self {
        let data = Bytes::new();
        Self { sequence, index, operation: Operation::Delete, timestamp, hash: BlockHash::of(&data), data }
    }

    /// Byte offset on a vdisk with blocks of `block_size` bytes; none where it does not fit 64 bits.
    ///
    /// The original's documentation shows an older block with `offset` and `size` in place of `index`.
    pub fn offset(&self, block_size: u32) -> Option<u64> {
        self.index.offset(block_size)
    }

    /// Bytes of data.
    pub fn size(&self) -> usize {
        self.data.len()
    }
}

/// A block as a peer sent it, of which nothing has been checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedBlock {
    /// The client's number of this write.
    pub sequence: Sequence,
    /// Index as it stands on the wire.
    pub index: i64,
    /// Operation as it stands on the wire.
    pub operation: u8,
    /// When, as the client's clock had it.
    pub timestamp: Timestamp,
    /// What the peer says the hash is; none where it did not send 32 bytes.
    pub hash: Option<BlockHash>,
    /// The content.
    pub data: Bytes,
}

/// Why a block is refused. The connection lives on, the block is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// The data is not what was hashed.
    #[error("the hash of the data is {computed}, the block says {claimed}")]
    WrongHash {
        /// What the block says.
        claimed: BlockHash,
        /// What its data has.
        computed: BlockHash,
    },
    /// No hash of 32 bytes came with the block.
    #[error("the block has no 32-byte hash")]
    NoHash,
    /// Neither set nor delete.
    #[error("operation {0} is neither 1 (set) nor 2 (delete)")]
    UnknownOperation(u8),
    /// No vdisk has such a block.
    #[error("block index {0} is negative")]
    NegativeIndex(i64),
    /// A set of nothing.
    #[error("a set without data")]
    SetWithoutData,
    /// A delete that carries data.
    #[error("a delete with {0} bytes of data")]
    DeleteWithData(usize),
}

impl BlockFault {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            BlockFault::WrongHash { .. } => "wrong_hash",
            BlockFault::NoHash => "no_hash",
            BlockFault::UnknownOperation(_) => "unknown_operation",
            BlockFault::NegativeIndex(_) => "negative_index",
            BlockFault::SetWithoutData => "set_without_data",
            BlockFault::DeleteWithData(_) => "delete_with_data",
        }
    }
}

impl UnverifiedBlock {
    /// Checks everything, the hash included.
    pub fn verify(self) -> Result<Block, BlockFault> {
        let computed = BlockHash::of(&self.data);
        self.verify_with(computed)
    }

    /// The same, where the hash of the data is known already, as from [`crate::hash_many`].
    pub fn verify_with(self, computed: BlockHash) -> Result<Block, BlockFault> {
        let operation =
            Operation::from_number(self.operation).ok_or(BlockFault::UnknownOperation(self.operation))?;
        let index = BlockIndex::from_wire(self.index).ok_or(BlockFault::NegativeIndex(self.index))?;
        match operation {
            Operation::Set if self.data.is_empty() => return Err(BlockFault::SetWithoutData),
            Operation::Delete if !self.data.is_empty() => {
                return Err(BlockFault::DeleteWithData(self.data.len()));
            }
            _ => {}
        }
        let claimed = self.hash.ok_or(BlockFault::NoHash)?;
        if claimed != computed {
            return Err(BlockFault::WrongHash { claimed, computed });
        }
        let Self { sequence, timestamp, data, .. } = self;
        Ok(Block { sequence, index, operation, timestamp, hash: computed, data })
    }
}

impl From<Block> for UnverifiedBlock {
    fn from(block: Block) -> Self {
        Self {
            sequence: block.sequence,
            index: block.index.to_wire(),
            operation: block.operation.number(),
            timestamp: block.timestamp,
            hash: Some(block.hash),
            data: block.data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_in_which_a_block_can_be_wrong_is_named() {
        let good = UnverifiedBlock::from(Block::set(
            Sequence(1),
            BlockIndex::new(2).unwrap(),
            Timestamp(3),
            Bytes::from_static(b"abc"),
        ));
        let check = |change: &dyn Fn(&mut UnverifiedBlock), kind: &str| {
            let mut block = good.clone();
            change(&mut block);
            assert_eq!(block.verify().unwrap_err().kind(), kind);
        };
        check(&|b| b.data = Bytes::from_static(b"abd"), "wrong_hash");
        check(&|b| b.hash = None, "no_hash");
        check(&|b| b.operation = 3, "unknown_operation");
        check(&|b| b.operation = 0, "unknown_operation");
        check(&|b| b.index = -1, "negative_index");
        check(&|b| b.data = Bytes::new(), "set_without_data");
        check(&|b| b.operation = 2, "delete_with_data");
        assert_eq!(good.clone().verify().unwrap().offset(4096), Some(8192));
    }
}
