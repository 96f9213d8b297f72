//! The logs on one storage cluster, whose stores change while they are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tlog_config::{StorageCluster, StoreAddress};
use tlog_crypto::Keyring;
use tlog_proto::VdiskId;
use tlog_server::Server;
use tlog_store::ShardStore;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::following::close;
use super::{NoStorage, on_stores};
use crate::replacing::{ReplaceError, refuse_twins};
use crate::settings::{RedundancySettings, Settings};
use crate::storage::FlusherStorage;
use crate::stores::StoreOpener;

/// Pauses between two tries to reach a store that is to take another's place.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

type Documents = watch::Receiver<Option<Arc<StorageCluster>>>;

/// A storage cluster in use. Follows its document until it is dropped, or until its redundancy changes.
pub(super) struct Cluster {
    storage: Arc<FlusherStorage>,
    over: Arc<AtomicBool>,
    follower: JoinHandle<()>,
}

impl Cluster {
    /// Opens the stores. `settings` are those on the cluster, `common` those without it.
    pub(super) async fn open(
        id: &str,
        settings: &Settings,
        common: Settings,
        opener: &StoreOpener,
        keyring: Option<Arc<Keyring>>,
        documents: Documents,
        server: Arc<OnceLock<Server>>,
    ) -> Result<Self, NoStorage> {
        let storage = on_stores(settings, opener.clone(), keyring).await?;
        tracing::info!(
            cluster = id,
            redundancy = %settings.redundancy,
            stores = ?storage.places().addresses(None),
            "logs on this storage cluster"
        );
        let over = Arc::new(AtomicBool::new(false));
        let follower = Follower {
            id: id.to_owned(),
            common,
            redundancy: settings.redundancy,
            storage: Arc::clone(&storage),
            opener: opener.clone(),
            over: Arc::clone(&over),
            server,
        };
        let follower = tokio::spawn(follower.run(documents));
        Ok(Self { storage, over, follower })
    }

    pub(super) fn storage(&self) -> Arc<FlusherStorage> {
        Arc::clone(&self.storage)
    }

    /// Whether it has another redundancy now, so that a new one is to be made.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Brings changes of a cluster's document to its stores.
struct Follower {
    id: String,
    common: Settings,
    redundancy: RedundancySettings,
    storage: Arc<FlusherStorage>,
    opener: StoreOpener,
    over: Arc<AtomicBool>,
    server: Arc<OnceLock<Server>>,
}

/// A store that is to be at an address.
struct Wanted {
    position: usize,
    address: StoreAddress,
}

impl Follower {
    async fn run(self, mut documents: Documents) {
        loop {
            let document = documents.borrow_and_update().clone();
            if let Some(document) = document {
                let settings = match self.common.on_cluster(&document) {
                    Ok(settings) => settings,
                    Err(error) => {
                        self.refused(&error.to_string());
                        if documents.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                };
                if settings.redundancy != self.redundancy {
                    return self.close_all(&settings).await;
                }
                let wanted = self.wanted(&settings);
                tokio::select! {
                    // A newer document says what is to be done; stores that are in their places already go on being filled.
                    changed = documents.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    () = self.replace_all(wanted) => {}
                }
            }
            if documents.changed().await.is_err() {
                return;
            }
        }
    }

    /// The places whose store is another one now. None where a store would change its place: it holds another place's shards.
    fn wanted(&self, settings: &Settings) -> Vec<Wanted> {
        let have = self.storage.places().addresses(None);
        let wanted: Vec<Wanted> = settings
            .stores()
            .into_iter()
            .enumerate()
            .filter(|(position, address)| {
                let memory = *address == StoreAddress::Memory;
                // Stores in memory are named by their places.
                let same =
                    |have: &String| *have == address.to_string() || memory && have.starts_with("memory:");
                !have.get(*position).is_some_and(same)
            })
            .map(|(position, address)| Wanted { position, address })
            .collect();
        let moved = wanted.iter().find(|wanted| have.contains(&wanted.address.to_string()));
        if let Some(Wanted { position, address }) = moved {
            self.refused(&format!(
                "{address} would be data store {position} and has another place now: a store keeps its place, since it holds that \
                 place's shards; put the order back"
            ));
            return Vec::new();
        }
        wanted
    }

    /// One after the other, so that no more is missing at a time than one store's shards.
    async fn replace_all(&self, wanted: Vec<Wanted>) {
        for wanted in wanted {
            let Some(store) = self.reached(&wanted).await else { continue };
            let (position, before) = (wanted.position, self.storage.places().addresses(None));
            let before = before.get(position).cloned().unwrap_or_default();
            tracing::info!(cluster = self.id, position, %before, store = %store.address(), "a store is replaced");
            metrics::counter!("tlog_config_stores_replaced_total").increment(1);
            self.storage.places().replace(None, position, &store);
            for vdisk in self.storage.open_vdisks() {
                self.wait_filled(&vdisk, position, &store).await;
            }
        }
    }

    /// The store, once it answers and is none of the others by another name; none where it is.
    async fn reached(&self, wanted: &Wanted) -> Option<Arc<dyn ShardStore>> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_reach(wanted).await {
                Ok(store) => return Some(store),
                Err(error @ (ReplaceError::SameStore { .. } | ReplaceError::Open(_))) => {
                    self.refused(&error.to_string());
                    return None;
                }
                Err(error) if pause == FIRST_PAUSE => tracing::warn!(
                    cluster = self.id, position = wanted.position, %error,
                    "the store that is to take another's place cannot be reached; the old one stays until it can"
                ),
                Err(error) => tracing::debug!(cluster = self.id, %error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_reach(&self, wanted: &Wanted) -> Result<Arc<dyn ShardStore>, ReplaceError> {
        let store = self.opener.store(&wanted.address, wanted.position).await?;
        store.vdisks().await.map_err(ReplaceError::Away)?;
        for vdisk in self.storage.open_vdisks() {
            refuse_twins(&self.storage, &vdisk, &[(wanted.position, Arc::clone(&store))]).await?;
        }
        Ok(store)
    }

    async fn wait_filled(&self, vdisk: &VdiskId, position: usize, store: &Arc<dyn ShardStore>) {
        match self.storage.wait_filled(vdisk, &[position]).await {
            Ok(()) => tracing::info!(%vdisk, store = %store.address(), "filled, and the new store counts"),
            // Its writer goes on; or the next to open the log fills it.
            Err(error) => {
                tracing::warn!(%vdisk, store = %store.address(), %error, "the new store does not count yet")
            }
        }
    }

    /// The redundancy is another one: every vdisk has to be opened anew.
    async fn close_all(&self, settings: &Settings) {
        let vdisks = self.storage.open_vdisks();
        tracing::info!(
            cluster = self.id, from = %self.redundancy, to = %settings.redundancy, vdisks = vdisks.len(),
            "the redundancy of this cluster is another one now: closing its vdisks"
        );
        self.over.store(true, Ordering::Release);
        let Some(server) = self.server.get() else { return };
        for vdisk in vdisks {
            metrics::counter!("tlog_config_vdisks_closed_total", "reason" => "redundancy").increment(1);
            close(server, &vdisk).await;
        }
    }

    fn refused(&self, why: &str) {
        metrics::counter!("tlog_config_changes_refused_total").increment(1);
        tracing::warn!(
            cluster = self.id,
            error = why,
            "the changed storage cluster cannot be used; the stores stay as they are"
        );
    }
}
