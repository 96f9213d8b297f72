//! A directory store that comes and goes.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tlog_config::StoreAddress;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    DirectoryOptions, DirectoryStore, FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore,
    StartRecord, StoreDurability, StoreError, StoreErrorKind, StoreIdentity,
};

/// A directory store that is opened when it can be, and again after a write failed: a disk may be mounted late, die, be
/// replaced or emptied, all while a server runs.
pub(super) struct LateDirectory {
    address: Arc<str>,
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
    pub(super) fn new(directory: PathBuf, note: Option<String>) -> Self {
        let address = StoreAddress::Directory(directory.clone()).to_string().into();
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

    pub(super) async fn get(&self) -> Result<Arc<DirectoryStore>, StoreError> {
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
                return Err(StoreError::new(&*self.address, StoreErrorKind::Unavailable { source }));
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
                tracing::info!(store = %self.address, "a write failed, the directory will be opened anew");
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
                StoreError::new(&*self.address, StoreErrorKind::Unavailable { source })
            }
            kind => StoreError::new(error.address, kind),
        }
    }

    pub(super) fn set_note(&self, note: &str) {
        let mut inner = self.inner();
        inner.note = Some(note.to_owned());
        if let Some(store) = &inner.store
            && let Err(error) = store.set_lock_note(note)
        {
            tracing::warn!(store = %self.address, %error, "the lock note cannot be written");
        }
    }
}

#[async_trait]
impl ShardStore for LateDirectory {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
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

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.write(async |store| store.delete(vdisk, epoch).await).await
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

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.get().await?.payload_parts(vdisk, number, parts).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.get().await?.status(vdisk).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.get().await?.vdisks().await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.get().await?.durability().await
    }
}
