//! From blocks to shards.
//!
//! ```text
//! blocks -> manifest entries -> compressed -> sealed ----------------> sealed manifest
//!        -> TlogAggregation  -> compressed -> sealed -> k + m payloads -> n payload hashes
//! id = BLAKE2b-256(u16 length of vdisk id | vdisk id | header | sealed manifest | payload hashes)
//! ```
//!
//! [`Sealer::seal`] does all of this but the id and needs nothing of the aggregation before, so several can be sealed at
//! once; [`Sealed::link`] adds `prev` and the id, a hash of a few hundred bytes to a few kilobytes.

use bytes::{BufMut, Bytes, BytesMut};
use tlog_crypto::{blake2b_256, blake2b_256_many};
use tlog_proto::{
    Aggregation, AggregationId, AggregationNumber, Block, Epoch, Generation, SessionId, Timestamp, VdiskId,
};

use crate::compression::compress;
use crate::erasure::{ErasureCode, Redundancy};
use crate::header::Header;
use crate::keys::{KeyError, VdiskKeys};
use crate::manifest::{self, BlockEntry};
use crate::shard::{PREFIX_LEN, Prefix};
use crate::{MAX_BODY_BYTES, OpenError, Opener, ShardHead};

/// Bytes of an AES-GCM tag.
const TAG_LEN: usize = 16;

/// What is to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct SealRequest<'a> {
    /// Number of the aggregation.
    pub number: AggregationNumber,
    /// Generation of all blocks.
    pub generation: Generation,
    /// Client instance that sent all blocks.
    pub session: SessionId,
    /// The server's time.
    pub sealed_at: Timestamp,
    /// Longest block of the log before this aggregation.
    pub block_size: u32,
    /// Random, never used before. One bit of it is overwritten.
    pub nonce: [u8; 12],
    /// The blocks: at least one, sequences rising by one.
    pub blocks: &'a [Block],
}

/// Why blocks cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There are none.
    #[error("an aggregation needs at least one block")]
    NoBlocks,
    /// The sequences have a hole or step back.
    #[error("the sequences of an aggregation must rise by one")]
    Sequences,
    /// More than [`MAX_BODY_BYTES`].
    #[error("an aggregation of {0} bytes is larger than the format allows")]
    TooLarge(u64),
    /// The active key is not there. A keyring always has one, so this does not happen with one made by tlog-crypto.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The data key has sealed as much as it may.
    #[error(transparent)]
    Exhausted(#[from] tlog_crypto::SealError),
}

/// Makes the aggregations of one vdisk.
#[derive(Clone, Debug)]
pub struct Sealer {
    keys: VdiskKeys,
    code: ErasureCode,
}

impl Sealer {
    /// Seals under the keyring's active key and splits as told.
    pub fn new(keys: VdiskKeys, redundancy: Redundancy) -> Self {
        Self {
            keys,
            code: ErasureCode::new(redundancy),
        }
    }

    /// Compresses, seals, splits and hashes. Takes about 0.1 ms for 25 blocks of 4 KiB.
    pub fn seal(&self, request: SealRequest<'_>) -> Result<Sealed, SealError> {
        let SealRequest {
            number,
            generation,
            session,
            sealed_at,
            block_size,
            nonce,
            blocks,
        } = request;
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Err(SealError::NoBlocks);
        };
        if blocks
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.sequence.next() != b.sequence))
        {
            return Err(SealError::Sequences);
        }
        let vdisk = self.keys.vdisk();
        let manifest_plain = manifest::encode(blocks);
        let (manifest_compression, mut manifest) = compress(&manifest_plain, TAG_LEN);
        let body_plain = body_message(vdisk, sealed_at, blocks);
        let (body_compression, mut body) = compress(&body_plain, TAG_LEN + 256);
        if body_plain.len() as u64 > MAX_BODY_BYTES {
            return Err(SealError::TooLarge(body_plain.len() as u64));
        }

        let key_id = self.keys.active_id();
        let body_sealed = body.len() + TAG_LEN;
        let too_large = |_| SealError::TooLarge(body_sealed as u64);
        let mut nonce = nonce;
        nonce[0] &= !1;
        let header = Header {
            redundancy: self.code.redundancy(),
            manifest_compression,
            body_compression,
            block_count: u32::try_from(blocks.len()).map_err(too_large)?,
            key_id,
            number,
            generation,
            session,
            first_sequence: first.sequence,
            last_sequence: last.sequence,
            oldest_timestamp: blocks.iter().map(|b| b.timestamp).min().unwrap_or_default(),
            newest_timestamp: blocks.iter().map(|b| b.timestamp).max().unwrap_or_default(),
            sealed_at,
            block_size: blocks
                .iter()
                .map(|b| BlockEntry::from(b).length)
                .fold(block_size, u32::max),
            manifest_plain: u32::try_from(manifest_plain.len()).map_err(too_large)?,
            manifest_sealed: u32::try_from(manifest.len() + TAG_LEN).map_err(too_large)?,
            payload_len: u32::try_from(self.code.shard_len(body_sealed)).map_err(too_large)?,
            body_plain: body_plain.len() as u64,
            body_sealed: body_sealed as u64,
            nonce,
            prev: AggregationId::BEFORE_FIRST, // until it is linked; not bound to what is sealed
        };

        let key = self.keys.data_key(key_id, number)?;
        let bound = header.associated_data(vdisk.as_str().as_bytes());
        let tag = key.seal_in_place(&mut manifest, header.manifest_nonce(), &bound)?;
        manifest.extend_from_slice(&tag);
        let tag = key.seal_in_place(&mut body, header.body_nonce(), &bound)?;
        body.extend_from_slice(&tag);

        let payloads = self.code.split(BytesMut::from(Bytes::from(body)));
        Ok(Sealed {
            vdisk: vdisk.clone(),
            header,
            manifest: manifest.into(),
            hashes: hash_payloads(&payloads),
            payloads,
        })
    }
}

