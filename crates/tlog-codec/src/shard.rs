//! A stored shard, which proves itself.
//!
//! ```text
//! prefix, 24 bytes, may change when the shard is written again:
//!    0  4  magic "TLS2"
//!    4  1  shard index
//!    5  3  0
//!    8  8  epoch
//!   16  8  check: first 8 bytes of BLAKE2b-256(the 16 bytes before | id)
//! header, 168 bytes (see header.rs)
//! n payload hashes, 32 bytes each
//! sealed manifest
//! payload
//! ```
//! Everything before the payload is the head part. The id is computed from it, the check binds index and epoch to the id, and
//! the payload hashes prove the payload: a shard in which any bit has flipped is known as damaged by itself.

use std::fmt;

use bytes::Bytes;
use tlog_crypto::{blake2b_256, blake2b_256_many};
use tlog_proto::{AggregationId, Epoch, VdiskId};

use crate::header::{Header, HeaderError};
use crate::id::{aggregation_id, id_input, length_of};

pub(crate) const PREFIX_LEN: usize = 24;
const MAGIC: [u8; 4] = *b"TLS2";

/// Heads whose ids are computed together: enough for the widest processors, and little to copy.
const PARSED_TOGETHER: usize = 32;

/// What is written of a shard beside what all shards of its aggregation share.
pub(crate) struct Prefix {
    pub(crate) index: u8,
    pub(crate) epoch: Epoch,
}

impl Prefix {
    pub(crate) fn encode(&self, id: &AggregationId) -> [u8; PREFIX_LEN] {
        let mut out = [0; PREFIX_LEN];
        let fields = MAGIC.into_iter().chain([self.index, 0, 0, 0]).chain(self.epoch.0.to_le_bytes());
        for (to, from) in out.iter_mut().zip(fields) {
            *to = from;
        }
        let (fields, check) = out.split_at_mut(16);
        for (to, from) in check.iter_mut().zip(blake2b_256(&[fields, &id.0])) {
            *to = from;
        }
        out
    }

    fn decode(bytes: &[u8; PREFIX_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (&index, rest) = rest.split_first()?;
        let (_zeros, rest) = rest.split_first_chunk::<3>()?;
        let epoch = Epoch(u64::from_le_bytes(*rest.first_chunk()?));
        (*magic == MAGIC).then_some(Self { index, epoch })
    }
}

/// The head part of a shard, proven by itself. Says nothing yet of where in a chain it belongs.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardHead {
    /// Which shard of its aggregation.
    pub index: usize,
    /// Which opening of the log wrote it.
    pub epoch: Epoch,
    /// Id of its aggregation, computed from the bytes.
    pub id: AggregationId,
    /// The aggregation's header.
    pub header: Header,
    /// Header, payload hashes and sealed manifest, as they are.
    pub(crate) common: Bytes,
}

/// Why bytes are not the head part of a shard of this vdisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShardFault {
    /// Cut short, or something behind the end.
    #[error("the head part has {actual} bytes, not the {expected} that its header says")]
    Length {
        /// Bytes given.
        actual: usize,
        /// What the header says.
        expected: usize,
    },
    /// It does not begin as a shard of format 2.
    #[error("not a shard of format 2")]
    NotAShard,
    /// The header cannot be.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Some bit differs from what was written, or it was written for another vdisk.
    #[error("damaged, or a shard of another vdisk: its check does not match")]
    Check,
    /// The index is not one of its n shards.
    #[error("shard index {0} is out of range")]
    Index(u8),
}

/// The payload is not the one that the head part proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the payload is damaged: its hash does not match")]
pub struct PayloadError;

