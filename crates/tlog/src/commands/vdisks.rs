//! `tlog vdisks`: what is on the stores.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tlog_player::LogReader;
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;

use crate::inventory::{Known, inventory};
use crate::proofs::{ProofRecord, Records};
use crate::settings::{Settings, SettingsArgs};
use crate::storage::quorums;
use crate::stores::Stores;
use crate::{logging, moment, reading, words};

/// Lists the vdisks that the stores have a log of. Needs no key, and works beside a running server.
///
/// Up to where a restore is proven, and how long ago that was, is what a server with the same data-dir wrote down there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog vdisks\n  \
    tlog vdisks --json                     one JSON object on each line\n\n\
    Exit status: 0 the list is complete; 1 stores that might know of more did not answer (they are named), or none did.")]
pub(crate) struct Arguments {
    /// Prints one JSON object for each vdisk
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut complete = true;
    for (cluster, settings) in settings.of_clusters().await? {
        let listed = match settings {
            Ok(settings) => list(&settings, cluster.as_deref(), arguments.json, &mut out).await,
            Err(error) => Err(error.into()),
        };
        match (listed, &cluster) {
            (Ok(all), _) => complete &= all,
            (Err(error), None) => return Err(error),
            // The others are wanted all the more.
            (Err(error), Some(cluster)) => {
                out.flush()?;
                eprintln!("tlog: storage cluster {cluster}: {}", words::of_error(&error));
                complete = false;
            }
        }
    }
    out.flush()?;
    if !complete {
        eprintln!("tlog: too few stores answered: there may be vdisks that none of these knows of");
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lists what is on one set of stores, and answers whether that is all there can be.
async fn list(
    settings: &Settings,
    cluster: Option<&str>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    reading::some_store_is_there(settings)?;
    let stores = Stores::for_reading(settings).await?.all;
    let quorums = quorums(settings.redundancy)?;
    let found = inventory(&stores, settings.store_timeout).await;
    if !json {
        if let Some(cluster) = cluster {
            writeln!(out, "storage cluster {cluster}")?;
        }
        writeln!(
            out,
            "{:<32}  {:>6}  {:>12}  {:<38}  {:>6}",
            "vdisk", "format", "aggregations", "restore proven up to", "stores"
        )?;
    }
    let records = Records::of(&settings.data_dir);
    for (vdisk, known) in &found.vdisks {
        let set = StoreSet::new(vdisk.clone(), stores.clone(), quorums, settings.store_timeout);
        // Where the log cannot be opened, the listing still has its name.
        let log = match set {
            Some(set) if known.logs > 0 => LogReader::open(set).await.ok(),
            _ => None,
        };
        let record = records.get(vdisk).unwrap_or_default();
        match json {
            true => writeln!(out, "{}", as_json(vdisk, cluster, *known, log.as_ref(), &record))?,
            false => writeln!(out, "{}", as_line(vdisk, *known, log.as_ref(), &record, stores.len()))?,
        }
    }
    out.flush()?;
    for silent in &found.silent {
        eprintln!("tlog: {silent}");
    }
    // Whatever was opened once was promised by that many stores.
    Ok(stores.len() - found.silent.len() > stores.len() - quorums.opening())
}

fn formats(known: Known) -> &'static str {
    match (known.chains > 0, known.logs > 0) {
        (true, true) => "1, 2",
        (true, false) => "1",
        _ => "2",
    }
}

/// Up to which moment a restore is proven, and how long ago that was.
fn proven(record: &ProofRecord) -> String {
    let Some(proof) = &record.proof else {
        return if record.failure.is_some() { "FAILED" } else { "-" }.to_owned();
    };
    let age = Duration::from_nanos(moment::now().0.saturating_sub(proof.began_ns)).as_secs();
    let age = match age {
        0..120 => format!("{age} s ago"),
        120..7200 => format!("{} min ago", age / 60),
        7200..172_800 => format!("{} h ago", age / 3600),
        _ => format!("{} days ago", age / 86_400),
    };
    let moment = proof.moment.as_ref().map_or("an empty disk", |moment| moment.time.as_str());
    match record.failure {
        Some(_) => format!("{moment}, {age}, now FAILED"),
        None => format!("{moment}, {age}"),
    }
}

fn as_line(
    vdisk: &VdiskId,
    known: Known,
    log: Option<&LogReader>,
    record: &ProofRecord,
    stores: usize,
) -> String {
    // What is on format 1 is known only by walking it.
    let aggregations = match log.map(LogReader::extent) {
        None => "-".to_owned(),
        Some(extent) if extent.first.0 > 1 => format!("{}-{}", extent.first, extent.last),
        Some(extent) => extent.last.to_string(),
    };
    let on = known.logs.max(known.chains);
    format!(
        "{:<32}  {:>6}  {:>12}  {:<38}  {:>6}",
        vdisk.as_str(),
        formats(known),
        aggregations,
        proven(record),
        format!("{on}/{stores}")
    )
}

fn as_json(
    vdisk: &VdiskId,
    cluster: Option<&str>,
    known: Known,
    log: Option<&LogReader>,
    record: &ProofRecord,
) -> Value {
    let proven = record.proof.as_ref().map_or(0, |proof| proof.last_aggregation);
    json!({
        "vdisk": vdisk.as_str(),
        "cluster": cluster,
        "stores_with_log": known.logs,
        "stores_with_format1": known.chains,
        "first": log.map(|log| log.extent().first.0),
        "last": log.map(|log| log.extent().last.0),
        "committed": log.map(|log| log.extent().committed.0),
        "proof": record.proof,
        "behind_aggregations": log.map(|log| log.extent().last.0.saturating_sub(proven)),
        "failure": record.failure,
    })
}
