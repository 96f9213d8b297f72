//! The task that owns a connection: the one place that reads, writes and changes the state.
//!
//! It awaits one event, applies it, then runs the same tail ([`Connection::settle`]): take in what was handed over, fill
//! the wire buffer, publish, and only then tell those who wait. It never waits for anything else, so that whatever
//! the server does or does not do, closing and asking work at once.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{Block, ClientMessage, FrameError, FrameReader, Response, Sequence, VdiskId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::metrics::Metrics;
use crate::shared::{Ended, Handed, Shared, Ticket};
use crate::state::{Action, Command, Send, State};
use crate::{EndCause, Ending, Event, Unacknowledged};

#[cfg(test)]
mod tests;

/// Encoded bytes that are written together. The buffer exceeds it by one block at most.
const WIRE_BYTES: usize = 256 << 10;
/// Responses that are handled before the tail runs.
const RESPONSES_AT_ONCE: usize = 256;

/// A question to the task.
pub(crate) enum Request {
    Resend { sequence: Sequence, ticket: Ticket, reply: oneshot::Sender<bool> },
    Unflushed { reply: oneshot::Sender<Vec<Block>> },
}

/// Between whom and for what the connection is.
pub(crate) struct Names {
    pub(crate) vdisk: VdiskId,
    pub(crate) peer: String,
}

pub(crate) struct Connection<R, W> {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    reader: FrameReader<R>,
    writer: W,
    write_timeout: Duration,
    names: Names,
    /// Some until the end.
    state: Option<State<Ticket>>,
    /// Encoded and not written.
    wire: BytesMut,
    /// When the server last took or said something, or when there was something to take again.
    moved: Instant,
    /// What the last event brought, told by the tail.
    actions: Vec<Action<Ticket>>,
    /// Who waits for the slave, in the order of the commands.
    slave_syncs: VecDeque<oneshot::Sender<()>>,
    /// Room for taking in, kept.
    taken: Vec<Handed>,
    cause: Option<EndCause>,
    metrics: Metrics,
}

impl<R, W> Connection<R, W> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
        reader: FrameReader<R>,
        writer: W,
        write_timeout: Duration,
        names: Names,
    ) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600); // so that a point in time + it always exists
        let first = shared.progress.borrow().first_unacknowledged;
        let metrics = Metrics::new(&names.vdisk);
        Self {
            shared,
            requests,
            reader,
            writer,
            write_timeout: write_timeout.clamp(Duration::from_millis(1), YEAR),
            names,
            state: Some(State::new(first)),
            wire: BytesMut::new(),
            moved: Instant::now(),
            actions: Vec::new(),
            slave_syncs: VecDeque::new(),
            taken: Vec::new(),
            cause: None,
            metrics,
        }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Runs until the connection ends. Dropping tells everyone, so that they are told whatever happens to the task.
    pub(crate) async fn run(mut self) {
        self.cause = Some(self.serve().await);
    }

    async fn serve(&mut self) -> EndCause {
        let shared = self.shared.clone();
        let mut closed = pin!(shared.close.cancelled());
        let mut stall = pin!(sleep(self.write_timeout));
        loop {
            self.settle();
            let cause = tokio::select! {
                () = &mut closed => Some(EndCause::Closed),
                read = self.reader.response() => self.handle_responses(read).await,
                written = self.writer.write_buf(&mut self.wire), if !self.wire.is_empty() => match written {
                    Ok(written) => self.handle_written(written),
                    Err(error) => Some(self.handle_write_error(error).await),
                },
                () = shared.wake.notified() => None,
                Some(request) = self.requests.recv() => {
                    self.handle_request(request);
                    None
                }
                () = &mut stall => {
                    let now = Instant::now();
                    let deadline = if self.wire.is_empty() { now } else { self.moved } + self.write_timeout;
                    stall.as_mut().reset(deadline);
                    (deadline <= now).then_some(EndCause::Stalled(self.write_timeout))
                }
            };
            if let Some(cause) = cause {
                return cause;
            }
        }
    }

    /// Handles a response and those that have arrived with it.
    async fn handle_responses(&mut self, first: Result<Option<Response>, FrameError>) -> Option<EndCause> {
        self.moved = Instant::now();
        let mut read = first;
        for _ in 1..RESPONSES_AT_ONCE {
            if let Some(cause) = self.handle_read(read) {
                return Some(cause);
            }
            read = tokio::select! {
                biased;
                read = self.reader.response() => read,
                () = std::future::ready(()) => return None,
            };
        }
        self.handle_read(read)
    }

    /// What the server said before the connection broke counts, and may tell more than the error.
    async fn handle_write_error(&mut self, error: io::Error) -> EndCause {
        loop {
            let read = tokio::select! {
                biased;
                read = self.reader.response() => read,
                () = std::future::ready(()) => return EndCause::Broken(error),
            };
            match self.handle_read(read) {
                None => {}
                Some(EndCause::Broken(_)) => return EndCause::Broken(error),
                Some(cause) => return cause,
            }
        }
    }
}

