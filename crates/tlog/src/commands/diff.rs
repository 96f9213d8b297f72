//! `tlog diff`: which blocks differ between two moments.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use tlog_player::{DiskDiff, ReadOptions, WritePlace};
use tlog_proto::VdiskId;

use super::{moment_arguments, progress};
use crate::moment::{self, WrittenMoment};
use crate::settings::{Settings, SettingsArgs, show_size};
use crate::{logging, reading};

/// Shows which blocks of a vdisk differ between two moments.
///
/// By the content of the disk at each: a block that was written and written back does not differ. Reads no data, and no more of the log
/// than from its end down to where the blocks that were written in between had been written before. Takes the key. An incremental backup
/// copies the blocks that '--list' names from the disk restored to the later moment.
///
/// A moment is a mark, a time (RFC 3339, '2h30m ago', 'now'), newest, seq:N, gen:G/seq:N, agg:N or id:HEX.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog diff vda --from '1 day ago'                        to the newest moment\n  \
    tlog diff vda --from before-upgrade                     since a mark\n  \
    tlog diff vda --from agg:17 --to gen:2/seq:1204 --json\n  \
    tlog diff vda --from 2024-03-01T12:30:00Z --to now --list    one block index on each line")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// One moment
    #[arg(long, value_name = "MOMENT")]
    from: String,
    /// The other moment
    #[arg(long, value_name = "MOMENT", default_value = "newest")]
    to: String,
    /// Goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long)]
    accept_uncertain_end: bool,
    /// Takes what was written before the history that is kept as zeros
    #[arg(long)]
    accept_pruned_base: bool,
    /// Prints the index of each block that differs, one on each line, and nothing else
    #[arg(long, conflicts_with = "json")]
    list: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let vdisk = &arguments.vdisk;
    let (from, to): (WrittenMoment, WrittenMoment) = (arguments.from.parse()?, arguments.to.parse()?);
    let reader = reading::open(&settings, vdisk).await?;
    let keys = reading::keys_of(&settings, vdisk)?;
    let (from, to) = (from.resolve(&reader, &keys).await?, to.resolve(&reader, &keys).await?);
    let options = ReadOptions {
        accept_uncertain_end: arguments.accept_uncertain_end,
        accept_pruned_base: arguments.accept_pruned_base,
        ..ReadOptions::default()
    };
    let bar = progress::counting("comparing");
    let diff = reader.diff(&keys, from, to, &options, |progress| {
        bar.set_length(progress.of);
        bar.set_position(progress.aggregations);
    });
    let diff = diff.await;
    bar.finish_and_clear();
    let diff = diff.map_err(moment_arguments::tell)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if arguments.json {
        writeln!(out, "{}", as_json(vdisk, &diff))?;
    } else if arguments.list {
        diff.blocks.iter().try_for_each(|block| writeln!(out, "{}", block.index))?;
    } else {
        writeln!(out, "{}", in_words(vdisk, &diff))?;
        for range in diff.ranges() {
            match range.start() == range.end() {
                true => writeln!(out, "  {}", range.start())?,
                false => writeln!(out, "  {}-{}", range.start(), range.end())?,
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn in_words(vdisk: &VdiskId, diff: &DiskDiff) -> String {
    let at = |place: &Option<WritePlace>| match place {
        None => "the empty log".to_owned(),
        Some(place) => format!(
            "{} ({}generation {}, sequence {})",
            moment::show(place.timestamp),
            place.aggregation.map(|number| format!("aggregation {number}, ")).unwrap_or_default(),
            place.position.generation,
            place.position.sequence
        ),
    };
    let between = format!("between {} and {}", at(&diff.from), at(&diff.to));
    if diff.blocks.is_empty() {
        return format!("vdisk {vdisk}: no block differs {between}");
    }
    format!(
        "vdisk {vdisk}: {} blocks in {} ranges differ {between}: {} with content ({}), {} without",
        diff.blocks.len(),
        diff.ranges().len(),
        diff.blocks.len() - diff.cleared(),
        show_size(diff.bytes()),
        diff.cleared(),
    )
}

fn as_json(vdisk: &VdiskId, diff: &DiskDiff) -> Value {
    let at = |place: &Option<WritePlace>| {
        place.as_ref().map(|place| {
            json!({
                "time": moment::show(place.timestamp),
                "time_ns": place.timestamp.0,
                "format": place.format.number(),
                "aggregation": place.aggregation.map(|number| number.0),
                "generation": place.position.generation.0,
                "sequence": place.position.sequence.0,
            })
        })
    };
    let ranges: Vec<Value> =
        diff.ranges().iter().map(|range| json!({ "first": range.start(), "last": range.end() })).collect();
    json!({
        "vdisk": vdisk.as_str(),
        "from": at(&diff.from),
        "to": at(&diff.to),
        "blocks": diff.blocks.len(),
        "cleared": diff.cleared(),
        "bytes": diff.bytes(),
        "ranges": ranges,
    })
}
