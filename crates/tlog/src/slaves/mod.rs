//! The slaves of a server's vdisks: each has a storage cluster that is kept up to date with its log.
//!
//! A slave has one syncer at a time, wherever it runs: whoever starts one takes the slave over from the one before. A server starts the
//! syncers of all its vdisks, so that what was written before it came is applied; one that was taken over by another server stays
//! quiet until its own server has the log open, or until the slave stays behind and nobody does anything about it.

mod keeper;
mod show;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::join_all;
use tlog_config::{Configuration, StorageCluster};
use tlog_player::slave::{SlaveCluster, SlaveStatus, SlaveWaitError};
use tlog_proto::{LogPosition, VdiskId};
use tlog_redis::{Links, SlaveServers, SlaveServersError, slave_servers};
use tlog_server::{Durability, LogStorage, OpenError, SlaveSync, SlaveSyncError, SlaveSyncOutcome, VdiskLog};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::keeper::{Keeper, Keeping};
use crate::storages::Storages;

pub use self::show::{show_lag, show_position, show_restoring, show_slave};

/// How long stopping waits for syncers to note where they are.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The slave of a vdisk on a cluster.
pub fn slave_cluster(
    links: &Links,
    vdisk: &VdiskId,
    cluster: &StorageCluster,
) -> Result<SlaveCluster, SlaveServersError> {
    let SlaveServers { data, metadata } = slave_servers(links, cluster)?;
    SlaveCluster::new(vdisk.clone(), data, metadata)
        .ok_or_else(|| SlaveServersError::NoDataStores { cluster: cluster.id.clone() })
}

/// Keeps the slaves of all vdisks that have one. Cheap to clone.
#[derive(Clone)]
pub struct Slaves {
    inner: Arc<Inner>,
}

struct Inner {
    storages: Storages,
    configuration: Configuration,
    links: Links,
    /// Of every vdisk that the documents know.
    keepers: Mutex<BTreeMap<VdiskId, Keeper>>,
    following: Mutex<Option<JoinHandle<()>>>,
}

/// What a server shows of one slave.
#[derive(Clone, Debug)]
pub struct ShownSlave {
    /// Whose it is.
    pub vdisk: VdiskId,
    /// On which cluster.
    pub cluster: String,
    /// How its syncer is doing, or why it has none.
    pub syncer: Result<SlaveStatus, NoSyncer>,
}

/// Why a slave has no syncer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSyncer {
    /// It was not come to yet.
    Starting,
    /// Nothing was ever logged.
    NoLog,
    /// It cannot be kept up to date, for this reason.
    Unusable(String),
}

impl NoSyncer {
    /// A short name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            NoSyncer::Starting => "starting",
            NoSyncer::NoLog => "no_log",
            NoSyncer::Unusable(_) => "unusable",
        }
    }
}

impl Slaves {
    /// Begins to keep the slaves of all vdisks that the documents know, as they change.
    pub fn start(storages: Storages, configuration: Configuration, links: Links) -> Self {
        let inner = Arc::new(Inner {
            storages,
            configuration,
            links,
            keepers: Mutex::default(),
            following: Mutex::default(),
        });
        let slaves = Self { inner };
        let following = tokio::spawn(slaves.clone().follow());
        *guard(&slaves.inner.following) = Some(following);
        slaves
    }

    /// A keeper for each vdisk there is.
    async fn follow(self) {
        let mut names = self.inner.configuration.vdisks();
        loop {
            let now = Arc::clone(&names.borrow_and_update());
            let gone: Vec<Keeper> = {
                let mut keepers = guard(&self.inner.keepers);
                for vdisk in
                    now.iter().filter(|vdisk| !keepers.contains_key(*vdisk)).cloned().collect::<Vec<_>>()
                {
                    let Inner { storages, configuration, links, .. } = &*self.inner;
                    let keeper = Keeper::start(
                        vdisk.clone(),
                        storages.clone(),
                        configuration.vdisk(&vdisk),
                        links.clone(),
                    );
                    keepers.insert(vdisk, keeper);
                }
                let names: Vec<VdiskId> =
                    keepers.keys().filter(|vdisk| !now.contains(*vdisk)).cloned().collect();
                names.iter().filter_map(|vdisk| keepers.remove(vdisk)).collect()
            };
            join_all(gone.iter().map(Keeper::stop)).await;
            if names.changed().await.is_err() {
                return;
            }
        }
    }

