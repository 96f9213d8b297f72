//! `tlog verify`: is all of it still there?

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use tlog_player::{
    Depth, Format1Report, Format1StoreReport, LogReader, OpenError, StoreReport, Verdict, VerifyReport,
};
use tlog_proto::VdiskId;
use tlog_quorum::Standing;
use tlog_store::{NumberRanges, StoreError};

use super::progress;
use super::prove::{self, ProveArguments};
use crate::settings::{Settings, SettingsArgs};
use crate::{logging, pinned, reading, words};

/// Every store holds every shard.
pub(super) const WHOLE: u8 = 0;
/// Everything can be read, but something is missing.
pub(super) const DEGRADED: u8 = 1;
/// Something cannot be read any more.
pub(super) const LOST: u8 = 2;
/// It could not be checked.
pub(super) const UNKNOWN: u8 = 3;

/// Checks that all of a vdisk's log is there: its chain, and the shards on every store. Needs no key unless --deep or --restore.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog verify vda                        the chain of ids, and which shards are missing; quick\n  \
    tlog verify vda --deep                 every byte: opens everything and checks the hash of every block\n  \
    tlog verify vda --restore              proves that a restore works: reads and checks all that it would, writes nothing\n  \
    tlog verify vda --restore --at '1 day ago' --at '1 week ago'\n  \
    tlog verify vda --json                 for a program\n\n\
    Exit status: 0 whole, or proven; 1 degraded, but everything can be read: the last line says whether 'tlog scrub' puts back what is \
    missing, or too few stores are left to write; 2 data is lost on the stores in reach; 3 it could not be checked; 64 wrong \
    usage.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Reads every byte, opens everything, and checks the hash of every block
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    prove: ProveArguments,
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
            eprintln!("tlog: {}", words::of_error(&error));
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

async fn verify(arguments: &Arguments) -> anyhow::Result<u8> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let (vdisk, json) = (&arguments.vdisk, arguments.json);
    if arguments.prove.restore {
        let proving = prove::run(&settings, vdisk, &arguments.prove, json);
        return pinned::while_reading(&settings, vdisk, "tlog verify --restore", proving).await;
    }
    let checking = check(&settings, arguments);
    match arguments.deep {
        true => pinned::while_reading(&settings, vdisk, "tlog verify --deep", checking).await,
        false => checking.await,
    }
}

