//! A store of a slave in memory, for tests: it can be cut off between any two steps, set back, and wiped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{Epoch, Sequence, VdiskId};

use super::{
    BlockChange, Claim, PartState, RecordState, SlaveOutcome, SlaveOwner, SlavePart, SlaveRecord, SlaveStep,
    SlaveStore,
};
use crate::{StoreError, StoreErrorKind};

/// A [`SlaveStore`] in memory.
#[derive(Debug)]
pub struct MemorySlave {
    address: Arc<str>,
    gate: Arc<SlaveGate>,
    vdisks: Mutex<BTreeMap<VdiskId, Kept>>,
}

/// What it has of one vdisk.
#[derive(Clone, Debug, Default)]
struct Kept {
    epoch: Epoch,
    part: Option<SlavePart>,
    blocks: BTreeMap<u64, Bytes>,
    counted: u64,
    record: RecordState,
}

/// Lets operations through to the stores that share it, or cuts them off: as a network or a kill of the caller would.
#[derive(Debug, Default)]
pub struct SlaveGate {
    state: Mutex<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    passed: u64,
    /// How many more may pass; none: all.
    left: Option<u64>,
    /// The first that may not pass is carried out all the same, and its answer is lost.
    loses_answer: bool,
}

impl SlaveGate {
    /// Lets all pass.
    pub fn open(&self) {
        *self.state() = GateState { passed: self.passed(), ..GateState::default() };
    }

    /// Lets `count` more pass; then none. With `loses_answer` the next one is carried out, but nobody hears of it.
    pub fn close_after(&self, count: u64, loses_answer: bool) {
        *self.state() = GateState { passed: self.passed(), left: Some(count), loses_answer };
    }

    /// How many operations have passed.
    pub fn passed(&self) -> u64 {
        self.state().passed
    }

