//! The task that owns one vdisk.
//!
//! ```text
//!  opening -> serving -> closing (append what is ordered, flush, close the log) -> gone
//!                 \----> failed  (the log closed by itself: FlushFailed)        -> gone
//! ```
//!
//! It awaits one event, hands it to the [`Session`], and carries out what that says. Nothing it awaits holds up the other
//! events: appending, finding, the slave and closing are futures in slots.

mod ending;
mod greeting;
mod slave;

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tlog_proto::{Block, BlockStatus, HandshakeResponse, HandshakeStatus, LogPosition, Response, VdiskId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::budget::{Budget, Permit};
use crate::live::{Live, LiveEvent, Slot, from_live, wait_for};
use crate::outbox::{Answer, Ended, Reason};
use crate::port::{BlockDigest, CloseReason, Closed, Durability, OpenError, OrderedBlock, VdiskLog};
use crate::registry::{Hello, Incoming, Registration, Verdict, lock};
use crate::session::{Action, ConnectionId, Note, Session, cost};
use crate::status::VdiskReport;
use crate::window::WindowLimits;

/// Opens a vdisk's log, serves connections until nobody needs it any more or it fails, and closes it.
pub(crate) async fn run(mut registration: Registration) {
    let shared = Arc::clone(&registration.shared);
    let served = tokio::select! {
        biased;
        served = serve(&mut registration) => served,
        () = shared.kill.cancelled() => {
            let status = lock(&registration.status);
            Some(VdiskReport {
                vdisk: registration.id.clone(),
                durable: status.durable,
                ordered: status.ordered,
                error: Some("the time for shutting down ran out".to_owned()),
            })
        }
    };
    if let Some(report) = served.filter(|_| registration.stop.is_cancelled()) {
        match &report.error {
            None => info!(vdisk = %report.vdisk, durable = ?report.durable, "closed, everything is durable"),
            Some(error) => error!(
                vdisk = %report.vdisk, durable = ?report.durable, ordered = ?report.ordered, error,
                "closed, not everything is durable; clients send it again"
            ),
        }
        registration.report.send_replace(Some(report.clone()));
        if shared.stop.is_cancelled() {
            shared.report(report);
        }
    }
}

/// None where the log could not be opened.
async fn serve(registration: &mut Registration) -> Option<VdiskReport> {
    let shared = Arc::clone(&registration.shared);
    match shared.storage.open(&registration.id).await {
        Ok(log) => Some(Vdisk::new(registration, log).run().await),
        Err(error) => {
            let answer = match &error {
                OpenError::UnknownVdisk(_) => HandshakeResponse::new(HandshakeStatus::InvalidVdiskId),
                OpenError::Failed(_) => HandshakeResponse::unavailable(),
            };
            // An unknown vdisk is the client's mistake, and the connection says so.
            if let OpenError::Failed(_) = error {
                error!(vdisk = %registration.id, %error, "cannot open the log");
                metrics::counter!("tlog_server_logs_failed_total", "reason" => "open").increment(1);
                shared.set_last_error(&registration.status, error.to_string());
            }
            registration.hellos.close();
            while let Ok(hello) = registration.hellos.try_recv() {
                let _ = hello.verdict.send(Verdict::Refused(answer.clone()));
            }
            None
        }
    }
}

struct Vdisk<'a> {
    registration: &'a mut Registration,
    id: VdiskId,
    log: Arc<dyn VdiskLog>,
    durability: watch::Receiver<Durability>,
    session: Session<Permit>,
    budget: Arc<Budget>,
    pressure: [watch::Receiver<()>; 2],
    /// Whether the log was opened just now, so that nobody can have taken it over.
    fresh: bool,
    /// Connections that wait until the log is known to be ours still; and those that wait for the next time it is asked.
    confirming: Slot<Result<bool, Closed>>,
    being_confirmed: Vec<Hello>,
    unconfirmed: Vec<Hello>,
    /// Connections whose handshake has not been answered.
    greeted: HashMap<ConnectionId, Hello>,
    live: Option<Live>,
    answers: Vec<Answer>,
    /// What the log is still to be told, in order.
    steps: VecDeque<Step>,
    /// Something was appended, or will be, after the last flush.
    dirty: bool,
    /// Some of it still holds what blocks of other vdisks need in order to wait.
    holds_window: bool,
    undurable: VecDeque<Undurable>,
    unflushed_bytes: usize,
    appending: Slot<Result<(), Closed>>,
    finding: Slot<Result<Option<BlockDigest>, Closed>>,
    closing: Closing,
    idle_since: Option<Instant>,
}

