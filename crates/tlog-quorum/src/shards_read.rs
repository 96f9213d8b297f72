//! The shards under one number, as they arrive.

use std::collections::BTreeMap;

use bytes::Bytes;
use tlog_codec::ShardHead;
use tlog_proto::{AggregationId, AggregationNumber};

use crate::read::{Candidate, ReadError, ShardCondition, set};
use crate::survey::{StoreSet, Survey};

/// What was read under one number so far.
pub(crate) struct ShardsRead {
    pub(crate) candidates: BTreeMap<AggregationId, Candidate>,
    pub(crate) conditions: Vec<ShardCondition>,
    /// Store, head and payload of what has arrived and is not in `candidates` yet.
    pub(crate) unverified: Vec<(usize, ShardHead, Bytes)>,
}

impl ShardsRead {
    pub(crate) fn new(total: usize) -> Self {
        let conditions = vec![ShardCondition::Unreachable; total];
        Self { candidates: BTreeMap::new(), conditions, unverified: Vec::new() }
    }

    /// Shards of an aggregation that have arrived, damaged ones included as far as they are not known as such.
    pub(crate) fn arrived(&self, id: AggregationId) -> usize {
        let unverified = self.unverified.iter().filter(|(_, head, _)| head.id == id).count();
        self.candidates.get(&id).map_or(0, Candidate::present) + unverified
    }

    /// A head that was proven, most likely of the aggregation that others will be of.
    pub(crate) fn any_head(&self) -> Option<&ShardHead> {
        let verified = self.candidates.values().map(|candidate| &candidate.head);
        self.unverified.first().map(|(_, head, _)| head).or_else(|| verified.last())
    }

    /// Checks the payloads that have arrived, together, as that is quicker.
    pub(crate) fn verify(&mut self) {
        let whole = std::mem::take(&mut self.unverified);
        let to_verify: Vec<(&ShardHead, &[u8])> =
            whole.iter().map(|(_, head, payload)| (head, payload.as_ref())).collect();
        let verdicts = ShardHead::verify_payloads(&to_verify);
        for ((store, head, payload), verdict) in whole.into_iter().zip(verdicts) {
            match verdict {
                Ok(()) => self.add(head, payload),
                Err(error) => {
                    set(&mut self.conditions, store, ShardCondition::Damaged(error.to_string()));
                }
            }
        }
    }

    fn add(&mut self, head: ShardHead, payload: Bytes) {
        let (index, epoch) = (head.index, head.epoch);
        let candidate = self.candidates.entry(head.id).or_insert_with(|| Candidate::of(head));
        candidate.put(index, epoch, payload);
    }

    /// An aggregation with all of its payloads that have arrived, also those that are not verified.
    pub(crate) fn with_unverified(&self, id: AggregationId) -> Option<Candidate> {
        let mut found = self.candidates.get(&id).cloned();
        for (_, head, payload) in self.unverified.iter().filter(|(_, head, _)| head.id == id) {
            let candidate = found.get_or_insert_with(|| Candidate::of(head.clone()));
            candidate.put(head.index, head.epoch, payload.clone());
        }
        found
    }

    pub(crate) fn leave_out_what_is_ruled_out(&mut self, survey: &Survey, number: AggregationNumber) {
        let Self { candidates, conditions, .. } = self;
        candidates.retain(|id, candidate| {
            let ruled_out = survey.rules_out(candidate.epoch, number);
            for condition in conditions.iter_mut().filter(|_| ruled_out) {
                if *condition == ShardCondition::Held(*id) {
                    *condition = ShardCondition::RuledOut(*id);
                }
            }
            !ruled_out
        });
    }

    pub(crate) fn into_error(
        mut self,
        set: &StoreSet,
        survey: &Survey,
        number: AggregationNumber,
        id: AggregationId,
    ) -> ReadError {
        self.leave_out_what_is_ruled_out(survey, number);
        let of_it: Vec<Candidate> = self.candidates.remove(&id).into_iter().collect();
        set.unreadable(number, &of_it, &self.conditions)
    }
}
