//! The rules of every operation, for every store of this crate: what is fenced, what a start drops, which list of
//! members counts, what may be filled and pruned.
//!
//! Pure: no file, clock or random source. A store asks [`LogMeta`] first; an operation that is refused has changed
//! nothing. What it allows, the store then does to its [`Slots`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use tlog_proto::{AggregationId, AggregationNumber, Epoch};

use crate::{
    FillOutcome, LogState, Members, NumberRanges, ShardSlot, StartRecord, StoreErrorKind, StoreIdentity,
};

/// What a store knows of a log that it knows, but the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogMeta {
    pub(crate) identity: StoreIdentity,
    pub(crate) epoch: Epoch,
    /// By rising number; epochs never fall, because an older epoch is fenced.
    pub(crate) starts: Vec<StartRecord>,
    pub(crate) members: Members,
    pub(crate) committed: AggregationNumber,
    pub(crate) first: AggregationNumber,
}

/// What becomes of a shard that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placing {
    /// It is stored.
    Store,
    /// Its number is below `first`: that history has been given up, nothing is stored.
    Pruned,
}

/// What is under a number, as far as a fill cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Current {
    Nothing,
    Damaged,
    Whole(AggregationId),
}

impl From<&ShardSlot> for Current {
    fn from(slot: &ShardSlot) -> Self {
        match slot {
            ShardSlot::Empty => Current::Nothing,
            ShardSlot::Damaged => Current::Damaged,
            ShardSlot::Held(shard) => Current::Whole(shard.id),
        }
    }
}

/// What a fill does, before it has done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    Store,
    Nothing(FillOutcome),
}

impl LogMeta {
    /// The log that a promise makes where there is none.
    pub(crate) fn created(identity: StoreIdentity, epoch: Epoch) -> Result<Self, StoreErrorKind> {
        let mut meta = Self {
            identity,
            epoch: Epoch(0),
            starts: Vec::new(),
            members: Members::default(),
            committed: AggregationNumber(0),
            first: AggregationNumber(1),
        };
        meta.promise(epoch)?;
        Ok(meta)
    }

    fn refuse_older(&self, epoch: Epoch) -> Result<(), StoreErrorKind> {
        if self.epoch > epoch { Err(StoreErrorKind::Fenced { promised: self.epoch }) } else { Ok(()) }
    }

    fn raise_committed(&mut self, committed: AggregationNumber) {
        self.committed = self.committed.max(committed);
    }

    pub(crate) fn promise(&mut self, epoch: Epoch) -> Result<(), StoreErrorKind> {
        if epoch <= self.epoch {
            return Err(StoreErrorKind::Fenced { promised: self.epoch });
        }
        self.epoch = epoch;
        Ok(())
    }

    pub(crate) fn delete(&self, epoch: Epoch) -> Result<(), StoreErrorKind> {
        self.refuse_older(epoch)
    }

    /// The store then drops what [`Slots::drop_started`] drops. The new record is the last of `starts`; what stood before it
    /// and was not forgotten keeps its place.
    pub(crate) fn start(&mut self, record: StartRecord, members: &Members) -> Result<(), StoreErrorKind> {
        self.refuse_older(record.epoch)?;
        self.epoch = record.epoch;
        self.starts.retain(|start| start.number < record.number);
        self.starts.push(record);
        if members.version() >= self.members.version() {
            self.members = members.clone();
        }
        Ok(())
    }

    /// `held` is the epoch of what is stored under the number. It can be newer than the store's own where a fill brought it
    /// to a store that the newer writer's promise never reached; an older writer must not replace that.
    pub(crate) fn append(
        &mut self,
        number: AggregationNumber,
        epoch: Epoch,
        committed: AggregationNumber,
        held: Option<Epoch>,
    ) -> Result<Placing, StoreErrorKind> {
        self.refuse_older(epoch)?;
        if let Some(promised) = held.filter(|&held| held > epoch) {
            return Err(StoreErrorKind::Fenced { promised });
        }
        self.epoch = epoch;
        self.raise_committed(committed);
        Ok(self.placing(number))
    }

    fn placing(&self, number: AggregationNumber) -> Placing {
        if number < self.first { Placing::Pruned } else { Placing::Store }
    }