/// The blocks as the stored message, as format 1 has it but for `prev`, which is empty.
fn body_message(vdisk: &VdiskId, timestamp: Timestamp, blocks: &[Block]) -> BytesMut {
    let mut message = BytesMut::new();
    let aggregation = Aggregation {
        name: Aggregation::NAME.to_owned(),
        timestamp,
        vdisk_id: vdisk.clone(),
        blocks: blocks.to_vec(),
        prev: Bytes::new(),
    };
    aggregation.encode_into(&mut message);
    message
}

pub(crate) fn hash_payloads(payloads: &[Bytes]) -> Vec<[u8; 32]> {
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
    blake2b_256_many(&payloads)
}

/// An aggregation that is complete but for its place in the chain.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub(crate) vdisk: VdiskId,
    pub(crate) header: Header,
    pub(crate) manifest: Bytes,
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) payloads: Vec<Bytes>,
}

impl Sealed {
    /// Puts it behind the aggregation `prev`, which gives it its id.
    pub fn link(self, prev: AggregationId) -> EncodedAggregation {
        let header = Header { prev, ..self.header };
        let mut common = BytesMut::with_capacity(Header::LEN + self.hashes.len() * 32 + self.manifest.len());
        common.put_slice(&header.encode());
        common.put_slice(self.hashes.as_flattened());
        common.put_slice(&self.manifest);
        let id = aggregation_id(&self.vdisk, &header.encode(), &self.manifest, &self.hashes);
        EncodedAggregation {
            id,
            header,
            common: common.freeze(),
            payloads: self.payloads,
        }
    }
}

/// The id of format 2; everything that it covers can be checked without a key.
pub(crate) fn aggregation_id(
    vdisk: &VdiskId,
    header: &[u8; Header::LEN],
    sealed_manifest: &[u8],
    payload_hashes: &[[u8; 32]],
) -> AggregationId {
    let vdisk = vdisk.as_str().as_bytes();
    let length = (vdisk.len() as u16).to_le_bytes();
    AggregationId(blake2b_256(&[
        &length,
        vdisk,
        header,
        sealed_manifest,
        payload_hashes.as_flattened(),
    ]))
}

/// An aggregation with its id, ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedAggregation {
    /// Its name, and through it that of everything before.
    pub id: AggregationId,
    /// What is said about it in the clear.
    pub header: Header,
    /// Header, payload hashes and sealed manifest: what all shards share.
    pub(crate) common: Bytes,
    /// Shard i's share of the body.
    pub(crate) payloads: Vec<Bytes>,
}

/// One shard as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedShard {
    /// Prefix, header, payload hashes and sealed manifest.
    pub head: Bytes,
    /// Its share of the body.
    pub payload: Bytes,
}

impl EncodedAggregation {
    /// Shard `index` as the writer of `epoch` stores it; none where there is no such shard. Copies the head part, not the
    /// payload.
    pub fn shard(&self, index: usize, epoch: Epoch) -> Option<EncodedShard> {
        let payload = self.payloads.get(index)?.clone();
        let prefix = Prefix {
            index: u8::try_from(index).ok()?,
            epoch,
        }
        .encode(&self.id);
        let mut head = BytesMut::with_capacity(PREFIX_LEN + self.common.len());
        head.put_slice(&prefix);
        head.put_slice(&self.common);
        Some(EncodedShard {
            head: head.freeze(),
            payload,
        })
    }

    /// Bytes that all shards take together.
    pub fn stored_bytes(&self) -> usize {
        self.payloads
            .iter()
            .map(|payload| PREFIX_LEN + self.common.len() + payload.len())
            .sum()
    }

    /// Opens it again, as a reader of all its shards would. What a careful writer may do before it lets go of the blocks.
    pub fn open(&self, opener: &Opener) -> Result<Vec<Block>, OpenError> {
        let head = self
            .shard(0, Epoch(0))
            .map(|shard| shard.head)
            .unwrap_or_default();
        let head = ShardHead::parse(opener.vdisk(), &head)?;
        let payloads: Vec<Option<Bytes>> = self.payloads.iter().cloned().map(Some).collect();
        opener.blocks(&head, &payloads)
    }
}
