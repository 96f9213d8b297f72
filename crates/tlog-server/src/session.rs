//! What the server holds of one vdisk, and what it answers. Pure: no socket, clock, task or randomness.
//!
//! ```text
//!  handshake ---- gap ------------------------> (ordered blocks become durable) -> Refuse
//!     |
//!     |-- comes back, and another is there ----> Refuse
//!     |
//!     |-- continues / comes back / to compare ---------------------------------\
//!     |                                                                         v
//!     \-- reset, or another session below next -> (ordered blocks durable) -> Accept: the live connection
//!
//!  block -> window -> its turn -> empty log, or the connection starts over ------> new generation, append
//!              |                  == next ---------------------------------------> append
//!              |                  held, same known session ----------------------> duplicate
//!              |                  held, session unknown -> equals what is held --> duplicate
//!              |                                        \-> differs -------------> new generation, append
//!              |                  below the generation, or somebody else's ------> new generation, append
//!              \-> beyond the bounds --------------------------------------------> RecvFailed
//! ```
//!
//! The rules are those of `docs/sessions.md`. A duplicate that is durable is answered with FlushOK, any other accepted
//! block with RecvOK, and with FlushOK once its place is durable.

use std::collections::VecDeque;

use tlog_proto::{Block, BlockStatus, Generation, LogPosition, Response, Sequence, SessionId};

use crate::port::{BlockDigest, LogEnd, OrderedBlock};
use crate::tail::LogTail;
use crate::window::{Offered, Window, WindowLimits};
use awaiting::Awaiting;
use placement::{Arrival, Core, Forced, Link};

mod awaiting;
mod placement;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

/// Bytes of memory that a block is counted with, beside its data.
pub(crate) const BLOCK_OVERHEAD: usize = 256;

/// Bytes that a block is counted with everywhere.
pub(crate) fn cost(block: &Block) -> usize {
    block.data.len().saturating_add(BLOCK_OVERHEAD)
}

/// Names one connection for as long as the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// What a handshake says about where the client stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeting {
    pub(crate) connection: ConnectionId,
    pub(crate) session: SessionId,
    pub(crate) first: Sequence,
    pub(crate) reset: bool,
    /// It was accepted before, here or elsewhere, and found the log ending there.
    pub(crate) returning: Option<LogPosition>,
    /// Whether the log is known to be ours still, so that what it looks like here is what it is.
    pub(crate) certain: bool,
}

impl Greeting {
    /// Nobody's next sequence: that is how a client asks where the log ends.
    pub(crate) const QUESTION: Sequence = Sequence(u64::MAX);
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action<P> {
    /// The handshake is OK; the connection is the live one.
    Accept { connection: ConnectionId, last_flushed: Option<Sequence>, end: LogPosition },
    /// The handshake failed.
    Refuse { connection: ConnectionId, why: Refusal, last_flushed: Option<Sequence> },
    /// Tell the live connection that this block has been received. Nearly every block's answer.
    Received(Sequence),
    /// Tell the live connection.
    Answer(Response),
    /// The next block of the log. The permit belongs to it until it is durable.
    Append(OrderedBlock, P),
    /// Make everything appended so far durable.
    Flush,
    /// Ask the log what it holds there, and call [`Session::handle_found`]. Until then no block and no command may come.
    Find(LogPosition),
    /// Wait until the slave holds everything up to there, and call [`Session::handle_slave_synced`].
    WaitSlave(Option<LogPosition>),
    /// The connection is not the live one any more: another one has taken over.
    Replace(ConnectionId),
    /// For logs and counters.
    Note(Note),
}

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client would leave out what lies between; `next` is none in an empty log.
    Gap { first: Sequence, next: Option<Sequence> },
    /// Another client has written since, or has connected.
    TakenOver { by: SessionId },
    /// One of these, if the log is ours still, which could not be told.
    Uncertain,
    /// The log has closed.
    LogClosed,
}

/// What happened, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A block is held already.
    Duplicate,
    /// The sequences have started over.
    NewGeneration { position: LogPosition, before: Option<LogPosition> },
    /// A block was too far ahead or there was no room for it; it is not held.
    NotHeld { sequence: Sequence, why: NotHeld },
}

/// Why a good block is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotHeld {
    /// Beyond the span of the window.
    TooFar,
    /// No room in the vdisk's window.
    WindowFull,
    /// No room in what all windows may hold together.
    AllWindowsFull,
    /// No sequence comes after it, so that nothing could continue the log.
    LastSequence,
}

