//! What has become of every block that was handed over. Pure: no clock, socket, task or randomness.
//!
//! ```text
//!             poll_send            RecvOK                  FlushOK
//!  Waiting ---------------> Sent ----------> Received ---------------> Durable ---> forgotten, once all before it are
//!     ^                       |                 |                         ^
//!     | resend                v   RecvFailed    v                         |
//!     +------------------- Refused <-----------+        FlushOK counts from every phase that was sent
//! ```
//!
//! Calling order: [`State::push`] and the command methods at any time, then [`State::poll_send`] until it has nothing
//! more, [`State::handle_response`] for what the server says, [`State::end`] once.
//!
//! For reconnecting, which does not exist yet: a new connection shakes hands with [`State::first_unacknowledged`] as its
//! first sequence, puts `next_to_send` back there and every phase but Durable back to Waiting.

use std::collections::{BTreeSet, VecDeque};

use tlog_proto::{Block, BlockStatus, Response, Sequence};

use crate::{SequenceSet, Stats};

#[cfg(test)]
mod tests;

/// What each block costs beside its data, in bytes: its place here, its handle, its frame on the wire.
///
/// Counted against [`ClientOptions::max_unflushed_bytes`](crate::ClientOptions::max_unflushed_bytes), so that many tiny
/// blocks cannot take memory without bound.
pub const BLOCK_OVERHEAD: usize = 256;

/// The blocks that are not known to be durable, in order. `T` is what the caller wants back with a block's fate.
///
/// Invariants: `entries[i]` has sequence `first + i`; the first entry is not durable; everything below `next_to_send` was
/// given out by [`State::poll_send`] at least once, nothing at or above it was; `refused` is the set of entries in phase
/// Refused; a durable entry holds no block.
pub(crate) struct State<T> {
    /// First sequence of this client.
    start: Sequence,
    /// Lowest sequence that is not durable: of `entries[0]`, or of the next block.
    first: Sequence,
    entries: VecDeque<Entry<T>>,
    next_to_send: Sequence,
    resends: VecDeque<Sequence>,
    /// Commands, each with the sequence that it stands before on the wire.
    commands: VecDeque<(Sequence, Command)>,
    refused: BTreeSet<Sequence>,
    /// Up to where a flush was asked for because someone waits for room.
    room_asked: Option<Sequence>,
    /// Commands on their way to an answer.
    flushes_unanswered: u64,
    slave_syncs_unanswered: u64,
    /// Cost of what is durable and was not yet taken by `take_released`.
    released: usize,
    stats: Stats,
}

struct Entry<T> {
    /// None once durable.
    block: Option<Block>,
    phase: Phase,
    ticket: Option<T>,
    /// What it holds of the caller's bound.
    cost: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Sent,
    Received,
    Refused,
    Durable,
}

/// A message to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The caller wants everything up to this sequence flushed.
    ForceFlush(Sequence),
    /// The same, by our own decision.
    MakeRoom(Sequence),
    /// The caller wants to know when the slave holds what is flushed.
    WaitSlaveSync,
}

/// What goes on the wire next.
#[derive(Debug)]
pub(crate) enum Send<'a> {
    Block(&'a Block),
    Command(Command),
}

/// What follows from a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action<T> {
    /// The server holds this block.
    Received(Sequence),
    /// These blocks are durable; here are their tickets.
    Durable { sequences: Vec<Sequence>, tickets: Vec<T> },
    /// This block was refused.
    Refused { sequence: Sequence, ticket: Option<T> },
    /// The oldest unanswered wait for the slave is over.
    SlaveSynced,
    /// Nothing becomes durable any more: end the connection.
    FlushFailed,
}

/// What is left when a connection ends.
pub(crate) struct Remains<T> {
    /// Who still waits.
    pub(crate) tickets: Vec<(Sequence, T)>,
    /// Every sequence that is not durable.
    pub(crate) unacknowledged: SequenceSet,
    /// Their blocks, in order.
    pub(crate) blocks: Vec<Block>,
}

impl<T> State<T> {
    pub(crate) fn new(first: Sequence) -> Self {
        Self {
            start: first,
            first,
            entries: VecDeque::new(),
            next_to_send: first,
            resends: VecDeque::new(),
            commands: VecDeque::new(),
            refused: BTreeSet::new(),
            room_asked: None,
            flushes_unanswered: 0,
            slave_syncs_unanswered: 0,
            released: 0,
            stats: Stats::default(),
        }
    }

