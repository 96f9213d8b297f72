//! `tlog bench store`: the stores alone.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;
use tlog_codec::Redundancy;

use super::load_arguments::{RunArguments, SiteArguments};
use super::report::{Machine, Report, entries};
use crate::bench::codec_stages::Shape;
use crate::bench::data::{Content, DataKind};
use crate::bench::figures::{Figures, Runs};
use crate::bench::plain::PlainValues;
use crate::bench::process::cpu_seconds;
use crate::bench::site::{Site, StoreKind};
use crate::bench::store_load;
use crate::commands::progress;
use crate::logging;
use crate::settings::{Settings, SettingsArgs, Size};
use crate::stores::Stores;

/// Measures the stores without a server: values of the size of shards as plain as can be, then as shards by the port that the server uses.
///
/// Plain is, for Redis servers, nothing but SET, pipelined on one connection for each server, from one process; for directories a
/// preallocated file for each, with one fdatasync for as many values as are in flight. As many values of the same size go to every store both
/// times, and the ratio says what the port costs. MB/s are those of all stores together.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench store                       six Redis servers in memory, shards of 25 blocks of 4 KiB\n  \
    tlog bench store --stores redis-aof --flush-size 250 --values 500 --runs 5\n  \
    tlog bench store --stores directory --scratch /srv/tlog --json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    site: SiteArguments,
    /// Bytes of a block
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    block_size: Size,
    /// What is in the blocks: random, text, zero or image:FILE. Says how large shards are
    #[arg(long, value_name = "DATA", default_value = "random")]
    data: DataKind,
    /// Values for each store
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
    values: u64,
    /// What data is drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_flags(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let Ok(block_size) = usize::try_from(arguments.block_size.0) else { bail!("--block-size is too large") };
    let content = Content::new(arguments.data.clone(), block_size, 1 << 18, arguments.seed)?;
    let (k, m) = (settings.redundancy.data_shards, settings.redundancy.parity_shards);
    let shape = Shape { blocks: settings.flush_size, redundancy: Redundancy::new(k.into(), m.into())? };
    let (head, payload) = shape.shard_bytes(&content)?;
    let bytes = head + payload;
    let pool = Content::new(DataKind::Random, bytes.max(4096), 1, arguments.seed)?.pool().clone();
    let values = PlainValues { bytes, count: arguments.values, pool };

    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let mut runs = Runs::default();
    for number in 0..arguments.run.runs {
        // In turns, so that neither always has what the other has left.
        runs.add(one_run(&arguments, &settings, &values, head, number % 2 == 0).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let stores = settings.redundancy.stores();
    let kind = arguments.site.kind().name();
    let about = entries([
        ("stores", json!(kind)),
        ("redundancy", json!(settings.redundancy.to_string())),
        ("flush_size", json!(settings.flush_size)),
        ("in_flight", json!(settings.in_flight)),
        ("value_bytes", json!(bytes)),
        ("values_per_store", json!(arguments.values)),
    ]);
    let heading = format!(
        "{stores} {kind} stores, {} values of {bytes} bytes each, {} in flight on each by the port",
        arguments.values, settings.in_flight
    );
    Report { benchmark: "store", heading, about, machine, runs, ending: None }.print(arguments.run.json)?;
    Ok(ExitCode::SUCCESS)
}

async fn one_run(
    arguments: &Arguments,
    settings: &Settings,
    values: &PlainValues,
    head: usize,
    plain_first: bool,
) -> anyhow::Result<Figures> {
    let site = Site::start(&arguments.site.options(&arguments.settings), &arguments.site.scratch()).await?;
    let mut plain = None;
    if plain_first {
        plain = measure_plain(arguments.site.kind(), &site, values, settings.in_flight as u64).await?;
    }
    let stores = Stores::for_writing(site.settings(), "tlog bench store").await?;
    let cost = Cost::begin(&site);
    let (took, latencies) = store_load::append(&stores.all, values, head, settings.in_flight as u64).await?;
    let cost = cost.end(&site);
    drop(stores);
    if !plain_first {
        plain = measure_plain(arguments.site.kind(), &site, values, settings.in_flight as u64).await?;
    }
    let bytes = values.total_bytes(settings.redundancy.stores());
    let mut figures = Figures::default();
    if let Some((plain, cost)) = plain {
        figures.add("plain_mb_per_s", "plain, MB/s", bytes as f64 / 1e6 / plain.as_secs_f64());
        cost.tell("plain", "plain", bytes, &mut figures);
    }
    figures.add("port_mb_per_s", "port, MB/s", bytes as f64 / 1e6 / took.as_secs_f64());
    cost.tell("port", "port", bytes, &mut figures);
    latencies.tell("port_append", "port, one append", &mut figures);
    if let Some((plain, _)) = plain {
        let ratio = plain.as_secs_f64() / took.as_secs_f64();
        figures.add("port_to_plain", "port to plain, ratio of MB/s", ratio);
    }
    Ok(figures)
}

/// The same values without anything around them. None for stores that have no such thing.
async fn measure_plain(
    kind: StoreKind,
    site: &Site,
    values: &PlainValues,
    in_flight: u64,
) -> anyhow::Result<Option<(Duration, Cost)>> {
    let cost = Cost::begin(site);
    let took = match kind {
        StoreKind::Memory => return Ok(None),
        StoreKind::Redis | StoreKind::RedisAof => values.set(&site.redis_addresses()).await?,
        StoreKind::Directory => {
            let stores = site.settings().redundancy.stores();
            let files = (0..stores).map(|number| site.directory().join(format!("plain-{number}")));
            values.write(files.collect(), in_flight).await?
        }
    };
    Ok(Some((took, cost.end(site))))
}

/// CPU seconds of this process, and of stores that are processes.
#[derive(Debug, Clone, Copy)]
struct Cost {
    own: Option<f64>,
    stores: Option<f64>,
}

impl Cost {
    fn begin(site: &Site) -> Self {
        Self { own: cpu_seconds(std::process::id()), stores: site.stores_cpu() }
    }

    fn end(self, site: &Site) -> Self {
        let now = Self::begin(site);
        let spent = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        Self { own: spent(now.own, self.own), stores: spent(now.stores, self.stores) }
    }

    fn tell(self, key: &str, label: &str, bytes: u64, figures: &mut Figures) {
        let per_gigabyte = |seconds: Option<f64>| seconds.map(|seconds| seconds / (bytes as f64 / 1e9));
        let (own, stores) = (per_gigabyte(self.own), per_gigabyte(self.stores));
        figures.add_known(&format!("{key}_cpu_s_per_gb"), &format!("{label}, CPU s/GB here"), own);
        figures.add_known(
            &format!("{key}_stores_cpu_s_per_gb"),
            &format!("{label}, CPU s/GB in stores"),
            stores,
        );
    }
}
