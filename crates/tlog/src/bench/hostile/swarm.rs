//! Hostile clients of one kind, in a process of their own: what they cost is told apart from what the server costs, and they have their own
//! bound of open files.
//!
//! ```text
//!  each of N: connect --> be hostile until the server closes --> wait until a second has passed since it connected --> again
//!  all N were hostile once: prints "ready".   SIGTERM: none connects again; once all are closed prints "report {...}" and ends
//! ```

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tlog_proto::{
    Block, BlockIndex, FrameReader, HandshakeRequest, HandshakeStatus, Limits, Sequence, SessionId,
    Timestamp, VdiskId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::kind::HostileKind;
use crate::bench::process::allow_open_files;

/// How many connect at the same time, so that the listener's queue is not what is measured.
const CONNECTING: usize = 128;

/// Addresses of this machine that they come from: one has ports for 28,000 connections, those included that have just closed.
const SOURCES: usize = 16;

/// Between two bytes of who drips, and the shortest life of a connection that comes again.
const SECOND: Duration = Duration::from_secs(1);

/// How long a server has to close what is still open in the end. Whatever it has not closed by then is told as such.
const CLOSING: Duration = Duration::from_secs(45);

/// Files of the process beside its connections.
const OTHER_FILES: u64 = 64;

/// No bytes went for so long: nobody reads at the other end any more.
const STUCK: Duration = Duration::from_millis(500);

/// Hostile clients of one kind.
#[derive(Debug)]
pub(crate) struct Swarm {
    pub(crate) kind: HostileKind,
    pub(crate) server: SocketAddr,
    pub(crate) count: usize,
    /// Whether the server speaks TLS: what drips is then the beginning of its hello.
    pub(crate) tls: bool,
}

/// What became of them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct SwarmReport {
    /// Connections that came about.
    pub(crate) opened: u64,
    /// Attempts that did not.
    pub(crate) not_opened: u64,
    /// How long the one lived that the server closed latest, since it was connected.
    pub(crate) longest_lived_seconds: f64,
    /// Those that the server had not closed in the end.
    pub(crate) still_open: u64,
    /// Bytes that they sent.
    pub(crate) bytes: u64,
    /// How long they were at it.
    pub(crate) seconds: f64,
}

#[derive(Debug, Default)]
struct Tally {
    opened: AtomicU64,
    not_opened: AtomicU64,
    longest_nanos: AtomicU64,
    open: AtomicU64,
    bytes: AtomicU64,
    ready: AtomicUsize,
}

impl Swarm {
    /// Is hostile until SIGTERM comes. Says on standard output when all are at it, and what became of them.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        allow_open_files(self.count as u64 + OTHER_FILES).context("hostile clients")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let begun = Instant::now();
        let tally = Arc::new(Tally::default());
        let (all_ready, stop) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        let mut slots = JoinSet::new();
        let count = self.count;
        let swarm = Arc::new(self);
        for number in 0..count {
            let slot = Slot {
                swarm: Arc::clone(&swarm),
                number,
                tally: Arc::clone(&tally),
                connecting: Arc::clone(&connecting),
                all_ready: Arc::clone(&all_ready),
                stop: stop.clone(),
                was_ready: AtomicBool::new(false),
            };
            slots.spawn(slot.run());
        }
        tokio::select! {
            ready = all_ready.acquire() => {
                ready?.forget();
                say("ready")?;
                terminate.recv().await;
            }
            _ = terminate.recv() => {}
        }
        let seconds = begun.elapsed().as_secs_f64();
        let bytes = tally.bytes.load(Ordering::Relaxed);
        stop.cancel();
        let _told_as_still_open =
            timeout(CLOSING, async { while slots.join_next().await.is_some() {} }).await;
        let report = SwarmReport {
            opened: tally.opened.load(Ordering::Relaxed),
            not_opened: tally.not_opened.load(Ordering::Relaxed),
            longest_lived_seconds: tally.longest_nanos.load(Ordering::Relaxed) as f64 / 1e9,
            still_open: tally.open.load(Ordering::Relaxed),
            bytes,
            seconds,
        };
        say(&format!("{REPORT}{}", serde_json::to_string(&report)?))
    }
}

/// What the line with the report begins with.
pub(crate) const REPORT: &str = "report ";

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// One after the other of its connections.
struct Slot {
    swarm: Arc<Swarm>,
    number: usize,
    tally: Arc<Tally>,
    connecting: Arc<Semaphore>,
    all_ready: Arc<Semaphore>,
    stop: CancellationToken,
    was_ready: AtomicBool,
}

