//! The network between clients and servers: byte streams over which TCP's promises hold and no others.
//!
//! Bytes of one connection arrive in order and once. What can go wrong is the rest: they come late and in other pieces, the connection
//! breaks in the middle of a message, goes silent in one direction or both without anybody being told, or what was written on an old
//! connection arrives when a newer one has been up for long. Servers cannot be reached at all by some clients for a while.

mod pipe;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use self::pipe::{Pipe, ReadEnd, WriteEnd, ends};

/// How long connections are silent before keepalive finds out, at most.
const LONGEST_SILENCE: Duration = Duration::from_secs(90);

/// How long what was written may be held back, at most.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(8);

/// Who holds one end: a client's host, or a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// Number of a client instance.
    Client(u64),
    /// Number of a server.
    Server(usize),
}

/// A connection, as long as anything of it may matter.
#[derive(Debug)]
struct Connection {
    client: u64,
    server: usize,
    up: Arc<Pipe>,
    down: Arc<Pipe>,
}

impl Connection {
    fn is_of(&self, host: Host) -> bool {
        match host {
            Host::Client(client) => self.client == client,
            Host::Server(server) => self.server == server,
        }
    }

    /// Whether both ends are gone.
    fn is_over(&self) -> bool {
        Arc::strong_count(&self.up) == 1 && Arc::strong_count(&self.down) == 1
    }
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: SmallRng,
    /// Longest way of a piece of data.
    latency: Duration,
    connections: Vec<Connection>,
    /// Servers that answer no new connection, and those that refuse them.
    unreachable: BTreeSet<usize>,
    port: u16,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) read: ReadEnd,
    pub(crate) write: WriteEnd,
}

/// What a fault does to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both ends get an error; what was on its way is lost.
    Reset,
    /// Nothing arrives any more, in one direction or both; long after, both ends get an error.
    Silence {
        /// From the client.
        up: bool,
        /// From the server.
        down: bool,
    },
    /// Nothing arrives for so long.
    Hold(Duration),
}

impl Net {
    pub(crate) fn new(rng: SmallRng, latency: Duration) -> Arc<Self> {
        let state = State { rng, latency, connections: Vec::new(), unreachable: BTreeSet::new(), port: 1024 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection; answers the client's end, the server's, and what the server calls the client. Never, where the server cannot be
    /// reached.
    pub(crate) async fn connect(&self, client: u64, server: usize) -> (Stream, Stream, SocketAddr) {
        let (way, reachable) = {
            let mut state = self.state();
            let latency = state.latency;
            (latency.mul_f64(state.rng.random::<f64>() * 2.0), !state.unreachable.contains(&server))
        };
        sleep(way).await;
        if !reachable {
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        state.connections.retain(|connection| !connection.is_over());
        let latency = state.latency;
        let (up, down) = (Pipe::new(state.rng.random(), latency), Pipe::new(state.rng.random(), latency));
        state.port = state.port.checked_add(1).unwrap_or(1024);
        let peer =
            SocketAddr::from((Ipv4Addr::new(10, 0, 0, u8::try_from(client).unwrap_or(u8::MAX)), state.port));
        let connection = Connection { client, server, up: Arc::clone(&up), down: Arc::clone(&down) };
        state.connections.push(connection);
        let ((up_write, up_read), (down_write, down_read)) = (ends(up), ends(down));
        (Stream { read: down_read, write: up_write }, Stream { read: up_read, write: down_write }, peer)
    }

    /// Whether a server can be connected to.
    pub(crate) fn set_reachable(&self, server: usize, reachable: bool) {
        let mut state = self.state();
        match reachable {
            true => state.unreachable.remove(&server),
            false => state.unreachable.insert(server),
        };
    }

    /// Something happens to connections of a host; a fault that takes its time is ended by a task.
    pub(crate) fn strike(self: &Arc<Self>, host: Host, fault: Fault) {
        let state = &mut *self.state();
        for connection in state.connections.iter().filter(|connection| connection.is_of(host)) {
            let (up, down) = (&connection.up, &connection.down);
            match fault {
                Fault::Reset => {
                    up.break_now(io::ErrorKind::ConnectionReset);
                    down.break_now(io::ErrorKind::ConnectionReset);
                }
                Fault::Silence { up: of_client, down: of_server } => {
                    if of_client {
                        up.go_silent(state.rng.random_range(0..3));
                    }
                    if of_server {
                        down.go_silent(state.rng.random_range(0..3));
                    }
                    // What keepalive finds out at last.
                    let (up, down) = (Arc::clone(up), Arc::clone(down));
                    let after = Duration::from_millis(
                        state.rng.random_range(30_000..LONGEST_SILENCE.as_millis() as u64),
                    );
                    tokio::spawn(async move {
                        sleep(after).await;
                        up.break_now(io::ErrorKind::TimedOut);
                        down.break_now(io::ErrorKind::TimedOut);
                    });
                }
                Fault::Hold(duration) => {
                    let until = Instant::now() + duration;
                    up.hold(until);
                    down.hold(until);
                }
            }
        }
    }

    /// The process of a host is gone: of what it has written some arrives, then the other ends see the end, an error, or nothing.
    /// Answers for how long somebody may not know of it.
    pub(crate) fn cut_off(self: &Arc<Self>, host: Host) -> Duration {
        let (fault, unknown_for) = match self.state().rng.random_range(0..3) {
            // The system closes its connections behind what was written.
            0 => return LONGEST_HOLD + Duration::from_secs(1),
            1 => (Fault::Reset, Duration::ZERO),
            _ => (Fault::Silence { up: true, down: true }, LONGEST_SILENCE),
        };
        self.strike(host, fault);
        unknown_for
    }

    /// From now on everything arrives, and soon. Connections that were silent are gone.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.unreachable.clear();
        state.latency = Duration::from_millis(2);
        for connection in &state.connections {
            connection.up.break_now(io::ErrorKind::ConnectionReset);
            connection.down.break_now(io::ErrorKind::ConnectionReset);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(context)
    }
}
