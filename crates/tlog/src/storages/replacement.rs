//! Putting one store into another's place, for all logs on a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlog_config::StoreAddress;
use tlog_proto::VdiskId;
use tlog_quorum::Standing;
use tlog_store::ShardStore;
use tokio::sync::watch;

use super::cluster::Common;
use super::following::close;
use crate::documents::placement;
use crate::replacing::{ReplaceError, refuse_twins};
use crate::storage::FlusherStorage;
use crate::stores::StoresError;

/// Pauses between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the server that has a log open may do nothing about a new store before it is taken for closed.
const GRACE: Duration = Duration::from_secs(10);

/// The logs on a cluster, and what is needed to change their stores.
pub(super) struct Replacement {
    cluster: String,
    pub(super) storage: Arc<FlusherStorage>,
    pub(super) common: Common,
    /// Whether logs are not to be opened for a moment.
    busy: watch::Sender<bool>,
}

/// What was seen of a log that another server may have open.
struct Seen {
    /// How many shards the new store had.
    held: u64,
    /// Since when it has not got more.
    since: Instant,
}

impl Replacement {
    /// `pending` says whether a store is in its place that the logs do not have yet.
    pub(super) fn new(cluster: &str, storage: Arc<FlusherStorage>, common: Common, pending: bool) -> Self {
        let busy = watch::Sender::new(false);
        let replacement = Self { cluster: cluster.to_owned(), storage, common, busy };
        replacement.busy.send_replace(pending && replacement.is_exclusive());
        replacement
    }

    /// True while logs are not to be opened for a moment.
    pub(super) fn busy(&self) -> watch::Receiver<bool> {
        self.busy.subscribe()
    }

    pub(super) async fn open(
        &self,
        place: usize,
        address: &StoreAddress,
    ) -> Result<Arc<dyn ShardStore>, StoresError> {
        self.common.opener.store(address, place).await
    }

