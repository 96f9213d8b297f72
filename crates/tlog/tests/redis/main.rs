//! The real binaries on real Redis servers.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod degraded;
mod failover;
mod fencing;
mod format1;
mod operator;
mod retention;
mod site;
mod start;
#[path = "../support/mod.rs"]
mod support;