impl Slot {
    async fn run(self) {
        while !self.stop.is_cancelled() {
            let begun = Instant::now();
            let connected = {
                let Ok(_turn) = self.connecting.acquire().await else { return };
                timeout(10 * SECOND, self.connect()).await
            };
            match connected {
                Ok(Ok(stream)) => self.live(stream).await,
                Ok(Err(_)) | Err(_) => _ = self.tally.not_opened.fetch_add(1, Ordering::Relaxed),
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep_until(begun + SECOND) => {}
            }
        }
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = if self.swarm.server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if self.swarm.kind == HostileKind::Unread {
            socket.set_recv_buffer_size(4096)?;
        }
        if self.swarm.server.ip() == Ipv4Addr::LOCALHOST {
            let last = u8::try_from(self.number % SOURCES).unwrap_or(0) + 2;
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0)))?;
        }
        let stream = socket.connect(self.swarm.server).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn live(&self, stream: TcpStream) {
        let tally = &self.tally;
        tally.opened.fetch_add(1, Ordering::Relaxed);
        tally.open.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let closed_by_server = match self.swarm.kind {
            HostileKind::Vanish => {
                self.vanish(stream).await;
                false
            }
            HostileKind::Silent => self.hold(stream, &[]).await,
            HostileKind::Drip => self.hold(stream, &self.greeting()).await,
            HostileKind::Claim => self.claim(stream).await,
            HostileKind::Stall => match self.greeted(stream).await {
                Some(stream) => self.hold(stream, &self.block(4096)).await,
                None => false,
            },
            HostileKind::Unread => match self.greeted(stream).await {
                Some(stream) => self.never_read(stream).await,
                None => false,
            },
        };
        tally.open.fetch_sub(1, Ordering::Relaxed);
        if closed_by_server {
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            tally.longest_nanos.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// It does now what it is here for.
    fn is_hostile(&self) {
        if !self.was_ready.swap(true, Ordering::Relaxed)
            && self.tally.ready.fetch_add(1, Ordering::Relaxed) + 1 == self.swarm.count
        {
            self.all_ready.add_permits(1);
        }
    }

    fn sent(&self, bytes: usize) {
        self.tally.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Sends one byte of these a second, then nothing, until the server closes; true where it did.
    async fn hold(&self, mut stream: TcpStream, bytes: &[u8]) -> bool {
        // Not all in the same moment.
        let mut next = Instant::now() + SECOND.mul_f64(rand::rng().random::<f64>());
        let mut bytes = bytes.iter();
        let mut answer = [0; 512];
        self.is_hostile();
        loop {
            tokio::select! {
                read = stream.read(&mut answer) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return true,
                },
                () = sleep_until(next) => {
                    next += SECOND;
                    if let Some(byte) = bytes.next() {
                        if stream.write_all(&[*byte]).await.is_err() {
                            return true;
                        }
                        self.sent(1);
                    }
                }
            }
        }
    }

    async fn vanish(&self, mut stream: TcpStream) {
        self.is_hostile();
        match self.number % 3 {
            0 => {}
            1 => _ = stream.set_zero_linger(),
            _ => {
                let _gone = stream.write_all(self.greeting().get(..20).unwrap_or_default()).await;
                self.sent(20);
                let _as_well = stream.set_zero_linger();
            }
        }
    }

    async fn claim(&self, mut stream: TcpStream) -> bool {
        let u32s = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        // So many segments, and the words of each: a message of 2^60 bytes takes 2^25 segments of 2^35 bytes.
        let of_2_to_the_60 = [&[(1 << 25) - 1][..], &[u32::MAX; 63]].concat();
        let as_large_as_can_be = u32::try_from(Limits::default().max_block_bytes / 8).unwrap_or(u32::MAX);
        let (greets, table) = match self.number % 5 {
            0 => (false, u32s(&of_2_to_the_60)),
            1 => (false, u32s(&[u32::MAX, u32::MAX])),
            2 => (true, u32s(&of_2_to_the_60)),
            3 => (true, u32s(&[0, u32::MAX])),
            _ => (true, u32s(&[0, as_large_as_can_be])),
        };
        let mut bytes = table;
        if greets {
            bytes.insert(0, 1); // a block
            match self.greeted(stream).await {
                Some(greeted) => stream = greeted,
                None => return false,
            }
        }
        let sent = stream.write_all(&bytes).await;
        self.sent(bytes.len());
        match sent {
            Ok(()) => self.hold(stream, &[]).await,
            Err(_) => true,
        }
    }

    /// Sends the same block over and over: each time there is an answer, and the log does not grow.
    async fn never_read(&self, mut stream: TcpStream) -> bool {
        let blocks = self.block(64).repeat(64);
        let mut at = 0;
        loop {
            let Some(rest) = blocks.get(at..).filter(|rest| !rest.is_empty()) else {
                at = 0;
                continue;
            };
            match timeout(STUCK, stream.write(rest)).await {
                Ok(Ok(bytes)) => {
                    self.sent(bytes);
                    at += bytes;
                }
                Ok(Err(_)) => return true,
                Err(_) => {
                    self.is_hostile();
                    // Until it is closed nothing goes; whether it is cannot be read, or it would be one that reads.
                    sleep(STUCK).await;
                }
            }
        }
    }

    fn vdisk(&self) -> Option<VdiskId> {
        VdiskId::new(&format!("hostile-{}-{}", self.swarm.kind, self.number)).ok()
    }

    /// What a client says first, whole.
    fn greeting(&self) -> Bytes {
        if self.swarm.tls {
            // A record of a handshake, in it the beginning of a hello; of what comes nothing matters.
            return Bytes::from([&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 64]].concat());
        }
        let mut bytes = BytesMut::new();
        if let Some(vdisk) = self.vdisk() {
            let session = SessionId(rand::rng().random());
            HandshakeRequest { session, ..HandshakeRequest::new(vdisk, Sequence(1)) }.encode_into(&mut bytes);
        }
        bytes.freeze()
    }

    fn block(&self, bytes: usize) -> Bytes {
        let mut wire = BytesMut::new();
        if let Some(index) = BlockIndex::new(self.number as u64) {
            Block::set(Sequence(1), index, Timestamp(1), Bytes::from(vec![7; bytes])).encode_into(&mut wire);
        }
        wire.freeze()
    }

    /// The same connection once it was let in.
    async fn greeted(&self, mut stream: TcpStream) -> Option<TcpStream> {
        stream.write_all(&self.greeting()).await.ok()?;
        let mut reader = FrameReader::new(stream, Limits::default());
        let response = timeout(60 * SECOND, reader.handshake_response()).await.ok()?.ok()??;
        (response.status == HandshakeStatus::Ok).then(|| reader.into_inner())
    }
}
