//! Looking after the stores: those that fail, those that come back, those that come back empty.
//!
//! ```text
//! Active --error--> Away --retry--> Probing --same identity--> Active (what it missed is filled in)
//!    \                                 \--other identity, or none--> Blank
//!     \--answers with another identity, or none--------------------> Blank --> Refilling --> Filled --> Entering --> Active
//! ```
//! An answer of a store counts only under the identity that the list of members has for it.

use std::sync::Arc;

use tlog_proto::AggregationNumber;
use tlog_store::{LogState, NumberRanges, StoreError, StoreErrorKind, StoreIdentity};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::begin::spread;
use super::{Answer, Writer, wall_clock};
use crate::lane::{CatchingUp, Lane, LaneStanding};
use crate::log::CloseReason;
use crate::metric;
use crate::repair::{Filled, Filler, ProbeOrder, backfill, probe};
use crate::settings::LogSettings;

/// Numbers that one backfill takes on before the writer looks again.
const BACKFILL_NUMBERS: u64 = 256;

impl Writer {
    /// Asks stores that are away or silent, fills blank ones, fills in what members miss.
    pub(super) fn look_after_stores(&mut self, now: Instant) {
        for store in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get(store) else {
                continue;
            };
            match lane.standing {
                LaneStanding::Away { retry_at } if retry_at <= now => self.start_probe(store),
                LaneStanding::Blank { retry_at } if retry_at <= now => self.start_refill(store),
                _ => {}
            }
        }
        self.enter_next();
        for store in 0..self.lanes.len() {
            self.start_backfill(now, store);
        }
        if self.check_at <= now {
            self.check_silent(now);
        }
    }

    fn start_probe(&mut self, store: usize) {
        let order = ProbeOrder {
            set: self.set.clone(),
            store,
            start: self.start,
            starts: self.starts.clone(),
            members: self.members.clone(),
            committed: self.tracker.committed(),
            first: self.first,
        };
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.standing = LaneStanding::Probing;
        }
        self.calls.push(Box::pin(async move { Answer::Probed { store, result: probe(order).await } }));
    }

    fn start_backfill(&mut self, now: Instant, store: usize) {
        let (committed, epoch) = (self.tracker.committed(), self.start.epoch);
        let Some(lane) = self.lanes.get(store) else { return };
        if !takes_backfill(lane, &self.settings) || lane.backfill_at > now {
            return;
        }
        let Some(range) = lane.missed.iter().next() else { return };
        let last = committed.0.min(range.end().0).min(range.start().0.saturating_add(BACKFILL_NUMBERS - 1));
        if last < range.start().0 {
            return;
        }
        let mut numbers = NumberRanges::new();
        numbers.insert_range(*range.start()..=AggregationNumber(last));
        let filler = self.filler(store);
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.backfilling = true;
            lane.catching_up.get_or_insert(CatchingUp { since: now, shards: 0, bytes: 0 });
        }
        let mut filling = Filling(tokio::spawn(backfill(filler, epoch, committed, numbers)));
        self.calls.push(Box::pin(async move {
            let filled = (&mut filling.0).await.unwrap_or_default();
            Answer::Backfilled { store, filled }
        }));
    }

    pub(super) fn filler(&self, store: usize) -> Filler {
        let active = self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_active());
        let mut sources: Vec<(usize, usize)> =
            active.map(|(source, lane)| (lane.unanswered_len(), source)).collect();
        // A store that is behind with its answers is asked last.
        sources.sort_unstable();
        let out = self.lanes.iter().enumerate();
        let out = out.filter(|(i, lane)| *i != store && lane.is_member() && !lane.is_active());
        Filler {
            set: self.set.clone(),
            store,
            sources: sources.into_iter().map(|(_, source)| source).collect(),
            out: out.map(|(i, _)| i).collect(),
            quorum: self.quorum,
            kept_from: self.kept_from.clone(),
            pacer: self.pacer.clone(),
            busy: self.busy.clone(),
        }
    }

    /// Asks the stores that have said nothing for a while what they have: one that was lost, wiped or replaced is noticed although
    /// nothing is written.
    fn check_silent(&mut self, now: Instant) {
        let every = spread(self.settings.check_stores_every, self.set.vdisk().as_str());
        self.check_at = now + every;
        let committed = self.tracker.committed();
        for (store, lane) in self.lanes.iter_mut().enumerate() {
            let silent = lane.is_active() && lane.is_quiet() && lane.heard_at + every / 2 <= now;
            let Some(port) = self.set.stores().get(store).cloned().filter(|_| silent) else {
                continue;
            };
            lane.outstanding += 1;
            let set = self.set.clone();
            self.calls.push(Box::pin(async move {
                let result = set.within_limit(&port, port.status(set.vdisk())).await;
                Answer::Checked { store, committed, result }
            }));
        }
        self.show_stores();
    }

    pub(super) fn handle_checked(
        &mut self,
        now: Instant,
        store: usize,
        committed: AggregationNumber,
        state: LogState,
    ) {
        let Some(identity) = state.identity else {
            return self.handle_blank(now, store);
        };
        if !self.check_identity(now, store, identity) {
            return;
        }
        if state.epoch > self.start.epoch {
            self.closed = Some(CloseReason::Fenced);
            return;
        }
        if !self.lanes.get(store).is_some_and(Lane::is_active) {
            return;
        }
        self.handle_first(store, state.first);
        let Some(lane) = self.lanes.get_mut(store) else { return };
        let mut lost = state.held.missing_in(self.first.max(state.first)..=committed);
        lane.missed.iter().chain(lane.unrepairable.iter()).for_each(|range| lost.remove_range(range));
        if !lost.is_empty() {
            tracing::warn!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), shards = lost.count(),
                first = ?lost.first(), "a store has lost shards; they are filled in");
            lost.iter().for_each(|range| lane.missed.insert_range(range));
        }
    }

    /// Whether an answer came from the store that the log knows. If not, what that store had answered is forgotten.
    pub(super) fn check_identity(&mut self, now: Instant, store: usize, identity: StoreIdentity) -> bool {
        let expected = self.members.identities.get(store).copied().flatten();
        if expected == Some(identity) {
            return true;
        }
        self.handle_blank(now, store);
        false
    }

    pub(super) fn handle_failure(&mut self, now: Instant, store: usize, error: StoreError) {
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
        // It goes out once; that it is still out is no news, but for another reason.
        let first = lane.out_since.is_none();
        if first {
            tracing::warn!(vdisk = %self.set.vdisk(), store = error.address, %error,
                "a store is out; what it misses is filled in when it is back");
        } else if lane.error.as_deref() != Some(error.to_string().as_str()) {
            tracing::info!(vdisk = %self.set.vdisk(), store = error.address, %error, "a store is still out, for another reason");
        }
        metric::store_failure(self.set.vdisk(), &error.address);
        let LogSettings { retry_after, retry_at_most, .. } = self.settings;
        lane.fail(now, wall_clock(), error.to_string(), false, retry_after, retry_at_most);
        self.show_stores();
    }

    pub(super) fn handle_back(
        &mut self,
        now: Instant,
        store: usize,
        missed: NumberRanges,
        first: AggregationNumber,
    ) {
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        if lane.standing != LaneStanding::Probing {
            return; // it turned out to be another store meanwhile
        }
        let out = lane.activate();
        lane.heard_at = now;
        self.handle_first(store, first);
        let Some(lane) = self.lanes.get_mut(store) else { return };
        // What was committed while it was asked is not in its answer.
        missed.iter().for_each(|range| lane.missed.insert_range(range));
        lane.forget_below(self.first); // what was removed meanwhile
        let out_for = out.map(|since| now.saturating_duration_since(since.instant)).unwrap_or_default();
        metric::store_back(self.set.vdisk(), out_for);
        tracing::info!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), missed = lane.missed.count(), ?out_for,
            "a store is back");
        self.retry_unrepairable(now);
        self.send_in_flight_to(store);
        self.show_stores();
    }

    /// A store more is there: what could not be rebuilt without it is tried again.
    pub(super) fn retry_unrepairable(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            let again = std::mem::take(&mut lane.unrepairable);
            if !again.is_empty() {
                again.iter().for_each(|range| lane.missed.insert_range(range));
                lane.backfill_at = now;
            }
        }
    }

    pub(super) fn handle_backfilled(&mut self, now: Instant, store: usize, filled: Filled) {
        let committed = self.tracker.committed();
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.backfilling = false;
            lane.forget_below(self.first);
            // Without this, a backfill that gets nowhere would begin again at once.
            let stuck = filled.filled.is_empty() && filled.unreadable.is_empty();
            lane.backfill_at = if stuck { now + self.settings.retry_at_most } else { now };
            for range in filled.filled.iter() {
                lane.missed.remove_range(range);
            }
            // Nobody can fill these in now. They are tried again when a store more is there, and said once.
            let mut unreadable = filled.unreadable;
            if let Some(removed) = self.first.previous() {
                unreadable.remove_range(AggregationNumber(0)..=removed); // while it was being filled in
            }
            for range in unreadable.iter().filter(|_| lane.known) {
                if !lane.reported.missing_in(range.clone()).is_empty() {
                    tracing::error!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), from = %range.start(), to = %range.end(),
                        "committed aggregations cannot be rebuilt for a store that lacks them");
                }
                lane.missed.remove_range(range.clone());
                lane.reported.insert_range(range.clone());
                lane.unrepairable.insert_range(range);
            }
            if let Some(catching_up) = &mut lane.catching_up {
                catching_up.shards += filled.filled.count();
                catching_up.bytes += filled.bytes;
            }
            let done = lane.missed.first().is_none_or(|first| first > committed);
            if let Some(CatchingUp { since, shards, bytes }) = lane.catching_up.take_if(|_| done) {
                let took = now.saturating_duration_since(since);
                tracing::info!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), shards, bytes_read = bytes, ?took,
                    unrepairable = lane.unrepairable.count(), "what a store missed is filled in");
            }
        }
        match filled.error {
            Some(error) => self.handle_failure(now, store, error),
            None => self.show_stores(),
        }
    }

    /// Everything in flight that a store has not answered for, once more.
    pub(super) fn send_in_flight_to(&mut self, store: usize) {
        let committed = self.tracker.committed().0;
        for number in (committed + 1..=committed + self.in_flight.len() as u64).map(AggregationNumber) {
            if !self.tracker.is_held(store, number) {
                self.append(store, number);
            }
        }
    }

    pub(super) fn active(&self) -> Vec<bool> {
        self.lanes.iter().map(Lane::is_active).collect()
    }

    pub(super) fn show_stores(&self) {
        let active = self.lanes.iter().filter(|lane| lane.is_active()).count();
        let missed = self.lanes.iter().map(|lane| lane.missed.count()).sum();
        let unrepairable = self.lanes.iter().map(|lane| lane.unrepairable.count()).sum();
        let (survived, behind) = self.spare();
        metric::stores(self.set.vdisk(), active, missed, unrepairable, survived, behind);
    }
}

/// A task that fills. It ends with the log.
pub(super) struct Filling<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Filling<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn address(set: &tlog_quorum::StoreSet, store: usize) -> Arc<str> {
    set.stores().get(store).map_or_else(|| "no store".into(), |port| port.address())
}

/// Whether something is to be filled in on a store, and it has room for more than what is written right now.
pub(super) fn takes_backfill(lane: &Lane, settings: &LogSettings) -> bool {
    lane.is_active()
        && !lane.backfilling
        && !lane.missed.is_empty()
        && lane.unanswered_len() < settings.in_flight.max(2)
}
