//! Which server is tried next, and when. Pure: the time and the random part of a wait are arguments.
//!
//! ```text
//!              Dial                     accepted
//!  out ----------------> dialling ------------------> connected
//!   ^ ^                     |                             |
//!   | |   failed: the next one in the list                |
//!   | +---------------------+                             |
//!   |     after a whole round of failures: Wait           |
//!   +-----------------------------------------------------+
//!                 lost: the next one in the list
//! ```
//!
//! The first round goes without a wait. Each further one waits before it, twice as long as the one before, until
//! something becomes durable: a connection that is accepted and then fails again and again is waited for like one that is
//! refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Backoff, Servers};

/// What to do about having no connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Try this one now.
    Dial(Arc<str>),
    /// Nothing before this moment.
    Wait(Instant),
    /// Every server was tried, and nothing else is to be hoped for.
    GiveUp,
}

/// Invariant: `tried` counts the attempts since something last became durable, `hopeless` those of the running round after
/// which another one would fail in the same way.
pub(crate) struct Plan {
    servers: Servers,
    backoff: Backoff,
    /// How long after `out_since` every server has been tried often enough; none: never.
    deadline: Option<Duration>,
    /// Which one is next.
    next: usize,
    tried: usize,
    hopeless: usize,
    /// Since when nothing works.
    out_since: Option<Instant>,
    /// Set while a wait between two rounds is on.
    wait_until: Option<Instant>,
    /// When a server accepted last, where nothing became durable since.
    accepted: Option<Instant>,
}

impl Plan {
    pub(crate) fn new(servers: Servers, backoff: Backoff, deadline: Option<Duration>) -> Self {
        Self {
            servers,
            backoff,
            deadline,
            next: 0,
            tried: 0,
            hopeless: 0,
            out_since: None,
            wait_until: None,
            accepted: None,
        }
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// What to do now. `jitter`, from 0 to 1, spreads the waits of clients that lost the same server.
    pub(crate) fn poll(&mut self, now: Instant, jitter: f64) -> Step {
        let out_since = *self.out_since.get_or_insert(now);
        let count = self.servers.len();
        let give_up_at = self.deadline.and_then(|deadline| out_since.checked_add(deadline));
        let too_late = give_up_at.is_some_and(|at| at <= now);
        if self.tried >= count && too_late {
            return Step::GiveUp;
        }
        if self.tried > 0 && self.tried.checked_rem(count) == Some(0) {
            if self.hopeless >= count {
                return Step::GiveUp;
            }
            let until = *self.wait_until.get_or_insert_with(|| {
                let until = now + self.backoff.wait(self.tried / count, jitter);
                give_up_at.map_or(until, |at| until.min(at))
            });
            if until > now {
                return Step::Wait(until);
            }
        }
        match self.servers.at(self.next) {
            Some(server) => Step::Dial(Arc::clone(server)),
            None => Step::GiveUp,
        }
    }

    /// The server that was to be tried did not accept. `hopeless`: nothing will change that.
    pub(crate) fn handle_failed(&mut self, hopeless: bool) {
        if self.wait_until.take().is_some() {
            self.hopeless = 0; // a new round has begun
        }
        self.tried += 1;
        self.hopeless += usize::from(hopeless);
        self.next += 1;
    }

    /// A server has accepted. Where nothing waits to become durable, that alone ends the time without a server; what was tried
    /// still counts, so that one which accepts and closes is not run round.
    pub(crate) fn handle_accepted(&mut self, now: Instant, nothing_waits: bool) {
        self.accepted = Some(now);
        if nothing_waits {
            self.out_since = None;
        }
    }

    /// The connection was lost: the next server's turn.
    pub(crate) fn handle_lost(&mut self, now: Instant) {
        // It lasted longer than any wait: that is no running round.
        if self.accepted.take().is_some_and(|since| since + self.backoff.longest <= now) {
            self.handle_progress();
        }
        self.out_since.get_or_insert(now);
        self.handle_failed(false);
    }

    /// The connection was left for the list that is new: from its beginning.
    pub(crate) fn handle_left(&mut self, now: Instant) {
        self.out_since.get_or_insert(now);
    }

    /// Something works again: what was tried before no longer counts.
    pub(crate) fn handle_progress(&mut self) {
        (self.tried, self.hopeless) = (0, 0);
        (self.out_since, self.wait_until, self.accepted) = (None, None, None);
    }

    /// Another list counts from now on, from its beginning; `current` is the server that is connected, and, where it is still listed,
    /// stays the one whose successor is next.
    pub(crate) fn set_servers(&mut self, servers: Servers, current: Option<&str>) {
        self.next = current.and_then(|current| servers.position(current)).unwrap_or(0);
        self.servers = servers;
        (self.tried, self.hopeless, self.wait_until) = (0, 0, None);
    }

    /// From here on this deadline counts, and time without a server from now on.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline;
        self.handle_progress();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(2) };

    fn plan(servers: &str, deadline: Option<Duration>) -> Plan {
        Plan::new(Servers::from(servers), BACKOFF, deadline)
    }

    fn dial(server: &str) -> Step {
        Step::Dial(server.into())
    }

    #[test]
    fn a_round_goes_without_waits_and_each_further_one_waits_twice_as_long() {
        let mut plan = plan("a,b", None);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert_eq!(plan.poll(now, 1.0), dial("a"));
            plan.handle_failed(false);
            assert_eq!(plan.poll(now, 1.0), dial("b"));
            plan.handle_failed(false);
            let Step::Wait(until) = plan.poll(now, 1.0) else { panic!("no wait") };
            assert_eq!(plan.poll(now, 0.0), Step::Wait(until), "it was decided");
            waits.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
        plan.handle_progress();
        assert_eq!(plan.poll(now, 1.0), dial("a"));
    }