    pub(crate) fn publish(
        &mut self,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<(), StoreErrorKind> {
        self.refuse_older(epoch)?;
        self.epoch = epoch;
        self.raise_committed(committed);
        Ok(())
    }

    pub(crate) fn fill(
        &self,
        number: AggregationNumber,
        id: AggregationId,
        current: impl FnOnce() -> Current,
    ) -> Result<Filling, StoreErrorKind> {
        if number > self.committed {
            return Err(StoreErrorKind::NotCommitted { number, committed: self.committed });
        }
        if self.placing(number) == Placing::Pruned || current() == Current::Whole(id) {
            return Ok(Filling::Nothing(FillOutcome::AlreadyHeld));
        }
        Ok(Filling::Store)
    }

    /// The store then drops what [`Slots::drop_below`] drops.
    pub(crate) fn prune(&mut self, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreErrorKind> {
        self.refuse_older(epoch)?;
        if first > self.committed.next() {
            return Err(StoreErrorKind::NotCommitted { number: first, committed: self.committed });
        }
        self.first = self.first.max(first);
        Ok(())
    }

    pub(crate) fn state(&self, held: &NumberRanges) -> LogState {
        LogState {
            identity: Some(self.identity),
            epoch: self.epoch,
            starts: self.starts.clone(),
            members: self.members.clone(),
            committed: self.committed,
            first: self.first,
            held: held.clone(),
        }
    }
}

/// What a store says of a log that it does not know.
pub(crate) fn unknown_log() -> LogState {
    LogState { first: AggregationNumber(1), ..LogState::default() }
}

/// One number's entry: who wrote it, and where the store has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<P> {
    pub(crate) epoch: Epoch,
    pub(crate) place: P,
}

/// The numbers under which something is stored.
///
/// Invariant: `held` has exactly the keys of `slots`. It is kept because a status is asked for often, and a log has many
/// numbers and few gaps.
#[derive(Clone, Debug)]
pub(crate) struct Slots<P> {
    slots: BTreeMap<AggregationNumber, Slot<P>>,
    held: NumberRanges,
}

impl<P> Default for Slots<P> {
    fn default() -> Self {
        Self { slots: BTreeMap::new(), held: NumberRanges::new() }
    }
}

impl<P> Slots<P> {
    pub(crate) fn held(&self) -> &NumberRanges {
        &self.held
    }

    pub(crate) fn get(&self, number: AggregationNumber) -> Option<&Slot<P>> {
        self.slots.get(&number)
    }

    pub(crate) fn get_mut(&mut self, number: AggregationNumber) -> Option<&mut Slot<P>> {
        self.slots.get_mut(&number)
    }

    pub(crate) fn range(
        &self,
        range: RangeInclusive<AggregationNumber>,
    ) -> impl Iterator<Item = (AggregationNumber, &Slot<P>)> {
        // A range that ends before it begins is empty; the map would panic.
        let range = (!range.is_empty()).then_some(range);
        range.into_iter().flat_map(|range| self.slots.range(range)).map(|(&number, slot)| (number, slot))
    }

    /// Answers what was there.
    pub(crate) fn put(&mut self, number: AggregationNumber, slot: Slot<P>) -> Option<Slot<P>> {
        self.held.insert(number);
        self.slots.insert(number, slot)
    }

    pub(crate) fn remove(&mut self, number: AggregationNumber) -> Option<Slot<P>> {
        self.held.remove_range(number..=number);
        self.slots.remove(&number)
    }

    /// Takes out what a start drops: everything at and above its number that an older epoch wrote. `only` can spare some:
    /// what came after the start, where it is replayed late.
    pub(crate) fn drop_started(&mut self, start: StartRecord, only: impl Fn(&P) -> bool) -> Vec<Slot<P>> {
        let dropped: Vec<AggregationNumber> = self
            .slots
            .range(start.number..)
            .filter(|(_, slot)| slot.epoch < start.epoch && only(&slot.place))
            .map(|(&number, _)| number)
            .collect();
        dropped.into_iter().filter_map(|number| self.remove(number)).collect()
    }

    /// Takes out everything below `first`.
    pub(crate) fn drop_below(&mut self, first: AggregationNumber) -> Vec<Slot<P>> {
        let kept = self.slots.split_off(&first);
        if let Some(last) = first.previous() {
            self.held.remove_range(AggregationNumber(0)..=last);
        }
        std::mem::replace(&mut self.slots, kept).into_values().collect()
    }

    /// Takes out what `gone` says.
    pub(crate) fn drop_where(&mut self, gone: impl Fn(&P) -> bool) -> Vec<Slot<P>> {
        let dropped: Vec<AggregationNumber> =
            self.slots.iter().filter(|(_, slot)| gone(&slot.place)).map(|(&number, _)| number).collect();
        dropped.into_iter().filter_map(|number| self.remove(number)).collect()
    }
}
