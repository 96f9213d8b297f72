//! The running view of a source.

mod composed;
mod receivers;
mod valid;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tlog_proto::VdiskId;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

pub(crate) use composed::State;

use crate::{
    ClusterSource, ClusterSourceError, DocumentKey, DocumentSource, DocumentWatch, Problem, SourceError,
    SourceEvent, StorageCluster, VdiskType,
};
use composed::Effects;
use receivers::Receivers;

/// Everything about one vdisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiskConfig {
    /// Which one.
    pub vdisk: VdiskId,
    /// What it is for.
    pub vdisk_type: VdiskType,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of all blocks; whole blocks, at least one.
    pub size: u64,
    /// Whether nothing may be written to it.
    pub read_only: bool,
    /// Where its log is; none where no cluster is named for it, or never was one that is there.
    pub tlog: Option<LogStorage>,
    /// Where its blocks are; none likewise.
    pub nbd: Option<NbdStorage>,
}

/// Where the log of a vdisk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStorage {
    /// The stores of its shards.
    pub cluster: Arc<StorageCluster>,
    /// Where its blocks are applied to.
    pub slave: Option<Arc<StorageCluster>>,
}

/// Where the blocks of a vdisk are, and which tlog servers take its writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdStorage {
    /// The cluster with its blocks.
    pub storage_cluster_id: String,
    /// The cluster with the blocks that it began with.
    pub template_storage_cluster_id: Option<String>,
    /// The cluster that takes over when that of its blocks is lost.
    pub slave_storage_cluster_id: Option<String>,
    /// The cluster of tlog servers.
    pub tlog_server_cluster_id: Option<String>,
    /// The servers of that one, each as host:port.
    pub tlog_servers: Option<Arc<Vec<String>>>,
}

/// How a source is, and what is wrong in it.
#[derive(Debug, Clone)]
pub struct SourceHealth {
    /// Since when and why it cannot be read; none while it can.
    pub away: Option<SourceAway>,
    /// Which state of the source is in force; only good for comparing.
    pub revision: u64,
    /// When something was taken from it last.
    pub last_change: SystemTime,
    /// How many vdisks there are.
    pub vdisks: usize,
    /// Everything in it that is wrong and therefore not in force.
    pub problems: Vec<Problem>,
}

/// That a source cannot be read. What was known counts on.
#[derive(Debug, Clone)]
pub struct SourceAway {
    /// Since when.
    pub since: SystemTime,
    /// Why, for a person.
    pub why: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The source cannot be read, or makes no sense as a whole.
    #[error("the configuration cannot be read: {0}")]
    Source(#[from] SourceError),
}

/// What a source says, always the last valid state of it.
///
/// - An invalid document never replaces a valid one; nor does one that names a cluster which is not there.
/// - A cluster that goes away while a vdisk uses it stays as it was, for that vdisk.
/// - A vdisk is there as long as its static document is.
/// - A source that is away changes nothing.
///
/// Cheap to clone. One task follows the source; it ends with the last clone, and so do the receivers.
#[derive(Debug, Clone)]
pub struct Configuration {
    shared: Arc<Shared>,
    orders: mpsc::Sender<oneshot::Sender<()>>,
}

impl Configuration {
    /// Reads everything once, then follows the source. A source that cannot be read is an error; documents in it that are not valid are told
    /// of ([`Configuration::problems`]) and left out. Must be called within a tokio runtime.
    pub async fn open(source: Arc<dyn DocumentSource>) -> Result<Self, ConfigurationError> {
        let snapshot = source.get().await?;
        let watch = source.watch(snapshot.revision);
        let shared = Arc::new(Shared::default());
        shared.handle_event(SourceEvent::All(snapshot));
        let (orders, incoming) = mpsc::channel(1);
        tokio::spawn(follow(Arc::clone(&shared), watch, incoming));
        Ok(Self { shared, orders })
    }

    /// What a vdisk gets. Fires only when that is another than before; none where there is no such vdisk (any more).
    pub fn vdisk(&self, vdisk: &VdiskId) -> watch::Receiver<Option<Arc<VdiskConfig>>> {
        let Inner { state, vdisks, .. } = &mut *self.shared.inner();
        vdisks.subscribe(vdisk, || state.vdisk(vdisk))
    }

