//! The task that owns an open log's state.
//!
//! It waits for one event - a command, an answer of a store, a deadline - applies it, and then runs the same cheap tail:
//! commit what can be committed, seal and send what is due, look after stores that are out. Answers of stores come out of
//! `calls`, so nothing here runs in parallel.
//!
//! ```text
//! store:  Active --error--> Away --retry--> Probing --same identity--> Active (what it missed is filled in)
//!            \                                 \--other identity, or none--> Blank
//!             \--answers with another identity, or none--------------------> Blank --> Refilling --> Entering --> Active
//! ```

use std::collections::VecDeque;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tlog_codec::{EncodedAggregation, SealRequest, Sealer};
use tlog_proto::{AggregationId, AggregationNumber, LogPosition, Timestamp};
use tlog_quorum::{Standing, StoreSet};
use tlog_store::{Members, NumberRanges, StartRecord, StoreError, StoreErrorKind, StoreIdentity};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::aggregator::{Aggregator, Batch};
use crate::commit::CommitTracker;
use crate::lane::{Lane, LaneStanding};
use crate::log::{CloseReason, Command, Durability};
use crate::metric;
use crate::recovery::{Recovered, opening_quorum};
use crate::repair::{Filled, Probe, RefillError, RefillOrder, Refilled, backfill, probe, refill, shard_of};
use crate::settings::LogSettings;
use crate::status::{LaneState, LogStatus, StoreStatus};

/// Numbers that one backfill takes on before the writer looks again.
const BACKFILL_NUMBERS: u64 = 64;

/// An aggregation that is sent and not committed.
struct InFlight {
    aggregation: EncodedAggregation,
    since: Instant,
    bytes: u64,
    /// Given back when it is durable, or the log closes.
    _permits: Vec<OwnedSemaphorePermit>,
}

/// What a store, or several, answered.
enum Answer {
    Appended {
        store: usize,
        number: AggregationNumber,
        result: Result<StoreIdentity, StoreError>,
    },
    Published {
        store: usize,
        result: Result<StoreIdentity, StoreError>,
    },
    Probed {
        store: usize,
        result: Result<Probe, StoreError>,
    },
    Backfilled {
        store: usize,
        filled: Filled,
    },
    Refilled {
        store: usize,
        result: Result<Refilled, RefillError>,
    },
    Entered {
        store: usize,
        refilled: Refilled,
        members: Members,
        results: Vec<Result<StoreIdentity, StoreError>>,
    },
}

/// Where the writer is in its life.
#[derive(PartialEq, Eq)]
enum Phase {
    Open,
    /// Flushing everything, then publishing, then the end.
    Closing,
    /// Everything is durable; waiting for the stores to hear what is committed.
    Publishing,
}

/// Invariants: `in_flight[i]` is aggregation `tracker.committed() + 1 + i`; `last_id` is the id of the newest of them, or of the
/// committed end. Lanes are in the order of the stores.
pub(crate) struct Writer {
    set: StoreSet,
    sealer: Sealer,
    settings: LogSettings,
    start: StartRecord,
    members: Members,
    aggregator: Aggregator<OwnedSemaphorePermit>,
    tracker: CommitTracker,
    in_flight: VecDeque<InFlight>,
    last_id: AggregationId,
    block_size: u32,
    lanes: Vec<Lane>,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    backfilling: bool,
    /// Before this no backfill begins.
    backfill_at: Instant,
    /// When the stores are to be told what is committed.
    publish_at: Option<Instant>,
    phase: Phase,
    closed: Option<CloseReason>,
    durability: watch::Sender<Durability>,
}

