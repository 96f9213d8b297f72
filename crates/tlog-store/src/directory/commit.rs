//! Writing: operations on one log that are in flight together share one write and one sync.
//!
//! An operation joins the log's queue. The first one to find it unattended puts a thread to it, which takes what waits,
//! decides each operation in order, writes all their records at once, syncs, makes the index say so, answers, and begins
//! anew until nothing waits. What arrives during a sync thus shares the next one. Nothing is answered before the sync,
//! not even a refusal, which may follow from a record of the same write.
//!
//! Starts, prunes, promises and deletes are decided alone; they are rare, and what they drop is then in the index.

mod writing;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use tlog_proto::{AggregationId, AggregationNumber, Epoch};
use tokio::sync::oneshot;

use super::crash::{Step, reached};
use super::files::{deleted_path, guard, sync_directory};
use super::index::Index;
use super::log::{Log, shard_len};
use super::record::{Batch, Body, HEADER, Position, State, record_len};
use super::scan::Event;
use crate::log_state::{Current, Filling, LogMeta, Placing};
use crate::memory::new_identity;
use crate::{FillOutcome, LogState, Members, Shard, StartRecord, StoreErrorKind, StoreIdentity};

/// Room in a segment that shards leave to other records, so that a full store can still be pruned, and fence.
pub(super) const RESERVE: u32 = 4 << 10;
/// A batch is not made longer once it has so many bytes.
const BATCH_BYTES: u32 = 8 << 20;
/// A tail of which nothing is needed any more is left behind once it has so many bytes.
const WORTH_LEAVING: u32 = 64 << 10;

/// An operation that writes.
#[derive(Debug)]
pub(super) enum Request {
    Promise(Epoch),
    Start(StartRecord, Members),
    Append(AggregationNumber, Shard, AggregationNumber),
    Publish(Epoch, AggregationNumber),
    Fill(AggregationNumber, Shard),
    Prune(Epoch, AggregationNumber),
    Delete(Epoch),
}

/// What is said to one.
#[derive(Debug)]
pub(super) enum Answer {
    State(LogState),
    Identity(StoreIdentity),
    Fill(FillOutcome),
    Done,
}

type Outcome = Result<Answer, StoreErrorKind>;

/// One that waits.
#[derive(Debug)]
pub(super) struct Pending {
    request: Request,
    reply: oneshot::Sender<Outcome>,
}

impl Log {
    /// Has a request carried out; answers once what it wrote is durable.
    pub(super) async fn submit(self: &Arc<Self>, request: Request) -> Outcome {
        let gone = || StoreErrorKind::Unavailable { source: io::Error::other("the store is shutting down") };
        let (reply, answer) = oneshot::channel();
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| gone())?;
        let attended = {
            let mut queue = guard(&self.queue);
            queue.pending.push_back(Pending { request, reply });
            std::mem::replace(&mut queue.attended, true)
        };
        if !attended {
            let attendant = Attendant { log: Arc::clone(self), waiting: VecDeque::new(), finished: false };
            runtime.spawn_blocking(move || attendant.run());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Sees to the queue of one log. There is one at most.
struct Attendant {
    log: Arc<Log>,
    waiting: VecDeque<Pending>,
    /// It has left the queue to the next one.
    finished: bool,
}

impl Drop for Attendant {
    /// The thread was never started, or it panicked: those who wait hear of it by their dropped senders.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut queue = guard(&self.log.queue);
        queue.attended = false;
        queue.pending.clear();
        if std::thread::panicking() {
            queue.failed = Some("an earlier write ended in a bug".to_owned());
        }
    }
}

/// What a batch has decided so far, on top of the index.
struct Plan {
    meta: LogMeta,
    batch: Batch,
    segment: u64,
    events: Vec<Event>,
    /// Shards of this batch.
    shards: HashMap<AggregationNumber, (Epoch, AggregationId)>,
    answers: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

impl Plan {
    fn push(&mut self, body: Body) -> Result<(), StoreErrorKind> {
        let (offset, header) = self
            .batch
            .push(body, self.meta.epoch, self.meta.committed)
            .ok_or_else(|| unavailable("a record does not fit a segment"))?;
        self.events.push(Event::of(Position { segment: self.segment, offset }, &header));
        Ok(())
    }

    fn put(&mut self, number: AggregationNumber, shard: Shard) -> Result<(), StoreErrorKind> {
        let key = (shard.epoch, shard.id);
        self.push(Body::Shard(number, shard))?;
        self.shards.insert(number, key);
        Ok(())
    }
}

impl Attendant {
    fn run(mut self) {
        loop {
            {
                let mut queue = guard(&self.log.queue);
                self.waiting.append(&mut queue.pending);
                if self.waiting.is_empty() {
                    queue.attended = false;
                    self.finished = true;
                    return;
                }
                if let Some(failed) = &queue.failed {
                    for Pending { reply, .. } in self.waiting.drain(..) {
                        let _ = reply.send(Err(unavailable(failed)));
                    }
                    continue;
                }
            }
            let alone = |request: &Request| {
                matches!(
                    request,
                    Request::Promise(_) | Request::Start(..) | Request::Prune(..) | Request::Delete(_)
                )
            };
            match self.waiting.pop_front() {
                Some(Pending { request, reply }) if alone(&request) => {
                    // Nobody may be waiting for it any more.
                    let _ = reply.send(self.decide_alone(request));
                }
                Some(pending) => {
                    self.waiting.push_front(pending);
                    self.batch(alone);
                }
                None => {}
            }
        }
    }

