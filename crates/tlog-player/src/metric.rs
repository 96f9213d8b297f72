//! The metrics of this crate, by name.

use metrics::{counter, gauge};
use tlog_proto::VdiskId;

/// An aggregation's blocks were read, from so many payload bytes.
pub(crate) fn aggregation_read(bytes: u64) {
    counter!("tlog_player_aggregations_read_total").increment(1);
    counter!("tlog_player_payload_bytes_read_total").increment(bytes);
}

/// An aggregation was read from other shards than the first k: one of these was missing, damaged, out of reach or late.
pub(crate) fn aggregation_made_up() {
    counter!("tlog_player_aggregations_made_up_total").increment(1);
}

/// An aggregation could not be read and the stores were asked again.
pub(crate) fn read_repeated() {
    counter!("tlog_player_reads_repeated_total").increment(1);
}

/// Something in the middle of a log is not there any more.
pub(crate) fn data_lost(numbers: u64) {
    counter!("tlog_player_aggregations_lost_total").increment(numbers);
}

/// Blocks were written to a target of a restore.
pub(crate) fn restored(blocks: u64, bytes: u64) {
    counter!("tlog_player_restored_blocks_total").increment(blocks);
    counter!("tlog_player_restored_bytes_total").increment(bytes);
}

/// A disk was proven to be restorable.
pub(crate) fn restore_proven() {
    counter!("tlog_player_restores_proven_total").increment(1);
}

/// Writes of a log were applied to its slave.
pub(crate) fn slave_applied(vdisk: &VdiskId, blocks: u64, bytes: u64) {
    counter!("tlog_slave_applied_blocks_total", "vdisk" => vdisk.to_string()).increment(blocks);
    counter!("tlog_slave_applied_bytes_total", "vdisk" => vdisk.to_string()).increment(bytes);
}

/// So many aggregations of a log its slave does not hold completely.
pub(crate) fn slave_lag(vdisk: &VdiskId, aggregations: u64) {
    gauge!("tlog_slave_lag_aggregations", "vdisk" => vdisk.to_string()).set(aggregations as f64);
}
