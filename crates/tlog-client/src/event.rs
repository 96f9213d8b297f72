//! What happens to a client, for whoever wants to watch.

use std::sync::Arc;

use tlog_proto::Sequence;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::{ConnectError, Ending, LostCause, SequenceSet};

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The server holds the block in memory. **Not durable.**
    Received(Sequence),
    /// These blocks are durable.
    Durable(SequenceSet),
    /// The server refused the block, as damaged or as too far ahead. It is sent again.
    Refused(Sequence),
    /// The connection is gone. Nothing that was handed over is lost; the servers are tried in turn.
    Reconnecting {
        /// Who was connected.
        server: Arc<str>,
        /// Why it no longer is.
        cause: Arc<LostCause>,
    },
    /// A server was tried and did not accept; the next one is tried.
    NotReconnected(Arc<ConnectError>),
    /// A server has accepted. What is not durable is sent again.
    Reconnected {
        /// Who is connected now.
        server: Arc<str>,
        /// How many blocks are not durable.
        unflushed_blocks: u64,
    },
    /// The client has ended. The last event.
    Ended(Ending),
    /// The reader was too slow and so many events are gone.
    Missed(u64),
}

/// The events of a client from the moment of [`Client::events`](crate::Client::events) on.
///
/// The last [`Events::CAPACITY`] events are kept for readers that lag. A reader that lags more is told by
/// [`Event::Missed`] and goes on with the oldest that is kept; it never holds up the client or takes more memory.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    /// Set where the client had ended before the reader came; then it is the only event.
    ended_before: Option<Ending>,
    over: bool,
}

impl Events {
    /// How many events are kept for a slow reader.
    pub const CAPACITY: usize = 1024;

    pub(crate) fn new(receiver: broadcast::Receiver<Event>, ended_before: Option<Ending>) -> Self {
        Self { receiver, ended_before, over: false }
    }

    /// Waits for the next event. None after [`Event::Ended`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = match self.ended_before.take() {
            Some(ending) => Event::Ended(ending),
            None => match self.receiver.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(missed)) => Event::Missed(missed),
                Err(RecvError::Closed) => return None,
            },
        };
        self.over = matches!(event, Event::Ended(_));
        Some(event)
    }
}