    /// Appends, publishes and fills.
    fn batch(&mut self, alone: impl Fn(&Request) -> bool) {
        let log = Arc::clone(&self.log);
        let planned = log.with_index(|index| {
            let mut plan: Option<Plan> = None;
            while let Some(pending) = self.waiting.pop_front() {
                let full = plan.as_ref().is_some_and(|plan| plan.batch.bytes() >= BATCH_BYTES);
                if full || alone(&pending.request) {
                    self.waiting.push_front(pending);
                    break;
                }
                let room = match self.room_for(index, &mut plan, &pending.request) {
                    Ok(Some(plan)) => plan,
                    Ok(None) => {
                        self.waiting.push_front(pending);
                        break;
                    }
                    Err(kind) => {
                        let _ = pending.reply.send(Err(kind));
                        continue;
                    }
                };
                let outcome = self.decide(index, room, pending.request);
                room.answers.push((pending.reply, outcome));
            }
            Ok(plan)
        });
        match planned {
            Ok(Some(plan)) => self.carry_out(plan),
            Ok(None) => {}
            Err(kind) => self.refuse_next(kind),
        }
    }

    /// The index cannot be had.
    fn refuse_next(&mut self, kind: StoreErrorKind) {
        if let Some(Pending { reply, .. }) = self.waiting.pop_front() {
            let _ = reply.send(Err(kind));
        }
    }

    /// The plan, if the request's record fits behind what is in it; a new segment is begun where nothing is.
    fn room_for<'p>(
        &self,
        index: &mut Index,
        plan: &'p mut Option<Plan>,
        request: &Request,
    ) -> Result<Option<&'p mut Plan>, StoreErrorKind> {
        let needed = match request {
            Request::Append(_, shard, _) | Request::Fill(_, shard) => shard_len(shard)
                .and_then(|length| length.checked_add(RESERVE))
                .filter(|&length| length <= super::DirectoryOptions::MAX_SEGMENT_BYTES / 2)
                .ok_or_else(|| unavailable("a shard of such a length is not stored"))?,
            _ => HEADER as u32,
        };
        let (Some(meta), Some(tail)) = (&index.meta, index.tail) else {
            return Err(StoreErrorKind::NoLog);
        };
        let cursor = plan.as_ref().map_or(tail.cursor, |plan| plan.batch.cursor);
        if u64::from(cursor.offset) + u64::from(needed) > tail.room {
            if plan.as_ref().is_some_and(|plan| plan.batch.bytes() > 0) {
                return Ok(None);
            }
            // Only answers that wrote nothing are in the plan; they lose nothing by it.
            let answers = plan.take().map(|plan| plan.answers).unwrap_or_default();
            let begun = self.begin_segment(index, meta.clone(), needed, Index::state_record);
            *plan = self.plan(index, answers);
            begun?;
        }
        if plan.is_none() {
            *plan = self.plan(index, Vec::new());
        }
        Ok(plan.as_mut())
    }

    fn plan(&self, index: &Index, answers: Vec<(oneshot::Sender<Outcome>, Outcome)>) -> Option<Plan> {
        let (meta, tail) = (index.meta.clone()?, index.tail?);
        let batch = Batch::new(tail.cursor);
        Some(Plan { meta, batch, segment: tail.segment, events: Vec::new(), shards: HashMap::new(), answers })
    }

    fn decide(&self, index: &Index, plan: &mut Plan, request: Request) -> Outcome {
        let identity = Answer::Identity(plan.meta.identity);
        match request {
            Request::Append(number, shard, committed) => {
                let held = plan.shards.get(&number).map(|&(epoch, _)| epoch);
                let held = held.or_else(|| index.slots.get(number).map(|slot| slot.epoch));
                match plan.meta.append(number, shard.epoch, committed, held)? {
                    Placing::Store => plan.put(number, shard)?,
                    Placing::Pruned => plan.push(Body::Mark)?,
                }
                Ok(identity)
            }
            Request::Publish(epoch, committed) => {
                let before = (plan.meta.epoch, plan.meta.committed);
                plan.meta.publish(epoch, committed)?;
                if before != (plan.meta.epoch, plan.meta.committed) {
                    plan.push(Body::Mark)?;
                }
                Ok(identity)
            }
            Request::Fill(number, shard) => {
                let planned = plan.shards.get(&number).map(|&(_, id)| Current::Whole(id));
                let current = match planned {
                    Some(current) => current,
                    None if number > plan.meta.committed => Current::Nothing,
                    None => Current::from(&self.log.shard_in(index, number)?),
                };
                match plan.meta.fill(number, shard.id, || current)? {
                    Filling::Nothing(outcome) => Ok(Answer::Fill(outcome)),
                    Filling::Store => {
                        plan.put(number, shard)?;
                        Ok(Answer::Fill(FillOutcome::Stored))
                    }
                }
            }
            // These are decided alone.
            Request::Promise(_) | Request::Start(..) | Request::Prune(..) | Request::Delete(_) => {
                Err(unavailable("out of turn"))
            }
        }
    }

