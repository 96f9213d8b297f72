//! The task that owns an open log's state.
//!
//! It waits for one event - a command, an answer of a store, a deadline - applies it, and then runs the same cheap tail:
//! commit what can be committed, seal and send what is due, look after stores that are out ([`stores`]). Answers of stores
//! come out of `calls`, so nothing here runs in parallel.

mod extra;
mod pruning;
mod stores;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, Finding, Header, Kind, SealRequest, Sealer, TimeReaches};
use tlog_proto::{AggregationId, AggregationNumber, LogPosition, SessionId, Timestamp};
use tlog_quorum::{MAX_IN_FLIGHT, Pacer, Standing, StoreSet};
use tlog_store::{LogState, Members, NumberRanges, StartRecord, StoreError, StoreIdentity};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::aggregator::{Aggregator, Batch};
use crate::commit::CommitTracker;
use crate::extra::{Extra, StoredAggregation, ToldExtra};
use crate::lane::{Lane, LaneStanding};
use crate::log::{CloseReason, Command, Durability, PositionedBlock, cost};
use crate::metric;
use crate::recovery::Recovered;
use crate::repair::{Claims, Filled, KeptFrom, Probe, RefillError, Refilled, shard_of};
use crate::settings::LogSettings;
use crate::status::{LaneState, LogStatus, StoreStatus, losses_survived};

/// Bytes for everything in an aggregation but its payloads, generously, for bounds of memory.
const HEADS_OF_ONE: u64 = 64 << 10;

/// Blocks that are taken before stores are looked after again, at most.
const BLOCKS_TOGETHER: usize = 256;

/// Answers of stores that are taken before that, at most.
const ANSWERS_TOGETHER: usize = 32;

