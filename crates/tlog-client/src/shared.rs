//! What the clones of a client and its task have in common.
//!
//! Blocks and commands go through one [`Intake`] under a short lock: it numbers them, and the task takes all of it at
//! once. Two semaphores bound what is in it and behind it. Nothing else of the task is visible from outside but what it
//! publishes: [`Progress`], [`Stats`], events, and at the end what is left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tlog_proto::{Block, BlockHash, BlockIndex, Operation, Sequence, Timestamp};
use tokio::sync::{Notify, Semaphore, broadcast, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{AppendError, BLOCK_OVERHEAD, EndCause, Ending, Event, Events, Servers, Stats, Unacknowledged};

pub(crate) struct Shared {
    intake: Mutex<Intake>,
    /// Told whenever there is something for the task to look at.
    pub(crate) wake: Notify,
    /// Bytes that may still be handed over. Closed when the client has ended.
    pub(crate) room: Semaphore,
    room_bytes: usize,
    /// Commands that may still be queued for writing. Closed when the client has ended.
    pub(crate) command_slots: Semaphore,
    /// Waits for the slave that may still be unanswered. Closed when the client has ended.
    pub(crate) slave_sync_slots: Semaphore,
    waiting_for_room: AtomicUsize,
    pub(crate) progress: watch::Sender<Progress>,
    /// Who may be connected to.
    pub(crate) servers: watch::Sender<Servers>,
    /// Who is connected.
    pub(crate) server: watch::Sender<Option<Arc<str>>>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Ends the client.
    pub(crate) close: CancellationToken,
}

/// What is handed over and not yet taken by the task.
#[derive(Default)]
pub(crate) struct Intake {
    /// The sequence that the next block gets.
    pub(crate) next: Sequence,
    pub(crate) queue: Vec<Handed>,
    handed_blocks: u64,
    handed_bytes: u64,
    /// No more blocks, because everything is being flushed for the last time.
    pub(crate) closing: bool,
    /// What the task published last.
    pub(crate) published: Stats,
    /// Set once, when the client has ended; nothing is queued any more.
    pub(crate) ended: Option<Ended>,
}

/// How it ended and what is left.
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) unflushed: Vec<Block>,
}

/// Something handed over.
pub(crate) enum Handed {
    Block { block: Block, cost: usize, ticket: Ticket },
    ForceFlush(Sequence),
    WaitSlaveSync(oneshot::Sender<()>),
}

/// Who waits for a block, and since when.
pub(crate) struct Ticket {
    pub(crate) done: oneshot::Sender<Result<(), Unacknowledged>>,
    pub(crate) handed_over: Instant,
}

impl Ticket {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<(), Unacknowledged>>) {
        let (done, outcome) = oneshot::channel();
        (Self { done, handed_over: Instant::now() }, outcome)
    }
}

/// How far the log is, for everyone who waits for more than one block.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) first_unacknowledged: Sequence,
    pub(crate) ending: Option<Ending>,
}

impl Progress {
    /// The answer to "is everything up to `sequence` durable?", once there is one.
    pub(crate) fn answer(&self, sequence: Sequence) -> Option<Result<(), Ending>> {
        if sequence < self.first_unacknowledged {
            return Some(Ok(()));
        }
        self.ending.clone().map(Err)
    }
}

/// A block that has no sequence yet, or one that is to be checked.
pub(crate) struct Draft {
    /// The caller's sequence and timestamp, where they are the caller's.
    pub(crate) own: Option<(Sequence, Timestamp)>,
    pub(crate) index: BlockIndex,
    pub(crate) operation: Operation,
    pub(crate) hash: BlockHash,
    pub(crate) data: bytes::Bytes,
}

impl Shared {
    const COMMANDS: usize = 1024;
    const SLAVE_SYNCS: usize = 64;

    pub(crate) fn new(first: Sequence, max_unflushed_bytes: usize, servers: Servers) -> Self {
        let room_bytes = max_unflushed_bytes.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            intake: Mutex::new(Intake { next: first, ..Intake::default() }),
            wake: Notify::new(),
            room: Semaphore::new(room_bytes),
            room_bytes,
            command_slots: Semaphore::new(Self::COMMANDS),
            slave_sync_slots: Semaphore::new(Self::SLAVE_SYNCS),
            waiting_for_room: AtomicUsize::new(0),
            progress: watch::Sender::new(Progress { first_unacknowledged: first, ending: None }),
            servers: watch::Sender::new(servers),
            server: watch::Sender::new(None),
            events: broadcast::Sender::new(Events::CAPACITY),
            close: CancellationToken::new(),
        }
    }

    /// The lock is held for moments only, never over an await.
    pub(crate) fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a block of so many bytes takes of the room. One larger than all of it takes all of it.
    pub(crate) fn cost(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.saturating_add(BLOCK_OVERHEAD).min(self.room_bytes)).unwrap_or(u32::MAX)
    }

    pub(crate) fn stats(&self) -> Stats {
        let intake = self.intake();
        Stats {
            unflushed_blocks: intake.handed_blocks - intake.published.durable_blocks,
            unflushed_bytes: intake.handed_bytes - intake.published.durable_bytes,
            ..intake.published
        }
    }

    /// How the client ended. Only for callers who know that it has.
    pub(crate) fn ending(&self) -> Ending {
        let ended = self.intake().ended.as_ref().map(|ended| ended.ending.clone());
        ended.unwrap_or_else(|| Ending::new(EndCause::RuntimeGone, Default::default()))
    }

    /// Marks the caller as waiting for room until it drops the answer, and tells the task.
    pub(crate) fn wait_for_room(&self) -> WaitsForRoom<'_> {
        self.waiting_for_room.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        WaitsForRoom(self)
    }

    pub(crate) fn is_room_wanted(&self) -> bool {
        self.waiting_for_room.load(Ordering::Relaxed) > 0
    }
}

impl Intake {
    /// Whether a block can be handed over at all.
    pub(crate) fn check(&self, own: Option<Sequence>) -> Result<(), AppendError> {
        if let Some(ended) = &self.ended {
            return Err(ended.ending.clone().into());
        }
        if self.closing {
            return Err(AppendError::Closing);
        }
        // The highest value stays unused: there is no first sequence after it for a later connection.
        if self.next == Sequence(u64::MAX) {
            return Err(AppendError::NoSequenceLeft);
        }
        match own {
            Some(given) if given != self.next => Err(AppendError::NotNext { given, expected: self.next }),
            _ => Ok(()),
        }
    }

    /// Numbers a block and queues it.
    pub(crate) fn hand_over(
        &mut self,
        draft: Draft,
        cost: usize,
        ticket: Ticket,
    ) -> Result<Sequence, AppendError> {
        self.check(draft.own.map(|(sequence, _)| sequence))?;
        let Draft { own, index, operation, hash, data } = draft;
        let (sequence, timestamp) = own.unwrap_or_else(|| (self.next, now()));
        self.next = sequence.next();
        self.handed_blocks += 1;
        self.handed_bytes += data.len() as u64;
        let block = Block { sequence, index, operation, timestamp, hash, data };
        self.queue.push(Handed::Block { block, cost, ticket });
        Ok(sequence)
    }
}

/// Someone waits for room as long as this exists.
pub(crate) struct WaitsForRoom<'a>(&'a Shared);

impl Drop for WaitsForRoom<'_> {
    fn drop(&mut self) {
        self.0.waiting_for_room.fetch_sub(1, Ordering::Relaxed);
    }
}

fn now() -> Timestamp {
    Timestamp(tlog_ambient::unix_nanos())
}
