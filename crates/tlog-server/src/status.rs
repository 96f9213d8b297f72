//! What a server tells about itself.

use std::net::SocketAddr;

use tlog_proto::{LogPosition, Sequence, VdiskId};

/// What a server is doing, for an admin endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// Connections, whatever their state.
    pub connections: usize,
    /// Those of them that have not said yet who they are.
    pub newcomers: usize,
    /// Bytes set aside for large messages that are just arriving; all connections together.
    pub message_bytes: usize,
    /// Bytes of blocks that are not durable, or are just being taken in; all vdisks together.
    pub unflushed_bytes: usize,
    /// Bytes of blocks that came out of order; all vdisks together.
    pub window_bytes: usize,
    /// Every vdisk that is open, and those that closed because of an error, by name.
    pub vdisks: Vec<VdiskStatus>,
}

/// Where one vdisk stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiskStatus {
    /// Which one.
    pub vdisk: VdiskId,
    /// Whether its log is open, being opened or being closed. If not, it is here for its `last_error`.
    pub open: bool,
    /// The live connection's other end.
    pub peer: Option<SocketAddr>,
    /// Highest sequence that the live connection has brought.
    pub received: Option<Sequence>,
    /// The last block of the log, durable or not.
    pub ordered: Option<LogPosition>,
    /// The last durable block.
    pub durable: Option<LogPosition>,
    /// Bytes of ordered blocks that are not durable.
    pub unflushed_bytes: usize,
    /// Blocks that wait for an earlier one.
    pub window_blocks: usize,
    /// Their bytes.
    pub window_bytes: usize,
    /// The last thing that went wrong with this vdisk, while the server has been running.
    pub last_error: Option<String>,
}

impl VdiskStatus {
    pub(crate) fn new(vdisk: VdiskId) -> Self {
        Self {
            vdisk,
            open: true,
            peer: None,
            received: None,
            ordered: None,
            durable: None,
            unflushed_bytes: 0,
            window_blocks: 0,
            window_bytes: 0,
            last_error: None,
        }
    }
}

/// How a server stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "it says whether anything was lost"]
pub struct RunReport {
    /// The vdisks that were open when the server was told to stop, by name.
    pub vdisks: Vec<VdiskReport>,
}

/// How one vdisk was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiskReport {
    /// Which one.
    pub vdisk: VdiskId,
    /// The last durable block.
    pub durable: Option<LogPosition>,
    /// The last block of the log. Between the two lies what clients must send again.
    pub ordered: Option<LogPosition>,
    /// Why not everything was made durable; none if it was.
    pub error: Option<String>,
}

impl RunReport {
    /// Whether everything that was ordered is durable.
    pub fn all_durable(&self) -> bool {
        self.vdisks.iter().all(|vdisk| vdisk.error.is_none())
    }
}
