//! `tlog bench scale`: many vdisks on one server, and a long log.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::load_arguments::{RunArguments, SiteArguments};
use super::report::{Machine, Report, entries};
use crate::bench::figures::{Figures, Runs};
use crate::bench::scale::Scale;
use crate::bench::site::StoreKind;
use crate::commands::progress;
use crate::logging;
use crate::settings::{Settings, SettingsArgs};

/// Most vdisks: a connection and a file descriptor each, in this process and in the server.
const MOST_VDISKS: usize = 50_000;

/// Measures what grows with the number of vdisks on one server, and with the length of a log.
///
/// Idle: memory of the server for each vdisk that is connected, has written one block and does nothing. Active: throughput of all vdisks
/// together and how many blocks the slowest got compared with the mean, each with as many blocks outstanding. History: how long a log takes to
/// open, for a client of a server that has just been started and for a reader.
///
/// Stores and servers are started on this machine, for idle vdisks, each number of active ones and the long log anew; every setting of the
/// server is a flag here too. What active vdisks have written is read back and compared.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench scale                       all of it, on Redis servers: some minutes\n  \
    tlog bench scale --idle 1,100 --active 10,100 --history 2000\n  \
    tlog bench scale --idle 1,10,100,1000,10000 --active 0 --history 0 --json\n  \
    tlog bench scale --idle 0 --active 0 --history 200000 --stores directory --scratch /srv/tlog\n\n\
    Exit status: 0 measured, and the logs hold what was acknowledged; 1 not so; 64 wrong usage.")]
pub(crate) struct Arguments {
    /// Numbers of idle vdisks, rising; 0 leaves it out
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,10,100,1000,10000")]
    idle: Vec<usize>,
    /// Numbers of vdisks that write; throughput of the others is told as a part of the first one's; 0 leaves it out
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "10,1000")]
    active: Vec<usize>,
    /// Blocks that each of them has outstanding; with less than --flush-size each aggregation waits for --flush-time
    #[arg(long, value_name = "BLOCKS", default_value_t = 50)]
    outstanding: usize,
    /// How long they write
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Aggregations of the long log; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    history: u64,
    #[command(flatten)]
    site: SiteArguments,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_flags(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let idle = counts("--idle", &arguments.idle)?;
    let active = counts("--active", &arguments.active)?;
    if !idle.is_sorted() {
        bail!("--idle: the numbers must rise, one server is given more and more vdisks");
    }
    let time = match Duration::try_from_secs_f64(arguments.seconds) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(3600) => time,
        _ => bail!("--seconds {} is not a time to write, of at most an hour", arguments.seconds),
    };
    if arguments.history > 0 && arguments.site.kind() == StoreKind::Memory {
        bail!(
            "stores in memory are gone with their server: no log could be opened again; add --history 0, or take other --stores"
        );
    }
    if arguments.outstanding == 0 {
        bail!("--outstanding 0: nothing would be written");
    }
    let scratch = arguments.site.scratch();
    let scale = Scale { options: arguments.site.options(&arguments.settings), scratch: &scratch };
    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let (mut runs, mut verified) = (Runs::default(), 0);
    for _ in 0..arguments.run.runs {
        let mut figures = Figures::default();
        bar.set_message("idle vdisks");
        scale.idle(&idle, &mut figures).await?;
        bar.set_message("active vdisks");
        verified += scale.active(&active, arguments.outstanding, time, &mut figures).await?;
        if arguments.history > 0 {
            bar.set_message("a long log");
            scale.history(arguments.history, &mut figures).await?;
        }
        runs.add(figures);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let kind = arguments.site.kind().name();
    let verified = (arguments.site.kind() != StoreKind::Memory).then_some(verified);
    let about = entries([
        ("stores", json!(kind)),
        ("redundancy", json!(settings.redundancy.to_string())),
        ("flush_size", json!(settings.flush_size)),
        ("idle", json!(idle)),
        ("active", json!(active)),
        ("outstanding", json!(arguments.outstanding)),
        ("seconds", json!(arguments.seconds)),
        ("history", json!(arguments.history)),
        ("verified_blocks", json!(verified)),
    ]);
    let heading = format!("many vdisks on one server, {kind} stores, {}", settings.redundancy);
    let ending = verified
        .map(|blocks| format!("verified: {blocks} blocks of active vdisks, each once, as it was written"));
    Report { benchmark: "scale", heading, about, machine, runs, ending }.print(arguments.run.json)?;
    Ok(ExitCode::SUCCESS)
}

/// The numbers that are to be measured.
fn counts(flag: &str, given: &[usize]) -> anyhow::Result<Vec<usize>> {
    if let Some(count) = given.iter().find(|count| **count > MOST_VDISKS) {
        bail!("{flag} {count}: at most {MOST_VDISKS} vdisks are measured");
    }
    Ok(given.iter().copied().filter(|count| *count > 0).collect())
}
