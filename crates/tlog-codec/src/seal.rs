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
use tlog_crypto::{NONCE_SIZE, TAG_SIZE};
use tlog_proto::{
    Aggregation, AggregationId, AggregationNumber, AggregationParts, Block, BlockFault, Epoch, Generation,
    LogPosition, Operation, Sequence, SessionId, Timestamp, VdiskId,
};

use crate::compression::{Worth, compress};
use crate::erasure::{ErasureCode, Redundancy};
use crate::header::{Header, Kind, Suite};
use crate::id::aggregation_id;
use crate::keys::{KeyError, VdiskKeys};
use crate::manifest::{self, BlockEntry};
use crate::reach::TimeReach;
use crate::record::Record;
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
    /// What its header says about others.
    pub finding: Finding,
    /// The blocks: at least one, sequences rising by one. That a block's hash is that of its data is not looked at again:
    /// who received it has done so, and it would cost as much as half of everything else here.
    pub blocks: &'a [Block],
}

/// What a header says about other aggregations, for finding them without reading all of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// See [`TimeReaches`](crate::TimeReaches), which makes it.
    pub time_reach: TimeReach,
    /// The newest record of the log before the aggregation, or an aggregation that knows it.
    pub record_before: Option<AggregationNumber>,
}

impl Finding {
    fn record_back(&self, number: AggregationNumber) -> u32 {
        let back = self.record_before.and_then(|record| number.0.checked_sub(record.0));
        back.map_or(0, |back| u32::try_from(back).unwrap_or(u32::MAX))
    }
}

/// An aggregation that has no writes in it and stands in the log like any other.
#[derive(Clone, Copy, Debug)]
pub struct WithoutWrites<'a> {
    /// Number of the aggregation.
    pub number: AggregationNumber,
    /// The last write before it.
    pub after: LogPosition,
    /// Client instance that sent that write.
    pub session: SessionId,
    /// Time of the moment that it is about.
    pub about: Timestamp,
    /// The server's time.
    pub sealed_at: Timestamp,
    /// Longest block of the log so far.
    pub block_size: u32,
    /// Random, never used before. One bit of it is overwritten.
    pub nonce: [u8; NONCE_SIZE],
    /// What its header says about others.
    pub finding: Finding,
    /// What is in it.
    pub content: Content<'a>,
}

