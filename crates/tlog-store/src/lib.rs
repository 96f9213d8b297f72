//! Where shards live: the port [`ShardStore`] and its adapters.
//!
//! A vdisk's log is kept on k + m independent stores; store i holds shard i of every aggregation. A store knows
//! numbers, epochs and bytes; it does not know what an aggregation is, never talks to another store and decides
//! nothing about durability. Each operation is atomic on its store; nothing needs atomicity across stores.
//! `docs/commit-and-recovery.md` has the rules that writers and readers build on these operations.

mod port;
mod ranges;

pub use port::{
    FillOutcome, Head, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreError,
    StoreErrorKind, StoreIdentity,
};
pub use ranges::NumberRanges;