impl<R, W> Connection<R, W> {
    fn handle_read(&mut self, read: Result<Option<Response>, FrameError>) -> Option<EndCause> {
        match read {
            Ok(Some(response)) => {
                self.state.as_mut()?.handle_response(response, &mut self.actions);
                matches!(self.actions.last(), Some(Action::FlushFailed)).then_some(EndCause::FlushFailed)
            }
            Ok(None) => Some(EndCause::ServerClosed),
            Err(FrameError::Io(error)) => Some(EndCause::Broken(error)),
            Err(error) => Some(EndCause::Protocol(error)),
        }
    }

    fn handle_written(&mut self, written: usize) -> Option<EndCause> {
        self.moved = Instant::now();
        (written == 0).then(|| EndCause::Broken(io::ErrorKind::WriteZero.into()))
    }

    fn handle_request(&mut self, request: Request) {
        self.take_in();
        let Some(state) = &mut self.state else { return };
        match request {
            Request::Resend { sequence, ticket, reply } => {
                let resent = state.resend(sequence, ticket).is_ok();
                self.publish(); // who hears of it may flush at once, and must not find the block still refused
                let _ = reply.send(resent);
            }
            Request::Unflushed { reply } => {
                let _ = reply.send(state.unflushed());
            }
        }
    }

    /// The tail of every event.
    fn settle(&mut self) {
        self.take_in();
        self.fill_wire();
        self.publish();
        self.tell();
    }

    /// Moves what was handed over into the state.
    fn take_in(&mut self) {
        std::mem::swap(&mut self.shared.intake().queue, &mut self.taken);
        self.absorb();
        if let (Some(state), true) = (&mut self.state, self.shared.is_room_wanted()) {
            state.make_room();
        }
    }

    fn absorb(&mut self) {
        let Some(state) = &mut self.state else { return };
        for handed in self.taken.drain(..) {
            match handed {
                Handed::Block { block, cost, ticket } => state.push(block, cost, ticket),
                Handed::ForceFlush(sequence) => state.command(Command::ForceFlush(sequence)),
                Handed::WaitSlaveSync(done) => {
                    self.slave_syncs.push_back(done);
                    state.command(Command::WaitSlaveSync);
                }
            }
        }
    }

    /// Encodes what is due, as soon as what was encoded before is written.
    fn fill_wire(&mut self) {
        let Some(state) = self.state.as_mut().filter(|_| self.wire.is_empty()) else {
            return;
        };
        if self.wire.capacity() > 4 * WIRE_BYTES {
            self.wire = BytesMut::new(); // one large block must not keep its memory for ever
        }
        while self.wire.len() < WIRE_BYTES {
            let Some(next) = state.poll_send() else { break };
            let command = match next {
                Send::Block(block) => {
                    block.encode_into(&mut self.wire);
                    continue;
                }
                Send::Command(command) => command,
            };
            let (message, freed_slots) = match command {
                Command::ForceFlush(sequence) => (ClientMessage::ForceFlushAtSeq(sequence), 1),
                Command::MakeRoom(sequence) => (ClientMessage::ForceFlushAtSeq(sequence), 0),
                Command::WaitSlaveSync => (ClientMessage::WaitNbdSlaveSync, 1),
            };
            message.encode_into(&mut self.wire);
            self.shared.command_slots.add_permits(freed_slots);
        }
        if !self.wire.is_empty() {
            self.moved = Instant::now();
        }
    }

