//! `tlog prune`: removes history that no kept moment needs.

use std::process::ExitCode;

use anyhow::bail;
use tlog_proto::VdiskId;

use super::retention::{carry_out, print};
use crate::retention::background::Retention;
use crate::retention::{How, Request};
use crate::running::OfflineFlag;
use crate::settings::{Settings, SettingsArgs, Size};

/// Removes history of a vdisk that no moment needs which is to be kept.
///
/// Every moment of the last --keep-within stays, and besides the last moment of so many hours and days (by UTC) and those that have a
/// mark. What is kept in place of history is stored first, read back and compared: a checkpoint at the oldest moment of the
/// window, and images of single moments before it. A slave and running restores keep what they need.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog prune vda --keep-within 72h --dry-run                  what would be removed\n  \
    tlog prune vda --keep-within 72h                            every moment of three days, and marks\n  \
    tlog prune vda --keep-within 72h --keep-hourly 168 --keep-daily 90\n  \
    tlog prune vda --keep-within 72h --keep-marks=false         a mark keeps nothing\n\n\
    What is kept is said by the settings keep-within, keep-hourly, keep-daily and keep-marks, here or in the file.\n\
    Exit status: 0 done, or there was nothing to do; 1 it could not be done. By itself a server does this with the setting \
    keep-within.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Only says what would be done
    #[arg(long)]
    dry_run: bool,
    /// Also where stores are away, so that what is kept survives fewer losses
    #[arg(long)]
    degraded: bool,
    /// Also what a slave needs, which must be filled anew then ('tlog slave resync')
    #[arg(long)]
    ignore_slave: bool,
    /// Also where more is written, as images of what is kept, than removed
    #[arg(long)]
    anyway: bool,
    /// Bytes per second to write at most, such as 16MiB; in place of repair-rate
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: OfflineFlag,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { vdisk, dry_run, degraded, ignore_slave, anyway, rate, json, offline, settings } =
        arguments;
    let Some(Retention { keep, .. }) = Settings::load(&settings)?.retention else {
        bail!("say how far back every moment is to be kept, such as --keep-within 72h, or set keep-within");
    };
    let how = How { dry_run, degraded, ignore_slave, anyway };
    let request = Request::Prune { keep, how, rate: rate.map(|rate| rate.0) };
    let doing = format!("prune vdisk {vdisk}");
    print(&carry_out(&settings, &vdisk, offline, request, &doing).await?, json)?;
    Ok(ExitCode::SUCCESS)
}
