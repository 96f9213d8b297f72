//! What the documents of vdisks and clusters say about the settings: for the server, and for one command.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tlog_config::{ClusterShards, Configuration, StorageCluster, StoreAddress, VdiskConfig, open_source};
use tlog_proto::VdiskId;
use tokio::sync::watch;

use crate::settings::{
    Contradiction, DocumentSettings, Format, RedundancySettings, Settings, Storage, redundancy_of,
    store_twice,
};

/// Why a storage cluster cannot hold logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterFault {
    /// Fewer data stores than shards.
    #[error(
        "storage cluster {cluster} has {have} data stores, and data-shards {} + parity-shards {} need {}; add {} to its dataStorage",
        .redundancy.data_shards, .redundancy.parity_shards, .redundancy.stores(), .redundancy.stores().saturating_sub(*.have)
    )]
    TooFewStores {
        /// The cluster.
        cluster: String,
        /// How many it has.
        have: usize,
        /// How many are needed.
        redundancy: RedundancySettings,
    },
    /// One store twice: its loss would take two shards.
    #[error("storage cluster {cluster} has {address} twice; each shard needs a store of its own")]
    SameStoreTwice {
        /// The cluster.
        cluster: String,
        /// Which one.
        address: String,
    },
    /// Shards that make no sense.
    #[error("storage cluster {cluster} (dataShards, parityShards, writeQuorum, else as set): {why}")]
    Redundancy {
        /// The cluster.
        cluster: String,
        /// What is wrong with them.
        #[source]
        why: Contradiction,
    },
    /// A store in memory where stores must be durable.
    #[error(
        "storage cluster {cluster} has a store in memory, which forgets everything, and require-durable-stores is set"
    )]
    MemoryNotDurable {
        /// The cluster.
        cluster: String,
    },
    /// Format 1 where it cannot be.
    #[error("format 1 is on Redis servers alone, and storage cluster {cluster} has {address}")]
    Format1Store {
        /// The cluster.
        cluster: String,
        /// Another kind of store.
        address: String,
    },
}

/// Why it cannot be said where the log of a vdisk is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The documents do not know the vdisk.
    #[error("vdisk {0} is not in the configuration")]
    UnknownVdisk(VdiskId),
    /// The vdisk has no cluster for its log.
    #[error(
        "vdisk {0} has no storage cluster for its log in the configuration: it needs tlog.storageClusterID"
    )]
    NoCluster(VdiskId),
    /// The cluster cannot hold logs.
    #[error(transparent)]
    Cluster(#[from] ClusterFault),
}

/// Settings with the stores of one vdisk, and what the documents say of it.
pub struct Described {
    /// With its stores.
    pub settings: Settings,
    /// None where there are no documents.
    pub vdisk: Option<(Arc<VdiskConfig>, Configuration)>,
}

impl Described {
    /// The servers that the vdisk is to be written through, now and as they change; none where the documents say none.
    pub fn servers(&self) -> Option<(Vec<String>, impl Stream<Item = Vec<String>> + Send + 'static)> {
        let (config, configuration) = self.vdisk.as_ref()?;
        let cluster = config.nbd.as_ref()?.tlog_server_cluster_id.as_ref()?;
        let mut lists = configuration.tlog_servers(cluster);
        let now = lists.borrow_and_update().as_ref()?.to_vec();
        Some((now, server_lists(lists)))
    }
}

/// Each list of servers that comes, for [`tlog_client::Client::follow_servers`].
pub fn server_lists(
    lists: watch::Receiver<Option<Arc<Vec<String>>>>,
) -> impl Stream<Item = Vec<String>> + Send + 'static {
    let changes = stream::unfold(lists, async |mut lists| {
        lists.changed().await.ok()?;
        let list = lists.borrow_and_update().as_ref().map(|list| list.to_vec());
        Some((list, lists))
    });
    changes.filter_map(async |list| list)
}

