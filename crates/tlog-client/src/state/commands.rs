//! The commands among the blocks: which flushes and waits were asked for, and are not done.

use std::collections::{BTreeSet, VecDeque};

use tlog_proto::Sequence;
use tokio::time::Instant;

/// A message to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The caller wants everything up to this sequence flushed.
    ForceFlush(Sequence),
    /// The same, by our own decision, or again.
    Flush(Sequence),
    /// The caller wants to know when the slave holds what is flushed.
    WaitSlaveSync,
    /// The same again, at another server.
    WaitSlaveSyncAgain,
}

impl Command {
    /// Whether it takes a place in the caller's queue until it is written.
    pub(crate) fn is_callers(self) -> bool {
        matches!(self, Command::ForceFlush(_) | Command::WaitSlaveSync)
    }
}

/// Invariant: `queue` is in the order of the places where its commands stand.
#[derive(Default)]
pub(super) struct Commands {
    /// To be written, each with the sequence that it stands before on the wire.
    queue: VecDeque<(Sequence, Command)>,
    /// Flushes that the caller asked for, written or not, and that are not done: for the next connection. Of those of blocks that
    /// were handed over only the highest, which makes what lies below it durable too.
    wanted: BTreeSet<Sequence>,
    /// Up to where a flush was asked for because someone waits for room.
    room_asked: Option<Sequence>,
    /// Which flushes were written here, and when; of those that another one before covers none. By rising sequence and time.
    flushed: VecDeque<(Sequence, Instant)>,
    /// When the last one was, whatever it covers.
    flushed_at: Option<Instant>,
    /// Written here, without an answer.
    flushes_unanswered: u64,
    slave_syncs_unanswered: usize,
}

impl Commands {
    /// Flushes beyond the blocks that were handed over, of which no more are kept for a next connection: the highest ones.
    const MAX_AHEAD: usize = 1024;
    /// Flushes of which it is remembered when they were written.
    const MAX_FLUSHED: usize = 64;

    pub(super) fn push(&mut self, command: Command, next: Sequence) {
        if let Command::ForceFlush(sequence) = command {
            self.wanted.insert(sequence);
            self.keep_wanted(next);
        }
        self.queue.push_back((next, command));
    }

    fn keep_wanted(&mut self, next: Sequence) {
        while let Some(second) = self.wanted.iter().nth(1)
            && (*second < next || self.wanted.len() > Self::MAX_AHEAD)
        {
            self.wanted.pop_first();
        }
    }

    /// Queues a flush up to the last block, unless one that was asked for so is still awaited.
    pub(super) fn make_room(&mut self, first: Sequence, next: Sequence) {
        let awaited = self.room_asked.is_some_and(|asked| asked >= first);
        let last = next.previous().filter(|last| *last >= first);
        if let (false, Some(last)) = (awaited, last) {
            self.room_asked = Some(last);
            self.queue.push_back((next, Command::Flush(last)));
        }
    }

    /// A flush that goes before everything else.
    pub(super) fn flush_now(&mut self, sequence: Sequence, first: Sequence) {
        self.queue.push_front((first, Command::Flush(sequence)));
    }

    /// The next one, if its place has come.
    pub(super) fn poll(&mut self, next_to_send: Sequence, now: Instant) -> Option<Command> {
        let (_, command) = self.queue.pop_front_if(|(before, _)| *before <= next_to_send)?;
        match command {
            Command::ForceFlush(sequence) | Command::Flush(sequence) => {
                self.flushes_unanswered += 1;
                self.flushed_at = Some(now);
                if self.flushed.back().is_none_or(|(highest, _)| *highest < sequence) {
                    // Where there are too many, the last ones count as one that was later.
                    self.flushed.truncate(Self::MAX_FLUSHED - 1);
                    self.flushed.push_back((sequence, now));
                }
            }
            Command::WaitSlaveSync | Command::WaitSlaveSyncAgain => self.slave_syncs_unanswered += 1,
        }
        Some(command)
    }

    /// False where nobody asked.
    pub(super) fn handle_flush_received(&mut self) -> bool {
        let expected = self.flushes_unanswered > 0;
        self.flushes_unanswered = self.flushes_unanswered.saturating_sub(1);
        expected
    }

    /// False where nobody asked.
    pub(super) fn handle_slave_synced(&mut self) -> bool {
        let expected = self.slave_syncs_unanswered > 0;
        self.slave_syncs_unanswered = self.slave_syncs_unanswered.saturating_sub(1);
        expected
    }

    pub(super) fn is_flush_unanswered(&self) -> bool {
        self.flushes_unanswered > 0
    }

    /// When a flush was written last on this connection.
    pub(super) fn flushed_at(&self) -> Option<Instant> {
        self.flushed_at
    }

    /// When the first flush was written here that is about this block.
    pub(super) fn flush_of(&self, sequence: Sequence) -> Option<Instant> {
        let at = self.flushed.partition_point(|(up_to, _)| *up_to < sequence);
        self.flushed.get(at).map(|(_, asked)| *asked)
    }

    /// Everything below `first` is durable.
    pub(super) fn forget_below(&mut self, first: Sequence) {
        if self.wanted.first().is_some_and(|lowest| *lowest < first) {
            self.wanted = self.wanted.split_off(&first);
        }
        while self.flushed.pop_front_if(|(up_to, _)| *up_to < first).is_some() {}
    }

    /// Nothing that was written counts any more. Waits for the slave are asked for again, before anything else; flushes are kept in
    /// `wanted`. Answers how many places of the caller's are free again.
    pub(super) fn handle_offline(&mut self, first: Sequence) -> usize {
        let callers = self.queue.iter().filter(|(_, command)| command.is_callers()).count();
        let is_wait =
            |command: &Command| matches!(command, Command::WaitSlaveSync | Command::WaitSlaveSyncAgain);
        let waits = self.queue.iter().filter(|(_, command)| is_wait(command)).count();
        let waits = waits + self.slave_syncs_unanswered;
        self.queue.clear();
        self.queue.extend((0..waits).map(|_| (first, Command::WaitSlaveSyncAgain)));
        (self.flushes_unanswered, self.slave_syncs_unanswered) = (0, 0);
        (self.room_asked, self.flushed_at) = (None, None);
        self.flushed.clear();
        callers
    }

    /// Waits for the slave that nobody waits for any more are not asked for again, as far as those are what they would be. How many.
    pub(super) fn forget_slave_waits(&mut self, most: usize) -> usize {
        let before = self.queue.len();
        let mut left = most;
        self.queue.retain(|(_, command)| {
            let forgotten = left > 0 && *command == Command::WaitSlaveSyncAgain;
            left -= usize::from(forgotten);
            !forgotten
        });
        before - self.queue.len()
    }

    /// Asks again for the flushes that are not done, each behind its block.
    pub(super) fn handle_online(&mut self, first: Sequence, next: Sequence) {
        self.forget_below(first);
        self.keep_wanted(next);
        let queued: BTreeSet<_> = self
            .queue
            .iter()
            .filter_map(|(_, command)| match command {
                Command::ForceFlush(sequence) => Some(*sequence),
                _ => None,
            })
            .collect();
        let again = self.wanted.difference(&queued);
        let again = again.map(|&sequence| (sequence.next().min(next), Command::Flush(sequence)));
        let mut queue: Vec<_> = self.queue.drain(..).chain(again).collect();
        queue.sort_by_key(|(before, _)| *before);
        self.queue = queue.into();
    }
}
