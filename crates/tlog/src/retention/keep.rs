//! Which moments are kept. Pure.

use std::time::Duration;

use tlog_proto::Timestamp;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Which moments of a disk can be gone back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Every moment, so far back.
    pub within: Duration,
    /// Besides, the last moment of each of so many hours before now, by UTC.
    #[serde(default)]
    pub hourly: u32,
    /// Besides, the last moment of each of so many days before today, by UTC.
    #[serde(default)]
    pub daily: u32,
    /// Besides, every moment that has a mark.
    #[serde(default)]
    pub marks: bool,
}

impl Keep {
    /// Every moment from here on is kept.
    pub fn since(&self, now: Timestamp) -> Timestamp {
        let within = u64::try_from(self.within.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(now.0.saturating_sub(within))
    }

    /// Times before that of which the last moment is kept, newest first: the ends of hours and days.
    pub fn times(&self, now: Timestamp) -> Vec<Timestamp> {
        let since = self.since(now);
        let mut times: Vec<Timestamp> = ends(now, HOUR, self.hourly)
            .chain(ends(now, DAY, self.daily))
            .filter(|time| *time < since)
            .collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.dedup();
        times
    }
}

/// The last instants of the last `count` whole periods.
fn ends(now: Timestamp, period: Duration, count: u32) -> impl Iterator<Item = Timestamp> {
    let period = period.as_nanos() as u64;
    let current = now.0 - now.0 % period;
    let end = move |nth: u64| current.checked_sub(nth.checked_mul(period)?)?.checked_sub(1).map(Timestamp);
    (0..u64::from(count)).map_while(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        crate::moment::parse_time_now(text).unwrap()
    }

    fn check(keep: Keep, now: &str, times: &[&str]) {
        let shown: Vec<String> = keep.times(at(now)).iter().map(|time| crate::moment::show(*time)).collect();
        assert_eq!(shown, times);
    }

    #[test]
    fn hours_and_days_end_by_utc_and_what_is_in_the_window_is_kept_anyway() {
        let keep = Keep { within: 2 * HOUR, hourly: 4, daily: 2, marks: false };
        check(
            keep,
            "2024-03-01T12:30:00Z",
            &[
                "2024-03-01T09:59:59.999Z",
                "2024-03-01T08:59:59.999Z",
                "2024-02-29T23:59:59.999Z",
                "2024-02-28T23:59:59.999Z",
            ],
        );
        check(
            Keep { hourly: 1, daily: 1, ..Keep::default() },
            "2024-03-01T00:30:00Z",
            &["2024-02-29T23:59:59.999Z"],
        );
        check(Keep::default(), "2024-03-01T00:30:00Z", &[]);
        assert_eq!(keep.since(at("2024-03-01T12:30:00Z")), at("2024-03-01T10:30:00Z"));
    }

    #[test]
    fn near_the_beginning_of_time_there_are_fewer() {
        let keep = Keep { hourly: 10, daily: 10, ..Keep::default() };
        assert_eq!(keep.times(Timestamp(3 * HOUR.as_nanos() as u64)).len(), 3);
        assert!(keep.times(Timestamp(0)).is_empty());
        assert_eq!(Keep { within: Duration::MAX, ..keep }.since(Timestamp(5)), Timestamp(0));
    }
}
