//! Sets of sequences, kept as ranges.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tlog_proto::Sequence;

/// A set of sequences, in order. Takes memory by the number of its gaps and is cheap to clone.
///
/// ```
/// use tlog_client::SequenceSet;
/// use tlog_proto::Sequence;
///
/// let set: SequenceSet = [7, 5, 6, 9].map(Sequence).into_iter().collect();
/// assert_eq!(set.to_string(), "5-7, 9");
/// assert_eq!(set.len(), 4);
/// assert!(!set.contains(Sequence(8)));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SequenceSet(Arc<[(Sequence, Sequence)]>);

impl SequenceSet {
    /// The runs of sequences without gaps, in order.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<Sequence>> + '_ {
        self.0.iter().map(|&(first, last)| first..=last)
    }

    /// How many sequences there are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| (last.0 - first.0).saturating_add(1)).fold(0, u64::saturating_add)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `sequence` is one of them.
    pub fn contains(&self, sequence: Sequence) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= sequence);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, last)| sequence <= *last)
    }

    /// The lowest one.
    pub fn first(&self) -> Option<Sequence> {
        self.0.first().map(|(first, _)| *first)
    }

    /// The highest one.
    pub fn last(&self) -> Option<Sequence> {
        self.0.last().map(|(_, last)| *last)
    }
}

impl FromIterator<Sequence> for SequenceSet {
    /// In any order, duplicates allowed.
    fn from_iter<I: IntoIterator<Item = Sequence>>(sequences: I) -> Self {
        let mut sequences: Vec<Sequence> = sequences.into_iter().collect();
        sequences.sort_unstable();
        let mut ranges: Vec<(Sequence, Sequence)> = Vec::new();
        for sequence in sequences {
            match ranges.last_mut() {
                Some((_, last)) if sequence <= last.next() => *last = sequence,
                _ => ranges.push((sequence, sequence)),
            }
        }
        Self(ranges.into())
    }
}

impl fmt::Display for SequenceSet {
    /// As in `5-7, 9`; `none` for the empty set. Stops after eight ranges and says how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        if self.is_empty() {
            return f.write_str("none");
        }
        for (at, (first, last)) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more ranges"),
        }
    }
}

impl fmt::Debug for SequenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_holds_exactly_what_it_was_made_of(sequences in prop::collection::vec(0_u64..64, 0..40)) {
            let set: SequenceSet = sequences.iter().copied().map(Sequence).collect();
            let oracle: BTreeSet<u64> = sequences.into_iter().collect();
            for sequence in 0..70 {
                prop_assert_eq!(set.contains(Sequence(sequence)), oracle.contains(&sequence));
            }
            prop_assert_eq!(set.len(), oracle.len() as u64);
            prop_assert_eq!(set.first().map(|s| s.0), oracle.first().copied());
            prop_assert_eq!(set.last().map(|s| s.0), oracle.last().copied());
            let back: Vec<u64> = set.ranges().flat_map(|range| range.start().0..=range.end().0).collect();
            prop_assert_eq!(back, oracle.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_highest_sequence_is_no_exception_and_long_sets_print_short() {
        let set: SequenceSet = [u64::MAX, u64::MAX - 1, u64::MAX].map(Sequence).into_iter().collect();
        assert_eq!(set.len(), 2);
        assert!(set.contains(Sequence(u64::MAX)));
        let gaps: SequenceSet = (0..10).map(|i| Sequence(i * 2)).collect();
        assert_eq!(gaps.to_string(), "0, 2, 4, 6, 8, 10, 12, 14 and 2 more ranges");
        assert_eq!(SequenceSet::default().to_string(), "none");
    }
}
