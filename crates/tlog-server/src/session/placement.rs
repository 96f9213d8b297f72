//! What becomes of a block whose turn has come, and what its connection is told.

use std::collections::{BTreeSet, VecDeque};

use tlog_proto::{Block, BlockStatus, LogPosition, Response, Sequence, SessionId};

use super::awaiting::{Awaiting, Run};
use super::{Action, ConnectionId, NotHeld, Note, Refusal};
use crate::port::{BlockDigest, OrderedBlock};
use crate::tail::LogTail;
use crate::window::Window;

/// The live connection, or one that will be when its handshake is answered.
#[derive(Debug)]
pub(super) struct Link<P> {
    pub(super) id: ConnectionId,
    pub(super) session: SessionId,
    /// What it sends below the log's end is compared with what is held: it cannot be told who wrote that.
    pub(super) compares: bool,
    /// It came back, and something was stored since it was here first: it must not begin a new generation.
    pub(super) must_continue: bool,
    /// Who had the vdisk before it.
    pub(super) owner_before: Option<SessionId>,
    /// It turned out that another client has written: nothing of it counts any more, and it is closed.
    pub(super) is_over: bool,
    pub(super) accepted: bool,
    /// Its next block starts a new generation.
    pub(super) starts_over: bool,
    pub(super) window: Window<Arrival<P>>,
    /// Received here, in the log, not durable.
    pub(super) awaiting: Awaiting,
    /// From where to where this connection has got FlushOK in this generation: the latest run without a gap.
    pub(super) flushed: Option<(Sequence, Sequence)>,
    pub(super) forced: Forced,
    pub(super) comparing: Option<Arrival<P>>,
    pub(super) received: Option<Sequence>,
}

#[derive(Debug)]
pub(super) struct Arrival<P> {
    pub(super) block: Block,
    pub(super) permit: P,
    /// RecvOK was said.
    pub(super) answered: bool,
}

/// What does not depend on which connection is live.
#[derive(Debug)]
pub(super) struct Core<P> {
    pub(super) log: LogTail,
    pub(super) durable: Option<LogPosition>,
    /// The client instance that took the vdisk last; none since the log was opened.
    pub(super) owner: Option<SessionId>,
    pub(super) actions: VecDeque<Action<P>>,
}

impl<P> Core<P> {
    /// Blocks that have waited and whose turn has come.
    pub(super) fn place_waiting(&mut self, link: &mut Link<P>) {
        while link.comparing.is_none()
            && !link.is_over
            && let Some(arrival) = link.window.take_next()
        {
            self.place(link, arrival);
        }
    }

    /// Decides what a block is whose turn has come, or is over.
    pub(super) fn place(&mut self, link: &mut Link<P>, arrival: Arrival<P>) {
        let sequence = arrival.block.sequence;
        if link.starts_over || self.log.next().is_none() {
            self.start_generation(link, arrival);
        } else if self.log.next() == Some(sequence) {
            let position = self.log.push(link.session, &arrival.block);
            self.append(link, position, arrival);
        } else if self.log.is_by(link.session, sequence) {
            self.duplicate(link, arrival);
        } else if !link.compares || !self.log.holds(sequence) {
            self.start_generation(link, arrival);
        } else if let Some(held) = self.log.digest(sequence) {
            self.compared(link, arrival, Some(held));
        } else {
            link.comparing = Some(arrival);
            self.actions.push_back(Action::Find(LogPosition { generation: self.log.generation(), sequence }));
        }
    }

    pub(super) fn compared(&mut self, link: &mut Link<P>, arrival: Arrival<P>, held: Option<BlockDigest>) {
        if held == Some(BlockDigest::from(&arrival.block)) {
            self.duplicate(link, arrival);
        } else {
            self.start_generation(link, arrival);
        }
    }

    pub(super) fn duplicate(&mut self, link: &mut Link<P>, arrival: Arrival<P>) {
        let sequence = arrival.block.sequence;
        let position = LogPosition { generation: self.log.generation(), sequence };
        self.note(Note::Duplicate);
        if self.durable >= Some(position) {
            self.flushed(link, &[position.into()]);
        } else {
            link.awaiting.insert(position);
            if !arrival.answered {
                self.received(sequence);
            }
        }
        if link.forced.is_due(sequence) {
            self.flush();
        }
    }

