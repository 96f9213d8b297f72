//! The logs of all vdisks: on the stores of the settings, or each on the storage cluster that the documents say.
//!
//! | what changes in the documents | what is done |
//! |---|---|
//! | a data store of a cluster | it is put in the other's place, and every log there fills it |
//! | the write quorum of a cluster | its vdisks are flushed and closed; the next to open them uses the new one |
//! | the shards of a cluster | nothing where there are logs on it: they keep theirs |
//! | the cluster of a vdisk's log | the vdisk is flushed and closed; the next to open it finds the log on the other cluster |
//! | the vdisk is removed | it is flushed and closed; who comes afterwards is refused |
//! | anything else | nothing |

mod cluster;
mod clusters;
mod following;
mod remembered;
mod replacement;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tlog_config::{Configuration, StorageCluster, VdiskConfig};
use tlog_crypto::Keyring;
use tlog_proto::VdiskId;
use tlog_server::{LogStorage, OpenError, Server, VdiskLog};
use tlog_store::ShardStore;

use self::cluster::Common;
use self::clusters::{Clusters, InUse};
use self::following::{Following, VdiskPlace};
use crate::documents::{PlacementError, placement};
use crate::open_log::AnyStatus;
use crate::replacing::ReplaceRequest;
use crate::settings::{Settings, Storage};
use crate::storage::{FlusherStorage, InvalidRedundancy};
use crate::stores::{StoreOpener, Stores, StoresError};

/// Where the logs of all vdisks are. Cheap to clone.
#[derive(Clone)]
pub struct Storages {
    place: Place,
    documents: Option<Arc<Documents>>,
    server: Arc<OnceLock<Server>>,
}

#[derive(Clone)]
enum Place {
    /// All on one set of stores.
    One(Arc<FlusherStorage>),
    /// Each on the cluster that the documents say.
    Clusters(Arc<Clusters>),
}

/// The documents that say which vdisks there are.
struct Documents {
    configuration: Configuration,
    following: Following,
}

/// Why a vdisk has no stores.
#[derive(Debug, thiserror::Error)]
pub enum NoStorage {
    /// The documents do not say where its log is, or not in a way that can be used.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The documents changed while no server ran, by more than one store.
    #[error(
        "storage cluster {cluster} has other data stores than when its logs were last known to be on all of them, in places {}: it had {}; \
         and on these no log can be opened of {}. If they have one, it is on the stores before, and would be begun anew here. Put those \
         back, and change one store at a time while a server runs; or, where these vdisks were never written to, remove {}",
        list(.places), .known.join(", "), list(.missing), .file.display()
    )]
    OtherStores {
        /// The cluster.
        cluster: String,
        /// Its stores then.
        known: Vec<String>,
        /// Places with other stores now.
        places: Vec<usize>,
        /// Vdisks of the cluster without a log on the new ones.
        missing: Vec<VdiskId>,
        /// Where that is written down.
        file: PathBuf,
    },
    /// The stores cannot be opened.
    #[error(transparent)]
    Stores(#[from] StoresError),
    /// Settings that the log's own checks refuse.
    #[error(transparent)]
    Redundancy(#[from] InvalidRedundancy),
}

fn list(things: &[impl ToString]) -> String {
    things.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Stores that logs are on.
pub struct StorageInUse {
    /// Their storage cluster; none where they are those of the settings.
    pub cluster: Option<String>,
    /// The logs on them.
    pub storage: Arc<FlusherStorage>,
    /// What is not as the documents say, for a person.
    pub note: Option<String>,
}

impl Storages {
    /// As the settings say. Opens the stores that are in the settings; those of clusters when they are needed.
    pub async fn open(
        settings: &Settings,
        configuration: Option<Configuration>,
        opener: StoreOpener,
        keyring: Option<Arc<Keyring>>,
    ) -> Result<Self, NoStorage> {
        let server = Arc::new(OnceLock::new());
        let place = match (&settings.storage, &configuration) {
            (Storage::Documents, Some(configuration)) => Place::Clusters(Arc::new(Clusters::new(Common {
                settings: settings.clone(),
                configuration: configuration.clone(),
                opener,
                keyring,
                server: Arc::clone(&server),
            }))),
            _ => Place::One(on_stores(settings, opener, keyring).await?),
        };
        let documents = configuration.map(|configuration| {
            let following = Following::new(Arc::clone(&server));
            Arc::new(Documents { configuration, following })
        });
        Ok(Self { place, documents, server })
    }

    /// Has the server close vdisks that are removed, or whose place changed.
    pub fn serve(&self, server: &Server) {
        let _once = self.server.set(server.clone());
    }

    /// Where the log of a vdisk is.
    pub async fn of(&self, vdisk: &VdiskId) -> Result<Arc<FlusherStorage>, NoStorage> {
        let config = self.documents.as_ref().and_then(|d| d.configuration.vdisk(vdisk).borrow().clone());
        self.at(self.placed(config.as_deref(), vdisk)?).await
    }

    /// Whether the log of a vdisk is on that cluster; none: on the stores of the settings.
    pub fn is_on(&self, vdisk: &VdiskId, cluster: Option<&str>) -> bool {
        let config = self.documents.as_ref().and_then(|d| d.configuration.vdisk(vdisk).borrow().clone());
        let placed = self.placed(config.as_deref(), vdisk);
        placed.is_ok_and(|placed| placed.map(|placed| placed.id.as_str()) == cluster) || cluster.is_none()
    }

    /// Everything that logs are on. What cannot be opened is warned of.
    pub async fn all(&self) -> Vec<StorageInUse> {
        if let Place::Clusters(clusters) = &self.place {
            clusters.open_all().await;
        }
        self.in_use()
    }

    /// Where stores are to be replaced. An error is a sentence for a person.
    pub async fn for_replacing(&self, request: &ReplaceRequest) -> Result<Arc<FlusherStorage>, String> {
        let vdisk = match (&self.place, &request.vdisk) {
            (Place::One(storage), _) => return Ok(Arc::clone(storage)),
            (Place::Clusters(_), Some(vdisk)) => vdisk,
            (Place::Clusters(_), None) => {
                let instead = "the stores of each vdisk are in its storage cluster's document: change dataStorage there, and running \
                               servers fill the new store; where too many are lost for that, name the vdisk";
                return Err(instead.to_owned());
            }
        };
        let vdisk = VdiskId::new(vdisk).map_err(|error| error.to_string())?;
        self.of(&vdisk).await.map_err(|error| error.to_string())
    }

    /// What is in use now, without opening anything.
    pub fn in_use(&self) -> Vec<StorageInUse> {
        let in_use = |InUse { id, storage, note }| StorageInUse { cluster: Some(id), storage, note };
        match &self.place {
            Place::One(storage) => {
                vec![StorageInUse { cluster: None, storage: Arc::clone(storage), note: None }]
            }
            Place::Clusters(clusters) => clusters.in_use().into_iter().map(in_use).collect(),
        }
    }

    /// What every open writer shows.
    pub async fn logs(&self) -> Vec<AnyStatus> {
        let mut logs = Vec::new();
        for in_use in self.in_use() {
            logs.extend(in_use.storage.logs().await);
        }
        logs
    }

    /// Every store in use, with its cluster.
    pub fn stores(&self) -> Vec<(Option<String>, Arc<dyn ShardStore>)> {
        let of = |StorageInUse { cluster, storage, .. }| {
            storage.stores().into_iter().map(move |store| (cluster.clone(), store))
        };
        self.in_use().into_iter().flat_map(of).collect()
    }

    /// The documents that say which vdisks there are; none where every vdisk is served.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.documents.as_ref().map(|documents| &documents.configuration)
    }

    /// The cluster of a vdisk's log; none where all are on the stores of the settings.
    fn placed<'a>(
        &self,
        config: Option<&'a VdiskConfig>,
        vdisk: &VdiskId,
    ) -> Result<Option<&'a Arc<StorageCluster>>, PlacementError> {
        match (&self.place, &self.documents) {
            (Place::One(_), None) => Ok(None),
            (Place::One(_), Some(_)) if config.is_some() => Ok(None),
            (Place::One(_), Some(_)) => Err(PlacementError::UnknownVdisk(vdisk.clone())),
            (Place::Clusters(_), _) => placement(config, vdisk).map(Some),
        }
    }

    async fn at(&self, cluster: Option<&Arc<StorageCluster>>) -> Result<Arc<FlusherStorage>, NoStorage> {
        match (&self.place, cluster) {
            (Place::Clusters(clusters), Some(cluster)) => clusters.get(cluster).await,
            (Place::One(storage), _) => Ok(Arc::clone(storage)),
            (Place::Clusters(_), None) => unreachable!("clusters are used where every vdisk has one"),
        }
    }
}

