//! Single blocks out of an aggregation, without the rest of it.
//!
//! Where a body is not compressed, the data of a block stands in a known place of it, and so in known bytes of one or a few data shards.
//! These alone are read and decrypted. What proves them is not the seal of the body, which covers all of it, but the hash in the
//! manifest, which has a seal of its own: 128 bits, of a hash that nobody finds a second preimage for.
//!
//! A body of another writer may have its data elsewhere. Then nothing is proven, and the whole aggregation has to be opened.

use std::ops::Range;

use tlog_crypto::KeyId;
use tlog_proto::{Aggregation, AggregationNumber, BlockHash, VdiskId, hash_many};

use crate::compression::Compression;
use crate::header::Header;
use crate::manifest::BlockEntry;
use crate::open::Opener;

/// What is needed to find and decrypt parts of a body that is not compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainBody {
    number: AggregationNumber,
    key_id: KeyId,
    nonce: [u8; 12],
    payload_len: u32,
    body_plain: u32,
}

/// Bytes of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadPart {
    /// Which data shard.
    pub shard: usize,
    /// Which bytes of its payload.
    pub bytes: Range<u32>,
}

/// A block of a body, by what the manifest says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyBlock {
    /// Where its data begins in the body.
    pub place: u32,
    /// Bytes of data.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

impl PlainBody {
    /// None where the body is compressed.
    pub fn of(header: &Header) -> Option<Self> {
        let body_plain = u32::try_from(header.body_plain).ok()?;
        let Header { number, key_id, payload_len, .. } = *header;
        let nonce = header.body_nonce();
        let is_plain = header.body_compression == Compression::None && payload_len > 0;
        is_plain.then_some(Self { number, key_id, nonce, payload_len, body_plain })
    }

    /// Bytes of the body.
    #[allow(clippy::len_without_is_empty)] // no body is empty
    pub fn len(&self) -> u64 {
        self.body_plain.into()
    }

    /// Where the data of each block begins in a body of these blocks of a vdisk.
    pub fn places(vdisk: &VdiskId, entries: &[BlockEntry]) -> Vec<u32> {
        let lengths: Vec<u32> = entries.iter().map(|entry| entry.length).collect();
        let places = Aggregation::data_places(vdisk, &lengths).into_iter();
        // No body is that long: what would be beyond it is found nowhere.
        places.map(|place| u32::try_from(place).unwrap_or(u32::MAX)).collect()
    }

    /// The bytes of payloads that have the data of a block, in order; none where it would lie beyond the body.
    pub fn parts(&self, block: &BodyBlock) -> Option<Vec<PayloadPart>> {
        let end = block.place.checked_add(block.length).filter(|end| *end <= self.body_plain)?;
        let mut parts = Vec::with_capacity(2);
        let mut at = block.place;
        while at < end {
            let (shard, from) = (at / self.payload_len, at % self.payload_len);
            let length = (end - at).min(self.payload_len - from);
            parts.push(PayloadPart { shard: shard as usize, bytes: from..from + length });
            at += length;
        }
        Some(parts)
    }
}

impl Opener {
    /// Decrypts the data of blocks where it is, each as it stands in the payloads. Answers their hashes where all of them are what the manifest
    /// says; else none of them counts: the key is not there, a shard is damaged, or the body has them elsewhere.
    pub fn open_parts(
        &self,
        body: &PlainBody,
        blocks: &mut [(BodyBlock, Vec<u8>)],
    ) -> Option<Vec<BlockHash>> {
        let key = self.keys().opening_key(body.key_id, body.number).ok()?;
        for (block, data) in blocks.iter_mut() {
            if data.len() != block.length as usize {
                return None;
            }
            key.decrypt_part(data, body.nonce, block.place.into()).ok()?;
        }
        let hashes = hash_many(blocks.iter().map(|(_, data)| &data[..]));
        let is_it = |((block, _), hash): (&(BodyBlock, _), &BlockHash)| {
            BlockEntry::prefix_of(hash) == block.hash_prefix
        };
        let proven = blocks.iter().zip(&hashes).all(is_it);
        if !proven {
            return None;
        }
        self.keys().keep(key);
        Some(hashes)
    }
}
