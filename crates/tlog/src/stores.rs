//! From the addresses of the settings to stores.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    DirectoryOptions, DirectoryStore, FillOutcome, HeadSlot, LogState, Members, MemoryStore, Shard,
    ShardSlot, ShardStore, StartRecord, StoreError, StoreErrorKind, StoreIdentity,
};

use crate::settings::{Settings, StoreAddress};

/// Why there are no stores.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// Somebody else writes in a directory.
    #[error(transparent)]
    Locked(StoreError),
    /// A kind of store that cannot be opened here.
    #[error(
        "a store in memory is only in the process of its server; this command works with file: stores and the embedded store"
    )]
    MemoryElsewhere,
    /// A kind of store that this version does not have.
    #[error("store {0}: this version has no stores on the network")]
    Network(String),
}

/// The stores, in order: number i holds shard i.
#[derive(Clone, Debug)]
pub struct Stores {
    /// As the log's writer and reader take them.
    pub all: Vec<Arc<dyn ShardStore>>,
    directories: Vec<Arc<LateDirectory>>,
}

impl Stores {
    /// Opens them for writing. A directory that another process writes in is an error that names that process; one that cannot
    /// be opened for another reason counts as away, is warned of, and is tried again whenever it is asked for something.
    ///
    /// `note` is what other processes are told of this one: one line.
    pub async fn for_writing(settings: &Settings, note: &str) -> Result<Self, StoresError> {
        let mut stores = Self { all: Vec::new(), directories: Vec::new() };
        for address in settings.stores() {
            match address {
                StoreAddress::Memory => {
                    stores.all.push(Arc::new(MemoryStore::new(format!("memory:{}", stores.all.len()))))
                }
                StoreAddress::Directory(directory) => {
                    let note = Some(note.to_owned());
                    let store = Arc::new(LateDirectory::new(directory, note));
                    match store.get().await {
                        Ok(_) => {}
                        Err(error) if matches!(error.kind, StoreErrorKind::Locked { .. }) => {
                            return Err(StoresError::Locked(error));
                        }
                        Err(error) => tracing::warn!(store = store.address(), %error, "a store is away"),
                    }
                    stores.directories.push(Arc::clone(&store));
                    stores.all.push(store);
                }
                address @ StoreAddress::Network(_) => return Err(StoresError::Network(address.to_string())),
            }
        }
        Ok(stores)
    }

    /// Opens them for reading, also while a server writes there. A directory that is not there counts as away.
    pub fn for_reading(settings: &Settings) -> Result<Self, StoresError> {
        let mut stores = Self { all: Vec::new(), directories: Vec::new() };
        for address in settings.stores() {
            match address {
                StoreAddress::Memory => return Err(StoresError::MemoryElsewhere),
                StoreAddress::Directory(directory) => {
                    let store = Arc::new(LateDirectory::new(directory, None));
                    stores.directories.push(Arc::clone(&store));
                    stores.all.push(store);
                }
                address @ StoreAddress::Network(_) => return Err(StoresError::Network(address.to_string())),
            }
        }
        Ok(stores)
    }

    /// Changes what other processes are told of this one.
    pub fn set_note(&self, note: &str) {
        for directory in &self.directories {
            directory.set_note(note);
        }
    }
}

/// A directory store that is opened when it can be, and again after a write failed: a disk may be mounted late, die, be
/// replaced or emptied, all while a server runs.
struct LateDirectory {
    address: String,
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Whoever opens it holds this meanwhile.
    opening: tokio::sync::Mutex<()>,
}

struct Inner {
    store: Option<Arc<DirectoryStore>>,
    /// What others are told; none: for reading only.
    note: Option<String>,
}

impl std::fmt::Debug for LateDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LateDirectory").field(&self.address).finish()
    }
}

