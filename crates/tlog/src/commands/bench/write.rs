//! `tlog bench write`: blocks into a log, what that costs, and whether all of it is there.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::json;
use tlog_proto::VdiskId;

use super::load_arguments::{LoadArguments, RunArguments, SiteArguments};
use super::report::{Machine, Report, entries};
use crate::bench::check;
use crate::bench::data::{Content, DataKind};
use crate::bench::delay::DelayedStore;
use crate::bench::figures::{Figures, Runs};
use crate::bench::load::{Load, Written};
use crate::bench::plain::PlainValues;
use crate::bench::site::{Site, SiteOptions, StoreKind, WatchedServer};
use crate::bench::writing::{Measured, Stored, measure, verify};
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
    tlog bench write --plain               and the same values by nothing but SET, in the same run\n  \
    tlog bench write --delay-store 0=100ms  and how that compares with all stores in time\n  \
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
    /// After each load, as many values of the same size as were stored, to the same Redis servers by nothing but SET, pipelined on one
    /// connection for each: what the stores could take at most
    #[arg(long, conflicts_with_all = ["server", "delay_store"])]
    plain: bool,
    /// Each run twice, and what becomes of the throughput: once as it is, once with the answers of a Redis store that much later
    #[arg(long, value_name = "STORE=TIME", conflicts_with = "server")]
    delay_store: Option<DelayedStore>,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let settings = match arguments.server {
        Some(_) => Settings::load(&arguments.settings)?,
        None => Settings::from_flags(&arguments.settings)?,
    };
    logging::init_for_tool(&settings.logging);
    if arguments.plain && !matches!(arguments.site.kind(), StoreKind::Redis | StoreKind::RedisAof) {
        bail!(
            "--plain compares with Redis servers: --stores redis or redis-aof; 'tlog bench store' has directories too"
        );
    }
    let content = arguments.load.content()?;
    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let (mut runs, mut verified, mut load) = (Runs::default(), Some(0), None);
    for number in 0..arguments.run.runs {
        let run = match (&arguments.server, arguments.delay_store) {
            (Some(server), _) => at_running_server(&arguments, server, &settings, &content, &bar).await?,
            (None, Some(delayed)) => with_delay(&arguments, &content, delayed, number % 2 == 0, &bar).await?,
            (None, None) => at_own_server(&arguments, &content, None, &bar).await?,
        };
        verified = verified.zip(run.verified).map(|(all, these)| all + these);
        runs.add(run.figures);
        load = Some(run.load);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let load = load.context("no run")?;
    let kind = arguments.site.kind().name();
    let about = entries([
        ("stores", json!(arguments.server.is_none().then_some(kind))),
        ("redundancy", json!(settings.redundancy.to_string())),
        ("flush_size", json!(settings.flush_size)),
        ("load", arguments.load.json(&load)),
        ("verified_blocks", json!(verified)),
    ]);
    let redundancy = settings.redundancy;
    let on = match &arguments.server {
        Some(server) => format!("the server at {server}"),
        None => {
            let (stores, size) = (redundancy.stores(), settings.flush_size);
            format!("a server on {stores} {kind} stores ({redundancy}), flush-size {size}")
        }
    };
    let heading = format!("{on}; {}", arguments.load.in_words(&load));
    let ending = match verified {
        Some(blocks) => format!(
            "verified: {blocks} blocks, each that was acknowledged is in the log once, in order, byte for byte, and no other"
        ),
        None => "not verified: stores in memory are gone with their server".to_owned(),
    };
    Report { benchmark: "write", heading, about, machine, runs, ending: Some(ending) }
        .print(arguments.run.json)?;
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
    delayed: Option<DelayedStore>,
    bar: &ProgressBar,
) -> anyhow::Result<Run> {
    bar.set_message("starting servers");
    let options = SiteOptions { delayed, ..arguments.site.options(&arguments.settings) };
    let site = Site::start(&options, &arguments.site.scratch()).await?;
    let server = site.start_server().await?;
    let vdisks = arguments.load.vdisks(&VdiskId::new("bench")?)?;
    let flush_size = Some(site.settings().flush_size);
    let load = arguments.load.load(&server.address, site.settings(), vdisks, content, flush_size)?;
    bar.set_message("writing");
    let measured = measure(load.clone(), &server.watched(), || site.stores_cpu()).await?;
    let Measured { written, mut figures, stored } = measured;
    server.stop().await?;
    if arguments.plain {
        bar.set_message("plain SETs");
        let stored = stored.context("the server does not tell what it stored")?;
        plain(&site, stored, &written, arguments.load.seed(), &mut figures).await?;
    }
    bar.set_message("reading back");
    let verified = match options.stores {
        StoreKind::Memory => None,
        _ => Some(verify(site.settings(), &written, content, &[]).await?),
    };
    Ok(Run { figures, load, verified })
}