/// What an aggregation without writes has in it.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// Blocks of an image, at least one, by rising index, each as it was written.
    Checkpoint(&'a [Block]),
    /// Something about the log.
    Record(&'a Record),
}

impl fmt::Debug for Content<'_> {
    /// Without what is in the blocks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Checkpoint(blocks) => write!(f, "Checkpoint({} blocks)", blocks.len()),
            Content::Record(record) => write!(f, "{record:?}"),
        }
    }
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
    /// The blocks of an image are not in the order of their indexes, or one is there twice.
    #[error("the blocks of a checkpoint must rise in their indexes")]
    Indexes,
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
        let SealRequest { number, generation, session, sealed_at, block_size, nonce, finding, blocks } =
            request;
        let (first, last) = check_writes(blocks)?;
        let oldest = blocks.iter().map(|block| block.timestamp).min().unwrap_or_default();
        let newest = blocks.iter().map(|block| block.timestamp).max().unwrap_or_default();
        let place = Place {
            kind: Kind::Blocks,
            number,
            generation,
            session,
            sequences: (first.sequence, last.sequence),
            timestamps: (oldest, newest),
            sealed_at,
            block_size,
            nonce,
            finding,
        };
        self.seal_blocks(place, blocks)
    }

    /// The same for an aggregation that has no writes.
    pub fn seal_without_writes(&self, request: WithoutWrites<'_>) -> Result<Sealed, SealError> {
        let WithoutWrites { number, after, session, about, sealed_at, block_size, nonce, finding, content } =
            request;
        let next = after.sequence.0.checked_add(1).ok_or(SealError::Sequences)?;
        let place = Place {
            kind: Kind::Record,
            number,
            generation: after.generation,
            session,
            sequences: (Sequence(next), after.sequence),
            timestamps: (about, about),
            sealed_at,
            block_size,
            nonce,
            finding,
        };
        match content {
            Content::Checkpoint(blocks) => {
                check_image(blocks)?;
                self.seal_blocks(Place { kind: Kind::Checkpoint, ..place }, blocks)
            }
            Content::Record(record) => {
                let manifest = record.encode();
                if manifest.len() as u64 > crate::MAX_RECORD_BYTES {
                    return Err(SealError::TooLarge(manifest.len() as u64));
                }
                self.finish(place, 0, manifest, BytesMut::new())
            }
        }
    }

    fn seal_blocks(&self, place: Place, blocks: &[Block]) -> Result<Sealed, SealError> {
        check_size(blocks).map_err(SealError::TooLarge)?;
        let body = self.body_message(place.sealed_at, blocks);
        let block_size = blocks.iter().map(|b| BlockEntry::from(b).length).fold(place.block_size, u32::max);
        self.finish(Place { block_size, ..place }, blocks.len(), manifest::encode(blocks), body)
    }

    /// The blocks as the stored message, as format 1 has it but for `prev`, which is empty. In a buffer with room for all shards,
    /// so that what does not shrink is not copied again.
    fn body_message(&self, timestamp: Timestamp, blocks: &[Block]) -> BytesMut {
        let (name, vdisk_id) = (Aggregation::NAME, self.keys.vdisk());
        let parts = AggregationParts { name, timestamp, vdisk_id, blocks, prev: &[] };
        let mut message = BytesMut::with_capacity(self.code.split_len(parts.encoded_len() + TAG_SIZE));
        parts.encode_into(&mut message);
        message
    }

    /// Compresses, seals and splits what the aggregation has.
    fn finish(
        &self,
        place: Place,
        block_count: usize,
        manifest: BytesMut,
        body: BytesMut,
    ) -> Result<Sealed, SealError> {
        let Place { kind, number, generation, session, sequences, timestamps, .. } = place;
        let vdisk = self.keys.vdisk();
        let key = self.keys.sealing_key(number)?;
        let manifest_plain = manifest.len();
        let (manifest_compression, mut manifest) =
            compress(manifest, Worth::AnyByte, |length| length + TAG_SIZE);
        let body_plain = body.len() as u64;
        let (body_compression, mut body) =
            compress(body, Worth::AnEighth, |length| self.code.split_len(length + TAG_SIZE));

        let body_sealed = body.len() + TAG_SIZE;
        let too_large = |_| SealError::TooLarge(body_sealed as u64);
        let mut nonce = place.nonce;
        nonce[0] &= !1;
        let header = Header {
            redundancy: self.code.redundancy(),
            kind,
            suite: Suite::default(),
            time_reach: place.finding.time_reach,
            record_back: place.finding.record_back(number),
            manifest_compression,
            body_compression,
            block_count: u32::try_from(block_count).map_err(too_large)?,
            key_id: key.master_id(),
            number,
            generation,
            session,
            first_sequence: sequences.0,
            last_sequence: sequences.1,
            oldest_timestamp: timestamps.0,
            newest_timestamp: timestamps.1,
            sealed_at: place.sealed_at,
            block_size: place.block_size,
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
            hashes: hash_payloads(header.suite, &payloads),
            payloads,
        })
    }
}

/// Where an aggregation stands, and what its header says beside its contents.
#[derive(Clone, Copy)]
struct Place {
    kind: Kind,
    number: AggregationNumber,
    generation: Generation,
    session: SessionId,
    sequences: (Sequence, Sequence),
    timestamps: (Timestamp, Timestamp),
    sealed_at: Timestamp,
    block_size: u32,
    nonce: [u8; NONCE_SIZE],
    finding: Finding,
}

/// First and last block, where all of them are such that a reader takes them.
fn check_writes(blocks: &[Block]) -> Result<(&Block, &Block), SealError> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        return Err(SealError::NoBlocks);
    };
    let follows =
        |pair: &[Block]| matches!(pair, [a, b] if a.sequence.0.checked_add(1) == Some(b.sequence.0));
    if !blocks.windows(2).all(follows) {
        return Err(SealError::Sequences);
    }
    check_blocks(blocks)?;
    Ok((first, last))
}

fn check_image(blocks: &[Block]) -> Result<(), SealError> {
    if blocks.is_empty() {
        return Err(SealError::NoBlocks);
    }
    if !blocks.is_sorted_by(|a, b| a.index < b.index) {
        return Err(SealError::Indexes);
    }
    check_blocks(blocks)
}

fn check_blocks(blocks: &[Block]) -> Result<(), SealError> {
    for block in blocks {
        let fault = match block.operation {
            Operation::Set if block.data.is_empty() => BlockFault::SetWithoutData,
            Operation::Delete if !block.data.is_empty() => BlockFault::DeleteWithData(block.data.len()),
            _ => continue,
        };
        let sequence = block.sequence;
        return Err(SealError::Block { sequence, fault });
    }
    Ok(())
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

pub(crate) fn hash_payloads(suite: Suite, payloads: &[Bytes]) -> Vec<[u8; 32]> {
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
    suite.hashes(&payloads)
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
