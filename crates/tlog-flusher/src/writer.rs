//! The task that owns an open log's state.
//!
//! It waits for one event - a command, an answer of a store, a deadline - applies it, and then runs the same cheap tail:
//! commit what can be committed, seal and send what is due, look after stores that are out ([`stores`]). Answers of stores
//! come out of `calls`, so nothing here runs in parallel.

mod begin;
mod blank;
mod extra;
mod pruning;
mod report;
mod sending;
mod stores;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, Sealer, TimeReaches};
use tlog_proto::{AggregationId, AggregationNumber, LogPosition, SessionId, Timestamp};
use tlog_quorum::{Pacer, StoreSet};
use tlog_store::{LogState, Members, StartRecord, StoreError, StoreIdentity};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::aggregator::Aggregator;
use crate::commit::CommitTracker;
use crate::extra::{Extra, StoredAggregation, ToldExtra};
use crate::lane::Lane;
use crate::log::{CloseReason, Command, Durability, PositionedBlock, cost};
use crate::metric;
use crate::repair::{Claims, Filled, KeptFrom, Probe, RefillError, Refilled};
use crate::settings::LogSettings;

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
}

fn wall_clock() -> Timestamp {
    Timestamp(tlog_ambient::unix_nanos())
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