impl NotHeld {
    /// A short name, for logs and counters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            NotHeld::TooFar => "too_far_ahead",
            NotHeld::WindowFull => "window_full",
            NotHeld::AllWindowsFull => "all_windows_full",
            NotHeld::LastSequence => "last_sequence",
        }
    }
}

/// State of one vdisk while its log is open.
///
/// Feed it with `handle_*`, and after each call carry out what [`Session::poll_action`] answers until it answers none.
/// While [`Session::is_comparing`], blocks and commands must wait.
///
/// Invariant: the window of a connection that does not start over never expects more than the log's next sequence.
#[derive(Debug)]
pub(crate) struct Session<P> {
    core: Core<P>,
    window_limits: WindowLimits,
    link: Option<Link<P>>,
    greeted: Vec<Greeted>,
    /// Whether generations are stored.
    keeps_generations: bool,
}

/// Where a client's blocks go.
struct Place {
    /// Where the window begins.
    expects: Sequence,
    /// A generation begins with the first block.
    starts_over: bool,
    /// What is ordered is made durable before the handshake is answered.
    flush_first: bool,
    /// Blocks that are held are compared.
    compares: bool,
}

/// A handshake that is answered once everything up to `until` is durable.
#[derive(Debug)]
struct Greeted {
    connection: ConnectionId,
    until: LogPosition,
    /// Why it is refused then; none where it is accepted.
    gap: Option<Refusal>,
}

impl<P> Session<P> {
    /// The state after opening: everything up to the log's end is durable.
    pub(crate) fn new(end: LogEnd, window_limits: WindowLimits) -> Self {
        let log = LogTail::new(end);
        let durable = log.position();
        let core = Core { log, durable, owner: None, actions: VecDeque::new() };
        Self { core, window_limits, link: None, greeted: Vec::new(), keeps_generations: true }
    }

    /// Over a log that knows no generations: those of today are forgotten when it is opened again.
    pub(crate) fn without_generations(self) -> Self {
        Self { keeps_generations: false, ..self }
    }

    /// What is to be done next.
    pub(crate) fn poll_action(&mut self) -> Option<Action<P>> {
        self.core.actions.pop_front()
    }

    /// A client has said where it stands. It takes over, unless it leaves a gap, or comes back and another one is there.
    pub(crate) fn handle_greeting(&mut self, greeting: Greeting) {
        let Greeting { connection, session, returning, certain, .. } = greeting;
        // What a client of ours is told of the log's end counts for as long as it lives.
        if !certain && session.is_known() {
            return self.core.refuse(connection, Refusal::Uncertain);
        }
        let place = match self.place_of(&greeting) {
            Ok(place) => place,
            Err(_) if !certain => return self.core.refuse(connection, Refusal::Uncertain),
            Err(gap @ Refusal::Gap { next: Some(_), .. }) => return self.refuse_gap(connection, gap),
            Err(why) => return self.core.refuse(connection, why),
        };
        let Place { expects, starts_over, flush_first, compares } = place;
        // What was stored since it was here first is its own, or it is not let go on.
        let must_continue = returning.is_some_and(|found| found != self.end());
        let mut owner_before = self.core.owner.replace(session);
        if let Some(old) = self.link.take() {
            if !old.accepted {
                owner_before = old.owner_before; // nor did that one take anything over
            }
            self.greeted.retain(|greeted| greeted.connection != old.id);
            self.core.actions.push_back(Action::Replace(old.id));
        }
        self.link = Some(Link {
            id: connection,
            session,
            compares,
            must_continue,
            owner_before,
            is_over: false,
            accepted: false,
            starts_over,
            window: Window::new(expects, self.window_limits),
            awaiting: Awaiting::default(),
            flushed: None,
            forced: Forced::default(),
            comparing: None,
            received: None,
        });
        match self.core.undurable().filter(|_| flush_first) {
            Some(until) => {
                self.core.flush();
                self.greeted.push(Greeted { connection, until, gap: None });
            }
            None => self.accept(),
        }
    }

