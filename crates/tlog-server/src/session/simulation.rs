//! Clients of all kinds, lost connections and crashes at random, against what anybody can check with a list.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::*;
use super::*;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    /// The client sends a block that it has not heard of, the nth of those.
    Send(usize),
    /// It sends one again that it has sent.
    Again(usize),
    ForceFlush(usize),
    /// The log makes so many more blocks durable.
    Durable(usize),
    /// The connection breaks, and the client comes back.
    Reconnect,
    /// The server dies; the client comes back to another one.
    Crash,
    /// The client is done; another one starts over, or goes on.
    Next {
        known: bool,
        low: u64,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => (0_usize..6).prop_map(Event::Send),
        2 => (0_usize..6).prop_map(Event::Again),
        1 => (0_usize..6).prop_map(Event::ForceFlush),
        4 => (0_usize..6).prop_map(Event::Durable),
        1 => Just(Event::Reconnect),
        1 => Just(Event::Crash),
        1 => (any::<bool>(), 1_u64..12).prop_map(|(known, low)| Event::Next { known, low }),
    ];
    prop::collection::vec(event, 0..250)
}

/// A client as the protocol wants it: keeps every block until its FlushOK, and comes back with the first it keeps.
struct Client {
    session: u64,
    writer: u64,
    /// Written, no FlushOK yet.
    kept: BTreeSet<u64>,
    next: u64,
    /// Sent on this connection.
    sent: BTreeSet<u64>,
}

struct World {
    bench: Bench,
    client: Client,
    connections: u64,
    /// What must be readable in the end: (sequence, writer) in the order in which clients were told of it.
    acknowledged: Vec<(u64, u64)>,
}

impl World {
    fn new() -> Self {
        let client = Client { session: 1, writer: 1, kept: BTreeSet::new(), next: 1, sent: BTreeSet::new() };
        let mut world = Self { bench: Bench::new(), client, connections: 0, acknowledged: Vec::new() };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.connections += 1;
        self.client.sent.clear();
        let first = self.client.kept.first().copied().unwrap_or(self.client.next);
        self.bench.connect(self.connections, self.client.session, first, false);
        self.bench.all_durable_if_waiting();
        self.listen();
    }

    /// Sends the nth block that was not sent yet. Writes new ones as needed.
    fn send(&mut self, nth: usize) {
        let unsent = |client: &Client| {
            client.kept.iter().filter(|sequence| !client.sent.contains(sequence)).copied().collect::<Vec<_>>()
        };
        while unsent(&self.client).len() <= nth {
            self.client.kept.insert(self.client.next);
            self.client.next += 1;
        }
        let sequence = unsent(&self.client)[nth];
        self.client.sent.insert(sequence);
        self.bench.block(sequence, self.client.writer);
        self.listen();
    }

    fn again(&mut self, nth: usize) {
        if let Some(&sequence) = self.client.sent.iter().nth(nth) {
            self.bench.block(sequence, self.client.writer);
            self.listen();
        }
    }

    fn listen(&mut self) {
        for seen in self.bench.seen() {
            match seen {
                Said(BlockStatus::FlushOk, sequences) => {
                    for sequence in sequences {
                        assert!(
                            self.client.sent.contains(&sequence),
                            "FlushOK for {sequence}, which was not sent here"
                        );
                        self.acknowledge(sequence);
                    }
                }
                Said(BlockStatus::RecvFailed, sequences) => {
                    sequences.iter().for_each(|sequence| _ = self.client.sent.remove(sequence));
                }
                Accepted(_, Some(last_flushed)) => {
                    let known: Vec<_> = self.client.kept.range(..=last_flushed).copied().collect();
                    known.into_iter().for_each(|sequence| self.acknowledge(sequence));
                }
                Gap { .. } | TakenOver { .. } | LogClosed(_) | Uncertain(_) => {
                    panic!("{seen:?} for a client that leaves no gap")
                }
                _ => {}
            }
        }
    }

    /// The one promise: what is acknowledged is durable, with the content that this client gave it.
    fn acknowledge(&mut self, sequence: u64) {
        let expected = block(sequence, self.client.writer);
        let durable = self.bench.log[..self.bench.durable].iter().any(|held| held.block == expected);
        assert!(durable, "{sequence} of writer {} was acknowledged and is not durable", self.client.writer);
        if self.client.kept.remove(&sequence) {
            self.acknowledged.push((sequence, self.client.writer));
        }
    }

