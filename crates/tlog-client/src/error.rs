//! What can go wrong: one enum for each operation.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tlog_proto::{BlockFault, FrameError, Sequence, VdiskId, Version};

use crate::{SequenceSet, TlsFailure};

/// Why a server did not accept a client. Nothing was sent to the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The list of servers is empty.
    #[error("no server is named; give at least one as host:port")]
    NoServers,
    /// Something in the list of servers is no address.
    #[error("{server:?} is not a server's address; write host:port, such as tlog-1:11211 or [::1]:11211")]
    NotAnAddress {
        /// As it was written.
        server: String,
    },
    /// None of several servers accepted.
    #[error("none of {} servers: {}", .0.len(), with_semicolons(.0))]
    NoneOf(Vec<ConnectError>),
    /// No TCP connection: the name is unknown, nothing listens there, or no way leads there.
    #[error("cannot connect to {server}: {source}; check that a tlog server listens there")]
    Unreachable {
        /// Where to.
        server: String,
        /// What the system says.
        source: io::Error,
    },
    /// No connection in time.
    #[error("no connection to {server} within {timeout:?}")]
    ConnectTimeout {
        /// Where to.
        server: String,
        /// How long it was tried.
        timeout: Duration,
    },
    /// TLS failed, or one of the two speaks it alone.
    #[error("{server}: {failure}")]
    Tls {
        /// Which server.
        server: String,
        /// What is wrong.
        #[source]
        failure: TlsFailure,
    },
    /// The handshake was not answered in time.
    #[error(
        "{server} did not answer the handshake within {timeout:?}; it may be recovering the log, or be no tlog server"
    )]
    HandshakeTimeout {
        /// Who did not answer.
        server: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The server closed the connection instead of answering the handshake.
    #[error("{server} closed the connection during the handshake; its log says why")]
    ClosedInHandshake {
        /// Who closed.
        server: String,
    },
    /// The connection broke during the handshake.
    #[error("the connection to {server} broke during the handshake: {source}")]
    BrokenInHandshake {
        /// To whom.
        server: String,
        /// What the system says.
        source: io::Error,
    },
    /// The answer is not one that a tlog server gives: malformed, too large, or of an unknown status.
    #[error("{server} does not answer like a tlog server: {source}; check address and port")]
    NotTlog {
        /// Who answered.
        server: String,
        /// What is wrong with the answer.
        source: FrameError,
    },
    /// The server could not read the handshake request.
    #[error("{server} could not read the handshake; its version is {version}, ours {ours}: do they match?", ours = Version::CURRENT)]
    InvalidRequest {
        /// Which server.
        server: String,
        /// What it speaks.
        version: Version,
    },
    /// The server no longer serves clients of this version.
    #[error("{server} (version {version}) does not serve clients as old as {ours}; upgrade this client", ours = Version::CURRENT)]
    ClientTooOld {
        /// Which server.
        server: String,
        /// What it speaks.
        version: Version,
    },
    /// The server is older than the oldest one that this client works with.
    #[error("{server} has version {version}, older than {min}; upgrade the server", min = Version::MIN_SUPPORTED)]
    ServerTooOld {
        /// Which server.
        server: String,
        /// What it speaks.
        version: Version,
    },
    /// The server does not know the vdisk.
    #[error("{server} does not know vdisk {vdisk}; add it to the server's config source, or check the name")]
    UnknownVdisk {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// The client's certificate does not permit the vdisk.
    #[error(
        "{server} does not permit vdisk {vdisk} to this client's certificate: no rule NAME=VDISK in the server's tls-permissions fits both"
    )]
    NotPermitted {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// The first sequence would leave a gap after what the log holds. From a client that comes back: the server lacks
    /// what was acknowledged as durable.
    #[error(
        "{server}: starting at sequence {first_sequence} of vdisk {vdisk} would leave a gap, {}; continue there, or reset the first sequence",
        log_end(.last_flushed)
    )]
    Gap {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
        /// Where the client wanted to start.
        first_sequence: Sequence,
        /// The last sequence that the log durably holds; none in an empty log.
        last_flushed: Option<Sequence>,
    },
    /// Another client has written the vdisk, or has connected for it, since this one was there.
    #[error(
        "{server}: another client has taken vdisk {vdisk} over; what this one holds may no longer fit behind what that one writes"
    )]
    TakenOver {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// The server could not open the log, or the first sequence leaves a gap and the server does not say so.
    #[error(
        "{server} could not open the log of vdisk {vdisk} at sequence {first_sequence}; its log says why"
    )]
    ServerFailed {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
        /// Where the client wanted to start.
        first_sequence: Sequence,
    },
    /// Only with [`Start::Continue`](crate::Start::Continue): the server does not tell where the log ends, as servers of the
    /// original implementation never do; or others write so busily that it was another place each time.
    #[error(
        "{server} does not tell where the log of vdisk {vdisk} ends; give the first sequence yourself, or see that nobody else writes"
    )]
    LogEndUnknown {
        /// Which server.
        server: String,
        /// The vdisk asked for.
        vdisk: VdiskId,
    },
    /// The system gave no random number for the session.
    #[error("no random session number: {0}")]
    NoRandomSession(tlog_ambient::RandomError),
}