    /// The vdisks that there are. Fires when there are others.
    pub fn vdisks(&self) -> watch::Receiver<Arc<BTreeSet<VdiskId>>> {
        self.shared.inner().names.subscribe()
    }

    /// The servers of a tlog cluster, each as host:port; none where there is no such cluster (any more).
    pub fn tlog_servers(&self, cluster: &str) -> watch::Receiver<Option<Arc<Vec<String>>>> {
        let Inner { state, tlog_servers, .. } = &mut *self.shared.inner();
        tlog_servers.subscribe(&cluster.to_owned(), || state.tlog_servers(cluster))
    }

    /// The stores of a cluster; none where there is no such cluster (any more).
    pub fn storage_cluster(&self, cluster: &str) -> watch::Receiver<Option<Arc<StorageCluster>>> {
        let Inner { state, storage_clusters, .. } = &mut *self.shared.inner();
        storage_clusters.subscribe(&cluster.to_owned(), || state.storage_cluster(cluster))
    }

    /// Everything in the source that is wrong, and therefore not in force.
    pub fn problems(&self) -> Vec<Problem> {
        self.shared.inner().problems()
    }

    /// How the source is.
    pub fn health(&self) -> SourceHealth {
        let inner = self.shared.inner();
        SourceHealth {
            away: inner.away.clone(),
            revision: inner.revision,
            last_change: inner.last_change,
            vdisks: inner.names.borrow().len(),
            problems: inner.problems(),
        }
    }

    /// Counts what has come from the source, and fires after each event, when everything else has fired.
    pub fn events(&self) -> watch::Receiver<u64> {
        self.shared.inner().events.subscribe()
    }

