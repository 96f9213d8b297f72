//! `tlog verify --restore`: would a restore work?

use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Value, json};
use tlog_player::{Moment, ProveError, ProveFault, ProveOptions, ReadOptions, RestoreProgress, prove};
use tlog_proto::{AggregationNumber, VdiskId};
use tlog_quorum::Pacer;

use super::verify::{DEGRADED, LOST, UNKNOWN, WHOLE};
use super::{moment_arguments, progress};
use crate::moment::WrittenMoment;
use crate::proof_report::{ProofReport, in_words, name_of};
use crate::settings::{Settings, Size};
use crate::{moment, reading};

/// What a proof is about.
#[derive(Debug, clap::Args)]
pub(crate) struct ProveArguments {
    /// Proves that a restore works: reads and checks everything that it would read, and writes nothing
    #[arg(long, conflicts_with = "deep")]
    pub(crate) restore: bool,
    /// With --restore: at this moment, as 'tlog restore' takes it, in place of the newest. Several times for several moments
    #[arg(long, value_name = "MOMENT", requires = "restore")]
    at: Vec<String>,
    /// With --restore: after this aggregation. Several times for several moments
    #[arg(long, value_name = "N", requires = "restore")]
    aggregation: Vec<u64>,
    /// With --restore: bytes per second to read at most, such as 16MiB
    #[arg(long, value_name = "SIZE", requires = "restore")]
    rate: Option<Size>,
    /// With --restore: bytes of a block, where the log does not tell
    #[arg(long, value_name = "BYTES", requires = "restore")]
    block_size: Option<u32>,
    /// With --restore: goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long, requires = "restore")]
    accept_uncertain_end: bool,
    /// With --restore: takes what was written before the history that is kept as zeros
    #[arg(long, requires = "restore")]
    accept_pruned_base: bool,
}

impl ProveArguments {
    /// The moments, as they were asked for and as they are meant.
    fn moments(&self) -> anyhow::Result<Vec<(String, WrittenMoment)>> {
        let at = self.at.iter().map(|text| Ok((text.clone(), text.parse()?)));
        let numbers = self.aggregation.iter();
        let after = numbers
            .map(|&n| Ok((format!("aggregation {n}"), Moment::Aggregation(AggregationNumber(n)).into())));
        let moments: Vec<_> = at.chain(after).collect::<anyhow::Result<_>>()?;
        Ok(if moments.is_empty() { vec![("newest".to_owned(), Moment::Newest.into())] } else { moments })
    }

    fn options(&self) -> ProveOptions {
        let read = ReadOptions {
            accept_uncertain_end: self.accept_uncertain_end,
            accept_pruned_base: self.accept_pruned_base,
            block_size: self.block_size,
            ..ReadOptions::default()
        };
        ProveOptions { read, ..ProveOptions::default() }
    }
}

/// What became of one moment.
struct Proven {
    asked: String,
    result: Result<ProofReport, (ProveFault, String)>,
}

impl Proven {
    fn code(&self) -> u8 {
        match &self.result {
            Ok(report) if report.verdict == "proven" => WHOLE,
            Ok(_) => DEGRADED,
            Err((ProveFault::Lost, _)) => LOST,
            Err(_) => UNKNOWN,
        }
    }
}

/// Proves every moment that was asked for, and answers the exit status.
pub(crate) async fn run(
    settings: &Settings,
    vdisk: &VdiskId,
    arguments: &ProveArguments,
    json: bool,
) -> anyhow::Result<u8> {
    let mut proven = Vec::new();
    for (asked, moment) in arguments.moments()? {
        let result = one(settings, vdisk, moment, arguments).await?;
        let result =
            result.map_err(|error| (error.fault(), in_words(vdisk.as_str(), error, moment_arguments::tell)));
        let proof = Proven { asked, result };
        if !json {
            tell(vdisk, &proof)?;
        }
        proven.push(proof);
    }
    let codes: Vec<u8> = proven.iter().map(Proven::code).collect();
    // What is lost weighs more than what is not known.
    let worst = [LOST, UNKNOWN, DEGRADED].into_iter().find(|code| codes.contains(code)).unwrap_or(WHOLE);
    if json {
        unless_nobody_reads(writeln!(io::stdout(), "{}", as_json(vdisk, worst, &proven)))?;
    }
    Ok(worst)
}

/// Proves one moment, with a progress bar.
async fn one(
    settings: &Settings,
    vdisk: &VdiskId,
    moment: WrittenMoment,
    arguments: &ProveArguments,
) -> anyhow::Result<Result<ProofReport, ProveError>> {
    let began = moment::now();
    let keys = reading::keys_of(settings, vdisk)?;
    let mut reader = match reading::try_open(settings, vdisk).await? {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error.into())),
    };
    if let Some(Size(rate)) = arguments.rate {
        reader = reader.paced(Arc::new(Pacer::new(rate)));
    }
    let moment = moment.resolve(&reader, &keys).await?;
    let bar = progress::of_bytes("proving");
    let tell = |progress: &RestoreProgress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(moment::show(progress.position));
    };
    let proof = prove(&reader, &keys, moment, &arguments.options(), tell).await;
    bar.finish_and_clear();
    Ok(proof.map(|proof| ProofReport::new(&proof, began)))
}

fn tell(vdisk: &VdiskId, proven: &Proven) -> io::Result<()> {
    unless_nobody_reads(match &proven.result {
        Ok(report) => writeln!(io::stdout(), "{report}"),
        Err((_, why)) => writeln!(io::stdout(), "vdisk {vdisk}, {}: not proven: {why}", proven.asked),
    })
}

/// The verdict counts, not whether anybody reads all of the words.
fn unless_nobody_reads(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn as_json(vdisk: &VdiskId, worst: u8, proven: &[Proven]) -> Value {
    let proofs = proven.iter().map(|proven| match &proven.result {
        Ok(report) => {
            let mut shown = json!(report);
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("asked".to_owned(), json!(proven.asked));
            }
            shown
        }
        Err((fault, error)) => json!({ "asked": proven.asked, "verdict": name_of(*fault), "error": error }),
    });
    let verdict = match worst {
        WHOLE => "proven",
        DEGRADED => "degraded",
        LOST => "lost",
        _ => "unknown",
    };
    json!({ "vdisk": vdisk.as_str(), "verdict": verdict, "proofs": proofs.collect::<Vec<_>>() })
}
