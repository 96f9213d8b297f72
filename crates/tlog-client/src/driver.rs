//! The task that owns a client: the one place that reads, writes, connects again and changes the state.
//!
//! ```text
//!  first connect (client.rs) ---> online (driver/online.rs) --- lost ---> offline (here)
//!                                     ^                                       |
//!                                     +------------- accepted ----------------+
//!  from both: closed, or nothing more is to be hoped for ---> the end (Drop)
//! ```
//!
//! In each state it awaits one event, applies it, then runs the same tail: take in what was handed over, publish, and only
//! then tell those who wait. It never waits for anything else, so that whatever a server does or does not do, closing and
//! asking work at once.

mod online;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;

use tlog_proto::{Block, LogPosition, Sequence};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::dial::{Accepted, Dialer, Standing};
use crate::metrics::Metrics;
use crate::plan::{Plan, Step};
use crate::shared::{Ended, Handed, Shared, Ticket};
use crate::state::{Action, Command, Patience, State};
use crate::{ConnectError, EndCause, Ending, Event, LostCause, Servers, Stats, Unacknowledged};

/// A question to the task.
pub(crate) enum Request {
    Unflushed { reply: oneshot::Sender<Vec<Block>> },
}

/// Why a connection is no longer used.
enum Left {
    /// The next server's turn.
    Lost(LostCause),
    /// The end of the client.
    Ended(EndCause),
}

/// What goes on while there is no connection.
type Attempt = Pin<Box<dyn Future<Output = Option<Result<Accepted, ConnectError>>> + Send>>;

