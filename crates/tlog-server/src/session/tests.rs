//! Stories about one vdisk, told to the pure state.

mod returning;

use bytes::Bytes;
use tlog_proto::{BlockIndex, Generation, Operation, Timestamp};

use super::*;

/// A state, the log below it, and what both were told.
pub(super) struct Bench {
    pub(super) session: Session<()>,
    pub(super) log: Vec<OrderedBlock>,
    /// How many of them are durable.
    pub(super) durable: usize,
    /// How many of them the log was asked to flush.
    pub(super) flush_asked: usize,
    pub(super) seen: Vec<Seen>,
    pub(super) finds: usize,
    /// The end that the client was told that was accepted last.
    pub(super) found: LogPosition,
}

/// What came out of the state, in short.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Seen {
    Accepted(u64, Option<u64>),
    Gap { connection: u64, first: u64, next: Option<u64>, last_flushed: Option<u64> },
    TakenOver { connection: u64, by: u64 },
    LogClosed(u64),
    Uncertain(u64),
    Replaced(u64),
    Said(BlockStatus, Vec<u64>),
    Appended(u64, u64),
    Flush,
    WaitSlave(Option<LogPosition>),
}

pub(super) use Seen::*;

pub(super) fn recv_ok(sequence: u64) -> Seen {
    Said(BlockStatus::RecvOk, vec![sequence])
}

pub(super) fn flush_ok(sequences: impl IntoIterator<Item = u64>) -> Seen {
    Said(BlockStatus::FlushOk, sequences.into_iter().collect())
}

pub(super) fn greeting(connection: u64, session: u64, first: u64, reset: bool) -> Greeting {
    Greeting {
        connection: ConnectionId(connection),
        session: SessionId(session),
        first: Sequence(first),
        reset,
        returning: None,
        certain: true,
    }
}

/// A block whose content tells who wrote it.
pub(super) fn block(sequence: u64, writer: u64) -> Block {
    let data = Bytes::from(format!("{writer}/{sequence}"));
    Block::set(
        Sequence(sequence),
        BlockIndex::new(sequence % 7).unwrap(),
        Timestamp(sequence.wrapping_add(writer * 1000)),
        data,
    )
}

impl Bench {
    pub(super) const LIMITS: WindowLimits = WindowLimits { span: 16, bytes: 16 * (BLOCK_OVERHEAD + 64) };

    pub(super) fn new() -> Self {
        Self {
            session: Session::new(LogEnd::default(), Self::LIMITS),
            log: Vec::new(),
            durable: 0,
            flush_asked: 0,
            seen: Vec::new(),
            finds: 0,
            found: LogPosition::default(),
        }
    }

    /// A log in which `writer` with `session` has written, all durable, and which was then opened again.
    pub(super) fn with_history(session: u64, writer: u64, sequences: impl IntoIterator<Item = u64>) -> Self {
        let mut bench = Self::new();
        let sequences: Vec<_> = sequences.into_iter().collect();
        bench.connect(0, session, sequences[0], false);
        for sequence in sequences {
            bench.block(sequence, writer);
        }
        bench.all_durable();
        bench.reopen();
        bench
    }

    /// The process died: what was not durable is gone.
    pub(super) fn reopen(&mut self) {
        self.log.truncate(self.durable);
        self.flush_asked = self.durable;
        self.session = Session::new(self.end(), Self::LIMITS);
        self.seen.clear();
    }

    pub(super) fn end(&self) -> LogEnd {
        self.log.last().map_or(LogEnd::default(), |last| LogEnd {
            generation: last.generation,
            first: self.log.iter().find(|b| b.generation == last.generation).unwrap().block.sequence,
            last: Some(last.block.sequence),
            session: last.session,
        })
    }

    pub(super) fn connect(&mut self, connection: u64, session: u64, first: u64, reset: bool) {
        self.greet(greeting(connection, session, first, reset));
    }

    pub(super) fn greet(&mut self, greeting: Greeting) {
        self.session.handle_greeting(greeting);
        self.act();
    }

    pub(super) fn block(&mut self, sequence: u64, writer: u64) {
        self.session.handle_block(block(sequence, writer), ());
        self.act();
    }

    pub(super) fn blocks(&mut self, sequences: impl IntoIterator<Item = u64>, writer: u64) {
        sequences.into_iter().for_each(|sequence| self.block(sequence, writer));
    }

