//! A store in memory: for tests, and for trying things out. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tokio::time::Instant;

use crate::log_state::{Current, Filling, LogMeta, Placing, Slot, Slots, unknown_log};
use crate::observe::{Appends, answered};
use crate::{
    ChainStore, FillOutcome, Head, HeadSlot, LogState, Members, MemoryChains, Shard, ShardSlot, ShardStore,
    StartRecord, StoreDurability, StoreError, StoreErrorKind, StoreIdentity,
};

/// A [`ShardStore`] in memory, with ways to damage what it holds.
#[derive(Debug)]
pub struct MemoryStore {
    address: Arc<str>,
    appends: Appends,
    logs: Mutex<BTreeMap<VdiskId, MemoryLog>>,
    chains: Arc<MemoryChains>,
}

#[derive(Clone, Debug)]
struct MemoryLog {
    meta: LogMeta,
    slots: Slots<Stored>,
}

#[derive(Clone, Debug)]
enum Stored {
    Whole(Shard),
    /// The store itself can tell that it is damaged.
    Damaged,
}

impl MemoryStore {
    /// An empty store that calls itself `address`, such as `memory:0`.
    pub fn new(address: impl Into<String>) -> Self {
        let address: Arc<str> = address.into().into();
        let chains = Arc::new(MemoryChains::new(Arc::clone(&address)));
        Self { chains, logs: Mutex::default(), address, appends: Appends::default() }
    }

    /// Its logs of stored format 1.
    pub fn chain_store(&self) -> &Arc<MemoryChains> {
        &self.chains
    }

    /// Forgets everything, as after a replaced disk: the next promise gives a log another identity.
    pub fn wipe(&self) {
        self.logs().clear();
        self.chains.wipe();
    }

    /// Remembers what it holds now; what comes back sets a store to that again, as a restart does that loses the newest writes.
    pub fn copy(&self) -> impl FnOnce(&MemoryStore) + Send + use<> {
        let copy = self.logs().clone();
        move |store| *store.logs() = copy
    }

    /// Changes what is stored under a number in a way that this store does not notice, as rot below a store's own checksums
    /// would. Answers whether something was there.
    pub fn damage(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        change: impl FnOnce(&mut Shard),
    ) -> bool {
        match self.logs().get_mut(vdisk).and_then(|log| log.slots.get_mut(number)) {
            Some(Slot { place: Stored::Whole(shard), .. }) => {
                change(shard);
                true
            }
            _ => false,
        }
    }

    /// Damages what is stored under a number in a way that the store notices: it answers [`ShardSlot::Damaged`]. Answers
    /// whether something was there.
    pub fn mark_damaged(&self, vdisk: &VdiskId, number: AggregationNumber) -> bool {
        let mut logs = self.logs();
        let slot = logs.get_mut(vdisk).and_then(|log| log.slots.get_mut(number));
        slot.map(|slot| slot.place = Stored::Damaged).is_some()
    }

    /// Loses what is stored under a number. Answers whether something was there.
    pub fn remove(&self, vdisk: &VdiskId, number: AggregationNumber) -> bool {
        self.logs().get_mut(vdisk).is_some_and(|log| log.slots.remove(number).is_some())
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<VdiskId, MemoryLog>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        operation: &'static str,
        vdisk: &VdiskId,
        act: impl FnOnce(&mut MemoryLog) -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        answered(&self.address, operation, self.act(vdisk, act))
    }

