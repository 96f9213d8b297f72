//! The metrics of writers, in one place. `docs/operations.md` lists them.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram};
use tlog_proto::VdiskId;

/// What becomes durable, of one vdisk; looked up once.
pub(crate) struct Commits {
    aggregations: Counter,
    blocks: Counter,
    bytes: Counter,
    stored: Counter,
    seconds: Histogram,
}

impl Commits {
    pub(crate) fn new(vdisk: &VdiskId) -> Self {
        let vdisk: Arc<str> = vdisk.as_str().into();
        let count = |name: &'static str| metrics::counter!(name, "vdisk" => Arc::clone(&vdisk));
        Self {
            aggregations: count("tlog_log_aggregations_committed_total"),
            blocks: count("tlog_log_blocks_committed_total"),
            bytes: count("tlog_log_bytes_committed_total"),
            stored: count("tlog_log_bytes_stored_total"),
            seconds: metrics::histogram!("tlog_log_commit_seconds"),
        }
    }

    /// An aggregation of so many blocks and bytes of data, for which so many were stored.
    pub(crate) fn count(&self, blocks: u64, bytes: u64, stored: u64, took: Duration) {
        self.aggregations.increment(1);
        self.blocks.increment(blocks);
        self.bytes.increment(bytes);
        self.stored.increment(stored);
        self.seconds.record(took.as_secs_f64());
    }
}

pub(crate) fn opened(vdisk: &VdiskId, adopted: u64, took: Duration) {
    metrics::counter!("tlog_log_openings_total", "vdisk" => vdisk.to_string()).increment(1);
    metrics::counter!("tlog_log_aggregations_adopted_total", "vdisk" => vdisk.to_string()).increment(adopted);
    metrics::histogram!("tlog_log_open_seconds").record(took.as_secs_f64());
}

pub(crate) fn closed(vdisk: &VdiskId, reason: &'static str) {
    metrics::counter!("tlog_log_closed_total", "vdisk" => vdisk.to_string(), "reason" => reason).increment(1);
}

pub(crate) fn store_failure(vdisk: &VdiskId, store: &str) {
    metrics::counter!("tlog_log_store_failures_total", "vdisk" => vdisk.to_string(), "store" => store.to_owned())
        .increment(1);
}

pub(crate) fn store_back(vdisk: &VdiskId, out_for: Duration) {
    metrics::counter!("tlog_log_stores_back_total", "vdisk" => vdisk.to_string()).increment(1);
    metrics::histogram!("tlog_log_store_out_seconds").record(out_for.as_secs_f64());
}

pub(crate) fn stores(
    vdisk: &VdiskId,
    active: usize,
    missing: u64,
    unrepairable: u64,
    survived: usize,
    behind: u64,
) {
    let set = |name: &'static str, value: f64| metrics::gauge!(name, "vdisk" => vdisk.to_string()).set(value);
    set("tlog_log_stores_active", active as f64);
    set("tlog_log_shards_missing", missing as f64);
    set("tlog_log_shards_unrepairable", unrepairable as f64);
    set("tlog_log_losses_survived", survived as f64);
    set("tlog_log_aggregations_behind", behind as f64);
}

pub(crate) fn filled(bytes: u64) {
    metrics::counter!("tlog_log_shards_filled_total").increment(1);
    metrics::counter!("tlog_log_fill_read_bytes_total").increment(bytes);
}

pub(crate) fn scrubbed(missing: u64, damaged: u64, unreadable: u64) {
    metrics::counter!("tlog_log_scrub_shards_missing_total").increment(missing);
    metrics::counter!("tlog_log_scrub_shards_damaged_total").increment(damaged);
    metrics::counter!("tlog_log_scrub_aggregations_unreadable_total").increment(unreadable);
}