    pub(super) fn force_flush(&mut self, sequence: u64) {
        self.session.handle_force_flush(Sequence(sequence));
        self.act();
    }

    pub(super) fn make_durable(&mut self, count: usize) {
        self.durable = self.durable.max(count.min(self.log.len()));
        if let Some(position) = self.durable.checked_sub(1).map(|last| self.log[last].position()) {
            self.session.handle_durable(position);
        }
        self.act();
    }

    pub(super) fn all_durable(&mut self) {
        self.make_durable(usize::MAX);
    }

    pub(super) fn seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// Only what the client hears.
    pub(super) fn heard(&mut self) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| matches!(seen, Said(..) | Accepted(..))).collect()
    }

    pub(super) fn positions(&self) -> Vec<(u64, u64)> {
        self.log.iter().map(|b| (b.generation.0, b.block.sequence.0)).collect()
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            let number = |sequence: Option<Sequence>| sequence.map(|Sequence(sequence)| sequence);
            match action {
                Action::Accept { connection, last_flushed, end } => {
                    self.found = end;
                    self.seen.push(Accepted(connection.0, number(last_flushed)));
                }
                Action::Refuse { connection, why: Refusal::Gap { first, next }, last_flushed } => {
                    let last_flushed = number(last_flushed);
                    self.seen.push(Gap {
                        connection: connection.0,
                        first: first.0,
                        next: number(next),
                        last_flushed,
                    });
                }
                Action::Refuse { connection, why: Refusal::LogClosed, .. } => {
                    self.seen.push(LogClosed(connection.0))
                }
                Action::Refuse { connection, why: Refusal::TakenOver { by }, last_flushed: None } => {
                    self.seen.push(TakenOver { connection: connection.0, by: by.0 });
                }
                Action::Refuse { connection, why: Refusal::Uncertain, .. } => {
                    self.seen.push(Uncertain(connection.0));
                }
                Action::Refuse { .. } => panic!("who was taken over is not told where the log ends"),
                Action::Received(sequence) => {
                    self.seen.push(Said(BlockStatus::RecvOk, vec![sequence.0]));
                }
                Action::Answer(Response { status, sequences }) => {
                    self.seen.push(Said(status, sequences.iter().map(|s| s.0).collect()));
                }
                Action::Append(block, ()) => {
                    self.seen.push(Appended(block.generation.0, block.block.sequence.0));
                    self.log.push(block);
                }
                Action::Flush => {
                    self.flush_asked = self.log.len();
                    self.seen.push(Flush);
                }
                Action::Find(position) => {
                    self.finds += 1;
                    let found = self.log[..self.durable].iter().find(|block| block.position() == position);
                    let found = found.map(|found| (&found.block).into());
                    self.session.handle_found(found);
                }
                Action::WaitSlave(position) => self.seen.push(WaitSlave(position)),
                Action::Replace(connection) => self.seen.push(Replaced(connection.0)),
                Action::Note(_) => {}
            }
        }
    }
}

#[test]
fn blocks_are_received_ordered_and_flushed_with_one_answer_for_each_advance() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 5, false);
    assert_eq!(bench.seen(), [Accepted(1, None)]);
    bench.blocks([5, 7, 6], 1);
    assert_eq!(
        bench.seen(),
        [Appended(1, 5), recv_ok(5), recv_ok(7), Appended(1, 6), recv_ok(6), Appended(1, 7)]
    );
    bench.make_durable(2);
    assert_eq!(bench.seen(), [flush_ok([5, 6])]);
    bench.make_durable(2);
    bench.all_durable();
    assert_eq!(bench.seen(), [flush_ok([7])]);
}

#[test]
fn a_duplicate_gets_recv_ok_while_it_is_held_and_flush_ok_once_it_is_durable() {
    for session in [0, 7] {
        let mut bench = Bench::new();
        bench.connect(1, session, 1, false);
        bench.blocks([1, 2, 4], 1);
        bench.seen();
        bench.blocks([1, 4], 1);
        assert_eq!(bench.seen(), [recv_ok(1), recv_ok(4)], "session {session}");
        bench.all_durable();
        assert_eq!(bench.seen(), [flush_ok([1, 2])]);
        bench.blocks([2, 4], 1);
        assert_eq!(bench.seen(), [flush_ok([2]), recv_ok(4)]);
        bench.block(3, 1);
        assert_eq!(bench.seen(), [Appended(1, 3), recv_ok(3), Appended(1, 4)]);
    }
}