    fn act<T>(
        &self,
        vdisk: &VdiskId,
        act: impl FnOnce(&mut MemoryLog) -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreErrorKind> {
        self.logs().get_mut(vdisk).ok_or(StoreErrorKind::NoLog).and_then(act)
    }
}

/// A new random identity.
pub(crate) fn new_identity() -> Result<StoreIdentity, StoreErrorKind> {
    let mut identity = [0; 16];
    tlog_ambient::fill_random(&mut identity)
        .map_err(|error| StoreErrorKind::Unavailable { source: std::io::Error::other(error.to_string()) })?;
    Ok(StoreIdentity(identity))
}

impl MemoryLog {
    fn slot(&self, number: AggregationNumber) -> ShardSlot {
        match self.slots.get(number).map(|slot| &slot.place) {
            None => ShardSlot::Empty,
            Some(Stored::Damaged) => ShardSlot::Damaged,
            Some(Stored::Whole(shard)) => ShardSlot::Held(shard.clone()),
        }
    }

    fn put(&mut self, number: AggregationNumber, shard: Shard) {
        self.slots.put(number, Slot { epoch: shard.epoch, place: Stored::Whole(shard) });
    }
}

#[async_trait]
impl ShardStore for MemoryStore {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        let mut logs = self.logs();
        let result = match logs.get_mut(vdisk) {
            Some(log) => log.meta.promise(epoch).map(|()| log.meta.state(log.slots.held())),
            None => new_identity().and_then(|identity| LogMeta::created(identity, epoch)).map(|meta| {
                let log = MemoryLog { meta, slots: Slots::default() };
                let state = log.meta.state(log.slots.held());
                logs.insert(vdisk.clone(), log);
                state
            }),
        };
        answered(&self.address, "promise", result)
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.with("start", vdisk, |log| {
            log.meta.start(record, members)?;
            log.slots.drop_started(record, |_| true);
            Ok(log.meta.identity)
        })
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let begun = Instant::now();
        let result = self.act(vdisk, |log| {
            let held = log.slots.get(number).map(|slot| slot.epoch);
            if log.meta.append(number, shard.epoch, committed, held)? == Placing::Store {
                log.put(number, shard);
            }
            Ok(log.meta.identity)
        });
        self.appends.answered(&self.address, begun.elapsed(), result)
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.with("publish", vdisk, |log| log.meta.publish(epoch, committed).map(|()| log.meta.identity))
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.with("fill", vdisk, |log| {
            match log.meta.fill(number, shard.id, || Current::from(&log.slot(number)))? {
                Filling::Nothing(outcome) => Ok(outcome),
                Filling::Store => {
                    log.put(number, shard);
                    Ok(FillOutcome::Stored)
                }
            }
        })
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.with("prune", vdisk, |log| {
            log.meta.prune(epoch, first)?;
            log.slots.drop_below(log.meta.first);
            Ok(())
        })
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        let mut logs = self.logs();
        let result = logs.get(vdisk).map_or(Ok(()), |log| log.meta.delete(epoch));
        if result.is_ok() {
            logs.remove(vdisk);
        }
        answered(&self.address, "delete", result)
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.with("heads", vdisk, |log| {
            let (mut heads, mut bytes) = (Vec::new(), 0);
            for (number, slot) in log.slots.range(range) {
                heads.push((
                    number,
                    match &slot.place {
                        Stored::Damaged => HeadSlot::Damaged,
                        Stored::Whole(Shard { epoch, id, head, .. }) => {
                            bytes += head.len();
                            HeadSlot::Held(Head { epoch: *epoch, id: *id, head: head.clone() })
                        }
                    },
                ));
                if bytes >= max_bytes {
                    break;
                }
            }
            Ok(heads)
        })
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.with("shard", vdisk, |log| Ok(log.slot(number)))
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        let logs = self.logs();
        let state = logs.get(vdisk).map_or_else(unknown_log, |log| log.meta.state(log.slots.held()));
        answered(&self.address, "status", Ok(state))
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        answered(&self.address, "vdisks", Ok(self.logs().keys().cloned().collect()))
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        Ok(StoreDurability::Volatile("it is in memory: nothing survives the process".to_owned()))
    }

    fn chains(&self) -> Option<Arc<dyn ChainStore>> {
        Some(Arc::clone(&self.chains) as _)
    }
}
