//! The commands of `tlog`, one in each file: its arguments, and what it does.

pub(crate) mod config;
pub(crate) mod keygen;
pub(crate) mod scrub;