    /// The store, once it answers. `tell` is told what is waited for; an error is a sentence that says why it cannot be used.
    pub(super) async fn reach(
        &self,
        place: usize,
        address: &StoreAddress,
        tell: impl Fn(String),
    ) -> Result<Arc<dyn ShardStore>, String> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_reach(place, address).await {
                Ok(store) => return Ok(store),
                Err(error @ (ReplaceError::SameStore { .. } | ReplaceError::Open(_))) => {
                    return Err(error.to_string());
                }
                Err(error) => tell(format!(
                    "{error}; the store before it stays in data store {place}'s place until then"
                )),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_reach(
        &self,
        place: usize,
        address: &StoreAddress,
    ) -> Result<Arc<dyn ShardStore>, ReplaceError> {
        let store = self.open(place, address).await?;
        store.vdisks().await.map_err(ReplaceError::Away)?;
        if self.common.settings.require_durable_stores {
            let durability = store.durability().await.map_err(ReplaceError::Away)?;
            if let Some(why) = durability.reason() {
                let why = format!("{address}: {why}");
                return Err(StoresError::NotDurable(vec![why]).into());
            }
        }
        let logs = self.logs().await.map_err(|why| ReplaceError::TooFewStores(vec![why]))?;
        for vdisk in logs {
            refuse_twins(&self.storage, &vdisk, &[(place, Arc::clone(&store))]).await?;
        }
        Ok(store)
    }

    /// Puts a store into a place. Where logs cannot be opened without the one that was there, the open ones are closed first, and none is
    /// opened until they have the new one.
    pub(super) async fn put(&self, place: usize, store: &Arc<dyn ShardStore>) {
        let before = self.storage.places().addresses(None).get(place).cloned().unwrap_or_default();
        tracing::info!(cluster = self.cluster, place, %before, store = %store.address(), "a store is replaced");
        metrics::counter!("tlog_config_stores_replaced_total").increment(1);
        if self.is_exclusive() {
            self.busy.send_replace(true);
            if let Some(server) = self.common.server.get() {
                for vdisk in self.storage.open_vdisks() {
                    close(server, &vdisk).await;
                }
            }
        }
        self.storage.places().replace(None, place, store);
    }

    /// Whether a log cannot be opened with one store missing.
    fn is_exclusive(&self) -> bool {
        let quorums = self.storage.quorums();
        quorums.total() - 1 < quorums.opening()
    }

    /// Waits until every log has the store in a place as a member. `tell` is told what is left.
    pub(super) async fn fill_all(&self, place: usize, tell: impl Fn(String)) {
        let mut pause = FIRST_PAUSE;
        let mut seen = BTreeMap::new();
        loop {
            let left = match self.logs().await {
                Ok(logs) => self.fill_each(&logs, place, &mut seen).await,
                Err(why) => Some(why),
            };
            let Some(left) = left else { break };
            tell(left);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.busy.send_replace(false);
    }

    /// What is left to do, for a person; none where every log has it.
    async fn fill_each(
        &self,
        logs: &[VdiskId],
        place: usize,
        seen: &mut BTreeMap<VdiskId, Seen>,
    ) -> Option<String> {
        let mut left: Vec<(&VdiskId, String)> = Vec::new();
        for vdisk in logs {
            if let Err(why) = self.fill(vdisk, place, seen).await {
                left.push((vdisk, why));
            }
        }
        let (vdisk, why) = left.first()?;
        Some(format!(
            "data store {place} is not filled for {} of {} vdisks yet; {vdisk}: {why}",
            left.len(),
            logs.len()
        ))
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        place: usize,
        seen: &mut BTreeMap<VdiskId, Seen>,
    ) -> Result<(), String> {
        if self.storage.open_vdisks().contains(vdisk) {
            return self.storage.wait_filled(vdisk, &[place]).await.map_err(|error| error.to_string());
        }
        let set = self.storage.store_set(vdisk).ok_or("the number of stores is not that of the shards")?;
        let survey = set.survey().await;
        let Some(view) = survey.views.get(place) else { return Ok(()) };
        let held = match &view.answer {
            Ok(_) if view.standing == Standing::Member => return Ok(()),
            Ok(state) => state.held.count(),
            Err(error) => return Err(error.to_string()),
        };
        // Another server that has the log open sees the same document, and fills it itself.
        let now = Seen { held, since: Instant::now() };
        let before = seen.entry(vdisk.clone()).or_insert(Seen { ..now });
        if before.held != held {
            *before = now;
        }
        if before.since.elapsed() < GRACE && !self.is_exclusive() {
            return Err("its log is not open here; another server may be filling it".to_owned());
        }
        // In a task of its own: a log that is opened for this must be closed again, whatever becomes of us.
        let (storage, vdisk) = (Arc::clone(&self.storage), vdisk.clone());
        // The document is the operator's word that the store before is gone, where a log does not open without it.
        let word = self.is_exclusive();
        let filled = tokio::spawn(async move { storage.fill_replaced(&vdisk, &[place], word, |_| {}).await });
        match filled.await {
            Ok(filled) => filled.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Every vdisk that has its log here. An error says why that cannot be told.
    pub(super) async fn logs(&self) -> Result<Vec<VdiskId>, String> {
        let inventory = self.storage.inventory().await;
        if inventory.silent.len() >= self.storage.quorums().opening() {
            return Err(format!(
                "too few stores answer to tell which logs there are: {}",
                inventory.silent.join("; ")
            ));
        }
        // Stores may be in several clusters: what documents place elsewhere is none of ours.
        let here = |vdisk: &VdiskId| {
            let config = self.common.configuration.vdisk(vdisk).borrow().clone();
            placement(config.as_deref(), vdisk).map_or(true, |cluster| cluster.id == self.cluster)
        };
        let known = inventory.vdisks.into_iter().filter(|(_, known)| known.logs > 0).map(|(vdisk, _)| vdisk);
        let mut logs: Vec<VdiskId> = known.filter(here).collect();
        logs.extend(self.storage.open_vdisks());
        logs.sort();
        logs.dedup();
        Ok(logs)
    }
}
