//! Reading aggregations from whatever stores hold their shards.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use futures::future::join_all;
use tlog_codec::{EncodedAggregation, RebuildError, ShardFault, ShardHead, rebuild};
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{HeadSlot, NumberRanges, ShardSlot, StoreError};

use crate::shards_read::ShardsRead;
use crate::survey::{Standing, StoreSet, Survey};

/// Bytes of head parts that one request to a store asks for.
const HEADS_BYTES: usize = 4 << 20;

/// What one store has under a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardCondition {
    /// A whole shard of this aggregation, as far as it was read.
    Held(AggregationId),
    /// A whole shard of an aggregation that a later opening ruled out; it does not count. An aggregation of which any shard
    /// was written under an epoch that is not ruled out was adopted by that opening: then all its shards count.
    RuledOut(AggregationId),
    /// Nothing.
    Missing,
    /// Something that is not what was written. The text says how that is known.
    Damaged(String),
    /// The store does not answer, or does not count.
    Unreachable,
}

/// The head part that a number has, as several stores hold it.
#[derive(Clone, Debug)]
pub struct HeadCandidate {
    /// Any of the equal heads.
    pub head: ShardHead,
    /// Highest epoch under which one of the shards was written.
    pub epoch: Epoch,
    /// The stores that hold a shard of it.
    pub holders: Vec<usize>,
}

/// What all stores have under one number, by head parts.
#[derive(Clone, Debug)]
pub struct Located {
    /// The number.
    pub number: AggregationNumber,
    /// What counts, highest epoch first. More than one only where a writer died in the middle.
    pub candidates: Vec<HeadCandidate>,
    /// What each store has.
    pub conditions: Vec<ShardCondition>,
}

/// An aggregation and the payloads of it that were read: verified against the hashes in its head, but for those that
/// [`StoreSet::opened`] hands out.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Any of the equal heads.
    pub head: ShardHead,
    /// Highest epoch under which one of the shards was written.
    pub epoch: Epoch,
    /// Payloads by shard index.
    pub payloads: Vec<Option<Bytes>>,
}

impl Candidate {
    pub(crate) fn of(head: ShardHead) -> Self {
        Self { epoch: head.epoch, payloads: vec![None; head.header.redundancy.total()], head }
    }

    pub(crate) fn put(&mut self, index: usize, epoch: Epoch, payload: Bytes) {
        self.epoch = self.epoch.max(epoch);
        if let Some(slot) = self.payloads.get_mut(index) {
            *slot = Some(payload);
        }
    }

    /// How many payloads are there.
    pub fn present(&self) -> usize {
        self.payloads.iter().flatten().count()
    }

    /// Bytes of its sealed body.
    pub fn body_bytes(&self) -> u64 {
        self.head.header.body_sealed
    }

    /// Whether they give everything back.
    pub fn is_whole(&self) -> bool {
        self.present() >= self.head.header.redundancy.data()
    }

    /// All shards again.
    pub fn rebuild(&self) -> Result<EncodedAggregation, RebuildError> {
        rebuild(&self.head, &self.payloads)
    }
}

