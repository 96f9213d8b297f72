//! What can go wrong: one enum for each operation.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tlog_proto::{BlockFault, FrameError, Sequence, VdiskId, Version};

use crate::SequenceSet;

/// Why there is no connection. Nothing was sent to the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No TCP connection: the name is unknown, nothing listens there, or no way leads there.
    #[error("cannot connect to {addr}: {source}; check that a tlog server listens there")]
    Unreachable {
        /// Where to.
        addr: String,
        /// What the system says.
        source: io::Error,
    },
    /// No TCP connection in time.
    #[error("no connection to {addr} within {timeout:?}")]
    ConnectTimeout {
        /// Where to.
        addr: String,
        /// How long it was tried.
        timeout: Duration,
    },
    /// The handshake was not answered in time.
    #[error(
        "{addr} did not answer the handshake within {timeout:?}; it may be recovering the log, or be no tlog server"
    )]
    HandshakeTimeout {
        /// Who did not answer.
        addr: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The server closed the connection instead of answering the handshake.
    #[error("{addr} closed the connection during the handshake; its log says why")]
    ClosedInHandshake {
        /// Who closed.
        addr: String,
    },
    /// The connection broke during the handshake.
    #[error("the connection to {addr} broke during the handshake: {source}")]
    BrokenInHandshake {
        /// To whom.
        addr: String,
        /// What the system says.
        source: io::Error,
    },
    /// The answer is not one that a tlog server gives: malformed, too large, or of an unknown status.
    #[error("{addr} does not answer like a tlog server: {source}; check address and port")]
    NotTlog {
        /// Who answered.
        addr: String,
        /// What is wrong with the answer.
        source: FrameError,
    },
    /// The server could not read the handshake request.
    #[error("the server could not read the handshake; its version is {server}, ours {ours}: do they match?", ours = Version::CURRENT)]
    InvalidRequest {
        /// What the server speaks.
        server: Version,
    },
    /// The server no longer serves clients of this version.
    #[error("the server (version {server}) does not serve clients as old as {ours}; upgrade this client", ours = Version::CURRENT)]
    ClientTooOld {
        /// What the server speaks.
        server: Version,
    },
    /// The server is older than the oldest one that this client works with.
    #[error("the server's version {server} is older than {min}; upgrade the server", min = Version::MIN_SUPPORTED)]
    ServerTooOld {
        /// What the server speaks.
        server: Version,
    },
    /// The server does not know the vdisk.
    #[error(
        "the server does not know vdisk {vdisk}; add it to the server's config source, or check the name"
    )]
    UnknownVdisk {
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// `first_sequence` would leave a gap after what the log holds.
    #[error(
        "vdisk {vdisk}: starting at sequence {first_sequence} would leave a gap, the last durable one is {last_flushed}; continue at {next}, or reset the first sequence",
        next = last_flushed.next()
    )]
    Gap {
        /// The vdisk asked for.
        vdisk: VdiskId,
        /// Where the client wanted to start.
        first_sequence: Sequence,
        /// The last sequence that the log durably holds.
        last_flushed: Sequence,
    },
    /// The server could not open the log, or `first_sequence` leaves a gap and the server does not say so.
    #[error(
        "the server could not open the log of vdisk {vdisk} at sequence {first_sequence}; its log says why"
    )]
    ServerFailed {
        /// The vdisk asked for.
        vdisk: VdiskId,
        /// Where the client wanted to start.
        first_sequence: Sequence,
    },
    /// Only from [`Client::connect_continuing`](crate::Client::connect_continuing): the server does not tell where the
    /// log ends. Servers of the original implementation never do.
    #[error(
        "the server does not tell where the log of vdisk {vdisk} ends, or could not open it; give the first sequence yourself"
    )]
    LogEndUnknown {
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// The system gave no random number for the session.
    #[error("no random session number: {0}")]
    NoRandomSession(getrandom::Error),
}

impl ConnectError {
    /// Whether the same attempt can succeed later without anyone changing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            ConnectError::Unreachable { .. }
            | ConnectError::ConnectTimeout { .. }
            | ConnectError::HandshakeTimeout { .. }
            | ConnectError::ClosedInHandshake { .. }
            | ConnectError::BrokenInHandshake { .. }
            | ConnectError::ServerFailed { .. } => true,
            ConnectError::NotTlog { .. }
            | ConnectError::InvalidRequest { .. }
            | ConnectError::ClientTooOld { .. }
            | ConnectError::ServerTooOld { .. }
            | ConnectError::UnknownVdisk { .. }
            | ConnectError::Gap { .. }
            | ConnectError::LogEndUnknown { .. }
            | ConnectError::NoRandomSession(_) => false,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndCause {
    /// [`Client::close`](crate::Client::close) or [`Client::close_after_flush`](crate::Client::close_after_flush) was
    /// called, or the last clone of the client was dropped.
    #[error("the client was closed")]
    Closed,
    /// The server closed the connection. It does so when another client takes the vdisk over, and at shutdown.
    #[error("the server closed the connection")]
    ServerClosed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    /// The server sent what cannot be understood: malformed, too large, cut short, or of an unknown status. What came
    /// after it could not be trusted.
    #[error("the server sent something that cannot be understood: {0}")]
    Protocol(#[source] FrameError),
    /// The server took nothing and said nothing for
    /// [`ClientOptions::write_timeout`](crate::ClientOptions::write_timeout).
    #[error("the server took nothing and said nothing for {0:?}")]
    Stalled(Duration),
    /// The server could not make blocks durable and has closed the vdisk.
    #[error("the server could not make blocks durable and closed the vdisk")]
    FlushFailed,
    /// The runtime that the client was connected on is gone.
    #[error("the runtime that the client ran on was shut down")]
    RuntimeGone,
}

impl EndCause {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            EndCause::Closed => "closed",
            EndCause::ServerClosed => "server_closed",
            EndCause::Broken(_) => "broken",
            EndCause::Protocol(_) => "protocol",
            EndCause::Stalled(_) => "stalled",
            EndCause::FlushFailed => "flush_failed",
            EndCause::RuntimeGone => "runtime_gone",
        }
    }
}

