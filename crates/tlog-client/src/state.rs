//! What has become of every block that was handed over. Pure: no clock, socket, task or randomness.
//!
//! ```text
//!             poll_send            RecvOK                  FlushOK
//!  Waiting ---------------> Sent ----------> Received ---------------> Durable ---> forgotten, once all before it are
//!     ^                       |                 |                         ^
//!     |  no answer in time,   |                 |                         |
//!     |  RecvFailed           v                 v        FlushOK counts from every phase that was sent here
//!     +-----------------------+-----------------+        and, at a new connection, what the server says it has
//!     |                                         |
//!     +--- handle_offline: all that is kept -----+
//! ```
//!
//! Calling order: [`State::push`] and [`State::command`] at any time. For each connection [`State::handle_online`] once, then
//! [`State::poll_send`] until it has nothing more, [`State::handle_response`] for what the server says and
//! [`State::handle_time`] when [`State::poll_timeout`] has come; at its end [`State::handle_offline`]. At last
//! [`State::end`].

mod commands;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tlog_proto::{Block, BlockHash, BlockStatus, Response, Sequence};
use tokio::time::Instant;

use crate::{SequenceSet, Stats};
pub(crate) use commands::Command;
use commands::Commands;

/// What each block costs beside its data, in bytes: its place here, its handle, its frame on the wire.
///
/// Counted against [`ClientOptions::max_unflushed_bytes`](crate::ClientOptions::max_unflushed_bytes), so that many tiny
/// blocks cannot take memory without bound.
pub const BLOCK_OVERHEAD: usize = 256;

/// How often one connection may refuse a block that is whole here, before it is left.
const MAX_REFUSALS: u32 = 10;

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a server that owes an answer and says nothing.
    pub(crate) answer: Duration,
    /// For a block to be received.
    pub(crate) resend: Duration,
    /// For a block to become durable by itself.
    pub(crate) flush: Duration,
}

/// The blocks that are not known to be durable, in order. `T` is what the caller wants back with a block's fate.
///
/// Invariants: `entries[i]` has sequence `first + i`; everything below `next_to_send` was
/// given out by [`State::poll_send`] on this connection, nothing at or above it was; `resends` are the entries below it that are in
/// phase Waiting; the first entry is not acknowledged; `sent` counts the entries in phase Sent.
pub(crate) struct State<T> {
    patience: Patience,
    /// First sequence of this client.
    start: Sequence,
    /// Lowest sequence that is not acknowledged as durable: of `entries[0]`, or of the next block.
    first: Sequence,
    entries: VecDeque<Entry<T>>,
    next_to_send: Sequence,
    /// Everything below was given out at some time, on whatever connection.
    ever_sent: Sequence,
    resends: BTreeSet<Sequence>,
    sent: usize,
    /// The highest one that the server has said on this connection to have received.
    highest_received: Option<Sequence>,
    commands: Commands,
    /// When the server last said something, or accepted.
    heard: Instant,
    /// Since when the server owes an answer, or has last given one while it owes more.
    owed_since: Option<Instant>,
    /// When what waits is looked over next; none where nothing is sent.
    look_at: Option<Instant>,
    /// Cost of what is durable and was not yet taken by `take_released`.
    released: usize,
    stats: Stats,
}

struct Entry<T> {
    /// Kept until everything before it is durable too: a server that comes next orders blocks from the first one that is not, and
    /// needs those behind it.
    block: Block,
    /// It is durable, and whoever waited for that was told.
    acknowledged: bool,
    phase: Phase,
    /// When it was given out last, and how often in vain, on this connection.
    at: Instant,
    tries: u32,
    refusals: u32,
    ticket: Option<T>,
    /// What it holds of the caller's bound.
    cost: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Sent,
    Received,
    /// Not sent again before a while has passed: the server has just refused it once more.
    Refused,
    Durable,
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
    /// This block was refused, and is sent again.
    Refused(Sequence),
    /// This block was refused too often: leave the connection.
    RefusedTooOften(Sequence),
    /// This block was refused, and rightly: its data is not what it was when it was handed over. Nothing can mend that.
    Damaged(Sequence),
    /// The oldest unanswered wait for the slave is over.
    SlaveSynced,
    /// Nothing becomes durable any more here: leave the connection.
    FlushFailed,
}

/// The server owes an answer and has said nothing for so long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Silent(pub(crate) Duration);

/// What is left when a client ends.
pub(crate) struct Remains<T> {
    /// Who still waits.
    pub(crate) tickets: Vec<(Sequence, T)>,
    /// Every sequence that is not durable.
    pub(crate) unacknowledged: SequenceSet,
    /// Their blocks, in order.
    pub(crate) blocks: Vec<Block>,
}

