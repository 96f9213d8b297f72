//! `tlog restore`: a disk as it was.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use serde_json::json;
use tlog_player::{
    DiskStateError, FileOptions, Moment, MomentError, MomentReached, ReadOptions, RestoreFileError,
    RestoreProgress, RestoreSummary, restore_to_file,
};
use tlog_proto::{AggregationNumber, Generation, Sequence, VdiskId};

use super::progress;
use crate::settings::{Settings, SettingsArgs, show_size};
use crate::{logging, moment, reading};

/// Restores a disk as it was at any moment of its history, to a new sparse file.
///
/// Without a moment: as it is now. The file appears under its name only when it is complete. A file that is there is not
/// replaced without --force, and then stays as it is until the new one is complete. Works while a server runs, and with up to
/// parity-shards stores lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog restore vda -o disk.img                                 as it is now\n  \
    tlog restore vda -o disk.img --at '5m ago'\n  \
    tlog restore vda -o disk.img --at 2024-03-01T12:30:00+01:00\n  \
    tlog restore vda -o disk.img --sequence 1204                 after that write\n  \
    tlog restore vda -o disk.img --aggregation 17 --force        see 'tlog history vda'")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// File to restore to
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// At this moment: RFC 3339, '2h30m ago', 'now'
    #[arg(long, value_name = "TIME", conflicts_with_all = ["sequence", "aggregation"])]
    at: Option<String>,
    /// After the write with this sequence, in the newest generation that has it
    #[arg(long, value_name = "N", conflicts_with = "aggregation")]
    sequence: Option<u64>,
    /// With --sequence: in this generation
    #[arg(long, value_name = "N", requires = "sequence")]
    generation: Option<u64>,
    /// After this aggregation
    #[arg(long, value_name = "N")]
    aggregation: Option<u64>,
    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,
    /// Bytes of a block, where the log does not tell
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// Goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long)]
    accept_uncertain_end: bool,
    /// Takes what was written before the history that is kept as zeros
    #[arg(long)]
    accept_pruned_base: bool,
    /// Prints what was restored as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Arguments {
    fn moment(&self) -> anyhow::Result<Moment> {
        if let Some(text) = &self.at {
            return Ok(Moment::At(moment::parse_now(text)?));
        }
        if let Some(number) = self.aggregation {
            return Ok(Moment::Aggregation(AggregationNumber(number)));
        }
        Ok(match self.sequence {
            Some(sequence) => {
                Moment::Sequence { generation: self.generation.map(Generation), sequence: Sequence(sequence) }
            }
            None => Moment::Newest,
        })
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let moment = arguments.moment()?;
    let options = ReadOptions {
        accept_uncertain_end: arguments.accept_uncertain_end,
        accept_pruned_base: arguments.accept_pruned_base,
        block_size: arguments.block_size,
    };
    let bar = progress::of_bytes("restoring");
    let restored = restore(
        &settings,
        &arguments.vdisk,
        moment,
        &options,
        &arguments.output,
        arguments.force,
        |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            bar.set_message(moment::show(progress.position));
        },
    )
    .await;
    bar.finish_and_clear();
    let restored = restored?;
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", as_json(&arguments, &restored))?,
        false => writeln!(out, "{}", in_words(&arguments, &restored))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What was restored.
pub(crate) struct Restored {
    pub(crate) reached: MomentReached,
    pub(crate) block_size: u32,
    pub(crate) summary: RestoreSummary,
    pub(crate) took: Duration,
}

/// Restores to a file.
pub(crate) async fn restore(
    settings: &Settings,
    vdisk: &VdiskId,
    moment: Moment,
    options: &ReadOptions,
    output: &Path,
    overwrite: bool,
    progress: impl FnMut(&RestoreProgress) + Send,
) -> anyhow::Result<Restored> {
    let began = Instant::now();
    if let Some(directory) =
        output.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir())
    {
        bail!("there is no directory {} to restore to; make it, or name another output", directory.display());
    }
    let reader = reading::open(settings, vdisk).await?;
    let keys = reading::keys_of(settings, vdisk)?;
    let state = reader.disk_state(&keys, moment, options).await.map_err(|error| match error {
        error @ DiskStateError::Moment(MomentError::UncertainEnd { .. }) => {
            anyhow!("{error} (--accept-uncertain-end)")
        }
        error => reading::tell(error),
    })?;
    let Some(reached) = state.reached().copied() else {
        bail!("vdisk {vdisk}: its log is empty, there is nothing to restore");
    };
    let options = FileOptions { overwrite, ..FileOptions::default() };
    let restored = restore_to_file(&reader, &keys, &state, output, &options, progress).await;
    let summary = restored.map_err(|error| match error {
        RestoreFileError::Exists { path } => {
            anyhow!("{} is there already; choose another name, or replace it with --force", path.display())
        }
        error => error.into(),
    })?;
    Ok(Restored { reached, block_size: state.block_size(), summary, took: began.elapsed() })
}

fn in_words(arguments: &Arguments, restored: &Restored) -> String {
    let Restored { reached, summary, took, .. } = restored;
    format!(
        "vdisk {} as it was at {} (aggregation {}, generation {}, sequence {}), restored to {}: {} long, {} blocks ({}) in {:.2} s",
        arguments.vdisk,
        moment::show(reached.timestamp),
        reached.aggregation,
        reached.position.generation,
        reached.position.sequence,
        arguments.output.display(),
        show_size(summary.len),
        summary.blocks,
        show_size(summary.bytes),
        took.as_secs_f64(),
    )
}

fn as_json(arguments: &Arguments, restored: &Restored) -> serde_json::Value {
    let Restored { reached, block_size, summary, took } = restored;
    json!({
        "vdisk": arguments.vdisk.as_str(),
        "output": arguments.output,
        "moment": moment::show(reached.timestamp),
        "moment_ns": reached.timestamp.0,
        "format": reached.format.number(),
        "aggregation": reached.aggregation.0,
        "generation": reached.position.generation.0,
        "sequence": reached.position.sequence.0,
        "block_size": block_size,
        "length": summary.len,
        "blocks": summary.blocks,
        "bytes": summary.bytes,
        "aggregations_read": summary.aggregations,
        "seconds": took.as_secs_f64(),
    })
}
