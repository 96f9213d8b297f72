//! `tlog bench write`: blocks into a log, what that costs, and whether all of it is there.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::json;
use tlog_proto::{AggregationNumber, VdiskId};

use super::load_arguments::{LoadArguments, RunArguments, SiteArguments};
use crate::bench::check;
use crate::bench::data::Content;
use crate::bench::figures::{Figures, Runs};
use crate::bench::load::{Load, Written};
use crate::bench::process::cpu_seconds;
use crate::bench::site::{Site, StoreKind, WatchedServer};
use crate::commands::progress;
use crate::logging;
use crate::settings::{ListenAddress, Settings, SettingsArgs};

/// Writes blocks as fast as they become durable, or at a rate, and says what that took: throughput, latencies, CPU seconds of server, stores
/// and client, memory, and time in each stage.
///
/// Afterwards the log is read back and compared with what was acknowledged as durable: every block, once, in order, with the same bytes.
///
/// It starts stores on this machine and the tlog-server that stands beside this program, anew for each run; every setting of the server is a
/// flag here too (--flush-size 250, -k 4, -m 2, --write-quorum 5, --in-flight 8: see --help). With --server it writes to one that runs, as a
/// vdisk of its own; settings then say where its log is, as for 'tlog restore', to read it back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench write                       six Redis servers in memory, flush-size 25, random blocks of 4 KiB\n  \
    tlog bench write --flush-size 250 --runs 5 --json\n  \
    tlog bench write --outstanding 50      latencies of 50 blocks at a time\n  \
    tlog bench write --flush-each --stores directory --scratch /srv/tlog\n  \
    tlog bench write --rate 5000 --data text --seconds 10\n  \
    tlog bench write --server 10.0.0.1:11211 --vdisk bench --storage 10.0.0.2:6379 --key-file tlog.key\n\n\
    Exit status: 0 measured and verified (with --stores memory: measured); 1 not done, or the log is not what was acknowledged; 64 \
    wrong usage.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    site: SiteArguments,
    /// A server that runs, to be written to in place of one that is started
    #[arg(long, value_name = "ADDR", requires = "vdisk", conflicts_with_all = ["stores", "scratch"])]
    server: Option<ListenAddress>,
    /// With --server: into which vdisk; of several, each has a number behind this
    #[arg(long, value_name = "VDISK", requires = "server")]
    vdisk: Option<VdiskId>,
    /// With --server: its process id, where it is on this machine, to tell its CPU time and memory
    #[arg(long, value_name = "PID", requires = "server")]
    server_pid: Option<u32>,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = match arguments.server {
        Some(_) => Settings::load(&arguments.settings)?,
        None => Settings::from_flags(&arguments.settings)?,
    };
    logging::init_for_tool(&settings.logging);
    let content = arguments.load.content()?;
    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let (mut runs, mut verified, mut what) = (Runs::default(), Some(0), None);
    for number in 1..=arguments.run.runs {
        let run = match &arguments.server {
            Some(server) => at_running_server(&arguments, server, &settings, &content, &bar).await?,
            None => at_own_server(&arguments, &content, &bar).await?,
        };
        verified = verified.zip(run.verified).map(|(all, these)| all + these);
        runs.add(run.figures);
        what = Some(run.load);
        bar.set_position(u64::from(number));
    }
    bar.finish_and_clear();
    let load = what.context("no run")?;
    let mut out = io::stdout().lock();
    if arguments.run.json {
        let mut report = runs.json();
        let stores = arguments.server.is_none().then(|| arguments.site.kind().name());
        if let Some(report) = report.as_object_mut() {
            report.insert("benchmark".to_owned(), json!("write"));
            report.insert("stores".to_owned(), json!(stores));
            report.insert("redundancy".to_owned(), json!(settings.redundancy.to_string()));
            report.insert("flush_size".to_owned(), json!(settings.flush_size));
            report.insert("load".to_owned(), arguments.load.json(&load));
            report.insert("verified_blocks".to_owned(), json!(verified));
        }
        writeln!(out, "{report:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let on = match &arguments.server {
        Some(server) => format!("the server at {server}"),
        None => format!(
            "a server on {} {} stores ({}), flush-size {}",
            settings.redundancy.stores(),
            arguments.site.kind().name(),
            settings.redundancy,
            settings.flush_size
        ),
    };
    writeln!(out, "{on}; {}; {} runs", arguments.load.in_words(&load), arguments.run.runs)?;
    runs.show(&mut out)?;
    match verified {
        Some(blocks) => writeln!(
            out,
            "verified: {blocks} blocks, each that was acknowledged is in the log once, in order, byte for byte, and no other"
        )?,
        None => writeln!(out, "not verified: stores in memory are gone with their server")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What came of one run.
struct Run {
    figures: Figures,
    load: Load,
    /// Blocks that were found in the log; none where it cannot be read.
    verified: Option<u64>,
}

async fn at_own_server(
    arguments: &Arguments,
    content: &Arc<Content>,
    bar: &ProgressBar,
) -> anyhow::Result<Run> {
    bar.set_message("starting servers");
    let options = arguments.site.options(&arguments.settings);
    let site = Site::start(&options, &arguments.site.scratch()).await?;
    let server = site.start_server().await?;
    let vdisks = arguments.load.vdisks(&VdiskId::new("bench")?)?;
    let flush_size = Some(site.settings().flush_size);
    let load = arguments.load.load(&server.address, site.settings(), vdisks, content, flush_size)?;
    bar.set_message("writing");
    let (written, figures) = measure(load.clone(), &server.watched(), || site.stores_cpu()).await?;
    server.stop().await?;
    bar.set_message("reading back");
    let verified = match options.stores {
        StoreKind::Memory => None,
        _ => Some(verify(site.settings(), &written, content, &[]).await?),
    };
    Ok(Run { figures, load, verified })
}

async fn at_running_server(
    arguments: &Arguments,
    server: &ListenAddress,
    settings: &Settings,
    content: &Arc<Content>,
    bar: &ProgressBar,
) -> anyhow::Result<Run> {
    let Some(name) = &arguments.vdisk else { bail!("--server needs --vdisk") };
    let vdisks = arguments.load.vdisks(name)?;
    let mut before = Vec::new();
    for vdisk in &vdisks {
        before.push(check::last_aggregation(&settings.clone().of_vdisk(vdisk).await?, vdisk).await?);
    }
    let watched = WatchedServer {
        address: server.to_connect().to_string(),
        admin: settings.admin_listen.as_ref().map(|admin| admin.to_connect().to_string()),
        pid: arguments.server_pid,
    };
    let load = arguments.load.load(&watched.address, settings, vdisks, content, None)?;
    bar.set_message("writing");
    let (written, figures) = measure(load.clone(), &watched, || None).await?;
    bar.set_message("reading back");
    let verified = Some(verify(settings, &written, content, &before).await?);
    Ok(Run { figures, load, verified })
}

/// Writes, and tells what that took.
async fn measure(
    load: Load,
    server: &WatchedServer,
    stores_cpu: impl Fn() -> Option<f64>,
) -> anyhow::Result<(Written, Figures)> {
    let connected = load.connect().await?;
    let metrics_before = server.metrics().await?;
    let own = std::process::id();
    let before = (server.cpu(), stores_cpu(), cpu_seconds(own));
    let written = connected.run().await?;
    let after = (server.cpu(), stores_cpu(), cpu_seconds(own));
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
    if written.missed_events > 0 {
        figures.add("recv_ok_missed", "RecvOK not looked at", written.missed_events as f64);
    }
    let server_cpu = per_gigabyte(before.0, after.0);
    figures.add_known("server_cpu_s_per_gb", "server CPU s/GB", server_cpu);
    figures.add_known("stores_cpu_s_per_gb", "stores CPU s/GB", per_gigabyte(before.1, after.1));
    figures.add_known("client_cpu_s_per_gb", "client CPU s/GB", per_gigabyte(before.2, after.2));
    let peak = server.peak_memory().map(|bytes| bytes as f64 / 1e6);
    figures.add_known("server_peak_memory_mb", "server peak memory, MB", peak);
    if let Some(metrics) = metrics {
        let stored = metrics.total("tlog_log_bytes_stored_total");
        figures.add("stored_bytes_per_data_byte", "stored bytes per byte", stored / written.bytes as f64);
        metrics.tell_stages(&mut figures);
    }
    Ok((written, figures))
}

/// Reads back what was written. `before` has what each log had before; where it is empty, nothing.
async fn verify(
    settings: &Settings,
    written: &Written,
    content: &Content,
    before: &[AggregationNumber],
) -> anyhow::Result<u64> {
    let mut found = 0;
    for (number, acknowledged) in written.vdisks.iter().enumerate() {
        let after = before.get(number).copied().unwrap_or(AggregationNumber(0));
        let settings = settings.clone().of_vdisk(&acknowledged.vdisk).await?;
        found += check::check(&settings, acknowledged, content, after)
            .await
            .context("the log is not what was acknowledged, or could not be read")?;
    }
    Ok(found)
}
