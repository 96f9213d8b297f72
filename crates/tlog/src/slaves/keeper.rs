//! One vdisk's slave: which cluster it is on, and who keeps it up to date.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tlog_codec::VdiskKeys;
use tlog_config::{ClusterShards, Configuration, StorageCluster, VdiskConfig};
use tlog_player::slave::{SlaveCluster, SlaveSyncOptions, SlaveSyncState, SlaveSyncer};
use tlog_player::{LogReader, OpenError};
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;
use tlog_redis::Links;
use tlog_server::Durability;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{InPlace, NoSyncer, ShownSlave, guard, slave_cluster, slave_of};
use crate::storages::Storages;

/// How long one whose slave was taken over waits before it takes it back, while its log is open here.
const TAKE_BACK: Duration = Duration::from_secs(1);

/// How often one whose slave was taken over looks whether anybody keeps it up to date, while its log is not open here.
const LOOK_AFTER: Duration = Duration::from_secs(30);

/// Least time between two looks whether a log is there.
const LEAST_WAIT: Duration = Duration::from_secs(1);

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
    /// Nobody, since stores are away that would tell whether anything was logged.
    LogAway { slave: Arc<StorageCluster>, why: String },
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
        configuration: Configuration,
        links: Links,
    ) -> Self {
        let (tell, keeping) = watch::channel(Keeping::Unknown);
        let open = watch::Sender::new(Open::default());
        let stop = CancellationToken::new();
        let documents = configuration.vdisk(&vdisk);
        let keeper = Work { vdisk, storages, configuration, links, tell, open: open.subscribe() };
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
            Keeping::LogAway { slave, why } => (Arc::clone(slave), Err(NoSyncer::LogAway(why.clone()))),
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
    configuration: Configuration,
    links: Links,
    tell: watch::Sender<Keeping>,
    open: watch::Receiver<Open>,
}

/// Where the log and the slave of a vdisk are. A syncer is for these alone.
#[derive(Clone, PartialEq)]
struct Clusters {
    /// By name: its stores are followed wherever they are used.
    log: String,
    /// With others the log is opened on stores that are followed anew, and those that were used until then are followed no more.
    shards: ClusterShards,
    slave: Arc<StorageCluster>,
    /// Where the disk is, if the documents say so: its name, and what is there.
    primary: Option<(String, Option<Arc<StorageCluster>>)>,
}

/// What a syncer works on.
struct Parts {
    slave: SlaveCluster,
    log: StoreSet,
    keys: VdiskKeys,
    options: SlaveSyncOptions,
}

