//! One connection: handshake, then reading and writing side by side in one task.
//!
//! Reading checks the blocks that arrived together, counts their memory and hands them to the vdisk's task; writing takes
//! from the [`Outbox`]. Whichever ends first ends the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{
    Block, BlockFault, BlockStatus, ClientMessage, DecodeError, FrameError, FrameReader, HandshakeRequest,
    HandshakeResponse, HandshakeStatus, Response, Sequence, UnverifiedBlock, VdiskId, hash_many,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::budget::{Budget, Permit};
use crate::outbox::{Ended, Outbox, Reason, ToWrite};
use crate::registry::{Hello, Incoming, Shared, Verdict};
use crate::session::{Greeting, cost};

/// Messages that are taken together, at most.
const MAX_BATCH: usize = 64;
/// Bytes of data from which on hashing is moved off the tasks that serve others.
const HASH_ELSEWHERE: usize = 1 << 20;
/// Batches that may wait for the vdisk's task.
const INBOUND_BATCHES: usize = 4;
/// How long a connection that the server ends may take to read the last words. Closing while the client still sends
/// would make the client's end drop them.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection until it ends.
pub(crate) async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    if let Some(time) = shared.settings.keepalive {
        let keepalive = socket2::TcpKeepalive::new().with_time(time).with_interval(time);
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            debug!(%peer, %error, "no keepalive");
        }
    }
    tokio::select! {
        biased;
        () = shared.kill.cancelled() => {}
        linger = converse(&mut stream, peer, &shared) => if linger == Linger::Yes {
            let _ = stream.shutdown().await;
            let _ = timeout(LINGER, drain(&mut stream)).await;
        },
    }
}

/// Whether something was written that the client is to read before the connection is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Linger {
    Yes,
    No,
}

async fn drain(stream: &mut TcpStream) {
    let mut dropped = [0; 4096];
    while matches!(stream.read(&mut dropped).await, Ok(1..)) {}
}

async fn converse(stream: &mut TcpStream, peer: SocketAddr, shared: &Arc<Shared>) -> Linger {
    let (read, mut write) = stream.split();
    let mut reader = FrameReader::new(read, shared.settings.limits);
    let request = match greeted(&mut reader, peer, shared).await {
        Ok(request) => request,
        Err(None) => return Linger::No,
        Err(Some(status)) => {
            respond(&mut write, &HandshakeResponse::new(status), shared).await;
            return Linger::Yes;
        }
    };
    let vdisk = request.vdisk_id.clone();
    let link = match connect(request, peer, shared).await {
        Connected::Live(link) => link,
        Connected::Refused(answer) => {
            respond(&mut write, &answer, shared).await;
            return Linger::Yes;
        }
        Connected::Gone => return Linger::No,
    };
    let last_flushed = link.last_flushed;
    let accepted = HandshakeResponse { last_flushed, ..HandshakeResponse::new(HandshakeStatus::Ok) };
    if !respond(&mut write, &accepted, shared).await {
        return Linger::No;
    }
    let outbox = Arc::clone(&link.outbox);
    let reading = Reading { reader, peer, shared, vdisk: vdisk.clone(), link };
    let ended = tokio::select! {
        biased;
        reason = write_all(&mut write, &outbox, shared.settings.write_timeout) => reason,
        reason = reading.run() => reason,
    };
    outbox.end(Ended::Aborted(ended)); // nobody takes from it any more
    let reason = ended.name();
    metrics::counter!("tlog_server_disconnects_total", "reason" => reason).increment(1);
    if ended.is_fault() {
        warn!(%vdisk, %peer, reason, "connection closed");
    } else {
        info!(%vdisk, %peer, reason, "connection closed");
    }
    match ended {
        Reason::LogClosed | Reason::Shutdown | Reason::SlaveSyncFailed => Linger::Yes,
        _ => Linger::No,
    }
}

