//! Reads a vdisk's log back: its history, the disk at any moment, and whether all of it is still there.
//!
//! ```text
//! LogReader::open(stores)            which aggregations the log has, and whether its end is certain   no key
//!   .history()            -> History what was written when, aggregation by aggregation                no key
//!   .replay(range)        -> Replay  its aggregations with their blocks, in order, as fast as all stores and cores allow
//!   .disk_state(moment)   -> DiskState which write of each block counts at a moment, without its data
//!   .points(options)      -> Points   moments worth restoring                         no key
//!   .points_with_records(keys, options)    the same with marks and checkpoints
//!   .diff(from, to)       -> DiskDiff which blocks differ between two moments, without their data
//!   .blame(block, moment) -> Blame    who wrote a block, and when, from new to old
//!   prove(moment)         -> Proof  that a restore works: it reads and checks everything a restore would, and writes nothing
//!   .restore(state)       -> RestoreTarget  the data, each block once: restore_to_file, ResumableFile (goes on after an
//!                                           interruption), restore_to_device, restore_in_order (a pipe)
//! compare_with_image(state) -> Comparison   whether an image is the disk at the moment, by its hashes alone
//!   .verify(depth)        -> VerifyReport   chain, shards, what may still be lost     no key unless deep
//! ```
//!
//! A reader promises nothing to any store and changes nothing: it works beside a running writer, and sees the log as it was
//! when the reader was opened. Everything it says is proven by the chain of ids (`docs/restore.md` explains moments, uncertain
//! ends and verdicts). What cannot be read is a named error; never is anything answered that was not written.
//!
//! It does not repair (that is the writer's scrub), does not write to stores, and knows no keys but those it is given for one
//! call.
//!
//! A log may begin with what existing servers wrote in format 1: it is found without being told, and read with the keys that
//! [`LogReader::open_with`] takes. To restore, history and verify both parts are one log.

mod blame;
mod block_set;
mod checkpoint;
mod compare;
mod copy;
mod diff;
mod disk_state;
mod extent;
mod file;
mod find;
mod format1;
mod gathering;
mod history;
mod in_flight;
mod in_order;
mod in_place;
mod job;
mod metric;
mod moment;
mod points;
mod prove;
mod put_together;
mod reader;
mod records;
mod replay;
mod resolve;
mod restore;
mod resume;
pub mod slave;
mod task;
mod verify;
mod verify_format1;
mod walk;
mod writes;

pub use blame::{Blame, BlockWrite};
pub use checkpoint::Checkpoint;
pub use compare::{Comparison, compare_with_image};
pub use copy::BlockReader;
pub use diff::{BlockContent, ChangedBlock, DiskDiff};
pub use disk_state::{BlockPlace, DiskState, DiskStateError, ReadOptions};
pub use extent::{Extent, UncertainEnd};
pub use file::{FileOptions, RestoreFileError, SparseFile, restore_to_file};
pub use format1::{Format1Error, Format1Progress, StoredFormat};
pub use history::{AggregationInfo, History, HistoryError};
pub use in_order::restore_in_order;
pub use in_place::{InPlaceTarget, RestoreDeviceError, restore_to_device};
pub use moment::{Moment, MomentError, MomentReached};
pub use points::{Point, PointOptions, PointReason, Points};
pub use prove::{DiskDigest, Proof, ProveError, ProveFault, ProveOptions, prove};
pub use reader::{LogReader, OpenError};
pub use records::{RecordFound, Records, RecordsError};
pub use replay::{Replay, ReplayError, ReplayOptions, Replayed};
pub use restore::{
    MemoryTarget, NoTarget, RestoreError, RestoreOptions, RestoreProgress, RestoreSummary, RestoreTarget,
    RestoredBefore,
};
pub use resume::{ResumableFile, ResumeError, ResumeOptions, Unfinished};
pub use verify::{ContentFault, Depth, StoreReport, Verdict, VerifyError, VerifyProgress, VerifyReport};
pub use verify_format1::{Format1Report, Format1StoreReport};
pub use writes::{WalkProgress, WritePlace};
