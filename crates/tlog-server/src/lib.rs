//! The tlog server as a library.

mod port;

pub use port::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, SlaveSync,
    SlaveSyncError, SlaveSyncOutcome, VdiskLog,
};
