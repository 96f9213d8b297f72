//! The reading side of a connection: messages that arrive, their memory, and the time that they may take.

use std::net::SocketAddr;
use std::time::Duration;

use tlog_proto::{
    Block, BlockFault, BlockStatus, ClientMessage, FrameError, FrameReader, Response, Sequence, VdiskId,
};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::Link;
use crate::budget::Permit;
use crate::outbox::{Answer, Reason};
use crate::registry::{Incoming, Shared};
use crate::session::cost;
use crate::settings::ServerSettings;
use crate::tls;
use crate::verify::{Verified, Verifier};

/// Messages that are taken together, at most.
const MAX_BATCH: usize = 64;
/// Bytes of the largest buffer that blocks are parts of.
const SHARED_BYTES: usize = FrameReader::<TcpStream>::SHARED_BYTES;
/// So much of a message that is larger than that has come before memory is set aside for it: who only claims one waits in no line for that, and
/// holds up nobody who sends one. It fits the buffer that everybody has.
const BEGINNING: usize = SHARED_BYTES / 2;

/// The reading side.
pub(super) struct Reading<'a, R> {
    reader: FrameReader<R>,
    arrived: Verifier,
    peer: SocketAddr,
    shared: &'a Shared,
    vdisk: VdiskId,
    link: Link,
    /// Of what the reader has taken, so much was counted with blocks.
    counted: u64,
    /// What a large message is read with, until its block is counted.
    large: Option<OwnedSemaphorePermit>,
}

impl<'a, R: AsyncRead + Unpin> Reading<'a, R> {
    pub(super) fn new(
        reader: FrameReader<R>,
        peer: SocketAddr,
        shared: &'a Shared,
        vdisk: VdiskId,
        link: Link,
    ) -> Self {
        Self { reader, arrived: Verifier::default(), peer, shared, vdisk, link, counted: 0, large: None }
    }