enum Step {
    /// Blocks that follow each other.
    Append(Vec<OrderedBlock>),
    Flush,
}

/// A block on its way to being durable; holds its memory until then.
struct Undurable {
    position: LogPosition,
    bytes: usize,
    since: Instant,
    _permit: Permit,
}

enum Closing {
    No,
    /// As soon as the log has been told everything.
    Soon,
    Now(Pin<Box<dyn Future<Output = Result<(), Closed>> + Send>>),
}

impl<'a> Vdisk<'a> {
    fn new(registration: &'a mut Registration, log: Arc<dyn VdiskLog>) -> Self {
        let settings = &registration.shared.settings;
        let limits = WindowLimits { span: settings.max_window_span, bytes: settings.max_window_bytes };
        let budget = Arc::new(Budget::new(settings.max_unflushed_bytes));
        let pressure = [budget.pressure(), registration.shared.unflushed.pressure()];
        let end = log.end();
        let session = Session::new(end, limits);
        info!(vdisk = %registration.id, generation = %end.generation, last = ?end.last, "log opened");
        Self {
            id: registration.id.clone(),
            durability: log.durability(),
            session: if log.keeps_generations() { session } else { session.without_generations() },
            log,
            budget,
            pressure,
            registration,
            fresh: true,
            confirming: None,
            being_confirmed: Vec::new(),
            unconfirmed: Vec::new(),
            greeted: HashMap::new(),
            live: None,
            answers: Vec::new(),
            steps: VecDeque::new(),
            dirty: false,
            holds_window: false,
            undurable: VecDeque::new(),
            unflushed_bytes: 0,
            appending: None,
            finding: None,
            closing: Closing::No,
            idle_since: None,
        }
    }

    async fn run(mut self) -> VdiskReport {
        let shared = Arc::clone(&self.registration.shared);
        let stop = self.registration.stop.clone();
        let mut stopping = false;
        // The log's durability cannot change any more.
        let mut said_all = false;
        loop {
            self.settle();
            self.close_when_done(stopping);
            self.publish();
            let serving = matches!(self.closing, Closing::No);
            let idle_at = self.idle_since.map(|since| since + shared.settings.vdisk_idle);
            let [own_pressure, common_pressure] = &mut self.pressure;
            tokio::select! {
                biased;
                changed = self.durability.changed(), if !said_all => {
                    said_all = changed.is_err();
                    let Durability { durable, closed } = self.durability.borrow_and_update().clone();
                    let asked = matches!(self.closing, Closing::Now(_));
                    match closed {
                        Some(reason) if !(asked && reason == CloseReason::Requested) => {
                            return self.fail(reason).await;
                        }
                        None if said_all && !asked => {
                            let gone = "it went away without saying why".to_owned();
                            return self.fail(CloseReason::Failed(gone)).await;
                        }
                        _ => self.handle_durable(durable),
                    }
                }
                appended = wait_for(&mut self.appending) => {
                    if let Err(Closed(reason)) = appended {
                        return self.fail(reason).await;
                    }
                }
                closed = closed(&mut self.closing) => return self.closed(closed),
                found = wait_for(&mut self.finding) => match found {
                    Ok(found) => self.session.handle_found(found),
                    Err(Closed(reason)) => return self.fail(reason).await,
                },
                () = stop.cancelled(), if !stopping => stopping = true,
                hello = self.registration.hellos.recv(), if serving && !stopping => {
                    if let Some(hello) = hello {
                        self.handle_hello(hello);
                    }
                }
                confirmed = wait_for(&mut self.confirming) => match confirmed {
                    Ok(certain) => self.greet_confirmed(certain),
                    // Those who wait are not answered, and come to the task that opens the log next.
                    Err(Closed(reason)) => return self.fail(reason).await,
                },
                // The budgets outlive this task, so these never fail.
                _ = own_pressure.changed() => {}
                _ = common_pressure.changed() => {}
                event = from_live(&mut self.live, self.session.is_comparing()) => match event {
                    LiveEvent::Slave(synced) => self.handle_slave(synced),
                    LiveEvent::Arrived(batch) => self.handle_arrived(batch, stopping),
                },
                () = at(idle_at), if serving => {
                    debug!(vdisk = %self.id, "idle, closing the log");
                    self.closing = Closing::Soon;
                }
            }
        }
    }

