//! One process's connection to one store of a log.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use rand::rngs::SmallRng;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::{
    FillOutcome, HeadSlot, LogState, Members, MemoryStore, Shard, ShardSlot, ShardStore, StartRecord,
    StoreDurability, StoreError, StoreIdentity,
};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{Bay, Fate, Process, Weather, unavailable};

/// A [`ShardStore`] over the simulated network.
#[derive(Debug)]
pub(crate) struct Link {
    bay: Arc<Bay>,
    process: Arc<Process>,
    weather: Arc<Weather>,
    rng: Mutex<SmallRng>,
    /// Of which run of the store it knows.
    run: AtomicU64,
    /// The rule that start records are kept and obeyed does not hold.
    without_starts: bool,
}

type Act<T> = Arc<dyn Fn(Arc<MemoryStore>, bool) -> BoxFuture<'static, Result<T, StoreError>> + Send + Sync>;

impl Link {
    pub(crate) fn new(
        bay: Arc<Bay>,
        process: Arc<Process>,
        weather: Arc<Weather>,
        rng: SmallRng,
        without_starts: bool,
    ) -> Self {
        let run = AtomicU64::new(bay.run());
        Self { bay, process, weather, rng: Mutex::new(rng), run, without_starts }
    }

    fn failed<T>(&self, what: &'static str) -> Result<T, StoreError> {
        Err(unavailable(&self.bay.address, what))
    }

    /// `act` is told whether to tear what it stores.
    async fn call<T, F>(
        &self,
        act: impl Fn(Arc<MemoryStore>, bool) -> F + Send + Sync + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
        let fate =
            Fate::drawn(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner), self.weather.rates());
        let reached = self.process.reaches(self.bay.place) && !self.bay.is_down();
        if !reached {
            return match fate.told {
                true => self.failed("out of reach"),
                false => std::future::pending().await,
            };
        }
        let slow = self.bay.slow();
        if fate.is_plain() && slow.is_zero() {
            return act(self.bay.disk(), false).await;
        }
        if fate.lost_request {
            return match fate.told {
                true => self.failed("the request was lost"),
                false => std::future::pending().await,
            };
        }
        let act: Act<T> = Arc::new(move |disk, torn| Box::pin(act(disk, torn)));
        let (tell, told) = oneshot::channel();
        let bay = Arc::clone(&self.bay);
        tokio::spawn(async move {
            sleep(fate.there + slow).await;
            if !bay.is_down() {
                let answer = act(bay.disk(), fate.torn).await;
                if let Some(after) = fate.again {
                    let (act, bay) = (Arc::clone(&act), Arc::clone(&bay));
                    tokio::spawn(async move {
                        sleep(after).await;
                        if !bay.is_down() {
                            // Nobody waits for this answer.
                            let _ = act(bay.disk(), false).await;
                        }
                    });
                }
                sleep(fate.back).await;
                if !fate.lost_answer && !fate.torn {
                    // Who asked may be gone.
                    let _ = tell.send(answer);
                }
            }
        });
        match told.await {
            Ok(answer) if !self.process.is_dead() => answer,
            Err(_) if fate.told && !self.process.is_dead() => self.failed("the answer was lost"),
            _ => std::future::pending().await,
        }
    }

    /// What changes the log over a connection to an earlier run of the store fails once: it may have lost something.
    fn check_run(&self) -> Result<(), StoreError> {
        let run = self.bay.run();
        match self.run.swap(run, Ordering::Relaxed) == run {
            true => Ok(()),
            false => self.failed("it was restarted"),
        }
    }
}

fn seen(mut state: LogState, without_starts: bool) -> LogState {
    if without_starts {
        state.starts.clear();
    }
    state
}

/// What a write leaves that stops half-way; never in the place of something.
async fn tear(disk: &MemoryStore, vdisk: &VdiskId, number: AggregationNumber, shard: &mut Shard) {
    if matches!(disk.shard(vdisk, number).await, Ok(ShardSlot::Empty)) {
        shard.payload.truncate(shard.payload.len() / 2);
    }
}

#[async_trait]
impl ShardStore for Link {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.bay.address)
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        let (vdisk, without) = (vdisk.clone(), self.without_starts);
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.promise(&vdisk, epoch).await.map(|state| seen(state, without)) }
        })
        .await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        mut record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        if self.without_starts {
            // Members are kept, nothing is dropped and nothing recorded: a start far above everything.
            record.number = AggregationNumber(u64::MAX);
        }
        let (vdisk, members) = (vdisk.clone(), members.clone());
        self.call(move |disk, _| {
            let (vdisk, members) = (vdisk.clone(), members.clone());
            async move { disk.start(&vdisk, record, &members).await }
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
        self.check_run()?;
        let vdisk = vdisk.clone();
        self.call(move |disk, torn| {
            let (vdisk, mut shard) = (vdisk.clone(), shard.clone());
            async move {
                if torn {
                    tear(&disk, &vdisk, number, &mut shard).await;
                }
                disk.append(&vdisk, number, shard, committed).await
            }
        })
        .await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.check_run()?;
        let vdisk = vdisk.clone();
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.publish(&vdisk, epoch, committed).await }
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
        self.call(move |disk, _| {
            let (vdisk, shard) = (vdisk.clone(), shard.clone());
            async move { disk.fill(&vdisk, number, shard).await }
        })
        .await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        let vdisk = vdisk.clone();
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.prune(&vdisk, epoch, first).await }
        })
        .await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        let vdisk = vdisk.clone();
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.delete(&vdisk, epoch).await }
        })
        .await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        let vdisk = vdisk.clone();
        self.call(move |disk, _| {
            let (vdisk, range) = (vdisk.clone(), range.clone());
            async move { disk.heads(&vdisk, range, max_bytes).await }
        })
        .await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        let vdisk = vdisk.clone();
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.shard(&vdisk, number).await }
        })
        .await
    }

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        let (vdisk, parts) = (vdisk.clone(), parts.to_vec());
        self.call(move |disk, _| {
            let (vdisk, parts) = (vdisk.clone(), parts.clone());
            async move { disk.payload_parts(&vdisk, number, &parts).await }
        })
        .await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        let (vdisk, without) = (vdisk.clone(), self.without_starts);
        self.call(move |disk, _| {
            let vdisk = vdisk.clone();
            async move { disk.status(&vdisk).await.map(|state| seen(state, without)) }
        })
        .await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.call(move |disk, _| async move { disk.vdisks().await }).await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.call(move |disk, _| async move { disk.durability().await }).await
    }
}
