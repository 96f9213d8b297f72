//! Which vdisks there are, over all stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tlog_proto::VdiskId;
use tlog_store::{ShardStore, StoreError};

/// What the stores know together.
#[derive(Debug, Default)]
pub struct Inventory {
    /// By name of the vdisk.
    pub vdisks: BTreeMap<VdiskId, Known>,
    /// Stores that did not answer, and why.
    pub silent: Vec<String>,
}

/// How many stores know a vdisk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Stores that have a log of format 2.
    pub logs: usize,
    /// Stores that have a list of format 1.
    pub chains: usize,
}

/// Asks every store, each for at most `limit`.
pub async fn inventory(stores: &[Arc<dyn ShardStore>], limit: Duration) -> Inventory {
    let asked = stores.iter().map(|store| async move {
        let answer = tokio::time::timeout(limit, ask(store)).await;
        (store.address(), answer)
    });
    let mut found = Inventory::default();
    for (address, answer) in join_all(asked).await {
        match answer {
            Ok(Ok((logs, chains))) => {
                logs.into_iter().for_each(|vdisk| found.vdisks.entry(vdisk).or_default().logs += 1);
                chains.into_iter().for_each(|vdisk| found.vdisks.entry(vdisk).or_default().chains += 1);
            }
            Ok(Err(error)) => found.silent.push(error.to_string()),
            Err(_) => found.silent.push(format!("store {address}: no answer within {limit:?}")),
        }
    }
    found
}

async fn ask(store: &Arc<dyn ShardStore>) -> Result<(Vec<VdiskId>, Vec<VdiskId>), StoreError> {
    let logs = store.vdisks().await?;
    let chains = match store.chains() {
        Some(chains) => chains.linked_vdisks().await?,
        None => Vec::new(),
    };
    Ok((logs, chains))
}
