//! The fixed-size header of a format-2 aggregation.
//!
//! ```text
//! at  bytes
//!   0   4  magic "TLOG"
//!   4   1  format, 2
//!   5   1  k, data shards
//!   6   1  m, parity shards
//!   7   1  kind: 1 blocks, 2 part of a checkpoint, 3 record
//!   8   1  compression of the manifest, 0 none, 1 snappy
//!   9   1  compression of the body
//!  10   1  suite: 1 AES-256-GCM and payload hashes of BLAKE2b-256, 2 AES-256-GCM and payload hashes of BLAKE3
//!  11   1  time reach, see reach.rs; 0 not known
//!  12   4  block count; 0 in a record
//!  16   8  key id
//!  24   8  number
//!  32   8  generation
//!  40   8  session
//!  48   8  first sequence; what has no writes: one above the last
//!  56   8  last sequence; what has no writes: that of the last write before it
//!  64   8  oldest block timestamp, nanoseconds; what has no writes: that of the moment it is about
//!  72   8  newest block timestamp; likewise
//!  80   8  sealed at
//!  88   4  block size: the longest block of the log so far, this aggregation included
//!  92   4  manifest, bytes before compression
//!  96   4  manifest, bytes as sealed, tag included
//! 100   4  payload, bytes in each shard
//! 104   8  body, bytes before compression
//! 112   8  body, bytes as sealed, tag included
//! 120  12  nonce; its lowest bit is 0. The manifest is sealed with it, the body with that bit set
//! 132   4  how far below it the newest record before it is; 0 there is none, 2^32 - 1 so far or farther
//! 136  32  prev, id of the aggregation before
//! 168
//! ```
//! Numbers are little endian. Everything but `prev` is bound to what is sealed, as associated data.

use bytes::Bytes;
use tlog_crypto::{KeyId, TAG_SIZE, blake2b_256_many, blake3_256};
use tlog_proto::{AggregationId, AggregationNumber, Generation, Sequence, SessionId, Timestamp};

use crate::compression::Compression;
use crate::erasure::{ErasureError, Redundancy};
use crate::reach::TimeReach;
use crate::{MAX_BODY_BYTES, MAX_RECORD_BYTES};

/// What an aggregation has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Writes: what the log is for.
    Blocks,
    /// Part of the image of an earlier moment: blocks that were written before, by rising index. No writes.
    Checkpoint,
    /// Something about the log, whole in the manifest: see [`Record`](crate::Record). No blocks.
    Record,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        [Kind::Blocks, Kind::Checkpoint, Kind::Record].into_iter().find(|kind| kind.number() == number)
    }

    fn number(self) -> u8 {
        match self {
            Kind::Blocks => 1,
            Kind::Checkpoint => 2,
            Kind::Record => 3,
        }
    }

    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Blocks => "blocks",
            Kind::Checkpoint => "checkpoint",
            Kind::Record => "record",
        }
    }
}

/// How an aggregation is sealed, and how its payloads are hashed. Everything else is BLAKE2b-256 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Suite {
    /// AES-256-GCM; payloads hashed with BLAKE2b-256, as they were first.
    AesGcmBlake2b,
    /// AES-256-GCM; payloads hashed with BLAKE3 (docs/adr/0012). What is written.
    #[default]
    AesGcmBlake3,
}

impl Suite {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::AesGcmBlake2b),
            2 => Some(Self::AesGcmBlake3),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::AesGcmBlake2b => 1,
            Self::AesGcmBlake3 => 2,
        }
    }

    /// The hash of each payload, in order.
    pub(crate) fn hashes(self, payloads: &[&[u8]]) -> Vec<[u8; 32]> {
        match self {
            // Several side by side are quicker.
            Self::AesGcmBlake2b => blake2b_256_many(payloads),
            Self::AesGcmBlake3 => payloads.iter().map(|payload| blake3_256(payload)).collect(),
        }
    }
}