/// An aggregation cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// The number.
    pub number: AggregationNumber,
    /// Most whole shards of one aggregation that were found.
    pub present: usize,
    /// How many are needed.
    pub needed: usize,
    /// Address and condition of each store.
    pub conditions: Vec<(String, ShardCondition)>,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, number, present, needed, conditions } = self;
        write!(f, "vdisk {vdisk}, aggregation {number}: {present} of {needed} needed shards can be read")?;
        for (address, condition) in conditions {
            match condition {
                ShardCondition::Held(_) => {}
                ShardCondition::RuledOut(_) | ShardCondition::Missing => {
                    write!(f, "; {address} does not hold its shard")?
                }
                ShardCondition::Damaged(how) => write!(f, "; {address} holds a damaged shard ({how})")?,
                ShardCondition::Unreachable => write!(f, "; {address} is out of reach or blank")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ReadError {}

impl StoreSet {
    /// Head parts of all numbers in `range`, from every store that counts. Each number of the range has an entry. Ask for a
    /// few hundred numbers at a time: all of it is in memory at once.
    pub async fn heads(&self, survey: &Survey, range: RangeInclusive<AggregationNumber>) -> Vec<Located> {
        let answers =
            join_all((0..self.stores().len()).map(|i| self.heads_of(survey, i, range.clone()))).await;
        self.locate(survey, range, answers)
    }

    /// What the answers of the stores, in their order, come to.
    pub(crate) fn locate(
        &self,
        survey: &Survey,
        range: RangeInclusive<AggregationNumber>,
        answers: Vec<Option<Vec<(AggregationNumber, HeadSlot)>>>,
    ) -> Vec<Located> {
        let numbers = range.start().0..=range.end().0;
        let mut found: BTreeMap<AggregationNumber, Located> = numbers
            .map(AggregationNumber)
            .map(|number| {
                let conditions = vec![ShardCondition::Missing; self.stores().len()];
                (number, Located { number, candidates: Vec::new(), conditions })
            })
            .collect();
        for (store, answer) in answers.into_iter().enumerate() {
            let Some(slots) = answer else {
                for located in found.values_mut() {
                    set(&mut located.conditions, store, ShardCondition::Unreachable);
                }
                continue;
            };
            for (number, checked) in self.check_heads(store, &slots) {
                let Some(located) = found.get_mut(&number) else {
                    continue;
                };
                match checked {
                    Ok(head) => located.add(store, head),
                    Err(how) => set(&mut located.conditions, store, ShardCondition::Damaged(how)),
                }
            }
        }
        let mut located: Vec<Located> = found.into_values().collect();
        for located in &mut located {
            located.leave_out_what_is_ruled_out(survey);
            located.candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.epoch));
        }
        located
    }

    /// The heads that one store holds. None where it does not answer or does not count.
    pub(crate) async fn heads_of(
        &self,
        survey: &Survey,
        store: usize,
        range: RangeInclusive<AggregationNumber>,
    ) -> Option<Vec<(AggregationNumber, HeadSlot)>> {
        if survey.views.get(store)?.standing != Standing::Member {
            return None;
        }
        let store = self.stores().get(store)?;
        let (mut next, last) = (*range.start(), *range.end());
        let mut heads = Vec::new();
        while next <= last {
            let call = store.heads(self.vdisk(), next..=last, HEADS_BYTES);
            let answer = log_failure(self.within_limit(store, call).await)?;
            let Some(highest) = answer.last().map(|(number, _)| *number).filter(|number| *number >= next)
            else {
                break; // nothing more; a store that repeats itself must not keep us here
            };
            next = highest.next();
            heads.extend(answer);
        }
        Some(heads)
    }

    /// The first number under which a store holds a shard of another place, and that place: it was moved. Looks at the heads of
    /// all that it holds; whether the store counts does not matter.
    pub async fn shard_of_another_place(
        &self,
        store: usize,
        held: &NumberRanges,
    ) -> Result<Option<(AggregationNumber, usize)>, StoreError> {
        let Some(port) = self.stores().get(store) else { return Ok(None) };
        for range in held.iter() {
            let (mut next, last) = range.into_inner();
            while next <= last {
                let heads =
                    self.within_limit(port, port.heads(self.vdisk(), next..=last, HEADS_BYTES)).await?;
                for (number, slot) in &heads {
                    let HeadSlot::Held(held) = slot else { continue };
                    let head = ShardHead::parse(self.vdisk(), &held.head).ok();
                    if let Some(head) =
                        head.filter(|head| head.header.number == *number && head.index != store)
                    {
                        return Ok(Some((*number, head.index)));
                    }
                }
                let Some(highest) = heads.last().map(|(number, _)| *number).filter(|number| *number >= next)
                else {
                    break;
                };
                next = highest.next();
            }
        }
        Ok(None)
    }

    /// The heads that a store has answered, in order, each whole and in its place, or how it is known that it is not.
    pub(crate) fn check_heads(
        &self,
        store: usize,
        slots: &[(AggregationNumber, HeadSlot)],
    ) -> Vec<(AggregationNumber, Result<ShardHead, String>)> {
        let held = |(_, slot): &'_ (_, HeadSlot)| match slot {
            HeadSlot::Held(held) => Some(held.head.clone()),
            HeadSlot::Damaged => None,
        };
        let heads: Vec<Bytes> = slots.iter().filter_map(held).collect();
        let mut parsed = ShardHead::parse_many(self.vdisk(), &heads).into_iter();
        let check = |(number, slot): &(AggregationNumber, HeadSlot)| {
            let parsed = match slot {
                HeadSlot::Held(_) => parsed.next(),
                HeadSlot::Damaged => None,
            };
            let says_so = || Err("the store says so".to_owned());
            (*number, parsed.map_or_else(says_so, |parsed| self.check_parsed(*number, store, parsed)))
        };
        slots.iter().map(check).collect()
    }

    /// Whether a head is whole and one for this place. `known` is another one of the same aggregation, if there is one.
    pub(crate) fn check_head(
        &self,
        number: AggregationNumber,
        store: usize,
        head: &Bytes,
        known: Option<&ShardHead>,
    ) -> Result<ShardHead, String> {
        self.check_parsed(number, store, ShardHead::parse_beside(self.vdisk(), head, known))
    }

    /// Whether a head that is whole, if it is, is one for this place.
    fn check_parsed(
        &self,
        number: AggregationNumber,
        store: usize,
        parsed: Result<ShardHead, ShardFault>,
    ) -> Result<ShardHead, String> {
        let head = parsed.map_err(|fault| fault.to_string())?;
        if head.header.number != number {
            return Err(format!("it is a shard of aggregation {}", head.header.number));
        }
        if head.index != store {
            return Err(format!("it is shard {} of its aggregation, not shard {store}", head.index));
        }
        if head.header.redundancy.total() != self.stores().len() {
            return Err(format!("its aggregation has {} shards", head.header.redundancy.total()));
        }
        Ok(head)
    }

    /// Reads the aggregation that counts under a committed number, whichever that is: from as few stores as give it back, in
    /// the order in which they are named, and from no others. The error is what was found.
    ///
    /// The survey must count as many stores as an opening needs. Then what does not count is known to be ruled out, and of
    /// what counts there is only one.
    pub async fn committed_aggregation(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        order: &[usize],
    ) -> Result<Candidate, (Vec<Candidate>, Vec<ShardCondition>)> {
        let mut read = ShardsRead::new(self.stores().len());
        let mut rest = order.iter().copied();
        loop {
            let present = read.candidates.values().map(Candidate::present).max().unwrap_or(0);
            let needed = self.quorums().data().saturating_sub(present).max(1);
            let round: Vec<usize> = rest.by_ref().take(needed).collect();
            if round.is_empty() {
                read.leave_out_what_is_ruled_out(survey, number);
                return Err((read.candidates.into_values().collect(), read.conditions));
            }
            self.read_shards(survey, number, &round, &mut read).await;
            let counts =
                |candidate: &&Candidate| candidate.is_whole() && !survey.rules_out(candidate.epoch, number);
            if let Some(candidate) =
                read.candidates.values().filter(counts).max_by_key(|candidate| candidate.epoch)
            {
                return Ok(candidate.clone());
            }
        }
    }

    /// Reads every shard under a number from every store that counts, verified whole. Candidates come highest epoch first;
    /// those that a later opening ruled out are left out.
    pub async fn all_shards(
        &self,
        survey: &Survey,
        number: AggregationNumber,
    ) -> (Vec<Candidate>, Vec<ShardCondition>) {
        let mut read = ShardsRead::new(self.stores().len());
        let all: Vec<usize> = (0..self.stores().len()).collect();
        self.read_shards(survey, number, &all, &mut read).await;
        read.leave_out_what_is_ruled_out(survey, number);
        let mut candidates: Vec<Candidate> = read.candidates.into_values().collect();
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.epoch));
        (candidates, read.conditions)
    }

    /// An error for a number of which too few shards are whole.
    pub fn unreadable(
        &self,
        number: AggregationNumber,
        candidates: &[Candidate],
        conditions: &[ShardCondition],
    ) -> ReadError {
        ReadError {
            vdisk: self.vdisk().clone(),
            number,
            present: candidates.iter().map(Candidate::present).max().unwrap_or(0),
            needed: self.quorums().data(),
            conditions: self
                .stores()
                .iter()
                .zip(conditions)
                .map(|(store, condition)| (store.address().to_string(), condition.clone()))
                .collect(),
        }
    }

    async fn read_shards(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        from: &[usize],
        into: &mut ShardsRead,
    ) {
        let reads = join_all(from.iter().map(|&i| self.shard_of(survey, number, i))).await;
        for (&store, slot) in from.iter().zip(reads) {
            self.take_shard(number, store, slot, into);
        }
        into.verify();
    }

    /// Takes in what a store has answered; none where it does not answer or does not count. The id of the shard, if the head of one
    /// came; its payload is looked at by [`ShardsRead::verify`].
    pub(crate) fn take_shard(
        &self,
        number: AggregationNumber,
        store: usize,
        slot: Option<ShardSlot>,
        into: &mut ShardsRead,
    ) -> Option<AggregationId> {
        let condition = match slot {
            None => ShardCondition::Unreachable,
            Some(ShardSlot::Empty) => ShardCondition::Missing,
            Some(ShardSlot::Damaged) => ShardCondition::Damaged("the store says so".to_owned()),
            Some(ShardSlot::Held(shard)) => {
                match self.check_head(number, store, &shard.head, into.any_head()) {
                    Err(how) => ShardCondition::Damaged(how),
                    Ok(head) => {
                        let id = head.id;
                        into.unverified.push((store, head, shard.payload));
                        set(&mut into.conditions, store, ShardCondition::Held(id));
                        return Some(id);
                    }
                }
            }
        };
        set(&mut into.conditions, store, condition);
        None
    }

    pub(crate) async fn shard_of(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        store: usize,
    ) -> Option<ShardSlot> {
        if survey.views.get(store)?.standing != Standing::Member {
            return None;
        }
        let store = self.stores().get(store)?;
        log_failure(self.within_limit(store, store.shard(self.vdisk(), number)).await)
    }
}