fn with_semicolons(errors: &[impl fmt::Display]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn log_end(last_flushed: &Option<Sequence>) -> String {
    match last_flushed {
        Some(last) => format!("the last durable one is {last}"),
        None => "there is nothing".to_owned(),
    }
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
            ConnectError::NoneOf(errors) => errors.iter().any(ConnectError::is_retryable),
            ConnectError::NoServers
            | ConnectError::NotAnAddress { .. }
            | ConnectError::Tls { .. }
            | ConnectError::NotTlog { .. }
            | ConnectError::InvalidRequest { .. }
            | ConnectError::ClientTooOld { .. }
            | ConnectError::ServerTooOld { .. }
            | ConnectError::UnknownVdisk { .. }
            | ConnectError::NotPermitted { .. }
            | ConnectError::Gap { .. }
            | ConnectError::TakenOver { .. }
            | ConnectError::LogEndUnknown { .. }
            | ConnectError::NoRandomSession(_) => false,
        }
    }

    /// Several failures as one: itself, where there is just one.
    pub(crate) fn all_of(mut errors: Vec<ConnectError>) -> Self {
        match (errors.len(), errors.pop()) {
            (_, None) => ConnectError::NoServers,
            (1, Some(error)) => error,
            (_, Some(last)) => {
                errors.push(last);
                ConnectError::NoneOf(errors)
            }
        }
    }
}

/// Why a connection was left. The client goes on with the next server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LostCause {
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
    /// The server owed an answer and said nothing for
    /// [`ClientOptions::answer_timeout`](crate::ClientOptions::answer_timeout).
    #[error("the server said nothing for {0:?}")]
    Silent(Duration),
    /// The server could not make blocks durable and has closed the vdisk.
    #[error("the server could not make blocks durable and closed the vdisk")]
    FlushFailed,
    /// The server refused a block that is whole here again and again.
    #[error("the server refused block {0} again and again")]
    Refused(Sequence),
    /// The server is not one of [`Client::set_servers`](crate::Client::set_servers) any more.
    #[error("the server is not listed any more")]
    Unlisted,
}

impl LostCause {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            LostCause::ServerClosed => "server_closed",
            LostCause::Broken(_) => "broken",
            LostCause::Protocol(_) => "protocol",
            LostCause::Silent(_) => "silent",
            LostCause::FlushFailed => "flush_failed",
            LostCause::Refused(_) => "refused",
            LostCause::Unlisted => "unlisted",
        }
    }
}

/// Why a client ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndCause {
    /// [`Client::close`](crate::Client::close) or [`Client::close_after_flush`](crate::Client::close_after_flush) was
    /// called, or the last clone of the client was dropped.
    #[error("the client was closed")]
    Closed,
    /// No server accepted, or none made anything durable, for
    /// [`ClientOptions::reconnect_deadline`](crate::ClientOptions::reconnect_deadline).
    #[error("no server worked for {after:?}: {}", with_semicolons(.failures))]
    GaveUp {
        /// The deadline.
        after: Duration,
        /// What the last round brought; nothing where servers accepted and failed later.
        failures: Vec<Arc<ConnectError>>,
    },
    /// Another client has written the vdisk, or has connected for it, since this one was there. What is not durable here may no
    /// longer fit behind what that one writes.
    #[error("another client has taken the vdisk over, says {server}")]
    TakenOver {
        /// Which server said so.
        server: String,
    },
    /// Every server lacks what was acknowledged as durable: other stores than before, or data is lost.
    #[error(
        "{server} lacks what was acknowledged as durable: everything before sequence {expected} was, and in its log {}; do the servers have the stores that they had?",
        log_end(.last_flushed)
    )]
    Gap {
        /// One of the servers.
        server: String,
        /// The first sequence that is not acknowledged.
        expected: Sequence,
        /// The last one that the server's log durably holds; none where it is empty.
        last_flushed: Option<Sequence>,
    },
    /// A block's data no longer is what its hash says: it changed in this program's memory. What was sent of it was refused.
    #[error("block {0} changed in memory after it was handed over; write it anew")]
    Damaged(Sequence),
    /// The runtime that the client was connected on is gone.
    #[error("the runtime that the client ran on was shut down")]
    RuntimeGone,
}

impl EndCause {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            EndCause::Closed => "closed",
            EndCause::GaveUp { .. } => "gave_up",
            EndCause::TakenOver { .. } => "taken_over",
            EndCause::Gap { .. } => "gap",
            EndCause::Damaged(_) => "damaged",
            EndCause::RuntimeGone => "runtime_gone",
        }
    }
}

/// How a client ended: why, and which sequences were not acknowledged as durable by then. Cheap to clone.
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

/// A block is not known to be durable, and will not become so: the client has ended. The answer of a
/// [`Durable`](crate::Durable) handle.
#[derive(Clone, Debug, thiserror::Error)]
#[error("block {sequence} is not acknowledged: {ending}")]
pub struct Unacknowledged {
    /// Which block.
    pub sequence: Sequence,
    /// Why, and which others.
    pub ending: Ending,
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
    /// There is no sequence left; start over with [`Start::Reset`](crate::Start::Reset).
    #[error("there is no sequence left; start over with a reset")]
    NoSequenceLeft,
    /// Only from `try_` methods: [`ClientOptions::max_unflushed_bytes`](crate::ClientOptions::max_unflushed_bytes) are
    /// not durable yet.
    #[error("too much is not durable yet")]
    Full,
    /// [`Client::close_after_flush`](crate::Client::close_after_flush) has begun.
    #[error("the client is closing")]
    Closing,
    /// The client has ended.
    #[error(transparent)]
    Ended(#[from] Ending),
}

/// Why the slave is not known to hold what was flushed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SlaveSyncError {
    /// No server said so in time. One may still do it: the command cannot be taken back, and after it the slave
    /// syncer of the vdisk stops.
    #[error("the slave is not known to be in sync after {timeout:?}")]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The client ended before.
    #[error(transparent)]
    Ended(#[from] Ending),
}
