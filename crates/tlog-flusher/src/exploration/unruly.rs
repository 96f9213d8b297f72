//! The store as a writer sees it that does not know the rules which the exploration breaks on purpose.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreDurability,
    StoreError, StoreIdentity,
};

use crate::broken::{Rule, is_broken};

/// A store as a writer sees it that may not know one of the rules, over a network: what is on its way arrives even if the
/// writer has given it up, or is gone.
#[derive(Clone, Debug)]
pub(crate) struct Unruly {
    inner: Arc<dyn ShardStore>,
    /// The identity that it had first, where identities are not told apart.
    first: Arc<Mutex<Option<StoreIdentity>>>,
}

impl Unruly {
    pub(crate) fn new(inner: Arc<dyn ShardStore>, first: Arc<Mutex<Option<StoreIdentity>>>) -> Self {
        Self { inner, first }
    }

    /// Carries an operation out whatever becomes of the caller.
    async fn arrives<T, F>(&self, operation: impl FnOnce(Self) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        tokio::spawn(operation(self.clone())).await.unwrap()
    }

    fn state(&self, mut state: LogState) -> LogState {
        if is_broken(Rule::StartRecords) {
            state.starts.clear();
        }
        if is_broken(Rule::Identity) {
            let mut first = self.first.lock().unwrap();
            *first = first.or(state.identity);
            state.identity = *first;
        }
        state
    }

    fn identity(&self, identity: StoreIdentity) -> StoreIdentity {
        if is_broken(Rule::Identity) { *self.first.lock().unwrap().get_or_insert(identity) } else { identity }
    }

    /// Where identities are not told apart, an empty store is written to as if nothing had happened.
    async fn revive(&self, vdisk: &VdiskId, epoch: Epoch) {
        if is_broken(Rule::Identity)
            && self.inner.status(vdisk).await.is_ok_and(|state| state.identity.is_none())
        {
            let _ = self.inner.promise(vdisk, epoch).await;
        }
    }
}

#[async_trait]
impl ShardStore for Unruly {
    fn address(&self) -> Arc<str> {
        self.inner.address()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        let vdisk = vdisk.clone();
        self.arrives(async move |this| this.inner.promise(&vdisk, epoch).await.map(|state| this.state(state)))
            .await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        mut record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        let (vdisk, members) = (vdisk.clone(), members.clone());
        self.revive(&vdisk, record.epoch).await;
        if is_broken(Rule::StartRecords) {
            // Members are kept, nothing is dropped and nothing recorded: a start far above everything.
            record.number = AggregationNumber(u64::MAX);
        }
        self.arrives(async move |this| {
            this.inner.start(&vdisk, record, &members).await.map(|identity| this.identity(identity))
        })
        .await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let vdisk = vdisk.clone();
        self.revive(&vdisk, shard.epoch).await;
        self.arrives(async move |this| {
            this.inner.append(&vdisk, number, shard, committed).await.map(|identity| this.identity(identity))
        })
        .await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let vdisk = vdisk.clone();
        self.revive(&vdisk, epoch).await;
        self.arrives(async move |this| {
            this.inner.publish(&vdisk, epoch, committed).await.map(|identity| this.identity(identity))
        })
        .await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        let vdisk = vdisk.clone();
        self.arrives(async move |this| this.inner.fill(&vdisk, number, shard).await).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.inner.prune(vdisk, epoch, first).await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.inner.delete(vdisk, epoch).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.inner.heads(vdisk, range, max_bytes).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.inner.shard(vdisk, number).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.inner.status(vdisk).await.map(|state| self.state(state))
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.inner.vdisks().await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.inner.durability().await
    }
}
