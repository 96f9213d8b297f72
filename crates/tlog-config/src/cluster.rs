//! The stores of a cluster, and where one finds out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tlog_proto::VdiskId;
use tokio::sync::watch;

use crate::StoreAddress;

/// A storage cluster as its document describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageCluster {
    /// Name of the cluster.
    pub id: String,
    /// The data stores; entry i holds shard i.
    pub data: Vec<StoreAddress>,
    /// Where a slave cluster keeps its sync position; data store 0 where there is none.
    pub metadata: Option<StoreAddress>,
    /// How the logs on it are split, where that is not as the server's settings say.
    pub shards: ClusterShards,
}

/// How the logs on a cluster are split into shards; what is none here is as the server's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterShards {
    /// k: data shards of an aggregation.
    pub data: Option<u8>,
    /// m: parity shards.
    pub parity: Option<u8>,
    /// W: stores that must hold an aggregation before it is acknowledged. Where k or m is given and this is not, it follows from them.
    pub write_quorum: Option<u8>,
}

/// Why a source does not say which stores a vdisk gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterSourceError {
    /// The source does not know the vdisk.
    #[error("vdisk {0} is not in the configuration")]
    UnknownVdisk(VdiskId),
    /// The vdisk has no cluster for its log.
    #[error("vdisk {0} has no storage cluster for its log in the configuration")]
    NoCluster(VdiskId),
    /// The source cannot be read.
    #[error("the configuration cannot be read: {0}")]
    Unavailable(String),
}

/// Knows which cluster the log of a vdisk is on, and what it becomes.
#[async_trait]
pub trait ClusterSource: std::fmt::Debug + Send + Sync + 'static {
    /// The cluster for the log of a vdisk. The receiver sees every later valid state of it; it ends when the source does.
    async fn tlog_cluster(
        &self,
        vdisk: &VdiskId,
    ) -> Result<watch::Receiver<Arc<StorageCluster>>, ClusterSourceError>;
}

/// A source in memory, changed by calls: for programs that know their clusters themselves, and for tests.
#[derive(Debug, Default)]
pub struct FixedClusters {
    vdisks: Mutex<BTreeMap<VdiskId, watch::Sender<Arc<StorageCluster>>>>,
}

impl FixedClusters {
    /// Says which cluster the log of a vdisk is on, or changes it.
    pub fn set(&self, vdisk: &VdiskId, cluster: StorageCluster) {
        let cluster = Arc::new(cluster);
        let mut vdisks = self.vdisks();
        match vdisks.get(vdisk) {
            Some(sender) => drop(sender.send_replace(cluster)),
            None => drop(vdisks.insert(vdisk.clone(), watch::Sender::new(cluster))),
        }
    }

    fn vdisks(&self) -> MutexGuard<'_, BTreeMap<VdiskId, watch::Sender<Arc<StorageCluster>>>> {
        self.vdisks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ClusterSource for FixedClusters {
    async fn tlog_cluster(
        &self,
        vdisk: &VdiskId,
    ) -> Result<watch::Receiver<Arc<StorageCluster>>, ClusterSourceError> {
        let vdisks = self.vdisks();
        let sender = vdisks.get(vdisk).ok_or_else(|| ClusterSourceError::UnknownVdisk(vdisk.clone()))?;
        Ok(sender.subscribe())
    }
}
