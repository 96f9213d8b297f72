//! A running server on real sockets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod hostile;
mod limits;
mod sessions;
mod shutdown;
mod soak;
mod tls;
