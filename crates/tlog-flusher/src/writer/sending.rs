//! What was gathered is sealed, and each store is sent its shard.

use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, Finding, Kind, SealRequest};
use tlog_proto::{AggregationNumber, LogPosition, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Answer, InFlight, Writer, wall_clock};
use crate::aggregator::Batch;
use crate::log::CloseReason;
use crate::repair::shard_of;

/// Bytes for everything in an aggregation but its payloads, generously, for bounds of memory.
const HEADS_OF_ONE: u64 = 64 << 10;

impl Writer {
    /// Seals and sends what is due, as long as not too much is in flight.
    pub(super) fn seal_due(&mut self, now: Instant) {
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
    pub(super) fn next_number(&self) -> AggregationNumber {
        AggregationNumber(self.tracker.committed().0 + self.in_flight.len() as u64 + 1)
    }

    /// What its header says about others.
    pub(super) fn finding(
        &mut self,
        number: AggregationNumber,
        oldest: Timestamp,
        has_writes: bool,
    ) -> Finding {
        let time_reach = self.reaches.next(number, oldest, has_writes);
        Finding { time_reach, record_before: self.last_record }
    }

    /// Takes the next aggregation into flight and sends its shards.
    pub(super) fn send(
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
    pub(super) fn append(&mut self, store: usize, number: AggregationNumber) {
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
}
