//! Removing a vdisk's log for good: `tlog delete`.

use std::sync::Arc;

use anyhow::Context;
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;
use tlog_store::ShardStore;

use crate::settings::Settings;
use crate::storage::{format1_keys, quorums};

/// Deletes the log of a vdisk, in both formats, from every store; answers how many stores that were.
pub async fn delete(
    settings: &Settings,
    stores: Vec<Arc<dyn ShardStore>>,
    vdisk: &VdiskId,
) -> anyhow::Result<usize> {
    let total = stores.len();
    let set = StoreSet::new(vdisk.clone(), stores, quorums(settings.redundancy)?, settings.store_timeout)
        .context("the number of stores is not that of the shards")?;
    // That part first: one that is left over looks like history that can be gone on from.
    if set.may_have_chain() && set.chain_survey().await.exists() {
        let keys = format1_keys(settings)?.with_context(|| {
            format!("vdisk {vdisk} has history of format 1: set private-key and nonce, which tell what belongs to it")
        })?;
        let report = tlog_flusher::format1::delete(&set, &keys, |_| {}).await?;
        for broken in report.broken {
            tracing::warn!(%vdisk, %broken, "history of format 1 could not be followed further; shards of what is before stay");
        }
    }
    tlog_flusher::delete_log(&set).await?;
    Ok(total)
}
