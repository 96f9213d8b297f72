//! Blocks to aggregations to shards, and back.
//!
//! ```text
//! blocks --Sealer::seal--> Sealed --link(prev)--> EncodedAggregation --shard(i)--> EncodedShard, one for each store
//!
//! EncodedShard --ShardHead::parse, verify_payload--> proven by itself, no key
//! ShardHeads in order --ChainVerifier--> the chain proven, no key
//! any k of them --rebuild--> EncodedAggregation, every shard again, no key
//! any k of them --Opener::open--> blocks;   one head --Opener::manifest--> what was written where and when
//! a few bytes of data shards --Opener::open_parts--> single blocks, where the body is not compressed
//! ```
//!
//! Everything here is pure: nonces, times and keys come in as arguments, nothing waits, nothing is stored. It does not know
//! stores, epochs beyond writing them down, or which aggregations are committed.
//!
//! Format 2 ([`Sealer`], [`Opener`]) is what tlog writes; `docs/format.md` has its bytes. [`format1`] is that of existing
//! servers. Both split with the same erasure code ([`Redundancy`]).

mod chain;
mod compression;
mod erasure;
pub mod format1;
mod header;
mod id;
mod keys;
mod manifest;
mod open;
mod part;
mod reach;
mod rebuild;
mod record;
mod seal;
mod shard;

pub use chain::{ChainBreak, ChainVerifier};
pub use erasure::{ErasureError, InvalidRedundancy, Redundancy};
pub use header::{Header, HeaderError, Kind, Suite};
pub use keys::{KeyError, VdiskKeys};
pub use manifest::{BlockEntry, ManifestError};
pub use open::{OpenError, Opener};
pub use part::{BodyBlock, PayloadPart, PlainBody};
pub use reach::{TimeReach, TimeReaches};
pub use rebuild::{RebuildError, rebuild};
pub use record::{
    CheckpointPart, CheckpointRecord, InvalidMarkName, Mark, MarkName, PlaceInLog, Record, RecordError,
};
pub use seal::{
    Content, EncodedAggregation, EncodedShard, Finding, SealError, SealRequest, Sealed, Sealer, WithoutWrites,
};
pub use shard::{PayloadError, ShardFault, ShardHead};

/// The keys that [`VdiskKeys`] takes.
pub use tlog_crypto::{KeyId, Keyring, MasterKey};

/// Aggregations sealed under one data key: the key changes with every so many numbers of a vdisk. Two messages each, so
/// that a quarter of what AES-GCM with random nonces allows (2^32, NIST SP 800-38D) is used, and the rest is left to
/// aggregations that were sealed and never committed.
pub const AGGREGATIONS_PER_DATA_KEY: u64 = 1 << 29;

/// Most bytes of a record.
pub const MAX_RECORD_BYTES: u64 = 1 << 26;

/// Most bytes that the blocks of one aggregation may take, as a message. Bounds what a reader takes memory for.
pub const MAX_BODY_BYTES: u64 = 1 << 30;