impl Writer {
    /// A writer for what recovery left. What was adopted is sent at once; `durable` is told when all of that is committed.
    pub(crate) fn new(
        set: StoreSet,
        sealer: Sealer,
        settings: LogSettings,
        recovered: Recovered,
        durable: Option<LogPosition>,
        durability: watch::Sender<Durability>,
    ) -> Self {
        let now = Instant::now();
        let committed = recovered.committed;
        let quorums = set.quorums();
        let lanes = recovered
            .survey
            .views
            .iter()
            .zip(&recovered.started)
            .map(|(view, started)| {
                let standing = match (view.standing, started) {
                    (Standing::Member, true) => LaneStanding::Active,
                    (Standing::Blank, _) => LaneStanding::Blank { retry_at: now },
                    _ => LaneStanding::Away { retry_at: now + settings.retry_after },
                };
                let mut lane = Lane::new(standing, now);
                match &view.answer {
                    Ok(state) => lane.missed = state.held.missing_in(recovered.survey.first()..=committed),
                    Err(error) => lane.error = Some(error.to_string()),
                }
                lane
            })
            .collect();
        let mut writer = Self {
            aggregator: Aggregator::new(settings.max_blocks, settings.max_batch_bytes, settings.max_age),
            tracker: CommitTracker::new(quorums.total(), write_quorum(&set), committed),
            start: recovered.start,
            members: recovered.members,
            in_flight: VecDeque::new(),
            last_id: recovered.last_id,
            block_size: recovered.last.map_or(0, |header| header.block_size),
            lanes,
            calls: FuturesUnordered::new(),
            backfilling: false,
            backfill_at: now,
            publish_at: None,
            phase: Phase::Open,
            closed: None,
            durability,
            set,
            sealer,
            settings,
        };
        for aggregation in recovered.adopted {
            writer.send(aggregation, 0, Vec::new(), now);
        }
        if writer.in_flight.is_empty() {
            writer.durability.send_modify(|state| state.durable = durable);
        }
        writer
    }

