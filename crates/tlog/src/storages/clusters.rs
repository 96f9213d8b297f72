//! The storage clusters that logs are on, opened when they are needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tlog_config::StorageCluster;
use tokio::sync::watch;

use super::NoStorage;
use super::cluster::{Cluster, Common};
use crate::documents::{PlacementError, clusters_with_logs};
use crate::storage::FlusherStorage;

/// All of them.
pub(super) struct Clusters {
    common: Common,
    open: Mutex<Open>,
    /// Whoever opens one holds its own meanwhile.
    opening: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Open {
    clusters: BTreeMap<String, Cluster>,
    /// Those whose write quorum is another one now, as long as logs are open on them.
    leaving: Vec<(String, Cluster)>,
}

/// A storage cluster in use, for people.
pub(super) struct InUse {
    pub(super) id: String,
    pub(super) storage: Arc<FlusherStorage>,
    /// What is not as the documents say.
    pub(super) note: Option<String>,
}

impl Clusters {
    pub(super) fn new(common: Common) -> Self {
        Self { common, open: Mutex::default(), opening: Mutex::default() }
    }

    /// What is on a cluster; opened now where it is the first use, or where its write quorum is another one now.
    pub(super) async fn get(&self, document: &Arc<StorageCluster>) -> Result<Arc<FlusherStorage>, NoStorage> {
        Ok(self.find(document).await?.0)
    }

    /// The same, once logs can be opened there.
    pub(super) async fn get_to_open(
        &self,
        document: &Arc<StorageCluster>,
    ) -> Result<Arc<FlusherStorage>, NoStorage> {
        let (storage, mut busy) = self.find(document).await?;
        // The server gives its client up before long.
        let _free = busy.wait_for(|busy| !busy).await;
        Ok(storage)
    }

    async fn find(
        &self,
        document: &Arc<StorageCluster>,
    ) -> Result<(Arc<FlusherStorage>, watch::Receiver<bool>), NoStorage> {
        let id = &document.id;
        let settings = self.common.settings.on_cluster(document).map_err(PlacementError::from);
        let known = || {
            let open = self.lock();
            let cluster = open.clusters.get(id)?;
            // One that is in use stays so where its document makes no sense for logs any more.
            let serves = settings.as_ref().is_ok_and(|settings| cluster.serves(&settings.redundancy));
            (serves || settings.is_err()).then(|| (cluster.storage(), cluster.busy()))
        };
        if let Some(known) = known() {
            return Ok(known);
        }
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let cluster = Cluster::open(id, &settings?, &self.common).await?;
        let found = (cluster.storage(), cluster.busy());
        let mut open = self.lock();
        let before = open.clusters.insert(id.clone(), cluster);
        open.leaving.extend(before.map(|before| (id.clone(), before)));
        open.leaving.retain(|(_, cluster)| !cluster.storage().open_vdisks().is_empty());
        Ok(found)
    }

    /// Opens every cluster that the log of a vdisk is on. What cannot be opened is warned of.
    pub(super) async fn open_all(&self) {
        for cluster in clusters_with_logs(&self.common.configuration) {
            if let Err(error) = self.get(&cluster).await {
                tracing::warn!(cluster = cluster.id, %error, "the stores of a storage cluster cannot be opened");
            }
        }
    }

    pub(super) fn in_use(&self) -> Vec<InUse> {
        let open = self.lock();
        let leaving = open.leaving.iter().filter(|(_, cluster)| !cluster.storage().open_vdisks().is_empty());
        let all = open.clusters.iter().chain(leaving.map(|(id, cluster)| (id, cluster)));
        let show = |(id, cluster): (&String, &Cluster)| InUse {
            id: id.clone(),
            storage: cluster.storage(),
            note: cluster.note(),
        };
        all.map(show).collect()
    }

    fn turn(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        opening.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(opening.entry(id.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
