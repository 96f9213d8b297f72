//! Responses on their way to one client.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tlog_proto::{BlockStatus, Response, Sequence};
use tokio::sync::Notify;

/// Bytes that wait to be written to one connection. Whoever has an answer puts it in and goes on; the connection takes
/// out everything at once, so that what was answered together is written together.
///
/// Past [`Outbox::SOFT`] the connection stops reading, so a client that does not read its responses stops getting more;
/// past [`Outbox::HARD`] it is closed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// For the one who writes: there is something to do.
    changed: Notify,
    /// For the one who reads: there is room again.
    drained: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    ended: Option<Ended>,
}

/// What a client is told.
#[derive(Debug)]
pub(crate) enum Answer {
    /// That this block has been received.
    Received(Sequence),
    /// Something else.
    Told(Response),
}

impl Answer {
    fn encode_into(&self, out: &mut BytesMut) {
        match self {
            Answer::Received(sequence) => {
                Response::encode(BlockStatus::RecvOk, std::slice::from_ref(sequence), out);
            }
            Answer::Told(response) => response.encode_into(out),
        }
    }
}

/// How the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Write what is there, then close.
    Finished(Reason),
    /// Close now.
    Aborted(Reason),
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client closed it.
    ClosedByClient,
    /// Another connection of the vdisk has taken over.
    Replaced,
    /// The vdisk's log has closed.
    LogClosed,
    /// The slave could not be brought up to date.
    SlaveSyncFailed,
    /// Whoever runs the server closed the vdisk.
    VdiskClosed,
    /// The server stops.
    Shutdown,
    /// The client does not read its responses.
    NotReading,
    /// A message was begun and not completed in time.
    StoppedMidMessage,
    /// Nothing was heard for too long.
    Idle,
    /// What came is no message.
    BadMessage,
    /// The connection broke.
    Broken,
}

impl Reason {
    /// A short name, for logs and counters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::ClosedByClient => "closed_by_client",
            Reason::Replaced => "replaced",
            Reason::LogClosed => "log_closed",
            Reason::SlaveSyncFailed => "slave_sync_failed",
            Reason::VdiskClosed => "vdisk_closed",
            Reason::Shutdown => "shutdown",
            Reason::NotReading => "not_reading",
            Reason::StoppedMidMessage => "stopped_mid_message",
            Reason::Idle => "idle",
            Reason::BadMessage => "bad_message",
            Reason::Broken => "broken",
        }
    }

    /// Whether a person should look at it.
    pub(crate) fn is_fault(self) -> bool {
        !matches!(
            self,
            Reason::ClosedByClient | Reason::Replaced | Reason::VdiskClosed | Reason::Shutdown | Reason::Idle
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the one who writes is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToWrite {
    /// Write this.
    Bytes(BytesMut),
    /// Everything is written; close.
    End(Reason),
}

impl Outbox {
    /// Bytes past which the connection stops reading.
    pub(crate) const SOFT: usize = 256 << 10;
    /// Bytes past which it is closed.
    pub(crate) const HARD: usize = 16 << 20;

    /// Adds an answer.
    pub(crate) fn push(&self, answer: Answer) {
        self.push_all(&[answer]);
    }

    /// Adds answers, to be written together.
    pub(crate) fn push_all(&self, answers: &[Answer]) {
        let mut state = self.state();
        if answers.is_empty() || state.ended.is_some() {
            return;
        }
        for answer in answers {
            answer.encode_into(&mut state.bytes);
        }
        if state.bytes.len() > Self::HARD {
            state.end(Ended::Aborted(Reason::NotReading));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the connection. The first end counts, but an abort also cuts a finish short.
    pub(crate) fn end(&self, ended: Ended) {
        self.state().end(ended);
        self.changed.notify_one();
        self.drained.notify_one();
    }

    /// Waits for something to write. Cancel safe. For one caller.
    pub(crate) async fn next(&self) -> ToWrite {
        loop {
            {
                let mut state = self.state();
                match state.ended {
                    Some(Ended::Aborted(reason)) => return ToWrite::End(reason),
                    _ if !state.bytes.is_empty() => {
                        let bytes = state.bytes.split();
                        self.drained.notify_one();
                        return ToWrite::Bytes(bytes);
                    }
                    Some(Ended::Finished(reason)) => return ToWrite::End(reason),
                    None => {}
                }
            }
            self.changed.notified().await;
        }
    }

    /// Waits until not too much waits to be written. Cancel safe. For one caller.
    pub(crate) async fn room(&self) {
        loop {
            {
                let state = self.state();
                if state.bytes.len() <= Self::SOFT || state.ended.is_some() {
                    return;
                }
            }
            self.drained.notified().await;
        }
    }

    /// Waits until the connection is to be closed now. Cancel safe.
    pub(crate) async fn aborted(&self) -> Reason {
        loop {
            if let Some(Ended::Aborted(reason)) = self.state().ended {
                return reason;
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, ended: Ended) {
        match (self.ended, ended) {
            (None, _) | (Some(Ended::Finished(_)), Ended::Aborted(_)) => self.ended = Some(ended),
            _ => {}
        }
        if let Some(Ended::Aborted(_)) = self.ended {
            self.bytes = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(sequence: u64) -> Answer {
        Answer::Received(Sequence(sequence))
    }

    #[tokio::test]
    async fn what_was_put_in_is_written_before_a_finish_and_dropped_by_an_abort() {
        let outbox = Outbox::default();
        outbox.push_all(&[received(1), received(2)]);
        outbox.end(Ended::Finished(Reason::Shutdown));
        outbox.push(received(3));
        let ToWrite::Bytes(bytes) = outbox.next().await else { panic!("something waits") };
        assert_eq!(bytes.len(), 80);
        assert_eq!(outbox.next().await, ToWrite::End(Reason::Shutdown));
        outbox.end(Ended::Aborted(Reason::Replaced));
        assert_eq!(outbox.next().await, ToWrite::End(Reason::Replaced));

        let outbox = Outbox::default();
        outbox.push(received(1));
        outbox.end(Ended::Aborted(Reason::Replaced));
        assert_eq!(outbox.next().await, ToWrite::End(Reason::Replaced));
        assert_eq!(outbox.aborted().await, Reason::Replaced);
    }

    #[tokio::test]
    async fn too_much_that_nobody_writes_ends_the_connection() {
        let outbox = Outbox::default();
        let many: Vec<_> = (0..7000).map(received).collect();
        outbox.push_all(&many);
        let stuck = tokio::time::timeout(std::time::Duration::ZERO, outbox.room()).await;
        assert!(stuck.is_err(), "no room");
        let mut pushes = 1;
        while outbox.state().ended.is_none() {
            outbox.push_all(&many);
            pushes += 1;
            assert!(pushes * 7000 * 40 <= Outbox::HARD + 7000 * 40);
        }
        assert_eq!(outbox.next().await, ToWrite::End(Reason::NotReading));
        outbox.room().await;
    }
}
