//! The state against a slow oracle, and its answers one by one.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;
use tlog_proto::{BlockIndex, Timestamp};

use super::*;

const START: u64 = 5;

fn block(sequence: u64, size: usize) -> Block {
    Block {
        sequence: Sequence(sequence),
        index: BlockIndex::default(),
        operation: tlog_proto::Operation::Set,
        timestamp: Timestamp(sequence),
        hash: tlog_proto::BlockHash([0; 32]), // not looked at here, and slow to compute in a thousand cases
        data: Bytes::from(vec![7; size]),
    }
}

fn respond(state: &mut State<u64>, status: BlockStatus, sequences: &[u64]) -> Vec<Action<u64>> {
    let mut actions = Vec::new();
    let sequences = sequences.iter().copied().map(Sequence).collect();
    state.handle_response(Response { status, sequences }, &mut actions);
    actions
}

/// What `poll_send` gave, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Block(u64),
    Command(Command),
}

fn poll(state: &mut State<u64>) -> Option<Sent> {
    state.poll_send().map(|send| match send {
        Send::Block(block) => Sent::Block(block.sequence.0),
        Send::Command(command) => Sent::Command(command),
    })
}

/// A state with blocks `START..START + count` of one byte, all given out.
fn sent(count: u64) -> State<u64> {
    let mut state = State::new(Sequence(START));
    for sequence in START..START + count {
        state.push(block(sequence, 1), BLOCK_OVERHEAD + 1, sequence);
    }
    while poll(&mut state).is_some() {}
    state
}

/// The same rules, written down in the slowest and most obvious way: every block that ever was is kept, and everything is
/// found by looking at all of them.
#[derive(Default)]
struct Oracle {
    blocks: Vec<OracleBlock>,
    to_send: VecDeque<Sent>,
    resends: VecDeque<u64>,
    flushes: u64,
    slave_syncs: u64,
    stats: Stats,
}

struct OracleBlock {
    phase: Phase,
    was_sent: bool,
    size: usize,
    ticket: Option<u64>,
}

impl Oracle {
    fn get(&mut self, sequence: u64) -> Option<&mut OracleBlock> {
        self.blocks.get_mut(usize::try_from(sequence.checked_sub(START)?).ok()?)
    }

    fn next(&self) -> u64 {
        START + self.blocks.len() as u64
    }

    fn first_unacknowledged(&self) -> u64 {
        let durable = self.blocks.iter().take_while(|block| block.phase == Phase::Durable).count();
        START + durable as u64
    }

    fn unflushed(&self) -> Vec<u64> {
        (START..).zip(&self.blocks).filter(|(_, b)| b.phase != Phase::Durable).map(|(s, _)| s).collect()
    }

    fn refused(&self) -> Option<u64> {
        (START..).zip(&self.blocks).find(|(_, b)| b.phase == Phase::Refused).map(|(s, _)| s)
    }

    /// Data of all durable blocks, and the rest of those with nothing missing before them.
    fn released(&self) -> usize {
        let whole = (self.first_unacknowledged() - START) as usize;
        let data: usize = self.blocks.iter().filter(|b| b.phase == Phase::Durable).map(|b| b.size).sum();
        data + whole * BLOCK_OVERHEAD
    }

    fn poll(&mut self) -> Option<Sent> {
        while let Some(sequence) = self.resends.pop_front() {
            let block = self.get(sequence).unwrap();
            if block.phase == Phase::Waiting {
                block.phase = Phase::Sent;
                self.stats.resent_blocks += 1;
                return Some(Sent::Block(sequence));
            }
        }
        let next = self.to_send.pop_front()?;
        match next {
            Sent::Block(sequence) => {
                let block = self.get(sequence).unwrap();
                (block.phase, block.was_sent) = (Phase::Sent, true);
                let size = block.size as u64;
                self.stats.sent_blocks += 1;
                self.stats.sent_bytes += size;
            }
            Sent::Command(Command::WaitSlaveSync) => self.slave_syncs += 1,
            Sent::Command(_) => self.flushes += 1,
        }
        Some(next)
    }

