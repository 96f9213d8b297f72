//! Where shards live: the port [`ShardStore`] and its adapters.
//!
//! A vdisk's log is kept on k + m independent stores; store i holds shard i of every aggregation. A store knows
//! numbers, epochs and bytes; it does not know what an aggregation is, never talks to another store and decides
//! nothing about durability. Each operation is atomic on its store; nothing needs atomicity across stores.
//! `docs/commit-and-recovery.md` has the rules that writers and readers build on these operations.
//!
//! - [`MemoryStore`]: for tests, with ways to lose and damage what it holds;
//! - [`DirectoryStore`]: the embedded store, a directory on disk (`docs/directory-store.md`);
//! - [`FaultyStore`]: wraps another store and makes it fail on command, or at random from a seed;
//! - `conformance` (with the feature of that name): the tests that every store passes, also those of other crates.
//!
//! What it deliberately does not do: talk to Redis, split or check shards, retry, or count to a quorum.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod directory;
mod fault;
mod log_state;
mod memory;
mod observe;
mod port;
mod ranges;

pub use directory::{DirectoryOptions, DirectoryStore, Holder, lock_holder};
pub use fault::{FaultControl, FaultyStore, Operation, RandomFaults};
pub use memory::MemoryStore;
pub use port::{
    FillOutcome, Head, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreError,
    StoreErrorKind, StoreIdentity,
};
pub use ranges::NumberRanges;
