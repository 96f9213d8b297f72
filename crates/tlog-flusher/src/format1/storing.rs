//! Storing one aggregation on every store.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::format1::LAST_HASHES;
use tlog_proto::AggregationId;
use tlog_quorum::StoreSet;

use crate::metric;

/// How often a store is tried, as existing servers do.
pub(super) const TRIES: u32 = 4;

/// What each store said when it did not take what is being stored; none where it took it. Shared with who shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Vec<Option<String>>>>);

impl Trouble {
    fn set(&self, errors: Vec<Option<String>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = errors;
    }

    /// What this store said.
    pub(super) fn of(&self, store: usize) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(store).cloned().flatten()
    }
}

/// Some stores did not take an aggregation. What each of them said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotStored {
    id: AggregationId,
    errors: Vec<String>,
}

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, errors } = self;
        write!(
            f,
            "aggregation {id} of format 1 must be on every store, and {} did not take it",
            errors.len()
        )?;
        for (at, error) in errors.iter().enumerate() {
            write!(f, "{}{error}", if at == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Stores the shards of an aggregation and puts its id in front of the lists, on the stores that `on` chooses. Each is tried
/// [`TRIES`] times, with a pause between that doubles.
pub(super) async fn store_link(
    set: &StoreSet,
    id: AggregationId,
    shards: &[Bytes],
    on: impl Fn(usize) -> bool,
    mut pause: Duration,
    trouble: &Trouble,
) -> Result<(), NotStored> {
    let mut left: Vec<bool> = (0..set.stores().len()).map(on).collect();
    let mut tries = 1;
    loop {
        let is_left = |store: usize| left.get(store).copied().unwrap_or(false);
        let answers = set
            .on_chains(is_left, |store, chains| {
                let shard = shards.get(store).cloned().unwrap_or_default();
                async move { chains.append_link(set.vdisk(), id, shard, LAST_HASHES).await }
            })
            .await;
        let failures = answers.into_iter().map(|answer| {
            let error = answer?.err()?;
            metric::store_failure(set.vdisk(), &error.address);
            tracing::debug!(vdisk = %set.vdisk(), store = %error.address, %error, "not stored");
            Some(error.to_string())
        });
        let failures: Vec<Option<String>> = failures.collect();
        left = failures.iter().map(Option::is_some).collect();
        let errors: Vec<String> = failures.iter().flatten().cloned().collect();
        trouble.set(failures);
        if errors.is_empty() {
            return Ok(());
        }
        if tries == TRIES {
            return Err(NotStored { id, errors });
        }
        tries += 1;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
