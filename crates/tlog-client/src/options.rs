//! What a client can be told.

use std::time::Duration;

use tlog_proto::{Limits, Sequence, SessionId};

use crate::TlsOptions;

/// How a client connects, how much it holds, and how patient it is. Every field has a default:
///
/// ```
/// use tlog_client::ClientOptions;
///
/// let options = ClientOptions { max_unflushed_bytes: 8 << 20, ..ClientOptions::default() };
/// ```
///
/// No duration may be zero where nothing else is said; one that is counts as a millisecond.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where in the log it begins. Default [`Start::Continue`].
    pub start: Start,
    /// Which client instance this is. Default: none, and a random one is drawn for each client. Only looked at with
    /// [`Start::At`]; for the others a new one is always drawn.
    ///
    /// Give the same one again only where what this program sends again under a sequence is what it sent before: the
    /// server then takes resent blocks for duplicates without looking at them.
    pub session: Option<SessionId>,
    /// TLS to every server. Default: none, plain TCP.
    pub tls: Option<TlsOptions>,
    /// How much may be handed over and not be durable yet. Default 64 MiB.
    ///
    /// Every block counts with its data and [`BLOCK_OVERHEAD`](crate::BLOCK_OVERHEAD). A block that is larger than the
    /// bound is taken when nothing else is held. At the bound [`Client::append`](crate::Client::append) and its like wait.
    pub max_unflushed_bytes: usize,
    /// How long resolving the name, connecting and, with it, the TLS handshake may take at one server. Default 5 s.
    pub connect_timeout: Duration,
    /// How long the handshake may take once connected. The server opens the vdisk's log in this time, which after a crash
    /// takes a while. Default 30 s.
    pub handshake_timeout: Duration,
    /// For how long the first connect goes round the servers before it fails. Default: zero, each is tried once.
    pub connect_deadline: Duration,
    /// How long a client that lost its connection goes round the servers before it ends: until one accepts and something becomes
    /// durable there, or nothing has to. Each is tried once more in any case. Default: none, it tries for ever.
    pub reconnect_deadline: Option<Duration>,
    /// How long is waited between two rounds through the servers.
    pub backoff: Backoff,
    /// How long a server that owes an answer may say nothing before it is left for the next one. Default 15 s.
    ///
    /// Whenever something is not durable and half of this has passed in silence, the server is asked to flush, which it has
    /// to answer at once: so one that hangs is noticed within one and a half times this, and one that waits for
    /// its flush time or for slow stores is not taken for one. The time in which it takes bytes of a large block does not count.
    pub answer_timeout: Duration,
    /// After how long a block is sent again that the server has not said to have received, while it says nothing at all or has
    /// received later ones. Twice as long each time. Default 5 s.
    pub resend_timeout: Duration,
    /// After how long the server is asked to flush what was sent and is not durable. Servers flush by themselves after their
    /// own flush time, 25 s by default. Default 60 s.
    pub flush_after: Duration,
    /// Largest block that is sent, and what is accepted of a server's messages.
    pub limits: Limits,
}

/// Where in a vdisk's log a client begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// After the last sequence that the log durably holds; with sequence 1 in an empty log. Servers of the original implementation do
    /// not tell where that is: [`ConnectError::LogEndUnknown`](crate::ConnectError::LogEndUnknown).
    ///
    /// What another client has sent and the server has not flushed yet is flushed first, and lies before this client's first block.
    #[default]
    Continue,
    /// With this sequence. An empty log takes any. Else: the log's last sequence + 1 continues it; higher is refused as a gap
    /// ([`ConnectError::Gap`](crate::ConnectError::Gap)); lower starts a new generation, unless
    /// [`ClientOptions::session`] is the one that wrote the log's end. Where that lies before the last sequence, this is the way to
    /// send again what [`Client::unflushed`](crate::Client::unflushed) gave back.
    At(Sequence),
    /// With this sequence, whatever the log holds: a new generation.
    Reset(Sequence),
}

/// Waits between rounds through the servers: the first, twice that, and so on up to the longest. Half of each is random, so that clients
/// which lost the same server do not all come back in the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the second round. Default 100 ms.
    pub first: Duration,
    /// Never longer. Default 5 s.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after so many rounds, at least one.
    pub(crate) fn wait(&self, rounds: usize, jitter: f64) -> Duration {
        let doublings = u32::try_from(rounds.saturating_sub(1)).unwrap_or(u32::MAX).min(30);
        let longest = self.longest.max(MIN);
        let wait = self.first.max(MIN).saturating_mul(1 << doublings).min(longest);
        wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(5) }
    }
}

/// What zero counts as, so that nothing spins.
const MIN: Duration = Duration::from_millis(1);

impl ClientOptions {
    /// Times that can be added to any moment, and are not zero.
    pub(crate) fn bounded(self) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let bounded = |duration: Duration| duration.clamp(MIN, YEAR);
        Self {
            connect_timeout: bounded(self.connect_timeout),
            handshake_timeout: bounded(self.handshake_timeout),
            connect_deadline: self.connect_deadline.min(YEAR),
            answer_timeout: bounded(self.answer_timeout),
            resend_timeout: bounded(self.resend_timeout),
            flush_after: bounded(self.flush_after),
            backoff: Backoff { first: bounded(self.backoff.first), longest: bounded(self.backoff.longest) },
            ..self
        }
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            start: Start::Continue,
            session: None,
            tls: None,
            max_unflushed_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(30),
            connect_deadline: Duration::ZERO,
            reconnect_deadline: None,
            backoff: Backoff::default(),
            answer_timeout: Duration::from_secs(15),
            resend_timeout: Duration::from_secs(5),
            flush_after: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}
