//! The fate of one block.

use std::pin::Pin;
use std::task::{Context, Poll};

use tlog_proto::Sequence;
use tokio::sync::oneshot;

use crate::{EndCause, Ending, Unacknowledged};

/// Resolves when a block is durable, or the client has ended before that. Dropping it changes nothing for the block.
///
/// Waits as long as it takes, over lost connections and from server to server. An aggregation that is not full is flushed after the
/// server's flush time, unless someone asks for it with [`Client::flush`](crate::Client::flush). An error says that the block may
/// be durable or not; [`Client::unflushed`](crate::Client::unflushed) has it.
#[derive(Debug)]
pub struct Durable {
    pub(crate) sequence: Sequence,
    pub(crate) outcome: oneshot::Receiver<Result<(), Unacknowledged>>,
}

impl Durable {
    /// The block's sequence.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }
}

impl Future for Durable {
    type Output = Result<(), Unacknowledged>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let sequence = self.sequence;
        Pin::new(&mut self.outcome).poll(context).map(|outcome| {
            outcome.unwrap_or_else(|_| {
                let ending = Ending::new(EndCause::RuntimeGone, [sequence].into_iter().collect());
                Err(Unacknowledged { sequence, ending })
            })
        })
    }
}
