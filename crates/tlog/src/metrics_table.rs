//! Every metric of every crate: what `/metrics` says of each, and the table in `docs/operations.md`.

use std::fmt::Write;

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// What it is told apart by.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
}

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Durations in seconds, in buckets.
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

const fn metric(name: &'static str, kind: MetricKind, labels: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, labels, help }
}

/// All of them, in the order in which they are shown.
pub static METRICS: &[Metric] = &[
    metric("tlog_build_info", Gauge, "version", "Always 1; the label is the version that runs"),
    metric("tlog_start_time_seconds", Gauge, "", "When the server started, in seconds since 1970"),
    // The server's sessions.
    metric("tlog_server_connections", Gauge, "", "Connections now"),
    metric(
        "tlog_server_newcomers",
        Gauge,
        "",
        "Those of them that have not said yet who they are; at max-newcomers the oldest are closed",
    ),
    metric("tlog_server_connections_total", Counter, "", "Connections accepted"),
    metric(
        "tlog_server_disconnects_total",
        Counter,
        "reason",
        "Connections that ended after their handshake: closed by the client, replaced by a newer one, a message that did not go \
         on, answers that were not read, ...",
    ),
    metric(
        "tlog_server_handshakes_refused_total",
        Counter,
        "reason",
        "Connections that got no further than the handshake: not in time, unreadable, vanished before it, crowded out by others \
         that said nothing either, too many clients, ...",
    ),
    metric("tlog_server_tls_handshakes_total", Counter, "", "TLS handshakes done"),
    metric(
        "tlog_server_tls_handshakes_failed_total",
        Counter,
        "reason",
        "TLS handshakes that failed: a certificate not taken by either side, no TLS, not in time, ...",
    ),
    metric(
        "tlog_server_tls_certificate_expires_seconds",
        Gauge,
        "",
        "When the server's certificate expires, in seconds since 1970",
    ),
    metric(
        "tlog_server_tls_reloads_total",
        Counter,
        "outcome",
        "Times that the files of TLS were read again: done, or failed and the old ones stayed in force",
    ),
    metric(
        "tlog_server_bad_messages_total",
        Counter,
        "kind",
        "Messages that could not be trusted; the connection was closed",
    ),
    metric("tlog_server_blocks_received_total", Counter, "", "Blocks received, whole or not"),
    metric("tlog_server_received_bytes_total", Counter, "", "Bytes of data in them"),
    metric(
        "tlog_server_blocks_refused_total",
        Counter,
        "reason",
        "Blocks answered with RecvFailed, or dropped: wrong hash, outside the window, ...",
    ),
    metric(
        "tlog_server_duplicate_blocks_total",
        Counter,
        "",
        "Blocks that the log or the memory had already",
    ),
    metric("tlog_server_blocks_flushed_total", Counter, "", "Sequences answered with FlushOK"),
    metric(
        "tlog_server_durable_seconds",
        Histogram,
        "",
        "From a block being ordered to its being durable, of the oldest block of each step",
    ),
    metric("tlog_server_generations_total", Counter, "", "Generations begun"),
    metric(
        "tlog_server_backpressure_total",
        Counter,
        "",
        "Times that a connection was not read because too much is not durable",
    ),
    metric(
        "tlog_server_large_messages_waited_total",
        Counter,
        "",
        "Messages of more than 64 KiB that waited because max-message-bytes were taken by others",
    ),
    metric("tlog_server_unflushed_bytes", Gauge, "", "Bytes of blocks in memory that are not durable"),
    metric("tlog_server_window_bytes", Gauge, "", "Bytes of blocks that wait for an earlier one"),
    metric("tlog_server_vdisks_open", Gauge, "", "Logs that are open"),
    metric(
        "tlog_server_logs_failed_total",
        Counter,
        "reason",
        "Logs that did not open, or closed by themselves",
    ),
    // The writer of logs.
    metric("tlog_log_aggregations_committed_total", Counter, "vdisk", "Aggregations made durable"),
    metric("tlog_log_blocks_committed_total", Counter, "vdisk", "Blocks in them"),
    metric("tlog_log_bytes_committed_total", Counter, "vdisk", "Bytes of data in them"),
    metric("tlog_log_bytes_stored_total", Counter, "vdisk", "Bytes that all their shards take"),
    metric(
        "tlog_log_commit_seconds",
        Histogram,
        "",
        "From sealing an aggregation to write-quorum stores having it",
    ),
    metric("tlog_log_openings_total", Counter, "vdisk", "Openings for writing"),
    metric(
        "tlog_log_aggregations_adopted_total",
        Counter,
        "vdisk",
        "Aggregations that an opening found unfinished and made durable",
    ),
    metric("tlog_log_open_seconds", Histogram, "", "How long openings took, recovery included"),
    metric(
        "tlog_log_closed_total",
        Counter,
        "vdisk, reason",
        "Closings: requested, fenced by a newer writer, or failed",
    ),
    metric("tlog_log_store_failures_total", Counter, "vdisk, store", "Times that a store went out of a log"),
    metric(
        "tlog_log_stores_active",
        Gauge,
        "vdisk",
        "Stores that take part; fewer than all is worth an alarm",
    ),
    metric(
        "tlog_log_shards_missing",
        Gauge,
        "vdisk",
        "Shards of committed aggregations that active stores lack",
    ),
    metric(
        "tlog_log_shards_unrepairable",
        Gauge,
        "vdisk",
        "Of them, those that cannot be made from the other stores either; not 0: data is lost, or about to be",
    ),
    metric(
        "tlog_log_losses_survived",
        Gauge,
        "vdisk",
        "Stores that may be lost right now with everything still readable",
    ),
    metric(
        "tlog_log_aggregations_behind",
        Gauge,
        "vdisk",
        "Committed aggregations that are not known to be on all stores",
    ),
    metric("tlog_log_stores_back_total", Counter, "vdisk", "Times that a store came back to a log"),
    metric(
        "tlog_log_store_out_seconds",
        Histogram,
        "",
        "How long stores had been out of a log when they came back",
    ),
    metric("tlog_log_shards_filled_total", Counter, "", "Shards put on a store that missed or lost them"),
    metric("tlog_log_fill_read_bytes_total", Counter, "", "Bytes read for that"),
    metric("tlog_log_scrub_shards_missing_total", Counter, "", "Shards that scrubs found missing"),
    metric(
        "tlog_log_scrub_shards_damaged_total",
        Counter,
        "",
        "Shards that scrubs found damaged; not 0: look at that disk",
    ),
    metric(
        "tlog_log_scrub_aggregations_unreadable_total",
        Counter,
        "",
        "Aggregations that scrubs found unreadable: data is lost",
    ),
    // Stores.
    metric(
        "tlog_store_operations_total",
        Counter,
        "store, operation, outcome",
        "What stores were asked, and what became of it",
    ),
    metric("tlog_store_append_seconds", Histogram, "store", "How long a store took for a shard"),
    metric(
        "tlog_store_sync_seconds",
        Histogram,
        "store",
        "How long its disk took to make a group of shards durable",
    ),
    metric(
        "tlog_store_torn_tails_total",
        Counter,
        "store",
        "Ends of segments cut off that a crash had left half written",
    ),
    metric(
        "tlog_store_damaged_records_total",
        Counter,
        "store",
        "Records that are not what was written; not 0: look at that disk",
    ),
    metric(
        "tlog_store_durability",
        Gauge,
        "store, state",
        "1 for what a Redis server says of itself: durable, volatile (it may forget) or unknown",
    ),
    // Redis servers.
    metric("tlog_redis_connections_total", Counter, "store", "Connections made"),
    metric("tlog_redis_dial_failures_total", Counter, "store, kind", "Connections that could not be made"),
    metric(
        "tlog_redis_connections_broken_total",
        Counter,
        "store, why",
        "Connections lost: closed, hung or idle",
    ),
    metric("tlog_redis_commands_in_flight", Gauge, "store", "Commands that are not answered yet"),
    metric("tlog_redis_bytes_in_flight", Gauge, "store", "Bytes of them"),
    metric(
        "tlog_redis_scripts_sent_total",
        Counter,
        "store",
        "Scripts sent whole because the server did not know them",
    ),
    metric(
        "tlog_redis_values_sent_again_total",
        Counter,
        "store",
        "Large values that were not there when their append came, and were sent again",
    ),
    metric(
        "tlog_redis_restarts_total",
        Counter,
        "store",
        "Times that the server was another run of itself after a reconnect",
    ),
    metric(
        "tlog_redis_pool_changes_total",
        Counter,
        "outcome",
        "Changes of a cluster that pools followed, or refused",
    ),
    // The configuration of vdisks and clusters.
    metric(
        "tlog_config_source_away",
        Gauge,
        "",
        "1 while the file or etcd with the documents cannot be read; what was known counts on",
    ),
    metric(
        "tlog_config_source_failures_total",
        Counter,
        "",
        "Times that the source of the documents went away, for however short",
    ),
    metric("tlog_config_vdisks", Gauge, "", "Vdisks that there are"),
    metric(
        "tlog_config_problems",
        Gauge,
        "",
        "What is wrong in the documents now and therefore not in force; not 0: `tlog config check` names it",
    ),
    metric("tlog_config_documents_changed_total", Counter, "", "Documents that changed and are in force"),
    metric(
        "tlog_config_documents_refused_total",
        Counter,
        "kind",
        "Changed documents that are not valid; what was in force of them stayed",
    ),
    metric(
        "tlog_config_references_refused_total",
        Counter,
        "",
        "References to clusters that are not there (any more); the vdisks kept what they had",
    ),
    metric("tlog_config_vdisks_changed_total", Counter, "", "Times that a vdisk got something else"),
    metric(
        "tlog_config_stores_replaced_total",
        Counter,
        "",
        "Stores that were put into another's place because the document of their cluster changed",
    ),
    metric(
        "tlog_config_changes_refused_total",
        Counter,
        "",
        "Changed storage clusters that logs cannot be on; the stores stayed as they were",
    ),
    metric(
        "tlog_config_cluster_pending",
        Gauge,
        "cluster",
        "1 while the stores in use are not those that the documents say, or not every log has them; /status says why",
    ),
    metric(
        "tlog_config_vdisks_closed_total",
        Counter,
        "reason",
        "Vdisks that were closed because documents changed: removed; or moved to another cluster, another write quorum",
    ),
    // Slaves.
    metric("tlog_slave_applied_blocks_total", Counter, "vdisk", "Writes applied to a slave"),
    metric("tlog_slave_applied_bytes_total", Counter, "vdisk", "Bytes of content in them"),
    metric(
        "tlog_slave_lag_aggregations",
        Gauge,
        "vdisk",
        "Aggregations of the log of which the slave does not hold everything",
    ),
    metric(
        "tlog_slave_lag_seconds",
        Gauge,
        "vdisk",
        "How long ago the oldest of these was sealed; 0 where the slave holds everything. Measured every 5 s",
    ),
    metric(
        "tlog_slave_state",
        Gauge,
        "vdisk, state",
        "1 for the state that the slave's syncer is in, 0 for those it was in before; alert on needs_resync and unusable",
    ),
    // The server's own scrubs.
    metric("tlog_scrub_rounds_total", Counter, "", "Times that the server scrubbed every log"),
    metric("tlog_scrub_data_lost", Gauge, "vdisk", "1 where the last of these scrubs found data lost"),
    // History that is removed.
    metric(
        "tlog_retention_pruned_aggregations_total",
        Counter,
        "",
        "Aggregations that were removed, on all stores together",
    ),
    metric(
        "tlog_retention_failures_total",
        Counter,
        "",
        "Times that the server could not remove history that is not to be kept",
    ),
    // The server's own proofs of restores.
    metric("tlog_restore_proofs_total", Counter, "vdisk", "Proofs that the vdisk can be restored"),
    metric(
        "tlog_restore_proof_failures_total",
        Counter,
        "vdisk, verdict",
        "Times that this could not be proven: lost (it cannot be restored from the stores in reach), pruned or unknown",
    ),
    metric("tlog_restore_proof_failing", Gauge, "vdisk", "1 where the last attempt was no proof"),
    metric("tlog_restore_proof_age_seconds", Gauge, "vdisk", "Since the last proof began; 0: never"),
    metric(
        "tlog_restore_proven_timestamp_seconds",
        Gauge,
        "vdisk",
        "Timestamp of the last block of the moment that was proven, in seconds since 1970; 0: never",
    ),
    metric(
        "tlog_restore_behind_aggregations",
        Gauge,
        "vdisk",
        "Committed aggregations of an open log that are newer than its last proof",
    ),
    // Reading.
    metric("tlog_player_aggregations_read_total", Counter, "", "Aggregations whose blocks were read"),
    metric("tlog_player_payload_bytes_read_total", Counter, "", "Bytes read for that"),
    metric(
        "tlog_player_aggregations_made_up_total",
        Counter,
        "",
        "Of them, rebuilt from other shards than the first",
    ),
    metric("tlog_player_reads_repeated_total", Counter, "", "Reads that only a second try brought"),
    metric("tlog_player_aggregations_lost_total", Counter, "", "Aggregations that readers found lost"),
    metric("tlog_player_restored_blocks_total", Counter, "", "Blocks restored"),
    metric("tlog_player_restored_bytes_total", Counter, "", "Bytes in them"),
    metric("tlog_player_restores_proven_total", Counter, "", "Proofs that a restore works"),
    // The client library, in the process that uses it.
    metric("tlog_client_sent_blocks_total", Counter, "vdisk", "Blocks sent for the first time"),
    metric("tlog_client_sent_bytes_total", Counter, "vdisk", "Bytes of data in them"),
    metric("tlog_client_resent_blocks_total", Counter, "vdisk", "Blocks sent again"),
    metric("tlog_client_durable_blocks_total", Counter, "vdisk", "Blocks acknowledged as durable"),
    metric("tlog_client_durable_bytes_total", Counter, "vdisk", "Bytes of data in them"),
    metric("tlog_client_refused_blocks_total", Counter, "vdisk", "Blocks that the server refused"),
    metric(
        "tlog_client_unexpected_responses_total",
        Counter,
        "vdisk",
        "Answers about blocks that were never sent; not 0: one side has a bug",
    ),
    metric("tlog_client_unflushed_bytes", Gauge, "vdisk", "Bytes handed over and not durable"),
    metric(
        "tlog_client_durable_seconds",
        Histogram,
        "vdisk",
        "From hand-over to FlushOK, of the first block of each FlushOK",
    ),
    metric(
        "tlog_client_connections_lost_total",
        Counter,
        "vdisk, cause",
        "Connections that were left for the next server",
    ),
    metric("tlog_client_reconnects_total", Counter, "vdisk", "Servers that accepted after that"),
    metric(
        "tlog_client_failed_reconnects_total",
        Counter,
        "vdisk",
        "Servers that were tried for it and did not accept",
    ),
    metric("tlog_client_ended_total", Counter, "vdisk, cause", "Ends of clients"),
];

