//! Measuring: a load with a known content, the servers it goes to, and what both cost.
//!
//! ```text
//! Site        stores of a kind and a tlog-server, as processes of their own, in a directory that goes away
//!   Load      blocks by tlog-client: a number of them outstanding, or so many per second     -> Written
//!   Check     what the log holds afterwards, block by block, against what was acknowledged
//!   plain     the same values by nothing but SET                                             to compare with
//! Figures     the numbers of one run, Runs: their medians
//! ```
//!
//! What it deliberately does not do: judge. It measures what there is, and says how; whether that is fast is for whoever reads it.

pub(crate) mod check;
pub(crate) mod codec_stages;
pub(crate) mod data;
pub(crate) mod delay;
pub(crate) mod figures;
pub(crate) mod hostile;
mod latency;
pub(crate) mod load;
pub(crate) mod plain;
pub(crate) mod process;
pub(crate) mod reading_back;
mod redis;
pub(crate) mod scale;
pub(crate) mod server_metrics;
pub(crate) mod site;
pub(crate) mod store_load;
pub(crate) mod writing;