impl Located {
    fn add(&mut self, store: usize, head: ShardHead) {
        set(&mut self.conditions, store, ShardCondition::Held(head.id));
        match self.candidates.iter_mut().find(|candidate| candidate.head.id == head.id) {
            Some(candidate) => {
                candidate.epoch = candidate.epoch.max(head.epoch);
                candidate.holders.push(store);
            }
            None => self.candidates.push(HeadCandidate { epoch: head.epoch, holders: vec![store], head }),
        }
    }

    fn leave_out_what_is_ruled_out(&mut self, survey: &Survey) {
        let Self { number, candidates, conditions } = self;
        candidates.retain(|candidate| {
            let ruled_out = survey.rules_out(candidate.epoch, *number);
            for &store in candidate.holders.iter().filter(|_| ruled_out) {
                set(conditions, store, ShardCondition::RuledOut(candidate.head.id));
            }
            !ruled_out
        });
    }
}

pub(crate) fn set(conditions: &mut [ShardCondition], store: usize, condition: ShardCondition) {
    if let Some(slot) = conditions.get_mut(store) {
        *slot = condition;
    }
}

/// A failed read is not an error of the whole: other stores make up for it. It is noted here, where it is dropped.
fn log_failure<T>(answer: Result<T, StoreError>) -> Option<T> {
    answer.inspect_err(|error| tracing::debug!(%error, "a store could not be read")).ok()
}
