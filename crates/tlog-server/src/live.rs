//! The connection that a vdisk's task is talking to.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;

use tlog_proto::LogPosition;

use crate::outbox::{Ended, Reason};
use crate::port::{SlaveSyncError, SlaveSyncOutcome};
use crate::registry::{Hello, Incoming};
use crate::session::ConnectionId;

/// A place for something that goes on beside everything else.
pub(crate) type Slot<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Waits for what is in a slot and takes it out. Cancel safe.
pub(crate) async fn wait_for<T>(slot: &mut Slot<T>) -> T {
    let Some(future) = slot else {
        return pending().await;
    };
    let output = future.await;
    *slot = None;
    output
}

/// The live connection.
pub(crate) struct Live {
    pub(crate) id: ConnectionId,
    pub(crate) hello: Hello,
    /// What has arrived and was not looked at yet.
    pub(crate) arrived: VecDeque<Incoming>,
    /// No more will arrive.
    pub(crate) at_end: bool,
    pub(crate) slave: Slot<Result<SlaveSyncOutcome, SlaveSyncError>>,
    pub(crate) more_slave_waits: SlaveWaits,
}

impl Drop for Live {
    /// However the task comes to forget a connection, that one ends. Where an end was given before, this one is nothing.
    fn drop(&mut self) {
        self.hello.outbox.end(Ended::Finished(Reason::LogClosed));
    }
}

/// What was durable at each command to wait for the slave that came while one was waiting.
#[derive(Debug, Default)]
pub(crate) struct SlaveWaits {
    /// With how many commands came at each.
    waits: VecDeque<(Option<LogPosition>, u64)>,
}

impl SlaveWaits {
    /// Positions that are kept apart. A client may send commands for as long as it likes: those beyond are judged by the newest.
    const MAX: usize = 64;

    pub(crate) fn push(&mut self, position: Option<LogPosition>) {
        let full = self.waits.len() >= Self::MAX;
        match self.waits.back_mut() {
            Some((last, count)) if full || *last == position => {
                *last = position;
                *count += 1;
            }
            _ => self.waits.push_back((position, 1)),
        }
    }

    /// The oldest one.
    pub(crate) fn pop(&mut self) -> Option<Option<LogPosition>> {
        let (position, count) = self.waits.front_mut()?;
        let position = *position;
        *count -= 1;
        if *count == 0 {
            self.waits.pop_front();
        }
        Some(position)
    }
}

pub(crate) enum LiveEvent {
    Slave(Result<SlaveSyncOutcome, SlaveSyncError>),
    /// None where no more comes.
    Arrived(Option<Vec<Incoming>>),
}

/// What happens next with the live connection. While a block is compared, what arrives waits. Cancel safe.
pub(crate) async fn from_live(live: &mut Option<Live>, comparing: bool) -> LiveEvent {
    let Some(live) = live else { return pending().await };
    tokio::select! {
        // The slave answers once for each command that arrives: it holds up nothing.
        biased;
        synced = wait_for(&mut live.slave) => LiveEvent::Slave(synced),
        batch = live.hello.inbound.recv(), if !comparing && !live.at_end => LiveEvent::Arrived(batch),
    }
}

#[cfg(test)]
mod tests {
    use tlog_proto::{Generation, Sequence};

    use super::*;

    #[test]
    fn waits_are_answered_one_by_one_and_take_no_more_memory_than_a_few() {
        let at =
            |sequence: u64| Some(LogPosition { generation: Generation(1), sequence: Sequence(sequence) });
        let mut waits = SlaveWaits::default();
        for position in [None, at(1), at(1), at(2)] {
            waits.push(position);
        }
        assert_eq!([(); 5].map(|()| waits.pop()), [Some(None), Some(at(1)), Some(at(1)), Some(at(2)), None]);
        let many = 100_000;
        (1..=many).for_each(|sequence| waits.push(at(sequence)));
        assert_eq!(waits.waits.len(), SlaveWaits::MAX);
        let popped: Vec<_> = std::iter::from_fn(|| waits.pop()).collect();
        assert_eq!(
            (popped.len() as u64, popped.first(), popped.last()),
            (many, Some(&at(1)), Some(&at(many)))
        );
        // None is judged by less than what was durable when it came.
        assert!(popped.iter().zip(1..).all(|(position, sequence)| *position >= at(sequence)));
    }
}
