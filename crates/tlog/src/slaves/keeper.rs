//! One vdisk's slave: which cluster it is on, and who keeps it up to date.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tlog_config::{StorageCluster, VdiskConfig};
use tlog_player::slave::{SlaveCluster, SlaveSyncOptions, SlaveSyncState, SlaveSyncer};
use tlog_player::{LogReader, OpenError};
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;
use tlog_redis::Links;
use tlog_server::Durability;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{NoSyncer, ShownSlave, guard, slave_cluster, slave_of};
use crate::storages::Storages;

/// How long one whose slave was taken over waits before it takes it back, while its log is open here.
const TAKE_BACK: Duration = Duration::from_secs(1);

/// How often one whose slave was taken over looks whether anybody keeps it up to date, while its log is not open here.
const LOOK_AFTER: Duration = Duration::from_secs(30);

/// Pause after a slave could not be set up.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Who keeps the slave, at the moment.
#[derive(Clone, Debug)]
pub(super) enum Keeping {
    /// The vdisk has none.
    NoSlave,
    /// Nobody has looked yet.
    Unknown,
    /// Nobody yet.
    Starting { slave: Arc<StorageCluster> },
    /// Nobody, since nothing was ever logged.
    NoLog { slave: Arc<StorageCluster> },
    /// This one; it may have ended.
    Syncer { slave: Arc<StorageCluster>, syncer: Arc<SlaveSyncer> },
    /// Nobody can.
    Unusable { slave: Arc<StorageCluster>, why: String },
}

/// Keeps one vdisk's slave, whatever the documents say of it.
pub(super) struct Keeper {
    keeping: watch::Receiver<Keeping>,
    open: watch::Sender<Open>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The log of the vdisk in this server.
#[derive(Clone, Debug, Default)]
struct Open {
    /// How far it is durable, while it is open.
    durability: Option<watch::Receiver<Durability>>,
    /// How often something became durable, or it was opened.
    grown: u64,
}

impl Keeper {
    pub(super) fn start(
        vdisk: VdiskId,
        storages: Storages,
        documents: watch::Receiver<Option<Arc<VdiskConfig>>>,
        links: Links,
    ) -> Self {
        let (tell, keeping) = watch::channel(Keeping::Unknown);
        let open = watch::Sender::new(Open::default());
        let stop = CancellationToken::new();
        let keeper = Work { vdisk, storages, links, tell, open: open.subscribe() };
        let (growing, stopped) = (grow(open.clone()), stop.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = keeper.run(documents, stopped) => {}
                () = growing => {}
            }
        });
        Self { keeping, open, stop, task: Mutex::new(Some(task)) }
    }

    pub(super) fn keeping(&self) -> watch::Receiver<Keeping> {
        self.keeping.clone()
    }

    pub(super) fn opened(&self, durability: watch::Receiver<Durability>) {
        self.open.send_modify(|open| {
            open.durability = Some(durability);
            open.grown += 1;
        });
    }

    pub(super) fn show(&self, vdisk: &VdiskId) -> Option<ShownSlave> {
        let (slave, syncer) = match &*self.keeping.borrow() {
            Keeping::NoSlave | Keeping::Unknown => return None,
            Keeping::Starting { slave } => (Arc::clone(slave), Err(NoSyncer::Starting)),
            Keeping::NoLog { slave } => (Arc::clone(slave), Err(NoSyncer::NoLog)),
            Keeping::Syncer { slave, syncer } => (Arc::clone(slave), Ok(syncer.status().borrow().clone())),
            Keeping::Unusable { slave, why } => (Arc::clone(slave), Err(NoSyncer::Unusable(why.clone()))),
        };
        Some(ShownSlave { vdisk: vdisk.clone(), cluster: slave.id.clone(), syncer })
    }

    /// Has its syncer note where it is and end.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let task = guard(&self.task).take();
        if let Some(task) = task {
            // It fails only where the runtime is shutting down, or with a panic that was told already.
            let _ = task.await;
        }
    }
}

/// Counts what becomes durable in the log that is open here.
async fn grow(open: watch::Sender<Open>) {
    let mut opened = open.subscribe();
    loop {
        let durability = opened.borrow_and_update().durability.clone();
        let Some(mut durability) = durability else {
            // The sender is ours.
            let _ = opened.changed().await;
            continue;
        };
        let this = durability.clone();
        let is_this =
            |open: &Open| open.durability.as_ref().is_some_and(|durability| durability.same_channel(&this));
        tokio::select! {
            () = async { drop(opened.wait_for(|open| !is_this(open)).await) } => {}
            changed = durability.changed() => {
                let closed = changed.is_err() || durability.borrow_and_update().closed.is_some();
                open.send_modify(|open| {
                    open.grown += 1;
                    if is_this(open) {
                        open.durability = (!closed).then(|| durability.clone());
                    }
                });
            }
        }
    }
}

struct Work {
    vdisk: VdiskId,
    storages: Storages,
    links: Links,
    tell: watch::Sender<Keeping>,
    open: watch::Receiver<Open>,
}

/// Where the log and the slave of a vdisk are.
#[derive(Clone, PartialEq)]
struct Clusters {
    /// By name: its stores are followed wherever they are used.
    log: String,
    slave: Arc<StorageCluster>,
}

impl Clusters {
    fn of(config: Option<&VdiskConfig>) -> Option<Self> {
        let log = config?.tlog.as_ref()?;
        Some(Self { log: log.cluster.id.clone(), slave: Arc::clone(slave_of(config?)?) })
    }
}

/// A syncer, and what it works on.
struct Begun {
    syncer: Arc<SlaveSyncer>,
    slave: SlaveCluster,
    log: StoreSet,
}

