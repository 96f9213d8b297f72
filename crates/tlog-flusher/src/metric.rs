//! The metrics of writers, in one place. `docs/operations.md` lists them.

use std::time::Duration;

use tlog_proto::VdiskId;

pub(crate) fn committed(vdisk: &VdiskId, blocks: u64, bytes: u64, stored: u64, took: Duration) {
    let vdisk = || vdisk.to_string();
    metrics::counter!("tlog_log_aggregations_committed_total", "vdisk" => vdisk()).increment(1);
    metrics::counter!("tlog_log_blocks_committed_total", "vdisk" => vdisk()).increment(blocks);
    metrics::counter!("tlog_log_bytes_committed_total", "vdisk" => vdisk()).increment(bytes);
    metrics::counter!("tlog_log_bytes_stored_total", "vdisk" => vdisk()).increment(stored);
    metrics::histogram!("tlog_log_commit_seconds").record(took.as_secs_f64());
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

pub(crate) fn stores_active(vdisk: &VdiskId, active: usize, missed: u64) {
    metrics::gauge!("tlog_log_stores_active", "vdisk" => vdisk.to_string()).set(active as f64);
    metrics::gauge!("tlog_log_shards_missing", "vdisk" => vdisk.to_string()).set(missed as f64);
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