    /// Whether an operation happens, and whether it is answered.
    fn admit(&self) -> (bool, bool) {
        let mut state = self.state();
        match state.left {
            Some(0) => (std::mem::take(&mut state.loses_answer), false),
            left => {
                state.left = left.map(|left| left - 1);
                state.passed += 1;
                (true, true)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemorySlave {
    /// An empty store that calls itself `address`, behind a gate that it may share with others.
    pub fn new(address: impl Into<String>, gate: Arc<SlaveGate>) -> Self {
        Self { address: address.into().into(), gate, vdisks: Mutex::default() }
    }

    /// The blocks that it has, by index.
    pub fn blocks(&self, vdisk: &VdiskId) -> BTreeMap<u64, Bytes> {
        self.vdisks().get(vdisk).map(|kept| kept.blocks.clone()).unwrap_or_default()
    }

    /// Puts a block there, past everything.
    pub fn put(&self, vdisk: &VdiskId, index: u64, data: Bytes) {
        self.vdisks().entry(vdisk.clone()).or_default().blocks.insert(index, data);
    }

    /// Puts the sequence there that existing servers write.
    pub fn put_legacy_sequence(&self, vdisk: &VdiskId, sequence: Sequence) {
        self.vdisks().entry(vdisk.clone()).or_default().record.legacy_sequence = Some(sequence);
    }

    /// Forgets everything.
    pub fn wipe(&self) {
        self.vdisks().clear();
    }

    /// What it has now, to be given back to it later: as a server that is restarted with an older copy of its data.
    pub fn copy(&self) -> impl FnOnce(&MemorySlave) + use<> {
        let copy = self.vdisks().clone();
        move |store| *store.vdisks() = copy
    }

    fn vdisks(&self) -> MutexGuard<'_, BTreeMap<VdiskId, Kept>> {
        self.vdisks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act<T>(
        &self,
        vdisk: &VdiskId,
        act: impl FnOnce(&mut Kept) -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        let (happens, answered) = self.gate.admit();
        let result = if happens { Some(act(self.vdisks().entry(vdisk.clone()).or_default())) } else { None };
        let cut_off = || {
            let source = std::io::Error::new(std::io::ErrorKind::NotConnected, "cut off");
            Err(StoreErrorKind::Unavailable { source })
        };
        let result = result.filter(|_| answered).unwrap_or_else(cut_off);
        result.map_err(|kind| StoreError::new(&*self.address, kind))
    }

    /// The same for what needs the store's epoch to be the caller's.
    fn act_in(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        of: impl FnOnce(&Kept) -> Epoch,
        act: impl FnOnce(&mut Kept) -> SlaveOutcome,
    ) -> Result<SlaveOutcome, StoreError> {
        self.act(vdisk, |kept| match of(kept) {
            promised if promised > epoch => Err(StoreErrorKind::Fenced { promised }),
            promised if promised < epoch => Ok(SlaveOutcome::Changed),
            _ => Ok(act(kept)),
        })
    }
}

#[async_trait]
impl SlaveStore for MemorySlave {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }

    async fn part(&self, vdisk: &VdiskId) -> Result<PartState, StoreError> {
        self.act(vdisk, |kept| {
            let Kept { epoch, part, blocks, counted, .. } = kept;
            let blocks = blocks.len() as u64;
            Ok(PartState { epoch: *epoch, part: part.clone(), blocks, counted: *counted })
        })
    }

    async fn raise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.act(vdisk, |kept| {
            if kept.epoch >= epoch {
                return Err(StoreErrorKind::Fenced { promised: kept.epoch });
            }
            kept.epoch = epoch;
            Ok(())
        })
    }

    async fn begin(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        part: &SlavePart,
    ) -> Result<SlaveOutcome, StoreError> {
        self.act_in(
            vdisk,
            epoch,
            |kept| kept.epoch,
            |kept| {
                (kept.part, kept.counted) = (Some(part.clone()), kept.blocks.len() as u64);
                SlaveOutcome::Done
            },
        )
    }

    async fn clear(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<SlaveOutcome, StoreError> {
        self.act_in(
            vdisk,
            epoch,
            |kept| kept.epoch,
            |kept| {
                (kept.part, kept.blocks, kept.counted) = (None, BTreeMap::new(), 0);
                SlaveOutcome::Done
            },
        )
    }

    async fn apply(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreError> {
        let apply = |kept: &mut Kept| {
            let Some(part) = kept.part.as_mut().filter(|part| part.fill == step.fill) else {
                return SlaveOutcome::Changed;
            };
            if part.applied == step.to && step.from != step.to {
                return SlaveOutcome::Done; // a second time
            }
            if part.applied != step.from || kept.counted != kept.blocks.len() as u64 {
                return SlaveOutcome::Changed;
            }
            part.applied = step.to;
            for BlockChange { index, data } in changes {
                match data {
                    Some(data) => kept.blocks.insert(index.get(), data.clone()),
                    None => kept.blocks.remove(&index.get()),
                };
            }
            kept.counted = kept.blocks.len() as u64;
            SlaveOutcome::Done
        };
        self.act_in(vdisk, epoch, |kept| kept.epoch, apply)
    }

    async fn record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreError> {
        self.act(vdisk, |kept| Ok(kept.record.clone()))
    }

    async fn promise(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<(), StoreError> {
        self.act(vdisk, |Kept { record, .. }| {
            let taken = claim == Claim::Back && record.owner != Some(owner);
            if record.epoch >= epoch || taken {
                return Err(StoreErrorKind::Fenced { promised: record.epoch });
            }
            (record.epoch, record.owner) = (epoch, Some(owner));
            Ok(())
        })
    }

    async fn keep(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreError> {
        self.act_in(
            vdisk,
            epoch,
            |kept| kept.record.epoch,
            |kept| {
                kept.record.record = record.clone();
                if record.fill.is_some() {
                    let last = record.position.and_then(|position| position.last);
                    kept.record.legacy_sequence = last.map(|last| last.position.sequence);
                }
                SlaveOutcome::Done
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::check_slave;

    #[tokio::test]
    async fn a_slave_in_memory_keeps_every_rule() {
        check_slave(|| Arc::new(MemorySlave::new("memory:0", Arc::default()))).await;
    }

    #[tokio::test]
    async fn a_closed_gate_lets_nothing_through_or_one_thing_without_its_answer() {
        let gate = Arc::new(SlaveGate::default());
        let store = MemorySlave::new("memory:0", gate.clone());
        let disk = VdiskId::new("v").unwrap();
        store.put(&disk, 3, Bytes::from_static(b"abc"));
        let copy = store.copy();
        gate.close_after(1, true);
        store.raise(&disk, Epoch(1)).await.unwrap();
        assert!(store.raise(&disk, Epoch(2)).await.is_err());
        assert!(store.raise(&disk, Epoch(3)).await.is_err());
        gate.open();
        assert_eq!(store.part(&disk).await.unwrap().epoch, Epoch(2));
        assert_eq!(gate.passed(), 2);
        store.wipe();
        assert!(store.blocks(&disk).is_empty());
        copy(&store);
        assert_eq!((store.blocks(&disk).len(), store.part(&disk).await.unwrap().epoch), (1, Epoch(0)));
    }
}
