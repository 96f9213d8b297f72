//! Logs on memory stores, written through the stores' own operations, and read back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod chain;
mod end;
mod file;
mod format1;
mod log;
mod losses;
mod moments;
mod oracle;
mod replay;
mod verdicts;