    /// The sequence that the next pushed block has.
    pub(crate) fn next(&self) -> Sequence {
        Sequence(self.first.0.saturating_add(self.entries.len() as u64))
    }

    /// Everything below it is durable. Where a later connection starts: the last flushed sequence + 1.
    pub(crate) fn first_unacknowledged(&self) -> Sequence {
        self.first
    }

    /// The lowest block that the server refused and that was not sent again.
    pub(crate) fn lowest_refused(&self) -> Option<Sequence> {
        self.refused.first().copied()
    }

    /// The numbers as far as they are known here: of what was pushed.
    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Every block that is not durable, in order. Data is shared, not copied.
    pub(crate) fn unflushed(&self) -> Vec<Block> {
        self.entries.iter().filter_map(|entry| entry.block.clone()).collect()
    }

    /// Takes the next block. `cost` comes back through [`State::take_released`] when it is durable.
    pub(crate) fn push(&mut self, block: Block, cost: usize, ticket: T) {
        debug_assert_eq!(block.sequence, self.next(), "whoever numbers blocks leaves no gaps");
        self.stats.unflushed_blocks += 1;
        self.stats.unflushed_bytes += block.data.len() as u64;
        self.entries.push_back(Entry {
            block: Some(block),
            phase: Phase::Waiting,
            ticket: Some(ticket),
            cost,
        });
    }

