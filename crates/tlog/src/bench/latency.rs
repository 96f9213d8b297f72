//! Latencies, as a histogram.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::figures::Figures;

/// Longest that is told apart: an hour, in nanoseconds.
const LONGEST: u64 = 3600 * 1_000_000_000;

/// Latencies with three digits, whatever their size.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1000, LONGEST, 3)? })
    }

    /// One more.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Those of another one too.
    pub(crate) fn add_all(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.histogram.add(&other.histogram)?)
    }

    /// Percentiles in microseconds, under names that begin like this; none where there are no latencies.
    pub(crate) fn tell(&self, key: &str, label: &str, figures: &mut Figures) {
        if self.histogram.is_empty() {
            return;
        }
        for (name, shown, quantile) in
            [("p50", "p50", 0.5), ("p90", "p90", 0.9), ("p99", "p99", 0.99), ("p999", "p99.9", 0.999)]
        {
            let micros = self.histogram.value_at_quantile(quantile) as f64 / 1000.0;
            figures.add(format!("{key}_{name}_us"), format!("{label} {shown}, us"), micros);
        }
        let highest = self.histogram.max() as f64 / 1000.0;
        figures.add(format!("{key}_max_us"), format!("{label} highest, us"), highest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let (mut one, mut other) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        (1..=500).for_each(|millis| one.add(Duration::from_millis(millis)));
        (501..=1000).for_each(|millis| other.add(Duration::from_millis(millis)));
        one.add_all(&other).unwrap();
        let mut figures = Figures::default();
        one.tell("flush_ok", "FlushOK", &mut figures);
        let near = |key: &str, millis: f64| {
            let micros = figures.get(key).unwrap();
            assert!((micros / 1000.0 / millis - 1.0).abs() < 0.002, "{key} {micros}");
        };
        near("flush_ok_p50_us", 500.0);
        near("flush_ok_p99_us", 990.0);
        near("flush_ok_max_us", 1000.0);
        let mut none = Figures::default();
        Latencies::new().unwrap().tell("flush_ok", "FlushOK", &mut none);
        assert!(none.is_empty());
    }
}
