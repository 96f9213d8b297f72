//! What happens on a connection, for whoever wants to watch.

use tlog_proto::Sequence;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::{Ending, SequenceSet};

/// Something that happened on a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The server holds the block in memory. **Not durable.**
    Received(Sequence),
    /// These blocks are durable.
    Durable(SequenceSet),
    /// The server refused the block as damaged; see [`Client::resend`](crate::Client::resend).
    Failed(Sequence),
    /// The server could not make blocks durable; `Disconnected` follows.
    FlushFailed,
    /// The connection has ended. The last event.
    Disconnected(Ending),
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
    /// Set where the connection had ended before the reader came; then it is the only event.
    ended_before: Option<Ending>,
    over: bool,
}

impl Events {
    /// How many events are kept for a slow reader.
    pub const CAPACITY: usize = 1024;

    pub(crate) fn new(receiver: broadcast::Receiver<Event>, ended_before: Option<Ending>) -> Self {
        Self { receiver, ended_before, over: false }
    }

    /// Waits for the next event. None after [`Event::Disconnected`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = match self.ended_before.take() {
            Some(ending) => Event::Disconnected(ending),
            None => match self.receiver.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(missed)) => Event::Missed(missed),
                Err(RecvError::Closed) => return None,
            },
        };
        self.over = matches!(event, Event::Disconnected(_));
        Some(event)
    }
}
