//! The same rules, written down in the slowest and most obvious way.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Every block that ever was is kept, and everything is found by looking at all of them.
#[derive(Default)]
struct Oracle {
    blocks: Vec<OracleBlock>,
    to_send: VecDeque<Sent>,
    flushes: u64,
    slave_syncs: u64,
    /// Everything below was sent here, or was durable when its turn came.
    frontier: u64,
    stats: Stats,
}

struct OracleBlock {
    phase: Phase,
    sent_here: bool,
    ever_sent: bool,
    refusals: u32,
    acknowledged: bool,
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
        let durable = self.blocks.iter().take_while(|block| block.acknowledged).count();
        START + durable as u64
    }

    fn unflushed(&self) -> Vec<u64> {
        (START..).zip(&self.blocks).filter(|(_, b)| !b.acknowledged).map(|(s, _)| s).collect()
    }

    /// What everything costs that is durable with nothing missing before it.
    fn released(&self) -> usize {
        let whole = (self.first_unacknowledged() - START) as usize;
        self.blocks.iter().take(whole).map(|block| block.size + BLOCK_OVERHEAD).sum()
    }

    fn poll(&mut self) -> Option<Sent> {
        let first = self.first_unacknowledged();
        let again = |(sequence, b): &(u64, &OracleBlock)| {
            *sequence >= first && b.phase == Phase::Waiting && b.sent_here
        };
        let again = (START..).zip(&self.blocks).find(again);
        if let Some((sequence, _)) = again {
            self.get(sequence).unwrap().phase = Phase::Sent;
            self.stats.resent_blocks += 1;
            return Some(Sent::Block(sequence));
        }
        let first = self.first_unacknowledged();
        let next = loop {
            match self.to_send.pop_front()? {
                // Everything up to it became durable before its turn.
                Sent::Block(sequence) if sequence < first => {}
                next => break next,
            }
        };
        match next {
            Sent::Block(sequence) => {
                self.frontier = sequence + 1;
                let block = self.get(sequence).unwrap();
                let (again, size) = (block.ever_sent, block.size as u64);
                (block.phase, block.sent_here, block.ever_sent) = (Phase::Sent, true, true);
                match again {
                    true => self.stats.resent_blocks += 1,
                    false => {
                        self.stats.sent_blocks += 1;
                        self.stats.sent_bytes += size;
                    }
                }
            }
            Sent::Command(Command::WaitSlaveSync | Command::WaitSlaveSyncAgain) => self.slave_syncs += 1,
            Sent::Command(_) => self.flushes += 1,
        }
        Some(next)
    }

    fn respond(&mut self, status: BlockStatus, sequences: &[u64]) -> Vec<Action<u64>> {
        let mut actions = Vec::new();
        let mut durable = Vec::new();
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
                // A durable block that was not sent here, and that nothing before it holds up, counts as if it was.
                let (frontier, first) = (self.frontier, self.first_unacknowledged());
                for &sequence in sequences {
                    let Some(block) = self.get(sequence).filter(|_| sequence < frontier) else {
                        self.stats.unexpected_responses += 1;
                        continue;
                    };
                    match (status, block.phase) {
                        _ if sequence < first => self.stats.repeated_responses += 1,
                        (BlockStatus::RecvOk, Phase::Sent) => {
                            block.phase = Phase::Received;
                            self.stats.received_blocks += 1;
                            actions.push(Action::Received(Sequence(sequence)));
                        }
                        (BlockStatus::RecvFailed, Phase::Sent | Phase::Received) => {
                            block.refusals += 1;
                            block.phase = if block.refusals == 1 { Phase::Waiting } else { Phase::Refused };
                            self.stats.refused_blocks += 1;
                            actions.push(Action::Refused(Sequence(sequence)));
                        }
                        (BlockStatus::FlushOk, phase) if phase != Phase::Durable => {
                            durable.push(sequence);
                            self.get(sequence).unwrap().phase = Phase::Durable;
                        }
                        _ => self.stats.repeated_responses += 1,
                    }
                }
            }
        }
        self.durable(durable, &mut actions);
        actions
    }

    fn durable(&mut self, sequences: Vec<u64>, actions: &mut Vec<Action<u64>>) {
        let mut tickets = Vec::new();
        let sequences: Vec<u64> =
            sequences.into_iter().filter(|sequence| !self.get(*sequence).unwrap().acknowledged).collect();
        for &sequence in &sequences {
            let block = self.get(sequence).unwrap();
            block.acknowledged = true;
            let size = block.size as u64;
            tickets.extend(block.ticket.take());
            self.stats.durable_blocks += 1;
            self.stats.durable_bytes += size;
        }
        self.frontier = self.frontier.max(self.first_unacknowledged());
        if !sequences.is_empty() {
            let sequences = sequences.into_iter().map(Sequence).collect();
            actions.push(Action::Durable { sequences, tickets });
        }
    }

    /// The connection is lost, and another one is there that has everything up to `last_flushed`.
    fn reconnect(&mut self, last_flushed: Option<u64>) -> Vec<Action<u64>> {
        let mut actions = Vec::new();
        let known = |(sequence, block): &(u64, &OracleBlock)| {
            !block.acknowledged && block.ever_sent && Some(*sequence) <= last_flushed
        };
        let known: Vec<_> = (START..).zip(&self.blocks).filter(known).map(|(sequence, _)| sequence).collect();
        let unwritten =
            self.to_send.iter().filter(|sent| matches!(sent, Sent::Command(Command::WaitSlaveSync)));
        let rewritten =
            self.to_send.iter().filter(|sent| matches!(sent, Sent::Command(Command::WaitSlaveSyncAgain)));
        let waits = self.slave_syncs as usize + unwritten.count() + rewritten.count();
        self.durable(known, &mut actions);
        (self.flushes, self.slave_syncs) = (0, 0);
        self.to_send = vec![Sent::Command(Command::WaitSlaveSyncAgain); waits].into();
        let first = self.first_unacknowledged();
        for (sequence, block) in (START..).zip(&mut self.blocks) {
            (block.sent_here, block.refusals) = (false, 0);
            if sequence >= first {
                block.phase = Phase::Waiting;
                self.to_send.push_back(Sent::Block(sequence));
            }
        }
        self.frontier = self.first_unacknowledged();
        actions
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    Send(usize),
    WaitSlave,
    Respond(BlockStatus, Vec<u64>),
    Reconnect(Option<u64>),
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
    prop_oneof![
        4 => (0..9_usize).prop_map(Op::Push),
        3 => (1..5_usize).prop_map(Op::Send),
        1 => Just(Op::WaitSlave),
        1 => prop::option::of(sequence()).prop_map(Op::Reconnect),
        5 => (status, prop::collection::vec(sequence(), 0..8)).prop_map(|(s, list)| Op::Respond(s, list)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_servers_say_in_whatever_order_the_state_agrees_with_the_oracle(
        ops in prop::collection::vec(any_op(), 1..80)
    ) {
        let now = Instant::now();
        let mut state: State<u64> = State::new(Sequence(START), PATIENCE, now);
        state.handle_online(None, now, &mut Vec::new());
        let mut oracle = Oracle { frontier: START, ..Oracle::default() };
        let (mut released, mut next_ticket) = (0, 0);
        for op in ops {
            match op {
                Op::Push(size) => {
                    let sequence = oracle.next();
                    next_ticket += 1;
                    state.push(block(sequence, size), size + BLOCK_OVERHEAD, next_ticket);
                    let (sent_here, ever_sent, refusals) = (false, false, 0);
                    let (phase, acknowledged, ticket) = (Phase::Waiting, false, Some(next_ticket));
                    oracle.blocks.push(OracleBlock {
                        phase,
                        sent_here,
                        ever_sent,
                        refusals,
                        acknowledged,
                        size,
                        ticket,
                    });
                    oracle.to_send.push_back(Sent::Block(sequence));
                }
                Op::Send(count) => {
                    for _ in 0..count {
                        prop_assert_eq!(poll(&mut state, now), oracle.poll());
                    }
                }
                Op::WaitSlave => {
                    state.command(Command::WaitSlaveSync);
                    oracle.to_send.push_back(Sent::Command(Command::WaitSlaveSync));
                }
                Op::Respond(status, sequences) => {
                    let said = respond(&mut state, status, &sequences, now);
                    prop_assert_eq!(said, oracle.respond(status, &sequences));
                }
                Op::Reconnect(last_flushed) => {
                    let mut actions = Vec::new();
                    state.handle_offline();
                    state.handle_online(last_flushed.map(Sequence), now, &mut actions);
                    prop_assert_eq!(actions, oracle.reconnect(last_flushed));
                }
            }
            let unflushed = oracle.unflushed();
            released += state.take_released();
            prop_assert_eq!(released, oracle.released());
            prop_assert_eq!(state.next().0, oracle.next());
            prop_assert_eq!(state.first_unacknowledged().0, oracle.first_unacknowledged());
            prop_assert_eq!(state.unflushed().iter().map(|b| b.sequence.0).collect::<Vec<_>>(), &unflushed[..]);
            let first = (oracle.first_unacknowledged() - START) as usize;
            let sent = oracle.blocks.iter().skip(first).filter(|block| block.phase == Phase::Sent).count();
            prop_assert_eq!(state.sent, sent);
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
