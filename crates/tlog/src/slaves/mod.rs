//! The slaves of a server's vdisks: each has a storage cluster that is kept up to date with its log.
//!
//! A slave has one syncer at a time, wherever it runs: whoever starts one takes the slave over from the one before. A server starts the
//! syncers of all its vdisks, so that what was written before it came is applied; one that was taken over by another server stays
//! quiet until its own server has the log open, or until the slave stays behind and nobody does anything about it.

mod in_place;
mod keeper;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tlog_config::{Configuration, StorageCluster, VdiskConfig};
use tlog_player::slave::{SlaveCluster, SlaveStatus, SlaveWaitError};
use tlog_proto::{LogPosition, VdiskId};
use tlog_redis::{Links, SlaveServers, SlaveServersError, slave_servers};
use tlog_server::{Durability, LogStorage, OpenError, SlaveSync, SlaveSyncError, SlaveSyncOutcome, VdiskLog};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use self::keeper::{Keeper, Keeping};
use crate::moment;
use crate::storages::Storages;

pub use self::in_place::InPlace;
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

/// Keeps the slaves of all vdisks that have one, or knows at least which have one. Cheap to clone.
#[derive(Clone)]
pub struct Slaves {
    inner: Arc<Inner>,
}

struct Inner {
    storages: Storages,
    configuration: Configuration,
    links: Links,
    /// Whether slaves are kept up to date here; else there are no keepers.
    keeps: bool,
    /// Of every vdisk that the documents know, as soon as somebody asks for it.
    keepers: Mutex<BTreeMap<VdiskId, Keeper>>,
    /// Keepers of vdisks that are gone, which still note where they are.
    leaving: TaskTracker,
    following: Mutex<Option<JoinHandle<()>>>,
}

/// Why nobody can be told that a slave holds everything.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error(
        "this server has slave-sync off, and the vdisk has a slave on storage cluster {cluster}: ask the server that keeps it, or set \
         slave-sync"
    )]
    Off { cluster: String },
    #[error("the documents do not know the vdisk any more")]
    Removed,
    #[error("the slave on storage cluster {cluster} cannot be kept up to date: {why}")]
    Unusable { cluster: String, why: String },
    #[error("the server is stopping")]
    Stopping,
    #[error("what kept the slave has ended by a fault; restart the server")]
    Ended,
}

impl From<NotKept> for SlaveSyncError {
    fn from(why: NotKept) -> Self {
        SlaveSyncError(why.into())
    }
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
    /// Stores of the log are away, so that it is not known whether anything was logged.
    LogAway(String),
    /// It cannot be kept up to date, for this reason.
    Unusable(String),
}

impl NoSyncer {
    /// A short name for metrics and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            NoSyncer::Starting => "starting",
            NoSyncer::NoLog => "no_log",
            NoSyncer::LogAway(_) => "waiting_for_log",
            NoSyncer::Unusable(_) => "unusable",
        }
    }
}

impl Slaves {
    /// Begins to keep the slaves of all vdisks that the documents know, as they change. Where slaves are not to be kept it only knows
    /// which vdisks have one: who waits for it is not told that there is none.
    pub fn start(storages: Storages, configuration: Configuration, links: Links, keeps: bool) -> Self {
        let inner = Arc::new(Inner {
            storages,
            configuration,
            links,
            keeps,
            keepers: Mutex::default(),
            leaving: TaskTracker::new(),
            following: Mutex::default(),
        });
        let slaves = Self { inner };
        if keeps {
            let following = tokio::spawn(slaves.clone().follow());
            *guard(&slaves.inner.following) = Some(following);
        }
        slaves
    }

    /// A keeper for each vdisk there is.
    async fn follow(self) {
        let mut names = self.inner.configuration.vdisks();
        loop {
            let now = Arc::clone(&names.borrow_and_update());
            now.iter().for_each(|vdisk| self.with_keeper(vdisk, |_| ()).unwrap_or_default());
            for gone in self.take_gone(&now) {
                // One whose slave hangs must not hold up the others.
                self.inner.leaving.spawn(async move { gone.stop().await });
            }
            if names.changed().await.is_err() {
                return;
            }
        }
    }

