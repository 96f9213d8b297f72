//! Where shards live: the port [`ShardStore`] and its adapters.
//!
//! A vdisk's log is kept on k + m independent stores; store i holds shard i of every aggregation. A store knows
//! numbers, epochs and bytes; it does not know what an aggregation is, never talks to another store and decides
//! nothing about durability. Each operation is atomic on its store; nothing needs atomicity across stores.
//! `docs/commit-and-recovery.md` has the rules that writers and readers build on these operations.
//!
//! - [`MemoryStore`]: for tests, with ways to lose and damage what it holds;
//! - [`DirectoryStore`]: the embedded store, a directory on disk (`docs/directory-store.md`);
//! - [`ReplaceableStore`]: hands on to another one, which can be changed while it is in use;
//! - [`FaultyStore`]: wraps another store and makes it fail on command, or at random from a seed;
//! - `conformance` (with the feature of that name): the tests that every store passes, also those of other crates.
//!
//! [`ChainStore`] is a second, smaller port for logs of stored format 1. [`slave`] has that of slaves, which hold a disk's blocks
//! and no log.
//!
//! What it deliberately does not do: talk to Redis, split or check shards, retry, or count to a quorum.

// What tests share speaks of the crate by its name.
#[cfg(test)]
extern crate self as tlog_store;

mod chain;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod directory;
mod fault;
mod log_state;
mod memory;
mod memory_chains;
pub mod observe;
mod port;
mod ranges;
mod replaceable;
pub mod slave;

pub use chain::ChainStore;
pub use directory::{DirectoryOptions, DirectoryStore, Holder, lock_holder};
pub use fault::{FaultControl, FaultyStore, Operation, RandomFaults};
pub use memory::MemoryStore;
pub use memory_chains::{LinkStep, MemoryChains};
pub use port::{
    FillOutcome, Head, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord,
    StoreDurability, StoreError, StoreErrorKind, StoreIdentity,
};
pub use ranges::NumberRanges;
pub use replaceable::ReplaceableStore;