    /// Sends everything that is kept and has it acknowledged.
    fn finish(&mut self) {
        self.client.kept.insert(self.client.next);
        self.client.next += 1;
        for _ in 0..200 {
            let unsent: Vec<_> = self.client.kept.difference(&self.client.sent).copied().collect();
            for sequence in unsent {
                self.client.sent.insert(sequence);
                self.bench.block(sequence, self.client.writer);
                self.listen();
            }
            self.bench.all_durable();
            self.listen();
            if self.client.kept.is_empty() {
                return;
            }
        }
        panic!("{:?} are never acknowledged", self.client.kept);
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Send(nth) => self.send(nth),
            Event::Again(nth) => self.again(nth),
            Event::ForceFlush(nth) => {
                let sequence = self.client.kept.iter().nth(nth).copied().unwrap_or(self.client.next);
                self.bench.force_flush(sequence);
                self.listen();
                self.check_force_flush(sequence);
            }
            Event::Durable(more) => {
                self.bench.make_durable(self.bench.durable + more);
                self.listen();
            }
            Event::Reconnect => self.connect(),
            Event::Crash => {
                self.bench.reopen();
                self.connect();
            }
            Event::Next { known, low } => {
                self.finish();
                let next = self.client.next;
                let writer = self.client.writer + 1;
                let first = next.saturating_sub(low).max(1);
                let session = if known { writer } else { 0 };
                self.client =
                    Client { session, writer, kept: BTreeSet::new(), next: first, sent: BTreeSet::new() };
                self.connect();
            }
        }
    }

    /// If every block up to it is in the log, all of them are asked to be flushed.
    fn check_force_flush(&self, sequence: u64) {
        let end = self.bench.log.last().map(|last| last.generation);
        let at =
            self.bench.log.iter().position(|b| Some(b.generation) == end && b.block.sequence.0 == sequence);
        if let Some(at) = at {
            assert!(
                at < self.bench.flush_asked.max(self.bench.durable),
                "{sequence} is there and not flushed"
            );
        }
    }

    /// Positions rise, sequences follow each other within a generation, generations are counted.
    fn check_log(&self) {
        for pair in self.bench.positions().windows(2) {
            let [(generation, sequence), (next_generation, next_sequence)] = pair else { unreachable!() };
            let follows = next_generation == generation && *next_sequence == sequence + 1;
            assert!(follows || *next_generation == generation + 1, "{pair:?}");
        }
    }

    /// Replaying the log gives what all that was acknowledged gives, in the order in which clients wrote it.
    fn check_replay(&self) {
        let mut expected: Vec<_> = self.acknowledged.clone();
        expected.sort_by_key(|&(sequence, writer)| (writer, sequence));
        let replay = |blocks: Vec<Block>| -> BTreeMap<u64, Block> {
            blocks.into_iter().map(|block| (block.index.get(), block)).collect()
        };
        let log = self.bench.log.iter().map(|held| held.block.clone()).collect();
        let written = expected.into_iter().map(|(sequence, writer)| block(sequence, writer)).collect();
        assert_eq!(replay(log), replay(written));
    }
}

impl Bench {
    /// A handshake may wait for a flush, which then happens.
    fn all_durable_if_waiting(&mut self) {
        if !self.seen.iter().any(|seen| matches!(seen, Accepted(..))) {
            self.all_durable();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_and_everything_sent_is_acknowledged_in_the_end(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.check_log();
            prop_assert!(world.bench.session.waiting().1 <= Bench::LIMITS.bytes);
        }
        world.finish();
        world.check_log();
        world.check_replay();
    }

    /// Clients that no protocol foresees: any sequence, any content, any handshake.
    #[test]
    fn whatever_a_client_does_no_flush_ok_is_untrue(
        steps in prop::collection::vec((0_u8..8, 0_u64..14, 0_u64..3), 0..200),
    ) {
        let mut bench = Bench::new();
        // Content by session where it is known, as a session is one client; any content where it is not. No known session
        // outlives a crash: of a log that was just opened it is only known who wrote its end.
        let (mut session, mut connection, mut crashes) = (0, 0, 0);
        let mut last_sent = BTreeMap::new();
        bench.connect(0, 0, 1, false);
        for (what, number, variant) in steps {
            match what {
                0 => {
                    connection += 1;
                    session = if variant == 0 { 0 } else { variant + 3 * crashes };
                    last_sent.clear();
                    let reset = number % 5 == 0;
                    let next = bench.session.ordered().map_or(number, |last| last.sequence.0 + 1);
                    bench.connect(connection, session, if reset { number } else { number.min(next) }, reset);
                }
                1 => bench.make_durable(bench.durable + number as usize),
                2 => bench.force_flush(number),
                3 if number < 2 => {
                    bench.reopen();
                    crashes += 1;
                    session = 0;
                    last_sent.clear();
                    connection += 1;
                    bench.connect(connection, session, bench.log.last().map_or(1, |b| b.block.sequence.0 + 1), false);
                }
                _ => {
                    let writer = if session == 0 { 1000 + variant } else { session };
                    last_sent.insert(number, writer);
                    bench.block(number, writer);
                }
            }
            for seen in bench.seen() {
                if let Said(BlockStatus::FlushOk, sequences) = seen {
                    for sequence in sequences {
                        let Some(&writer) = last_sent.get(&sequence) else {
                            return Err(TestCaseError::fail(format!("FlushOK for {sequence}, which was not sent here")));
                        };
                        let expected = block(sequence, writer);
                        prop_assert!(
                            bench.log[..bench.durable].iter().any(|held| held.block == expected),
                            "{sequence} of writer {writer} is acknowledged and not durable"
                        );
                    }
                }
            }
        }
    }
}
