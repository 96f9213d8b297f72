//! How far back in time a run of aggregations reaches: what makes a time findable in O(log n) reads, although timestamps may step
//! back.
//!
//! ```text
//! aggregation         1   2   3   4   5   6   7   8
//! run that it ends   [1] [2]     [4] [5]         [8]
//!                    [1  -  3]   [4  -  6]
//!                    [1            -            7]
//! ```
//! A run ends with N, and is N alone or N and the two runs of equal length before it: 1, 3, 7, 15, ... long, the digits of N in skew
//! binary. The header of each aggregation says, for the run that ends with it, how far its lowest timestamp lies below the header's own
//! oldest: one byte, rounded away from it, so that what it says is never above the truth. Whoever looks for the last write at or
//! before a time T begins at the end. Where the run that ends there has only later writes, it goes on before the run; else at the
//! aggregation before, which ends one of the two that make it up. So it takes about log n reads to the run that has it, and two
//! for each time that this one is cut in half. Where a bound is not known - the log is older than this field, or was opened in the
//! middle of the run - the runs inside are looked at, which costs a few reads more. A run without any write says so: no time is in it.

use tlog_proto::{AggregationNumber, Timestamp};

/// A distance in time, rounded up to one of 254 steps, each a quarter of an octave from the next; 0 is not known, and 255 says that
/// there is no write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeReach(pub(crate) u8);

impl TimeReach {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
    /// The run has no writes.
    pub const NO_WRITES: Self = Self(u8::MAX);

    /// The first step that is no shorter than a distance in nanoseconds.
    pub fn covering(distance: u64) -> Self {
        let (mut low, mut high) = (1, Self::NO_WRITES.0 - 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if step(middle) >= distance { high = middle } else { low = middle + 1 }
        }
        Self(high)
    }

    /// No write of the run is older than this, seen from the oldest timestamp of the header that says so.
    pub fn bound_from(self, oldest: Timestamp) -> Option<Timestamp> {
        match self {
            Self::UNKNOWN => None,
            Self::NO_WRITES => Some(Timestamp(u64::MAX)),
            Self(number) => Some(Timestamp(oldest.0.saturating_sub(step(number)))),
        }
    }

    /// The first number of the run that ends with an aggregation.
    pub fn run_start(number: AggregationNumber) -> AggregationNumber {
        AggregationNumber(number.0 - run_length(number.0).saturating_sub(1))
    }
}

/// How long the run is that ends with a number: the lowest digit that it has in skew binary.
fn run_length(number: u64) -> u64 {
    let mut rest = number;
    loop {
        // The longest of 1, 3, 7, ... that fits.
        let longest = match rest.checked_add(1) {
            Some(above) => (1u64 << above.ilog2()) - 1,
            None => rest,
        };
        if longest == rest {
            return rest;
        }
        rest -= longest;
    }
}

/// Nanoseconds that a step stands for. The last ones stand for all of time.
fn step(number: u8) -> u64 {
    match number {
        0 | 1 => 0,
        number => {
            let (octave, quarter) = (u32::from(number - 2) / 4, u64::from(number - 2) % 4);
            // 4 << 62 does not fit any more.
            (4 + quarter).checked_shl(octave).filter(|v| v >> octave == 4 + quarter).unwrap_or(u64::MAX)
        }
    }
}

/// The runs that a writer has finished since it opened the log: what it needs to say how far the next one reaches.
///
/// Invariant: `runs` are adjoining, none is longer than the one before, and the last of them ends with the newest aggregation.
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
        let half = run_length(number.0) / 2;
        if half > 0 {
            for end in [number.0 - 1, number.0 - 1 - half] {
                let inside = self.runs.pop().filter(|(last, _)| *last == end);
                lowest = lowest.and(inside.map_or(Lowest::Unknown, |(_, lowest)| lowest));
            }
        }
        self.runs.push((number.0, lowest));
        match lowest {
            Lowest::Unknown => TimeReach::UNKNOWN,
            Lowest::NoWrites => TimeReach::NO_WRITES,
            Lowest::At(lowest) => TimeReach::covering(oldest.0.saturating_sub(lowest.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_run_is_its_end_alone_or_with_the_two_of_equal_length_before_it() {
        let lengths: Vec<u64> = (1..=15).map(run_length).collect();
        assert_eq!(lengths, [1, 1, 3, 1, 1, 3, 7, 1, 1, 3, 1, 1, 3, 7, 15]);
        for number in 1..5000 {
            let length = run_length(number);
            if length > 1 {
                let half = length / 2;
                assert_eq!((run_length(number - 1), run_length(number - 1 - half)), (half, half), "{number}");
            }
            assert_eq!(TimeReach::run_start(AggregationNumber(number)).0, number + 1 - length);
        }
        assert_eq!(
            (run_length(0), run_length(u64::MAX), run_length(u64::MAX - 1)),
            (0, u64::MAX, u64::MAX / 2)
        );
    }

    #[test]
    fn steps_rise_and_none_is_more_than_a_quarter_above_the_one_before() {
        assert_eq!(
            (step(1), step(2), step(3), step(249), step(250), step(254)),
            (0, 4, 5, 7 << 61, u64::MAX, u64::MAX)
        );
        for number in 3..250 {
            let (before, after) = (step(number - 1), step(number));
            assert!(after > before && after - before <= before / 4 + 1, "{number}: {before} {after}");
        }
        assert_eq!(TimeReach::covering(0).bound_from(Timestamp(9)), Some(Timestamp(9)));
        assert_eq!(TimeReach::covering(u64::MAX).bound_from(Timestamp(9)), Some(Timestamp(0)));
        assert_eq!(TimeReach::UNKNOWN.bound_from(Timestamp(9)), None);
        assert_eq!(TimeReach::NO_WRITES.bound_from(Timestamp(9)), Some(Timestamp(u64::MAX)));
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
                let Some(lowest) = lowest else {
                    prop_assert_eq!(reach, TimeReach::NO_WRITES);
                    continue;
                };
                prop_assert!(bound.0 <= lowest, "{bound:?} {lowest:?}");
                let lowest = lowest.min(oldest);
                prop_assert!(lowest - bound.0 <= (oldest - lowest) / 4 + 4);
            }
        }
    }
}
