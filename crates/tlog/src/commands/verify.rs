//! `tlog verify`: is all of it still there?

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use tlog_player::{Depth, LogReader, OpenError, StoreReport, Verdict, VerifyReport};
use tlog_proto::VdiskId;
use tlog_quorum::Standing;
use tlog_store::NumberRanges;

use super::progress;
use crate::settings::{Settings, SettingsArgs};
use crate::{logging, reading};

/// Every store holds every shard.
const WHOLE: u8 = 0;
/// Everything can be read, but something is missing.
const DEGRADED: u8 = 1;
/// Something cannot be read any more.
const LOST: u8 = 2;
/// It could not be checked.
const UNKNOWN: u8 = 3;

/// Checks that all of a vdisk's log is there: its chain, and the shards on every store. Needs no key unless --deep.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog verify vda                        the chain of ids, and which shards are missing; quick\n  \
    tlog verify vda --deep                 every byte: opens everything and checks the hash of every block\n  \
    tlog verify vda --json                 for a program\n\n\
    Exit status: 0 whole; 1 degraded, but everything can be read ('tlog scrub' puts back what is missing);\n\
    2 data is lost on the stores in reach; 3 it could not be checked; 64 wrong usage.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Reads every byte, opens everything, and checks the hash of every block
    #[arg(long)]
    deep: bool,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match verify(&arguments).await {
        Ok(code) => Ok(ExitCode::from(code)),
        // Told apart from "degraded", which is 1.
        Err(error) => {
            eprintln!("tlog: {error:#}");
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

async fn verify(arguments: &Arguments) -> anyhow::Result<u8> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let reader = match reading::try_open(&settings, &arguments.vdisk).await? {
        Err(error @ OpenError::TooFewStores(_)) => {
            eprintln!("tlog: {error}");
            return Ok(LOST);
        }
        other => other?,
    };
    let report = look(&reader, &settings, arguments.deep).await?;
    let mut out = io::stdout().lock();
    let shown = match arguments.json {
        true => writeln!(out, "{}", as_json(&report)),
        false => show(&mut out, &report),
    };
    match shown.and_then(|()| out.flush()) {
        // The verdict counts, not whether anybody reads all of the words.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(code(&report.verdict)),
    }
}

/// Verifies, with a progress bar.
pub(crate) async fn look(
    reader: &LogReader,
    settings: &Settings,
    deep: bool,
) -> anyhow::Result<VerifyReport> {
    let bar = progress::counting("verifying");
    let tell = |progress: &tlog_player::VerifyProgress| {
        bar.set_length(progress.aggregations_total);
        bar.set_position(progress.aggregations);
    };
    let report = match deep {
        true => reader.verify(Depth::Deep(&reading::keys_of(settings, reader.vdisk())?), tell).await,
        false => reader.verify(Depth::Chain, tell).await,
    };
    bar.finish_and_clear();
    Ok(report?)
}

fn code(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Whole => WHOLE,
        Verdict::Degraded => DEGRADED,
        Verdict::Lost { .. } => LOST,
    }
}

fn show(out: &mut impl Write, report: &VerifyReport) -> io::Result<()> {
    writeln!(out, "vdisk {}: {} aggregations, {} blocks", report.vdisk, report.aggregations, report.blocks)?;
    for store in &report.stores {
        writeln!(out, "  {}: {}", store.address, store_in_words(store))?;
    }
    for broken in &report.chain_breaks {
        writeln!(out, "chain: {broken}")?;
    }
    for fault in &report.content_faults {
        writeln!(out, "aggregation {}: {}", fault.number, fault.source)?;
    }
    if let Some(end) = &report.extent.uncertain {
        let missing = end.missing.join(", ");
        writeln!(out, "aggregation {} may belong to the log too; {missing} would know", end.beyond)?;
    }
    if report.deep {
        writeln!(out, "the hashes of {} blocks were checked", report.blocks_checked)?;
    }
    writeln!(out, "{}", verdict_in_words(report))?;
    match report.verdict {
        Verdict::Degraded => writeln!(out, "run 'tlog scrub {}' to put back what is missing", report.vdisk),
        _ => Ok(()),
    }
}