    /// Queues a command behind everything pushed so far.
    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push_back((self.next(), command));
    }

    /// Someone waits for room: without a flush it comes only when the server's aggregation is full or old. Queues one up
    /// to the last block, unless one that was asked for so is still awaited.
    pub(crate) fn make_room(&mut self) {
        let awaited = self.room_asked.is_some_and(|asked| asked >= self.first);
        let last = self.next().previous().filter(|last| *last >= self.first);
        if let (false, Some(last)) = (awaited, last) {
            self.room_asked = Some(last);
            self.command(Command::MakeRoom(last));
        }
    }

    /// Queues a refused block again, with a new ticket. Gives the ticket back where the block is not a refused one.
    pub(crate) fn resend(&mut self, sequence: Sequence, ticket: T) -> Result<(), T> {
        let Some(entry) = self.entry(sequence).filter(|entry| entry.phase == Phase::Refused) else {
            return Err(ticket);
        };
        entry.phase = Phase::Waiting;
        entry.ticket = Some(ticket);
        self.refused.remove(&sequence);
        self.resends.push_back(sequence);
        Ok(())
    }

    /// What to write next. What it gives counts as sent.
    pub(crate) fn poll_send(&mut self) -> Option<Send<'_>> {
        while let Some(sequence) = self.resends.pop_front() {
            if self.entry(sequence).is_some_and(|entry| entry.phase == Phase::Waiting) {
                self.stats.resent_blocks += 1;
                return self.give_out(sequence);
            }
        }
        if self.commands.front().is_some_and(|(before, _)| *before <= self.next_to_send) {
            let (_, command) = self.commands.pop_front()?;
            match command {
                Command::ForceFlush(_) | Command::MakeRoom(_) => self.flushes_unanswered += 1,
                Command::WaitSlaveSync => self.slave_syncs_unanswered += 1,
            }
            return Some(Send::Command(command));
        }
        let sequence = self.next_to_send;
        let bytes = self.entry(sequence)?.block.as_ref().map_or(0, Block::size);
        self.next_to_send = sequence.next();
        self.stats.sent_blocks += 1;
        self.stats.sent_bytes += bytes as u64;
        self.give_out(sequence)
    }

    /// Applies what the server says and appends what follows from it to `actions`.
    pub(crate) fn handle_response(&mut self, response: Response, actions: &mut Vec<Action<T>>) {
        match response.status {
            BlockStatus::RecvOk => {
                for sequence in response.sequences {
                    if self.advance(sequence, &[Phase::Sent], Phase::Received).is_some() {
                        self.stats.received_blocks += 1;
                        actions.push(Action::Received(sequence));
                    }
                }
            }
            BlockStatus::RecvFailed => {
                for sequence in response.sequences {
                    if let Some(entry) =
                        self.advance(sequence, &[Phase::Sent, Phase::Received], Phase::Refused)
                    {
                        let ticket = entry.ticket.take();
                        self.refused.insert(sequence);
                        self.stats.refused_blocks += 1;
                        actions.push(Action::Refused { sequence, ticket });
                    }
                }
            }
            BlockStatus::FlushOk => self.handle_flush_ok(response.sequences, actions),
            BlockStatus::ForceFlushReceived => match self.flushes_unanswered.checked_sub(1) {
                Some(left) => self.flushes_unanswered = left,
                None => self.stats.unexpected_responses += 1,
            },
            BlockStatus::WaitNbdSlaveSyncReceived => match self.slave_syncs_unanswered.checked_sub(1) {
                Some(left) => {
                    self.slave_syncs_unanswered = left;
                    actions.push(Action::SlaveSynced);
                }
                None => self.stats.unexpected_responses += 1,
            },
            BlockStatus::FlushFailed => actions.push(Action::FlushFailed),
        }
    }

    /// Cost of what became durable since the last call.
    pub(crate) fn take_released(&mut self) -> usize {
        std::mem::take(&mut self.released)
    }

    /// What is left of it, at the end.
    pub(crate) fn end(self) -> Remains<T> {
        let sequences = (self.first.0..=u64::MAX).map(Sequence);
        let (mut tickets, mut unacknowledged, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, entry) in sequences.zip(self.entries) {
            if let Some(block) = entry.block {
                unacknowledged.push(sequence);
                blocks.push(block);
            }
            tickets.extend(entry.ticket.map(|ticket| (sequence, ticket)));
        }
        Remains { tickets, unacknowledged: unacknowledged.into_iter().collect(), blocks }
    }

    fn handle_flush_ok(&mut self, mut sequences: Vec<Sequence>, actions: &mut Vec<Action<T>>) {
        const SENT: &[Phase] = &[Phase::Waiting, Phase::Sent, Phase::Received, Phase::Refused];
        let mut tickets = Vec::with_capacity(sequences.len().min(self.entries.len()));
        let (mut durable_bytes, mut released) = (0, 0);
        sequences.retain(|&sequence| {
            let Some(entry) = self.advance(sequence, SENT, Phase::Durable) else {
                return false;
            };
            // The place stays taken while an earlier block is missing, and so does its share of the cost.
            released += entry.cost.saturating_sub(BLOCK_OVERHEAD);
            entry.cost = entry.cost.min(BLOCK_OVERHEAD);
            durable_bytes += entry.block.take().map_or(0, |block| block.size() as u64);
            tickets.extend(entry.ticket.take());
            self.refused.remove(&sequence);
            true
        });
        self.released += released;
        let durable_blocks = sequences.len() as u64;
        self.stats.durable_blocks += durable_blocks;
        self.stats.durable_bytes += durable_bytes;
        self.stats.unflushed_blocks -= durable_blocks;
        self.stats.unflushed_bytes -= durable_bytes;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.phase == Phase::Durable) {
            self.released += entry.cost;
            self.first = self.first.next();
        }
        if !sequences.is_empty() {
            actions.push(Action::Durable { sequences, tickets });
        }
    }

    /// Moves a block that was sent from one of the phases `from` on to `to`. None, and counted, where it was never sent or
    /// the server's word comes twice.
    fn advance(&mut self, sequence: Sequence, from: &[Phase], to: Phase) -> Option<&mut Entry<T>> {
        if sequence < self.start || sequence >= self.next_to_send {
            self.stats.unexpected_responses += 1;
            return None;
        }
        if !self.entry(sequence).is_some_and(|entry| from.contains(&entry.phase)) {
            self.stats.repeated_responses += 1;
            return None;
        }
        let entry = self.entry(sequence)?;
        entry.phase = to;
        Some(entry)
    }

    fn give_out(&mut self, sequence: Sequence) -> Option<Send<'_>> {
        let entry = self.entry(sequence)?;
        entry.phase = Phase::Sent;
        entry.block.as_ref().map(Send::Block)
    }

    fn entry(&mut self, sequence: Sequence) -> Option<&mut Entry<T>> {
        let at = usize::try_from(sequence.0.checked_sub(self.first.0)?).ok()?;
        self.entries.get_mut(at)
    }
}