impl LateDirectory {
    fn new(directory: PathBuf, note: Option<String>) -> Self {
        let address = StoreAddress::Directory(directory.clone()).to_string();
        Self {
            address,
            directory,
            inner: Mutex::new(Inner { store: None, note }),
            opening: Default::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self) -> Result<Arc<DirectoryStore>, StoreError> {
        if let Some(store) = &self.inner().store {
            return Ok(Arc::clone(store));
        }
        let _opening = self.opening.lock().await;
        let (store, note) = {
            let inner = self.inner();
            (inner.store.clone(), inner.note.clone())
        };
        if let Some(store) = store {
            return Ok(store);
        }
        let directory = self.directory.clone();
        let opened = tokio::task::spawn_blocking(move || match note {
            Some(note) => DirectoryStore::open(&directory, DirectoryOptions { note, ..Default::default() }),
            None => DirectoryStore::open_read_only(&directory),
        });
        let store = match opened.await {
            Ok(opened) => Arc::new(opened?),
            Err(error) => {
                let source = std::io::Error::other(error);
                return Err(StoreError::new(&self.address, StoreErrorKind::Unavailable { source }));
            }
        };
        self.inner().store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Runs a write. After one that failed the directory is opened anew for the next: what is there may be another disk, or none.
    async fn write<T>(
        &self,
        operation: impl AsyncFnOnce(Arc<DirectoryStore>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let store = self.get().await.map_err(|error| self.not_fatal(error))?;
        let result = operation(Arc::clone(&store)).await;
        if let Err(StoreError {
            kind: StoreErrorKind::Unavailable { .. } | StoreErrorKind::Damaged { .. },
            ..
        }) = &result
        {
            let mut inner = self.inner();
            if inner.store.as_ref().is_some_and(|current| Arc::ptr_eq(current, &store)) {
                tracing::info!(store = self.address, "a write failed, the directory will be opened anew");
                inner.store = None;
            }
        }
        result
    }

    /// The lock that is in the way of opening anew may be our own, held by what is still in flight.
    fn not_fatal(&self, error: StoreError) -> StoreError {
        match error.kind {
            StoreErrorKind::Locked { holder } => {
                let source =
                    std::io::Error::new(std::io::ErrorKind::ResourceBusy, format!("in use by {holder}"));
                StoreError::new(&self.address, StoreErrorKind::Unavailable { source })
            }
            kind => StoreError::new(error.address, kind),
        }
    }

    fn set_note(&self, note: &str) {
        let mut inner = self.inner();
        inner.note = Some(note.to_owned());
        if let Some(store) = &inner.store
            && let Err(error) = store.set_lock_note(note)
        {
            tracing::warn!(store = self.address, %error, "the lock note cannot be written");
        }
    }
}

#[async_trait]
impl ShardStore for LateDirectory {
    fn address(&self) -> &str {
        &self.address
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.write(async |store| store.promise(vdisk, epoch).await).await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.write(async |store| store.start(vdisk, record, members).await).await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.write(async |store| store.append(vdisk, number, shard, committed).await).await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.write(async |store| store.publish(vdisk, epoch, committed).await).await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.write(async |store| store.fill(vdisk, number, shard).await).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.write(async |store| store.prune(vdisk, epoch, first).await).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.get().await?.heads(vdisk, range, max_bytes).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.get().await?.shard(vdisk, number).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.get().await?.status(vdisk).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.get().await?.vdisks().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SettingsArgs;

    fn settings(storage: &str) -> Settings {
        let args = SettingsArgs::default().with("data-shards", "1").with("parity-shards", "1");
        Settings::from_flags(&args.with("storage", storage)).unwrap()
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_opened_is_away_and_is_found_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let (good, blocked) = (directory.path().join("good"), directory.path().join("blocked"));
        std::fs::write(&blocked, "a file where the directory should be").unwrap();
        let addresses = format!("file:{},file:{}", good.display(), blocked.display());
        let stores = Stores::for_writing(&settings(&addresses), "test").await.unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        assert!(stores.all[0].promise(&vdisk, Epoch(1)).await.is_ok());
        let error = stores.all[1].promise(&vdisk, Epoch(1)).await.unwrap_err();
        assert!(error.is_retryable() && error.address.ends_with("blocked"), "{error}");
        std::fs::remove_file(&blocked).unwrap();
        assert!(stores.all[1].promise(&vdisk, Epoch(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_directory_that_was_removed_while_it_was_in_use_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let stores = Stores::for_writing(&settings(&addresses), "test").await.unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        let before = stores.all[0].promise(&vdisk, Epoch(1)).await.unwrap();
        std::fs::remove_dir_all(directory.path().join("a")).unwrap();
        // The first write may find out, the next ones find a new store.
        let mut answers = Vec::new();
        for epoch in 2..5 {
            answers.push(stores.all[0].promise(&vdisk, Epoch(epoch)).await);
        }
        let after = answers.pop().unwrap().unwrap();
        assert!(after.identity.is_some() && after.identity != before.identity, "{answers:?}");
    }

    #[tokio::test]
    async fn a_directory_that_another_writes_in_is_refused_and_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let first = Stores::for_writing(&settings(&addresses), "first").await.unwrap();
        first.set_note("admin 127.0.0.1:1234");
        let error = Stores::for_writing(&settings(&addresses), "second").await.unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid) && error.to_string().contains("127.0.0.1:1234"), "{error}");
        let readers = Stores::for_reading(&settings(&addresses)).unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        first.all[0].promise(&vdisk, Epoch(7)).await.unwrap();
        assert_eq!(readers.all[0].status(&vdisk).await.unwrap().epoch, Epoch(7));
        assert!(readers.all[0].promise(&vdisk, Epoch(8)).await.is_err());
    }

    #[tokio::test]
    async fn reading_makes_no_directory_and_a_missing_one_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let readers = Stores::for_reading(&settings(&addresses)).unwrap();
        assert!(readers.all[0].status(&VdiskId::new("vda").unwrap()).await.is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(matches!(
            Stores::for_reading(&settings("memory:,memory:")),
            Err(StoresError::MemoryElsewhere)
        ));
    }
}
