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
    /// What was durable at each command that came while one was waiting.
    pub(crate) more_slave_waits: VecDeque<Option<LogPosition>>,
}

impl Drop for Live {
    /// However the task comes to forget a connection, that one ends. Where an end was given before, this one is nothing.
    fn drop(&mut self) {
        self.hello.outbox.end(Ended::Finished(Reason::LogClosed));
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
        synced = wait_for(&mut live.slave) => LiveEvent::Slave(synced),
        batch = live.hello.inbound.recv(), if !comparing && !live.at_end => LiveEvent::Arrived(batch),
    }
}
