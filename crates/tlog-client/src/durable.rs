//! The fate of one block.

use std::pin::Pin;
use std::task::{Context, Poll};

use tlog_proto::Sequence;
use tokio::sync::oneshot;

use crate::{EndCause, Ending, Unacknowledged};

/// Resolves when a block is durable, or is known not to become so. Dropping it changes nothing for the block.
///
/// Waits as long as the server takes: an aggregation that is not full is flushed after the server's flush time, unless
/// someone asks for it with [`Client::flush`](crate::Client::flush).
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
                Err(Unacknowledged::Ended { sequence, ending })
            })
        })
    }
}