    /// Where a client's blocks go, or why nowhere.
    fn place_of(&self, greeting: &Greeting) -> Result<Place, Refusal> {
        let Greeting { session, first, reset, returning, .. } = *greeting;
        if let Some(by) = self.core.owner.filter(|owner| returning.is_some() && *owner != session) {
            return Err(Refusal::TakenOver { by });
        }
        let log = &self.core.log;
        let compares = !session.is_known();
        let goes_on = |next| Place { expects: next, starts_over: false, flush_first: false, compares };
        let starts_over = Place { expects: first, starts_over: true, flush_first: true, compares };
        let is_compared = Place { expects: first, starts_over: false, flush_first: false, compares: true };
        let Some(next) = log.next() else {
            return match returning {
                Some(found) if found != LogPosition::default() => Err(Refusal::Gap { first, next: None }),
                _ if first == Greeting::QUESTION => Err(Refusal::Gap { first, next: None }),
                _ => Ok(Place { flush_first: false, ..starts_over }),
            };
        };
        let gap = Refusal::Gap { first, next: Some(next) };
        if returning.is_some_and(|found| found != self.end()) {
            // Something was stored since it was here first: its own, or it must not begin anything here.
            return match log.session() {
                _ if first > next => Err(gap),
                by if by == session && (first == next || log.is_by(session, first)) => Ok(goes_on(next)),
                // A log that does not know who wrote it is compared, block by block, where there is something to compare.
                by if !by.is_known() && first < next => Ok(is_compared),
                by if !by.is_known()
                    && returning.map(|found| found.generation) == Some(self.end().generation) =>
                {
                    Ok(goes_on(next))
                }
                by => Err(Refusal::TakenOver { by }),
            };
        }
        // Where the log ends when a client comes first decides about it when it comes again: that end is durable first.
        let settled = Place { flush_first: reset || session.is_known(), ..goes_on(next) };
        Ok(match reset {
            _ if first == next => settled,
            true => starts_over,
            false if first > next => return Err(gap),
            false if log.is_by(session, first) => settled,
            false if session.is_known() => starts_over,
            false => is_compared,
        })
    }

    /// Where the log ends; generation 0 in an empty one.
    fn end(&self) -> LogPosition {
        let end = self.core.log.position().unwrap_or_default();
        match self.keeps_generations || end.generation == Generation::default() {
            true => end,
            // Counted in memory only, it would be another one after a restart.
            false => LogPosition { generation: Generation(1), ..end },
        }
    }

    /// The client that was just accepted did not hear of it any more.
    pub(crate) fn handle_unheard(&mut self, connection: ConnectionId) {
        if let Some(link) = self.link.as_mut().filter(|link| link.id == connection) {
            link.accepted = false;
        }
        self.handle_gone(connection);
    }

    /// A connection is gone. What waited for an earlier block goes with it.
    pub(crate) fn handle_gone(&mut self, connection: ConnectionId) {
        if let Some(link) = self.link.take_if(|link| link.id == connection)
            && !link.accepted
        {
            // It never heard that it has the vdisk: nobody was taken over.
            self.core.owner = link.owner_before;
        }
        self.greeted.retain(|greeted| greeted.connection != connection);
    }

    /// Whether a block would have to wait for an earlier one.
    pub(crate) fn would_wait(&self, sequence: Sequence) -> bool {
        self.link.as_ref().is_some_and(|link| link.window.is_ahead(sequence))
    }

    /// A verified block has come in on the live connection.
    pub(crate) fn handle_block(&mut self, block: Block, permit: P) {
        let Some(link) = &mut self.link else { return };
        if link.is_over {
            return;
        }
        let core = &mut self.core;
        debug_assert!(link.comparing.is_none(), "blocks wait while one is compared");
        let sequence = block.sequence;
        if sequence.next() == sequence {
            return core.not_held(sequence, NotHeld::LastSequence);
        }
        let bytes = cost(&block);
        // What stays in the window is answered below; what comes out at once is answered where it is placed.
        match link.window.offer(sequence, bytes, Arrival { block, permit, answered: true }) {
            Offered::Expected(arrival) | Offered::Below(arrival) => {
                core.place(link, Arrival { answered: false, ..arrival });
                core.place_waiting(link);
            }
            Offered::Waits => core.received(sequence),
            Offered::Replaced(_) => {
                core.note(Note::Duplicate);
                core.received(sequence);
            }
            Offered::TooFar => return core.not_held(sequence, NotHeld::TooFar),
            Offered::Full => return core.not_held(sequence, NotHeld::WindowFull),
        }
        link.received = link.received.max(Some(sequence));
    }

