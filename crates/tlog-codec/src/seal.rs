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

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use tlog_crypto::{NONCE_SIZE, TAG_SIZE, blake2b_256, blake2b_256_many};
use tlog_proto::{
    Aggregation, AggregationId, AggregationNumber, Block, BlockFault, Epoch, Generation, Operation, Sequence,
    SessionId, Timestamp, VdiskId,
};

use crate::compression::compress;
use crate::erasure::{ErasureCode, Redundancy};
use crate::header::Header;
use crate::keys::{KeyError, VdiskKeys};
use crate::manifest::{self, BlockEntry};
use crate::shard::{PREFIX_LEN, Prefix};
use crate::{HeaderError, MAX_BODY_BYTES, OpenError, Opener, ShardHead};

/// What is to be sealed.
#[derive(Clone, Copy)]
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
    pub nonce: [u8; NONCE_SIZE],
    /// The blocks: at least one, sequences rising by one. That a block's hash is that of its data is not looked at again:
    /// who received it has done so, and it would cost as much as half of everything else here.
    pub blocks: &'a [Block],
}

impl fmt::Debug for SealRequest<'_> {
    /// Without what is in the blocks: that is nothing for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, count) = (self.number, self.blocks.len());
        write!(f, "SealRequest(number {number}, {count} blocks)")
    }
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
    /// More than [`MAX_BODY_BYTES`], or a block of half of that.
    #[error("an aggregation of {0} bytes is larger than the format allows")]
    TooLarge(u64),
    /// A block that no reader would take.
    #[error("block {sequence}: {fault}")]
    Block {
        /// Which one.
        sequence: Sequence,
        /// What is wrong with it.
        #[source]
        fault: BlockFault,
    },
    /// The header would not be accepted by any reader: aggregation 0.
    #[error("no reader would accept it: {0}")]
    Header(#[from] HeaderError),
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
        Self { keys, code: ErasureCode::new(redundancy) }
    }

    /// Compresses, seals, splits and hashes. Takes about 0.15 ms for 25 blocks of 4 KiB.
    pub fn seal(&self, request: SealRequest<'_>) -> Result<Sealed, SealError> {
        let SealRequest { number, generation, session, sealed_at, block_size, mut nonce, blocks } = request;
        let (first, last) = check_blocks(blocks)?;
        let message_bytes = check_size(blocks).map_err(SealError::TooLarge)?;
        let vdisk = self.keys.vdisk();
        let key = self.keys.sealing_key(number)?;

        let manifest = manifest::encode(blocks);
        let manifest_plain = manifest.len();
        let (manifest_compression, mut manifest) = compress(manifest, |length| length + TAG_SIZE);
        let body = body_message(vdisk, sealed_at, blocks, message_bytes);
        let body_plain = body.len() as u64;
        let (body_compression, mut body) = compress(body, |length| self.code.split_len(length + TAG_SIZE));

        let body_sealed = body.len() + TAG_SIZE;
        let too_large = |_| SealError::TooLarge(body_sealed as u64);
        nonce[0] &= !1;
        let header = Header {
            redundancy: self.code.redundancy(),
            manifest_compression,
            body_compression,
            block_count: u32::try_from(blocks.len()).map_err(too_large)?,
            key_id: key.master_id(),
            number,
            generation,
            session,
            first_sequence: first.sequence,
            last_sequence: last.sequence,
            oldest_timestamp: blocks.iter().map(|b| b.timestamp).min().unwrap_or_default(),
            newest_timestamp: blocks.iter().map(|b| b.timestamp).max().unwrap_or_default(),
            sealed_at,
            block_size: blocks.iter().map(|b| BlockEntry::from(b).length).fold(block_size, u32::max),
            manifest_plain: u32::try_from(manifest_plain).map_err(too_large)?,
            manifest_sealed: u32::try_from(manifest.len() + TAG_SIZE).map_err(too_large)?,
            payload_len: u32::try_from(self.code.shard_len(body_sealed)).map_err(too_large)?,
            body_plain,
            body_sealed: body_sealed as u64,
            nonce,
            prev: AggregationId::BEFORE_FIRST, // until it is linked; not bound to what is sealed
        };

        header.check()?;

        let bound = header.associated_data(vdisk.as_str().as_bytes());
        let tag = key.seal_in_place(&mut manifest, header.manifest_nonce(), &bound)?;
        manifest.extend_from_slice(&tag);
        let tag = key.seal_in_place(&mut body, header.body_nonce(), &bound)?;
        body.extend_from_slice(&tag);

        let payloads = self.code.split(body);
        Ok(Sealed {
            vdisk: vdisk.clone(),
            header,
            manifest: manifest.freeze(),
            hashes: hash_payloads(&payloads),
            payloads,
        })
    }
}