    pub(super) fn start_generation(&mut self, link: &mut Link<P>, arrival: Arrival<P>) {
        if link.must_continue {
            // Somebody who does not tell who he is has written what it never sent. When it comes again, it is told so.
            link.is_over = true;
            self.owner = Some(SessionId::UNKNOWN);
            return self.actions.push_back(Action::Replace(link.id));
        }
        self.flush();
        let before = self.log.position();
        let position = self.log.start_generation(link.session, &arrival.block);
        link.starts_over = false;
        link.flushed = None;
        // Under these sequences the client now means other blocks than those which are on their way.
        link.awaiting.forget_from(position.sequence);
        link.window.rewind(position.sequence.next());
        self.note(Note::NewGeneration { position, before });
        self.append(link, position, arrival);
    }

    pub(super) fn append(&mut self, link: &mut Link<P>, position: LogPosition, arrival: Arrival<P>) {
        let Arrival { block, permit, answered } = arrival;
        link.awaiting.insert(position);
        let ordered = OrderedBlock { generation: position.generation, session: link.session, block };
        self.actions.push_back(Action::Append(ordered, permit));
        if !answered {
            self.received(position.sequence);
        }
        if link.forced.is_due(position.sequence) {
            self.flush();
        }
    }

    /// Tells the connection that what it has sent is durable.
    pub(super) fn flushed(&mut self, link: &mut Link<P>, runs: &[Run]) {
        let mut sequences = Vec::new();
        for run in runs {
            sequences.extend(run.sequences());
            if run.generation != self.log.generation() {
                continue;
            }
            let Run { first, last, .. } = *run;
            link.flushed = Some(match link.flushed {
                Some((low, high)) if low <= first && first <= high.next() => (low, last.max(high)),
                _ => (first, last),
            });
        }
        if !sequences.is_empty() {
            self.answer(BlockStatus::FlushOk, sequences);
        }
    }

    /// The end of the log, if it is not durable.
    pub(super) fn undurable(&self) -> Option<LogPosition> {
        self.log.position().filter(|&end| self.durable < Some(end))
    }

    /// Last durable sequence of the newest generation.
    pub(super) fn last_flushed(&self) -> Option<Sequence> {
        self.durable
            .filter(|durable| durable.generation == self.log.generation())
            .map(|durable| durable.sequence)
    }

    pub(super) fn flush(&mut self) {
        if self.undurable().is_some() {
            self.actions.push_back(Action::Flush);
        }
    }

    pub(super) fn not_held(&mut self, sequence: Sequence, why: NotHeld) {
        self.note(Note::NotHeld { sequence, why });
        self.answer(BlockStatus::RecvFailed, vec![sequence]);
    }

    pub(super) fn received(&mut self, sequence: Sequence) {
        self.actions.push_back(Action::Received(sequence));
    }

    pub(super) fn answer(&mut self, status: BlockStatus, sequences: Vec<Sequence>) {
        self.actions.push_back(Action::Answer(Response { status, sequences }));
    }

    pub(super) fn refuse(&mut self, connection: ConnectionId, why: Refusal) {
        let last_flushed = match why {
            Refusal::Gap { .. } => self.last_flushed(),
            Refusal::LogClosed | Refusal::TakenOver { .. } | Refusal::Uncertain => None,
        };
        self.actions.push_back(Action::Refuse { connection, why, last_flushed });
    }

    pub(super) fn note(&mut self, note: Note) {
        self.actions.push_back(Action::Note(note));
    }
}

/// Sequences up to which the client wants a flush as soon as they are there.
#[derive(Debug, Default)]
pub(super) struct Forced {
    pending: BTreeSet<Sequence>,
    /// Once there are too many to remember, every block up to here is flushed.
    through: Option<Sequence>,
}

impl Forced {
    pub(super) const MAX_PENDING: usize = 1024;

    pub(super) fn add(&mut self, sequence: Sequence) {
        if self.pending.len() < Self::MAX_PENDING {
            self.pending.insert(sequence);
        } else if !self.pending.contains(&sequence) {
            self.through = self.through.max(Some(sequence));
        }
    }

    /// Whether the block at `sequence`, which is there now, is to be flushed at once.
    pub(super) fn is_due(&mut self, sequence: Sequence) -> bool {
        let mut due = false;
        while self.pending.first().is_some_and(|&first| first <= sequence) {
            self.pending.pop_first();
            due = true;
        }
        if let Some(through) = self.through {
            due = true;
            self.through = Some(through).filter(|&through| through > sequence);
        }
        due
    }
}