#[async_trait]
impl LogStorage for Storages {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let failed = |error: NoStorage| OpenError::Failed(error.into());
        let Some(documents) = &self.documents else {
            return self.at(None).await.map_err(failed)?.open(vdisk).await;
        };
        let mut changes = documents.configuration.vdisk(vdisk);
        // What changes from here on is seen by whoever follows.
        let config = changes.borrow_and_update().clone();
        let cluster = match self.placed(config.as_deref(), vdisk) {
            Ok(cluster) => cluster,
            Err(PlacementError::UnknownVdisk(vdisk)) => return Err(OpenError::UnknownVdisk(vdisk)),
            Err(error) => return Err(failed(error.into())),
        };
        let place = |cluster: Option<&Arc<StorageCluster>>| -> VdiskPlace {
            cluster.map(|cluster| (cluster.id.clone(), cluster.shards.write_quorum))
        };
        let (storages, id) = (self.clone(), vdisk.clone());
        documents
            .following
            .follow(vdisk, place(cluster), changes, move |config| Ok(place(storages.placed(config, &id)?)));
        let storage = match (&self.place, cluster) {
            (Place::Clusters(clusters), Some(cluster)) => clusters.get_to_open(cluster).await,
            _ => self.at(cluster).await,
        };
        storage.map_err(failed)?.open(vdisk).await
    }
}

/// The stores of the settings, asked whether they are durable.
pub(crate) async fn on_stores(
    settings: &Settings,
    opener: StoreOpener,
    keyring: Option<Arc<Keyring>>,
) -> Result<Arc<FlusherStorage>, NoStorage> {
    let stores = Stores::with(opener, settings).await?;
    let (limit, needed) = (settings.store_timeout, settings.redundancy.write_quorum.into());
    if settings.require_durable_stores {
        stores.require_durability(limit, needed).await?;
    } else {
        // Nobody waits for it; what is said is in the log.
        let stores = stores.clone();
        tokio::spawn(async move { stores.ask_durability(limit).await });
    }
    Ok(Arc::new(FlusherStorage::new(settings, stores.all, keyring)?))
}
