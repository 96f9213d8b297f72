//! What the server's own metrics say of a measurement.

use std::collections::BTreeMap;

use hyper::Method;

use super::figures::Figures;
use crate::admin_client;

/// The stages that have a histogram: metric, name in JSON, for people.
const STAGES: [(&str, &str, &str); 4] = [
    ("tlog_server_durable_seconds", "ordered_to_durable", "ordered until durable"),
    ("tlog_log_commit_seconds", "sealed_to_committed", "sealed until W stores have it"),
    ("tlog_store_append_seconds", "store_append", "one store takes a shard"),
    ("tlog_store_sync_seconds", "store_sync", "its disk makes a group durable"),
];

/// Samples of `/metrics`: the sum over all labels but `le`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerMetrics {
    /// Name, and the upper bound where it is a bucket.
    samples: BTreeMap<(String, String), f64>,
}

impl ServerMetrics {
    /// As they are now.
    pub(crate) async fn ask(admin: &str) -> anyhow::Result<Self> {
        Ok(Self::parse(&admin_client::ask(admin, Method::GET, "/metrics").await?))
    }

    fn parse(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let bound = labels.split_once("le=\"").and_then(|(_, rest)| rest.split('"').next());
            *samples.entry((name.to_owned(), bound.unwrap_or_default().to_owned())).or_default() += value;
        }
        Self { samples }
    }

    /// What a counter counts; 0 where it is not there yet.
    pub(crate) fn total(&self, name: &str) -> f64 {
        self.samples.get(&(name.to_owned(), String::new())).copied().unwrap_or_default()
    }

    /// What happened since an earlier moment.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |key| before.samples.get(key).copied().unwrap_or_default();
        let samples = self.samples.iter().map(|(key, value)| (key.clone(), value - earlier(key)));
        Self { samples: samples.collect() }
    }

    /// Of each stage that happened, how often, how long in the mean, and about how long in 99 % of all.
    pub(crate) fn tell_stages(&self, figures: &mut Figures) {
        for (metric, key, label) in STAGES {
            let count = self.total(&format!("{metric}_count"));
            if count <= 0.0 {
                continue;
            }
            let mean = self.total(&format!("{metric}_sum")) / count * 1e6;
            figures.add(format!("stage_{key}_mean_us"), format!("{label}, mean us"), mean);
            if let Some(bound) = self.bound(&format!("{metric}_bucket"), 0.99) {
                figures.add(
                    format!("stage_{key}_p99_below_us"),
                    format!("{label}, p99 below us"),
                    bound * 1e6,
                );
            }
        }
    }

    /// The bound of the bucket that a quantile is in; none where that is the last, which has no bound.
    fn bound(&self, bucket: &str, quantile: f64) -> Option<f64> {
        let of_metric = self.samples.iter().filter(|((name, bound), _)| name == bucket && !bound.is_empty());
        let mut buckets: Vec<(f64, f64)> =
            of_metric.filter_map(|((_, bound), count)| Some((bound.parse().ok()?, *count))).collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let all = buckets.last()?.1;
        let found = buckets.iter().find(|(_, count)| *count >= all * quantile)?;
        found.0.is_finite().then_some(found.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP tlog_log_commit_seconds From sealing\n\
        tlog_log_commit_seconds_bucket{le=\"0.001\"} 90\n\
        tlog_log_commit_seconds_bucket{le=\"0.01\"} 100\n\
        tlog_log_commit_seconds_bucket{le=\"+Inf\"} 100\n\
        tlog_log_commit_seconds_sum 0.2\n\
        tlog_log_commit_seconds_count 100\n\
        tlog_log_bytes_stored_total{vdisk=\"a\"} 5\n\
        tlog_log_bytes_stored_total{vdisk=\"b c\"} 7\n";

    #[test]
    fn metrics_are_summed_over_their_labels_and_told_by_stage() {
        let metrics = ServerMetrics::parse(TEXT);
        assert_eq!(metrics.total("tlog_log_bytes_stored_total"), 12.0);
        let mut figures = Figures::default();
        metrics.since(&ServerMetrics::default()).tell_stages(&mut figures);
        assert_eq!(figures.get("stage_sealed_to_committed_mean_us"), Some(2000.0));
        assert_eq!(figures.get("stage_sealed_to_committed_p99_below_us"), Some(10_000.0));
        let mut none = Figures::default();
        metrics.since(&metrics).tell_stages(&mut none);
        assert!(none.is_empty());
    }
}