    fn handle_arrived(&mut self, batch: Option<Vec<Incoming>>, stopping: bool) {
        let Some(live) = &mut self.live else { return };
        match batch {
            Some(batch) => live.arrived.extend(batch),
            None if stopping => live.at_end = true,
            None => {
                let id = live.id;
                self.live = None;
                self.finding = None;
                self.session.handle_gone(id);
            }
        }
    }

    fn handle_durable(&mut self, durable: Option<LogPosition>) {
        let Some(durable) = durable else { return };
        let mut newest = None;
        while let Some(front) = self.undurable.pop_front_if(|front| front.position <= durable) {
            self.unflushed_bytes = self.unflushed_bytes.saturating_sub(front.bytes);
            newest = Some(front.since);
        }
        if let Some(since) = newest {
            let metrics = &self.registration.shared.metrics;
            metrics.durable_seconds.record(since.elapsed().as_secs_f64());
        }
        self.session.handle_durable(durable);
    }

    /// Looks at what has arrived, as far as it may, and carries out what is to be done.
    fn settle(&mut self) {
        self.act();
        while !self.session.is_comparing()
            && let Some(incoming) = self.live.as_mut().and_then(|live| live.arrived.pop_front())
        {
            match incoming {
                Incoming::Block(block, permit) => self.handle_block(block, permit),
                Incoming::ForceFlush(sequence) => self.session.handle_force_flush(sequence),
                Incoming::WaitSlaveSync => self.session.handle_wait_slave_sync(),
            }
            self.act();
        }
        // Somebody waits for room, and what sits in a log that is not asked to flush gives none.
        let short = || self.budget.is_short() || self.registration.shared.unflushed.is_short();
        if self.dirty && (self.holds_window || short()) {
            self.flush();
        }
        self.append();
        if let Some(live) = &self.live {
            live.hello.outbox.push_all(&self.answers);
        }
        self.answers.clear();
    }

