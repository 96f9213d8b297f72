//! The manifest: what each block of an aggregation did, without its data.
//!
//! ```text
//! for each block, in order, 45 bytes, little endian:
//!   u64 sequence | u64 index | u8 operation | u64 timestamp | u32 length | first 16 bytes of the hash
//! ```

use bytes::BytesMut;
use tlog_crypto::TAG_SIZE;
use tlog_proto::{Block, BlockHash, BlockIndex, Operation, Sequence, Timestamp};

/// Bytes of one entry.
pub(crate) const ENTRY_LEN: usize = 45;

/// What one block did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// The client's number of the write.
    pub sequence: Sequence,
    /// Which block of the vdisk.
    pub index: BlockIndex,
    /// Set or delete.
    pub operation: Operation,
    /// The client's time.
    pub timestamp: Timestamp,
    /// Bytes of data.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

impl BlockEntry {
    /// The first 16 bytes of a block's hash.
    pub fn prefix_of(hash: &BlockHash) -> [u8; 16] {
        hash.0.first_chunk().copied().unwrap_or_default()
    }
}

impl From<&Block> for BlockEntry {
    fn from(block: &Block) -> Self {
        Self {
            sequence: block.sequence,
            index: block.index,
            operation: block.operation,
            timestamp: block.timestamp,
            length: u32::try_from(block.data.len()).unwrap_or(u32::MAX),
            hash_prefix: Self::prefix_of(&block.hash),
        }
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a whole number of entries.
    #[error("the manifest is not a whole number of entries")]
    Length,
    /// An operation or index that cannot be.
    #[error("entry {0} of the manifest has an operation or index that cannot be")]
    Entry(usize),
}

pub(crate) fn encode(blocks: &[Block]) -> BytesMut {
    let mut out = BytesMut::with_capacity(blocks.len() * ENTRY_LEN + TAG_SIZE);
    for entry in blocks.iter().map(BlockEntry::from) {
        out.extend_from_slice(&entry.sequence.0.to_le_bytes());
        out.extend_from_slice(&entry.index.get().to_le_bytes());
        out.extend_from_slice(&[entry.operation.number()]);
        out.extend_from_slice(&entry.timestamp.0.to_le_bytes());
        out.extend_from_slice(&entry.length.to_le_bytes());
        out.extend_from_slice(&entry.hash_prefix);
    }
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<BlockEntry>, ManifestError> {
    let (entries, rest) = bytes.as_chunks::<ENTRY_LEN>();
    if !rest.is_empty() {
        return Err(ManifestError::Length);
    }
    entries
        .iter()
        .enumerate()
        .map(|(at, entry)| decode_entry(entry).ok_or(ManifestError::Entry(at)))
        .collect()
}

fn decode_entry(entry: &[u8; ENTRY_LEN]) -> Option<BlockEntry> {
    let (sequence, rest) = entry.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    let (&operation, rest) = rest.split_first()?;
    let (timestamp, rest) = rest.split_first_chunk()?;
    let (length, hash) = rest.split_first_chunk()?;
    Some(BlockEntry {
        sequence: Sequence(u64::from_le_bytes(*sequence)),
        index: BlockIndex::new(u64::from_le_bytes(*index))?,
        operation: Operation::from_number(operation)?,
        timestamp: Timestamp(u64::from_le_bytes(*timestamp)),
        length: u32::from_le_bytes(*length),
        hash_prefix: *hash.first_chunk()?,
    })
}
