//! Logs written through the stores' own operations, and read back: on memory stores, and where it says so on directories and real servers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod blame;
mod chain;
mod checkpoint_story;
mod checkpoints;
mod diff;
mod end;
mod few_blocks;
mod file;
mod format1;
mod log;
mod losses;
mod many_moments;
mod moments;
mod oracle;
mod points;
mod proofs;
mod removed;
mod replay;
mod resuming;
mod targets;
mod verdicts;