/// Reads the handshake request; else says how to answer, if at all.
async fn greeted(
    reader: &mut FrameReader<ReadHalf<'_>>,
    peer: SocketAddr,
    shared: &Shared,
) -> Result<HandshakeRequest, Option<HandshakeStatus>> {
    let refused = |reason: &'static str, status: Option<HandshakeStatus>| {
        metrics::counter!("tlog_server_handshakes_refused_total", "reason" => reason).increment(1);
        Err(status)
    };
    let request = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return Err(None),
        request = timeout(shared.settings.handshake_timeout, reader.handshake_request()) => request,
    };
    match request {
        Ok(Ok(Some(request))) if !request.version.is_supported() => {
            warn!(vdisk = %request.vdisk_id, %peer, version = %request.version, "refused: the client is too old");
            refused("version", Some(HandshakeStatus::InvalidVersion))
        }
        Ok(Ok(Some(request))) => Ok(request),
        Ok(Ok(None)) => {
            debug!(%peer, "closed without a handshake");
            Err(None)
        }
        Ok(Err(FrameError::Decode(DecodeError::IllegalVdiskId(error)))) => {
            warn!(%peer, %error, "refused: illegal vdisk id");
            refused("vdisk_id", Some(HandshakeStatus::InvalidVdiskId))
        }
        Ok(Err(FrameError::Io(error))) => {
            debug!(%peer, %error, "broke before the handshake");
            Err(None)
        }
        Ok(Err(error)) => {
            warn!(%peer, %error, "refused: the handshake cannot be read");
            refused("unreadable", Some(HandshakeStatus::InvalidRequest))
        }
        Err(_) => {
            warn!(%peer, "refused: no handshake in time");
            refused("timeout", Some(HandshakeStatus::InvalidRequest))
        }
    }
}

/// Writes a handshake response. False where that failed.
async fn respond(write: &mut WriteHalf<'_>, answer: &HandshakeResponse, shared: &Shared) -> bool {
    let mut bytes = BytesMut::new();
    answer.encode_into(&mut bytes);
    matches!(timeout(shared.settings.write_timeout, write.write_all(&bytes)).await, Ok(Ok(())))
}

/// What ties a connection to the task of its vdisk.
struct Link {
    last_flushed: Option<Sequence>,
    outbox: Arc<Outbox>,
    inbound: mpsc::Sender<Vec<Incoming>>,
    budget: Arc<Budget>,
}

enum Connected {
    Live(Link),
    Refused(HandshakeResponse),
    Gone,
}

