//! Looking after the stores: those that fail, those that come back, those that come back empty.
//!
//! ```text
//! Active --error--> Away --retry--> Probing --same identity--> Active (what it missed is filled in)
//!    \                                 \--other identity, or none--> Blank
//!     \--answers with another identity, or none--------------------> Blank --> Refilling --> Filled --> Entering --> Active
//! ```
//! An answer of a store counts only under the identity that the list of members has for it.

use std::sync::Arc;

use tlog_ambient::{Point, reached};
use tlog_proto::AggregationNumber;
use tlog_quorum::place_of;
use tlog_store::{LogState, Members, NumberRanges, StoreError, StoreErrorKind, StoreIdentity};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Answer, Writer, spread, wall_clock};
use crate::lane::{CatchingUp, Lane, LaneStanding};
use crate::log::CloseReason;
use crate::metric;
use crate::recovery::opening_quorum;
use crate::repair::{
    Filled, Filler, ProbeOrder, RefillError, RefillOrder, Refilled, backfill, probe, refill, same_store,
};
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

    fn start_refill(&mut self, store: usize) {
        let adopted = self.in_flight.iter().map(|in_flight| &in_flight.aggregation);
        let adopted = adopted.filter(|aggregation| aggregation.header.number < self.start.number);
        let order = RefillOrder {
            filler: self.filler(store),
            start: self.start,
            members: self.members.clone(),
            committed: self.tracker.committed(),
            adopted: adopted.cloned().collect(),
            claims: self.claims.clone(),
            progress: Arc::default(),
        };
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.standing = LaneStanding::Refilling;
            lane.refill = Some(order.progress.clone());
        }
        // Rebuilding takes the processor's time: not that of the task which acknowledges.
        let mut filling = Filling(tokio::spawn(refill(order)));
        self.calls.push(Box::pin(async move {
            let result = (&mut filling.0).await;
            let result = result.unwrap_or_else(|error| Err(RefillError::Source(error.to_string())));
            Answer::Refilled { store, result }
        }));
    }

    /// Fills in the next of what a store misses, unless that is going on already.
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

    fn filler(&self, store: usize) -> Filler {
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
    fn retry_unrepairable(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            let again = std::mem::take(&mut lane.unrepairable);
            if !again.is_empty() {
                again.iter().for_each(|range| lane.missed.insert_range(range));
                lane.backfill_at = now;
            }
        }
    }

    /// A store turned out to be empty or another one: it counts for nothing until it is filled and entered.
    pub(super) fn handle_blank(&mut self, now: Instant, store: usize) {
        #[cfg(test)]
        if crate::broken::is_broken(crate::broken::Rule::Identity) {
            return;
        }
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        if !lane.is_member() {
            return;
        }
        tracing::warn!(vdisk = %self.set.vdisk(), store = %address(&self.set, store),
            "a store came back empty or was replaced; it is filled before it counts");
        #[cfg(test)]
        let forget = !crate::broken::is_broken(crate::broken::Rule::Forget);
        #[cfg(not(test))]
        let forget = true;
        if forget {
            self.tracker.handle_forget(store);
        }
        lane.forget(now, wall_clock(), "it came back empty, or was replaced".to_owned());
        self.show_stores();
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

    pub(super) fn handle_refilled(
        &mut self,
        now: Instant,
        store: usize,
        result: Result<Refilled, RefillError>,
    ) {
        let error = match result {
            Ok(refilled) => {
                if let Some(lane) = self.lanes.get_mut(store) {
                    lane.standing = LaneStanding::Filled(refilled);
                }
                return;
            }
            Err(RefillError::Store(error)) if error.is_fenced() => {
                self.closed = Some(CloseReason::Fenced);
                return;
            }
            Err(RefillError::Store(error)) => error.to_string(),
            Err(RefillError::Deleted) => {
                let why = "no store knows the log any more: it was deleted";
                self.closed = Some(CloseReason::Failed(why.to_owned()));
                return;
            }
            Err(RefillError::Source(why)) => why,
            Err(RefillError::Lost(number)) => {
                let why =
                    format!("of aggregation {number}, which is committed, too few whole shards are left");
                if self.ready_with > 0 {
                    // Whoever waits for lost stores to be replaced would wait for ever.
                    self.closed = Some(CloseReason::Failed(why));
                    return;
                }
                why
            }
        };
        // The same reason again is no news.
        if self.lanes.get(store).is_some_and(|lane| lane.error.as_ref() == Some(&error)) {
            tracing::debug!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), error, "a blank store still cannot be filled");
        } else {
            tracing::warn!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), error,
                "a blank store could not be filled; it is tried again");
        }
        self.fail_blank(now, store, error);
    }

    /// Tells all members that a filled store is one of them now; it counts once enough of them know. One at a time: two lists
    /// that were made from the same one would each have the other's store under its old identity.
    fn enter_next(&mut self) {
        if self.lanes.iter().any(|lane| lane.standing == LaneStanding::Entering) {
            return;
        }
        let filled = self.lanes.iter().enumerate().find_map(|(store, lane)| match lane.standing {
            LaneStanding::Filled(refilled) => Some((store, refilled)),
            _ => None,
        });
        let Some((store, refilled)) = filled else { return };
        if let Some(other) = place_of(&self.members, store, refilled.identity) {
            let RefillError::Source(why) = same_store(&self.set, store, other) else { return };
            return self.fail_blank(Instant::now(), store, why);
        }
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
                            reached(Point::BeforeMembers);
                            port.start(set.vdisk(), start, members).await
                        } else {
                            let source = std::io::Error::other("not asked: it is out");
                            Err(StoreError::new(&*port.address(), StoreErrorKind::Unavailable { source }))
                        }
                    }
                })
                .await;
            Answer::Entered { store, refilled, members, results }
        }));
    }

    pub(super) fn handle_entered(
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
        if !itself || know < self.quorum {
            // The list may be on some stores: its count is never used again.
            self.members.change = members.change + 1;
            let why = if itself {
                format!("only {know} stores could be told that it is filled")
            } else {
                "it was emptied or replaced while it was filled".to_owned()
            };
            return self.fail_blank(now, store, why);
        }
        self.members = members;
        self.members.change += 1; // settled
        // After an opening that replaces lost stores: one member more is there to ask.
        self.quorum = (self.quorum + 1).min(opening_quorum(&self.set)).max(self.quorum);
        let committed = self.tracker.committed();
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        let out = lane.activate();
        lane.heard_at = now;
        lane.missed = NumberRanges::new();
        lane.missed.insert_range(refilled.up_to.next()..=committed);
        lane.forget_below(self.first); // what was removed while it entered
        lane.first = refilled.first;
        let out_for = out.map(|since| now.saturating_duration_since(since.instant)).unwrap_or_default();
        metric::store_back(self.set.vdisk(), out_for);
        let Refilled { identity, shards, bytes, .. } = refilled;
        tracing::info!(vdisk = %self.set.vdisk(), store = %address(&self.set, store), %identity, shards, bytes_read = bytes, ?out_for,
            "a blank store is filled and counts again");
        self.retry_unrepairable(now);
        self.send_in_flight_to(store);
        self.confirm_members();
        self.show_stores();
    }

    /// Tells the members that the list they have is settled. Who does not hear of it only makes the next opening more careful.
    pub(super) fn confirm_members(&mut self) {
        for (store, lane) in self.lanes.iter_mut().enumerate() {
            let Some(port) = self.set.stores().get(store).cloned().filter(|_| lane.is_active()) else {
                continue;
            };
            lane.outstanding += 1;
            let (set, start, members) = (self.set.clone(), self.start, self.members.clone());
            self.calls.push(Box::pin(async move {
                let result = set.within_limit(&port, port.start(set.vdisk(), start, &members)).await;
                Answer::Published { store, result }
            }));
        }
    }

    fn fail_blank(&mut self, now: Instant, store: usize, error: String) {
        if let Some(lane) = self.lanes.get_mut(store) {
            let LogSettings { retry_after, retry_at_most, .. } = self.settings;
            lane.fail(now, wall_clock(), error, true, retry_after, retry_at_most);
        }
        self.show_stores();
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

    fn active(&self) -> Vec<bool> {
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
struct Filling<T>(JoinHandle<T>);

impl<T> Drop for Filling<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn address(set: &tlog_quorum::StoreSet, store: usize) -> Arc<str> {
    set.stores().get(store).map_or_else(|| "no store".into(), |port| port.address())
}

/// Whether something is to be filled in on a store, and it has room for more than what is written right now.
pub(super) fn takes_backfill(lane: &Lane, settings: &LogSettings) -> bool {
    lane.is_active()
        && !lane.backfilling
        && !lane.missed.is_empty()
        && lane.unanswered_len() < settings.in_flight.max(2)
}