pub(crate) struct Driver {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    servers: watch::Receiver<Servers>,
    dialer: Dialer,
    plan: Plan,
    /// Some until the end.
    state: Option<State<Ticket>>,
    /// Where the log ended when the first server accepted, if it told.
    found: Option<LogPosition>,
    /// What that server said to hold of an earlier client instance of the same session.
    held_at_first: Option<Sequence>,
    /// What the last event brought, told by the tail.
    actions: Vec<Action<Ticket>>,
    /// Set by the tail: the connection is to be left.
    leave: Option<Left>,
    /// Who waits for the slave, in the order of the commands.
    slave_syncs: VecDeque<oneshot::Sender<()>>,
    /// Room for taking in, kept.
    taken: Vec<Handed>,
    /// The last failures of connecting, at most one for each server.
    failures: VecDeque<Arc<ConnectError>>,
    reconnects: u64,
    failed_reconnects: u64,
    cause: Option<EndCause>,
    metrics: Metrics,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
        dialer: Dialer,
        plan: Plan,
        accepted: &Accepted,
    ) -> Self {
        let options = &dialer.options;
        let patience = Patience {
            answer: options.answer_timeout,
            resend: options.resend_timeout,
            flush: options.flush_after,
        };
        let Accepted { first, last_flushed, end, .. } = *accepted;
        Self {
            servers: shared.servers.subscribe(),
            requests,
            state: Some(State::new(first, patience, Instant::now())),
            found: end,
            held_at_first: last_flushed,
            actions: Vec::new(),
            leave: None,
            slave_syncs: VecDeque::new(),
            taken: Vec::new(),
            failures: VecDeque::new(),
            reconnects: 0,
            failed_reconnects: 0,
            cause: None,
            metrics: Metrics::new(&dialer.vdisk),
            shared,
            dialer,
            plan,
        }
    }

    /// Runs until the client ends. Dropping tells everyone, so that they are told whatever happens to the task.
    pub(crate) async fn run(mut self, accepted: Accepted) {
        self.cause = Some(self.live(accepted).await);
    }

    async fn live(&mut self, mut accepted: Accepted) -> EndCause {
        // The first round is over; from now on the deadline is that of coming back.
        self.plan.set_deadline(self.dialer.options.reconnect_deadline);
        loop {
            let server = Arc::clone(&accepted.server);
            match self.converse(accepted).await {
                Left::Ended(cause) => return cause,
                Left::Lost(cause) => self.handle_lost(server, cause),
            }
            accepted = match self.come_back().await {
                Ok(accepted) => accepted,
                Err(cause) => return cause,
            };
            self.handle_back(&accepted);
        }
    }

    /// Tries one server after the other until one accepts.
    async fn come_back(&mut self) -> Result<Accepted, EndCause> {
        let shared = Arc::clone(&self.shared);
        let mut closed = pin!(shared.close.cancelled());
        let mut attempt: Option<Attempt> = None;
        loop {
            self.take_in();
            self.publish();
            self.tell();
            let going_on = match &mut attempt {
                Some(going_on) => going_on,
                None => match self.plan.poll(Instant::now(), jitter()) {
                    Step::Dial(server) => attempt.insert(self.dial(server)),
                    Step::Wait(until) => attempt.insert(Box::pin(async move {
                        sleep_until(until).await;
                        None
                    })),
                    Step::GiveUp => return Err(self.given_up()),
                },
            };
            tokio::select! {
                // None of these comes so often that it would hold up those below it; what ends or changes the attempt comes first.
                biased;
                () = &mut closed => return Err(EndCause::Closed),
                Some(request) = self.requests.recv() => self.handle_request(request),
                Ok(()) = self.servers.changed() => {
                    let servers = self.servers.borrow_and_update().clone();
                    self.plan.set_servers(servers, None);
                    self.failures.clear();
                    attempt = None;
                }
                came = going_on => {
                    attempt = None;
                    match came {
                        None => {}
                        Some(Ok(accepted)) => return Ok(accepted),
                        Some(Err(error)) => self.handle_failed(error)?,
                    }
                }
                () = shared.wake.notified() => {}
            }
        }
    }

    fn dial(&self, server: Arc<str>) -> Attempt {
        let (dialer, standing) = (self.dialer.clone(), self.standing());
        Box::pin(async move { Some(dialer.come_back(&server, standing).await) })
    }

    /// What a server is told about what it has to go on with.
    fn standing(&self) -> Standing {
        let (first, sent, durable) = match &self.state {
            Some(state) => {
                (state.first_unacknowledged(), state.ever_sent(), state.stats().durable_blocks > 0)
            }
            None => (Sequence(0), Sequence(0), false),
        };
        let held = self.held_at_first.map_or(first, Sequence::next);
        Standing { first, sent: sent.max(held), found: self.found, durable }
    }

    fn handle_lost(&mut self, server: Arc<str>, cause: LostCause) {
        let Some(state) = &mut self.state else { return };
        let freed_slots = state.handle_offline();
        self.shared.command_slots.add_permits(freed_slots);
        match cause {
            LostCause::Unlisted => self.plan.handle_left(Instant::now()),
            _ => self.plan.handle_lost(Instant::now()),
        }
        self.metrics.lost(&cause);
        self.shared.server.send_replace(None);
        self.failures.clear();
        let unflushed_blocks = state.stats().unflushed_blocks;
        self.forget_slave_waits();
        tracing::warn!(vdisk = %self.dialer.vdisk, %server, %cause, unflushed_blocks, "connection lost, trying the next server");
        self.notice(Event::Reconnecting { server, cause: Arc::new(cause) });
    }

    fn handle_failed(&mut self, error: ConnectError) -> Result<(), EndCause> {
        self.failed_reconnects += 1;
        let vdisk = &self.dialer.vdisk;
        let text = error.to_string();
        match self.failures.iter().any(|known| known.to_string() == text) {
            true => tracing::debug!(%vdisk, %error, "not reconnected"),
            false => tracing::warn!(%vdisk, %error, "not reconnected; trying on"),
        }
        let error = Arc::new(error);
        self.notice(Event::NotReconnected(Arc::clone(&error)));
        if let ConnectError::TakenOver { server, .. } = &*error {
            return Err(EndCause::TakenOver { server: server.clone() });
        }
        self.plan.handle_failed(matches!(*error, ConnectError::Gap { .. }));
        if self.failures.len() >= self.plan.servers().len() {
            self.failures.pop_front();
        }
        self.failures.push_back(error);
        Ok(())
    }

    fn given_up(&mut self) -> EndCause {
        let failures: Vec<_> = std::mem::take(&mut self.failures).into();
        match failures.first().map(|error| &**error) {
            Some(ConnectError::Gap { server, first_sequence, last_flushed, .. })
                if failures.iter().all(|error| matches!(**error, ConnectError::Gap { .. })) =>
            {
                let (server, expected, last_flushed) = (server.clone(), *first_sequence, *last_flushed);
                EndCause::Gap { server, expected, last_flushed }
            }
            _ => {
                let after = self.dialer.options.reconnect_deadline.unwrap_or_default();
                EndCause::GaveUp { after, failures }
            }
        }
    }

    /// Who does not wait for the slave any more is not the reason to ask the next server: its answer may be to close the connection.
    fn forget_slave_waits(&mut self) {
        let Some(state) = &mut self.state else { return };
        let gone = self.slave_syncs.iter().filter(|done| done.is_closed()).count();
        let forgotten = state.forget_slave_waits(gone);
        let mut left = forgotten;
        self.slave_syncs.retain(|done| {
            let forget = left > 0 && done.is_closed();
            left -= usize::from(forget);
            !forget
        });
        self.shared.slave_sync_slots.add_permits(forgotten);
    }

    fn handle_back(&mut self, accepted: &Accepted) {
        self.forget_slave_waits();
        let Some(state) = &mut self.state else { return };
        self.reconnects += 1;
        let unflushed_blocks = state.stats().unflushed_blocks;
        self.plan.handle_accepted(Instant::now(), unflushed_blocks == 0);
        let (server, first) = (Arc::clone(&accepted.server), accepted.first);
        tracing::info!(vdisk = %self.dialer.vdisk, %server, %first, unflushed_blocks, "reconnected");
        self.notice(Event::Reconnected { server, unflushed_blocks });
    }

    fn handle_request(&mut self, request: Request) {
        self.take_in();
        let Some(state) = &self.state else { return };
        match request {
            Request::Unflushed { reply } => _ = reply.send(state.unflushed()),
        }
    }

    /// Moves what was handed over into the state.
    fn take_in(&mut self) {
        std::mem::swap(&mut self.shared.intake().queue, &mut self.taken);
        self.absorb();
        if let (Some(state), true) = (&mut self.state, self.shared.is_room_wanted()) {
            state.make_room();
        }
    }

    fn absorb(&mut self) {
        let Some(state) = &mut self.state else { return };
        for handed in self.taken.drain(..) {
            match handed {
                Handed::Block { block, cost, ticket } => state.push(block, cost, ticket),
                Handed::ForceFlush(sequence) => state.command(Command::ForceFlush(sequence)),
                Handed::WaitSlaveSync(done) => {
                    self.slave_syncs.push_back(done);
                    state.command(Command::WaitSlaveSync);
                }
            }
        }
    }

    /// Shows the outside how far things are. Comes before anyone is told, so that who is told finds it so.
    fn publish(&mut self) {
        let Some(state) = &mut self.state else { return };
        let (reconnects, failed_reconnects) = (self.reconnects, self.failed_reconnects);
        let stats = Stats { reconnects, failed_reconnects, ..state.stats() };
        let released = state.take_released();
        let first_unacknowledged = state.first_unacknowledged();
        if self.metrics.publish(&stats) {
            self.shared.intake().published = stats;
        }
        if released > 0 {
            self.shared.room.add_permits(released);
        }
        self.shared.progress.send_if_modified(|progress| {
            let changed = progress.first_unacknowledged != first_unacknowledged;
            progress.first_unacknowledged = first_unacknowledged;
            changed
        });
    }

    /// Tells those who wait and those who watch. Nobody has to listen.
    fn tell(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Received(sequence) => self.notice(Event::Received(sequence)),
                Action::Durable { sequences, tickets } => {
                    self.plan.handle_progress();
                    if let Some(oldest) = tickets.first() {
                        self.metrics.durable_after(oldest.handed_over.elapsed());
                    }
                    for ticket in tickets {
                        let _ = ticket.done.send(Ok(()));
                    }
                    if self.is_watched() {
                        self.notice(Event::Durable(sequences.into_iter().collect()));
                    }
                }
                Action::Refused(sequence) => {
                    tracing::warn!(vdisk = %self.dialer.vdisk, %sequence, "block refused by the server, sending it again");
                    self.notice(Event::Refused(sequence));
                }
                Action::RefusedTooOften(sequence) => {
                    self.leave = Some(Left::Lost(LostCause::Refused(sequence)));
                }
                Action::Damaged(sequence) => self.leave = Some(Left::Ended(EndCause::Damaged(sequence))),
                Action::SlaveSynced => {
                    if let Some(done) = self.slave_syncs.pop_front() {
                        self.shared.slave_sync_slots.add_permits(1);
                        let _ = done.send(());
                    }
                }
                Action::FlushFailed => self.leave = Some(Left::Lost(LostCause::FlushFailed)),
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.shared.events.receiver_count() > 0
    }

    fn notice(&self, event: Event) {
        if self.is_watched() {
            let _ = self.shared.events.send(event);
        }
    }
}

