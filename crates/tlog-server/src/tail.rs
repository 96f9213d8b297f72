//! The end of a vdisk's log, as far as it decides about what comes next. Pure.

use std::collections::VecDeque;

use tlog_proto::{Block, Generation, LogPosition, Sequence, SessionId};

use crate::port::{BlockDigest, LogEnd};

/// The newest generation of a log: where it begins and ends, who wrote its end, and what its last blocks were.
///
/// Invariant: `recent` holds the digests of the last blocks of the generation, the newest at its back, without a
/// gap; whatever is not durable yet is among them.
#[derive(Debug)]
pub(crate) struct LogTail {
    generation: Generation,
    first: Sequence,
    last: Option<Sequence>,
    session: SessionId,
    /// From here on the generation was written by `session` alone, as far as that is known.
    session_since: Sequence,
    recent: VecDeque<BlockDigest>,
}

impl LogTail {
    /// Digests that are kept of durable blocks, so that a client which comes back is answered without reading storage.
    pub(crate) const RECENT: usize = 1024;

    /// The tail of a log that was just opened.
    pub(crate) fn new(end: LogEnd) -> Self {
        Self {
            generation: end.generation,
            first: end.first,
            last: end.last,
            session: end.session,
            session_since: end.first,
            recent: VecDeque::new(),
        }
    }

    /// The newest generation.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// The place of the last block; none in an empty log.
    pub(crate) fn position(&self) -> Option<LogPosition> {
        self.last.map(|sequence| LogPosition { generation: self.generation, sequence })
    }

    /// Who wrote the last block; unknown in an empty log.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// The sequence that would continue the generation; none in an empty log, which any sequence starts.
    pub(crate) fn next(&self) -> Option<Sequence> {
        self.last.map(Sequence::next)
    }

    /// Whether the generation has a block under this sequence.
    pub(crate) fn holds(&self, sequence: Sequence) -> bool {
        self.last.is_some_and(|last| self.first <= sequence && sequence <= last)
    }

    /// Whether the block under this sequence was written by this session, which is known.
    pub(crate) fn is_by(&self, session: SessionId, sequence: Sequence) -> bool {
        session.is_known()
            && self.session == session
            && self.session_since <= sequence
            && self.holds(sequence)
    }

    /// What stands under a sequence, if it is remembered. If it is not, it is durable.
    pub(crate) fn digest(&self, sequence: Sequence) -> Option<BlockDigest> {
        let from_end = self.last?.0.checked_sub(sequence.0)?;
        let at = self.recent.len().checked_sub(1)?.checked_sub(usize::try_from(from_end).ok()?)?;
        self.recent.get(at).copied()
    }

    /// The next block of the generation; its sequence is [`LogTail::next`].
    pub(crate) fn push(&mut self, session: SessionId, block: &Block) -> LogPosition {
        debug_assert_eq!(self.next(), Some(block.sequence), "a generation has no gaps");
        if self.session != session {
            self.session = session;
            self.session_since = block.sequence;
        }
        self.last = Some(block.sequence);
        self.recent.push_back(block.into());
        LogPosition { generation: self.generation, sequence: block.sequence }
    }

    /// The first block of a new generation.
    pub(crate) fn start_generation(&mut self, session: SessionId, block: &Block) -> LogPosition {
        self.generation = self.generation.next();
        self.first = block.sequence;
        self.last = Some(block.sequence);
        self.session = session;
        self.session_since = block.sequence;
        self.recent.clear();
        self.recent.push_back(block.into());
        LogPosition { generation: self.generation, sequence: block.sequence }
    }

    /// Forgets digests of old blocks that are durable.
    pub(crate) fn forget(&mut self, durable: LogPosition) {
        if durable.generation != self.generation {
            return;
        }
        let Some(last) = self.last else { return };
        let undurable = usize::try_from(last.0.saturating_sub(durable.sequence.0)).unwrap_or(usize::MAX);
        let excess = self.recent.len().saturating_sub(undurable.max(Self::RECENT));
        self.recent.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tlog_proto::{BlockIndex, Timestamp};

    use super::*;

    fn block(sequence: u64) -> Block {
        let index = BlockIndex::new(sequence).unwrap();
        Block::set(Sequence(sequence), index, Timestamp(sequence), Bytes::from_static(b"x"))
    }

    #[test]
    fn digests_are_kept_while_not_durable_and_a_while_longer() {
        let mut tail = LogTail::new(LogEnd::default());
        tail.start_generation(SessionId(1), &block(1));
        let end = LogTail::RECENT as u64 * 3;
        for sequence in 2..=end {
            tail.push(SessionId(1), &block(sequence));
        }
        let durable = |sequence| LogPosition { generation: Generation(1), sequence: Sequence(sequence) };
        tail.forget(durable(10));
        assert_eq!(tail.digest(Sequence(10)), None);
        assert_eq!(tail.digest(Sequence(11)), Some((&block(11)).into()));
        tail.forget(durable(end));
        assert_eq!(tail.recent.len(), LogTail::RECENT);
        assert_eq!(tail.digest(Sequence(end)), Some((&block(end)).into()));
        assert_eq!(tail.digest(Sequence(end + 1)), None);
    }

    #[test]
    fn a_session_owns_only_what_it_wrote_itself() {
        let end = LogEnd {
            generation: Generation(4),
            first: Sequence(5),
            last: Some(Sequence(8)),
            session: SessionId(1),
        };
        let mut tail = LogTail::new(end);
        assert!(tail.is_by(SessionId(1), Sequence(5)));
        assert!(!tail.is_by(SessionId(1), Sequence(4)) && !tail.is_by(SessionId(1), Sequence(9)));
        tail.push(SessionId(2), &block(9));
        assert!(tail.is_by(SessionId(2), Sequence(9)) && !tail.is_by(SessionId(2), Sequence(8)));
        assert!(!tail.is_by(SessionId(1), Sequence(8)));
        tail.push(SessionId::UNKNOWN, &block(10));
        assert!(!tail.is_by(SessionId::UNKNOWN, Sequence(10)));
    }
}