    #[test]
    fn a_server_that_is_lost_is_followed_by_the_next_and_one_that_fails_again_and_again_is_waited_for() {
        let mut plan = plan("a,b", None);
        let now = Instant::now();
        assert_eq!(plan.poll(now, 0.0), dial("a"));
        plan.handle_progress();
        plan.handle_lost(now);
        assert_eq!(plan.poll(now, 0.0), dial("b"));
        plan.handle_lost(now); // accepted, and lost again before anything was durable
        let Step::Wait(until) = plan.poll(now, 0.0) else { panic!("no wait") };
        assert_eq!(until - now, BACKOFF.first / 2, "half of it is not random");
        assert_eq!(plan.poll(until, 0.0), dial("a"));
        plan.handle_progress();
        plan.handle_lost(until);
        assert_eq!(plan.poll(until, 0.0), dial("b"));
    }

    #[test]
    fn servers_that_accept_and_close_are_waited_for_unless_the_connection_lasts() {
        let mut plan = plan("a,b", Some(Duration::from_secs(60)));
        let mut now = Instant::now();
        let mut dialled = 0;
        let begun = now;
        while now < begun + Duration::from_secs(30) {
            match plan.poll(now, 1.0) {
                Step::Dial(_) => {
                    dialled += 1;
                    plan.handle_accepted(now, true);
                    plan.handle_lost(now);
                }
                Step::Wait(until) => now = until,
                Step::GiveUp => panic!("there is a server all the while"),
            }
        }
        assert!(dialled < 50, "{dialled}");
        assert!(matches!(plan.poll(now, 1.0), Step::Dial(_)));
        plan.handle_accepted(now, true);
        now += BACKOFF.longest;
        plan.handle_lost(now);
        assert!(matches!(plan.poll(now, 1.0), Step::Dial(_)), "at once, after one that lasted");
    }

    #[test]
    fn after_the_deadline_it_gives_up_but_every_server_was_tried() {
        let mut plan = plan("a,b,c", Some(Duration::ZERO));
        let mut now = Instant::now();
        for server in ["a", "b", "c"] {
            assert_eq!(plan.poll(now, 0.5), dial(server));
            plan.handle_failed(false);
            now += Duration::from_secs(9);
        }
        assert_eq!(plan.poll(now, 0.5), Step::GiveUp);

        plan.set_deadline(Some(Duration::from_millis(120)));
        let mut at = now;
        let mut dialled = 0;
        loop {
            match plan.poll(at, 1.0) {
                Step::Dial(_) => {
                    dialled += 1;
                    plan.handle_failed(false);
                }
                Step::Wait(until) => at = until,
                Step::GiveUp => break,
            }
        }
        assert_eq!((dialled, at - now), (6, Duration::from_millis(120)), "no wait goes past it");
    }

    #[test]
    fn a_round_of_hopeless_failures_ends_it_and_one_that_may_change_does_not() {
        let mut plan = plan("a,b", None);
        let now = Instant::now();
        plan.poll(now, 0.0);
        plan.handle_failed(true);
        plan.handle_failed(false);
        let Step::Wait(until) = plan.poll(now, 0.0) else { panic!("no wait") };
        assert_eq!(plan.poll(until, 0.0), dial("a"));
        plan.handle_failed(true);
        plan.handle_failed(true);
        assert_eq!(plan.poll(until, 0.0), Step::GiveUp);
        assert_eq!(Plan::new(Servers::default(), BACKOFF, None).poll(now, 0.0), Step::GiveUp);
    }

    #[test]
    fn a_new_list_is_tried_from_its_beginning_and_its_round_begins_anew() {
        let mut plan = plan("a,b", None);
        let now = Instant::now();
        plan.poll(now, 0.0);
        plan.handle_failed(false);
        plan.handle_failed(false);
        assert!(matches!(plan.poll(now, 0.0), Step::Wait(_)));
        plan.set_servers(Servers::from("c,a,d"), None);
        assert_eq!(plan.poll(now, 0.0), dial("c"));
        plan.set_servers(Servers::from("c,a,d"), Some("a"));
        plan.handle_lost(now);
        assert_eq!(plan.poll(now, 0.0), dial("d"));
    }

    proptest! {
        /// No spinning: whatever happens, between two attempts at one server that brought nothing there is a wait.
        #[test]
        fn no_server_is_tried_twice_without_a_wait_or_progress_between(
            outcomes in prop::collection::vec((0_u8..4, 0.0..1.0_f64), 1..200), count in 1_usize..5,
        ) {
            let servers: Vec<String> = (0..count).map(|at| format!("s{at}")).collect();
            let mut plan = Plan::new(Servers::from(servers), BACKOFF, None);
            let mut now = Instant::now();
            let mut since = Vec::new();
            for (outcome, jitter) in outcomes {
                match plan.poll(now, jitter) {
                    Step::Dial(server) => {
                        prop_assert!(!since.contains(&server), "{server} again after {since:?}");
                        since.push(server);
                        match outcome {
                            0 | 1 => plan.handle_failed(outcome == 1 && count > 1 && since.len() == 1),
                            2 => plan.handle_lost(now),
                            _ => {
                                plan.handle_progress();
                                plan.handle_lost(now);
                                since = since.split_off(since.len() - 1);
                            }
                        }
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now && until - now <= BACKOFF.longest);
                        now = until;
                        since.clear();
                    }
                    Step::GiveUp => {
                        prop_assert!(false, "one round has always one that is not hopeless");
                    }
                }
            }
        }
    }
}
