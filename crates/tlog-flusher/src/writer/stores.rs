//! Looking after the stores: those that fail, those that come back, those that come back empty.
//!
//! ```text
//! Active --error--> Away --retry--> Probing --same identity--> Active (what it missed is filled in)
//!    \                                 \--other identity, or none--> Blank
//!     \--answers with another identity, or none--------------------> Blank --> Refilling --> Filled --> Entering --> Active
//! ```
//! An answer of a store counts only under the identity that the list of members has for it.

use tlog_proto::AggregationNumber;
use tlog_store::{Members, NumberRanges, StoreError, StoreErrorKind, StoreIdentity};
use tokio::time::Instant;

use super::{Answer, Writer};
use crate::lane::{Lane, LaneStanding};
use crate::log::CloseReason;
use crate::metric;
use crate::recovery::opening_quorum;
use crate::repair::{Filled, ProbeOrder, RefillError, RefillOrder, Refilled, backfill, probe, refill};
use crate::settings::LogSettings;

/// Numbers that one backfill takes on before the writer looks again.
const BACKFILL_NUMBERS: u64 = 64;

impl Writer {
    /// Asks stores that are away, fills blank ones, fills in what members miss.
    pub(super) fn look_after_stores(&mut self, now: Instant) {
        let adopted = self.in_flight.iter().map(|in_flight| &in_flight.aggregation);
        let adopted = adopted.filter(|aggregation| aggregation.header.number < self.start.number);
        for store in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get_mut(store) else {
                continue;
            };
            match lane.standing {
                LaneStanding::Away { retry_at } if retry_at <= now => {
                    lane.standing = LaneStanding::Probing;
                    let order = ProbeOrder {
                        set: self.set.clone(),
                        store,
                        start: self.start,
                        starts: self.starts.clone(),
                        members: self.members.clone(),
                        committed: self.tracker.committed(),
                        first: self.first,
                    };
                    self.calls
                        .push(Box::pin(async move { Answer::Probed { store, result: probe(order).await } }));
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
        self.enter_next();
        if !self.backfilling && self.backfill_at <= now {
            self.start_backfill();
        }
    }

    fn start_backfill(&mut self) {
        let committed = self.tracker.committed();
        for (store, lane) in self.lanes.iter().enumerate() {
            let range = lane.missed.iter().next();
            let Some(range) = range.filter(|_| takes_backfill(lane, &self.settings)) else {
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
        // It was asked again and failed in the same way: no news.
        if lane.error.as_deref() == Some(error.to_string().as_str()) {
            tracing::debug!(vdisk = %self.set.vdisk(), %error, "a store is still out");
        } else {
            tracing::warn!(vdisk = %self.set.vdisk(), store = error.address, %error,
                "a store is out; what it misses is filled in when it is back");
        }
        metric::store_failure(self.set.vdisk(), &error.address);
        lane.fail(now, error.to_string(), false, self.settings.retry_after, self.settings.retry_at_most);
        self.show_stores();
    }

    pub(super) fn handle_back(&mut self, store: usize, missed: NumberRanges) {
        let Some(lane) = self.lanes.get_mut(store) else {
            return;
        };
        if lane.standing != LaneStanding::Probing {
            return; // it turned out to be another store meanwhile
        }
        tracing::info!(vdisk = %self.set.vdisk(), store, missed = missed.count(), "a store is back");
        lane.activate();
        // What was committed while it was asked is not in its answer.
        missed.iter().for_each(|range| lane.missed.insert_range(range));
        self.send_in_flight_to(store);
        self.show_stores();
    }

    /// A store turned out to be empty or another one: it counts for nothing until it is filled and entered.
    pub(super) fn handle_blank(&mut self, now: Instant, store: usize) {
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

    pub(super) fn handle_backfilled(&mut self, now: Instant, store: usize, filled: Filled) {
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
            Err(RefillError::Source(why)) => why,
        };
        // The same reason again is no news.
        if self.lanes.get(store).is_some_and(|lane| lane.error.as_ref() == Some(&error)) {
            tracing::debug!(vdisk = %self.set.vdisk(), store, error, "a blank store still cannot be filled");
        } else {
            tracing::warn!(vdisk = %self.set.vdisk(), store, error, "a blank store could not be filled; it is tried again");
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
        if !itself || know < opening_quorum(&self.set) {
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
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.fail(now, error, true, self.settings.retry_after, self.settings.retry_at_most);
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

    fn show_stores(&self) {
        let active = self.lanes.iter().filter(|lane| lane.is_active()).count();
        let missed = self.lanes.iter().map(|lane| lane.missed.count()).sum();
        metric::stores_active(self.set.vdisk(), active, missed);
    }
}

/// Whether a store has room for more than what is written right now.
pub(super) fn takes_backfill(lane: &Lane, settings: &LogSettings) -> bool {
    lane.is_active() && lane.outstanding < settings.in_flight.max(2)
}