#[test]
fn what_is_beyond_the_window_is_refused_and_can_be_sent_again() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.seen();
    bench.block(17, 1);
    assert_eq!(bench.seen(), [Said(BlockStatus::RecvFailed, vec![17])]);
    assert_eq!(bench.session.waiting(), (0, 0));
    bench.blocks([1, 17], 1);
    assert_eq!(bench.seen(), [Appended(1, 1), recv_ok(1), recv_ok(17)]);
    bench.block(u64::MAX, 1);
    assert_eq!(bench.seen(), [Said(BlockStatus::RecvFailed, vec![u64::MAX])]);
}

#[test]
fn the_same_session_comes_back_and_what_it_sends_again_is_a_duplicate() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks(1..=4, 1);
    bench.make_durable(2);
    bench.seen();
    bench.greet(returning::returning(2, 7, 1, bench.found));
    assert_eq!(bench.seen(), [Replaced(1), Accepted(2, Some(2))]);
    bench.blocks([2, 3, 5, 4], 1);
    assert_eq!(bench.seen(), [flush_ok([2]), recv_ok(3), Appended(1, 5), recv_ok(5), recv_ok(4)]);
    bench.all_durable();
    assert_eq!(bench.seen(), [flush_ok([3, 4, 5])]);
}

#[test]
fn a_flush_is_told_only_for_what_this_connection_has_sent() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks(1..=3, 1);
    bench.greet(returning::returning(2, 7, 1, bench.found));
    bench.seen();
    bench.block(2, 1);
    bench.all_durable();
    assert_eq!(bench.heard(), [recv_ok(2), flush_ok([2])]);
}

#[test]
fn another_session_that_begins_lower_starts_a_generation_with_its_first_block() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks(1..=3, 1);
    bench.seen();
    bench.connect(2, 8, 2, false);
    assert_eq!(bench.seen(), [Replaced(1), Flush], "what is ordered is flushed first");
    bench.all_durable();
    assert_eq!(bench.seen(), [Accepted(2, None)]);
    bench.connect(3, 7, 4, false);
    assert_eq!(bench.seen(), [Replaced(2), Accepted(3, Some(3))], "who sent nothing changed nothing");
    bench.connect(4, 8, 2, false);
    bench.blocks([3, 2], 2);
    assert_eq!(bench.positions(), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]);
    bench.seen();
    bench.all_durable();
    assert_eq!(bench.seen(), [flush_ok([2, 3])]);
    bench.connect(5, 8, 3, false);
    assert_eq!(bench.heard(), [Accepted(5, Some(3))]);
}

#[test]
fn another_session_that_begins_where_the_log_ends_continues_it_and_owns_only_its_part() {
    let mut bench = Bench::with_history(7, 1, 1..=10);
    bench.connect(1, 8, 11, false);
    assert_eq!(bench.seen(), [Accepted(1, Some(10))]);
    bench.blocks(11..=12, 2);
    bench.connect(2, 8, 11, false);
    bench.blocks([11], 2);
    bench.connect(3, 8, 5, false);
    bench.all_durable();
    bench.block(5, 2);
    assert_eq!(bench.positions()[10..], [(1, 11), (1, 12), (2, 5)]);
}

#[test]
fn a_session_is_recognised_after_the_log_was_opened_anew() {
    let mut bench = Bench::with_history(7, 1, 1..=10);
    bench.connect(1, 7, 4, false);
    bench.blocks([9, 10, 11], 1);
    assert_eq!(bench.heard(), [Accepted(1, Some(10)), flush_ok([9]), flush_ok([10]), recv_ok(11)]);
    assert_eq!(bench.finds, 0);
}

