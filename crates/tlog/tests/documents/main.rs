//! Vdisks and clusters from documents: real servers, real Redis and etcd processes, and documents that change while everything runs.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod commands;
mod keeping;
mod many;
mod scenario;
mod site;
mod slave;
mod stores;
mod switching;
mod writer;