impl fmt::Debug for ShardHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardHead")
            .field("index", &self.index)
            .field("epoch", &self.epoch)
            .field("id", &self.id)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl ShardHead {
    /// Checks the head part of a shard of `vdisk`. Needs no key. What it returns shares memory with `head`.
    pub fn parse(vdisk: &VdiskId, head: &Bytes) -> Result<Self, ShardFault> {
        let (prefix, mut parsed) = Self::unproven(head)?;
        let header = parsed.common.get(..Header::LEN).unwrap_or_default();
        parsed.id = aggregation_id(vdisk, header, parsed.sealed_manifest(), parsed.payload_hashes());
        parsed.prove(prefix, head)
    }

    /// The same where a head of the same aggregation, as it is likely, was proven before: what it shares with that one is compared instead
    /// of hashed.
    pub fn parse_beside(
        vdisk: &VdiskId,
        head: &Bytes,
        known: Option<&ShardHead>,
    ) -> Result<Self, ShardFault> {
        let same = known.filter(|known| head.get(PREFIX_LEN..) == Some(&known.common[..]));
        let Some(known) = same else { return Self::parse(vdisk, head) };
        let (prefix, parsed) = Self::unproven(head)?;
        Self { id: known.id, ..parsed }.prove(prefix, head)
    }

    /// The same for many, in order: several times as fast, as their ids are computed together.
    pub fn parse_many(vdisk: &VdiskId, heads: &[Bytes]) -> Vec<Result<Self, ShardFault>> {
        heads.chunks(PARSED_TOGETHER).flat_map(|heads| Self::parse_few(vdisk, heads)).collect()
    }

    fn parse_few(vdisk: &VdiskId, heads: &[Bytes]) -> Vec<Result<Self, ShardFault>> {
        let unproven: Vec<_> = heads.iter().map(Self::unproven).collect();
        let length = length_of(vdisk);
        let hashed = |(_, parsed): &(Prefix, Self)| {
            let header = parsed.common.get(..Header::LEN).unwrap_or_default();
            id_input(vdisk, &length, header, parsed.sealed_manifest(), parsed.payload_hashes()).concat()
        };
        let inputs: Vec<Vec<u8>> = unproven.iter().flatten().map(hashed).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let mut ids = blake2b_256_many(&inputs).into_iter();
        let prove = |(unproven, head): (Result<(Prefix, Self), ShardFault>, &Bytes)| {
            let (prefix, parsed) = unproven?;
            let id = AggregationId(ids.next().ok_or(ShardFault::Check)?);
            Self { id, ..parsed }.prove(prefix, head)
        };
        unproven.into_iter().zip(heads).map(prove).collect()
    }

    /// What the bytes say, its id not computed yet.
    fn unproven(head: &Bytes) -> Result<(Prefix, Self), ShardFault> {
        let (prefix, rest) = head.split_first_chunk::<PREFIX_LEN>().ok_or(ShardFault::NotAShard)?;
        let prefix = Prefix::decode(prefix).ok_or(ShardFault::NotAShard)?;
        let header = Header::decode(rest)?;
        let hashes = header.redundancy.total() * 32;
        let expected = (PREFIX_LEN + Header::LEN + hashes).saturating_add(header.manifest_sealed as usize);
        if head.len() != expected {
            return Err(ShardFault::Length { actual: head.len(), expected });
        }
        let index = usize::from(prefix.index);
        if index >= header.redundancy.total() {
            return Err(ShardFault::Index(prefix.index));
        }
        let (epoch, id) = (prefix.epoch, AggregationId::BEFORE_FIRST);
        Ok((prefix, Self { index, epoch, id, header, common: head.slice(PREFIX_LEN..) }))
    }

    fn prove(self, prefix: Prefix, head: &[u8]) -> Result<Self, ShardFault> {
        // All of the prefix is compared, so that the zeros in it are checked too.
        let is_it = head.starts_with(&prefix.encode(&self.id));
        if is_it { Ok(self) } else { Err(ShardFault::Check) }
    }

    /// Bytes of the head part as it is stored.
    pub fn stored_len(&self) -> usize {
        PREFIX_LEN + self.common.len()
    }

    /// Checks the payload that was stored with it. Needs no key.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), PayloadError> {
        self.compare(payload, self.header.suite.hashes(&[payload]).first())
    }

    /// The same for several shards at once, each with its own head; in order. Faster where the payloads are of about the same length.
    pub fn verify_payloads(shards: &[(&ShardHead, &[u8])]) -> Vec<Result<(), PayloadError>> {
        let mut verdicts = Vec::with_capacity(shards.len());
        // Mostly they are all of one aggregation.
        for run in shards.chunk_by(|(one, _), (next, _)| one.header.suite == next.header.suite) {
            let payloads: Vec<&[u8]> = run.iter().map(|(_, payload)| *payload).collect();
            let suite = run.first().map(|(head, _)| head.header.suite).unwrap_or_default();
            let hashes = suite.hashes(&payloads);
            verdicts.extend(
                run.iter().zip(&hashes).map(|((head, payload), hash)| head.compare(payload, Some(hash))),
            );
        }
        verdicts
    }

    fn compare(&self, payload: &[u8], hash: Option<&[u8; 32]>) -> Result<(), PayloadError> {
        let fits = payload.len() as u64 == u64::from(self.header.payload_len);
        let is_it = hash.is_some() && self.payload_hashes().get(self.index) == hash;
        if fits && is_it { Ok(()) } else { Err(PayloadError) }
    }

    pub(crate) fn payload_hashes(&self) -> &[[u8; 32]] {
        let hashes = Header::LEN..Header::LEN + self.header.redundancy.total() * 32;
        self.common.get(hashes).unwrap_or_default().as_chunks().0
    }

    /// Bytes that every shard of the aggregation has of it: header, payload hashes and sealed manifest.
    pub fn size(&self) -> usize {
        self.common.len()
    }

    pub(crate) fn sealed_manifest(&self) -> &[u8] {
        self.common.get(Header::LEN + self.header.redundancy.total() * 32..).unwrap_or_default()
    }
}
