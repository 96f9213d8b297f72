//! Logs of format 1 on memory stores: written, opened after crashes, gone on from in format 2, deleted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod cluster;
mod crashes;
mod deletion;
mod going_on;
mod writing;
