//! `tlog restore`: a disk as it was.

mod against;
mod report;
mod stopping;

use std::io::{self, IsTerminal};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use tlog_codec::VdiskKeys;
use tlog_player::{
    DiskState, FileOptions, LogReader, Moment, MomentReached, ReadOptions, RestoreFileError, RestoreOptions,
    RestoreProgress, RestoreSummary, ResumableFile, ResumeError, ResumeOptions, Unfinished,
    compare_with_image, restore_in_order, restore_to_device, restore_to_file,
};
use tlog_proto::VdiskId;
use tokio_util::sync::CancellationToken;

use super::moment_arguments::{self, MomentArguments};
use super::progress;
use crate::settings::{Settings, SettingsArgs, Size, show_size};
use crate::{logging, moment, pinned, reading};

/// Restores a disk as it was at any moment of its history: to a sparse file, to a block device, or to standard output.
///
/// Without a moment: as it is now. Works while a server runs, and with up to parity-shards stores lost.
///
/// A file appears under its name only when it is complete. A file that is there is not replaced without --force, and then stays as it is
/// until the new one is complete. What ends a restore to a file - Ctrl-C, an error, the loss of power - leaves what is done beside it: the
/// same command goes on with that. If no moment was named it goes on with the one that was the newest when it began; --fresh begins anew.
///
/// A block device is written over from its beginning to its end, which takes --force, and is refused while it is in use. Standard output gets
/// the disk from its beginning to its end: what does not fit --memory is read more than once.
///
/// With --verify-against nothing is restored or written: it compares an image with the disk at the moment, by hashes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog restore vda -o disk.img                                 as it is now\n  \
    tlog restore vda -o disk.img --at '5m ago'\n  \
    tlog restore vda -o disk.img --at 2024-03-01T12:30:00+01:00\n  \
    tlog restore vda -o disk.img --sequence 1204                 after that write\n  \
    tlog restore vda -o disk.img --aggregation 17 --force        see 'tlog history vda'\n  \
    tlog restore vda -o /dev/vg0/restored --force --check        everything on the device is replaced\n  \
    tlog restore vda -o - --at '1h ago' | ssh host 'dd of=disk.img conv=sparse'\n  \
    tlog restore vda --verify-against disk.img --sequence 1204   is the image the disk of then?\n\n\
    Exit status: 0 restored; 1 not restored, or interrupted; 64 wrong usage. With --verify-against: 0 equal; 1 it differs; 3 it could \
    not be told.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// File or block device to restore to; '-' is standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "verify_against")]
    output: Option<PathBuf>,
    /// Compares this image or block device with the disk, instead of restoring it
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["output", "force", "fresh", "check", "sync_every", "ignore_free_space"])]
    verify_against: Option<PathBuf>,
    #[command(flatten)]
    moment: MomentArguments,
    /// Replaces the file if it is there, or what is on the block device
    #[arg(long)]
    force: bool,
    /// Does not go on with a restore to this file that was interrupted, but begins anew
    #[arg(long)]
    fresh: bool,
    /// Reads everything back at the end and compares it with the hashes in the log
    #[arg(long)]
    check: bool,
    /// Memory for what is being read, about
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    memory: Size,
    /// After so many bytes, or a second, what a file has is made durable; that much is done again after an interruption
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    sync_every: Size,
    /// Begins also where the file system has too little space for the content: one that compresses may have enough
    #[arg(long)]
    ignore_free_space: bool,
    /// Prints what was restored, or found, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Where a disk is restored to.