/// The verdict as a sentence.
pub(crate) fn verdict_in_words(report: &VerifyReport) -> String {
    let survived = match report.losses_survived {
        None => String::new(),
        Some(0) => "; no more store may be lost".to_owned(),
        Some(1) => "; 1 more store may be lost".to_owned(),
        Some(more) => format!("; {more} more stores may be lost"),
    };
    match &report.verdict {
        Verdict::Whole => format!("whole{survived}"),
        Verdict::Degraded => {
            format!("degraded, and everything can be read{survived}")
        }
        Verdict::Lost { numbers } => format!(
            "DATA IS LOST on the stores in reach: aggregations {}; bring lost stores back and verify again",
            show_ranges(numbers)
        ),
    }
}

fn store_in_words(store: &StoreReport) -> String {
    match store.standing {
        Standing::Unreachable => return "not in reach".to_owned(),
        Standing::Blank => {
            return "came back empty, or is another store; the server fills it when the log is open"
                .to_owned();
        }
        Standing::Member => {}
    }
    let mut told = vec![format!("{} shards", store.held)];
    let mut tell = |what: &str, numbers: &NumberRanges| {
        if !numbers.is_empty() {
            told.push(format!("{} {what} ({})", numbers.count(), show_ranges(numbers)));
        }
    };
    tell("missing", &store.missing);
    tell("damaged", &store.damaged);
    tell("ruled out", &store.ruled_out);
    tell("could not be read", &store.unread);
    told.extend(store.damage.clone());
    told.join(", ")
}

/// At most this many ranges are shown to a person.
const SHOWN_RANGES: usize = 8;

fn show_ranges(numbers: &NumberRanges) -> String {
    let mut ranges = numbers.iter();
    let shown: Vec<String> = ranges
        .by_ref()
        .take(SHOWN_RANGES)
        .map(|range| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}-{}", range.start(), range.end()),
        })
        .collect();
    let more = if ranges.next().is_some() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn as_json(report: &VerifyReport) -> Value {
    let ranges = |numbers: &NumberRanges| -> Vec<Value> {
        numbers.iter().map(|range| json!([range.start().0, range.end().0])).collect()
    };
    let standing = |standing: Standing| match standing {
        Standing::Member => "member",
        Standing::Blank => "blank",
        Standing::Unreachable => "unreachable",
    };
    let stores: Vec<Value> = report
        .stores
        .iter()
        .map(|store| {
            json!({
                "address": store.address,
                "standing": standing(store.standing),
                "held": store.held,
                "missing": ranges(&store.missing),
                "damaged": ranges(&store.damaged),
                "damage": store.damage,
                "ruled_out": ranges(&store.ruled_out),
                "unread": ranges(&store.unread),
            })
        })
        .collect();
    let (verdict, lost) = match &report.verdict {
        Verdict::Whole => ("whole", Vec::new()),
        Verdict::Degraded => ("degraded", Vec::new()),
        Verdict::Lost { numbers } => ("lost", ranges(numbers)),
    };
    json!({
        "vdisk": report.vdisk.as_str(),
        "verdict": verdict,
        "lost": lost,
        "losses_survived": report.losses_survived,
        "first": report.extent.first.0,
        "last": report.extent.last.0,
        "committed": report.extent.committed.0,
        "deep": report.deep,
        "aggregations": report.aggregations,
        "blocks": report.blocks,
        "blocks_checked": report.blocks_checked,
        "chain_breaks": report.chain_breaks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "content_faults": report
            .content_faults
            .iter()
            .map(|fault| json!({ "aggregation": fault.number.0, "error": fault.source.to_string() }))
            .collect::<Vec<_>>(),
        "uncertain_beyond": report.extent.uncertain.as_ref().map(|end| end.beyond.0),
        "stores": stores,
    })
}