impl<T> State<T> {
    pub(crate) fn new(first: Sequence, patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            start: first,
            first,
            entries: VecDeque::new(),
            next_to_send: first,
            ever_sent: first,
            resends: BTreeSet::new(),
            sent: 0,
            highest_received: None,
            commands: Commands::default(),
            heard: now,
            owed_since: None,
            look_at: None,
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

    /// Everything below it was given out at some time.
    pub(crate) fn ever_sent(&self) -> Sequence {
        self.ever_sent
    }

    /// The numbers as far as they are known here: of what was pushed.
    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Every block that is not durable, in order. Data is shared, not copied.
    pub(crate) fn unflushed(&self) -> Vec<Block> {
        let unflushed = self.entries.iter().filter(|entry| !entry.acknowledged);
        unflushed.map(|entry| entry.block.clone()).collect()
    }

    /// Takes the next block. `cost` comes back through [`State::take_released`] when it is durable.
    pub(crate) fn push(&mut self, block: Block, cost: usize, ticket: T) {
        debug_assert_eq!(block.sequence, self.next(), "whoever numbers blocks leaves no gaps");
        self.stats.unflushed_blocks += 1;
        self.stats.unflushed_bytes += block.data.len() as u64;
        self.entries.push_back(Entry {
            block,
            acknowledged: false,
            phase: Phase::Waiting,
            at: self.heard, // set when it is sent
            tries: 0,
            refusals: 0,
            ticket: Some(ticket),
            cost,
        });
    }

    /// Queues a command of the caller's behind everything pushed so far.
    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push(command, self.next());
    }

    /// Someone waits for room: without a flush it comes only when the server's aggregation is full or old.
    pub(crate) fn make_room(&mut self) {
        self.commands.make_room(self.first, self.next());
    }

    /// A server has accepted. `last_flushed`: what it says to hold durably of what this client has sent. Everything else that is not
    /// durable is sent from its beginning, and what was asked for and not done is asked for again.
    pub(crate) fn handle_online(
        &mut self,
        last_flushed: Option<Sequence>,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        if let Some(last) = last_flushed.filter(|last| *last >= self.first) {
            let end = last.next().min(self.ever_sent);
            self.make_durable((self.first.0..end.0).map(Sequence).collect(), actions);
        }
        self.next_to_send = self.first;
        (self.heard, self.owed_since, self.look_at) = (now, None, None);
        self.commands.handle_online(self.first, self.next());
    }

    /// The connection is gone: nothing that is not durable counts as sent. Answers how many commands that the caller has queued no
    /// longer take a place in the queue.
    pub(crate) fn handle_offline(&mut self) -> usize {
        for entry in &mut self.entries {
            (entry.phase, entry.tries, entry.refusals) = (Phase::Waiting, 0, 0);
        }
        self.resends.clear();
        self.next_to_send = self.first;
        (self.sent, self.highest_received) = (0, None);
        (self.owed_since, self.look_at) = (None, None);
        self.commands.handle_offline(self.first)
    }

    /// While offline: so many waits for the slave, if there are as many to be asked for again, are given up. How many are.
    pub(crate) fn forget_slave_waits(&mut self, most: usize) -> usize {
        self.commands.forget_slave_waits(most)
    }

