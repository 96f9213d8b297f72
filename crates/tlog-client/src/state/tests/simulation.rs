//! Servers that crash, answers that are lost or late, connections that break, all from one seed, in made-up time: in the end
//! everything handed over is in the log, once and in order, and nothing was called durable before.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// A server as the protocol describes it, for one session, over a log that outlives it.
#[derive(Default)]
struct Server {
    /// Durable.
    log: Vec<u64>,
    /// In order, in memory; gone with a crash.
    ordered: Vec<u64>,
    /// What waits for an earlier one; gone with the connection.
    window: BTreeMap<u64, ()>,
    /// Sent on this connection, no FlushOK yet.
    awaiting: Vec<u64>,
    answers: VecDeque<Response>,
}

impl Server {
    fn next(&self) -> u64 {
        self.ordered.last().or(self.log.last()).map_or(START, |last| last + 1)
    }

    fn say(&mut self, status: BlockStatus, sequences: Vec<u64>) {
        self.answers.push_back(Response { status, sequences: sequences.into_iter().map(Sequence).collect() });
    }

    fn hear(&mut self, sent: Sent, refuse: bool) {
        match sent {
            Sent::Block(sequence) if refuse => self.say(BlockStatus::RecvFailed, vec![sequence]),
            Sent::Block(sequence) if self.log.contains(&sequence) => {
                self.say(BlockStatus::FlushOk, vec![sequence])
            }
            Sent::Block(sequence) => {
                self.say(BlockStatus::RecvOk, vec![sequence]);
                if !self.awaiting.contains(&sequence) {
                    self.awaiting.push(sequence);
                }
                if sequence >= self.next() {
                    self.window.insert(sequence, ());
                }
                while self.window.remove(&self.next()).is_some() {
                    self.ordered.push(self.next());
                }
            }
            Sent::Command(Command::ForceFlush(_) | Command::Flush(_)) => {
                self.say(BlockStatus::ForceFlushReceived, vec![]);
                self.flush();
            }
            Sent::Command(_) => {}
        }
    }

    fn flush(&mut self) {
        self.log.append(&mut self.ordered);
        let (durable, waiting): (Vec<_>, _) =
            self.awaiting.drain(..).partition(|sequence| self.log.contains(sequence));
        self.awaiting = waiting;
        if !durable.is_empty() {
            self.say(BlockStatus::FlushOk, durable);
        }
    }

    /// The connection is gone, and with a crash what was in memory.
    fn lose(&mut self, crash: bool) {
        self.window.clear();
        self.awaiting.clear();
        self.answers.clear();
        if crash {
            self.ordered.clear();
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Push,
    Send { lost: bool, refused: bool },
    Answer { lost: bool },
    Flush,
    ForceFlush,
    Pass(u64),
    Reconnect { crash: bool, tells: bool },
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Push),
        8 => (prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(lost, refused)| Event::Send { lost, refused }),
        6 => prop::bool::weighted(0.3).prop_map(|lost| Event::Answer { lost }),
        2 => Just(Event::Flush),
        1 => Just(Event::ForceFlush),
        2 => (1..9000_u64).prop_map(Event::Pass),
        1 => any::<(bool, bool)>().prop_map(|(crash, tells)| Event::Reconnect { crash, tells }),
    ]
}

struct World {
    state: State<u64>,
    server: Server,
    now: Instant,
    next: u64,
    acknowledged: Vec<u64>,
}

impl World {
    fn act(&mut self, actions: Vec<Action<u64>>) {
        for action in actions {
            match action {
                Action::Durable { sequences, tickets } => {
                    for sequence in sequences {
                        assert!(
                            self.server.log.contains(&sequence.0),
                            "{sequence} is called durable and is not"
                        );
                    }
                    self.acknowledged.extend(tickets);
                }
                Action::RefusedTooOften(_) => self.reconnect(false, true),
                Action::Damaged(sequence) => panic!("{sequence} did not change"),
                _ => {}
            }
        }
    }

    fn reconnect(&mut self, crash: bool, tells: bool) {
        self.state.handle_offline();
        self.server.lose(crash);
        assert!(self.state.first_unacknowledged().0 <= self.server.next(), "a gap");
        let mut actions = Vec::new();
        let last_flushed = self.server.log.last().copied().filter(|_| tells).map(Sequence);
        self.state.handle_online(last_flushed, self.now, &mut actions);
        self.act(actions);
    }

    fn send(&mut self, lost: bool, refused: bool) -> bool {
        let Some(sent) = poll(&mut self.state, self.now) else { return false };
        if !lost {
            self.server.hear(sent, refused && matches!(sent, Sent::Block(_)));
        }
        true
    }

    fn answer(&mut self, lost: bool) -> bool {
        let Some(response) = self.server.answers.pop_front() else { return false };
        if !lost {
            let mut actions = Vec::new();
            self.state.handle_response(response, self.now, &mut actions);
            self.act(actions);
        }
        true
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.state.poll_timeout().is_some_and(|at| at <= self.now)
            && self.state.handle_time(self.now).is_err()
        {
            self.reconnect(false, true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_lost_everything_is_in_the_log_once_and_in_order_in_the_end(
        events in prop::collection::vec(any_event(), 1..250)
    ) {
        let now = Instant::now();
        let mut state = State::new(Sequence(START), PATIENCE, now);
        state.handle_online(None, now, &mut Vec::new());
        let mut world = World { state, server: Server::default(), now, next: START, acknowledged: Vec::new() };
        for event in events {
            match event {
                Event::Push => {
                    world.state.push(block(world.next, 3), BLOCK_OVERHEAD + 3, world.next);
                    world.next += 1;
                }
                Event::Send { lost, refused } => _ = world.send(lost, refused),
                Event::Answer { lost } => _ = world.answer(lost),
                Event::Flush => world.server.flush(),
                Event::ForceFlush if world.next > START => world.state.command(force_flush(world.next - 1)),
                Event::ForceFlush => {}
                Event::Pass(millis) => world.pass(Duration::from_millis(millis)),
                Event::Reconnect { crash, tells } => world.reconnect(crash, tells),
            }
        }
        // Nothing is lost any more. Nobody asks for a flush; the state does, in time.
        let began = world.now;
        while world.state.first_unacknowledged().0 < world.next {
            while world.send(false, false) || world.answer(false) {}
            world.pass(Duration::from_millis(500));
            prop_assert!(world.now - began < Duration::from_secs(1000), "it never ends");
        }
        let everything: Vec<u64> = (START..world.next).collect();
        prop_assert_eq!(&world.server.log, &everything, "once, and in order");
        world.acknowledged.sort_unstable();
        prop_assert_eq!(world.acknowledged, everything, "each handle resolves, once");
    }
}