impl Work {
    async fn run(
        mut self,
        mut documents: watch::Receiver<Option<Arc<VdiskConfig>>>,
        stop: CancellationToken,
    ) {
        loop {
            let wanted = Clusters::of(documents.borrow_and_update().as_deref());
            let changed = async {
                // The end of the documents changes nothing.
                while documents.changed().await.is_ok() {
                    if Clusters::of(documents.borrow_and_update().as_deref()) != wanted {
                        return;
                    }
                }
                std::future::pending().await
            };
            let over = async {
                tokio::select! {
                    () = stop.cancelled() => true,
                    () = changed => false,
                }
            };
            match wanted.clone() {
                None => {
                    self.tell.send_replace(Keeping::NoSlave);
                    if over.await {
                        return;
                    }
                }
                Some(clusters) => {
                    if self.keep(clusters, over).await {
                        return;
                    }
                }
            }
        }
    }

    /// Keeps the slave on a cluster until it is over; answers whether for good.
    async fn keep(&mut self, clusters: Clusters, over: impl Future<Output = bool>) -> bool {
        let cluster = &clusters.slave;
        let mut over = std::pin::pin!(over);
        self.tell.send_replace(Keeping::Starting { slave: Arc::clone(cluster) });
        loop {
            let begun = tokio::select! {
                for_good = &mut over => return for_good,
                begun = self.begin(&clusters) => begun,
            };
            let Begun { syncer, slave, log } = match begun {
                Ok(begun) => begun,
                Err(not) => {
                    self.tell_not(cluster, not);
                    tokio::select! {
                        for_good = &mut over => return for_good,
                        () = self.wait_to_try_again() => continue,
                    }
                }
            };
            self.tell
                .send_replace(Keeping::Syncer { slave: Arc::clone(cluster), syncer: Arc::clone(&syncer) });
            let mut status = syncer.status();
            tokio::select! {
                for_good = &mut over => {
                    syncer.stop().await;
                    return for_good;
                }
                () = async { drop(status.wait_for(|status| status.state == SlaveSyncState::Fenced).await) } => {}
            }
            tracing::info!(vdisk = %self.vdisk, cluster = cluster.id, "another syncer has taken the slave over");
            tokio::select! {
                for_good = &mut over => return for_good,
                () = self.wait_for_turn(&slave, &log) => {}
            }
        }
    }

    async fn begin(&self, clusters: &Clusters) -> Result<Begun, NoSyncer> {
        let unusable = |error: &dyn std::error::Error| NoSyncer::Unusable(error.to_string());
        let slave =
            slave_cluster(&self.links, &self.vdisk, &clusters.slave).map_err(|error| unusable(&error))?;
        let storage = self.storages.of(&self.vdisk).await.map_err(|error| unusable(&error))?;
        let log = storage.store_set(&self.vdisk);
        let log =
            log.ok_or_else(|| NoSyncer::Unusable("the number of stores is not that of the shards".into()))?;
        if let Err(OpenError::UnknownVdisk { .. }) = LogReader::open(log.clone()).await {
            return Err(NoSyncer::NoLog);
        }
        let keys = storage.keys(&self.vdisk).map_err(|error| unusable(&error))?;
        let options =
            SlaveSyncOptions { format1: storage.format1_keys().cloned(), ..SlaveSyncOptions::default() };
        let syncer = SlaveSyncer::start(log.clone(), keys, slave.clone(), self.open.clone(), options);
        Ok(Begun { syncer: Arc::new(syncer.map_err(|error| unusable(&error))?), slave, log })
    }

    fn tell_not(&self, cluster: &Arc<StorageCluster>, why: NoSyncer) {
        let slave = Arc::clone(cluster);
        let now = match why {
            NoSyncer::Starting => return,
            NoSyncer::NoLog => Keeping::NoLog { slave },
            NoSyncer::Unusable(why) => {
                let told =
                    matches!(&*self.tell.borrow(), Keeping::Unusable { why: before, .. } if *before == why);
                if !told {
                    tracing::warn!(vdisk = %self.vdisk, cluster = cluster.id, error = why, "the slave cannot be kept up to date");
                }
                Keeping::Unusable { slave, why }
            }
        };
        self.tell.send_replace(now);
    }

    /// Until a log may be there, or whatever was wrong may be mended.
    async fn wait_to_try_again(&mut self) {
        let no_log = matches!(&*self.tell.borrow(), Keeping::NoLog { .. });
        let opened = async { drop(self.open.wait_for(|open| open.durability.is_some()).await) };
        tokio::select! {
            () = opened, if no_log => {}
            () = tokio::time::sleep(if no_log { LOOK_AFTER } else { TRY_AGAIN }) => {}
        }
    }

    /// After another one has taken the slave over: until that is not to stay so.
    async fn wait_for_turn(&mut self, slave: &SlaveCluster, log: &StoreSet) {
        let mut behind_at = None;
        loop {
            if self.open.borrow_and_update().durability.is_some() {
                // Whoever took it over may have gone already; two that both have the log open is what ends soon.
                return tokio::time::sleep(TAKE_BACK).await;
            }
            tokio::select! {
                () = async { drop(self.open.wait_for(|open| open.durability.is_some()).await) } => continue,
                () = tokio::time::sleep(LOOK_AFTER) => {}
            }
            let Ok(state) = slave.state().await else { continue };
            let Ok(reader) = LogReader::open(log.clone()).await else { continue };
            let at = state.position().map(|position| position.point.aggregation).unwrap_or_default();
            if at >= reader.extent().last {
                behind_at = None;
            } else if behind_at.replace(at) == Some(at) {
                tracing::info!(vdisk = %self.vdisk, "the slave stays behind, and nobody does anything about it: taking it over");
                return;
            }
        }
    }
}