    /// Shows the outside how far things are. Comes before anyone is told, so that who is told finds it so.
    fn publish(&mut self) {
        let Some(state) = &mut self.state else { return };
        let stats = state.stats();
        let released = state.take_released();
        let (first_unacknowledged, refused) = (state.first_unacknowledged(), state.lowest_refused());
        if self.metrics.publish(&stats) {
            self.shared.intake().published = stats;
        }
        if released > 0 {
            self.shared.room.add_permits(released);
        }
        self.shared.progress.send_if_modified(|progress| {
            let changed =
                progress.first_unacknowledged != first_unacknowledged || progress.refused != refused;
            progress.first_unacknowledged = first_unacknowledged;
            progress.refused = refused;
            changed
        });
    }

    /// Tells those who wait and those who watch. Nobody has to listen.
    fn tell(&mut self) {
        let watched = self.shared.events.receiver_count() > 0;
        for action in self.actions.drain(..) {
            let event = match action {
                Action::Received(sequence) => watched.then_some(Event::Received(sequence)),
                Action::Durable { sequences, tickets } => {
                    if let Some(oldest) = tickets.first() {
                        self.metrics.durable_after(oldest.handed_over.elapsed());
                    }
                    for ticket in tickets {
                        let _ = ticket.done.send(Ok(()));
                    }
                    watched.then(|| Event::Durable(sequences.into_iter().collect()))
                }
                Action::Refused { sequence, ticket } => {
                    if let Some(ticket) = ticket {
                        let _ = ticket.done.send(Err(Unacknowledged::Refused { sequence }));
                    }
                    watched.then_some(Event::Failed(sequence))
                }
                Action::SlaveSynced => {
                    if let Some(done) = self.slave_syncs.pop_front() {
                        self.shared.slave_sync_slots.add_permits(1);
                        let _ = done.send(());
                    }
                    None
                }
                Action::FlushFailed => watched.then_some(Event::FlushFailed),
            };
            if let Some(event) = event {
                let _ = self.shared.events.send(event);
            }
        }
    }
}

impl<R, W> Drop for Connection<R, W> {
    /// The end, also where the runtime drops the task: everyone who waits gets an answer, and what is not durable can be
    /// asked for.
    fn drop(&mut self) {
        self.publish();
        self.tell();
        let cause = self.cause.take().unwrap_or(EndCause::RuntimeGone);
        let shared = self.shared.clone();
        // Under one lock: what is handed over before it is among the remains, after it nothing is taken.
        let mut intake = shared.intake();
        self.taken.append(&mut intake.queue);
        self.absorb();
        let Some(state) = self.state.take() else { return };
        let remains = state.end();
        let ending = Ending::new(cause, remains.unacknowledged);
        intake.ended = Some(Ended { ending: ending.clone(), unflushed: remains.blocks });
        drop(intake);

        shared.progress.send_modify(|progress| progress.ending = Some(ending.clone()));
        shared.room.close();
        shared.command_slots.close();
        shared.slave_sync_slots.close();
        for (sequence, ticket) in remains.tickets {
            let _ = ticket.done.send(Err(Unacknowledged::Ended { sequence, ending: ending.clone() }));
        }
        self.metrics.ended(ending.cause());
        let (vdisk, peer) = (self.names.vdisk.as_str(), self.names.peer.as_str());
        let (cause, unacknowledged) = (ending.cause(), ending.unacknowledged());
        match (cause, unacknowledged.is_empty()) {
            (EndCause::Closed, true) => tracing::debug!(vdisk, peer, "connection closed"),
            _ => tracing::warn!(vdisk, peer, %cause, %unacknowledged, "connection ended"),
        }
        let _ = shared.events.send(Event::Disconnected(ending));
    }
}
