//! Storing one aggregation on every store.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::format1::LAST_HASHES;
use tlog_proto::AggregationId;
use tlog_quorum::StoreSet;

use crate::metric;

/// How often a store is tried, as existing servers do.
pub(super) const TRIES: u32 = 4;

/// Some stores did not take an aggregation. What each of them said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotStored {
    pub(super) id: AggregationId,
    pub(super) errors: Vec<(usize, String)>,
}

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, errors } = self;
        write!(
            f,
            "aggregation {id} of format 1 must be on every store, and {} did not take it",
            errors.len()
        )?;
        for (at, (_, error)) in errors.iter().enumerate() {
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
        let mut errors = Vec::new();
        for (store, answer) in answers.into_iter().enumerate() {
            let failed = match answer {
                Some(Err(error)) => {
                    metric::store_failure(set.vdisk(), &error.address);
                    tracing::debug!(vdisk = %set.vdisk(), store = %error.address, %error, "not stored");
                    errors.push((store, error.to_string()));
                    true
                }
                _ => false,
            };
            if let Some(left) = left.get_mut(store) {
                *left &= failed;
            }
        }
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