    /// A block would have to wait and there is no room for it outside this vdisk.
    pub(crate) fn handle_block_without_room(&mut self, sequence: Sequence) {
        self.core.not_held(sequence, NotHeld::AllWindowsFull);
    }

    /// The client wants everything up to a sequence to be durable as soon as it is there.
    pub(crate) fn handle_force_flush(&mut self, sequence: Sequence) {
        let Some(link) = &mut self.link else { return };
        let core = &mut self.core;
        core.answer(BlockStatus::ForceFlushReceived, Vec::new());
        if link.flushed.is_some_and(|(low, high)| low <= sequence && sequence <= high) {
            return core.answer(BlockStatus::FlushOk, vec![sequence]);
        }
        if core.log.holds(sequence) || sequence < link.window.next() {
            core.flush();
        }
        if sequence >= link.window.next() {
            link.forced.add(sequence);
        }
    }

    /// The client wants to hear when the slave holds everything that is durable now.
    pub(crate) fn handle_wait_slave_sync(&mut self) {
        self.core.actions.push_back(Action::WaitSlave(self.core.durable));
    }

    /// The slave holds it.
    pub(crate) fn handle_slave_synced(&mut self) {
        self.core.answer(BlockStatus::WaitNbdSlaveSyncReceived, Vec::new());
    }

    /// Whether an answer to [`Action::Find`] is awaited.
    pub(crate) fn is_comparing(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.comparing.is_some())
    }

    /// What the log holds where [`Action::Find`] asked.
    pub(crate) fn handle_found(&mut self, found: Option<BlockDigest>) {
        let Some(link) = &mut self.link else { return };
        if let Some(arrival) = link.comparing.take() {
            self.core.compared(link, arrival, found);
            self.core.place_waiting(link);
        }
    }

    /// Everything up to there is durable.
    pub(crate) fn handle_durable(&mut self, durable: LogPosition) {
        let core = &mut self.core;
        if core.durable >= Some(durable) {
            return;
        }
        core.durable = Some(durable);
        core.log.forget(durable);
        if let Some(link) = &mut self.link {
            let newly = link.awaiting.take_until(durable);
            core.flushed(link, &newly);
        }
        let (ready, waiting): (Vec<_>, _) =
            self.greeted.drain(..).partition(|greeted| greeted.until <= durable);
        self.greeted = waiting;
        for Greeted { connection, gap, .. } in ready {
            match gap {
                Some(gap) => self.core.refuse(connection, gap),
                None => self.accept(),
            }
        }
    }

    /// The log has closed and not everything is durable. Nothing more may come.
    pub(crate) fn handle_log_closed(&mut self) {
        for greeted in std::mem::take(&mut self.greeted) {
            self.core.refuse(greeted.connection, Refusal::LogClosed);
        }
        if self.link.take().is_some_and(|link| link.accepted) {
            self.core.answer(BlockStatus::FlushFailed, Vec::new());
        }
    }

    /// Generation and sequence of the last block in the log, durable or not.
    pub(crate) fn ordered(&self) -> Option<LogPosition> {
        self.core.log.position()
    }

    /// What is durable.
    pub(crate) fn durable(&self) -> Option<LogPosition> {
        self.core.durable
    }

    /// Highest sequence that the live connection has brought.
    pub(crate) fn received(&self) -> Option<Sequence> {
        self.link.as_ref()?.received
    }

    /// How many blocks wait for an earlier one, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        self.link.as_ref().map_or((0, 0), |link| (link.window.len(), link.window.bytes()))
    }

    fn accept(&mut self) {
        let end = self.end();
        let Some(link) = &mut self.link else { return };
        link.accepted = true;
        // An unknown session that comes in lower may be anybody: it hears of nothing that it has not sent here.
        let continues = !link.starts_over && self.core.log.next() == Some(link.window.next());
        let last_flushed = self.core.last_flushed().filter(|_| continues);
        self.core.actions.push_back(Action::Accept { connection: link.id, last_flushed, end });
    }

    fn refuse_gap(&mut self, connection: ConnectionId, gap: Refusal) {
        match self.core.undurable() {
            None => self.core.refuse(connection, gap),
            Some(until) => {
                self.core.flush();
                self.greeted.push(Greeted { connection, until, gap: Some(gap) });
            }
        }
    }
}