async fn check(settings: &Settings, arguments: &Arguments) -> anyhow::Result<u8> {
    let reader = match reading::try_open(settings, &arguments.vdisk).await? {
        Err(OpenError::TooFewStores(error)) => {
            eprintln!("tlog: {error}");
            // Where not one store answers, nothing is known to be lost.
            return Ok(if error.counted == 0 { UNKNOWN } else { LOST });
        }
        other => other?,
    };
    let report = look(&reader, settings, arguments.deep).await?;
    let mut out = io::stdout().lock();
    let shown = match arguments.json {
        true => writeln!(out, "{}", as_json(&report, &Known::of(&reader))),
        false => show(&mut out, &report, &reader),
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

/// Stores of the log that answer, of as many as opening it for writing takes.
struct Known {
    there: usize,
    needed: usize,
}

impl Known {
    fn of(reader: &LogReader) -> Self {
        Self { there: reader.survey().counted_len(), needed: reader.stores().quorums().opening() }
    }

    /// Whether the log can be opened for writing, and so be scrubbed and its stores be filled.
    fn are_enough(&self) -> bool {
        self.there >= self.needed
    }
}

fn show(out: &mut impl Write, report: &VerifyReport, reader: &LogReader) -> io::Result<()> {
    let known = Known::of(reader);
    writeln!(out, "vdisk {}: {} aggregations, {} blocks", report.vdisk, report.aggregations, report.blocks)?;
    for (store, view) in report.stores.iter().zip(&reader.survey().views) {
        let away = view.answer.as_ref().err();
        writeln!(out, "  {}: {}", store.address, store_in_words(store, away, known.are_enough()))?;
    }
    if let Some(format1) = &report.format1 {
        show_format1(out, format1)?;
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
        Verdict::Degraded => writeln!(out, "{}", what_to_do(report, &known)),
        _ => Ok(()),
    }
}

fn show_format1(out: &mut impl Write, report: &Format1Report) -> io::Result<()> {
    writeln!(out, "in format 1: {} aggregations, {} blocks", report.aggregations, report.blocks)?;
    for Format1StoreReport { address, held, missing, damaged, unread, error } in &report.stores {
        let mut told = vec![format!("{held} shards")];
        for (count, what) in [(missing, "missing"), (damaged, "damaged"), (unread, "could not be read")] {
            if *count > 0 {
                told.push(format!("{count} {what}"));
            }
        }
        told.extend(error.clone());
        writeln!(out, "  {address}: {}", told.join(", "))?;
    }
    for doubt in &report.doubts {
        writeln!(out, "what is newer may have been acknowledged: {doubt}")?;
    }
    if let Some(broken) = &report.broken {
        writeln!(
            out,
            "history of format 1 ends here, everything before is lost on the stores in reach: {broken}"
        )?;
    }
    Ok(())
}

/// What helps a log of which everything can be read, and not everything is there.
fn what_to_do(report: &VerifyReport, known: &Known) -> String {
    let vdisk = &report.vdisk;
    let is_whole = |store: &StoreReport| {
        store.standing == Standing::Member
            && [&store.missing, &store.damaged, &store.ruled_out, &store.unread]
                .iter()
                .all(|numbers| numbers.is_empty())
    };
    if report.format1.is_some() && (report.aggregations == 0 || report.stores.iter().all(is_whole)) {
        return "bring missing stores back; shards of format 1 are not put back by a scrub".to_owned();
    }
    // A directory that is gone is made again by a scrub; nobody starts a server.
    let down =
        |store: &&StoreReport| store.standing == Standing::Unreachable && store.address.starts_with("redis");
    let down: Vec<&str> = report.stores.iter().filter(down).map(|store| store.address.as_str()).collect();
    if known.are_enough() && !down.is_empty() {
        let down = down.join(", ");
        return format!(
            "bring back {down}, or put another store in its place ('tlog store replace {vdisk} OLD NEW')"
        );
    }
    if known.are_enough() {
        return format!("run 'tlog scrub {vdisk}' to put back what is missing");
    }
    let Known { there, needed } = known;
    let accept = if report.extent.uncertain.is_some() { " --accept-uncertain-end" } else { "" };
    format!(
        "the log can be restored and not be written: opening it takes {needed} stores that it knows, {there} are there, and \
         'tlog scrub' cannot change that; bring missing stores back, or, if they are lost for good, put empty ones in their place \
         ('tlog store replace {vdisk} OLD NEW'); where that is refused, 'tlog restore {vdisk} -o FILE{accept}' and record FILE \
         into a new vdisk"
    )
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
        Verdict::Lost { numbers } if numbers.is_empty() => {
            "DATA IS LOST on the stores in reach, in the part of format 1; bring lost stores back and verify again".to_owned()
        }
        Verdict::Lost { numbers } => format!(
            "DATA IS LOST on the stores in reach: aggregations {}; bring lost stores back and verify again",
            show_ranges(numbers)
        ),
    }
}

/// `away` is why a store did not answer.
fn store_in_words(store: &StoreReport, away: Option<&StoreError>, can_be_filled: bool) -> String {
    match store.standing {
        Standing::Unreachable => {
            let reason = away.map(|error| format!(": {}", root_cause(error)));
            return format!("not in reach{}", reason.unwrap_or_default());
        }
        Standing::Blank => {
            let then = if can_be_filled { "; the server fills it when the log is open" } else { "" };
            return format!("came back empty, or is another store{then}");
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

/// What the system said, without the address that stands beside it already.
fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
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

fn as_json(report: &VerifyReport, known: &Known) -> Value {
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
        "can_be_written": known.are_enough(),
        "stores_known": known.there,
        "stores_needed_to_write": known.needed,
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
        "format1": report.format1.as_ref().map(format1_as_json),
    })
}

fn format1_as_json(report: &Format1Report) -> Value {
    let stores = report.stores.iter().map(|store| {
        json!({
            "address": store.address,
            "held": store.held,
            "missing": store.missing,
            "damaged": store.damaged,
            "unread": store.unread,
            "error": store.error,
        })
    });
    json!({
        "aggregations": report.aggregations,
        "blocks": report.blocks,
        "degraded": report.degraded,
        "broken": report.broken.as_ref().map(ToString::to_string),
        "doubts": report.doubts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "losses_survived": report.losses_survived,
        "stores": stores.collect::<Vec<_>>(),
    })
}
