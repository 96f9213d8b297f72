//! What is counted each time that something arrives or becomes durable. What is counted now and then is named where it happens;
//! `docs/operations.md` lists all of it.

use metrics::{Counter, Gauge, Histogram};

/// Looked up once, when the server is made.
pub(crate) struct Metrics {
    pub(crate) received_bytes: Counter,
    pub(crate) blocks_received: Counter,
    pub(crate) blocks_flushed: Counter,
    pub(crate) durable_seconds: Histogram,
    pub(crate) unflushed_bytes: Gauge,
    pub(crate) window_bytes: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            received_bytes: metrics::counter!("tlog_server_received_bytes_total"),
            blocks_received: metrics::counter!("tlog_server_blocks_received_total"),
            blocks_flushed: metrics::counter!("tlog_server_blocks_flushed_total"),
            durable_seconds: metrics::histogram!("tlog_server_durable_seconds"),
            unflushed_bytes: metrics::gauge!("tlog_server_unflushed_bytes"),
            window_bytes: metrics::gauge!("tlog_server_window_bytes"),
        }
    }
}