    fn carry_out(&self, plan: Plan) {
        let Plan { batch, segment, events, answers, .. } = plan;
        let written = if batch.parts.is_empty() { Ok(()) } else { self.write(segment, &batch) };
        match written {
            Ok(()) => {
                self.make_known(segment, batch.cursor, events);
                for (reply, outcome) in answers {
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                for (reply, outcome) in answers {
                    let _ = reply.send(outcome.and_then(|_| Err(kind_of(&error))));
                }
            }
        }
    }

    /// Promises, starts, prunes and deletes.
    fn decide_alone(&self, request: Request) -> Outcome {
        let log = &self.log;
        log.with_index(|index| {
            let Some(mut meta) = index.meta.clone() else {
                let Request::Promise(epoch) = request else {
                    return Err(StoreErrorKind::NoLog);
                };
                let meta = LogMeta::created(new_identity()?, epoch)?;
                self.begin_segment(index, meta, 0, Index::state_record)?;
                return Ok(Answer::State(index.state()));
            };
            match request {
                Request::Promise(epoch) => {
                    meta.promise(epoch)?;
                    self.write_alone(index, meta, |_, _, _| Body::Mark, HEADER as u32)?;
                    Ok(Answer::State(index.state()))
                }
                Request::Start(record, members) => {
                    meta.start(record, &members)?;
                    let identity = meta.identity;
                    self.replace_state(index, meta, Index::start_record)?;
                    Ok(Answer::Identity(identity))
                }
                Request::Prune(epoch, first) => {
                    let before = meta.first;
                    meta.prune(epoch, first)?;
                    if meta.first > before {
                        self.replace_state(index, meta, Index::state_record)?;
                    }
                    Ok(Answer::Done)
                }
                Request::Delete(epoch) => {
                    meta.delete(epoch)?;
                    self.delete(index, &meta.identity)
                }
                _ => Err(unavailable("out of turn")),
            }
        })
    }

    /// Renaming the log's directory is what deletes it, at once and as a whole. Then its files are removed; where that fails, or
    /// stops, the next opening of the store does it.
    fn delete(&self, index: &mut Index, identity: &StoreIdentity) -> Outcome {
        let Log { shared, vdisk, directory, .. } = &*self.log;
        let deleted = deleted_path(directory, identity);
        reached(Step::BeforeDelete);
        let renamed = std::fs::rename(directory, &deleted)
            .inspect(|()| reached(Step::DeleteNamed))
            .and_then(|()| directory.parent().map_or(Ok(()), sync_directory));
        if let Err(error) = renamed {
            // Whether the log is still there after a failed sync, only a look at the disk can tell.
            self.fail(&error);
            return Err(kind_of(&error));
        }
        reached(Step::DeleteDurable);
        shared.files.forget_vdisk(vdisk);
        *index = Index::default();
        tracing::info!(store = %shared.address, %vdisk, "a log was deleted");
        if let Err(error) = std::fs::remove_dir_all(&deleted) {
            tracing::warn!(store = %shared.address, %vdisk, path = %deleted.display(), %error,
                "the files of a deleted log cannot be removed; it is tried again when the store is opened");
        }
        reached(Step::Deleted);
        Ok(Answer::Done)
    }

    /// Writes the whole state; at the head of a new segment where that lets the old one go.
    fn replace_state(
        &self,
        index: &mut Index,
        meta: LogMeta,
        state: impl Fn(&Index, LogMeta, Position) -> State,
    ) -> Result<(), StoreErrorKind> {
        let leave = index.tail.is_some_and(|tail| tail.cursor.offset >= WORTH_LEAVING);
        if leave && !index.tail_lives_under(&meta) {
            match self.begin_segment(index, meta.clone(), 0, &state) {
                // It may still fit where we are.
                Err(StoreErrorKind::Full { .. }) => {}
                other => return other,
            }
        }
        let length = state(index, meta.clone(), Position { segment: 0, offset: 0 }).encoded_len();
        let length = record_len(length, 0).ok_or_else(|| unavailable("too many starts"))?;
        self.write_alone(index, meta, |index, meta, at| Body::State(state(index, meta, at)), length)
    }
}

fn unavailable(what: &str) -> StoreErrorKind {
    StoreErrorKind::Unavailable { source: io::Error::other(what.to_owned()) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What an error of a write means. It is copied, as it can be the answer to many.
pub(super) fn kind_of(error: &io::Error) -> StoreErrorKind {
    let source = error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error);
    match error.kind() {
        _ if is_full(error) => StoreErrorKind::Full { source },
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => StoreErrorKind::ReadOnly,
        _ => StoreErrorKind::Unavailable { source },
    }
}
