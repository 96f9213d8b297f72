//! `tlog bench hostile`: clients that are hostile, beside one that is not.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::load_arguments::{RunArguments, SiteArguments};
use super::report::{Machine, Report, entries};
use crate::bench::figures::{Figures, Runs};
use crate::bench::hostile::kind::HostileKind;
use crate::bench::hostile::swarm::Swarm;
use crate::bench::hostile::{Hostile, Measurement};
use crate::bench::site::StoreKind;
use crate::commands::progress;
use crate::logging;
use crate::settings::{Settings, SettingsArgs};

/// Measures what a client that behaves keeps of its throughput beside clients that do not, how much memory those cost the server, and how long
/// the server bears with them.
///
/// Kinds: drip sends one byte of its greeting a second; silent says nothing; vanish connects and is gone, with a reset or without, over and over;
/// claim announces messages of 2^60 bytes, of billions of segments, and as large as they may be, and sends nothing of them; stall greets and sends one
/// byte of a block a second; unread greets, sends blocks and reads no answer. Each one that the server closes comes again, once a second.
///
/// For each kind, and in the end for all together, stores and a server are started on this machine, and the hostile clients in processes of their own;
/// the good client writes alone, beside them and alone again. What it has written is read back and compared. Every setting of the server is a flag
/// here too; max-connections and max-newcomers are so large that all of them are let in, unless you set them. With TLS (tls-certificate-file,
/// tls-key-file, and server-ca-file, server-name for the good client) drip, silent and vanish are measured.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench hostile                     all kinds, 10,000 that drip: some minutes\n  \
    tlog bench hostile --hostile drip=10000,silent=1000 --runs 3\n  \
    tlog bench hostile --hostile drip=10000 --max-newcomers 1024   more than the server has room for\n  \
    tlog bench hostile --hostile stall=200 --together=false --message-timeout 5s --json\n\n\
    Exit status: 0 measured, and the logs hold what was acknowledged; 1 not so; 64 wrong usage.")]
pub(crate) struct Arguments {
    /// Which kinds, and how many of each [default: drip=10000,silent=1000,vanish=1000,claim=100,stall=200,unread=50]
    #[arg(long, value_name = "KIND[=N],...", value_delimiter = ',')]
    hostile: Vec<Counted>,
    /// Whether all kinds are measured together too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    together: bool,
    /// How long the good client writes each time
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Blocks of it that are not durable at any time
    #[arg(long, value_name = "N", default_value_t = 1000)]
    outstanding: usize,
    #[command(flatten)]
    site: SiteArguments,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// A kind, and how many of it.
#[derive(Debug, Clone, Copy)]
struct Counted(Hostile);

impl FromStr for Counted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = match text.split_once('=') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let kind = <HostileKind as clap::ValueEnum>::from_str(name, false)?;
        let count = match count.map(str::parse) {
            None => kind.usual_count(),
            Some(Ok(count @ 1..=100_000)) => count,
            Some(_) => return Err(format!("{text}: not a number of connections, from 1 to 100000")),
        };
        Ok(Self(Hostile { kind, count }))
    }
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_flags(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let time = match Duration::try_from_secs_f64(arguments.seconds) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(3600) => time,
        _ => bail!("--seconds {} is not a time to write, of at most an hour", arguments.seconds),
    };
    let mut hostile: Vec<Hostile> = arguments.hostile.iter().map(|counted| counted.0).collect();
    if hostile.is_empty() {
        let usual = HostileKind::ALL.into_iter();
        let usual = usual.filter(|kind| settings.tls.is_none() || !kind.greets());
        hostile = usual.map(|kind| Hostile { kind, count: kind.usual_count() }).collect();
    }
    if let Some(greets) = hostile.iter().find(|hostile| hostile.kind.greets() && settings.tls.is_some()) {
        bail!("--hostile {}: at a server with TLS, drip, silent and vanish are measured", greets.kind);
    }
    let scratch = arguments.site.scratch();
    let measurement = Measurement {
        options: arguments.site.options(&arguments.settings),
        scratch: &scratch,
        time,
        outstanding: arguments.outstanding,
    };
    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let (mut runs, mut verified) = (Runs::default(), 0);
    for _ in 0..arguments.run.runs {
        let mut figures = Figures::default();
        for one in &hostile {
            bar.set_message(one.kind.name());
            verified += measurement.run(one.kind.name(), std::slice::from_ref(one), &mut figures).await?;
        }
        if arguments.together && hostile.len() > 1 {
            bar.set_message("all together");
            verified += measurement.run("together", &hostile, &mut figures).await?;
        }
        runs.add(figures);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let kind = arguments.site.kind().name();
    let verified = (arguments.site.kind() != StoreKind::Memory).then_some(verified);
    let counts = hostile.iter().map(|one| (one.kind.name().to_owned(), json!(one.count)));
    let about = entries([
        ("stores", json!(kind)),
        ("redundancy", json!(settings.redundancy.to_string())),
        ("tls", json!(settings.tls.is_some())),
        ("hostile", serde_json::Value::Object(counts.collect())),
        ("seconds", json!(arguments.seconds)),
        ("verified_blocks", json!(verified)),
    ]);
    let over = if settings.tls.is_some() { " over TLS" } else { "" };
    let heading = format!("a good client{over} beside hostile ones, {kind} stores, {}", settings.redundancy);
    let ending = verified
        .map(|blocks| format!("verified: {blocks} blocks of the good client, each once, as it was written"));
    Report { benchmark: "hostile", heading, about, machine, runs, ending }.print(arguments.run.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Hostile clients of one kind, until SIGTERM: what 'tlog bench hostile' starts.
#[derive(Debug, clap::Args)]
pub(crate) struct SwarmArguments {
    #[arg(long, value_enum)]
    kind: HostileKind,
    #[arg(long)]
    count: usize,
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    tls: bool,
}

pub(crate) async fn swarm(arguments: SwarmArguments) -> anyhow::Result<ExitCode> {
    let SwarmArguments { kind, count, server, tls } = arguments;
    Swarm { kind, server, count, tls }.run().await?;
    Ok(ExitCode::SUCCESS)
}
