//! What time it was where in a log. Pure.
//!
//! Timestamps of writes are the clients' and may step back, and by much: a machine whose clock was reset writes as if it were 1970. By
//! the definition of a moment that write is then the last one of every time since. What is removed must not go by that: a day of
//! history is no less worth keeping because of a write after it. So here time only rises along the log. It is that of the newest write so
//! far, and never later than when the server took it, so that a clock that runs ahead does not hold everything for years.
//!
//! ```text
//! writes    10:00  10:05  10:10  1970  10:20
//! time      10:00  10:05  10:10  10:10  10:20     everything since 10:03 begins with the second; a moment's last write at 10:12 is
//!                                                 the fourth
//! ```

use std::time::Duration;

use tlog_codec::Kind;
use tlog_player::AggregationInfo;
use tlog_proto::{AggregationNumber, Timestamp};

/// So long a write may be on its way: it waits until an aggregation is full, or until a server is there.
const USUAL: Duration = Duration::from_secs(3600);

/// The times of the aggregations of a log, from one on.
#[derive(Debug)]
pub(super) struct LogClock {
    /// From these aggregations on it is that late. Both rise.
    steps: Vec<(AggregationNumber, Timestamp)>,
    next: AggregationNumber,
    /// The last that has writes: what these say, and when the server took them.
    last: Option<(Timestamp, Timestamp)>,
}

impl LogClock {
    /// Begins with an aggregation.
    pub(super) fn from(first: AggregationNumber) -> Self {
        Self { steps: Vec::new(), next: first, last: None }
    }

    /// The next one, in the log's order.
    pub(super) fn handle(&mut self, info: &AggregationInfo) {
        self.next = info.number.next();
        if info.kind != Kind::Blocks {
            return;
        }
        self.last = Some((info.newest_timestamp, info.sealed_at));
        let time = info.newest_timestamp.min(info.sealed_at);
        if self.steps.last().is_none_or(|(_, reached)| *reached < time) {
            self.steps.push((info.number, time));
        }
    }

    /// The first one that is later than a time. Where none is, the one after the last.
    pub(super) fn first_after(&self, time: Timestamp) -> AggregationNumber {
        let at = self.steps.partition_point(|(_, reached)| *reached <= time);
        self.steps.get(at).map_or(self.next, |(number, _)| *number)
    }

    /// For a clock of all of a log. Where all writes say that they are not later than `since`, but the server took the last of them after it, and long after: when it did. The
    /// clock of whoever wrote it is wrong, or history was copied from elsewhere; what is older than `since` cannot be told.
    pub(super) fn is_behind(&self, since: Timestamp) -> Option<Timestamp> {
        let (said, taken) = self.last?;
        let is_behind = taken.0.saturating_sub(said.0) > USUAL.as_nanos() as u64;
        (self.first_after(since) == self.next && said <= since && taken > since && is_behind).then_some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_player::StoredFormat;
    use tlog_proto::{AggregationId, Generation, Sequence, SessionId};

    /// A log of aggregations from 5 on, with what their writes say and when they were taken; without either it has no writes.
    fn clock(times: &[Option<(u64, u64)>]) -> LogClock {
        let mut clock = LogClock::from(AggregationNumber(5));
        for (number, times) in (5..).zip(times) {
            let (said, taken) = times.unwrap_or((u64::MAX, u64::MAX));
            clock.handle(&AggregationInfo {
                format: StoredFormat::Two,
                kind: if times.is_some() { Kind::Blocks } else { Kind::Record },
                number: AggregationNumber(number),
                generation: Generation(1),
                session: SessionId(1),
                first_sequence: Sequence(number),
                last_sequence: Sequence(number),
                oldest_timestamp: Timestamp(said),
                newest_timestamp: Timestamp(said),
                sealed_at: Timestamp(taken),
                blocks: 1,
                stored_bytes: 1,
                plain_bytes: 1,
                holders: 6,
                id: AggregationId([0; 32]),
                prev: AggregationId([0; 32]),
            });
        }
        clock
    }

    fn check(times: &[Option<(u64, u64)>], time: u64, first_after: u64) {
        assert_eq!(
            clock(times).first_after(Timestamp(time)),
            AggregationNumber(first_after),
            "{times:?} {time}"
        );
    }

    #[test]
    fn time_rises_along_the_log_whatever_the_writes_say() {
        let reset = [Some((10, 10)), Some((20, 20)), None, Some((0, 21)), Some((30, 30))];
        for (time, first_after) in [(9, 5), (10, 6), (19, 6), (20, 9), (29, 9), (30, 10)] {
            check(&reset, time, first_after);
        }
        check(&[], 3, 5);
    }

    #[test]
    fn a_clock_that_runs_ahead_is_believed_no_further_than_that_of_the_server() {
        let ahead = [Some((10, 10)), Some((u64::MAX, 20)), Some((30, 30)), Some((40, 40))];
        for (time, first_after) in [(19, 6), (20, 7), (30, 8)] {
            check(&ahead, time, first_after);
        }
    }

    #[test]
    fn a_clock_that_is_behind_is_told_from_a_disk_that_is_not_written_to() {
        const HOUR: u64 = 3600 * 1_000_000_000;
        let behind = |times: &[Option<(u64, u64)>]| {
            let hours = |(said, taken)| (said * HOUR, taken * HOUR);
            let times: Vec<_> = times.iter().map(|times| times.map(hours)).collect();
            clock(&times).is_behind(Timestamp(50 * HOUR))
        };
        assert_eq!(behind(&[Some((10, 10)), Some((11, 60)), None]), Some(Timestamp(60 * HOUR)));
        assert_eq!(behind(&[Some((10, 10)), Some((11, 12))]), None, "not written to");
        assert_eq!(behind(&[Some((50, 51))]), None, "it was on its way");
        assert_eq!(behind(&[Some((55, 56)), Some((11, 60))]), None, "something is in the window");
        assert_eq!(behind(&[Some((10, 60)), Some((51, 60))]), None);
        assert_eq!(behind(&[]), None);
    }
}