/// Tells the recorder what each metric says.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            Counter => describe_counter!(metric.name, metric.help),
            Gauge => describe_gauge!(metric.name, metric.help),
            Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// The table of the documentation.
pub fn markdown() -> String {
    let mut out = "| metric | kind | labels | what it says |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, help } in METRICS {
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        };
        writeln!(out, "| `{name}` | {kind} | {labels} | {help} |").expect("writing to a string cannot fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Names of metrics in a crate's sources: any whole string that looks like one.
    fn names_in(directory: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names_in(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with(Path::new(file!()).file_name().unwrap())
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
                let strings = text.split('"').filter(|part| part.starts_with("tlog_"));
                let areas = [
                    "server_",
                    "log_",
                    "store_",
                    "redis_",
                    "config_",
                    "slave_",
                    "scrub_",
                    "player_",
                    "client_",
                    "build_",
                    "start_",
                    "restore_",
                    "retention_",
                ];
                let is_name = |text: &&str| {
                    let rest = text.trim_start_matches("tlog_");
                    let plain = rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                    plain && areas.iter().any(|area| rest.starts_with(area))
                };
                names.extend(strings.filter(is_name).map(str::to_owned));
            }
        }
    }

    #[test]
    fn the_table_has_every_metric_that_a_crate_emits_and_no_other() {
        let mut emitted = BTreeSet::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for entry in std::fs::read_dir(crates).unwrap() {
            names_in(&entry.unwrap().path().join("src"), &mut emitted);
        }
        let listed: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
        assert_eq!(listed.len(), METRICS.len(), "one is listed twice");
        assert_eq!(emitted, listed);
        for Metric { name, kind, .. } in METRICS {
            assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
        }
    }

    /// `UPDATE_DOCS=1 cargo test -p tlog` writes it anew.
    #[test]
    fn the_documentation_has_the_table_of_metrics() {
        crate::settings::check_documented("operations.md", "metrics", &markdown());
    }
}