enum Target<'a> {
    File(&'a Path),
    Device(&'a Path),
    Output,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(image) = &arguments.verify_against {
        return Ok(against::run(&arguments, image).await);
    }
    let output = arguments.output.as_deref().context("name what to restore to (-o)")?;
    let target = target(output, &arguments)?;
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let bar = progress::of_bytes("restoring");
    let restoring = async {
        match target {
            Target::File(path) => to_file(&arguments, &settings, path, &bar).await,
            Target::Device(path) => to_device(&arguments, &settings, path, &bar).await,
            Target::Output => to_output(&arguments, &settings, &bar).await,
        }
    };
    let restored = pinned::while_reading(&settings, &arguments.vdisk, "tlog restore", restoring).await;
    bar.finish_and_clear();
    report::tell(&arguments, output, &restored?)?;
    Ok(ExitCode::SUCCESS)
}

/// What is meant by the name, and whether it may be written to.
fn target<'a>(output: &'a Path, arguments: &Arguments) -> anyhow::Result<Target<'a>> {
    if output.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            bail!("standard output is a terminal, which does not show disks; redirect it, or name a file");
        }
        if arguments.check || arguments.fresh {
            bail!(
                "--check and --fresh are about what is there already; standard output is not read back or gone on with"
            );
        }
        return Ok(Target::Output);
    }
    let is_device = std::fs::metadata(output).is_ok_and(|found| found.file_type().is_block_device());
    if !is_device {
        return Ok(Target::File(output));
    }
    if !arguments.force {
        bail!(
            "{} is a block device, and everything on it would be replaced; say so with --force",
            output.display()
        );
    }
    Ok(Target::Device(output))
}

/// What was restored.
pub(crate) struct Restored {
    pub(crate) reached: MomentReached,
    pub(crate) block_size: u32,
    pub(crate) summary: RestoreSummary,
    pub(crate) took: Duration,
}

/// A disk at a moment, and what its data is read with.
struct Disk {
    reader: LogReader,
    keys: VdiskKeys,
    state: Arc<DiskState>,
    reached: MomentReached,
    began: Instant,
}

impl Disk {
    async fn find(
        settings: &Settings,
        vdisk: &VdiskId,
        moment: Moment,
        options: &ReadOptions,
    ) -> anyhow::Result<Self> {
        let began = Instant::now();
        let reader = reading::open(settings, vdisk).await?;
        let keys = reading::keys_of(settings, vdisk)?;
        let state = reader.disk_state(&keys, moment, options).await.map_err(moment_arguments::tell)?;
        let Some(reached) = state.reached().copied() else {
            bail!("vdisk {vdisk}: its log is empty, there is nothing to restore");
        };
        Ok(Self { reader, keys, state: Arc::new(state), reached, began })
    }

    async fn of(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Self> {
        let moment = arguments.moment.of_log(&arguments.settings, &arguments.vdisk).await?;
        let options = arguments.moment.options();
        Self::find(settings, &arguments.vdisk, moment, &options).await
    }

    fn restored(&self, summary: RestoreSummary) -> Restored {
        let (reached, block_size) = (self.reached, self.state.block_size());
        Restored { reached, block_size, summary, took: self.began.elapsed() }
    }
}

/// Restores to a file, from the beginning.
pub(crate) async fn restore(
    settings: &Settings,
    vdisk: &VdiskId,
    moment: Moment,
    options: &ReadOptions,
    output: &Path,
    overwrite: bool,
) -> anyhow::Result<Restored> {
    let disk = Disk::find(settings, vdisk, moment, options).await?;
    let options = FileOptions { overwrite, ..FileOptions::default() };
    let summary = restore_to_file(&disk.reader, &disk.keys, &disk.state, output, &options, |_| {}).await?;
    Ok(disk.restored(summary))
}

async fn to_file(
    arguments: &Arguments,
    settings: &Settings,
    path: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Restored> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir());
    if let Some(directory) = directory {
        bail!("there is no directory {} to restore to; make it, or name another output", directory.display());
    }
    let stop = stopping::on_signals(bar)?;
    let asked = arguments.moment.of_log(&arguments.settings, &arguments.vdisk).await?;
    let file = ResumableFile::lock(path, arguments.force, arguments.fresh).map_err(say_what_helps)?;
    let moment = file.moment(&arguments.vdisk, asked);
    let goes_on = file.unfinished();
    let disk = disk_or_stop(arguments, settings, moment, &stop).await;
    let disk = match (&goes_on, moment == asked) {
        (Some(_), false) => {
            disk.context("the restore that was begun cannot be gone on with; begin anew with --fresh")?
        }
        _ => disk?,
    };
    if let Some(begun) = goes_on.filter(|begun| begun.reached == disk.reached) {
        bar.suspend(|| eprintln!("tlog: {}", report::goes_on(path, &begun, moment != asked)));
    }
    let options = ResumeOptions {
        restore: restore_options(arguments),
        sync_bytes: arguments.sync_every.0,
        check: arguments.check,
        ignore_free_space: arguments.ignore_free_space,
    };
    let restoring =
        file.restore(&disk.reader, &disk.keys, &disk.state, asked, &options, stop.cancelled(), shown_on(bar));
    let summary = restoring.await.map_err(say_what_helps)?;
    Ok(disk.restored(summary))
}