/// As many values as were stored, of the same size, by nothing but SET.
async fn plain(
    site: &Site,
    stored: Stored,
    written: &Written,
    seed: u64,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let stores = site.redis_addresses();
    let bytes = (stored.bytes / stored.aggregations / stores.len() as f64).round().max(1.0) as usize;
    let pool = Content::new(DataKind::Random, bytes, 1, seed)?.pool().clone();
    let values = PlainValues { bytes, count: stored.aggregations as u64, pool };
    let took = values.set(&stores).await?;
    let seconds = took.as_secs_f64();
    figures.add("plain_value_bytes", "plain SETs, bytes of a value", bytes as f64);
    let total = values.total_bytes(stores.len()) as f64;
    figures.add("plain_mb_per_s", "plain SETs, MB/s of stored bytes", total / 1e6 / seconds);
    let own = written.elapsed.as_secs_f64();
    figures.add("stored_mb_per_s", "the server, MB/s of stored bytes", stored.bytes / 1e6 / own);
    figures.add("ratio_to_plain", "the server to plain SETs, ratio", seconds / own);
    Ok(())
}

/// The same twice: with a store that answers late, and as it should. Both ways lead through this process, so that it costs the same.
async fn with_delay(
    arguments: &Arguments,
    content: &Arc<Content>,
    delayed: DelayedStore,
    healthy_first: bool,
    bar: &ProgressBar,
) -> anyhow::Result<Run> {
    let in_time = Some(DelayedStore { by: Duration::ZERO, ..delayed });
    let late = Some(delayed);
    let (first, second) = if healthy_first { (in_time, late) } else { (late, in_time) };
    let first = at_own_server(arguments, content, first, bar).await?;
    let second = at_own_server(arguments, content, second, bar).await?;
    let (healthy, late) = if healthy_first { (first, second) } else { (second, first) };
    let speed = |run: &Run| run.figures.get("data_mb_per_s").unwrap_or_default();
    let ratio = speed(&late) / speed(&healthy);
    let verified = healthy.verified.zip(late.verified).map(|(healthy, late)| healthy + late);
    let mut figures = Figures::default();
    figures.add("delayed_to_healthy", "delayed to healthy, ratio of MB/s", ratio);
    figures.add_all("healthy", "healthy", healthy.figures);
    figures.add_all("delayed", "delayed", late.figures);
    Ok(Run { figures, load: late.load, verified })
}

async fn at_running_server(
    arguments: &Arguments,
    server: &ListenAddress,
    settings: &Settings,
    content: &Arc<Content>,
    bar: &ProgressBar,
) -> anyhow::Result<Run> {
    let name = arguments.vdisk.as_ref().context("--server needs --vdisk")?;
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
    let Measured { written, figures, .. } = measure(load.clone(), &watched, || None).await?;
    bar.set_message("reading back");
    let verified = Some(verify(settings, &written, content, &before).await?);
    Ok(Run { figures, load, verified })
}
