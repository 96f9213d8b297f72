//! The commit rule. Pure.
//!
//! Aggregation N is committed when N - 1 is and W stores hold it. Only answers of stores that are members count; when a
//! store turns out to have come back empty, what it had answered for aggregations that are not committed yet is forgotten.

use std::collections::VecDeque;

use tlog_proto::AggregationNumber;

/// Which stores hold what is not committed yet.
///
/// Invariant: `in_flight[i]` is aggregation `committed + 1 + i`.
#[derive(Debug)]
pub(crate) struct CommitTracker {
    write: usize,
    stores: usize,
    committed: AggregationNumber,
    in_flight: VecDeque<Vec<bool>>,
}

impl CommitTracker {
    /// Everything up to `committed` is; `write` of `stores` stores must hold what follows.
    pub(crate) fn new(stores: usize, write: usize, committed: AggregationNumber) -> Self {
        Self { write, stores, committed, in_flight: VecDeque::new() }
    }

    pub(crate) fn committed(&self) -> AggregationNumber {
        self.committed
    }

    /// The next aggregation is on its way to the stores; answers its number.
    pub(crate) fn handle_sent(&mut self) -> AggregationNumber {
        self.in_flight.push_back(vec![false; self.stores]);
        AggregationNumber(self.committed.0 + self.in_flight.len() as u64)
    }

    /// A member holds an aggregation. Answers for what is committed already change nothing.
    pub(crate) fn handle_stored(&mut self, store: usize, number: AggregationNumber) {
        if let Some(held) = self.holders_mut(number).and_then(|holders| holders.get_mut(store)) {
            *held = true;
        }
    }

    /// A store has lost what it had answered.
    pub(crate) fn handle_forget(&mut self, store: usize) {
        for holders in &mut self.in_flight {
            if let Some(held) = holders.get_mut(store) {
                *held = false;
            }
        }
    }

    /// Whether a store has answered for an aggregation that is not committed yet.
    pub(crate) fn is_held(&self, store: usize, number: AggregationNumber) -> bool {
        let at = number.0.checked_sub(self.committed.0 + 1);
        let holders = at.and_then(|at| self.in_flight.get(usize::try_from(at).ok()?));
        holders.and_then(|holders| holders.get(store)).copied().unwrap_or(false)
    }

    /// How many stores hold the first aggregation that is not committed.
    pub(crate) fn holders_of_next(&self) -> usize {
        self.in_flight.front().map_or(0, |holders| holders.iter().filter(|held| **held).count())
    }

    /// The next aggregation that is committed now.
    pub(crate) fn poll_committed(&mut self) -> Option<AggregationNumber> {
        if self.in_flight.is_empty() || self.holders_of_next() < self.write {
            return None;
        }
        self.in_flight.pop_front();
        self.committed = self.committed.next();
        Some(self.committed)
    }

    fn holders_mut(&mut self, number: AggregationNumber) -> Option<&mut Vec<bool>> {
        let at = number.0.checked_sub(self.committed.0 + 1)?;
        self.in_flight.get_mut(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn committed_is_what_counting_every_answer_again_says(
            events in prop::collection::vec((0u8..8, 0usize..6, 1u64..12), 0..200)
        ) {
            let mut tracker = CommitTracker::new(6, 5, AggregationNumber(0));
            let (mut sent, mut committed) = (0u64, 0u64);
            let mut held: BTreeSet<(u64, usize)> = BTreeSet::new();
            for (kind, store, number) in events {
                match kind {
                    0 => {
                        sent += 1;
                        prop_assert_eq!(tracker.handle_sent().0, sent);
                    }
                    1 => {
                        tracker.handle_forget(store);
                        held.retain(|(n, s)| *s != store || *n <= committed);
                    }
                    _ => {
                        tracker.handle_stored(store, AggregationNumber(number));
                        if number <= sent {
                            held.insert((number, store));
                        }
                    }
                }
                while let Some(number) = tracker.poll_committed() {
                    committed += 1;
                    prop_assert_eq!(number.0, committed);
                }
                let holders = |n: u64| held.iter().filter(|(number, _)| *number == n).count();
                prop_assert!(committed == sent || holders(committed + 1) < 5);
                prop_assert_eq!(tracker.committed().0, committed);
            }
        }
    }
}
