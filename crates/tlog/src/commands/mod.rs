//! The commands of `tlog`, one in each file: its arguments, and what it does.

pub(crate) mod bench;
pub(crate) mod blame;
pub(crate) mod checkpoint;
pub(crate) mod config;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod history;
pub(crate) mod keygen;
pub(crate) mod mark;
mod moment_arguments;
pub(crate) mod points;
mod progress;
mod prove;
pub(crate) mod prune;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod restore;
mod retention;
pub(crate) mod scrub;
pub(crate) mod slave;
mod slave_status;
pub(crate) mod store;
pub(crate) mod vdisks;
pub(crate) mod verify;
