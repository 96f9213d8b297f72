//! Ordered blocks in, durable aggregations out: the writer of a vdisk's log.
//!
//! ```text
//! Log::append -> aggregator -> seal -> link -> append to n stores -> committed when W hold it -> durable position
//!      open: promise, adopt, start (recovery)     a store is back: backfill     a store is blank: refill, enter
//! ```
//!
//! [`Log::open`] fences every older writer and finds where the log ends; [`Log::append`] takes blocks in order;
//! [`Log::durability`] says how far they are durable. One task owns a log's state. What it decides is in pure modules (the
//! aggregation policy, the commit rule, adoption), and `docs/commit-and-recovery.md` explains why the rules are what they are.
//!
//! [`format1`] has the same for the stored format of existing servers, and what a log goes on from that began in it.
//!
//! It does not order blocks, know sessions' clients, or read history beyond what recovery, repair and duplicate checks need.

mod aggregator;
mod commit;
mod delete;
mod extra;
pub mod format1;
mod lane;
mod log;
mod lookup;
mod metric;
mod open_error;
mod pruning;
mod recovery;
mod repair;
mod scrub;
mod settings;
mod status;
mod writer;

#[cfg(any(test, feature = "simulation"))]
pub mod broken;

#[cfg(test)]
mod beside_writes;
#[cfg(test)]
mod comeback;
#[cfg(test)]
mod exploration;
#[cfg(test)]
mod removing;
#[cfg(test)]
mod replacing;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod testing;

pub use delete::{DeleteError, delete_log};
pub use extra::{ExtraError, StoredAggregation};
pub use log::{AppendError, CloseReason, Durability, Log, LogEnd, PositionedBlock};
pub use lookup::LookupError;
pub use open_error::{Numbers, OpenError, ReplaceError};
pub use pruning::{PruneError, Pruned};
pub use scrub::{ScrubError, ScrubProgress, ScrubReport, StoreScrub, scrub};
pub use settings::{InvalidSettings, LogSettings};
pub use status::{LaneState, LogStatus, StoreStatus};
