//! Removing what is below the log's first number from every store, whenever it is there to be told.
//!
//! The first number rises here first; each store follows on its own. Between the two nothing is lost: readers and openings
//! take the highest first number that any store says, and what is at or above it is on all of them. A store that is out is told when it
//! is back, and after a crash the next opening tells those that lag. A store that turns out to have removed more than the log is known to
//! have lost was told so by an earlier writer: what that one began is finished.

use tlog_ambient::{Point, reached};
use tlog_proto::AggregationNumber;
use tlog_store::{StoreError, StoreIdentity};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Answer, Writer};
use crate::lane::Lane;
use crate::pruning::{PruneError, Pruned};

/// Aggregations that a store removes at once: it answers nothing else meanwhile.
const STEP: u64 = 1024;

/// Somebody who waits for a prune.
pub(super) struct Waiting {
    first: AggregationNumber,
    told: oneshot::Sender<Result<Pruned, PruneError>>,
}

impl Writer {
    pub(super) fn handle_prune(
        &mut self,
        first: AggregationNumber,
        told: oneshot::Sender<Result<Pruned, PruneError>>,
    ) {
        let committed = self.tracker.committed();
        // The last one stays: an opening finds there what the next one follows.
        #[cfg(test)]
        let committed = match crate::broken::is_broken(crate::broken::Rule::LastStays) {
            true => committed.next(),
            false => committed,
        };
        if first > committed.max(self.first) {
            // Who asked may be gone.
            drop(told.send(Err(PruneError::NotCommitted { first, committed })));
            return;
        }
        self.raise_first(first);
        self.prunes.push(Waiting { first, told });
    }

    fn raise_first(&mut self, first: AggregationNumber) {
        if first <= self.first {
            return;
        }
        tracing::info!(vdisk = %self.set.vdisk(), %first, was = %self.first, "history is removed");
        self.first = first;
        self.kept_from.raise(first);
        self.lanes.iter_mut().for_each(|lane| lane.forget_below(first));
        self.show_stores();
    }

    /// A store said what the lowest number is that it keeps.
    pub(super) fn handle_first(&mut self, store: usize, first: AggregationNumber) {
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.first = first;
        }
        // What is not committed again yet is not removed; the store says it again.
        if first <= self.tracker.committed() {
            self.raise_first(first);
        }
    }

    /// Tells stores that keep more than the log does.
    pub(super) fn prune_due(&mut self) {
        let (first, epoch, committed) = (self.first, self.start.epoch, self.tracker.committed());
        for (store, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.is_active() || lane.pruning || lane.first >= first {
                continue;
            }
            let Some(port) = self.set.stores().get(store).cloned() else { continue };
            let first = first.min(AggregationNumber(lane.first.0.saturating_add(STEP)));
            lane.pruning = true;
            lane.outstanding += 1;
            let set = self.set.clone();
            self.calls.push(Box::pin(async move {
                let prune = async {
                    // It removes nothing that it does not know as committed.
                    let identity = port.publish(set.vdisk(), epoch, committed).await?;
                    reached(Point::BeforeStoreRemoval);
                    port.prune(set.vdisk(), epoch, first).await?;
                    reached(Point::AfterStoreRemoval);
                    Ok(identity)
                };
                let result = set.within_limit(&port, prune).await;
                Answer::Pruned { store, first, result }
            }));
        }
        let is_done = |waiting: &mut Waiting| {
            self.lanes.iter().all(|lane| !lane.is_active() || lane.first >= waiting.first)
        };
        let done: Vec<Waiting> = self.prunes.extract_if(.., is_done).collect();
        for Waiting { told, first: asked } in done {
            let lags = |(lane, _): &(&Lane, _)| lane.first < asked;
            let later = self.lanes.iter().zip(self.set.stores()).filter(lags);
            let later = later.map(|(_, port)| port.address().to_string()).collect();
            drop(told.send(Ok(Pruned { first, later })));
        }
    }

    pub(super) fn handle_pruned(
        &mut self,
        now: Instant,
        store: usize,
        first: AggregationNumber,
        result: Result<StoreIdentity, StoreError>,
    ) {
        self.answered(now, store);
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.pruning = false;
        }
        match result {
            Ok(identity) => {
                let member = self.lanes.get(store).is_some_and(Lane::is_member);
                if member
                    && self.check_identity(now, store, identity)
                    && let Some(lane) = self.lanes.get_mut(store)
                {
                    lane.first = lane.first.max(first);
                }
            }
            Err(error) => self.handle_failure(now, store, error),
        }
    }
}
