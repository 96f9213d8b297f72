//! What a client can be told.

use std::time::Duration;

use tlog_proto::{Limits, Sequence, SessionId};

/// How a client connects and how much it holds. Every field has a default:
///
/// ```
/// use tlog_client::ClientOptions;
///
/// let options = ClientOptions { max_unflushed_bytes: 8 << 20, ..ClientOptions::default() };
/// ```
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Sequence of the first block that will be handed over. Default 1.
    ///
    /// An empty log takes any. Else: the log's last sequence + 1 continues it; higher is refused as a gap
    /// ([`ConnectError::Gap`](crate::ConnectError::Gap)); lower starts a new generation, unless `session` is the one
    /// that wrote the log's end.
    pub first_sequence: Sequence,
    /// Start over at `first_sequence` whatever the log holds, as a new generation. Default false.
    pub reset_first_sequence: bool,
    /// Which client instance this is. Default: none, and a random one is drawn for each connect.
    ///
    /// Give the same one again only where what this program sends again under a sequence is what it sent before: the
    /// server then takes resent blocks for duplicates without looking at them.
    pub session: Option<SessionId>,
    /// How much may be handed over and not be durable yet. Default 64 MiB.
    ///
    /// Every block counts with its data and [`BLOCK_OVERHEAD`](crate::BLOCK_OVERHEAD). A block that is larger than the
    /// bound is taken when nothing else is held. At the bound [`Client::set`](crate::Client::set) and its like wait.
    pub max_unflushed_bytes: usize,
    /// How long resolving the name and connecting may take. Default 5 s.
    pub connect_timeout: Duration,
    /// How long the handshake may take once connected. The server opens the vdisk's log in this time, which after a crash
    /// takes a while. Default 30 s.
    pub handshake_timeout: Duration,
    /// How long a server may take nothing of what waits to be written **and** say nothing before the connection counts as
    /// broken. A server whose storage is slow stops reading: leave it time. Default 60 s.
    pub write_timeout: Duration,
    /// Largest block that is sent, and what is accepted of a server's messages.
    pub limits: Limits,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            first_sequence: Sequence(1),
            reset_first_sequence: false,
            session: None,
            max_unflushed_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}