    /// What to write next. What it gives counts as sent.
    pub(crate) fn poll_send(&mut self, now: Instant) -> Option<Send<'_>> {
        if let Some(sequence) = self.resends.pop_first() {
            self.stats.resent_blocks += 1;
            return self.give_out(sequence, now);
        }
        if let Some(command) = self.commands.poll(self.next_to_send, now) {
            // A wait for the slave may take long: it is nothing that is owed at once.
            if self.is_owed() {
                self.owes(now);
            }
            return Some(Send::Command(command));
        }
        let sequence = self.next_to_send;
        let bytes = self.entry(sequence)?.block.size();
        self.next_to_send = sequence.next();
        if sequence < self.ever_sent {
            self.stats.resent_blocks += 1;
        } else {
            self.ever_sent = sequence.next();
            self.stats.sent_blocks += 1;
            self.stats.sent_bytes += bytes as u64;
        }
        self.give_out(sequence, now)
    }

    /// Applies what the server says and appends what follows from it to `actions`.
    pub(crate) fn handle_response(&mut self, response: Response, now: Instant, actions: &mut Vec<Action<T>>) {
        self.heard = now;
        match response.status {
            BlockStatus::RecvOk => {
                for sequence in response.sequences {
                    if self.advance(sequence, &[Phase::Sent], Phase::Received).is_some() {
                        self.highest_received = self.highest_received.max(Some(sequence));
                        self.stats.received_blocks += 1;
                        actions.push(Action::Received(sequence));
                    }
                }
            }
            BlockStatus::RecvFailed => {
                for sequence in response.sequences {
                    self.handle_refused(sequence, now, actions);
                }
            }
            BlockStatus::FlushOk => {
                let mut sequences = response.sequences;
                const SENT: &[Phase] = &[Phase::Waiting, Phase::Sent, Phase::Received, Phase::Refused];
                sequences.retain(|&sequence| self.advance(sequence, SENT, Phase::Durable).is_some());
                self.make_durable(sequences, actions);
            }
            BlockStatus::ForceFlushReceived => {
                self.stats.unexpected_responses += u64::from(!self.commands.handle_flush_received());
            }
            BlockStatus::WaitNbdSlaveSyncReceived => match self.commands.handle_slave_synced() {
                true => actions.push(Action::SlaveSynced),
                false => self.stats.unexpected_responses += 1,
            },
            BlockStatus::FlushFailed => actions.push(Action::FlushFailed),
        }
        self.owed_since = self.is_owed().then_some(now);
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
            if !entry.acknowledged {
                unacknowledged.push(sequence);
                blocks.push(entry.block);
            }
            tickets.extend(entry.ticket.map(|ticket| (sequence, ticket)));
        }
        Remains { tickets, unacknowledged: unacknowledged.into_iter().collect(), blocks }
    }

    /// The first refusal is answered at once: what came behind the block waits for it. Further ones are given time.
    fn handle_refused(&mut self, sequence: Sequence, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(entry) = self.advance(sequence, &[Phase::Sent, Phase::Received], Phase::Refused) else {
            return;
        };
        entry.refusals += 1;
        entry.at = now;
        let refusals = entry.refusals;
        let whole = BlockHash::of(&entry.block.data) == entry.block.hash;
        self.stats.refused_blocks += 1;
        actions.push(match (whole, refusals) {
            (false, _) => Action::Damaged(sequence),
            (true, MAX_REFUSALS..) => Action::RefusedTooOften(sequence),
            (true, _) => Action::Refused(sequence),
        });
        if refusals == 1 {
            self.send_again(sequence);
        }
    }

    /// Tells of blocks that are durable, and lets go of those before which nothing is missing.
    fn make_durable(&mut self, mut sequences: Vec<Sequence>, actions: &mut Vec<Action<T>>) {
        let mut tickets = Vec::with_capacity(sequences.len());
        let mut durable_bytes = 0;
        sequences.retain(|&sequence| match self.entry(sequence) {
            Some(entry) if !entry.acknowledged => {
                entry.acknowledged = true;
                durable_bytes += entry.block.size() as u64;
                tickets.extend(entry.ticket.take());
                true
            }
            _ => false,
        });
        let durable_blocks = sequences.len() as u64;
        self.stats.durable_blocks += durable_blocks;
        self.stats.durable_bytes += durable_bytes;
        self.stats.unflushed_blocks -= durable_blocks;
        self.stats.unflushed_bytes -= durable_bytes;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.acknowledged) {
            self.released += entry.cost;
            // Acknowledged on an earlier connection, it may be on its way here, or wait for that.
            self.sent -= usize::from(entry.phase == Phase::Sent);
            self.resends.remove(&self.first);
            self.first = self.first.next();
        }
        // What was acknowledged on an earlier connection has not had its turn on this one.
        self.next_to_send = self.next_to_send.max(self.first);
        self.commands.forget_below(self.first);
        if !sequences.is_empty() {
            actions.push(Action::Durable { sequences, tickets });
        }
    }

    /// Moves a block that was sent here from one of the phases `from` on to `to`. None, and counted, where it was never sent
    /// or the server's word comes twice.
    fn advance(&mut self, sequence: Sequence, from: &[Phase], to: Phase) -> Option<&mut Entry<T>> {
        if sequence < self.start || sequence >= self.next_to_send {
            self.stats.unexpected_responses += 1;
            return None;
        }
        let Some(phase) = self.entry(sequence).map(|entry| entry.phase).filter(|phase| from.contains(phase))
        else {
            self.stats.repeated_responses += 1;
            return None;
        };
        match phase {
            Phase::Sent => self.sent -= 1,
            Phase::Waiting => _ = self.resends.remove(&sequence),
            _ => {}
        }
        let entry = self.entry(sequence)?;
        entry.phase = to;
        Some(entry)
    }

    fn give_out(&mut self, sequence: Sequence, now: Instant) -> Option<Send<'_>> {
        self.sent += 1;
        self.owes(now);
        let entry = self.entry(sequence)?;
        (entry.phase, entry.at) = (Phase::Sent, now);
        Some(Send::Block(&entry.block))
    }

    fn offset(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.0.checked_sub(self.first.0)?).ok()
    }

    fn entry(&mut self, sequence: Sequence) -> Option<&mut Entry<T>> {
        let at = self.offset(sequence)?;
        self.entries.get_mut(at)
    }
}
