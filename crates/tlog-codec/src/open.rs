//! From shards back to blocks.

use bytes::Bytes;
use tlog_crypto::TAG_SIZE;
use tlog_proto::{Aggregation, AggregationError, Block, Sequence, VdiskId};

use crate::compression::{Compression, decompress};
use crate::erasure::{ErasureCode, ErasureError};
use crate::header::Kind;
use crate::keys::{KeyError, VdiskKeys};
use crate::manifest::{self, BlockEntry, ManifestError};
use crate::record::{Record, RecordError};
use crate::shard::{ShardFault, ShardHead};

/// Opens the aggregations of one vdisk.
#[derive(Clone, Debug)]
pub struct Opener {
    keys: VdiskKeys,
}

/// Why an aggregation cannot be opened. Never is anything answered that was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The head part is not one.
    #[error(transparent)]
    Shard(#[from] ShardFault),
    /// Its key is not there.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not enough shards, or shards that do not fit together.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// The key with this id did not seal this: forged, or damaged before it was hashed.
    #[error("the {part} does not open under its key: it is not what was sealed")]
    Forged {
        /// Manifest or body.
        part: &'static str,
    },
    /// Sealed under the right key, but not compressed as the header says.
    #[error("the {part} does not decompress to what the header says")]
    Decompress {
        /// Manifest or body.
        part: &'static str,
    },
    /// The manifest cannot be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Something else was asked for than what it has.
    #[error("it has {} in it", .0.name())]
    OtherKind(Kind),
    /// The body is not an aggregation of whole blocks.
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
    /// Header, manifest and body do not say the same.
    #[error("header, manifest and body do not agree about the {0}")]
    Disagree(&'static str),
}

impl Opener {
    /// Opens with these keys.
    pub fn new(keys: VdiskKeys) -> Self {
        Self { keys }
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        self.keys.vdisk()
    }

    pub(crate) fn keys(&self) -> &VdiskKeys {
        &self.keys
    }

    /// What each block of the aggregation did, from one head part; of a part of a checkpoint, what it once did. A record has none.
    pub fn manifest(&self, head: &ShardHead) -> Result<Vec<BlockEntry>, OpenError> {
        let header = &head.header;
        if header.kind == Kind::Record {
            return Err(OpenError::OtherKind(header.kind));
        }
        let entries = manifest::decode(&self.unseal_manifest(head)?)?;
        if entries.len() != header.block_count as usize {
            return Err(OpenError::Disagree("number of blocks"));
        }
        if entries.iter().any(|entry| entry.length > header.block_size) {
            return Err(OpenError::Disagree("block size"));
        }
        if header.kind == Kind::Checkpoint {
            let rising = entries.is_sorted_by(|a, b| a.index < b.index);
            return if rising { Ok(entries) } else { Err(OpenError::Disagree("order of blocks")) };
        }
        let sequences = (header.first_sequence.0..=header.last_sequence.0).map(Sequence);
        if !entries.iter().map(|entry| entry.sequence).eq(sequences) {
            return Err(OpenError::Disagree("sequences"));
        }
        let timestamps = || entries.iter().map(|entry| entry.timestamp);
        let range = (timestamps().min(), timestamps().max());
        if range != (Some(header.oldest_timestamp), Some(header.newest_timestamp)) {
            return Err(OpenError::Disagree("timestamps"));
        }
        Ok(entries)
    }

    /// What a record says, from one head part.
    pub fn record(&self, head: &ShardHead) -> Result<Record, OpenError> {
        match head.header.kind {
            Kind::Record => Ok(Record::decode(&self.unseal_manifest(head)?)?),
            other => Err(OpenError::OtherKind(other)),
        }
    }

    fn unseal_manifest(&self, head: &ShardHead) -> Result<Vec<u8>, OpenError> {
        let header = &head.header;
        let sealed = Sealed {
            part: "manifest",
            nonce: header.manifest_nonce(),
            bytes: head.sealed_manifest().to_vec(),
        };
        self.unseal(head, sealed, header.manifest_compression, header.manifest_plain as usize)
    }

    /// The blocks, from the payloads that are there, by shard index. Every block's hash is checked, and that manifest and body say the
    /// same. The blocks share one piece of memory: whoever keeps one of them keeps all.
    ///
    /// The payloads need not have been verified against the hashes in the head: from damaged ones nothing is answered but
    /// [`OpenError::Forged`], as the seal of the body covers every bit of it. The hashes tell which of them is damaged. Only data shards
    /// are looked at where all of them are there.
    pub fn blocks(&self, head: &ShardHead, payloads: &[Option<Bytes>]) -> Result<Vec<Block>, OpenError> {
        self.open(head, payloads, |_| true)
    }

    /// The same for the blocks at these positions, counted from 0; in the order asked for, none where the aggregation has no such position.
    /// Hashes of others are not computed.
    pub fn blocks_at(
        &self,
        head: &ShardHead,
        payloads: &[Option<Bytes>],
        positions: &[u32],
    ) -> Result<Vec<Option<Block>>, OpenError> {
        let mut wanted = vec![false; head.header.block_count as usize];
        for &position in positions {
            if let Some(wanted) = wanted.get_mut(position as usize) {
                *wanted = true;
            }
        }
        let blocks = self.open(head, payloads, |at| wanted.get(at) == Some(&true))?;
        Ok(positions.iter().map(|&position| blocks.get(position as usize).cloned()).collect())
    }

    /// All blocks; the hashes of those that are not `hashed` stand in the manifest and were not computed.
    fn open(
        &self,
        head: &ShardHead,
        payloads: &[Option<Bytes>],
        is_hashed: impl Fn(usize) -> bool,
    ) -> Result<Vec<Block>, OpenError> {
        let header = &head.header;
        header.check_payloads(payloads)?;
        let mut body = ErasureCode::new(header.redundancy).join(payloads)?;
        body.truncate(header.body_sealed as usize);
        let sealed = Sealed { part: "body", nonce: header.body_nonce(), bytes: body.into() };
        let plain = self.unseal(head, sealed, header.body_compression, header.body_plain as usize)?;
        if header.kind == Kind::Record {
            // What there is of its body is proven; what it says stands in the manifest.
            return self.record(head).map(|_| Vec::new());
        }
        let Aggregation { vdisk_id, blocks, .. } = Aggregation::decode_hashing(&plain.into(), is_hashed)?;
        if vdisk_id != *self.vdisk() {
            return Err(OpenError::Disagree("vdisk"));
        }
        if !blocks.iter().map(BlockEntry::from).eq(self.manifest(head)?) {
            return Err(OpenError::Disagree("blocks"));
        }
        Ok(blocks)
    }

    fn unseal(
        &self,
        head: &ShardHead,
        sealed: Sealed,
        compression: Compression,
        plain_len: usize,
    ) -> Result<Vec<u8>, OpenError> {
        let Sealed { part, nonce, mut bytes } = sealed;
        let forged = || OpenError::Forged { part };
        let tag_at = bytes.len().checked_sub(TAG_SIZE).ok_or_else(forged)?;
        let tag: [u8; TAG_SIZE] = bytes.split_off(tag_at).try_into().map_err(|_| forged())?;
        let key = self.keys.opening_key(head.header.key_id, head.header.number)?;
        let bound = head.header.associated_data(self.vdisk().as_str().as_bytes());
        key.open_in_place(&mut bytes, nonce, &bound, &tag).map_err(|_| forged())?;
        self.keys.keep(key);
        decompress(compression, bytes, plain_len).ok_or(OpenError::Decompress { part })
    }
}

struct Sealed {
    part: &'static str,
    nonce: [u8; 12],
    bytes: Vec<u8>,
}
