//! Keeping a slave: block storage in a cluster of its own, to which a disk can switch.
//!
//! ```text
//! SlaveCluster     the stores of a slave, for one vdisk: what they have, stop and start
//! SlaveSyncer      applies every durable write of a log to it, in the log's order, for as long as it runs
//!   .status()      how far it is, and what it waits for
//!   .wait_until()  when the slave holds everything up to a position; .hand_over() stops the syncer then, for good
//! outlook          whether a slave can be gone on with, for whoever has no syncer to ask
//! resync_slave     fills it anew from its log, unless it may hold the last copy of something
//! restore_to_slave puts a disk at any moment into a cluster, of any number of stores; goes on where it was interrupted
//! ```
//!
//! **What a slave is at any time**: the disk after some write of its log, at or after the position that it names. Also after a
//! kill of anything at any instant, as long as the stores keep what they have answered. Where a store has forgotten something, or for
//! any other reason the blocks are not known to be that, nothing is applied any more, and [`NeedsResync`] says why.
//!
//! `docs/slave-sync.md` explains how, and has what is stored.

mod adopt;
#[cfg(feature = "simulation")]
pub mod broken;
mod cluster;
mod cursor;
mod engine;
mod follow;
mod lag;
mod needs_resync;
mod outlook;
mod restore;
mod resync;
mod runs;
mod session;
mod standing;
mod status;
mod syncer;

pub use cluster::{SlaveCluster, SlaveError, SlaveState, SlaveSurvey};
pub use follow::{FollowError, Followed, Follower};
pub use lag::lag_behind;
pub use needs_resync::{LegacyFault, NeedsResync};
pub use outlook::{Outlook, OutlookError, outlook};
pub use restore::{SlaveRestoreError, SlaveRestoreOptions, SlaveRestoreSummary, restore_to_slave};
pub use resync::resync_slave;
pub use standing::Standing;
pub use status::{SlaveLag, SlaveStatus, SlaveSyncState};
pub use syncer::{SlaveSyncOptions, SlaveSyncer, SlaveWaitError};