    /// Runs until the log closes, or every handle is dropped.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let reason = loop {
            self.tail(Instant::now());
            if let Some(reason) = self.closed.take() {
                break reason;
            }
            let wake = self.next_wake(Instant::now());
            tokio::select! {
                // Answers first: they free what commands wait for.
                biased;
                Some(answer) = self.calls.next(), if !self.calls.is_empty() => self.handle_answer(answer),
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => break CloseReason::Failed("the log was dropped without being closed".to_owned()),
                },
                () = sleep_until(wake), if wake.is_some() => {}
            }
        };
        let vdisk = self.set.vdisk();
        match &reason {
            CloseReason::Requested => {
                tracing::info!(%vdisk, committed = %self.tracker.committed(), "log closed")
            }
            reason => tracing::warn!(%vdisk, committed = %self.tracker.committed(), %reason, "log closed"),
        }
        metric::closed(vdisk, reason.kind());
        self.durability.send_modify(|state| state.closed = Some(reason));
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Append(block, permit) => self.aggregator.handle_block(Instant::now(), block, permit),
            Command::Flush => self.aggregator.handle_flush(),
            Command::Close => {
                self.aggregator.handle_flush();
                if self.phase == Phase::Open {
                    self.phase = Phase::Closing;
                }
            }
            // Who asked may be gone.
            Command::Status(answer) => drop(answer.send(self.status())),
        }
    }

    fn handle_answer(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Appended { store, number, result } => self.handle_appended(now, store, number, result),
            Answer::Published { store, result } => {
                self.answered(store);
                match result {
                    Ok(identity) => drop(self.check_identity(now, store, identity)),
                    Err(error) => self.handle_failure(now, store, error),
                }
            }
            Answer::Probed { store, result } => match result {
                Ok(Probe::Back { missed }) => self.handle_back(now, store, missed),
                Ok(Probe::Blank) => self.handle_blank(now, store),
                Err(error) => self.handle_failure(now, store, error),
            },
            Answer::Backfilled { store, filled } => self.handle_backfilled(now, store, filled),
            Answer::Refilled { store, result } => self.handle_refilled(now, store, result),
            Answer::Entered { store, refilled, members, results } => {
                self.handle_entered(now, store, refilled, members, results);
            }
        }
    }

    fn handle_appended(
        &mut self,
        now: Instant,
        store: usize,
        number: AggregationNumber,
        result: Result<StoreIdentity, StoreError>,
    ) {
        self.answered(store);
        match result {
            Ok(identity) => {
                let member = self.lanes.get(store).is_some_and(Lane::is_member);
                if member && self.check_identity(now, store, identity) {
                    self.tracker.handle_stored(store, number);
                    if let Some(lane) = self.lanes.get_mut(store) {
                        lane.hold(number);
                    }
                }
            }
            Err(error) => {
                if let Some(lane) = self.lanes.get_mut(store) {
                    lane.miss(number);
                }
                self.handle_failure(now, store, error);
            }
        }
    }

    /// Whether an answer came from the store that the log knows. If not, what that store had answered is forgotten.
    fn check_identity(&mut self, now: Instant, store: usize, identity: StoreIdentity) -> bool {
        let expected = self.members.identities.get(store).copied().flatten();
        if expected == Some(identity) {
            return true;
        }
        self.handle_blank(now, store);
        false
    }

    fn handle_failure(&mut self, now: Instant, store: usize, error: StoreError) {
        match error.kind {
            StoreErrorKind::Fenced { .. } => {
                self.closed = Some(CloseReason::Fenced);
                return;
            }
            StoreErrorKind::NoLog => {
                self.handle_blank(now, store);
                return;
            }
            _ => {}
        }
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        // Of several answers that fail together, the first takes the store out.
        if !matches!(lane.standing, LaneStanding::Active | LaneStanding::Probing) {
            return;
        }
        tracing::warn!(vdisk = %self.set.vdisk(), %error, "a store is out; what it misses is filled in when it is back");
        metric::store_failure(self.set.vdisk(), &error.address);
        lane.fail(now, error.to_string(), false, self.settings.retry_after, self.settings.retry_at_most);
        self.show_stores();
    }

    fn handle_back(&mut self, _now: Instant, store: usize, missed: NumberRanges) {
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        if lane.standing != LaneStanding::Probing {
            return; // it turned out to be another store meanwhile
        }
        tracing::info!(vdisk = %self.set.vdisk(), store, missed = missed.count(), "a store is back");
        lane.activate();
        lane.missed = missed;
        self.send_in_flight_to(store);
        self.show_stores();
    }

    /// A store turned out to be empty or another one: it counts for nothing until it is filled and entered.
    fn handle_blank(&mut self, now: Instant, store: usize) {
        #[cfg(test)]
        if crate::exploration::is_broken(crate::exploration::Rule::Identity) {
            return;
        }
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        if !lane.is_member() {
            return;
        }
        tracing::warn!(vdisk = %self.set.vdisk(), store, "a store came back empty or was replaced; it is filled before it counts");
        #[cfg(test)]
        let forget = !crate::exploration::is_broken(crate::exploration::Rule::Forget);
        #[cfg(not(test))]
        let forget = true;
        if forget {
            self.tracker.handle_forget(store);
        }
        lane.standing = LaneStanding::Blank { retry_at: now };
        lane.out_since.get_or_insert(now);
        lane.error = Some("it came back empty, or was replaced".to_owned());
        self.show_stores();
    }

    fn handle_backfilled(&mut self, now: Instant, store: usize, filled: Filled) {
        self.backfilling = false;
        // Without this, a backfill that gets nowhere would begin again at once.
        let stuck = filled.filled.is_empty();
        self.backfill_at = if stuck { now + self.settings.retry_at_most } else { now };
        if let Some(lane) = self.lanes.get_mut(store) {
            for range in filled.filled.iter() {
                lane.missed.remove_range(range);
            }
            // Nobody can fill these in; scrub and verify report them. Trying again for ever would hide it.
            for range in filled.unreadable.iter() {
                tracing::error!(vdisk = %self.set.vdisk(), store, from = %range.start(), to = %range.end(),
                    "committed aggregations cannot be rebuilt for a store that lacks them");
                lane.missed.remove_range(range);
            }
        }
        match filled.error {
            Some(error) => self.handle_failure(now, store, error),
            None => self.show_stores(),
        }
    }

    fn handle_refilled(&mut self, now: Instant, store: usize, result: Result<Refilled, RefillError>) {
        let error = match result {
            Ok(refilled) => return self.enter(store, refilled),
            Err(RefillError::Store(error)) if error.is_fenced() => {
                self.closed = Some(CloseReason::Fenced);
                return;
            }
            Err(RefillError::Store(error)) => error.to_string(),
            Err(RefillError::Source(why)) => why,
        };
        tracing::warn!(vdisk = %self.set.vdisk(), store, error, "a blank store could not be filled");
        self.fail_blank(now, store, error);
    }

    /// Tells all members that a filled store is one of them now. It counts once enough of them know.
    fn enter(&mut self, store: usize, refilled: Refilled) {
        let mut members = self.members.clone();
        members.change += 1;
        if let Some(identity) = members.identities.get_mut(store) {
            *identity = Some(refilled.identity);
        }
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.standing = LaneStanding::Entering;
        }
        let (set, start, asked) = (self.set.clone(), self.start, self.active());
        self.calls.push(Box::pin(async move {
            let results = set
                .on_all(|i, port| {
                    let ask = i == store || asked.get(i).copied().unwrap_or(false);
                    let (members, set) = (&members, &set);
                    async move {
                        if ask {
                            port.start(set.vdisk(), start, members).await
                        } else {
                            let source = std::io::Error::other("not asked: it is out");
                            Err(StoreError::new(port.address(), StoreErrorKind::Unavailable { source }))
                        }
                    }
                })
                .await;
            Answer::Entered { store, refilled, members, results }
        }));
    }

    fn handle_entered(
        &mut self,
        now: Instant,
        store: usize,
        refilled: Refilled,
        members: Members,
        results: Vec<Result<StoreIdentity, StoreError>>,
    ) {
        if results.iter().any(|result| result.as_ref().is_err_and(StoreError::is_fenced)) {
            self.closed = Some(CloseReason::Fenced);
            return;
        }
        let itself = matches!(results.get(store), Some(Ok(identity)) if *identity == refilled.identity);
        // Members that know, the newcomer not among them.
        let know = results
            .iter()
            .zip(&self.members.identities)
            .enumerate()
            .filter(|(i, (result, member))| {
                *i != store && matches!((result, member), (Ok(is), Some(was)) if is == was)
            })
            .count();
        if !itself || know < opening_quorum(&self.set) {
            let why = format!("only {know} stores could be told that it is filled");
            return self.fail_blank(now, store, why);
        }
        // A list with a higher count may have reached some stores already; the next one must be above it.
        self.members = members;
        let committed = self.tracker.committed();
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        lane.activate();
        lane.missed = NumberRanges::new();
        lane.missed.insert_range(refilled.up_to.next()..=committed);
        tracing::info!(vdisk = %self.set.vdisk(), store, identity = %refilled.identity, "a blank store is filled and counts again");
        self.send_in_flight_to(store);
        self.show_stores();
    }

    fn fail_blank(&mut self, now: Instant, store: usize, error: String) {
        // The list that was not accepted everywhere may be on some stores: never reuse its count.
        self.members.change += 1;
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.fail(now, error, true, self.settings.retry_after, self.settings.retry_at_most);
        }
        self.show_stores();
    }

    /// What follows every event.
    fn tail(&mut self, now: Instant) {
        self.commit(now);
        self.seal_due(now);
        self.look_after_stores(now);
        self.publish_due(now);
        self.check_end(now);
    }

    /// Moves the durable position over everything that W stores hold.
    fn commit(&mut self, now: Instant) {
        // A fenced or failed log acknowledges nothing more.
        while self.closed.is_none() {
            let Some(number) = self.tracker.poll_committed() else {
                break;
            };
            let Some(done) = self.in_flight.pop_front() else {
                break;
            };
            let header = &done.aggregation.header;
            let durable = LogPosition { generation: header.generation, sequence: header.last_sequence };
            let took = now.saturating_duration_since(done.since);
            let stored = done.aggregation.stored_bytes() as u64;
            metric::committed(self.set.vdisk(), header.block_count.into(), done.bytes, stored, took);
            tracing::debug!(vdisk = %self.set.vdisk(), %number, %durable, "committed");
            self.durability.send_modify(|state| state.durable = Some(durable));
            self.publish_at = Some(now + self.settings.publish_after);
        }
    }

    /// Seals and sends what is due, as long as not too much is in flight.
    fn seal_due(&mut self, now: Instant) {
        while self.closed.is_none() && self.in_flight.len() < self.settings.in_flight {
            let Some(batch) = self.aggregator.poll_batch(now) else {
                break;
            };
            if let Err(why) = self.seal(batch, now) {
                self.closed = Some(CloseReason::Failed(why));
            }
        }
    }

    fn seal(&mut self, batch: Batch<OwnedSemaphorePermit>, now: Instant) -> Result<(), String> {
        let Batch { generation, session, blocks, permits } = batch;
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|error| format!("no random numbers: {error}"))?;
        let request = SealRequest {
            number: AggregationNumber(self.tracker.committed().0 + self.in_flight.len() as u64 + 1),
            generation,
            session,
            sealed_at: wall_clock(),
            block_size: self.block_size,
            nonce,
            blocks: &blocks,
        };
        let sealed = self.sealer.seal(request).map_err(|error| error.to_string())?;
        let bytes = blocks.iter().map(|block| block.size() as u64).sum();
        self.send(sealed.link(self.last_id), bytes, permits, now);
        Ok(())
    }

    /// Takes the next aggregation into flight and sends its shards.
    fn send(
        &mut self,
        aggregation: EncodedAggregation,
        bytes: u64,
        permits: Vec<OwnedSemaphorePermit>,
        now: Instant,
    ) {
        let number = self.tracker.handle_sent();
        self.last_id = aggregation.id;
        self.block_size = aggregation.header.block_size;
        self.in_flight.push_back(InFlight { aggregation, since: now, bytes, _permits: permits });
        for store in 0..self.lanes.len() {
            self.append(store, number);
        }
    }

    /// Sends one shard of what is in flight, unless the store is out or far behind.
    fn append(&mut self, store: usize, number: AggregationNumber) {
        let committed = self.tracker.committed();
        let at = number.0.checked_sub(committed.0 + 1).and_then(|at| usize::try_from(at).ok());
        let in_flight = at.and_then(|at| self.in_flight.get(at));
        let (Some(lane), Some(port), Some(in_flight)) =
            (self.lanes.get_mut(store), self.set.stores().get(store).cloned(), in_flight)
        else {
            return;
        };
        // What a slow store has not answered keeps memory: past that bound it misses what comes, and is filled later.
        if !lane.is_active() || lane.outstanding >= self.settings.in_flight * 2 {
            lane.miss(number);
            return;
        }
        let epoch = self.start.epoch;
        let Some(shard) = shard_of(&in_flight.aggregation, store, epoch) else { return };
        lane.outstanding += 1;
        let set = self.set.clone();
        self.calls.push(Box::pin(async move {
            let append = port.append(set.vdisk(), number, shard, committed);
            let result = set.within_limit(&port, append).await;
            Answer::Appended { store, number, result }
        }));
    }

    /// Everything in flight that a store has not answered for, once more.
    fn send_in_flight_to(&mut self, store: usize) {
        let committed = self.tracker.committed().0;
        for number in (committed + 1..=committed + self.in_flight.len() as u64).map(AggregationNumber) {
            if !self.tracker.is_held(store, number) {
                self.append(store, number);
            }
        }
    }

    /// Asks stores that are away, fills blank ones, fills in what members miss.
    fn look_after_stores(&mut self, now: Instant) {
        let adopted = self.in_flight.iter().map(|in_flight| &in_flight.aggregation);
        let adopted = adopted.filter(|aggregation| aggregation.header.number < self.start.number);
        for store in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get_mut(store) else {
                continue;
            };
            match lane.standing {
                LaneStanding::Away { retry_at } if retry_at <= now => {
                    lane.standing = LaneStanding::Probing;
                    let call = probe(
                        self.set.clone(),
                        store,
                        self.start,
                        self.members.clone(),
                        self.tracker.committed(),
                    );
                    self.calls.push(Box::pin(async move { Answer::Probed { store, result: call.await } }));
                }
                LaneStanding::Blank { retry_at } if retry_at <= now => {
                    lane.standing = LaneStanding::Refilling;
                    let order = RefillOrder {
                        set: self.set.clone(),
                        store,
                        start: self.start,
                        members: self.members.clone(),
                        committed: self.tracker.committed(),
                        adopted: adopted.clone().cloned().collect(),
                        rate: self.settings.fill_bytes_per_second,
                    };
                    self.calls.push(Box::pin(async move {
                        Answer::Refilled { store, result: refill(order).await }
                    }));
                }
                _ => {}
            }
        }
        if !self.backfilling && self.backfill_at <= now {
            self.start_backfill();
        }
    }

    fn start_backfill(&mut self) {
        let committed = self.tracker.committed();
        for (store, lane) in self.lanes.iter().enumerate() {
            // A shard that is still on its way is not missing.
            let range = lane.missed.iter().next();
            let Some(range) = range.filter(|_| lane.is_active() && lane.outstanding == 0) else {
                continue;
            };
            let last =
                committed.0.min(range.end().0).min(range.start().0.saturating_add(BACKFILL_NUMBERS - 1));
            if last < range.start().0 {
                continue;
            }
            let mut numbers = NumberRanges::new();
            numbers.insert_range(*range.start()..=AggregationNumber(last));
            let (set, rate, epoch) =
                (self.set.clone(), self.settings.fill_bytes_per_second, self.start.epoch);
            self.backfilling = true;
            self.calls.push(Box::pin(async move {
                // A store fills only what it knows as committed.
                if let Some(port) = set.stores().get(store)
                    && let Err(error) =
                        set.within_limit(port, port.publish(set.vdisk(), epoch, committed)).await
                {
                    let filled = Filled {
                        filled: NumberRanges::new(),
                        unreadable: NumberRanges::new(),
                        error: Some(error),
                    };
                    return Answer::Backfilled { store, filled };
                }
                Answer::Backfilled { store, filled: backfill(set, store, numbers, rate).await }
            }));
            return;
        }
    }

    /// Tells the stores what is committed, once nothing has been written for a moment.
    fn publish_due(&mut self, now: Instant) {
        let idle = self.in_flight.is_empty() && self.aggregator.is_empty();
        let closing = self.phase == Phase::Closing && idle;
        if closing {
            self.phase = Phase::Publishing;
        } else if !(idle && self.publish_at.is_some_and(|at| at <= now)) {
            return;
        }
        self.publish_at = None;
        let (committed, epoch) = (self.tracker.committed(), self.start.epoch);
        for (store, lane) in self.lanes.iter_mut().enumerate() {
            let Some(port) = self.set.stores().get(store).cloned().filter(|_| lane.is_active()) else {
                continue;
            };
            lane.outstanding += 1;
            let set = self.set.clone();
            self.calls.push(Box::pin(async move {
                let result = set.within_limit(&port, port.publish(set.vdisk(), epoch, committed)).await;
                Answer::Published { store, result }
            }));
        }
    }

    /// Whether the log has come to its end, well or not.
    fn check_end(&mut self, now: Instant) {
        if self.closed.is_some() {
            return;
        }
        if let Some(oldest) = self.in_flight.front()
            && now.saturating_duration_since(oldest.since) >= self.settings.commit_timeout
        {
            let errors: Vec<&str> = self.lanes.iter().filter_map(|lane| lane.error.as_deref()).collect();
            self.closed = Some(CloseReason::Failed(format!(
                "aggregation {} is on {} stores and must be on {}: {}",
                oldest.aggregation.header.number,
                self.tracker.holders_of_next(),
                self.set.quorums().write(),
                if errors.is_empty() { "stores do not answer".to_owned() } else { errors.join("; ") },
            )));
            return;
        }
        if self.phase == Phase::Publishing && self.lanes.iter().all(|lane| lane.outstanding == 0) {
            self.closed = Some(CloseReason::Requested);
        }
    }

    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let may_send = self.in_flight.len() < self.settings.in_flight;
        let age = self.aggregator.deadline().filter(|_| may_send);
        let timeout = self.in_flight.front().map(|oldest| oldest.since + self.settings.commit_timeout);
        let retry = self.lanes.iter().filter_map(Lane::retry_at).min();
        let publish = self.publish_at.filter(|_| self.in_flight.is_empty() && self.aggregator.is_empty());
        let fillable = |lane: &Lane| !lane.missed.is_empty() && takes_backfill(lane, &self.settings);
        let backfill = (!self.backfilling && self.lanes.iter().any(fillable))
            .then_some(self.backfill_at)
            .filter(|at| *at > now);
        [age, timeout, retry, publish, backfill].into_iter().flatten().min()
    }

    fn answered(&mut self, store: usize) {
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.outstanding = lane.outstanding.saturating_sub(1);
        }
    }

    fn active(&self) -> Vec<bool> {
        self.lanes.iter().map(Lane::is_active).collect()
    }

    fn show_stores(&self) {
        let active = self.lanes.iter().filter(|lane| lane.is_active()).count();
        let missed = self.lanes.iter().map(|lane| lane.missed.count()).sum();
        metric::stores_active(self.set.vdisk(), active, missed);
    }

    fn status(&self) -> LogStatus {
        let now = Instant::now();
        let stores = self.lanes.iter().zip(self.set.stores()).map(|(lane, port)| StoreStatus {
            address: port.address().to_owned(),
            state: match lane.standing {
                LaneStanding::Active => LaneState::Active,
                LaneStanding::Away { .. } | LaneStanding::Probing => LaneState::Away,
                _ => LaneState::Filling,
            },
            out_for: lane.out_since.map(|since| now.saturating_duration_since(since)),
            error: lane.error.clone(),
            missing: lane.missed.count(),
        });
        let stores: Vec<StoreStatus> = stores.collect();
        let complete = stores.iter().filter(|s| s.state == LaneState::Active && s.missing == 0).count();
        LogStatus {
            vdisk: self.set.vdisk().clone(),
            epoch: self.start.epoch,
            committed: self.tracker.committed(),
            in_flight: self.in_flight.len(),
            waiting_blocks: self.aggregator.len(),
            // With everything filled in, any m; at the moment of an acknowledgement at least W - k.
            losses_survived: complete
                .saturating_sub(self.set.quorums().data())
                .max(self.set.quorums().losses_at_acknowledgement().min(complete)),
            stores,
        }
    }
}

fn takes_backfill(lane: &Lane, settings: &LogSettings) -> bool {
    lane.is_active() && lane.outstanding < settings.in_flight.max(2)
}

fn write_quorum(set: &StoreSet) -> usize {
    #[cfg(test)]
    return crate::exploration::broken_write_quorum(set.quorums());
    #[cfg(not(test))]
    set.quorums().write()
}

fn wall_clock() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
}

async fn sleep_until(wake: Option<Instant>) {
    if let Some(wake) = wake {
        tokio::time::sleep_until(wake).await;
    }
}