    /// Does something with the keeper of a vdisk, which begins with that where there is none yet. None where the documents do not know
    /// the vdisk, or the server is stopping.
    fn with_keeper<T>(&self, vdisk: &VdiskId, work: impl FnOnce(&Keeper) -> T) -> Option<T> {
        let Inner { storages, configuration, links, keepers, .. } = &*self.inner;
        let mut keepers = guard(keepers);
        if self.inner.leaving.is_closed() {
            return None;
        }
        if let Some(keeper) = keepers.get(vdisk) {
            return Some(work(keeper));
        }
        if configuration.vdisk(vdisk).borrow().is_none() {
            return None;
        }
        let keeper = Keeper::start(vdisk.clone(), storages.clone(), configuration.clone(), links.clone());
        Some(work(keepers.entry(vdisk.clone()).or_insert(keeper)))
    }

    /// Those of vdisks that the documents do not know any more.
    fn take_gone(&self, now: &BTreeSet<VdiskId>) -> Vec<Keeper> {
        let mut keepers = guard(&self.inner.keepers);
        // One that is newer than `now` may be there already.
        let is_gone = |vdisk: &&VdiskId| {
            !now.contains(*vdisk) && self.inner.configuration.vdisk(vdisk).borrow().is_none()
        };
        let gone: Vec<VdiskId> = keepers.keys().filter(is_gone).cloned().collect();
        gone.iter().filter_map(|vdisk| keepers.remove(vdisk)).collect()
    }

    /// Has it told that a log is open here, and when it has grown.
    fn opened(&self, vdisk: &VdiskId, durability: watch::Receiver<Durability>) {
        if self.inner.keeps {
            self.with_keeper(vdisk, |keeper| keeper.opened(durability)).unwrap_or_default();
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
            let age = since.map_or(0, |since| moment::now().0.saturating_sub(since.0));
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
        let keepers = {
            let mut keepers = guard(&self.inner.keepers);
            // From here on nobody makes another one.
            self.inner.leaving.close();
            std::mem::take(&mut *keepers)
        };
        for (_, keeper) in keepers {
            self.inner.leaving.spawn(async move { keeper.stop().await });
        }
        let stopping = self.inner.leaving.wait();
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
        // What the documents say counts, not whom this server has: "there is none" makes a disk switch to whatever it finds.
        let mut documents = self.inner.configuration.vdisk(vdisk);
        loop {
            let config = documents.borrow_and_update().clone().ok_or(NotKept::Removed)?;
            let Some(slave) = slave_of(&config) else { return Ok(SlaveSyncOutcome::NoSlave) };
            let cluster = slave.id.clone();
            if !self.inner.keeps {
                return Err(NotKept::Off { cluster }.into());
            }
            let Some(mut keeping) = self.with_keeper(vdisk, Keeper::keeping) else {
                let stopping = self.inner.leaving.is_closed();
                return Err(if stopping { NotKept::Stopping } else { NotKept::Removed }.into());
            };
            let now = keeping.borrow_and_update().clone();
            match now {
                Keeping::Unusable { slave: of, why } if of == *slave => {
                    return Err(NotKept::Unusable { cluster, why }.into());
                }
                Keeping::Syncer { slave: of, syncer } if of == *slave => {
                    match syncer.hand_over(position).await {
                        Ok(()) => return Ok(SlaveSyncOutcome::Synced),
                        // The next one knows.
                        Err(SlaveWaitError::Fenced | SlaveWaitError::Ended) => {}
                        Err(error) => return Err(SlaveSyncError(error.into())),
                    }
                }
                // Also one of another cluster, which the documents named before.
                _ => {}
            }
            tokio::select! {
                changed = keeping.changed() => {
                    let is_it = |keeper: &Keeper| keeper.keeping().same_channel(&keeping);
                    if changed.is_err() && self.with_keeper(vdisk, is_it).unwrap_or_default() {
                        return Err(NotKept::Ended.into());
                    }
                }
                // The end of the documents changes nothing.
                Ok(()) = documents.changed() => {}
            }
        }
    }
}

/// The cluster of a vdisk's slave, by its document.
fn slave_of(config: &VdiskConfig) -> Option<&Arc<StorageCluster>> {
    config.tlog.as_ref()?.slave.as_ref()
}

/// Storage that tells the slaves of logs that are opened.
pub struct WithSlaves {
    /// Where logs are.
    pub storages: Storages,
    /// None where there are no documents, which say what slaves there are.
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

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
