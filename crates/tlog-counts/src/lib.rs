//! Fixed work, stage by stage: what a block costs from the connection to the stores, and back.
//!
//! The same stages are measured in two ways. The program `tlog-counts` does each a fixed number of times, for `cargo xtask counts`, which
//! counts the instructions: they depend neither on the machine's clock nor on its neighbours, so that a few per cent more are seen.
//! `cargo bench -p tlog-counts` times them, with what a stage may take beside it.
//!
//! What is deliberately not here: anything that differs from run to run. Blocks, keys and nonces are the same each time, there is one
//! thread, and what waits for a network waits for this same process.

mod path;
mod stages;
mod storage;
mod subject;

pub use stages::{NAMES, Stage};