async fn connect(request: HandshakeRequest, peer: SocketAddr, shared: &Arc<Shared>) -> Connected {
    let connected = async {
        loop {
            let greeting = Greeting {
                connection: shared.connection_id(),
                session: request.session,
                first: request.first_sequence,
                reset: request.reset_first_sequence,
                returning: request.returning,
                must_continue: request.must_continue,
            };
            let outbox = Arc::new(Outbox::default());
            let (sender, inbound) = mpsc::channel(INBOUND_BATCHES);
            let (verdict, answer) = oneshot::channel();
            let hello = Hello { greeting, peer, outbox: Arc::clone(&outbox), inbound, verdict };
            if shared.vdisk(&request.vdisk_id).send(hello).await.is_err() {
                continue; // its task was just ending
            }
            match answer.await {
                Ok(Verdict::Accepted { last_flushed, budget }) => {
                    return Connected::Live(Link { last_flushed, outbox, inbound: sender, budget });
                }
                Ok(Verdict::Refused(answer)) => {
                    if answer.status == HandshakeStatus::InvalidVdiskId {
                        let counter = metrics::counter!("tlog_server_handshakes_refused_total", "reason" => "unknown_vdisk");
                        counter.increment(1);
                        warn!(vdisk = %request.vdisk_id, %peer, "refused: unknown vdisk");
                    }
                    return Connected::Refused(answer);
                }
                Ok(Verdict::Replaced) => return Connected::Gone,
                Err(_) => {} // its task was just ending
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => Connected::Gone,
        connected = timeout(shared.settings.open_timeout, connected) => connected.unwrap_or_else(|_| {
            metrics::counter!("tlog_server_handshakes_refused_total", "reason" => "open_timeout").increment(1);
            warn!(vdisk = %request.vdisk_id, %peer, "refused: the log could not be opened or flushed in time");
            Connected::Refused(HandshakeResponse::unavailable())
        }),
    }
}

/// Writes what is put into the outbox until that ends.
async fn write_all(write: &mut WriteHalf<'_>, outbox: &Outbox, limit: Duration) -> Reason {
    loop {
        let mut bytes = match outbox.next().await {
            ToWrite::Bytes(bytes) => bytes,
            ToWrite::End(reason) => return reason,
        };
        while !bytes.is_empty() {
            // The limit is on any progress: slow is fine, standing still is not.
            tokio::select! {
                biased;
                reason = outbox.aborted() => return reason,
                written = timeout(limit, write.write_buf(&mut bytes)) => match written {
                    Ok(Ok(1..)) => {}
                    Ok(_) => return Reason::Broken,
                    Err(_) => return Reason::NotReading,
                },
            }
        }
    }
}

/// The reading side.
struct Reading<'a> {
    reader: FrameReader<ReadHalf<'a>>,
    peer: SocketAddr,
    shared: &'a Shared,
    vdisk: VdiskId,
    link: Link,
}

impl Reading<'_> {
    /// Reads until the connection is to end. Where the server ends it, that is left to the writing side.
    async fn run(mut self) -> Reason {
        let stop = self.shared.stop.clone();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = self.read() => ended,
        };
        if let Some(reason) = ended {
            return reason;
        }
        drop(self.link.inbound); // tells the vdisk's task that no more will come
        std::future::pending().await
    }

    /// Reads until the client ends the connection; none where the vdisk's task has.
    async fn read(&mut self) -> Option<Reason> {
        loop {
            self.link.outbox.room().await;
            let first = match self.first().await {
                Ok(message) => message,
                Err(reason) => return Some(reason),
            };
            let mut messages = vec![first];
            let mut error = None;
            while messages.len() < MAX_BATCH {
                match self.reader.buffered_client_message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(bad) => {
                        error = Some(bad);
                        break;
                    }
                }
            }
            // What came whole before the fault counts.
            if !self.hand_over(messages).await {
                return None;
            }
            if let Some(error) = error {
                return Some(self.unreadable(&error));
            }
        }
    }

    /// Waits for a message. Whether one has begun is looked at four times in the time that it may take.
    async fn first(&mut self) -> Result<ClientMessage, Reason> {
        let settings = &self.shared.settings;
        let tick = settings.message_timeout.min(settings.idle_timeout.unwrap_or(Duration::MAX)) / 4;
        let since = Instant::now();
        let mut begun = self.reader.is_mid_message().then(Instant::now);
        loop {
            match timeout(tick, self.reader.client_message()).await {
                Ok(Ok(Some(message))) => return Ok(message),
                Ok(Ok(None)) => return Err(Reason::ClosedByClient),
                Ok(Err(FrameError::Io(error))) => {
                    debug!(vdisk = %self.vdisk, peer = %self.peer, %error, "the connection broke");
                    return Err(Reason::Broken);
                }
                Ok(Err(error)) => return Err(self.unreadable(&error)),
                Err(_) if self.reader.is_mid_message() => {
                    if begun.get_or_insert_with(Instant::now).elapsed() >= settings.message_timeout {
                        return Err(Reason::StoppedMidMessage);
                    }
                }
                Err(_) if settings.idle_timeout.is_some_and(|idle| since.elapsed() >= idle) => {
                    return Err(Reason::Idle);
                }
                Err(_) => {}
            }
        }
    }

    fn unreadable(&self, error: &FrameError) -> Reason {
        metrics::counter!("tlog_server_bad_messages_total", "kind" => error.kind()).increment(1);
        warn!(vdisk = %self.vdisk, peer = %self.peer, %error, "what the client sends cannot be read, closing");
        Reason::BadMessage
    }

    /// Checks messages and hands them to the vdisk's task. False where that is gone.
    async fn hand_over(&mut self, messages: Vec<ClientMessage>) -> bool {
        let mut batch = Vec::with_capacity(messages.len());
        for message in verified(messages).await {
            match message {
                Verified::Command(command) => batch.push(command),
                Verified::Block(block) => {
                    let bytes = cost(&block);
                    let permit = match self.permit_now(bytes) {
                        Some(permit) => permit,
                        None => {
                            // What is here must go on before anything waits: only flushing it makes room.
                            if !batch.is_empty() && !self.send(std::mem::take(&mut batch)).await {
                                return false;
                            }
                            metrics::counter!("tlog_server_backpressure_total").increment(1);
                            let own = self.link.budget.take(bytes).await;
                            Permit::unflushed(own, self.shared.unflushed.take(bytes).await)
                        }
                    };
                    batch.push(Incoming::Block(block, permit));
                }
                Verified::Bad(sequence, kind) => self.refuse(sequence, kind),
            }
        }
        batch.is_empty() || self.send(batch).await
    }

    fn permit_now(&self, bytes: usize) -> Option<Permit> {
        let own = self.link.budget.try_take(bytes)?;
        Some(Permit::unflushed(own, self.shared.unflushed.try_take(bytes)?))
    }

    fn refuse(&self, sequence: Sequence, fault: BlockFault) {
        let reason = fault.kind();
        metrics::counter!("tlog_server_blocks_refused_total", "reason" => reason).increment(1);
        warn!(vdisk = %self.vdisk, peer = %self.peer, %sequence, reason, error = %fault, "block refused");
        self.link.outbox.push(&Response { status: BlockStatus::RecvFailed, sequences: vec![sequence] });
    }

    async fn send(&self, batch: Vec<Incoming>) -> bool {
        self.link.inbound.send(batch).await.is_ok()
    }
}

