//! What stores hold together, on memory stores that fail.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod log;
mod opening;
mod reading;
mod survey;
