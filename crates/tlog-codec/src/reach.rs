//! How far back in time a run of aggregations reaches: what makes a time findable in O(log n) reads, although timestamps may step
//! back.
//!
//! ```text
//! aggregation         1   2   3   4   5   6   7   8
//! run that it ends   [1] [3] [5] [7]                  N - lowest set bit of N, not included, to N
//!                    [1-2]   [5-6]
//!                    [1  -  4]
//!                    [1      -      8]
//! ```
//! The header of each aggregation says, for the run that ends with it, how far its lowest timestamp lies below the header's own
//! oldest: one byte, rounded away from it, so that what it says is never above the truth. Whoever looks for the last write at or
//! before a time T goes back from the end and skips every run whose bound is above T; in the first that is not it looks at the
//! runs that make it up. Where a bound is not known - the log is older than this field, or was opened in the middle of the run -
//! the runs inside are looked at, which costs a few reads more.

use tlog_proto::{AggregationNumber, Timestamp};

/// A distance in time, rounded up to one of 255 steps, each a quarter of an octave from the next; 0 is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeReach(pub(crate) u8);

impl TimeReach {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);

    /// The first step that is no shorter than a distance in nanoseconds.
    pub fn covering(distance: u64) -> Self {
        let (mut low, mut high) = (1, u8::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            if step(middle) >= distance { high = middle } else { low = middle + 1 }
        }
        Self(high)
    }

    /// Nothing in the run is older than this, seen from the oldest timestamp of the header that says so.
    pub fn bound_from(self, oldest: Timestamp) -> Option<Timestamp> {
        (self.0 > 0).then(|| Timestamp(oldest.0.saturating_sub(step(self.0))))
    }

    /// The first number of the run that ends with an aggregation.
    pub fn run_start(number: AggregationNumber) -> AggregationNumber {
        AggregationNumber(number.0 - (number.0 & number.0.wrapping_neg()) + 1)
    }
}

/// Nanoseconds that a step stands for. The last one stands for all of time.
fn step(number: u8) -> u64 {
    match number {
        0 | 1 => 0,
        u8::MAX => u64::MAX,
        number => {
            let (octave, quarter) = (u32::from(number - 2) / 4, u64::from(number - 2) % 4);
            // 4 << 62 does not fit any more.
            (4 + quarter).checked_shl(octave).filter(|v| v >> octave == 4 + quarter).unwrap_or(u64::MAX)
        }
    }
}

/// The runs that a writer has finished since it opened the log: what it needs to say how far the next one reaches.
///
/// Invariant: `runs` are adjoining, of falling length, and end with the newest aggregation.
#[derive(Clone, Debug, Default)]
pub struct TimeReaches {
    /// Last number of the run, and its lowest timestamp of a write; none where it has none, unknown where it began before the
    /// writer did.
    runs: Vec<(u64, Lowest)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lowest {
    Unknown,
    NoWrites,
    At(Timestamp),
}

impl Lowest {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Lowest::Unknown, _) | (_, Lowest::Unknown) => Lowest::Unknown,
            (Lowest::NoWrites, known) | (known, Lowest::NoWrites) => known,
            (Lowest::At(a), Lowest::At(b)) => Lowest::At(a.min(b)),
        }
    }
}

impl TimeReaches {
    /// Takes the next aggregation in. `oldest` is the timestamp in its header; `has_writes` whether that is one of a write.
    pub fn next(&mut self, number: AggregationNumber, oldest: Timestamp, has_writes: bool) -> TimeReach {
        let mut lowest = if has_writes { Lowest::At(oldest) } else { Lowest::NoWrites };
        let length = number.0 & number.0.wrapping_neg();
        let mut part = 1;
        while part < length {
            let inside = self.runs.pop().filter(|(last, _)| *last == number.0 - part);
            lowest = lowest.and(inside.map_or(Lowest::Unknown, |(_, lowest)| lowest));
            part *= 2;
        }
        self.runs.push((number.0, lowest));
        match lowest {
            Lowest::Unknown => TimeReach::UNKNOWN,
            Lowest::NoWrites => TimeReach::covering(0),
            Lowest::At(lowest) => TimeReach::covering(oldest.0.saturating_sub(lowest.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_rise_and_none_is_more_than_a_quarter_above_the_one_before() {
        assert_eq!(
            (step(1), step(2), step(3), step(249), step(250), step(255)),
            (0, 4, 5, 7 << 61, u64::MAX, u64::MAX)
        );
        for number in 3..250 {
            let (before, after) = (step(number - 1), step(number));
            assert!(after > before && after - before <= before / 4 + 1, "{number}: {before} {after}");
        }
        assert_eq!(TimeReach::covering(0).bound_from(Timestamp(9)), Some(Timestamp(9)));
        assert_eq!(TimeReach::covering(u64::MAX).bound_from(Timestamp(9)), Some(Timestamp(0)));
        assert_eq!(TimeReach::UNKNOWN.bound_from(Timestamp(9)), None);
    }

    proptest! {
        #[test]
        fn a_distance_is_covered_and_not_by_much_more(distance: u64) {
            let TimeReach(number) = TimeReach::covering(distance);
            prop_assert!(step(number) >= distance && (number == 1 || step(number - 1) < distance));
        }

        #[test]
        fn every_bound_is_at_or_below_the_lowest_timestamp_of_its_run_and_close_to_it(
            first in 0u64..40,
            writes in prop::collection::vec((0u64..1_000_000, prop::bool::weighted(0.8)), 1..200),
        ) {
            let mut reaches = TimeReaches::default();
            for (at, &(oldest, has_writes)) in writes.iter().enumerate() {
                let number = first + at as u64 + 1;
                let reach = reaches.next(AggregationNumber(number), Timestamp(oldest), has_writes);
                let start = TimeReach::run_start(AggregationNumber(number)).0;
                let Some(bound) = reach.bound_from(Timestamp(oldest)) else {
                    prop_assert!(start <= first, "{number} is known");
                    continue;
                };
                prop_assert!(start > first, "{number} began before the writer did");
                let run = &writes[(start - first - 1) as usize..=at];
                let lowest = run.iter().filter(|(_, has_writes)| *has_writes).map(|(oldest, _)| *oldest).min();
                prop_assert!(lowest.is_none_or(|lowest| bound.0 <= lowest), "{bound:?} {lowest:?}");
                let lowest = lowest.unwrap_or(oldest).min(oldest);
                prop_assert!(lowest - bound.0 <= (oldest - lowest) / 4 + 4);
            }
        }
    }
}
