//! What is done about answers that do not come. Three times count, each from the last thing that was heard or said:
//!
//! | what does not come | after | what is done |
//! |---|---|---|
//! | RecvOK for a block, while the server says nothing, or has received a later one | `resend`, then twice as long each time | the block is sent again |
//! | FlushOK for a received block, long after a flush of it was asked for | `2 * resend`, then twice as long each time | the same |
//! | anything at all, while something is not durable | `answer / 2` | a flush is asked for, which must be answered |
//! | FlushOK for the oldest block | `flush` | the same |
//! | any answer that the server owes at once | `answer` | the server is left |

use std::time::Duration;

use tlog_proto::Sequence;
use tokio::time::Instant;

use super::{Phase, Silent, State};

impl<T> State<T> {
    /// When [`State::handle_time`] is to be called next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let silent_at = self.owed_since.map(|since| since + self.patience.answer);
        [silent_at, self.look_at].into_iter().flatten().min()
    }

    /// Time has passed.
    pub(crate) fn handle_time(&mut self, now: Instant) -> Result<(), Silent> {
        let answer = self.patience.answer;
        if self.owed_since.is_some_and(|since| since + answer <= now) {
            return Err(Silent(answer));
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_over(now);
            let anything_sent = self.next_to_send > self.first && !self.entries.is_empty();
            self.look_at = anything_sent.then(|| now + self.look_interval());
        }
        Ok(())
    }

    /// Bytes of something large went out, and more of it is to go: the server is not silent, it reads.
    pub(crate) fn handle_partly_written(&mut self, now: Instant) {
        if let Some(since) = &mut self.owed_since {
            *since = now;
        }
    }

    /// The server owes an answer at once: for a block, and for the command to flush.
    pub(super) fn is_owed(&self) -> bool {
        self.sent > 0 || self.commands.is_flush_unanswered()
    }

    /// Something was given out that is to be answered.
    pub(super) fn owes(&mut self, now: Instant) {
        self.owed_since.get_or_insert(now);
        self.look_at.get_or_insert(now + self.look_interval());
    }

    pub(super) fn send_again(&mut self, sequence: Sequence) {
        if let Some(entry) = self.entry(sequence) {
            entry.phase = Phase::Waiting;
            entry.tries += 1;
            self.resends.insert(sequence);
        }
    }

    fn look_interval(&self) -> Duration {
        let least = self.patience.resend.min(self.patience.answer / 2).min(self.patience.flush);
        (least / 4).max(Duration::from_millis(1))
    }

    fn look_over(&mut self, now: Instant) {
        let resend = self.patience.resend;
        let quiet = self.heard + resend <= now;
        let sequences = (self.first.0..self.next_to_send.0).map(Sequence);
        let due: Vec<(Sequence, Phase)> = sequences
            .zip(&self.entries)
            .filter(|(sequence, entry)| {
                let patience = resend.saturating_mul(1 << entry.tries.min(6));
                match entry.phase {
                    Phase::Sent => {
                        let overtaken = self.highest_received > Some(*sequence);
                        (quiet || overtaken) && entry.at + patience <= now
                    }
                    Phase::Received => {
                        let asked = self.commands.flush_of(*sequence);
                        asked.is_some_and(|asked| entry.at.max(asked) + patience * 2 <= now)
                    }
                    Phase::Refused => entry.at + patience / 4 <= now,
                    Phase::Waiting | Phase::Durable => false,
                }
            })
            .map(|(sequence, entry)| (sequence, entry.phase))
            .collect();
        for (sequence, phase) in due {
            self.sent -= usize::from(phase == Phase::Sent);
            self.send_again(sequence);
        }

        let silence = self.patience.answer / 2;
        let oldest = self.entries.front().filter(|entry| entry.phase != Phase::Waiting);
        let overdue = oldest.is_some_and(|entry| entry.at + self.patience.flush <= now);
        let asked_lately = self.commands.flushed_at().is_some_and(|asked| asked + silence > now);
        let last = self.next_to_send.previous().filter(|last| *last >= self.first);
        if let Some(last) = last
            && (overdue || self.heard + silence <= now)
            && !asked_lately
        {
            self.commands.flush_now(last, self.first);
        }
    }
}