/// An aggregation that is sent and not committed.
struct InFlight {
    aggregation: EncodedAggregation,
    since: Instant,
    bytes: u64,
    /// Given back when it is durable, or the log closes.
    _permits: Vec<OwnedSemaphorePermit>,
    /// Told when it is durable, where somebody waits for this one.
    told: Option<ToldExtra>,
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
    /// It had been silent for a while, and was asked what it has; `committed` was so then.
    Checked {
        store: usize,
        committed: AggregationNumber,
        result: Result<LogState, StoreError>,
    },
    Probed {
        store: usize,
        result: Result<Probe, StoreError>,
    },
    Backfilled {
        store: usize,
        filled: Filled,
    },
    Pruned {
        store: usize,
        first: AggregationNumber,
        result: Result<StoreIdentity, StoreError>,
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
    /// So many members must be in reach, and must be told of a new one. Those that an opening needs; after an opening that replaces
    /// lost stores all that are left, until there are as many again.
    quorum: usize,
    /// So many members must take part before anything is served.
    ready_with: usize,
    /// Told once what was adopted is durable and so many take part; none afterwards.
    ready: Option<oneshot::Sender<()>>,
    /// All start records that the opening found.
    starts: Arc<[StartRecord]>,
    /// Lowest number that the log keeps.
    first: AggregationNumber,
    /// The same, for those who fill meanwhile.
    kept_from: KeptFrom,
    /// Those who wait until the stores that answer have removed what is below a number.
    prunes: Vec<pruning::Waiting>,
    members: Members,
    aggregator: Aggregator<OwnedSemaphorePermit>,
    /// What has no writes and is to be stored.
    extras: VecDeque<Extra>,
    /// It is the turn of one of these, so that a client which never pauses does not hold them up.
    extra_next: bool,
    tracker: CommitTracker,
    commits: metric::Commits,
    in_flight: VecDeque<InFlight>,
    last_id: AggregationId,
    /// The last write that was sealed, and who sent it; none in an empty log.
    end: Option<(LogPosition, SessionId)>,
    /// The newest record, or an aggregation that knows it.
    last_record: Option<AggregationNumber>,
    reaches: TimeReaches,
    block_size: u32,
    lanes: Vec<Lane>,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    pacer: Arc<Pacer>,
    claims: Claims,
    /// Whether something is on its way to the stores, for those who fill meanwhile.
    busy: Arc<AtomicBool>,
    /// Shards and bytes that were sent to one store, for their average.
    sent: (u64, u64),
    /// When stores that have been silent are asked whether they are still there.
    check_at: Instant,
    /// When the stores are to be told what is committed.
    publish_at: Option<Instant>,
    phase: Phase,
    /// When the stores that have not heard what is committed are waited for no more; set in the last phase.
    close_at: Option<Instant>,
    closed: Option<CloseReason>,
    durability: watch::Sender<Durability>,
}

impl Writer {
    /// A writer for what recovery left. What was adopted is sent at once; `ready` is told when all of that is committed, and
    /// `durable` with it.
    pub(crate) fn new(
        set: StoreSet,
        sealer: Sealer,
        mut settings: LogSettings,
        recovered: Recovered,
        durable: Option<LogPosition>,
        durability: watch::Sender<Durability>,
        ready: oneshot::Sender<()>,
    ) -> Self {
        let (now, wall) = (Instant::now(), wall_clock());
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
                let mut lane = Lane::new(standing, now, wall);
                match &view.answer {
                    Ok(_) if view.standing == Standing::Blank => {
                        lane.error =
                            Some("it was wiped or replaced, or was not there when the log began".to_owned());
                    }
                    Ok(state) => {
                        lane.known = true;
                        lane.first = state.first;
                        lane.missed = state.held.missing_in(first..=committed);
                        for range in doubts.wrong.iter().chain(doubts.unread.iter()) {
                            lane.missed.insert_range(range);
                        }
                    }
                    Err(error) => lane.error = Some(error.to_string()),
                }
                lane.forget_below(first); // what was ruled out there matters no more
                lane
            })
            .collect();
        let mut writer = Self {
            extras: VecDeque::new(),
            extra_next: false,
            prunes: Vec::new(),
            aggregator: Aggregator::new(settings.max_blocks, settings.max_batch_bytes, settings.max_age),
            commits: metric::Commits::new(set.vdisk()),
            tracker: CommitTracker::new(quorums.total(), write_quorum(&set), committed),
            start: recovered.start,
            starts: recovered.survey.starts().into(),
            first,
            kept_from: KeptFrom::new(first),
            members: recovered.members,
            in_flight: VecDeque::new(),
            last_id: recovered.last_id,
            end: durable.map(|position| {
                (position, recovered.last.map_or(SessionId::default(), |header| header.session))
            }),
            last_record: recovered.last.as_ref().and_then(newest_record),
            reaches: TimeReaches::default(),
            block_size: recovered.last.map_or(0, |header| header.block_size),
            lanes,
            calls: FuturesUnordered::new(),
            pacer: Arc::new(Pacer::new(settings.fill_bytes_per_second)),
            claims: Claims::default(),
            busy: Arc::default(),
            sent: (0, 0),
            check_at: now + spread(settings.check_stores_every, set.vdisk().as_str()),
            quorum: recovered.quorum,
            ready_with: recovered.ready_with,
            ready: Some(ready),
            publish_at: None,
            phase: Phase::Open,
            close_at: None,
            closed: None,
            durability,
            set,
            sealer,
            settings,
        };
        for aggregation in recovered.adopted {
            writer.send(aggregation, 0, Vec::new(), now);
        }
        if writer.members.change > 0 {
            writer.confirm_members();
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
                answers = next_answers(&mut self.calls), if !self.calls.is_empty() => {
                    answers.into_iter().for_each(|answer| self.handle_answer(answer));
                }
                command = commands.recv() => match command {
                    Some(command) => self.handle_commands(command, &mut commands),
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

    /// Blocks that were appended together are taken together: what follows an event costs more than they do.
    fn handle_commands(&mut self, mut command: Command, more: &mut mpsc::Receiver<Command>) {
        let now = Instant::now();
        let mut taken = 0;
        while taken < BLOCKS_TOGETHER {
            let Command::Append(blocks, permit) = command else {
                return self.handle_command(command);
            };
            taken += blocks.len();
            self.handle_blocks(now, blocks, permit);
            command = match more.try_recv() {
                Ok(next @ Command::Append(..)) => next,
                Ok(other) => {
                    self.tail(now);
                    return self.handle_command(other);
                }
                Err(_) => return,
            };
        }
        self.handle_command(command);
    }

    /// Each block takes its part of the room with it; one that is larger than all the room takes what there is.
    fn handle_blocks(&mut self, now: Instant, blocks: Vec<PositionedBlock>, mut room: OwnedSemaphorePermit) {
        for block in blocks {
            let bytes = cost(&block.block).min(room.num_permits());
            let own = room.split(bytes).expect("no more than there is");
            self.aggregator.handle_block(now, block, own);
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Append(blocks, permit) => self.handle_blocks(Instant::now(), blocks, permit),
            Command::Extra(extra) => self.handle_extra(extra),
            Command::Prune(first, told) => self.handle_prune(first, told),
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
                self.answered(now, store);
                match result {
                    Ok(identity) => drop(self.check_identity(now, store, identity)),
                    Err(error) => self.handle_failure(now, store, error),
                }
            }
            Answer::Checked { store, committed, result } => {
                self.answered(now, store);
                match result {
                    Ok(state) => self.handle_checked(now, store, committed, state),
                    Err(error) => self.handle_failure(now, store, error),
                }
            }
            Answer::Probed { store, result } => match result {
                Ok(Probe::Back { missed, first }) => self.handle_back(now, store, missed, first),
                Ok(Probe::Blank) => self.handle_blank(now, store),
                Err(error) => self.handle_failure(now, store, error),
            },
            Answer::Pruned { store, first, result } => self.handle_pruned(now, store, first, result),
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
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.append_answered(number);
            lane.heard_at = now;
        }
        match result {
            Ok(identity) => {
                reached(Point::AfterAppend);
                let member = self.lanes.get(store).is_some_and(Lane::is_member);
                if member && self.check_identity(now, store, identity) {
                    self.tracker.handle_stored(store, number);
                    if let Some(lane) = self.lanes.get_mut(store) {
                        lane.hold(number);
                    }
                }
            }
            Err(error) => {
                // What was removed before it answered it does not lack.
                if let Some(lane) = self.lanes.get_mut(store).filter(|_| number >= self.first) {
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
        self.prune_due();
        self.publish_due(now);
        self.check_ready();
        self.check_end(now);
        self.busy.store(!self.in_flight.is_empty(), Ordering::Relaxed);
    }

    /// Whether something can be served: what was adopted is durable again, and enough stores take part.
    fn check_ready(&mut self) {
        let rewritten = self.tracker.committed() >= self.start.number.previous().unwrap_or_default();
        let active = self.lanes.iter().filter(|lane| lane.is_active()).count();
        if self.closed.is_none() && rewritten && active >= self.ready_with {
            // Who waited for it may be gone.
            self.ready.take().map(|ready| ready.send(()));
            self.ready_with = 0;
        }
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
            self.commits.count(header.block_count.into(), done.bytes, stored, took);
            tracing::debug!(vdisk = %self.set.vdisk(), %number, %durable, "committed");
            reached(Point::BeforeAcknowledgement);
            self.durability.send_modify(|state| state.durable = Some(durable));
            reached(Point::AfterAcknowledgement);
            self.publish_at = Some(now + self.settings.publish_after);
            if let Some(told) = done.told {
                // Who waited for it may be gone.
                drop(told.send(Ok(StoredAggregation { number, id: done.aggregation.id })));
            }
        }
    }

    /// Seals and sends what is due, as long as not too much is in flight.
    fn seal_due(&mut self, now: Instant) {
        while self.closed.is_none() && self.in_flight.len() < self.settings.in_flight {
            let turn = std::mem::take(&mut self.extra_next);
            if let Some(extra) = self.extras.pop_front_if(|_| turn) {
                self.seal_extra(extra, now);
            } else if let Some(batch) = self.aggregator.poll_batch(now) {
                self.extra_next = true;
                if let Err(why) = self.seal(batch, now) {
                    self.closed = Some(CloseReason::Failed(why));
                }
            } else if let Some(extra) = self.extras.pop_front() {
                self.seal_extra(extra, now);
            } else {
                break;
            }
        }
    }

    fn seal(&mut self, batch: Batch<OwnedSemaphorePermit>, now: Instant) -> Result<(), String> {
        let Batch { generation, session, blocks, permits } = batch;
        let mut nonce = [0; 12];
        tlog_ambient::fill_random(&mut nonce).map_err(|error| format!("no random numbers: {error}"))?;
        let number = self.next_number();
        let oldest = blocks.iter().map(|block| block.timestamp).min().unwrap_or_default();
        let request = SealRequest {
            number,
            generation,
            session,
            sealed_at: wall_clock(),
            block_size: self.block_size,
            nonce,
            finding: self.finding(number, oldest, true),
            blocks: &blocks,
        };
        reached(Point::BeforeSeal);
        let sealed = self.sealer.seal(request).map_err(|error| error.to_string())?;
        reached(Point::AfterSeal);
        let bytes = blocks.iter().map(|block| block.size() as u64).sum();
        self.send(sealed.link(self.last_id), bytes, permits, now);
        Ok(())
    }

    /// What the next aggregation is called.
    fn next_number(&self) -> AggregationNumber {
        AggregationNumber(self.tracker.committed().0 + self.in_flight.len() as u64 + 1)
    }

    /// What its header says about others.
    fn finding(&mut self, number: AggregationNumber, oldest: Timestamp, has_writes: bool) -> Finding {
        let time_reach = self.reaches.next(number, oldest, has_writes);
        Finding { time_reach, record_before: self.last_record }
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
        let header = &aggregation.header;
        let last = LogPosition { generation: header.generation, sequence: header.last_sequence };
        self.end = Some((last, header.session));
        if header.kind == Kind::Record {
            self.last_record = Some(number);
        }
        #[cfg(any(test, feature = "simulation"))]
        if crate::broken::is_broken(crate::broken::Rule::Answers) {
            self.durability.send_modify(|state| state.durable = Some(last));
        }
        self.last_id = aggregation.id;
        self.block_size = header.block_size;
        self.in_flight.push_back(InFlight { aggregation, since: now, bytes, _permits: permits, told: None });
        for store in 0..self.lanes.len() {
            self.append(store, number);
        }
    }

    /// Sends one shard of what is in flight, unless the store is out or far behind.
    fn append(&mut self, store: usize, number: AggregationNumber) {
        let (committed, lane_bytes) = (self.tracker.committed(), self.lane_bytes());
        let at = number.0.checked_sub(committed.0 + 1).and_then(|at| usize::try_from(at).ok());
        let in_flight = at.and_then(|at| self.in_flight.get(at));
        let (Some(lane), Some(port), Some(in_flight)) =
            (self.lanes.get_mut(store), self.set.stores().get(store).cloned(), in_flight)
        else {
            return;
        };
        let epoch = self.start.epoch;
        // All shards share the memory of one buffer: a shard that is not answered keeps all of it.
        let keeps = in_flight.aggregation.stored_bytes() as u64;
        let Some(shard) = shard_of(&in_flight.aggregation, store, epoch) else { return };
        // What a slow store has not answered keeps memory: past that bound it misses what comes, and is filled later.
        let has_room = lane.unanswered_len() < self.settings.in_flight * 2
            && (lane.unanswered_len() == 0 || lane.unanswered_bytes() + keeps <= lane_bytes);
        if !lane.is_active() || !has_room {
            lane.miss(number);
            return;
        }
        self.sent = (self.sent.0 + 1, self.sent.1 + (shard.head.len() + shard.payload.len()) as u64);
        lane.sent(number, keeps);
        let set = self.set.clone();
        self.calls.push(Box::pin(async move {
            reached(Point::BeforeAppend);
            let append = port.append(set.vdisk(), number, shard, committed);
            let result = set.within_limit(&port, append).await;
            Answer::Appended { store, number, result }
        }));
    }

    /// Bytes that one store may keep by not answering: as much as all that can be in flight.
    fn lane_bytes(&self) -> u64 {
        let quorums = self.set.quorums();
        let unflushed = self.settings.max_unflushed_bytes as u64;
        let shards = unflushed.saturating_mul(quorums.total() as u64) / quorums.data().max(1) as u64;
        shards.saturating_add(self.settings.in_flight as u64 * HEADS_OF_ONE)
    }

    /// Tells the stores what is committed, once nothing has been written for a moment.
    fn publish_due(&mut self, now: Instant) {
        let idle = self.in_flight.is_empty() && self.aggregator.is_empty() && self.extras.is_empty();
        let closing = self.phase == Phase::Closing && idle;
        if self.phase == Phase::Publishing && !idle {
            self.phase = Phase::Closing; // more was appended meanwhile; it becomes durable first
            self.close_at = None;
        }
        if closing {
            self.phase = Phase::Publishing;
            self.close_at = Some(now + self.settings.close_patience);
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
                reached(Point::BeforePublish);
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
        // Where lost stores are replaced, what was adopted waits until enough of them are filled.
        if self.ready_with == 0
            && let Some(oldest) = self.in_flight.front()
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
        let patient = self.close_at.is_some_and(|at| at > now);
        if self.phase == Phase::Publishing && (self.lanes.iter().all(Lane::is_quiet) || !patient) {
            self.closed = Some(CloseReason::Requested);
        }
    }

    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let may_send = self.in_flight.len() < self.settings.in_flight;
        let age = self.aggregator.deadline().filter(|_| may_send);
        let timeout = self.in_flight.front().map(|oldest| oldest.since + self.settings.commit_timeout);
        let timeout = timeout.filter(|_| self.ready_with == 0);
        let retry = self.lanes.iter().filter_map(Lane::retry_at).min();
        let publish = self.publish_at.filter(|_| self.in_flight.is_empty() && self.aggregator.is_empty());
        let fillable = |lane: &&Lane| stores::takes_backfill(lane, &self.settings);
        let backfill = self.lanes.iter().filter(fillable).map(|lane| lane.backfill_at).filter(|at| *at > now);
        [age, timeout, retry, publish, backfill.min(), self.close_at, Some(self.check_at)]
            .into_iter()
            .flatten()
            .min()
    }

    fn answered(&mut self, now: Instant, store: usize) {
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.outstanding = lane.outstanding.saturating_sub(1);
            lane.heard_at = now;
        }
    }

    /// Committed numbers that a store is known to lack, and that can be filled in.
    fn missing(&self, lane: &Lane) -> NumberRanges {
        let committed = self.tracker.committed();
        let mut missing = lane.missed.clone();
        if !lane.is_member() {
            missing.insert_range(self.first..=committed);
            if let Some(rest) = lane.refill.as_ref().and_then(|refill| refill.rest()) {
                missing.remove_range(self.first..=AggregationNumber(rest.start().0.saturating_sub(1)));
            }
        }
        missing.remove_range(committed.next()..=AggregationNumber(u64::MAX));
        missing
    }

    /// How many more stores may be lost, and how many aggregations are not on all stores.
    fn spare(&self) -> (usize, u64) {
        let committed = self.tracker.committed();
        let lacking: Vec<NumberRanges> =
            self.lanes.iter().filter_map(|lane| lane.lacking(self.first, committed)).collect();
        let mut behind = NumberRanges::new();
        lacking.iter().flat_map(NumberRanges::iter).for_each(|range| behind.insert_range(range));
        if lacking.len() < self.lanes.len() {
            behind.insert_range(self.first..=committed);
        }
        (losses_survived(self.set.quorums().data(), &lacking), behind.count())
    }

    fn status(&self) -> LogStatus {
        let now = Instant::now();
        let average = self.sent.1.checked_div(self.sent.0);
        let stores = self.lanes.iter().zip(self.set.stores()).map(|(lane, port)| {
            let missing = self.missing(lane);
            StoreStatus {
                address: port.address().to_string(),
                state: match lane.standing {
                    LaneStanding::Active => LaneState::Active,
                    LaneStanding::Away { .. } | LaneStanding::Probing => LaneState::Away,
                    _ => LaneState::Filling,
                },
                out_since: lane.out_since.map(|since| since.wall),
                out_for: lane.out_since.map(|since| now.saturating_duration_since(since.instant)),
                error: lane.error.clone(),
                missing: missing.count(),
                first_missing: missing.first(),
                missing_bytes: average.map(|average| average.saturating_mul(missing.count())),
                unrepairable: lane.unrepairable.clone(),
                fills_failed: lane.fills_failed,
                unanswered_bytes: lane.unanswered_bytes(),
            }
        });
        let stores: Vec<StoreStatus> = stores.collect();
        let (survived, behind) = self.spare();
        let quorums = self.set.quorums();
        LogStatus {
            vdisk: self.set.vdisk().clone(),
            epoch: self.start.epoch,
            committed: self.tracker.committed(),
            in_flight: self.in_flight.len(),
            waiting_blocks: self.aggregator.len(),
            losses_survived: survived,
            losses_survived_when_complete: quorums.total() - quorums.data(),
            behind,
            stores,
        }
    }
}

/// The newest record of a log that ends with an aggregation, or an aggregation that knows it.
fn newest_record(last: &Header) -> Option<AggregationNumber> {
    if last.kind == Kind::Record { Some(last.number) } else { last.record_before() }
}

fn write_quorum(set: &StoreSet) -> usize {
    #[cfg(any(test, feature = "simulation"))]
    return crate::broken::broken_write_quorum(set.quorums());
    #[cfg(not(any(test, feature = "simulation")))]
    set.quorums().write()
}

fn wall_clock() -> Timestamp {
    Timestamp(tlog_ambient::unix_nanos())
}

/// An interval that differs a little from vdisk to vdisk, so that thousands of logs that were opened together do not ask their
/// stores together for ever.
fn spread(interval: Duration, vdisk: &str) -> Duration {
    let hash = vdisk
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    interval.mul_f64(0.8 + 0.2 * (hash % 1024) as f64 / 1024.0)
}

/// The answers that are there, at least one: what follows answers costs more than taking one.
async fn next_answers(calls: &mut FuturesUnordered<BoxFuture<'static, Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    poll_fn(|context| {
        while answers.len() < ANSWERS_TOGETHER
            && let Poll::Ready(Some(answer)) = calls.poll_next_unpin(context)
        {
            answers.push(answer);
        }
        if answers.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    answers
}

async fn sleep_until(wake: Option<Instant>) {
    if let Some(wake) = wake {
        tokio::time::sleep_until(wake).await;
    }
}
