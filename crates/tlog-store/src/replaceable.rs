//! A store whose place can be taken by another one while it is in use.

use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};

use crate::{
    ChainStore, FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord,
    StoreDurability, StoreError, StoreIdentity,
};

/// Hands every call on to the store that is in its place at that moment.
///
/// To a log's writer a replaced store is one that answers with another identity: it counts for nothing until it is filled,
/// and is then entered as a member. Calls in flight end on the store that they began on.
#[derive(Debug)]
pub struct ReplaceableStore {
    current: Mutex<Arc<dyn ShardStore>>,
}

impl ReplaceableStore {
    /// Begins with `store`.
    pub fn new(store: Arc<dyn ShardStore>) -> Self {
        Self { current: Mutex::new(store) }
    }

    /// The store that is in its place now.
    pub fn current(&self) -> Arc<dyn ShardStore> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another store in its place, and answers the one before.
    pub fn replace(&self, store: Arc<dyn ShardStore>) -> Arc<dyn ShardStore> {
        std::mem::replace(&mut *self.current.lock().unwrap_or_else(PoisonError::into_inner), store)
    }
}

#[async_trait]
impl ShardStore for ReplaceableStore {
    fn address(&self) -> Arc<str> {
        self.current().address()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.current().promise(vdisk, epoch).await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.current().start(vdisk, record, members).await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.current().append(vdisk, number, shard, committed).await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.current().publish(vdisk, epoch, committed).await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.current().fill(vdisk, number, shard).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.current().prune(vdisk, epoch, first).await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.current().delete(vdisk, epoch).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.current().heads(vdisk, range, max_bytes).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.current().shard(vdisk, number).await
    }

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.current().payload_parts(vdisk, number, parts).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.current().status(vdisk).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.current().vdisks().await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.current().durability().await
    }

    fn chains(&self) -> Option<Arc<dyn ChainStore>> {
        self.current().chains()
    }
}