/// First and last block, where all of them are such that a reader takes them.
fn check_blocks(blocks: &[Block]) -> Result<(&Block, &Block), SealError> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        return Err(SealError::NoBlocks);
    };
    let follows =
        |pair: &[Block]| matches!(pair, [a, b] if a.sequence.0.checked_add(1) == Some(b.sequence.0));
    if !blocks.windows(2).all(follows) {
        return Err(SealError::Sequences);
    }
    for block in blocks {
        let fault = match block.operation {
            Operation::Set if block.data.is_empty() => BlockFault::SetWithoutData,
            Operation::Delete if !block.data.is_empty() => BlockFault::DeleteWithData(block.data.len()),
            _ => continue,
        };
        let sequence = block.sequence;
        return Err(SealError::Block { sequence, fault });
    }
    Ok((first, last))
}

/// Bytes that the blocks take as a message, at most; the same as an error where that is more than can be stored.
pub(crate) fn check_size(blocks: &[Block]) -> Result<u64, u64> {
    /// Names, pointers and the segment table.
    const FRAME: u64 = 512;
    /// Fields of a block and its hash.
    const BLOCK: u64 = 48 + 32;
    /// Cap'n Proto has no longer data than this.
    const LONGEST: u64 = (1 << 29) - 1;
    let length = |block: &Block| block.data.len() as u64;
    let bytes = FRAME + blocks.iter().map(|block| BLOCK + length(block).next_multiple_of(8)).sum::<u64>();
    if bytes > MAX_BODY_BYTES || blocks.iter().any(|block| length(block) > LONGEST) {
        Err(bytes)
    } else {
        Ok(bytes)
    }
}

/// The blocks as the stored message, as format 1 has it but for `prev`, which is empty.
fn body_message(vdisk: &VdiskId, timestamp: Timestamp, blocks: &[Block], room: u64) -> BytesMut {
    let mut message = BytesMut::with_capacity(room as usize);
    let aggregation = Aggregation {
        name: Aggregation::NAME.to_owned(),
        timestamp,
        vdisk_id: vdisk.clone(),
        blocks: blocks.to_vec(), // shares the data
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
#[derive(Clone)]
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
        let header_bytes = header.encode();
        common.put_slice(&header_bytes);
        common.put_slice(self.hashes.as_flattened());
        common.put_slice(&self.manifest);
        let id = aggregation_id(&self.vdisk, &header_bytes, &self.manifest, &self.hashes);
        EncodedAggregation { id, header, common: common.freeze(), payloads: self.payloads }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Header { number, redundancy, .. } = self.header;
        let vdisk = &self.vdisk;
        write!(f, "Sealed(vdisk {vdisk}, number {number}, {redundancy:?})")
    }
}

/// The id of format 2; everything that it covers can be checked without a key.
pub(crate) fn aggregation_id(
    vdisk: &VdiskId,
    header: &[u8],
    sealed_manifest: &[u8],
    payload_hashes: &[[u8; 32]],
) -> AggregationId {
    let vdisk = vdisk.as_str().as_bytes();
    let length = (vdisk.len() as u16).to_le_bytes();
    AggregationId(blake2b_256(&[&length, vdisk, header, sealed_manifest, payload_hashes.as_flattened()]))
}

/// An aggregation with its id, ready to be stored.
#[derive(Clone, PartialEq, Eq)]
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
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedShard {
    /// Prefix, header, payload hashes and sealed manifest.
    pub head: Bytes,
    /// Its share of the body.
    pub payload: Bytes,
}

impl fmt::Debug for EncodedShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, payload) = (self.head.len(), self.payload.len());
        write!(f, "EncodedShard({head} + {payload} bytes)")
    }
}

impl fmt::Debug for EncodedAggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedAggregation")
            .field("id", &self.id)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl EncodedAggregation {
    /// Shard `index` as the writer of `epoch` stores it; none where there is no such shard. Copies the head part, not the
    /// payload.
    pub fn shard(&self, index: usize, epoch: Epoch) -> Option<EncodedShard> {
        let payload = self.payloads.get(index)?.clone();
        let prefix = Prefix { index: u8::try_from(index).ok()?, epoch }.encode(&self.id);
        let mut head = BytesMut::with_capacity(PREFIX_LEN + self.common.len());
        head.put_slice(&prefix);
        head.put_slice(&self.common);
        Some(EncodedShard { head: head.freeze(), payload })
    }

    /// Bytes that all shards take together.
    pub fn stored_bytes(&self) -> usize {
        self.payloads.iter().map(|payload| PREFIX_LEN + self.common.len() + payload.len()).sum()
    }

    /// Opens it again, as a reader of all its shards would. What a careful writer may do before it lets go of the blocks.
    pub fn open(&self, opener: &Opener) -> Result<Vec<Block>, OpenError> {
        let head = self.shard(0, Epoch(0)).map(|shard| shard.head).unwrap_or_default();
        let head = ShardHead::parse(opener.vdisk(), &head)?;
        let payloads: Vec<Option<Bytes>> = self.payloads.iter().cloned().map(Some).collect();
        opener.blocks(&head, &payloads)
    }
}