/// What is written about an aggregation in the clear. Bound to the sealed parts and to the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it is split.
    pub redundancy: Redundancy,
    /// What is in it.
    pub kind: Kind,
    /// How it is sealed and hashed.
    pub suite: Suite,
    /// A lower bound of the timestamps of writes in a run of aggregations that ends with it: for finding a time.
    pub time_reach: TimeReach,
    /// Where records are, see [`Header::record_before`].
    pub(crate) record_back: u32,
    /// How the manifest is compressed.
    pub(crate) manifest_compression: Compression,
    /// How the body is compressed.
    pub(crate) body_compression: Compression,
    /// Blocks in it: at least one, and none in a record.
    pub block_count: u32,
    /// Master key under which it is sealed.
    pub key_id: KeyId,
    /// Its number in the log of its vdisk.
    pub number: AggregationNumber,
    /// Generation of all its blocks; of what has no writes, that of the last write before it.
    pub generation: Generation,
    /// Client instance that wrote all its blocks; likewise.
    pub session: SessionId,
    /// Sequence of its first block; of what has no writes, one above the last.
    pub first_sequence: Sequence,
    /// Sequence of its last block; of what has no writes, that of the last write before it.
    pub last_sequence: Sequence,
    /// Lowest timestamp of its blocks; of what has no writes, that of the moment it is about.
    pub oldest_timestamp: Timestamp,
    /// Highest timestamp of its blocks; likewise.
    pub newest_timestamp: Timestamp,
    /// When the server sealed it, by the server's clock.
    pub sealed_at: Timestamp,
    /// Bytes of the longest block of the log so far: the block size of the vdisk, once a full block was written.
    pub block_size: u32,
    /// Bytes of the manifest before compression.
    pub(crate) manifest_plain: u32,
    /// Bytes of the manifest as sealed.
    pub(crate) manifest_sealed: u32,
    /// Bytes of each shard's payload.
    pub payload_len: u32,
    /// Bytes of the body before compression.
    pub body_plain: u64,
    /// Bytes of the body as sealed.
    pub body_sealed: u64,
    /// Random; its lowest bit is 0.
    pub(crate) nonce: [u8; 12],
    /// Id of the aggregation before it.
    pub prev: AggregationId,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too few bytes.
    #[error("the header is cut short")]
    Truncated,
    /// No aggregation of any format that is known.
    #[error("not an aggregation: it does not begin with TLOG")]
    Magic,
    /// A later format, or damage.
    #[error("format {0} is not known to this version")]
    UnknownFormat(u8),
    /// A kind, suite or compression that is not known.
    #[error("{what} {value} is not known to this version")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: u8,
    },
    /// Fields that contradict each other.
    #[error("its {0} cannot be")]
    Inconsistent(&'static str),
}

