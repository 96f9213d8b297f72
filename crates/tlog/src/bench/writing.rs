//! One load on one server: what it took, and whether all of it is there.

use anyhow::Context;
use tlog_proto::AggregationNumber;

use super::check;
use super::data::Content;
use super::figures::Figures;
use super::load::{Load, Written};
use super::process::cpu_seconds;
use super::site::WatchedServer;
use crate::settings::Settings;

/// What a load did.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) written: Written,
    pub(crate) figures: Figures,
    /// What was stored, where the server tells.
    pub(crate) stored: Option<Stored>,
}

/// What the stores were given, all together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) bytes: f64,
    pub(crate) aggregations: f64,
}

/// Writes, and tells what that took.
pub(crate) async fn measure(
    load: Load,
    server: &WatchedServer,
    stores_cpu: impl Fn() -> Option<f64>,
) -> anyhow::Result<Measured> {
    let connected = load.connect().await?;
    let metrics_before = server.metrics().await?;
    let own = std::process::id();
    let before = (server.cpu(), stores_cpu(), cpu_seconds(own));
    let written = connected.run().await?;
    let after = (server.cpu(), stores_cpu(), cpu_seconds(own));
    // Work that was not done in the time that was measured; asked at once, as it becomes less from now on.
    let behind = server.behind().await?.map(|behind| behind as f64);
    let metrics = server.metrics().await?.zip(metrics_before).map(|(after, before)| after.since(&before));

    let seconds = written.elapsed.as_secs_f64();
    let gigabytes = written.bytes as f64 / 1e9;
    let per_gigabyte = |before: Option<f64>, after: Option<f64>| Some((after? - before?) / gigabytes);
    let mut figures = Figures::default();
    figures.add("data_mb_per_s", "block data, MB/s", gigabytes * 1000.0 / seconds);
    figures.add("blocks_per_s", "blocks/s", written.blocks as f64 / seconds);
    figures.add("blocks", "blocks", written.blocks as f64);
    figures.add("seconds", "seconds", seconds);
    written.received.tell("recv_ok", "RecvOK", &mut figures);
    written.durable.tell("flush_ok", "FlushOK", &mut figures);
    figures.add("recv_ok_missed", "RecvOK not looked at", written.missed_events as f64);
    let server_cpu = per_gigabyte(before.0, after.0);
    figures.add_known("server_cpu_s_per_gb", "server CPU, s/GB", server_cpu);
    figures.add_known("stores_cpu_s_per_gb", "stores CPU, s/GB", per_gigabyte(before.1, after.1));
    figures.add_known("client_cpu_s_per_gb", "client CPU, s/GB", per_gigabyte(before.2, after.2));
    let peak = server.peak_memory().map(|bytes| bytes as f64 / 1e6);
    figures.add_known("server_peak_memory_mb", "server peak memory, MB", peak);
    figures.add_known("aggregations_behind", "aggregations not on all stores at the end", behind);
    let stored = metrics.map(|metrics| {
        let stored = Stored {
            bytes: metrics.total("tlog_log_bytes_stored_total"),
            aggregations: metrics.total("tlog_log_aggregations_committed_total"),
        };
        let per_byte = stored.bytes / written.bytes as f64;
        figures.add("stored_bytes_per_data_byte", "stored bytes per byte", per_byte);
        let per_aggregation = written.blocks as f64 / stored.aggregations;
        figures.add("blocks_per_aggregation", "blocks per aggregation", per_aggregation);
        let out = metrics.total("tlog_log_store_failures_total");
        figures.add("stores_out", "times a store went out", out);
        metrics.tell_stages(&mut figures);
        stored
    });
    Ok(Measured { written, figures, stored })
}

/// Reads back what was written. `before` has the last aggregation that each log had before; where it is empty, they had none.
pub(crate) async fn verify(
    settings: &Settings,
    written: &Written,
    content: &Content,
    before: &[AggregationNumber],
) -> anyhow::Result<u64> {
    let mut found = 0;
    for (number, acknowledged) in written.vdisks.iter().enumerate() {
        let after = before.get(number).copied().unwrap_or(AggregationNumber(0));
        let settings = settings.clone().of_vdisk(&acknowledged.vdisk).await?;
        let checked = check::check(&settings, acknowledged, content, after).await;
        found += checked.context("the log is not what was acknowledged, or could not be read")?;
    }
    Ok(found)
}
