//! `tlog prune`: removes history that no kept moment needs.

use std::process::ExitCode;

use tlog_proto::VdiskId;

use super::retention::{carry_out, print};
use crate::retention::keep::Keep;
use crate::retention::{How, Report, Request};
use crate::running::OfflineFlag;
use crate::settings::{SettingsArgs, Size, TimeSpan};

/// Removes history of a vdisk that no moment needs which is to be kept.
///
/// Every moment of the last --keep-within stays, and besides the last moment of so many hours and days (by UTC) and those that have a
/// mark. What is kept in place of history is stored first, read back and compared: a checkpoint at the oldest moment of the
/// window, and images of single moments before it. A slave and running restores keep what they need.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog prune vda --keep-within 72h --dry-run                  what would be removed\n  \
    tlog prune vda --keep-within 72h\n  \
    tlog prune vda --keep-within 72h --keep-hourly 168 --keep-daily 90 --keep-marks\n\n\
    Exit status: 0 done, or there was nothing to do; 1 it could not be done. By itself a server does this with the setting \
    keep-within.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Keeps every moment so far back, such as 72h or 30d
    #[arg(long, value_name = "DURATION")]
    keep_within: TimeSpan,
    /// Keeps the last moment of each of so many hours before
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_hourly: u32,
    /// Keeps the last moment of each of so many days before
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_daily: u32,
    /// Keeps every moment that has a mark
    #[arg(long)]
    keep_marks: bool,
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
    let Arguments { vdisk, keep_within, keep_hourly, keep_daily, keep_marks, rate, json, .. } = arguments;
    let Arguments { dry_run, degraded, ignore_slave, anyway, offline, settings, .. } = arguments;
    let keep = Keep { within: keep_within.0, hourly: keep_hourly, daily: keep_daily, marks: keep_marks };
    let how = How { dry_run, degraded, ignore_slave, anyway };
    let request = Request::Prune { keep, how, rate: rate.map(|rate| rate.0) };
    let doing = format!("prune vdisk {vdisk}");
    let report = carry_out(&settings, &vdisk, offline, request, &doing).await?;
    print(&report, json)?;
    // What was asked for and is held back by somebody is not done.
    let refused = matches!(&report, Report::Prune(report) if report.why_not.is_some() && report.first_before < report.first);
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
