//! The task that owns an open log's state.
//!
//! It waits for one event - a command, an answer of a store, a deadline - applies it, and then runs the same cheap tail:
//! commit what can be committed, seal and send what is due, look after stores that are out ([`stores`]). Answers of stores
//! come out of `calls`, so nothing here runs in parallel.

mod stores;

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tlog_codec::{EncodedAggregation, SealRequest, Sealer};
use tlog_proto::{AggregationId, AggregationNumber, LogPosition, Timestamp};
use tlog_quorum::{MAX_IN_FLIGHT, Standing, StoreSet};
use tlog_store::{Members, StartRecord, StoreError, StoreIdentity};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::aggregator::{Aggregator, Batch};
use crate::commit::CommitTracker;
use crate::lane::{Lane, LaneStanding};
use crate::log::{CloseReason, Command, Durability};
use crate::metric;
use crate::recovery::Recovered;
use crate::repair::{Filled, Probe, RefillError, Refilled, shard_of};
use crate::settings::LogSettings;
use crate::status::{LaneState, LogStatus, StoreStatus};

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
    /// All start records that the opening found.
    starts: Arc<[StartRecord]>,
    /// Lowest number that the log keeps.
    first: AggregationNumber,
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
        mut settings: LogSettings,
        recovered: Recovered,
        durable: Option<LogPosition>,
        durability: watch::Sender<Durability>,
    ) -> Self {
        let now = Instant::now();
        settings.in_flight = settings.in_flight.min(MAX_IN_FLIGHT);
        let committed = recovered.committed;
        let first = recovered.survey.first();
        let quorums = set.quorums();
        let lanes = recovered
            .survey
            .views
            .iter()
            .zip(&recovered.started)
            .zip(&recovered.doubts)
            .map(|((view, started), doubts)| {
                let standing = match (view.standing, started) {
                    (Standing::Member, true) => LaneStanding::Active,
                    (Standing::Blank, _) => LaneStanding::Blank { retry_at: now },
                    _ => LaneStanding::Away { retry_at: now + settings.retry_after },
                };
                let mut lane = Lane::new(standing, now);
                match &view.answer {
                    Ok(state) => {
                        lane.missed = state.held.missing_in(first..=committed);
                        for range in doubts.wrong.iter().chain(doubts.unread.iter()) {
                            lane.missed.insert_range(range);
                        }
                    }
                    Err(error) => lane.error = Some(error.to_string()),
                }
                lane
            })
            .collect();
        let mut writer = Self {
            aggregator: Aggregator::new(settings.max_blocks, settings.max_batch_bytes, settings.max_age),
            tracker: CommitTracker::new(quorums.total(), write_quorum(&set), committed),
            start: recovered.start,
            starts: recovered.survey.starts().into(),
            first,
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
                Ok(Probe::Back { missed }) => self.handle_back(store, missed),
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

    /// Tells the stores what is committed, once nothing has been written for a moment.
    fn publish_due(&mut self, now: Instant) {
        let idle = self.in_flight.is_empty() && self.aggregator.is_empty();
        let closing = self.phase == Phase::Closing && idle;
        if self.phase == Phase::Publishing && !idle {
            self.phase = Phase::Closing; // more was appended meanwhile; it becomes durable first
        }
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
        let fillable = |lane: &Lane| !lane.missed.is_empty() && stores::takes_backfill(lane, &self.settings);
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
        let wiped = stores.iter().filter(|s| s.state == LaneState::Filling).count();
        let complete = stores.iter().filter(|s| s.state == LaneState::Active && s.missing == 0).count();
        LogStatus {
            vdisk: self.set.vdisk().clone(),
            epoch: self.start.epoch,
            committed: self.tracker.committed(),
            in_flight: self.in_flight.len(),
            waiting_blocks: self.aggregator.len(),
            // With everything filled in, any m; at the moment of an acknowledgement W - k, less what was lost since.
            losses_survived: complete
                .saturating_sub(self.set.quorums().data())
                .max(self.set.quorums().losses_at_acknowledgement().saturating_sub(wiped)),
            stores,
        }
    }
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