impl Work {
    async fn run(
        mut self,
        mut documents: watch::Receiver<Option<Arc<VdiskConfig>>>,
        stop: CancellationToken,
    ) {
        loop {
            let config = documents.borrow_and_update().clone();
            let (wanted, mut primary) = clusters(&self.configuration, config.as_deref());
            let configuration = self.configuration.clone();
            let changed = async {
                loop {
                    tokio::select! {
                        // The end of the documents changes nothing.
                        Ok(()) = documents.changed() => {}
                        Ok(()) = changed(&mut primary) => {}
                        else => std::future::pending().await,
                    }
                    let config = documents.borrow().clone();
                    if clusters(&configuration, config.as_deref()).0 != wanted {
                        return;
                    }
                }
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
        // Whether a log that is found now was begun after the last look, and perhaps by another server.
        let mut had_none = false;
        loop {
            // What becomes durable from here on is a reason to look again.
            let open_here = self.open.borrow_and_update().durability.is_some();
            let parts = tokio::select! {
                for_good = &mut over => return for_good,
                parts = self.parts(&clusters) => parts,
            };
            let Parts { slave, log, keys, options } = match parts {
                Ok(parts) => parts,
                Err(not) => {
                    had_none |= matches!(not, NoSyncer::NoLog | NoSyncer::LogAway(_));
                    self.tell_not(cluster, not);
                    tokio::select! {
                        for_good = &mut over => return for_good,
                        () = self.wait_to_try_again() => continue,
                    }
                }
            };
            if std::mem::take(&mut had_none) && !open_here {
                // Whoever began it may keep its slave.
                tokio::select! {
                    for_good = &mut over => return for_good,
                    () = self.wait_for_turn(&slave, &log) => {}
                }
            }
            let syncer =
                match SlaveSyncer::start(log.clone(), keys, slave.clone(), self.open.clone(), options) {
                    Ok(syncer) => Arc::new(syncer),
                    Err(error) => {
                        self.tell_not(cluster, NoSyncer::Unusable(error.to_string()));
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

    async fn parts(&self, clusters: &Clusters) -> Result<Parts, NoSyncer> {
        let unusable = |error: &dyn std::error::Error| NoSyncer::Unusable(error.to_string());
        let slave =
            slave_cluster(&self.links, &self.vdisk, &clusters.slave).map_err(|error| unusable(&error))?;
        let storage = self.storages.of(&self.vdisk).await.map_err(|error| unusable(&error))?;
        let primary = clusters.primary.as_ref().and_then(|(_, cluster)| cluster.as_deref());
        let log_stores = storage.stores().into_iter().map(|store| store.address().to_string());
        InPlace::check(&clusters.slave, primary, log_stores).map_err(|error| unusable(&error))?;
        let log = storage.store_set(&self.vdisk);
        let log =
            log.ok_or_else(|| NoSyncer::Unusable("the number of stores is not that of the shards".into()))?;
        match LogReader::open(log.clone()).await {
            Err(OpenError::UnknownVdisk { unreachable, .. }) if unreachable.is_empty() => {
                return Err(NoSyncer::NoLog);
            }
            Err(error @ OpenError::UnknownVdisk { .. }) => return Err(NoSyncer::LogAway(error.to_string())),
            // The syncer waits for what it needs.
            Ok(_) | Err(_) => {}
        }
        let keys = storage.keys(&self.vdisk).map_err(|error| unusable(&error))?;
        let options =
            SlaveSyncOptions { format1: storage.format1_keys().cloned(), ..SlaveSyncOptions::default() };
        Ok(Parts { slave, log, keys, options })
    }

    fn tell_not(&self, cluster: &Arc<StorageCluster>, why: NoSyncer) {
        let slave = Arc::clone(cluster);
        let before = match &*self.tell.borrow() {
            Keeping::Unusable { why, .. } | Keeping::LogAway { why, .. } => why.clone(),
            _ => String::new(),
        };
        let now = match why {
            NoSyncer::Starting => return,
            NoSyncer::NoLog => Keeping::NoLog { slave },
            NoSyncer::LogAway(why) => Keeping::LogAway { slave, why },
            NoSyncer::Unusable(why) => Keeping::Unusable { slave, why },
        };
        if let Keeping::Unusable { why, .. } | Keeping::LogAway { why, .. } = &now
            && *why != before
        {
            tracing::warn!(vdisk = %self.vdisk, cluster = cluster.id, error = why, "the slave cannot be kept up to date");
        }
        self.tell.send_replace(now);
    }

    /// Until a log may be there, or whatever was wrong may be mended.
    async fn wait_to_try_again(&mut self) {
        if !matches!(&*self.tell.borrow(), Keeping::NoLog { .. } | Keeping::LogAway { .. }) {
            return tokio::time::sleep(TRY_AGAIN).await;
        }
        // A log that is open here is there only once something is durable, and each look asks all stores.
        tokio::time::sleep(LEAST_WAIT).await;
        tokio::select! {
            // The sender is there as long as the keeper.
            _ = self.open.changed() => {}
            () = tokio::time::sleep(LOOK_AFTER) => {}
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

type PrimaryReceiver = watch::Receiver<Option<Arc<StorageCluster>>>;

/// Where the documents say that the log, the slave and the disk are, none where there is no slave; and who tells when the last of these
/// is another one.
fn clusters(
    configuration: &Configuration,
    config: Option<&VdiskConfig>,
) -> (Option<Clusters>, Option<PrimaryReceiver>) {
    let nbd = config.and_then(|config| config.nbd.as_ref());
    let mut primary = nbd.map(|nbd| configuration.storage_cluster(&nbd.storage_cluster_id));
    let now = primary.as_mut().map(|primary| primary.borrow_and_update().clone());
    let clusters = config.and_then(|config| {
        let log = config.tlog.as_ref()?;
        Some(Clusters {
            log: log.cluster.id.clone(),
            shards: log.cluster.shards,
            slave: Arc::clone(slave_of(config)?),
            primary: nbd.map(|nbd| nbd.storage_cluster_id.clone()).zip(now),
        })
    });
    (clusters, primary)
}

/// When there is one, and it has changed.
async fn changed(primary: &mut Option<PrimaryReceiver>) -> Result<(), watch::error::RecvError> {
    match primary {
        Some(primary) => primary.changed().await,
        None => std::future::pending().await,
    }
}
