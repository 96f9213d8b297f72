//! How a slave's syncer is doing.

use std::time::SystemTime;

use tlog_proto::Timestamp;
use tlog_store::slave::{Restoring, SlavePosition};

use super::cluster::SlaveCluster;
use super::needs_resync::NeedsResync;

/// How a syncer is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct SlaveStatus {
    /// What it does, or waits for.
    pub state: SlaveSyncState,
    /// The slave holds everything up to here. None before it was found out.
    pub position: Option<SlavePosition>,
    /// Writes applied since the syncer was started.
    pub blocks: u64,
    /// Bytes of content in them.
    pub bytes: u64,
    /// How far the slave is behind what is known of the log; none before both were found out.
    pub lag: Option<SlaveLag>,
}

/// How far a slave is behind its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlaveLag {
    /// Aggregations of which it does not hold everything.
    pub aggregations: u64,
    /// Writes that it does not hold; none where sequences began anew between, so that they do not tell.
    pub blocks: Option<u64>,
    /// When the oldest of these aggregations was sealed, by the server's clock; none where there is none.
    pub since: Option<Timestamp>,
}

/// What a syncer does, or waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum SlaveSyncState {
    /// It looks what the slave has.
    Starting,
    /// It applies what the slave lacks.
    Syncing,
    /// The slave holds everything.
    UpToDate,
    /// A store of the slave is away. It is tried again and again.
    WaitingForSlave {
        /// Since when.
        since: SystemTime,
        /// What went wrong last.
        because: String,
    },
    /// The log cannot be read. It is tried again and again.
    WaitingForLog {
        /// Since when.
        since: SystemTime,
        /// What went wrong last.
        because: String,
    },
    /// A restore fills the slave, or was interrupted. The syncer goes on when it is complete.
    Restoring(Restoring),
    /// The slave is somebody's primary. The syncer goes on when that was taken back.
    Stopped,
    /// The slave has to be filled anew. The syncer goes on when that is done.
    NeedsResync(NeedsResync),
    /// Another syncer has taken the slave over. This one has ended.
    Fenced,
    /// It was asked to stop, and has ended.
    Ended,
}

impl SlaveSyncState {
    /// A short name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            SlaveSyncState::Starting => "starting",
            SlaveSyncState::Syncing => "syncing",
            SlaveSyncState::UpToDate => "up_to_date",
            SlaveSyncState::WaitingForSlave { .. } => "waiting_for_slave",
            SlaveSyncState::WaitingForLog { .. } => "waiting_for_log",
            SlaveSyncState::Restoring(_) => "restoring",
            SlaveSyncState::Stopped => "stopped",
            SlaveSyncState::NeedsResync(_) => "needs_resync",
            SlaveSyncState::Fenced => "fenced",
            SlaveSyncState::Ended => "ended",
        }
    }
}

/// Tells people of another kind of state.
pub(super) fn log_change(slave: &SlaveCluster, state: &SlaveSyncState) {
    let (vdisk, kind) = (slave.vdisk(), state.kind());
    match state {
        SlaveSyncState::WaitingForSlave { because, .. } | SlaveSyncState::WaitingForLog { because, .. } => {
            tracing::warn!(%vdisk, state = kind, because, "the slave is not synced; trying again and again");
        }
        SlaveSyncState::NeedsResync(reason) => {
            tracing::error!(%vdisk, %reason, "the slave needs a resync; {}", reason.remedy());
        }
        SlaveSyncState::Stopped | SlaveSyncState::Restoring(_) => {
            tracing::warn!(%vdisk, state = kind, "nothing is applied to the slave");
        }
        _ => tracing::debug!(%vdisk, state = kind, "slave syncer"),
    }
}
