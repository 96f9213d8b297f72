//! What is left of a store when its pool is closed.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreDurability,
    StoreError, StoreErrorKind, StoreIdentity,
};

/// Refuses everything: its pool is closed.
#[derive(Debug)]
pub(crate) struct ClosedStore {
    address: Arc<str>,
}

impl ClosedStore {
    /// In place of the store of that address.
    pub(crate) fn new(address: Arc<str>) -> Self {
        Self { address }
    }

    fn refused<T>(&self) -> Result<T, StoreError> {
        let source = io::Error::new(io::ErrorKind::NotConnected, "the pool that it belongs to is closed");
        Err(StoreError::new(&*self.address, StoreErrorKind::Unavailable { source }))
    }
}

#[async_trait]
impl ShardStore for ClosedStore {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }

    async fn promise(&self, _: &VdiskId, _: Epoch) -> Result<LogState, StoreError> {
        self.refused()
    }

    async fn start(&self, _: &VdiskId, _: StartRecord, _: &Members) -> Result<StoreIdentity, StoreError> {
        self.refused()
    }

    async fn append(
        &self,
        _: &VdiskId,
        _: AggregationNumber,
        _: Shard,
        _: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.refused()
    }

    async fn publish(
        &self,
        _: &VdiskId,
        _: Epoch,
        _: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.refused()
    }

    async fn fill(&self, _: &VdiskId, _: AggregationNumber, _: Shard) -> Result<FillOutcome, StoreError> {
        self.refused()
    }

    async fn prune(&self, _: &VdiskId, _: Epoch, _: AggregationNumber) -> Result<(), StoreError> {
        self.refused()
    }

    async fn delete(&self, _: &VdiskId, _: Epoch) -> Result<(), StoreError> {
        self.refused()
    }

    async fn heads(
        &self,
        _: &VdiskId,
        _: RangeInclusive<AggregationNumber>,
        _: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.refused()
    }

    async fn shard(&self, _: &VdiskId, _: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.refused()
    }

    async fn status(&self, _: &VdiskId) -> Result<LogState, StoreError> {
        self.refused()
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.refused()
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.refused()
    }
}