#[test]
fn without_a_session_blocks_are_compared_and_the_first_that_differs_starts_a_generation() {
    let mut bench = Bench::with_history(0, 1, 1..=10);
    bench.connect(1, 0, 8, false);
    assert_eq!(bench.seen(), [Accepted(1, None)]);
    bench.blocks([8, 9], 1);
    assert_eq!(bench.seen(), [flush_ok([8]), flush_ok([9])]);
    bench.block(10, 2);
    assert_eq!(bench.seen(), [Appended(2, 10), recv_ok(10)]);
    bench.block(11, 2);
    bench.all_durable();
    assert_eq!(bench.heard(), [recv_ok(11), flush_ok([10, 11])]);
    assert_eq!(bench.finds, 3, "what was just opened is read from storage");

    bench.connect(2, 0, 10, false);
    bench.blocks([10, 11, 12], 2);
    assert_eq!(bench.heard(), [Accepted(2, None), flush_ok([10]), flush_ok([11]), recv_ok(12)]);
    assert_eq!(bench.finds, 3, "what was written lately is remembered");
}

#[test]
fn every_field_counts_when_blocks_are_compared() {
    let check = |change: &dyn Fn(&mut Block), same: bool| {
        let mut bench = Bench::with_history(0, 1, 1..=3);
        bench.connect(1, 0, 2, false);
        let mut block = block(2, 1);
        change(&mut block);
        bench.session.handle_block(block, ());
        bench.act();
        assert_eq!(bench.log.last().unwrap().generation, Generation(if same { 1 } else { 2 }));
    };
    check(&|_| {}, true);
    check(&|b| b.index = BlockIndex::new(6).unwrap(), false);
    check(&|b| b.timestamp = Timestamp(3), false);
    check(&|b| *b = Block::set(b.sequence, b.index, b.timestamp, Bytes::from_static(b"x/y")), false);
    check(&|b| *b = Block::set(b.sequence, b.index, b.timestamp, Bytes::from_static(b"longer")), false);
    check(
        &|b| *b = Block { operation: Operation::Delete, ..Block::delete(b.sequence, b.index, b.timestamp) },
        false,
    );
}

#[test]
fn compared_blocks_that_come_out_of_order_are_compared_in_order() {
    let mut bench = Bench::with_history(0, 1, 1..=5);
    bench.connect(1, 0, 2, false);
    bench.seen();
    // 4 would equal what is held, but 3 differs: then 4 belongs to the new generation.
    bench.blocks([4], 1);
    bench.blocks([3], 2);
    assert_eq!(bench.seen(), [recv_ok(4), recv_ok(3)]);
    bench.block(2, 1);
    assert_eq!(bench.seen(), [flush_ok([2]), Appended(2, 3), Appended(2, 4)]);
    bench.all_durable();
    assert_eq!(bench.seen(), [flush_ok([3, 4])]);
}

#[test]
fn a_block_below_the_generation_starts_another_one() {
    for session in [0, 7] {
        let mut bench = Bench::with_history(session, 1, 5..=8);
        bench.connect(1, session, 4, false);
        bench.blocks([4, 5], 1);
        assert_eq!(bench.positions()[4..], [(2, 4), (2, 5)], "session {session}");
        bench.block(1, 1);
        assert_eq!(bench.positions()[6..], [(3, 1)]);
        bench.seen();
        bench.all_durable();
        assert_eq!(bench.seen(), [flush_ok([1])], "4 and 5 would now mean other blocks");
    }
}

#[test]
fn a_gap_is_refused_after_a_flush_and_tells_where_to_go_on_while_others_go_on() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks(1..=3, 1);
    bench.seen();
    bench.connect(2, 9, u64::MAX, false);
    assert_eq!(bench.seen(), [Flush]);
    bench.block(4, 1);
    assert_eq!(bench.seen(), [Appended(1, 4), recv_ok(4)], "the live connection lives on");
    bench.make_durable(3);
    let gap = Gap { connection: 2, first: u64::MAX, next: Some(4), last_flushed: Some(3) };
    assert_eq!(bench.seen(), [flush_ok([1, 2, 3]), gap]);
    bench.all_durable();
    bench.seen();
    bench.connect(3, 7, 6, false);
    assert_eq!(bench.seen(), [Gap { connection: 3, first: 6, next: Some(5), last_flushed: Some(4) }]);
}

#[test]
fn an_empty_log_takes_any_first_sequence() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1000, false);
    bench.connect(2, 8, 5, false);
    bench.block(5, 1);
    assert_eq!(bench.seen(), [Accepted(1, None), Replaced(1), Accepted(2, None), Appended(1, 5), recv_ok(5)]);
}