const MAGIC: [u8; 4] = *b"TLOG";
const FORMAT: u8 = 2;

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 168;
    /// Bytes of it that what is sealed is bound to: all but `prev`.
    const BOUND_LEN: usize = 136;

    /// Its bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer { bytes: [0; Self::LEN], at: 0 };
        out.put(MAGIC);
        out.put([FORMAT, self.redundancy.data() as u8, self.redundancy.parity() as u8, self.kind.number()]);
        let compressions = [self.manifest_compression.number(), self.body_compression.number()];
        out.put(compressions);
        out.put([self.suite.number(), self.time_reach.0]);
        out.put(self.block_count.to_le_bytes());
        out.put(self.key_id.0);
        for field in [
            self.number.0,
            self.generation.0,
            self.session.0,
            self.first_sequence.0,
            self.last_sequence.0,
            self.oldest_timestamp.0,
            self.newest_timestamp.0,
            self.sealed_at.0,
        ] {
            out.put(field.to_le_bytes());
        }
        for field in [self.block_size, self.manifest_plain, self.manifest_sealed, self.payload_len] {
            out.put(field.to_le_bytes());
        }
        out.put(self.body_plain.to_le_bytes());
        out.put(self.body_sealed.to_le_bytes());
        out.put(self.nonce);
        out.put(self.record_back.to_le_bytes());
        out.put(self.prev.0);
        out.bytes
    }

    /// Reads one and checks that its fields agree with each other.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut from = Reader { rest: bytes };
        if from.take()? != MAGIC {
            return Err(HeaderError::Magic);
        }
        let [format, data, parity, kind] = from.take()?;
        if format != FORMAT {
            return Err(HeaderError::UnknownFormat(format));
        }
        let [manifest_compression, body_compression, suite, time_reach] = from.take()?;
        let header = Self {
            kind: Kind::from_number(kind).ok_or(HeaderError::Unknown { what: "kind", value: kind })?,
            suite: Suite::from_number(suite).ok_or(HeaderError::Unknown { what: "suite", value: suite })?,
            time_reach: TimeReach(time_reach),
            redundancy: Redundancy::new(data.into(), parity.into())
                .map_err(|_| HeaderError::Inconsistent("number of shards"))?,
            manifest_compression: Compression::from_number(manifest_compression)?,
            body_compression: Compression::from_number(body_compression)?,
            block_count: from.u32()?,
            key_id: KeyId(from.take()?),
            number: AggregationNumber(from.u64()?),
            generation: Generation(from.u64()?),
            session: SessionId(from.u64()?),
            first_sequence: Sequence(from.u64()?),
            last_sequence: Sequence(from.u64()?),
            oldest_timestamp: Timestamp(from.u64()?),
            newest_timestamp: Timestamp(from.u64()?),
            sealed_at: Timestamp(from.u64()?),
            block_size: from.u32()?,
            manifest_plain: from.u32()?,
            manifest_sealed: from.u32()?,
            payload_len: from.u32()?,
            body_plain: from.u64()?,
            body_sealed: from.u64()?,
            nonce: from.take()?,
            record_back: from.u32()?,
            prev: AggregationId(from.take()?),
        };
        header.check()?;
        Ok(header)
    }

    /// Number of the newest record of the log before this aggregation, or, where that is far away, of an aggregation that knows more.
    /// None where there is no record before it.
    pub fn record_before(&self) -> Option<AggregationNumber> {
        let back = u64::from(self.record_back);
        self.number.0.checked_sub(back).filter(|_| back > 0).map(AggregationNumber)
    }

    /// What is sealed is bound to this, together with the vdisk id.
    pub(crate) fn associated_data(&self, vdisk_id: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(2 + vdisk_id.len() + Self::BOUND_LEN);
        data.extend_from_slice(&(vdisk_id.len() as u16).to_le_bytes());
        data.extend_from_slice(vdisk_id);
        data.extend_from_slice(self.encode().get(..Self::BOUND_LEN).unwrap_or_default());
        data
    }

    pub(crate) fn manifest_nonce(&self) -> [u8; 12] {
        self.nonce
    }

    pub(crate) fn body_nonce(&self) -> [u8; 12] {
        let mut nonce = self.nonce;
        nonce[0] |= 1;
        nonce
    }

    /// Whether these payloads have the length that the header says.
    pub(crate) fn check_payloads(&self, payloads: &[Option<Bytes>]) -> Result<(), ErasureError> {
        let fits = |payload: &Bytes| payload.len() as u64 == u64::from(self.payload_len);
        if payloads.iter().flatten().all(fits) { Ok(()) } else { Err(ErasureError::Unequal) }
    }

    /// Whether the fields agree with each other. What does not pass here could be stored, and never be read.
    pub(crate) fn check(&self) -> Result<(), HeaderError> {
        let consistent = |holds: bool, what| {
            if holds { Ok(()) } else { Err(HeaderError::Inconsistent(what)) }
        };
        let (first, last) = (self.first_sequence.0, self.last_sequence.0);
        let sequences = match self.kind {
            // The last write may have the highest sequence there is.
            Kind::Blocks => {
                last.checked_sub(first).and_then(|n| n.checked_add(1)) == Some(self.block_count.into())
            }
            Kind::Checkpoint | Kind::Record => last.checked_add(1) == Some(first),
        };
        consistent(sequences, "range of sequences")?;
        consistent((self.kind == Kind::Record) == (self.block_count == 0), "number of blocks")?;
        consistent(self.number.0 > 0, "number")?;
        let back = u64::from(self.record_back);
        consistent(back < self.number.0 || back == 0, "distance to a record")?;
        consistent(self.oldest_timestamp <= self.newest_timestamp, "range of timestamps")?;
        // A part cannot claim to become more than its compression can make of the bytes that are there.
        let can_be = |compression: Compression, plain, sealed: u64| {
            sealed.checked_sub(TAG_SIZE as u64).is_some_and(|packed| compression.can_turn(plain, packed))
        };
        consistent(
            self.body_plain <= MAX_BODY_BYTES
                && can_be(self.body_compression, self.body_plain, self.body_sealed),
            "body length",
        )?;
        let payload = self.body_sealed.div_ceil(self.redundancy.data() as u64);
        consistent(u64::from(self.payload_len) == payload, "payload length")?;
        let manifest = u64::from(self.manifest_plain);
        let entries = u64::from(self.block_count) * crate::manifest::ENTRY_LEN as u64;
        let fits = match self.kind {
            Kind::Blocks | Kind::Checkpoint => manifest == entries,
            Kind::Record => (1..=MAX_RECORD_BYTES).contains(&manifest) && self.body_plain == 0,
        };
        consistent(fits, "manifest length")?;
        consistent(
            can_be(self.manifest_compression, manifest, u64::from(self.manifest_sealed)),
            "sealed manifest length",
        )?;
        consistent(self.nonce[0] & 1 == 0, "nonce")
    }
}

struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn put<const L: usize>(&mut self, field: [u8; L]) {
        for (to, from) in self.bytes.iter_mut().skip(self.at).zip(field) {
            *to = from;
        }
        self.at += L;
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const L: usize>(&mut self) -> Result<[u8; L], HeaderError> {
        let (field, rest) = self.rest.split_first_chunk::<L>().ok_or(HeaderError::Truncated)?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.take().map(u64::from_le_bytes)
    }
}
