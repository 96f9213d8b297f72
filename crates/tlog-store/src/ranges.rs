//! A set of aggregation numbers, kept as ranges: histories are long and have few gaps.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use tlog_proto::AggregationNumber;

/// A set of aggregation numbers.
///
/// Invariant: the ranges are not empty, do not overlap and do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumberRanges {
    /// First number of a range -> its last one.
    ranges: BTreeMap<u64, u64>,
}

impl NumberRanges {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no number in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers are in it.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// The highest number.
    pub fn last(&self) -> Option<AggregationNumber> {
        self.ranges.last_key_value().map(|(_, &last)| AggregationNumber(last))
    }

    /// The lowest number.
    pub fn first(&self) -> Option<AggregationNumber> {
        self.ranges.first_key_value().map(|(&first, _)| AggregationNumber(first))
    }

    /// Whether a number is in it.
    pub fn contains(&self, number: AggregationNumber) -> bool {
        self.ranges.range(..=number.0).next_back().is_some_and(|(_, &last)| number.0 <= last)
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<AggregationNumber>> + '_ {
        self.ranges.iter().map(|(&first, &last)| AggregationNumber(first)..=AggregationNumber(last))
    }

    /// Adds one number.
    pub fn insert(&mut self, number: AggregationNumber) {
        self.insert_range(number..=number);
    }

    /// Adds every number of a range.
    pub fn insert_range(&mut self, range: RangeInclusive<AggregationNumber>) {
        let (mut first, mut last) = (range.start().0, range.end().0);
        if first > last {
            return;
        }
        // Everything that overlaps or touches becomes one range.
        while let Some((&f, &l)) = self.ranges.range(..=last.saturating_add(1)).next_back() {
            if l.saturating_add(1) < first {
                break;
            }
            self.ranges.remove(&f);
            first = first.min(f);
            last = last.max(l);
        }
        self.ranges.insert(first, last);
    }

    /// Takes every number of a range out.
    pub fn remove_range(&mut self, range: RangeInclusive<AggregationNumber>) {
        let (first, last) = (range.start().0, range.end().0);
        if first > last {
            return;
        }
        while let Some((&f, &l)) = self.ranges.range(..=last).next_back() {
            if l < first {
                break;
            }
            self.ranges.remove(&f);
            if l > last {
                self.ranges.insert(last + 1, l);
            }
            if f < first {
                self.ranges.insert(f, first - 1);
                break;
            }
        }
    }

    /// The numbers of `range` that are not in it.
    pub fn missing_in(&self, range: RangeInclusive<AggregationNumber>) -> NumberRanges {
        let mut missing = NumberRanges::new();
        missing.insert_range(range);
        for held in self.iter() {
            missing.remove_range(held);
        }
        missing
    }
}

impl FromIterator<AggregationNumber> for NumberRanges {
    fn from_iter<I: IntoIterator<Item = AggregationNumber>>(numbers: I) -> Self {
        let mut ranges = NumberRanges::new();
        for number in numbers {
            ranges.insert(number);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_a_plain_set_holds(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)
        ) {
            let (mut ranges, mut set) = (NumberRanges::new(), BTreeSet::new());
            for (add, first, length) in steps {
                let range = AggregationNumber(first)..=AggregationNumber(first + length);
                if add {
                    ranges.insert_range(range);
                    set.extend(first..=first + length);
                } else {
                    ranges.remove_range(range);
                    set.retain(|n| !(first..=first + length).contains(n));
                }
                let listed: Vec<u64> = ranges.iter().flat_map(|r| r.start().0..=r.end().0).collect();
                prop_assert_eq!(listed, set.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.count(), set.len() as u64);
                prop_assert_eq!(ranges.last().map(|n| n.0), set.last().copied());
                let missing = ranges.missing_in(AggregationNumber(5)..=AggregationNumber(40));
                prop_assert!((5..=40).all(|n| missing.contains(AggregationNumber(n)) != set.contains(&n)));
                let touching = ranges.iter().zip(ranges.iter().skip(1)).any(|(a, b)| a.end().0 + 1 >= b.start().0);
                prop_assert!(!touching);
            }
        }
    }
}
