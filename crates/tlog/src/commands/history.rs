//! `tlog history`: what was written when.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;
use tlog_codec::Kind;
use tlog_player::{AggregationInfo, StoredFormat};
use tlog_proto::VdiskId;

use crate::settings::{Settings, SettingsArgs, show_size};
use crate::{logging, moment, reading};

/// Shows the history of a vdisk, aggregation by aggregation, from old to new.
///
/// An aggregation is a run of writes that was stored at once. Times are those of the first and the last write in it, by the
/// clock of whoever wrote. Besides, the log has records about itself (marks, checkpoints) and parts of the images that checkpoints are;
/// they have no writes, and the time is that of the moment they are about. What older servers wrote in format 1 comes first, counted from the oldest and marked "old"; it takes
/// its keys (private-key, nonce), the rest none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog history vda\n  \
    tlog history vda --last 10\n  \
    tlog history vda --json                one JSON object on each line, times in nanoseconds too")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Only so many of the newest
    #[arg(long, value_name = "N")]
    last: Option<u64>,
    /// Prints one JSON object for each aggregation
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let reader = reading::open(&settings, &arguments.vdisk).await?;
    let extent = reader.extent();
    let from = match arguments.last {
        Some(last) => extent.first.0.max((extent.last.0 + 1).saturating_sub(last)),
        None => extent.first.0,
    };
    // What is in format 1 is read only where it is asked for: that takes all of it.
    let in_format2 = (extent.last.0 + 1).saturating_sub(extent.first.0);
    let whole = reader.has_format1() && arguments.last.is_none_or(|last| last > in_format2);
    let mut history = match whole {
        true => reader.history(),
        false => reader.history_of(tlog_proto::AggregationNumber(from)..=extent.last),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    if !arguments.json {
        writeln!(out, "{HEADING}")?;
    }
    let mut show = |info: &AggregationInfo| match arguments.json {
        true => writeln!(out, "{}", as_json(info)),
        false => writeln!(out, "{}", as_line(info)),
    };
    // How many there are in format 1 is known only at the end.
    let keep = arguments.last.filter(|_| whole).map(|last| usize::try_from(last).unwrap_or(usize::MAX));
    let mut kept = VecDeque::new();
    while let Some(batch) = history.next_batch().await? {
        for info in batch {
            let Some(keep) = keep else {
                show(&info)?;
                continue;
            };
            kept.push_back(info);
            if kept.len() > keep {
                kept.pop_front();
            }
        }
    }
    kept.iter().try_for_each(&mut show)?;
    out.flush()?;
    reading::tell_uncertain_end(&reader);
    Ok(ExitCode::SUCCESS)
}

const HEADING: &str = "  number  from                      to                        generation  sequences             blocks  \
    stored      id";

fn as_line(info: &AggregationInfo) -> String {
    let sequences = match info.kind {
        Kind::Blocks => format!("{}-{}", info.first_sequence, info.last_sequence),
        Kind::Checkpoint => "part of an image".to_owned(),
        Kind::Record => "record".to_owned(),
    };
    let id = info.id.to_string();
    let number = match info.format {
        StoredFormat::Two => info.number.to_string(),
        StoredFormat::One => format!("old {}", info.number),
    };
    format!(
        "{number:>8}  {:<24}  {:<24}  {:>10}  {:<20}  {:>6}  {:<10}  {}",
        moment::show(info.oldest_timestamp),
        moment::show(info.newest_timestamp),
        info.generation.0,
        sequences,
        info.blocks,
        show_size(info.stored_bytes),
        // As much as a person compares; all of it is in the JSON.
        id.get(..16).unwrap_or(&id),
    )
}

fn as_json(info: &AggregationInfo) -> serde_json::Value {
    let has_writes = info.kind == Kind::Blocks;
    json!({
        "format": info.format.number(),
        "kind": info.kind.name(),
        "number": info.number.0,
        "generation": info.generation.0,
        "session": info.session.0,
        "first_sequence": has_writes.then_some(info.first_sequence.0),
        "last_sequence": has_writes.then_some(info.last_sequence.0),
        "oldest": moment::show(info.oldest_timestamp),
        "oldest_ns": info.oldest_timestamp.0,
        "newest": moment::show(info.newest_timestamp),
        "newest_ns": info.newest_timestamp.0,
        "sealed_at": moment::show(info.sealed_at),
        "sealed_at_ns": info.sealed_at.0,
        "blocks": info.blocks,
        "stored_bytes": info.stored_bytes,
        "holders": info.holders,
        "id": info.id.to_string(),
        "prev": info.prev.to_string(),
    })
}