    fn handle_block(&mut self, mut block: Block, permit: Permit) {
        if !self.session.would_wait(block.sequence) {
            return self.session.handle_block(block, permit);
        }
        // What waits must not hold what the block that it waits for needs, nor the memory of those that came with it.
        match self.registration.shared.windows.try_take(cost(&block)) {
            Some(bytes) => {
                block.data = Bytes::copy_from_slice(&block.data);
                self.session.handle_block(block, Permit::window(bytes));
            }
            None => self.session.handle_block_without_room(block.sequence),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Received(sequence) => self.answers.push(Answer::Received(sequence)),
                Action::Answer(response) => self.answer(response),
                Action::Append(block, permit) => self.ordered(block, permit),
                Action::Flush => self.flush(),
                Action::Accept { connection, last_flushed, end } => {
                    if let Some(hello) = self.greeted.remove(&connection) {
                        self.accept(hello, last_flushed, end);
                    }
                }
                Action::Refuse { connection, why, last_flushed } => {
                    if let Some(hello) = self.greeted.remove(&connection) {
                        self.refuse(hello, why, last_flushed);
                    }
                }
                Action::Replace(connection) => self.replace(connection),
                Action::Find(position) => {
                    let log = Arc::clone(&self.log);
                    self.finding = Some(Box::pin(async move { log.find(position).await }));
                }
                Action::WaitSlave(position) => self.wait_for_slave(position),
                Action::Note(note) => self.note(note),
            }
        }
    }

    fn answer(&mut self, response: Response) {
        if response.status == BlockStatus::FlushOk {
            let metrics = &self.registration.shared.metrics;
            metrics.blocks_flushed.increment(response.sequences.len() as u64);
            if let Some(Answer::Told(last)) = self.answers.last_mut()
                && last.status == BlockStatus::FlushOk
            {
                return last.sequences.extend(response.sequences);
            }
        }
        self.answers.push(Answer::Told(response));
    }

    fn ordered(&mut self, block: OrderedBlock, permit: Permit) {
        let bytes = cost(&block.block);
        let permit = if permit.is_of_window() { self.leave_window(bytes).unwrap_or(permit) } else { permit };
        self.holds_window |= permit.is_of_window();
        let position = block.position();
        self.unflushed_bytes += bytes;
        self.undurable.push_back(Undurable { position, bytes, since: Instant::now(), _permit: permit });
        self.dirty = true;
        if let Some(Step::Append(blocks)) = self.steps.back_mut() {
            return blocks.push(block);
        }
        // Those that came with it follow it, most likely.
        let more = self.live.as_ref().map_or(0, |live| live.arrived.len());
        let mut blocks = Vec::with_capacity(1 + more);
        blocks.push(block);
        self.steps.push_back(Step::Append(blocks));
    }

    /// A block that has waited takes from where the others do, if there is room; else it stays counted as waiting.
    fn leave_window(&self, bytes: usize) -> Option<Permit> {
        let own = self.budget.try_take(bytes)?;
        Some(Permit::unflushed(own, self.registration.shared.unflushed.try_take(bytes)?))
    }

    fn flush(&mut self) {
        self.steps.push_back(Step::Flush);
        self.dirty = false;
        self.holds_window = false;
        if self.appending.is_some() {
            self.log.flush(); // an append that waits for room gets it sooner
        }
    }

    fn append(&mut self) {
        if self.appending.is_none() && !self.steps.is_empty() {
            let (log, steps) = (Arc::clone(&self.log), std::mem::take(&mut self.steps));
            self.appending = Some(Box::pin(async move {
                for step in steps {
                    match step {
                        Step::Append(blocks) => log.append(blocks).await?,
                        Step::Flush => log.flush(),
                    }
                }
                Ok(())
            }));
        }
    }

    fn replace(&mut self, connection: ConnectionId) {
        self.finding = None;
        if let Some(hello) = self.greeted.remove(&connection) {
            let _ = hello.verdict.send(Verdict::Replaced);
        }
        if let Some(live) = self.live.take_if(|live| live.id == connection) {
            info!(vdisk = %self.id, peer = %live.hello.peer, "closing this connection: another one has taken over");
            live.hello.outbox.end(Ended::Aborted(Reason::Replaced));
        }
    }

    fn note(&mut self, note: Note) {
        let peer = self.live.as_ref().map(|live| live.hello.peer);
        match note {
            Note::Duplicate => metrics::counter!("tlog_server_duplicate_blocks_total").increment(1),
            Note::NewGeneration { position, before } => {
                metrics::counter!("tlog_server_generations_total").increment(1);
                info!(vdisk = %self.id, ?peer, %position, ?before, "a new generation begins");
            }
            Note::NotHeld { sequence, why } => {
                let reason = why.name();
                metrics::counter!("tlog_server_blocks_refused_total", "reason" => reason).increment(1);
                warn!(vdisk = %self.id, ?peer, %sequence, reason, "block refused, the client is to send it again");
            }
        }
    }

    /// Begins to close where nothing more can come, and closes where the log has been told everything.
    fn close_when_done(&mut self, stopping: bool) {
        let nothing_comes = self
            .live
            .as_ref()
            .is_none_or(|live| live.at_end && live.arrived.is_empty() && !self.session.is_comparing());
        if stopping && nothing_comes && matches!(self.closing, Closing::No) {
            self.closing = Closing::Soon;
        }
        if matches!(self.closing, Closing::Soon) && self.appending.is_none() && self.steps.is_empty() {
            let log = Arc::clone(&self.log);
            self.closing = Closing::Now(Box::pin(async move { log.close().await }));
        }
        let greeting =
            !(self.greeted.is_empty() && self.unconfirmed.is_empty() && self.being_confirmed.is_empty());
        let in_use = self.live.is_some() || greeting || !self.undurable.is_empty();
        self.idle_since = if in_use { None } else { self.idle_since.or_else(|| Some(Instant::now())) };
    }

    fn publish(&self) {
        let shared = &self.registration.shared;
        shared.metrics.unflushed_bytes.set(shared.unflushed.taken() as f64);
        shared.metrics.window_bytes.set(shared.windows.taken() as f64);
        let (window_blocks, window_bytes) = self.session.waiting();
        let mut status = lock(&self.registration.status);
        status.peer = self.live.as_ref().map(|live| live.hello.peer);
        status.received = self.session.received();
        status.ordered = self.session.ordered();
        status.durable = self.session.durable();
        status.unflushed_bytes = self.unflushed_bytes;
        status.window_blocks = window_blocks;
        status.window_bytes = window_bytes;
    }
}

async fn closed(closing: &mut Closing) -> Result<(), Closed> {
    match closing {
        Closing::Now(closed) => closed.await,
        Closing::No | Closing::Soon => pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
