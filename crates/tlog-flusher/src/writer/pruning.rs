//! Removing what is below the log's first number from every store, whenever it is there to be told.
//!
//! The first number rises here first; each store follows on its own. Between the two nothing is lost: readers and openings
//! take the highest first number that any store says, and what is at or above it is on all of them. A store that is out is told when it
//! is back, and after a crash the next opening tells those that lag.

use tlog_proto::AggregationNumber;
use tlog_store::StoreError;
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
        if first > committed.next() {
            // Who asked may be gone.
            drop(told.send(Err(PruneError::NotCommitted { first, committed })));
            return;
        }
        if first > self.first {
            tracing::info!(vdisk = %self.set.vdisk(), %first, was = %self.first, "history is removed");
            self.first = first;
            self.lanes.iter_mut().for_each(|lane| lane.forget_below(first));
            self.show_stores();
        }
        self.prunes.push(Waiting { first, told });
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
                    port.publish(set.vdisk(), epoch, committed).await?;
                    port.prune(set.vdisk(), epoch, first).await
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
        result: Result<(), StoreError>,
    ) {
        self.answered(now, store);
        if let Some(lane) = self.lanes.get_mut(store) {
            lane.pruning = false;
            if result.is_ok() {
                lane.first = lane.first.max(first);
            }
        }
        if let Err(error) = result {
            self.handle_failure(now, store, error);
        }
    }
}
