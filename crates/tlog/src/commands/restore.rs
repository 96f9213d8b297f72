//! `tlog restore`: a disk as it was.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use serde_json::json;
use tlog_player::{
    FileOptions, MomentReached, ReadOptions, RestoreFileError, RestoreProgress, RestoreSummary,
    restore_to_file,
};
use tlog_proto::VdiskId;

use super::moment_arguments::{self, MomentArguments};
use super::progress;
use crate::moment::WrittenMoment;
use crate::settings::{Settings, SettingsArgs, show_size};
use crate::{logging, moment, pinned, reading};

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
    tlog restore vda -o disk.img --aggregation 17 --force        see 'tlog history vda'\n  \
    tlog restore vda -o disk.img --at gen:2/seq:1                as 'tlog points vda' names it")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// File to restore to
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    moment: MomentArguments,
    /// Replaces the file if it is there
    #[arg(long)]
    force: bool,
    /// Prints what was restored as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let (moment, options) = (arguments.moment.moment()?, arguments.moment.options());
    let bar = progress::of_bytes("restoring");
    let restoring = restore(
        &settings,
        &arguments.vdisk,
        &moment,
        &options,
        &arguments.output,
        arguments.force,
        |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            bar.set_message(moment::show(progress.position));
        },
    );
    let restored = pinned::while_reading(&settings, &arguments.vdisk, "tlog restore", restoring).await;
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
    moment: &WrittenMoment,
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
    let moment = moment.resolve(&reader, &keys).await?;
    let state = reader.disk_state(&keys, moment, options).await.map_err(moment_arguments::tell)?;
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