impl Drop for Driver {
    /// The end, also where the runtime drops the task: everyone who waits gets an answer, and what is not durable can be
    /// asked for.
    fn drop(&mut self) {
        self.publish();
        self.tell();
        let cause = self.cause.take().unwrap_or(EndCause::RuntimeGone);
        let shared = self.shared.clone();
        // Under one lock: what is handed over before it is among the remains, after it nothing is taken.
        let mut intake = shared.intake();
        self.taken.append(&mut intake.queue);
        self.absorb();
        let Some(state) = self.state.take() else { return };
        let remains = state.end();
        let ending = Ending::new(cause, remains.unacknowledged);
        intake.ended = Some(Ended { ending: ending.clone(), unflushed: remains.blocks });
        drop(intake);

        shared.server.send_replace(None);
        shared.progress.send_modify(|progress| progress.ending = Some(ending.clone()));
        shared.room.close();
        shared.command_slots.close();
        shared.slave_sync_slots.close();
        for (sequence, ticket) in remains.tickets {
            let _ = ticket.done.send(Err(Unacknowledged { sequence, ending: ending.clone() }));
        }
        self.metrics.ended(ending.cause());
        let vdisk = self.dialer.vdisk.as_str();
        let (cause, unacknowledged) = (ending.cause(), ending.unacknowledged());
        match (cause, unacknowledged.is_empty()) {
            (EndCause::Closed, true) => tracing::debug!(vdisk, "client closed"),
            _ => tracing::warn!(vdisk, %cause, %unacknowledged, "client ended"),
        }
        let _ = shared.events.send(Event::Ended(ending));
    }
}

/// From 0 to 1. Where the system has no random number, clients come back in the same moment; that is all.
pub(crate) fn jitter() -> f64 {
    tlog_ambient::random_u64().unwrap_or_default() as f64 / u64::MAX as f64
}
