//! The storage clusters that logs are on, opened when they are needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tlog_config::{Configuration, StorageCluster};
use tlog_crypto::Keyring;
use tlog_server::Server;

use super::NoStorage;
use super::cluster::Cluster;
use crate::documents::{PlacementError, clusters_with_logs};
use crate::settings::Settings;
use crate::storage::FlusherStorage;
use crate::stores::StoreOpener;

/// All of them.
pub(super) struct Clusters {
    settings: Settings,
    configuration: Configuration,
    opener: StoreOpener,
    keyring: Option<Arc<Keyring>>,
    server: Arc<OnceLock<Server>>,
    open: Mutex<BTreeMap<String, Cluster>>,
    /// Whoever opens one holds this meanwhile.
    opening: tokio::sync::Mutex<()>,
}

impl Clusters {
    pub(super) fn new(
        settings: Settings,
        configuration: Configuration,
        opener: StoreOpener,
        keyring: Option<Arc<Keyring>>,
        server: Arc<OnceLock<Server>>,
    ) -> Self {
        let (open, opening) = Default::default();
        Self { settings, configuration, opener, keyring, server, open, opening }
    }

    /// What is on a cluster; opened now where it is the first use, or where its redundancy is another one now.
    pub(super) async fn get(&self, document: &Arc<StorageCluster>) -> Result<Arc<FlusherStorage>, NoStorage> {
        if let Some(storage) = self.known(&document.id) {
            return Ok(storage);
        }
        let _opening = self.opening.lock().await;
        if let Some(storage) = self.known(&document.id) {
            return Ok(storage);
        }
        let settings = self.settings.on_cluster(document).map_err(PlacementError::from)?;
        let documents = self.configuration.storage_cluster(&document.id);
        let (common, server) = (self.settings.clone(), Arc::clone(&self.server));
        let cluster = Cluster::open(
            &document.id,
            &settings,
            common,
            &self.opener,
            self.keyring.clone(),
            documents,
            server,
        )
        .await?;
        let storage = cluster.storage();
        self.lock().insert(document.id.clone(), cluster);
        Ok(storage)
    }

    /// Opens every cluster that the log of a vdisk is on. What cannot be opened is warned of.
    pub(super) async fn open_all(&self) {
        for cluster in clusters_with_logs(&self.configuration) {
            if let Err(error) = self.get(&cluster).await {
                tracing::warn!(cluster = cluster.id, %error, "the stores of a storage cluster cannot be opened");
            }
        }
    }

    pub(super) fn in_use(&self) -> Vec<(Option<String>, Arc<FlusherStorage>)> {
        self.lock().iter().map(|(id, cluster)| (Some(id.clone()), cluster.storage())).collect()
    }

    fn known(&self, id: &str) -> Option<Arc<FlusherStorage>> {
        self.lock().get(id).filter(|cluster| !cluster.is_over()).map(Cluster::storage)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Cluster>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