    /// Reads until the connection is to end. Where the server ends it, that is left to the writing side.
    pub(super) async fn run(mut self) -> Reason {
        let stop = self.link.stop.clone();
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
            self.arrived.push(first);
            let mut error = None;
            while self.arrived.len() < MAX_BATCH {
                match self.reader.buffered_client_message() {
                    Ok(Some(message)) => self.arrived.push(message),
                    Ok(None) => break,
                    Err(bad) => {
                        error = Some(bad);
                        break;
                    }
                }
            }
            // What came whole before the fault counts.
            if !self.hand_over().await {
                return None;
            }
            self.large = None;
            if let Some(error) = error {
                return Some(self.unreadable(&error));
            }
        }
    }

    /// Waits for a message. Whether one has begun, and goes on, is looked at four times in the time that it may take.
    async fn first(&mut self) -> Result<ClientMessage, Reason> {
        let settings = &self.shared.settings;
        let tick = settings.message_timeout.min(settings.idle_timeout.unwrap_or(Duration::MAX)) / 4;
        let since = Instant::now();
        let mut begun = self.reader.is_mid_message().then(Instant::now);
        loop {
            match timeout(tick, self.some_of_it()).await {
                Ok(Ok(Some(Came::Whole(message)))) => return Ok(message),
                Ok(Ok(Some(Came::BeginningOfLarge(bytes)))) => {
                    self.large = Some(self.room_for_large(bytes).await);
                    begun = Some(Instant::now()); // it could not go on meanwhile
                }
                Ok(Ok(None)) => return Err(Reason::ClosedByClient),
                Ok(Err(FrameError::Io(error))) if tls::is_end_of_stream(&error) => {
                    let whole = !self.reader.is_mid_message();
                    return Err(if whole {
                        Reason::ClosedByClient
                    } else {
                        self.unreadable(&FrameError::Truncated)
                    });
                }
                Ok(Err(FrameError::Io(error))) => {
                    debug!(vdisk = %self.vdisk, peer = %self.peer, %error, "the connection broke");
                    return Err(Reason::Broken);
                }
                Ok(Err(error)) => return Err(self.unreadable(&error)),
                Err(_) if self.reader.is_mid_message() => {
                    let seconds = self.reader.arrived() / ServerSettings::LEAST_MESSAGE_RATE;
                    let limit = settings.message_timeout + Duration::from_secs(seconds as u64);
                    if begun.get_or_insert_with(Instant::now).elapsed() >= limit {
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

    /// Reads until a message is there, or the beginning of one that is larger than a buffer; none where the client closed. Cancel safe.
    async fn some_of_it(&mut self) -> Result<Option<Came>, FrameError> {
        loop {
            if let Some(message) = self.reader.buffered_client_message()? {
                return Ok(Some(Came::Whole(message)));
            }
            match self.reader.awaited() {
                Some(bytes)
                    if bytes > SHARED_BYTES && self.large.is_none() && self.reader.arrived() >= BEGINNING =>
                {
                    return Ok(Some(Came::BeginningOfLarge(bytes)));
                }
                _ if !self.reader.read_more().await? => return Ok(None),
                _ => {}
            }
        }
    }

    /// Sets memory aside for a message of so many bytes: for its buffer, and for the block that it becomes.
    async fn room_for_large(&self, bytes: usize) -> OwnedSemaphorePermit {
        let (messages, bytes) = (&self.shared.messages, bytes.saturating_mul(2));
        match messages.try_take(bytes) {
            Some(taken) => taken,
            None => {
                metrics::counter!("tlog_server_large_messages_waited_total").increment(1);
                messages.take(bytes).await
            }
        }
    }

    fn unreadable(&self, error: &FrameError) -> Reason {
        metrics::counter!("tlog_server_bad_messages_total", "kind" => error.kind()).increment(1);
        warn!(vdisk = %self.vdisk, peer = %self.peer, %error, "what the client sends cannot be read, closing");
        Reason::BadMessage
    }

    /// Checks what has arrived and hands it to the vdisk's task. False where that is gone.
    async fn hand_over(&mut self) -> bool {
        self.arrived.verify(&self.shared.metrics).await;
        let together = match self.arrived.cost() {
            0 => None,
            bytes => self.permit_for_all(bytes),
        };
        let mut arrived = std::mem::take(&mut self.arrived);
        let verified = arrived.drain();
        let mut batch = Vec::with_capacity(verified.len());
        for message in verified {
            match message {
                Verified::Command(command) => batch.push(command),
                Verified::Block(block) => {
                    let permit = match together.as_ref().and_then(Permit::share) {
                        Some(permit) => permit,
                        None => match self.permit_for(&block, &mut batch).await {
                            Some(permit) => permit,
                            None => return false,
                        },
                    };
                    batch.push(Incoming::Block(block, permit));
                }
                Verified::Bad(sequence, kind) => self.refuse(sequence, kind),
            }
        }
        self.arrived = arrived;
        batch.is_empty() || self.send(batch).await
    }

    /// For blocks that came together, if there is enough. What came since the last ones is counted with them, as far as one buffer
    /// has it: they keep it in memory.
    fn permit_for_all(&mut self, bytes: usize) -> Option<Permit> {
        let taken = self.reader.taken();
        let came = usize::try_from(taken - self.counted).unwrap_or(usize::MAX);
        self.counted = taken;
        let bytes = bytes.max(came.min(SHARED_BYTES));
        let fits = self.link.budget.has_room_for(bytes) && self.shared.unflushed.has_room_for(bytes);
        if fits { self.permit_now(bytes) } else { None }
    }

    /// For one block, where there is not enough for all; waits for it. None where the vdisk's task is gone.
    async fn permit_for(&self, block: &Block, batch: &mut Vec<Incoming>) -> Option<Permit> {
        let bytes = cost(block);
        if let Some(permit) = self.permit_now(bytes) {
            return Some(permit);
        }
        // What is here must go on before anything waits: only flushing it makes room.
        if !batch.is_empty() && !self.send(std::mem::take(batch)).await {
            return None;
        }
        metrics::counter!("tlog_server_backpressure_total").increment(1);
        let own = self.link.budget.take(bytes).await;
        Some(Permit::unflushed(own, self.shared.unflushed.take(bytes).await))
    }

    fn permit_now(&self, bytes: usize) -> Option<Permit> {
        let own = self.link.budget.try_take(bytes)?;
        Some(Permit::unflushed(own, self.shared.unflushed.try_take(bytes)?))
    }

    fn refuse(&self, sequence: Sequence, fault: BlockFault) {
        let reason = fault.kind();
        metrics::counter!("tlog_server_blocks_refused_total", "reason" => reason).increment(1);
        warn!(vdisk = %self.vdisk, peer = %self.peer, %sequence, reason, error = %fault, "block refused");
        let failed = Response { status: BlockStatus::RecvFailed, sequences: vec![sequence] };
        self.link.outbox.push(Answer::Told(failed));
    }

    async fn send(&self, batch: Vec<Incoming>) -> bool {
        self.link.inbound.send(batch).await.is_ok()
    }
}

/// What has arrived of a message.
enum Came {
    Whole(ClientMessage),
    /// So much of it that its length is known, in bytes.
    BeginningOfLarge(usize),
}
