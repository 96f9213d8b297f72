//! Two syncers for one slave.

use std::sync::Arc;

use async_trait::async_trait;
use tlog_player::slave::{SlaveCluster, SlaveSyncState, SlaveWaitError};
use tlog_proto::{Epoch, VdiskId};
use tlog_store::StoreError;
use tlog_store::slave::{
    BlockChange, Claim, PartState, RecordState, SlaveOutcome, SlaveOwner, SlavePart, SlaveRecord, SlaveStep,
    SlaveStore,
};
use tokio::sync::Semaphore;

use crate::scene::{Stores, Written, until, until_status, within};

/// A store of which one caller's writes are held up, as if that caller were paused with them on the way.
#[derive(Debug)]
pub(crate) struct HeldUp {
    pub(crate) store: Arc<dyn SlaveStore>,
    pub(crate) writes: Arc<Semaphore>,
    /// Its asking for an epoch is held up by this one, where there is one.
    pub(crate) promises: Option<Semaphore>,
}

impl HeldUp {
    async fn pass(&self) {
        self.writes.acquire().await.unwrap().forget();
    }
}

#[async_trait]
impl SlaveStore for HeldUp {
    fn address(&self) -> Arc<str> {
        self.store.address()
    }

    async fn part(&self, vdisk: &VdiskId) -> Result<PartState, StoreError> {
        self.store.part(vdisk).await
    }

    async fn raise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.store.raise(vdisk, epoch).await
    }

    async fn begin(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        part: &SlavePart,
    ) -> Result<SlaveOutcome, StoreError> {
        self.store.begin(vdisk, epoch, part).await
    }

    async fn clear(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<SlaveOutcome, StoreError> {
        self.store.clear(vdisk, epoch).await
    }

    async fn apply(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreError> {
        self.pass().await;
        self.store.apply(vdisk, epoch, step, changes).await
    }

    async fn record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreError> {
        self.store.record(vdisk).await
    }

    async fn promise(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<(), StoreError> {
        if let Some(promises) = &self.promises {
            promises.acquire().await.unwrap().forget();
        }
        self.store.promise(vdisk, epoch, owner, claim).await
    }

    async fn keep(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreError> {
        self.store.keep(vdisk, epoch, record).await
    }
}

#[tokio::test]
async fn a_syncer_that_was_paused_cannot_write_over_what_the_next_one_wrote() {
    for writes in 0..12 {
        let mut written = Written::new(31).await;
        written.append(10).await;
        let stores = Stores::new(2, true);
        let passing = Arc::new(Semaphore::new(writes));
        let held_up = |store: &Arc<_>| {
            let store: Arc<dyn SlaveStore> = Arc::<tlog_store::slave::MemorySlave>::clone(store);
            Arc::new(HeldUp { store, writes: passing.clone(), promises: None }) as Arc<dyn SlaveStore>
        };
        let data = stores.data.iter().map(held_up).collect();
        let of_paused = SlaveCluster::new(written.log.vdisk.clone(), data, stores.metadata.clone()).unwrap();
        let paused = written.syncer(of_paused);
        // It has all the writes that may pass, and one on its way.
        until_status(&paused, |status| status.state == SlaveSyncState::Syncing).await;
        within(async {
            while passing.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;

        let next = written.syncer(stores.cluster(&written.log));
        written.append(3).await;
        within(next.wait_until(written.end())).await.unwrap();
        let disk = stores.disk(&written.log);
        passing.add_permits(1000);
        until(&paused, |state| *state == SlaveSyncState::Fenced).await;
        assert_eq!(paused.wait_until(written.end()).await, Err(SlaveWaitError::Fenced));
        assert_eq!(stores.disk(&written.log), disk);
        written.assert_prefix(&stores).await;

        // The next one is not disturbed.
        written.append(2).await;
        within(next.wait_until(written.end())).await.unwrap();
        assert_eq!(stores.disk(&written.log), *written.disk());
    }
}

#[tokio::test]
async fn a_syncer_that_lost_touch_leaves_the_slave_to_whoever_took_it_over() {
    let mut written = Written::new(32).await;
    written.append(4).await;
    let stores = Stores::new(2, true);
    let first = written.syncer(stores.cluster(&written.log));
    within(first.wait_until(written.end())).await.unwrap();
    stores.gate.close_after(0, false);
    until(&first, crate::scene::is_waiting).await;
    first.stop().await;

    // One that is up to date, and hears nothing, until its next look.
    stores.gate.open();
    let one = written.syncer(stores.cluster(&written.log));
    within(one.wait_until(written.end())).await.unwrap();
    let other = written.syncer(stores.cluster(&written.log));
    until(&one, |state| *state == SlaveSyncState::Fenced).await;
    written.append(4).await;
    within(other.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}
