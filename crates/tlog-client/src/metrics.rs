//! What a client counts for whoever collects metrics. All carry the label `vdisk`.
//!
//! | metric | meaning |
//! |---|---|
//! | `tlog_client_sent_blocks_total`, `tlog_client_sent_bytes_total` | blocks given to the connection for the first time, and their data |
//! | `tlog_client_resent_blocks_total` | blocks given to it again |
//! | `tlog_client_durable_blocks_total`, `tlog_client_durable_bytes_total` | blocks acknowledged as durable, and their data |
//! | `tlog_client_refused_blocks_total` | blocks that the server refused |
//! | `tlog_client_unexpected_responses_total` | what a server said of blocks that were never sent |
//! | `tlog_client_unflushed_bytes` | gauge: data handed over and not durable |
//! | `tlog_client_durable_seconds` | histogram: from hand-over to FlushOK, of the first block of each FlushOK |
//! | `tlog_client_connections_lost_total` | connections that were left for the next server, with the label `cause` |
//! | `tlog_client_reconnects_total`, `tlog_client_failed_reconnects_total` | servers that accepted after that, and that did not |
//! | `tlog_client_ended_total` | ends of clients, with the label `cause` |

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tlog_proto::VdiskId;

use crate::{EndCause, LostCause, Stats};

pub(crate) struct Metrics {
    vdisk: String,
    sent_blocks: Counter,
    sent_bytes: Counter,
    resent_blocks: Counter,
    durable_blocks: Counter,
    durable_bytes: Counter,
    refused_blocks: Counter,
    unexpected_responses: Counter,
    reconnects: Counter,
    failed_reconnects: Counter,
    unflushed_bytes: Gauge,
    durable_seconds: Histogram,
    published: Stats,
}

impl Metrics {
    pub(crate) fn new(vdisk: &VdiskId) -> Self {
        let vdisk = vdisk.to_string();
        let counter = |name: &'static str| counter!(name, "vdisk" => vdisk.clone());
        Self {
            sent_blocks: counter("tlog_client_sent_blocks_total"),
            sent_bytes: counter("tlog_client_sent_bytes_total"),
            resent_blocks: counter("tlog_client_resent_blocks_total"),
            durable_blocks: counter("tlog_client_durable_blocks_total"),
            durable_bytes: counter("tlog_client_durable_bytes_total"),
            refused_blocks: counter("tlog_client_refused_blocks_total"),
            unexpected_responses: counter("tlog_client_unexpected_responses_total"),
            reconnects: counter("tlog_client_reconnects_total"),
            failed_reconnects: counter("tlog_client_failed_reconnects_total"),
            unflushed_bytes: gauge!("tlog_client_unflushed_bytes", "vdisk" => vdisk.clone()),
            durable_seconds: histogram!("tlog_client_durable_seconds", "vdisk" => vdisk.clone()),
            published: Stats::default(),
            vdisk,
        }
    }

    /// Adds what has changed since the last time. False where nothing has.
    pub(crate) fn publish(&mut self, stats: &Stats) -> bool {
        let before = std::mem::replace(&mut self.published, *stats);
        if before == *stats {
            return false;
        }
        self.sent_blocks.increment(stats.sent_blocks - before.sent_blocks);
        self.sent_bytes.increment(stats.sent_bytes - before.sent_bytes);
        self.resent_blocks.increment(stats.resent_blocks - before.resent_blocks);
        self.durable_blocks.increment(stats.durable_blocks - before.durable_blocks);
        self.durable_bytes.increment(stats.durable_bytes - before.durable_bytes);
        self.refused_blocks.increment(stats.refused_blocks - before.refused_blocks);
        self.unexpected_responses.increment(stats.unexpected_responses - before.unexpected_responses);
        self.reconnects.increment(stats.reconnects - before.reconnects);
        self.failed_reconnects.increment(stats.failed_reconnects - before.failed_reconnects);
        // Steps, not values: several clients of one vdisk share the gauge.
        self.unflushed_bytes.increment(stats.unflushed_bytes as f64 - before.unflushed_bytes as f64);
        true
    }

    /// A FlushOK came so long after its first block was handed over.
    pub(crate) fn durable_after(&self, time: Duration) {
        self.durable_seconds.record(time);
    }

    /// A connection was left.
    pub(crate) fn lost(&self, cause: &LostCause) {
        counter!("tlog_client_connections_lost_total", "vdisk" => self.vdisk.clone(), "cause" => cause.kind())
            .increment(1);
    }

    /// The client has ended.
    pub(crate) fn ended(&self, cause: &EndCause) {
        self.unflushed_bytes.decrement(self.published.unflushed_bytes as f64);
        counter!("tlog_client_ended_total", "vdisk" => self.vdisk.clone(), "cause" => cause.kind())
            .increment(1);
    }
}