impl Settings {
    /// The same with the stores of a cluster, and with its redundancy where it has one.
    pub fn on_cluster(&self, cluster: &StorageCluster) -> Result<Self, ClusterFault> {
        let id = || cluster.id.clone();
        let redundancy = shards(self.redundancy, &cluster.shards)
            .map_err(|why| ClusterFault::Redundancy { cluster: id(), why })?;
        let (have, needed) = (cluster.data.len(), redundancy.stores());
        if have < needed {
            return Err(ClusterFault::TooFewStores { cluster: id(), have, redundancy });
        }
        let used = cluster.data.get(..needed).unwrap_or_default();
        if let Some(store) = store_twice(used) {
            return Err(ClusterFault::SameStoreTwice { cluster: id(), address: store.to_string() });
        }
        if self.require_durable_stores && used.contains(&StoreAddress::Memory) {
            return Err(ClusterFault::MemoryNotDurable { cluster: id() });
        }
        let directory = used.iter().find(|store| matches!(store, StoreAddress::Directory(_)));
        if let Some(directory) = directory.filter(|_| self.format == Format::One) {
            return Err(ClusterFault::Format1Store { cluster: id(), address: directory.to_string() });
        }
        Ok(Self { storage: Storage::Stores(cluster.data.clone()), redundancy, ..self.clone() })
    }

    /// The same with the stores that the documents give a vdisk; unchanged where they are in the settings themselves.
    pub async fn of_vdisk(self, vdisk: &VdiskId) -> anyhow::Result<Self> {
        let source = match (&self.storage, &self.documents) {
            (Storage::Documents, Some(documents)) => documents.source.clone(),
            _ => return Ok(self),
        };
        let described = self.described(vdisk).await;
        let described = described.map_err(|error| match error.is::<PlacementError>() {
            true => error.context(format!(
                "config-source is {source}; where a log is that it does not know of, say with --storage"
            )),
            false => error,
        });
        Ok(described?.settings)
    }

    /// The same, and what else the documents say of the vdisk; only that where the stores are in the settings themselves.
    pub async fn described(self, vdisk: &VdiskId) -> anyhow::Result<Described> {
        let Some(documents) = &self.documents else {
            return Ok(Described { settings: self, vdisk: None });
        };
        let configuration = open(documents).await?;
        let config = configuration.vdisk(vdisk).borrow().clone();
        let config = config.ok_or_else(|| PlacementError::UnknownVdisk(vdisk.clone()))?;
        let settings = match self.storage {
            Storage::Documents => self.on_cluster(placement(Some(&config), vdisk)?)?,
            _ => self,
        };
        Ok(Described { settings, vdisk: Some((config, configuration)) })
    }

    /// One for each storage cluster that has logs, by name; these settings alone where the stores are in them.
    pub async fn of_clusters(self) -> anyhow::Result<Vec<(Option<String>, Result<Self, ClusterFault>)>> {
        let (Storage::Documents, Some(documents)) = (&self.storage, &self.documents) else {
            return Ok(vec![(None, Ok(self))]);
        };
        let clusters = clusters_with_logs(&open(documents).await?);
        Ok(clusters.iter().map(|cluster| (Some(cluster.id.clone()), self.on_cluster(cluster))).collect())
    }
}

/// The redundancy on a cluster, which may have its own.
fn shards(common: RedundancySettings, of: &ClusterShards) -> Result<RedundancySettings, Contradiction> {
    let ClusterShards { data, parity, write_quorum } = *of;
    if *of == ClusterShards::default() {
        return Ok(common);
    }
    let (k, m) = (data.unwrap_or(common.data_shards), parity.unwrap_or(common.parity_shards));
    redundancy_of(k.into(), m.into(), write_quorum.map(u64::from))
}

/// Reads the documents, and follows them.
pub async fn open(documents: &DocumentSettings) -> anyhow::Result<Configuration> {
    let source = open_source(&documents.source, &documents.etcd)?;
    Ok(Configuration::open(source).await?)
}

/// The cluster that a vdisk's log is on.
pub fn placement<'a>(
    config: Option<&'a VdiskConfig>,
    vdisk: &VdiskId,
) -> Result<&'a Arc<StorageCluster>, PlacementError> {
    let config = config.ok_or_else(|| PlacementError::UnknownVdisk(vdisk.clone()))?;
    let log = config.tlog.as_ref().ok_or_else(|| PlacementError::NoCluster(vdisk.clone()))?;
    Ok(&log.cluster)
}

/// Every cluster that the log of a vdisk is on, by name.
pub fn clusters_with_logs(configuration: &Configuration) -> Vec<Arc<StorageCluster>> {
    let mut clusters: BTreeMap<String, Arc<StorageCluster>> = BTreeMap::new();
    for vdisk in configuration.vdisks().borrow().iter() {
        let config = configuration.vdisk(vdisk).borrow().clone();
        if let Ok(cluster) = placement(config.as_deref(), vdisk) {
            clusters.entry(cluster.id.clone()).or_insert_with(|| Arc::clone(cluster));
        }
    }
    clusters.into_values().collect()
}