enum Verified {
    Block(Block),
    Command(Incoming),
    Bad(Sequence, BlockFault),
}

/// Checks all blocks together, elsewhere if it takes long.
async fn verified(messages: Vec<ClientMessage>) -> Vec<Verified> {
    let bytes: usize = messages.iter().map(|message| data(message).map_or(0, <[u8]>::len)).sum();
    metrics::counter!("tlog_server_received_bytes_total").increment(bytes as u64);
    if bytes < HASH_ELSEWHERE {
        return verify(messages);
    }
    // It fails only where the runtime is shutting down, and then nobody wants the answer.
    tokio::task::spawn_blocking(|| verify(messages)).await.unwrap_or_default()
}

fn verify(messages: Vec<ClientMessage>) -> Vec<Verified> {
    let mut hashes = hash_many(messages.iter().filter_map(data)).into_iter();
    let mut blocks = 0;
    let verified = messages
        .into_iter()
        .filter_map(|message| {
            Some(match message {
                ClientMessage::Block(block) => {
                    blocks += 1;
                    let sequence = block.sequence;
                    match block.verify_with(hashes.next()?) {
                        Ok(block) => Verified::Block(block),
                        Err(fault) => Verified::Bad(sequence, fault),
                    }
                }
                ClientMessage::ForceFlushAtSeq(sequence) => Verified::Command(Incoming::ForceFlush(sequence)),
                ClientMessage::WaitNbdSlaveSync => Verified::Command(Incoming::WaitSlaveSync),
            })
        })
        .collect();
    metrics::counter!("tlog_server_blocks_received_total").increment(blocks);
    verified
}

fn data(message: &ClientMessage) -> Option<&[u8]> {
    match message {
        ClientMessage::Block(UnverifiedBlock { data, .. }) => Some(data),
        _ => None,
    }
}
