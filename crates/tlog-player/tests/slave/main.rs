//! Slaves: what a syncer and a restore leave there, whatever fails and whenever.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod beside_writes;
mod fencing;
mod handing_over;
mod kills;
mod legacy;
#[allow(dead_code)] // others use the rest
#[path = "../reading/log.rs"]
mod log;
mod on_redis;
mod other_logs;
mod restoring;
mod resyncing;
mod scene;
mod stores_that_forget;
mod syncing;