/// So long nothing was written that could be gone on with.
async fn disk_or_stop(
    arguments: &Arguments,
    settings: &Settings,
    moment: Moment,
    stop: &CancellationToken,
) -> anyhow::Result<Disk> {
    let options = arguments.moment.options();
    tokio::select! {
        disk = Disk::find(settings, &arguments.vdisk, moment, &options) => disk,
        () = stop.cancelled() => bail!("interrupted before anything was restored"),
    }
}

async fn to_device(
    arguments: &Arguments,
    settings: &Settings,
    path: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Restored> {
    let disk = Disk::of(arguments, settings).await?;
    let Disk { reader, keys, state, .. } = &disk;
    let options = restore_options(arguments);
    let restoring = restore_to_device(reader, keys, state, path, &options, shown_on(bar));
    let summary = restoring.await?;
    if arguments.check {
        let found = compare_with_image(state, path, |_, _| {}).await?;
        if !found.is_equal() {
            bail!(
                "{} blocks that are read back from {} are not what was written; do not trust this device",
                found.different,
                path.display()
            );
        }
    }
    Ok(disk.restored(summary))
}

async fn to_output(
    arguments: &Arguments,
    settings: &Settings,
    bar: &ProgressBar,
) -> anyhow::Result<Restored> {
    let disk = Disk::of(arguments, settings).await?;
    let Disk { reader, keys, state, .. } = &disk;
    let out = io::BufWriter::with_capacity(1 << 20, io::stdout());
    let options = restore_options(arguments);
    let summary = restore_in_order(reader, keys, state, out, &options, shown_on(bar)).await?;
    Ok(disk.restored(summary))
}

fn restore_options(arguments: &Arguments) -> RestoreOptions {
    RestoreOptions { memory: arguments.memory.0, ..RestoreOptions::default() }
}

/// Shows how far it is: bytes, their rate, how long it will take, and where in history.
fn shown_on(bar: &ProgressBar) -> impl FnMut(&RestoreProgress) + Send {
    let mut first = true;
    move |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        if std::mem::take(&mut first) {
            // What was there already says nothing about the rate.
            bar.reset_eta();
        } else {
            bar.set_message(moment::show(progress.position));
        }
    }
}

/// With the options by which a person goes on.
fn say_what_helps(error: ResumeError) -> anyhow::Error {
    match error {
        ResumeError::File(RestoreFileError::Exists { path }) => {
            anyhow!("{} is there already; choose another name, or replace it with --force", path.display())
        }
        ResumeError::OtherRestore { path, begun } => anyhow!(
            "a restore to {} was begun and not finished, of {}; go on with it by {}, or begin anew with --fresh",
            path.display(),
            report::moment_of(&begun),
            asks_for(&begun),
        ),
        error @ ResumeError::OtherVersion { .. } => anyhow!("{error} (--fresh)"),
        ResumeError::NoSpace { directory, needed, free } => anyhow!(
            "the disk has {} of content, and there is room for {} in {}; make room, restore to another file system, or begin anyway \
             with --ignore-free-space",
            show_size(needed),
            show_size(free),
            if directory == Path::new("") { Path::new(".") } else { &directory }.display(),
        ),
        ResumeError::Interrupted { aggregations: 0, .. } => {
            anyhow!("interrupted before anything was done; nothing is left of it")
        }
        ResumeError::Interrupted { path, aggregations } => anyhow!(
            "interrupted; {aggregations} aggregations of {} are done, and the same command goes on from there",
            path.display()
        ),
        error => error.into(),
    }
}

/// The arguments that name the moment of a restore.
fn asks_for(begun: &Unfinished) -> String {
    if begun.newest {
        return format!("'tlog restore {}' without a moment", begun.vdisk);
    }
    match begun.moment() {
        Moment::Aggregation(number) => format!("'tlog restore {} --aggregation {number}'", begun.vdisk),
        _ => format!(
            "'tlog restore {} --sequence {} --generation {}'",
            begun.vdisk, begun.reached.position.sequence, begun.reached.position.generation
        ),
    }
}
