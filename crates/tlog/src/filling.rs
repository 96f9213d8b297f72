//! Waiting until stores that came back empty, or were put into the place of others, hold their shards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tlog_flusher::{LaneState, Log, StoreStatus};
use tlog_quorum::{Standing, StoreSet};

use crate::storage::OpenLogError;

/// How long a scrub waits for the writer to notice that a store is back: more than the longest pause between its tries.
const BACK_AGAIN: Duration = Duration::from_secs(15);

/// So many failures in a row to fill a store, a few seconds, are not waited out.
const FILLS_FAILED: u32 = 6;

/// How often a log that is being filled is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why stores that were put into a log's places do not count in it.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The log does not open.
    #[error(transparent)]
    Open(#[from] OpenLogError),
    /// One of them cannot be filled.
    #[error("store {store} cannot be filled: {why}; the log's writer goes on trying while it is open")]
    Refused {
        /// Its address.
        store: String,
        /// Why.
        why: String,
    },
    /// It closed before they were filled.
    #[error("the log was closed before the stores were filled: {0}; do the same again")]
    Closed(String),
}

/// Waits until no store is being filled, and answers which were. A store that is away and does not answer, or that cannot be
/// filled, is not waited for.
pub(crate) async fn wait_while_filling(log: &Log, set: &StoreSet) -> Vec<String> {
    let began = Instant::now();
    let mut filled = Vec::new();
    while let Some(status) = log.status().await {
        let mut busy = false;
        for (store, port) in status.stores.into_iter().zip(set.stores()) {
            match store.state {
                LaneState::Filling => {
                    busy |= store.fills_failed < FILLS_FAILED;
                    if !filled.contains(&store.address) {
                        filled.push(store.address);
                    }
                }
                LaneState::Active => busy |= store.missing > 0,
                // It may be back, and the writer has not tried it again yet.
                LaneState::Away if began.elapsed() < BACK_AGAIN => {
                    busy |= set.within_limit(port, port.status(set.vdisk())).await.is_ok();
                }
                LaneState::Away => {}
            }
        }
        if !busy {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    filled
}

/// Waits until stores that were put into these places of a log count in it. `progress` is told how many shards are missing there, from
/// time to time.
pub(crate) async fn wait_filled(
    log: &Log,
    set: &StoreSet,
    positions: &[usize],
    mut progress: impl FnMut(u64) + Send,
) -> Result<(), FillError> {
    let (began, mut failed_before) = (Instant::now(), BTreeMap::new());
    loop {
        let status = log.status().await.ok_or_else(|| {
            let closed = log.durability().borrow().closed.clone();
            FillError::Closed(closed.map_or_else(|| "it stopped".to_owned(), |why| why.to_string()))
        })?;
        let survey = set.survey().await;
        let mut missing = 0;
        let counts = positions.iter().all(|&position| {
            let store = status.stores.get(position);
            missing += store.map_or(0, |store| store.missing);
            let active = store.is_some_and(|store| store.state == LaneState::Active);
            // A writer that has not been told yet believes that the old store is still there.
            let view = survey.views.get(position);
            active && view.is_some_and(|view| view.standing == Standing::Member)
        });
        if counts && missing == 0 {
            return Ok(());
        }
        let mut stores = positions.iter().filter_map(|&position| status.stores.get(position));
        // What was counted before this began was about the store that was there then.
        let refused = |store: &&StoreStatus| {
            let before = failed_before.entry(store.address.clone()).or_insert(store.fills_failed);
            *before = (*before).min(store.fills_failed);
            let failed = store.fills_failed - *before;
            failed >= FILLS_FAILED || (failed >= 2 && began.elapsed() > BACK_AGAIN)
        };
        if let Some(refused) = stores.find(refused) {
            let (store, why) = (refused.address.clone(), refused.error.clone());
            return Err(FillError::Refused { store, why: why.unwrap_or_default() });
        }
        progress(missing);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
