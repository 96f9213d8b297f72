//! Stores that came back empty, or were replaced: filled, made members, and only then counted.

use std::sync::Arc;

use tlog_ambient::{Point, reached};
use tlog_quorum::place_of;
use tlog_store::{Members, NumberRanges, StoreError, StoreErrorKind, StoreIdentity};
use tokio::time::Instant;

use super::stores::{Filling, address};
use super::{Answer, Writer, wall_clock};
use crate::lane::LaneStanding;
use crate::log::CloseReason;
use crate::metric;
use crate::recovery::opening_quorum;
use crate::repair::{RefillError, RefillOrder, Refilled, refill, same_store};
use crate::settings::LogSettings;

impl Writer {
    pub(super) fn start_refill(&mut self, store: usize) {
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
    pub(super) fn enter_next(&mut self) {
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
}
