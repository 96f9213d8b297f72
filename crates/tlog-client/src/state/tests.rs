//! The state against a slow oracle, its answers one by one, and what it does about answers that do not come.

mod oracle;
mod simulation;
mod waiting;

use bytes::Bytes;
use tlog_proto::{BlockIndex, Timestamp};

use super::*;

const START: u64 = 5;

const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(15),
    resend: Duration::from_secs(5),
    flush: Duration::from_secs(60),
};

fn block(sequence: u64, size: usize) -> Block {
    let data = Bytes::from(vec![7; size]);
    Block {
        sequence: Sequence(sequence),
        index: BlockIndex::default(),
        operation: tlog_proto::Operation::Set,
        timestamp: Timestamp(sequence),
        hash: BlockHash::of(&data),
        data,
    }
}

fn respond(state: &mut State<u64>, status: BlockStatus, sequences: &[u64], now: Instant) -> Vec<Action<u64>> {
    let mut actions = Vec::new();
    let sequences = sequences.iter().copied().map(Sequence).collect();
    state.handle_response(Response { status, sequences }, now, &mut actions);
    actions
}

/// What `poll_send` gave, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Block(u64),
    Command(Command),
}

fn poll(state: &mut State<u64>, now: Instant) -> Option<Sent> {
    state.poll_send(now).map(|send| match send {
        Send::Block(block) => Sent::Block(block.sequence.0),
        Send::Command(command) => Sent::Command(command),
    })
}

fn poll_all(state: &mut State<u64>, now: Instant) -> Vec<Sent> {
    std::iter::from_fn(|| poll(state, now)).collect()
}

fn blocks(sequences: impl IntoIterator<Item = u64>) -> Vec<Sent> {
    sequences.into_iter().map(Sent::Block).collect()
}

fn flush(sequence: u64) -> Sent {
    Sent::Command(Command::Flush(Sequence(sequence)))
}

fn force_flush(sequence: u64) -> Command {
    Command::ForceFlush(Sequence(sequence))
}

/// A state with blocks `START..START + count` of one byte, online at `now`, all given out.
fn sent(count: u64, now: Instant) -> State<u64> {
    let mut state = State::new(Sequence(START), PATIENCE, now);
    state.handle_online(None, now, &mut Vec::new());
    for sequence in START..START + count {
        state.push(block(sequence, 1), BLOCK_OVERHEAD + 1, sequence);
    }
    assert_eq!(poll_all(&mut state, now), blocks(START..START + count));
    state
}

#[test]
fn blocks_acknowledged_out_of_order_resolve_at_once_and_are_let_go_of_in_order() {
    let now = Instant::now();
    let mut state = sent(3, now);
    let mut actions = respond(&mut state, BlockStatus::FlushOk, &[START + 2, START + 1], now);
    assert!(
        matches!(actions.remove(0), Action::Durable { tickets, .. } if tickets == [START + 2, START + 1])
    );
    assert_eq!((state.first_unacknowledged(), state.take_released()), (Sequence(START), 0));
    assert_eq!(state.unflushed().len(), 1);
    respond(&mut state, BlockStatus::FlushOk, &[START], now);
    assert_eq!(state.first_unacknowledged(), Sequence(START + 3));
    assert_eq!(state.take_released(), 3 * (1 + BLOCK_OVERHEAD));
}

#[test]
fn a_flush_ok_for_a_block_that_was_not_sent_here_is_ignored_and_counted() {
    let now = Instant::now();
    let mut state = sent(1, now);
    state.handle_offline();
    state.handle_online(None, now, &mut Vec::new());
    assert_eq!(respond(&mut state, BlockStatus::FlushOk, &[START], now), [], "this server does not have it");
    assert_eq!(state.stats().unexpected_responses, 1);
    assert_eq!(poll(&mut state, now), Some(Sent::Block(START)));
}

