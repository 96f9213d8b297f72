//! One process's connection to one store of a slave.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rand::rngs::SmallRng;
use tlog_proto::{Epoch, VdiskId};
use tlog_store::StoreError;
use tlog_store::slave::{
    BlockChange, Claim, MemorySlave, PartState, RecordState, SlaveOutcome, SlaveOwner, SlavePart,
    SlaveRecord, SlaveStep, SlaveStore,
};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{Fate, Process, Weather, unavailable};

/// A [`SlaveStore`] over the simulated network. Requests to a slave are not delivered twice: its stores are reached over connections
/// that keep their order.
#[derive(Debug)]
pub(crate) struct SlaveLink {
    store: Arc<MemorySlave>,
    process: Arc<Process>,
    weather: Arc<Weather>,
    rng: Mutex<SmallRng>,
}

impl SlaveLink {
    pub(crate) fn new(
        store: Arc<MemorySlave>,
        process: Arc<Process>,
        weather: Arc<Weather>,
        rng: SmallRng,
    ) -> Self {
        Self { store, process, weather, rng: Mutex::new(rng) }
    }

    async fn call<T, F>(
        &self,
        act: impl FnOnce(Arc<MemorySlave>) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
        let rates = self.weather.rates();
        let fate = Fate::drawn(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner), rates);
        let address = self.store.address();
        if fate.lost_request {
            return Err(unavailable(&address, "the request was lost"));
        }
        if fate.there.is_zero() && fate.back.is_zero() && !fate.lost_answer {
            return act(Arc::clone(&self.store)).await;
        }
        let (tell, told) = oneshot::channel();
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            sleep(fate.there).await;
            let answer = act(store).await;
            sleep(fate.back).await;
            if !fate.lost_answer {
                // Who asked may be gone.
                let _ = tell.send(answer);
            }
        });
        match told.await {
            Ok(answer) if !self.process.is_dead() => answer,
            Err(_) if !self.process.is_dead() => Err(unavailable(&address, "the answer was lost")),
            _ => std::future::pending().await,
        }
    }
}

#[async_trait]
impl SlaveStore for SlaveLink {
    fn address(&self) -> Arc<str> {
        self.store.address()
    }

    async fn part(&self, vdisk: &VdiskId) -> Result<PartState, StoreError> {
        let vdisk = vdisk.clone();
        self.call(async move |store: Arc<MemorySlave>| store.part(&vdisk).await).await
    }

    async fn raise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        let vdisk = vdisk.clone();
        self.call(async move |store: Arc<MemorySlave>| store.raise(&vdisk, epoch).await).await
    }

    async fn begin(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        part: &SlavePart,
    ) -> Result<SlaveOutcome, StoreError> {
        let (vdisk, part) = (vdisk.clone(), part.clone());
        self.call(async move |store: Arc<MemorySlave>| store.begin(&vdisk, epoch, &part).await).await
    }

    async fn clear(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<SlaveOutcome, StoreError> {
        let vdisk = vdisk.clone();
        self.call(async move |store: Arc<MemorySlave>| store.clear(&vdisk, epoch).await).await
    }

    async fn apply(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreError> {
        let (vdisk, step, changes) = (vdisk.clone(), *step, changes.to_vec());
        self.call(async move |store: Arc<MemorySlave>| store.apply(&vdisk, epoch, &step, &changes).await)
            .await
    }

    async fn record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreError> {
        let vdisk = vdisk.clone();
        self.call(async move |store: Arc<MemorySlave>| store.record(&vdisk).await).await
    }

    async fn promise(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<(), StoreError> {
        let vdisk = vdisk.clone();
        self.call(async move |store: Arc<MemorySlave>| store.promise(&vdisk, epoch, owner, claim).await).await
    }

    async fn keep(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreError> {
        let (vdisk, record) = (vdisk.clone(), record.clone());
        self.call(async move |store: Arc<MemorySlave>| store.keep(&vdisk, epoch, &record).await).await
    }
}