    fn respond(&mut self, status: BlockStatus, sequences: &[u64]) -> Vec<Action<u64>> {
        let mut actions = Vec::new();
        let (mut durable, mut tickets) = (Vec::new(), Vec::new());
        match status {
            BlockStatus::ForceFlushReceived if self.flushes > 0 => self.flushes -= 1,
            BlockStatus::WaitNbdSlaveSyncReceived if self.slave_syncs > 0 => {
                self.slave_syncs -= 1;
                actions.push(Action::SlaveSynced);
            }
            BlockStatus::ForceFlushReceived | BlockStatus::WaitNbdSlaveSyncReceived => {
                self.stats.unexpected_responses += 1;
            }
            BlockStatus::FlushFailed => actions.push(Action::FlushFailed),
            _ => {
                for &sequence in sequences {
                    let Some(block) = self.get(sequence).filter(|block| block.was_sent) else {
                        self.stats.unexpected_responses += 1;
                        continue;
                    };
                    match (status, block.phase) {
                        (BlockStatus::RecvOk, Phase::Sent) => {
                            block.phase = Phase::Received;
                            self.stats.received_blocks += 1;
                            actions.push(Action::Received(Sequence(sequence)));
                        }
                        (BlockStatus::RecvFailed, Phase::Sent | Phase::Received) => {
                            block.phase = Phase::Refused;
                            let ticket = block.ticket.take();
                            self.stats.refused_blocks += 1;
                            actions.push(Action::Refused { sequence: Sequence(sequence), ticket });
                        }
                        (BlockStatus::FlushOk, phase) if phase != Phase::Durable => {
                            block.phase = Phase::Durable;
                            tickets.extend(block.ticket.take());
                            let size = block.size as u64;
                            self.stats.durable_blocks += 1;
                            self.stats.durable_bytes += size;
                            durable.push(Sequence(sequence));
                        }
                        _ => self.stats.repeated_responses += 1,
                    }
                }
            }
        }
        if !durable.is_empty() {
            actions.push(Action::Durable { sequences: durable, tickets });
        }
        actions
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    Send(usize),
    Command(Command),
    Resend(u64),
    Respond(BlockStatus, Vec<u64>),
}

fn any_op() -> impl Strategy<Value = Op> {
    // From below the first to above the last sequence that a case gets to.
    let sequence = || prop_oneof![8 => START..START + 24, 1 => 0..START, 1 => Just(u64::MAX)];
    let status = prop_oneof![
        4 => Just(BlockStatus::RecvOk),
        6 => Just(BlockStatus::FlushOk),
        2 => Just(BlockStatus::RecvFailed),
        1 => Just(BlockStatus::ForceFlushReceived),
        1 => Just(BlockStatus::WaitNbdSlaveSyncReceived),
        1 => Just(BlockStatus::FlushFailed),
    ];
    let command =
        prop_oneof![sequence().prop_map(|s| Command::ForceFlush(Sequence(s))), Just(Command::WaitSlaveSync)];
    prop_oneof![
        4 => (0..9_usize).prop_map(Op::Push),
        3 => (1..5_usize).prop_map(Op::Send),
        1 => command.prop_map(Op::Command),
        1 => sequence().prop_map(Op::Resend),
        5 => (status, prop::collection::vec(sequence(), 0..8)).prop_map(|(s, list)| Op::Respond(s, list)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_server_says_in_whatever_order_the_state_agrees_with_the_oracle(
        ops in prop::collection::vec(any_op(), 1..80)
    ) {
        let mut state: State<u64> = State::new(Sequence(START));
        let mut oracle = Oracle::default();
        let (mut released, mut next_ticket) = (0, 0);
        for op in ops {
            match op {
                Op::Push(size) => {
                    let sequence = oracle.next();
                    next_ticket += 1;
                    state.push(block(sequence, size), size + BLOCK_OVERHEAD, next_ticket);
                    oracle.blocks.push(OracleBlock {
                        phase: Phase::Waiting,
                        was_sent: false,
                        size,
                        ticket: Some(next_ticket),
                    });
                    oracle.to_send.push_back(Sent::Block(sequence));
                }
                Op::Send(count) => {
                    for _ in 0..count {
                        prop_assert_eq!(poll(&mut state), oracle.poll());
                    }
                }
                Op::Command(command) => {
                    state.command(command);
                    oracle.to_send.push_back(Sent::Command(command));
                }
                Op::Resend(sequence) => {
                    next_ticket += 1;
                    let resent = state.resend(Sequence(sequence), next_ticket).is_ok();
                    let refused = oracle.get(sequence).filter(|block| block.phase == Phase::Refused);
                    prop_assert_eq!(resent, refused.is_some());
                    if let Some(block) = refused {
                        (block.phase, block.ticket) = (Phase::Waiting, Some(next_ticket));
                        oracle.resends.push_back(sequence);
                    }
                }
                Op::Respond(status, sequences) => {
                    prop_assert_eq!(respond(&mut state, status, &sequences), oracle.respond(status, &sequences));
                }
            }
            let unflushed = oracle.unflushed();
            released += state.take_released();
            prop_assert_eq!(released, oracle.released());
            prop_assert_eq!(state.next().0, oracle.next());
            prop_assert_eq!(state.first_unacknowledged().0, oracle.first_unacknowledged());
            prop_assert_eq!(state.lowest_refused().map(|s| s.0), oracle.refused());
            prop_assert_eq!(state.unflushed().iter().map(|b| b.sequence.0).collect::<Vec<_>>(), &unflushed[..]);
            oracle.stats.unflushed_blocks = unflushed.len() as u64;
            oracle.stats.unflushed_bytes = unflushed.iter().map(|s| oracle.get(*s).unwrap().size as u64).sum();
            prop_assert_eq!(state.stats(), oracle.stats);
        }
        let unflushed = oracle.unflushed();
        let remains = state.end();
        prop_assert_eq!(remains.blocks.iter().map(|b| b.sequence.0).collect::<Vec<_>>(), &unflushed[..]);
        prop_assert_eq!(remains.unacknowledged, unflushed.iter().copied().map(Sequence).collect());
        let waiting: Vec<_> =
            (START..).zip(&oracle.blocks).filter_map(|(s, b)| Some((Sequence(s), b.ticket?))).collect();
        prop_assert_eq!(remains.tickets, waiting);
    }
}

#[test]
fn blocks_acknowledged_out_of_order_give_their_data_back_at_once_and_their_place_in_order() {
    let mut state = sent(3);
    respond(&mut state, BlockStatus::FlushOk, &[START + 2, START + 1]);
    assert_eq!(state.first_unacknowledged(), Sequence(START));
    assert_eq!(state.take_released(), 2);
    respond(&mut state, BlockStatus::FlushOk, &[START]);
    assert_eq!(state.first_unacknowledged(), Sequence(START + 3));
    assert_eq!(state.take_released(), 1 + 3 * BLOCK_OVERHEAD);
}

#[test]
fn a_flush_ok_for_a_block_that_waits_to_be_sent_is_ignored_and_counted() {
    let mut state = State::new(Sequence(START));
    state.push(block(START, 1), 1, 0);
    assert_eq!(respond(&mut state, BlockStatus::FlushOk, &[START]), []);
    assert_eq!(state.stats().unexpected_responses, 1);
    assert_eq!(poll(&mut state), Some(Sent::Block(START)));
}

#[test]
fn a_refused_block_that_is_resent_counts_again_and_goes_before_everything_else() {
    let mut state = sent(2);
    respond(&mut state, BlockStatus::RecvFailed, &[START]);
    state.push(block(START + 2, 1), 1, 9);
    state.resend(Sequence(START), 10).unwrap();
    assert_eq!(state.resend(Sequence(START), 11), Err(11), "it is on its way already");
    assert_eq!(poll(&mut state), Some(Sent::Block(START)));
    assert_eq!(poll(&mut state), Some(Sent::Block(START + 2)));
    let sequences = vec![Sequence(START)];
    assert_eq!(
        respond(&mut state, BlockStatus::FlushOk, &[START]),
        [Action::Durable { sequences, tickets: vec![10] }]
    );
}

#[test]
fn room_is_asked_for_once_until_it_has_come() {
    let flush = |sequence| Some(Sent::Command(Command::MakeRoom(Sequence(sequence))));
    let mut state = sent(3);
    state.make_room();
    state.make_room();
    assert_eq!(poll(&mut state), flush(START + 2));
    assert_eq!(poll(&mut state), None);
    respond(&mut state, BlockStatus::FlushOk, &[START, START + 1]);
    state.make_room();
    assert_eq!(poll(&mut state), None);
    respond(&mut state, BlockStatus::FlushOk, &[START + 2]);
    state.make_room();
    assert_eq!(poll(&mut state), None, "nothing is held");
    state.push(block(START + 3, 1), 1, 0);
    state.make_room();
    assert_eq!(poll(&mut state), Some(Sent::Block(START + 3)));
    assert_eq!(poll(&mut state), flush(START + 3));
}

#[test]
fn the_last_sequences_there_are_make_no_trouble() {
    let mut state = State::new(Sequence(u64::MAX - 1));
    state.push(block(u64::MAX - 1, 1), 1, 0);
    assert_eq!(poll(&mut state), Some(Sent::Block(u64::MAX - 1)));
    assert_eq!(poll(&mut state), None);
    assert_eq!(respond(&mut state, BlockStatus::FlushOk, &[u64::MAX]), []);
    assert_eq!(state.end().unacknowledged.to_string(), (u64::MAX - 1).to_string());
    assert!(State::<u64>::new(Sequence(u64::MAX)).end().unacknowledged.is_empty());
}