#[test]
fn after_a_lost_connection_everything_that_is_not_durable_is_sent_again_in_order() {
    let now = Instant::now();
    let mut state = sent(6, now);
    respond(&mut state, BlockStatus::RecvOk, &[START, START + 1, START + 2], now);
    respond(&mut state, BlockStatus::FlushOk, &[START, START + 3], now);
    state.push(block(START + 6, 1), 1, 9);
    state.handle_offline();
    state.push(block(START + 7, 1), 1, 9);
    assert_eq!((state.first_unacknowledged(), state.ever_sent()), (Sequence(START + 1), Sequence(START + 6)));
    state.handle_online(None, now, &mut Vec::new());
    // START + 3 is durable already, and a server that orders what it gets needs it for what comes behind it.
    assert_eq!(poll_all(&mut state, now), blocks(START + 1..START + 8));
    let stats = state.stats();
    assert_eq!((stats.sent_blocks, stats.resent_blocks, stats.durable_blocks), (8, 5, 2));
    let again = respond(&mut state, BlockStatus::FlushOk, &[START + 3], now);
    assert_eq!((again, state.stats().durable_blocks), (vec![], 2), "nobody is told twice");
    respond(&mut state, BlockStatus::FlushOk, &[START + 1, START + 2], now);
    assert_eq!(state.first_unacknowledged(), Sequence(START + 4));
}

#[test]
fn what_a_server_says_to_hold_durably_is_not_sent_again() {
    let now = Instant::now();
    let mut state = sent(6, now);
    respond(&mut state, BlockStatus::FlushOk, &[START + 1], now);
    state.handle_offline();
    let mut actions = Vec::new();
    state.handle_online(Some(Sequence(START + 3)), now, &mut actions);
    let sequences = vec![Sequence(START), Sequence(START + 2), Sequence(START + 3)];
    assert_eq!(actions, [Action::Durable { sequences, tickets: vec![START, START + 2, START + 3] }]);
    assert_eq!(poll_all(&mut state, now), blocks([START + 4, START + 5]));
    // No more than was ever sent is believed.
    state.push(block(START + 6, 1), 1, 9);
    state.handle_offline();
    actions.clear();
    state.handle_online(Some(Sequence(u64::MAX)), now, &mut actions);
    let sequences = vec![Sequence(START + 4), Sequence(START + 5)];
    assert_eq!(actions, [Action::Durable { sequences, tickets: vec![START + 4, START + 5] }]);
    assert_eq!(poll_all(&mut state, now), blocks([START + 6]));
}

#[test]
fn commands_that_are_not_done_are_given_again_at_the_next_server_each_in_its_place() {
    let now = Instant::now();
    let mut state = sent(2, now);
    for command in [force_flush(START + 1), Command::WaitSlaveSync, force_flush(START), force_flush(99)] {
        state.command(command);
    }
    assert_eq!(poll_all(&mut state, now).len(), 4);
    state.push(block(START + 2, 1), 1, 9);
    state.command(force_flush(START + 2));
    state.command(Command::WaitSlaveSync);
    assert_eq!(state.handle_offline(), 2, "two were not written yet");
    state.push(block(START + 3, 1), 1, 9);
    state.command(force_flush(START + 3));
    state.handle_online(None, now, &mut Vec::new());
    let again = Sent::Command(Command::WaitSlaveSyncAgain);
    let mut expected = vec![again, again];
    expected.extend(blocks(START..START + 4));
    // The highest flush of what was handed over does for the lower ones.
    expected.extend([Sent::Command(force_flush(START + 3)), flush(99)]);
    assert_eq!(poll_all(&mut state, now), expected);
    assert_eq!(respond(&mut state, BlockStatus::WaitNbdSlaveSyncReceived, &[], now), [Action::SlaveSynced]);

    respond(&mut state, BlockStatus::FlushOk, &[START, START + 1, START + 2, START + 3], now);
    assert_eq!(state.handle_offline(), 0);
    state.handle_online(None, now, &mut Vec::new());
    assert_eq!(poll_all(&mut state, now), [again, flush(99)]);
}

