//! The task that owns a connection: the one place that reads, writes and changes the state.
//!
//! It awaits one event, applies it, then runs the same tail ([`Connection::settle`]): take in what was handed over, fill
//! the wire buffer, publish, and only then tell those who wait. It never waits for anything else, so that whatever
//! the server does or does not do, closing and asking work at once.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{Block, ClientMessage, FrameError, FrameReader, Response, Sequence};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::metrics::Metrics;
use crate::shared::{Ended, Handed, Shared, Ticket};
use crate::state::{Action, Command, Send, State};
use crate::{EndCause, Ending, Event, Unacknowledged};

/// Encoded bytes that are written together. The buffer exceeds it by one block at most.
const WIRE_BYTES: usize = 256 << 10;
/// Responses that are handled before the tail runs.
const RESPONSES_AT_ONCE: usize = 256;

/// A question to the task.
pub(crate) enum Request {
    Resend { sequence: Sequence, ticket: Ticket, reply: oneshot::Sender<bool> },
    Unflushed { reply: oneshot::Sender<Vec<Block>> },
}

pub(crate) struct Connection<R, W> {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    reader: FrameReader<R>,
    writer: W,
    write_timeout: Duration,
    /// Some until the end.
    state: Option<State<Ticket>>,
    /// Encoded and not written.
    wire: BytesMut,
    /// When the server last took or said something, or had nothing to take.
    moved: Instant,
    /// What the last event brought, told by the tail.
    actions: Vec<Action<Ticket>>,
    /// Who waits for the slave, in the order of the commands.
    slave_syncs: VecDeque<oneshot::Sender<()>>,
    /// Room for taking in, kept.
    taken: Vec<Handed>,
    cause: Option<EndCause>,
    metrics: Metrics,
    span: tracing::Span,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    #[expect(clippy::too_many_arguments, reason = "called in one place; a struct would repeat this one")]
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
        reader: FrameReader<R>,
        writer: W,
        write_timeout: Duration,
        first: Sequence,
        metrics: Metrics,
        span: tracing::Span,
    ) -> Self {
        Self {
            shared,
            requests,
            reader,
            writer,
            write_timeout,
            state: Some(State::new(first)),
            wire: BytesMut::new(),
            moved: Instant::now(),
            actions: Vec::new(),
            slave_syncs: VecDeque::new(),
            taken: Vec::new(),
            cause: None,
            metrics,
            span,
        }
    }

    /// Runs until the connection ends. What ends it is told by dropping, so that it is told whatever happens to the task.
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
                Some(request) = self.requests.recv() => self.handle_request(request),
                () = &mut stall => match self.moved + self.write_timeout {
                    deadline if self.wire.is_empty() || deadline > Instant::now() => {
                        stall.as_mut().reset(deadline.max(Instant::now() + self.write_timeout / 8));
                        None
                    }
                    _ => Some(EndCause::Stalled(self.write_timeout)),
                },
            };
            if let Some(cause) = cause {
                return cause;
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
        if self.shared.is_room_wanted() {
            state.make_room();
        }
    }

    /// Encodes what is due, as soon as what was encoded before is written.
    fn fill_wire(&mut self) {
        let Some(state) = &mut self.state else { return };
        if !self.wire.is_empty() {
            return;
        }
        if self.wire.capacity() > 4 * WIRE_BYTES {
            self.wire = BytesMut::new(); // one large block must not keep its memory for ever
        }
        while self.wire.len() < WIRE_BYTES {
            let freed_slots = match state.poll_send() {
                None => break,
                Some(Send::Block(block)) => {
                    block.encode_into(&mut self.wire);
                    0
                }
                Some(Send::Command(command)) => {
                    let (message, slots) = match command {
                        Command::ForceFlush(sequence) => (ClientMessage::ForceFlushAtSeq(sequence), 1),
                        Command::MakeRoom(sequence) => (ClientMessage::ForceFlushAtSeq(sequence), 0),
                        Command::WaitSlaveSync => (ClientMessage::WaitNbdSlaveSync, 1),
                    };
                    message.encode_into(&mut self.wire);
                    slots
                }
            };
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
        self.metrics.publish(&stats);
        let released = state.take_released();
        let (first_unacknowledged, refused) = (state.first_unacknowledged(), state.lowest_refused());
        self.shared.intake().published = stats;
        self.shared.room.add_permits(released);
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

    /// Handles a response and those that have arrived with it.
    async fn handle_responses(&mut self, first: Result<Option<Response>, FrameError>) -> Option<EndCause> {
        self.moved = Instant::now();
        let mut read = first;
        for _ in 0..RESPONSES_AT_ONCE {
            let cause = match read {
                Ok(Some(response)) => self.handle_response(response),
                Ok(None) => Some(EndCause::ServerClosed),
                Err(FrameError::Io(error)) => Some(EndCause::Broken(error)),
                Err(error) => Some(EndCause::Protocol(error)),
            };
            if cause.is_some() {
                return cause;
            }
            read = tokio::select! {
                biased;
                read = self.reader.response() => read,
                () = std::future::ready(()) => return None,
            };
        }
        // The last one read is still to be handled.
        match read {
            Ok(Some(response)) => self.handle_response(response),
            Ok(None) => Some(EndCause::ServerClosed),
            Err(FrameError::Io(error)) => Some(EndCause::Broken(error)),
            Err(error) => Some(EndCause::Protocol(error)),
        }
    }

    fn handle_response(&mut self, response: Response) -> Option<EndCause> {
        let state = self.state.as_mut()?;
        state.handle_response(response, &mut self.actions);
        matches!(self.actions.last(), Some(Action::FlushFailed)).then_some(EndCause::FlushFailed)
    }

    fn handle_written(&mut self, written: usize) -> Option<EndCause> {
        self.moved = Instant::now();
        (written == 0).then(|| EndCause::Broken(std::io::ErrorKind::WriteZero.into()))
    }

    /// What the server said before the connection broke counts, and tells more than the error.
    async fn handle_write_error(&mut self, error: std::io::Error) -> EndCause {
        loop {
            let read = tokio::select! {
                biased;
                read = self.reader.response() => read,
                () = std::future::ready(()) => return EndCause::Broken(error),
            };
            match read {
                Ok(Some(response)) => match self.handle_response(response) {
                    Some(cause) => return cause,
                    None => continue,
                },
                Ok(None) => return EndCause::ServerClosed,
                Err(FrameError::Io(_)) => return EndCause::Broken(error),
                Err(error) => return EndCause::Protocol(error),
            }
        }
    }

    fn handle_request(&mut self, request: Request) -> Option<EndCause> {
        self.take_in();
        let state = self.state.as_mut()?;
        match request {
            Request::Resend { sequence, ticket, reply } => {
                let _ = reply.send(state.resend(sequence, ticket).is_ok());
            }
            Request::Unflushed { reply } => {
                let _ = reply.send(state.unflushed());
            }
        }
        None
    }
}

impl<R, W> Drop for Connection<R, W> {
    /// The end, also where the task is dropped by its runtime: everyone who waits gets an answer, and what is not durable
    /// can be asked for.
    fn drop(&mut self) {}
}