#[test]
fn a_reset_flushes_drops_what_waits_and_starts_over_anywhere() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks([1, 2, 4], 1);
    bench.seen();
    bench.connect(2, 7, 50, true);
    assert_eq!(bench.seen(), [Replaced(1), Flush]);
    assert_eq!(bench.session.waiting(), (0, 0));
    bench.all_durable();
    assert_eq!(bench.seen(), [Accepted(2, None)]);
    bench.block(50, 1);
    assert_eq!(bench.positions(), [(1, 1), (1, 2), (2, 50)]);
    bench.all_durable();
    bench.seen();
    bench.connect(3, 7, 51, true);
    assert_eq!(bench.seen(), [Replaced(2), Accepted(3, Some(50))], "where the log goes on anyway it goes on");
    bench.connect(4, 7, 3, true);
    bench.block(3, 1);
    assert_eq!(bench.positions()[3..], [(3, 3)]);
}

#[test]
fn who_takes_over_while_a_handshake_waits_is_the_only_one_accepted() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.block(1, 1);
    bench.connect(2, 8, 1, false);
    bench.connect(3, 9, 1, false);
    bench.seen();
    bench.all_durable();
    assert_eq!(bench.seen(), [Accepted(3, None)]);
}

#[test]
fn a_force_flush_waits_for_its_block_and_for_nothing_else() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.force_flush(3);
    let received = || Said(BlockStatus::ForceFlushReceived, vec![]);
    bench.blocks([1, 4, 2], 1);
    assert_eq!(bench.seen()[..2], [Accepted(1, None), received()]);
    bench.seen();
    bench.block(3, 1);
    assert_eq!(
        bench.seen(),
        [Appended(1, 3), recv_ok(3), Flush, Appended(1, 4)],
        "a later block does not make it miss 3"
    );
    bench.force_flush(2);
    assert_eq!(bench.seen(), [received(), Flush], "it is there already: now");
    bench.all_durable();
    bench.seen();
    bench.force_flush(4);
    assert_eq!(bench.seen(), [received(), flush_ok([4])], "it is done already");
}

#[test]
fn more_force_flushes_than_can_be_remembered_flush_too_often_rather_than_too_late() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    for sequence in (0..Forced::MAX_PENDING as u64).map(|n| 10_000 + n).chain([20]) {
        bench.force_flush(sequence);
    }
    bench.seen();
    bench.blocks(1..=21, 1);
    assert!(bench.flush_asked >= 20);
    let flushes = bench.seen().into_iter().filter(|seen| *seen == Flush).count();
    assert_eq!(flushes, 20, "up to 20 and no further");
}

#[test]
fn a_wait_for_the_slave_is_about_what_is_durable_when_it_comes() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.session.handle_wait_slave_sync();
    bench.blocks([1, 2], 1);
    bench.make_durable(1);
    bench.session.handle_wait_slave_sync();
    bench.act();
    let one = LogPosition { generation: Generation(1), sequence: Sequence(1) };
    let waits: Vec<_> = bench.seen().into_iter().filter(|seen| matches!(seen, WaitSlave(_))).collect();
    assert_eq!(waits, [WaitSlave(None), WaitSlave(Some(one))]);
    bench.session.handle_slave_synced();
    bench.act();
    assert_eq!(bench.seen(), [Said(BlockStatus::WaitNbdSlaveSyncReceived, vec![])]);
}

#[test]
fn a_log_that_fails_is_told_to_the_live_connection_and_to_those_who_wait() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.block(1, 1);
    bench.connect(2, 7, 9, false);
    bench.seen();
    bench.session.handle_log_closed();
    bench.act();
    assert_eq!(bench.seen(), [LogClosed(2), Said(BlockStatus::FlushFailed, vec![])]);
}

#[test]
fn who_is_gone_takes_what_waited_along_and_leaves_what_was_ordered() {
    let mut bench = Bench::new();
    bench.connect(1, 7, 1, false);
    bench.blocks([1, 3], 1);
    bench.session.handle_gone(ConnectionId(1));
    assert_eq!(bench.session.waiting(), (0, 0));
    bench.seen();
    bench.all_durable();
    assert_eq!(bench.seen(), []);
    bench.connect(2, 7, 2, false);
    bench.blocks([2], 1);
    assert_eq!(bench.heard(), [Accepted(2, Some(1)), recv_ok(2)]);
}