#[test]
fn flushes_far_ahead_take_a_bounded_amount_of_memory() {
    let now = Instant::now();
    let mut state = sent(1, now);
    for ahead in 0..5000 {
        state.command(force_flush(1000 + ahead));
        assert!(poll(&mut state, now).is_some());
    }
    state.handle_offline();
    state.handle_online(None, now, &mut Vec::new());
    let again = poll_all(&mut state, now);
    assert_eq!(again.len(), 1 + 1024, "a block, and the highest flushes");
    assert_eq!(again.last(), Some(&flush(5999)));
}

#[test]
fn a_refused_block_is_sent_again_at_once_and_before_everything_else_then_after_a_while() {
    let mut now = Instant::now();
    let mut state = sent(2, now);
    state.push(block(START + 2, 1), 1, 9);
    let refused = Action::Refused(Sequence(START));
    assert_eq!(respond(&mut state, BlockStatus::RecvFailed, &[START, START], now), [refused]);
    assert_eq!(poll_all(&mut state, now), blocks([START, START + 2]));
    for refusals in 2..MAX_REFUSALS {
        assert_eq!(respond(&mut state, BlockStatus::RecvFailed, &[START], now).len(), 1);
        assert_eq!(poll(&mut state, now), None, "not at once, after {refusals} refusals");
        respond(&mut state, BlockStatus::FlushOk, &[START + 1, START + 2], now);
        while poll(&mut state, now) != Some(Sent::Block(START)) {
            now = state.poll_timeout().unwrap();
            state.handle_time(now).unwrap();
            respond(&mut state, BlockStatus::RecvOk, &[], now); // not silent
        }
    }
    let too_often = Action::RefusedTooOften(Sequence(START));
    assert_eq!(respond(&mut state, BlockStatus::RecvFailed, &[START], now), [too_often]);
    assert_eq!(state.stats().refused_blocks, u64::from(MAX_REFUSALS));
}

#[test]
fn a_block_that_changed_in_memory_is_told_apart_from_one_that_a_server_refuses() {
    let now = Instant::now();
    let mut state = State::new(Sequence(START), PATIENCE, now);
    state.handle_online(None, now, &mut Vec::new());
    let changed = Block { data: Bytes::from_static(b"other"), ..block(START, 5) };
    state.push(changed, 1, 0);
    poll_all(&mut state, now);
    let damaged = Action::Damaged(Sequence(START));
    assert_eq!(respond(&mut state, BlockStatus::RecvFailed, &[START], now), [damaged]);
}

#[test]
fn room_is_asked_for_once_until_it_has_come_and_again_at_the_next_server() {
    let now = Instant::now();
    let mut state = sent(3, now);
    state.make_room();
    state.make_room();
    assert_eq!(poll_all(&mut state, now), [flush(START + 2)]);
    respond(&mut state, BlockStatus::FlushOk, &[START, START + 1], now);
    state.make_room();
    assert_eq!(poll(&mut state, now), None);
    state.handle_offline();
    state.handle_online(None, now, &mut Vec::new());
    state.make_room();
    assert_eq!(poll_all(&mut state, now), [Sent::Block(START + 2), flush(START + 2)]);
    respond(&mut state, BlockStatus::FlushOk, &[START + 2], now);
    state.make_room();
    assert_eq!(poll(&mut state, now), None, "nothing is held");
    state.push(block(START + 3, 1), 1, 0);
    state.make_room();
    assert_eq!(poll_all(&mut state, now), [Sent::Block(START + 3), flush(START + 3)]);
}

#[test]
fn the_last_sequences_there_are_make_no_trouble() {
    let now = Instant::now();
    let mut state = State::new(Sequence(u64::MAX - 1), PATIENCE, now);
    state.handle_online(Some(Sequence(u64::MAX)), now, &mut Vec::new());
    state.push(block(u64::MAX - 1, 1), 1, 0);
    assert_eq!(poll_all(&mut state, now), blocks([u64::MAX - 1]));
    assert_eq!(respond(&mut state, BlockStatus::FlushOk, &[u64::MAX], now), []);
    assert_eq!(state.end().unacknowledged.to_string(), (u64::MAX - 1).to_string());
    assert!(State::<u64>::new(Sequence(u64::MAX), PATIENCE, now).end().unacknowledged.is_empty());
}
