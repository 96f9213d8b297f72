//! One connection, from its acceptance to its loss.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{ClientMessage, FrameError, FrameReader, Response};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::{Driver, Left};
use crate::dial::{Accepted, Reader, Writer};
use crate::state::{Command, Send};
use crate::{EndCause, LostCause};

/// Encoded bytes that are written together. The buffer exceeds it by one block at most.
const WIRE_BYTES: usize = 256 << 10;
/// Responses that are handled before the tail runs.
const RESPONSES_AT_ONCE: usize = 256;
/// When nothing is awaited.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A connection and what is on its way out.
struct Link {
    reader: FrameReader<Reader>,
    writer: Writer,
    /// Encoded and not written.
    wire: BytesMut,
    /// Something was written, and TLS may hold it still.
    unflushed: bool,
}

/// Writes what it can, and behind the last of it sees to it that all of it goes out. Cancel safe.
async fn write(writer: &mut Writer, wire: &mut BytesMut, unflushed: &mut bool) -> io::Result<()> {
    if !wire.is_empty() {
        if writer.write_buf(wire).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *unflushed = true;
    }
    if wire.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    }
    Ok(())
}

impl Driver {
    /// Sends what is not durable, and everything that is handed over, until the connection is lost or the client ends.
    pub(super) async fn converse(&mut self, accepted: Accepted) -> Left {
        let Accepted { server, reader, writer, last_flushed, .. } = accepted;
        let mut link = Link { reader, writer, wire: BytesMut::new(), unflushed: false };
        if let Some(state) = &mut self.state {
            state.handle_online(last_flushed, Instant::now(), &mut self.actions);
        }
        self.shared.server.send_replace(Some(Arc::clone(&server)));

        let shared = self.shared.clone();
        let mut closed = pin!(shared.close.cancelled());
        let mut alarm = pin!(sleep(NEVER));
        loop {
            self.settle(&mut link);
            if let Some(left) = self.leave.take() {
                return left;
            }
            let timeout = self.state.as_ref().and_then(|state| state.poll_timeout());
            if let Some(timeout) = timeout.filter(|timeout| *timeout < alarm.deadline()) {
                alarm.as_mut().reset(timeout);
            }
            let writes = !link.wire.is_empty() || link.unflushed;
            let left = tokio::select! {
                // What comes seldom first, so that nothing holds it up. Answers before deadlines, which they may move, and both before
                // writing, which may always be possible. What is handed over is taken in with every event.
                biased;
                () = &mut closed => Some(Left::Ended(EndCause::Closed)),
                Some(request) = self.requests.recv() => {
                    self.handle_request(request);
                    None
                }
                Ok(()) = self.servers.changed() => self.handle_servers(&server),
                read = link.reader.response() => self.handle_responses(read, &mut link).await,
                () = &mut alarm => {
                    alarm.as_mut().reset(Instant::now() + NEVER);
                    self.handle_time()
                }
                written = write(&mut link.writer, &mut link.wire, &mut link.unflushed), if writes => match written {
                    Ok(()) => {
                        self.handle_written(&link);
                        None
                    }
                    Err(error) => Some(self.handle_write_error(error, &mut link).await),
                },
                () = shared.wake.notified() => None,
            };
            if let Some(left) = left {
                self.publish();
                self.tell();
                // What was said before it may tell more than how the connection ended.
                return self.leave.take().unwrap_or(left);
            }
        }
    }

    /// Handles a response and those that have arrived with it.
    async fn handle_responses(
        &mut self,
        first: Result<Option<Response>, FrameError>,
        link: &mut Link,
    ) -> Option<Left> {
        let mut read = first;
        for _ in 1..RESPONSES_AT_ONCE {
            if let Some(left) = self.handle_read(read) {
                return Some(left);
            }
            read = tokio::select! {
                biased;
                read = link.reader.response() => read,
                () = std::future::ready(()) => return None,
            };
        }
        self.handle_read(read)
    }

    /// What the server said before the connection broke counts, and may tell more than the error.
    async fn handle_write_error(&mut self, error: io::Error, link: &mut Link) -> Left {
        loop {
            let read = tokio::select! {
                biased;
                read = link.reader.response() => read,
                () = std::future::ready(()) => return Left::Lost(LostCause::Broken(error)),
            };
            match self.handle_read(read) {
                None => {}
                Some(Left::Lost(LostCause::Broken(_))) => return Left::Lost(LostCause::Broken(error)),
                Some(left) => return left,
            }
        }
    }

    fn handle_read(&mut self, read: Result<Option<Response>, FrameError>) -> Option<Left> {
        match read {
            Ok(Some(response)) => {
                self.state.as_mut()?.handle_response(response, Instant::now(), &mut self.actions);
                None
            }
            Ok(None) => Some(Left::Lost(LostCause::ServerClosed)),
            Err(FrameError::Io(error)) => Some(Left::Lost(LostCause::Broken(error))),
            Err(error) => Some(Left::Lost(LostCause::Protocol(error))),
        }
    }

    fn handle_written(&mut self, link: &Link) {
        if let (Some(state), false) = (&mut self.state, link.wire.is_empty()) {
            state.handle_partly_written(Instant::now());
        }
    }

    fn handle_servers(&mut self, server: &str) -> Option<Left> {
        let servers = self.servers.borrow_and_update().clone();
        let unlisted = !servers.contains(server);
        self.plan.set_servers(servers, Some(server));
        unlisted.then_some(Left::Lost(LostCause::Unlisted))
    }

    fn handle_time(&mut self) -> Option<Left> {
        let silent = self.state.as_mut()?.handle_time(Instant::now()).err()?;
        Some(Left::Lost(LostCause::Silent(silent.0)))
    }

    /// The tail of every event.
    fn settle(&mut self, link: &mut Link) {
        self.take_in();
        self.fill_wire(&mut link.wire);
        self.publish();
        self.tell();
    }

    /// Encodes what is due, as soon as what was encoded before is written.
    fn fill_wire(&mut self, wire: &mut BytesMut) {
        let Some(state) = self.state.as_mut().filter(|_| wire.is_empty()) else {
            return;
        };
        if wire.capacity() > 4 * WIRE_BYTES {
            *wire = BytesMut::new(); // one large block must not keep its memory for ever
        }
        let now = Instant::now();
        while wire.len() < WIRE_BYTES {
            let Some(next) = state.poll_send(now) else { break };
            let command = match next {
                Send::Block(block) => {
                    block.encode_into(wire);
                    continue;
                }
                Send::Command(command) => command,
            };
            let message = match command {
                Command::ForceFlush(sequence) | Command::Flush(sequence) => {
                    ClientMessage::ForceFlushAtSeq(sequence)
                }
                Command::WaitSlaveSync | Command::WaitSlaveSyncAgain => ClientMessage::WaitNbdSlaveSync,
            };
            message.encode_into(wire);
            self.shared.command_slots.add_permits(usize::from(command.is_callers()));
        }
    }
}