    /// Has it told that a log is open here, and when it has grown.
    fn opened(&self, vdisk: &VdiskId, durability: watch::Receiver<Durability>) {
        if let Some(keeper) = guard(&self.inner.keepers).get(vdisk) {
            keeper.opened(durability);
        }
    }

    /// Every slave there is, by name of its vdisk.
    pub fn show(&self) -> Vec<ShownSlave> {
        let keepers = guard(&self.inner.keepers);
        keepers.iter().filter_map(|(vdisk, keeper)| keeper.show(vdisk)).collect()
    }

    /// Sets the gauges that grow by themselves; to be called from time to time. `told` is what it answered the last time.
    pub fn measure(&self, told: BTreeMap<VdiskId, &'static str>) -> BTreeMap<VdiskId, &'static str> {
        let mut states = BTreeMap::new();
        for ShownSlave { vdisk, syncer, .. } in self.show() {
            let since = syncer.as_ref().ok().and_then(|status| status.lag).and_then(|lag| lag.since);
            let age = since.map_or(0, |since| now_ns().saturating_sub(since.0));
            metrics::gauge!("tlog_slave_lag_seconds", "vdisk" => vdisk.to_string()).set(age as f64 / 1e9);
            states.insert(vdisk, syncer.map_or_else(|no| no.kind(), |status| status.state.kind()));
        }
        let gauge = |vdisk: &VdiskId, state: &'static str, value: f64| {
            metrics::gauge!("tlog_slave_state", "vdisk" => vdisk.to_string(), "state" => state).set(value);
        };
        for (vdisk, before) in told.iter().filter(|(vdisk, before)| states.get(*vdisk) != Some(*before)) {
            gauge(vdisk, before, 0.0);
        }
        states.iter().for_each(|(vdisk, state)| gauge(vdisk, state, 1.0));
        states
    }

    /// Stops all syncers, so that they note where they are.
    pub async fn stop(&self) {
        if let Some(following) = guard(&self.inner.following).take() {
            following.abort();
        }
        let keepers = std::mem::take(&mut *guard(&self.inner.keepers));
        let stopping = join_all(keepers.values().map(Keeper::stop));
        if tokio::time::timeout(STOP_LIMIT, stopping).await.is_err() {
            tracing::warn!("not every slave's syncer could note where it is; the next look takes longer");
        }
    }
}

#[async_trait]
impl SlaveSync for Slaves {
    async fn wait_and_stop(
        &self,
        vdisk: &VdiskId,
        position: Option<LogPosition>,
    ) -> Result<SlaveSyncOutcome, SlaveSyncError> {
        let keeping = guard(&self.inner.keepers).get(vdisk).map(Keeper::keeping);
        let Some(mut keeping) = keeping else { return Ok(SlaveSyncOutcome::NoSlave) };
        loop {
            let now = keeping.borrow_and_update().clone();
            let syncer = match now {
                Keeping::NoSlave => return Ok(SlaveSyncOutcome::NoSlave),
                Keeping::Unusable { why, .. } => return Err(SlaveSyncError(why.into())),
                Keeping::Syncer { syncer, .. } => Some(syncer),
                Keeping::Starting { .. } | Keeping::NoLog { .. } => None,
            };
            if let Some(syncer) = syncer {
                match syncer.hand_over(position).await {
                    Ok(()) => return Ok(SlaveSyncOutcome::Synced),
                    // The next one knows.
                    Err(SlaveWaitError::Fenced | SlaveWaitError::Ended) => {}
                    Err(error) => return Err(SlaveSyncError(error.into())),
                }
            }
            if keeping.changed().await.is_err() {
                return Err(SlaveSyncError("the server is stopping".into()));
            }
        }
    }
}

/// Storage that tells the slaves of logs that are opened.
pub struct WithSlaves {
    /// Where logs are.
    pub storages: Storages,
    /// None where slaves are not kept.
    pub slaves: Option<Slaves>,
}

#[async_trait]
impl LogStorage for WithSlaves {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let log = self.storages.open(vdisk).await?;
        if let Some(slaves) = &self.slaves {
            slaves.opened(vdisk, log.durability());
        }
        Ok(log)
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
