//! Stored format 1: what existing servers of protocol 1.1.0-alpha write and read.
//!
//! [`Format1Log`] has the surface of [`Log`](crate::Log) and writes exactly what they do: the shard under the aggregation's id,
//! the id in front of the vdisk's list, and that on **all** n stores before anything is acknowledged. It exists to live beside
//! readers that know nothing else. What format 2 has and this cannot have:
//!
//! - *fencing*: two servers that write one vdisk fork its history. Only one may be told to;
//! - *degraded writes*: while one store is out, nothing is acknowledged;
//! - *generations and sessions*: when a client starts over, history does not say so. Replayed in order the later write wins;
//! - *safe sealing*: one nonce for everything, see [`tlog_codec::format1`].
//!
//! A vdisk with history of format 1 can go on in format 2: [`Log::open`](crate::Log::open) on the same stores, with the keys of
//! format 1 at hand ([`VdiskKeys::with_format1`](tlog_codec::VdiskKeys::with_format1)). Its first aggregation then names the last
//! one of format 1. There is no way back. `docs/format.md` has the rules.

mod delete;
mod foundation;
mod log;
mod opening;
mod storing;
mod tail;
mod writer;

pub(crate) use foundation::{Foundation, follows, foundation};
pub(crate) use tail::ChainTail;

pub use delete::{DeleteError, DeleteProgress, DeleteReport, delete};
pub use foundation::GoingOnError;
pub use log::{Format1Log, Format1Status, Format1StoreStatus};
pub use opening::OpenError;
pub use tlog_codec::format1::Keys;
