//! Removing a log of format 1.

use std::collections::HashSet;

use tlog_codec::format1::Keys;
use tlog_proto::AggregationId;
use tlog_quorum::{LinkCondition, LinkError, LinkFault, LinkRead, StoreSet, TooFewStores};
use tlog_store::StoreError;

/// How far a deletion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteProgress {
    /// Aggregations that were found.
    pub found: u64,
    /// Aggregations whose shards are gone.
    pub removed: u64,
}

/// What a deletion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteReport {
    /// Aggregations whose shards were removed.
    pub aggregations: u64,
    /// Where the chain could not be followed any further back. Shards of what is before, if there are any, stay where they are:
    /// nothing names them any more. Also the sign that an earlier deletion had got that far. What belongs to another vdisk, or
    /// does not open while others do, was left alone.
    pub broken: Vec<LinkError>,
}

/// A log of format 1 cannot be deleted. What was removed already is gone; it can be begun again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Some stores do not answer. Their list would bring the log back.
    #[error(transparent)]
    TooFewStores(#[from] TooFewStores),
    /// Without its keys nothing tells which shards belong to the vdisk.
    #[error(
        "{0}; set the private-key and nonce of the server that wrote it: without them nothing tells which shards are its own"
    )]
    Key(#[source] LinkError),
    /// A store went away while the chain was followed.
    #[error("{0}; bring it back and begin again")]
    Unreachable(#[source] LinkError),
    /// A store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes every shard of a vdisk's log of format 1 and then its lists. All n stores must answer. Follows the chain to its
/// beginning first and removes from there, one aggregation after the other on all stores at once: where that stops in the middle,
/// what is left is still found by doing it again. Keeps one id in memory for each aggregation.
///
/// A vdisk that has gone on in format 2: delete this part first. A log of format 1 that is left over looks like one that can be
/// gone on from.
pub async fn delete(
    set: &StoreSet,
    keys: &Keys,
    mut progress: impl FnMut(DeleteProgress),
) -> Result<DeleteReport, DeleteError> {
    let chain = set.chain_survey().await;
    chain.require(set.stores().len())?;
    let mut report = DeleteReport::default();
    let mut done = DeleteProgress::default();
    let (mut opened, mut sealed) = (false, None);
    let mut found = HashSet::new();
    let mut order = Vec::new();
    for listed in chain.lists.iter().flatten().flatten() {
        let from = order.len();
        let mut walk = set.chain_walk(*listed, keys, LinkRead::Enough);
        while let Some(id) = walk.next_id().filter(|id| !found.contains(id)) {
            // What cannot be read is removed too: it may be what an earlier deletion left half-way.
            found.insert(id);
            order.push(id);
            done.found += 1;
            progress(done);
            match walk.next().await {
                Ok(_) => opened = true,
                Err(error) if is_unreachable(&error) => return Err(DeleteError::Unreachable(error)),
                Err(error) => {
                    // Another vdisk's, or not known to be this one's: somebody has written it into the list.
                    if matches!(error.fault, LinkFault::OtherVdisk(_) | LinkFault::Key) {
                        order.pop();
                    }
                    if error.fault == LinkFault::Key {
                        sealed.get_or_insert_with(|| error.clone());
                    }
                    report.broken.push(error);
                    break;
                }
            }
        }
        // Oldest first. What this walk ended at, where it met an earlier one, stands before it.
        if let Some(walked) = order.get_mut(from..) {
            walked.reverse();
        }
    }
    if let Some(error) = sealed.filter(|_| !opened) {
        return Err(DeleteError::Key(error));
    }
    for id in order {
        remove(set, id).await?;
        report.aggregations += 1;
        done.removed += 1;
        progress(done);
    }
    let stores = set.chain_stores();
    let can = |store: usize| stores.get(store).is_some_and(Option::is_some);
    let lists = set.on_chains(can, |_, chains| async move { chains.delete_links(set.vdisk()).await }).await;
    lists.into_iter().flatten().collect::<Result<(), _>>()?;
    tracing::info!(vdisk = %set.vdisk(), aggregations = report.aggregations, "log of format 1 deleted");
    Ok(report)
}

/// Removes all shards of one aggregation.
async fn remove(set: &StoreSet, id: AggregationId) -> Result<(), StoreError> {
    let stores = set.chain_stores();
    let can = |store: usize| stores.get(store).is_some_and(Option::is_some);
    let removed =
        set.on_chains(can, |_, chains| async move { chains.delete_linked_shards(&[id]).await }).await;
    removed.into_iter().flatten().collect()
}

fn is_unreachable(error: &LinkError) -> bool {
    error.conditions.iter().any(|(_, condition)| matches!(condition, LinkCondition::Unreachable(_)))
}