/// How a connection ended: why, and which sequences were not acknowledged as durable by then. Cheap to clone.
///
/// A sequence that was not acknowledged may be durable all the same, where the acknowledgement was lost with the
/// connection. [`Client::unflushed`](crate::Client::unflushed) gives the blocks back.
#[derive(Clone, Debug)]
pub struct Ending(Arc<(EndCause, SequenceSet)>);

impl Ending {
    pub(crate) fn new(cause: EndCause, unacknowledged: SequenceSet) -> Self {
        Self(Arc::new((cause, unacknowledged)))
    }

    /// Why it ended.
    pub fn cause(&self) -> &EndCause {
        &self.0.0
    }

    /// Every sequence that was handed over and not acknowledged as durable.
    pub fn unacknowledged(&self) -> &SequenceSet {
        &self.0.1
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; not acknowledged: {}", self.cause(), self.unacknowledged())
    }
}

impl std::error::Error for Ending {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause().source()
    }
}

/// Why a block is not known to be durable. The answer of a [`Durable`](crate::Durable) handle.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unacknowledged {
    /// The server refused the block: what arrived was not what its hash says. The connection lives on, and nothing after
    /// this block becomes durable until it is sent again with [`Client::resend`](crate::Client::resend).
    #[error("the server refused block {sequence} as damaged; resend it, blocks after it wait for it")]
    Refused {
        /// Which block.
        sequence: Sequence,
    },
    /// The connection ended before the block was acknowledged.
    #[error("block {sequence} is not acknowledged: {ending}")]
    Ended {
        /// Which block.
        sequence: Sequence,
        /// Why, and which others.
        ending: Ending,
    },
}

impl Unacknowledged {
    /// The block that it is about.
    pub fn sequence(&self) -> Sequence {
        match self {
            Unacknowledged::Refused { sequence } | Unacknowledged::Ended { sequence, .. } => *sequence,
        }
    }
}

/// Why not everything up to a sequence is known to be durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    /// A block at or below the sequence was refused by the server; nothing from it on becomes durable until it is sent
    /// again with [`Client::resend`](crate::Client::resend). The connection lives on.
    #[error("the server refused block {sequence} as damaged; resend it, then flush again")]
    Refused {
        /// The lowest refused block.
        sequence: Sequence,
    },
    /// The connection ended before.
    #[error(transparent)]
    Ended(#[from] Ending),
}

/// Why a block was not taken. It has no sequence and was not sent; nothing has changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// More data than [`Limits::max_block_bytes`](tlog_proto::Limits::max_block_bytes).
    #[error("a block of {bytes} bytes; at most {max} can be sent")]
    TooLarge {
        /// Bytes of its data.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The server would refuse it: a set without data, a delete with data, or a hash that is not the data's.
    #[error(transparent)]
    Fault(#[from] BlockFault),
    /// Only from [`Client::send`](crate::Client::send) and [`Client::try_send`](crate::Client::try_send): not the next
    /// sequence.
    #[error("block {given} was handed over where {expected} is next")]
    NotNext {
        /// The block's sequence.
        given: Sequence,
        /// The one that is next.
        expected: Sequence,
    },
    /// There is no sequence left; start over with
    /// [`ClientOptions::reset_first_sequence`](crate::ClientOptions::reset_first_sequence).
    #[error("there is no sequence left")]
    NoSequenceLeft,
    /// Only from `try_` methods: [`ClientOptions::max_unflushed_bytes`](crate::ClientOptions::max_unflushed_bytes) are
    /// not durable yet.
    #[error("too much is not durable yet")]
    Full,
    /// There is no room, and there will be none before this refused block is sent again with
    /// [`Client::resend`](crate::Client::resend).
    #[error("there is no room until block {sequence}, which the server refused, is sent again")]
    Refused {
        /// The lowest refused block.
        sequence: Sequence,
    },
    /// [`Client::close_after_flush`](crate::Client::close_after_flush) has begun.
    #[error("the client is closing")]
    Closing,
    /// The connection has ended.
    #[error(transparent)]
    Ended(#[from] Ending),
}

/// Why a block was not sent again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResendError {
    /// It is not refused: never handed over, on its way, or durable.
    #[error("block {sequence} is not one that the server refused")]
    NotRefused {
        /// Which block.
        sequence: Sequence,
    },
    /// The connection has ended.
    #[error(transparent)]
    Ended(#[from] Ending),
}

/// Why the slave is not known to hold what was flushed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SlaveSyncError {
    /// The server did not say so in time. It may still do it: the command cannot be taken back, and after it the slave
    /// syncer of the vdisk stops.
    #[error("the slave is not known to be in sync after {timeout:?}")]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The connection ended before.
    #[error(transparent)]
    Ended(#[from] Ending),
}