    /// Reads everything again, now, and answers when it is in force.
    pub async fn reload(&self) {
        let (done, is_done) = oneshot::channel();
        // It only fails while the runtime goes down, and then nothing is reloaded any more.
        if self.orders.send(done).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// The one task.
async fn follow(
    shared: Arc<Shared>,
    mut watch: Box<dyn DocumentWatch>,
    mut orders: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        tokio::select! {
            event = watch.next() => shared.handle_event(event),
            order = orders.recv() => {
                let Some(done) = order else { return };
                shared.handle_event(watch.reread().await);
                // Who asked may have gone.
                let _ = done.send(());
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
}

/// What is known, and who waits for it. Whoever has the lock only looks things up.
#[derive(Debug)]
struct Inner {
    state: State,
    vdisks: Receivers<VdiskId, Option<Arc<VdiskConfig>>>,
    /// Those of [`ClusterSource`], who are not told when a cluster goes away.
    log_clusters: Receivers<VdiskId, Arc<StorageCluster>>,
    storage_clusters: Receivers<String, Option<Arc<StorageCluster>>>,
    tlog_servers: Receivers<String, Option<Arc<Vec<String>>>>,
    names: watch::Sender<Arc<BTreeSet<VdiskId>>>,
    events: watch::Sender<u64>,
    revision: u64,
    last_change: SystemTime,
    away: Option<SourceAway>,
    /// What is wrong with the source as a whole.
    refused: Vec<Problem>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            state: State::default(),
            vdisks: Receivers::default(),
            log_clusters: Receivers::default(),
            storage_clusters: Receivers::default(),
            tlog_servers: Receivers::default(),
            names: watch::Sender::default(),
            events: watch::Sender::default(),
            revision: 0,
            last_change: SystemTime::now(),
            away: None,
            refused: Vec::new(),
        }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle_event(&self, event: SourceEvent) {
        let mut inner = self.inner();
        match event {
            SourceEvent::All(snapshot) => {
                inner.is_back();
                inner.refused.clear();
                inner.revision = snapshot.revision;
                let effects = inner.state.handle_all(snapshot);
                inner.apply(effects);
            }
            SourceEvent::Changed { changes, revision } => {
                inner.revision = revision;
                let effects = inner.state.handle_changes(changes);
                inner.apply(effects);
            }
            SourceEvent::Refused(error) => {
                inner.is_back();
                warn!(%error, "the configuration makes no sense as a whole; what was in force stays");
                metrics::counter!("tlog_config_documents_refused_total", "kind" => "source").increment(1);
                inner.refused =
                    if let SourceError::Malformed(problems) = error { problems } else { Vec::new() };
            }
            SourceEvent::Away(error) => inner.is_away(&error),
        }
        metrics::gauge!("tlog_config_problems").set(count(inner.state.problem_count() + inner.refused.len()));
        inner.events.send_modify(|events| *events += 1);
    }
}

#[allow(clippy::cast_precision_loss)] // there are not as many
fn count(count: usize) -> f64 {
    count as f64
}

impl Inner {
    fn is_away(&mut self, error: &SourceError) {
        let why = error.to_string();
        match &mut self.away {
            Some(away) => away.why = why,
            None => {
                warn!(%error, "the configuration cannot be read; what was in force stays");
                metrics::counter!("tlog_config_source_failures_total").increment(1);
                self.away = Some(SourceAway { since: SystemTime::now(), why });
            }
        }
        metrics::gauge!("tlog_config_source_away").set(1);
    }

    fn is_back(&mut self) {
        if let Some(away) = self.away.take() {
            let seconds = away.since.elapsed().map_or(0.0, |elapsed| elapsed.as_secs_f64());
            info!(seconds, "the configuration can be read again");
        }
        metrics::gauge!("tlog_config_source_away").set(0);
    }

    /// Tells everyone what changed.
    fn apply(&mut self, effects: Effects) {
        for (key, problems) in &effects.refused {
            metrics::counter!("tlog_config_documents_refused_total", "kind" => kind(key)).increment(1);
            for problem in problems {
                warn!(document = %shown(key), %problem, "a document is not valid; what was in force of it stays");
            }
        }
        for (vdisk, problem) in &effects.dangling {
            warn!(%vdisk, %problem, "a cluster is not there; the vdisk keeps what it has of this document");
            metrics::counter!("tlog_config_references_refused_total").increment(1);
        }
        if effects.changed > 0 {
            metrics::counter!("tlog_config_documents_changed_total").increment(effects.changed);
            self.last_change = SystemTime::now();
        }
        if effects.names {
            let names = self.state.vdisk_names();
            metrics::gauge!("tlog_config_vdisks").set(count(names.len()));
            self.names.send_replace(Arc::new(names));
        }
        for id in &effects.storage_clusters {
            self.storage_clusters.send(id, self.state.storage_cluster(id));
        }
        for id in &effects.tlog_clusters {
            self.tlog_servers.send(id, self.state.tlog_servers(id));
        }
        metrics::counter!("tlog_config_vdisks_changed_total").increment(effects.vdisks.len() as u64);
        for (vdisk, config) in effects.vdisks {
            if let Some(log) = config.as_ref().and_then(|config| config.tlog.as_ref()) {
                self.log_clusters.send_if_other(&vdisk, &log.cluster);
            }
            self.vdisks.send(&vdisk, config);
        }
    }

    fn problems(&self) -> Vec<Problem> {
        self.refused.iter().cloned().chain(self.state.problems()).collect()
    }
}

/// The key for a log line: what is in it comes from elsewhere.
fn shown(key: &DocumentKey) -> String {
    key.to_string().escape_debug().to_string()
}

fn kind(key: &DocumentKey) -> &'static str {
    match key {
        DocumentKey::ClusterStorage(_) => "storage_cluster",
        DocumentKey::ClusterTlog(_) => "tlog_cluster",
        DocumentKey::VdiskStatic(_) => "vdisk_static",
        DocumentKey::VdiskNbd(_) => "vdisk_nbd",
        DocumentKey::VdiskTlog(_) => "vdisk_tlog",
        DocumentKey::NbdServerVdisks(_) => "nbd_server",
        DocumentKey::Misnamed(_) => "misnamed",
    }
}

#[async_trait]
impl ClusterSource for Configuration {
    async fn tlog_cluster(
        &self,
        vdisk: &VdiskId,
    ) -> Result<watch::Receiver<Arc<StorageCluster>>, ClusterSourceError> {
        let Inner { state, log_clusters, .. } = &mut *self.shared.inner();
        let config = state.vdisk(vdisk).ok_or_else(|| ClusterSourceError::UnknownVdisk(vdisk.clone()))?;
        let log = config.tlog.as_ref().ok_or_else(|| ClusterSourceError::NoCluster(vdisk.clone()))?;
        Ok(log_clusters.subscribe(vdisk, || Arc::clone(&log.cluster)))
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
