//! `tlog checkpoint`: stores an image of a moment in the log, so that restores start there.

use std::io::{self, Write};
use std::process::ExitCode;

use tlog_player::Checkpoint;
use tlog_proto::VdiskId;

use super::moment_arguments::MomentArguments;
use super::retention::{carry_out, open_to_list, print};
use crate::moment;
use crate::retention::{PlaceReport, Request};
use crate::running::OfflineFlag;
use crate::settings::{SettingsArgs, Size, show_size};

/// Stores an image of a moment in the log itself, so that restores of that moment and of later ones read no history before it.
///
/// It takes as many bytes as the disk has content, on all stores together times (data + parity) / data. Clients write meanwhile. When
/// it is stored it is read back and compared.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog checkpoint vda                    of now\n  \
    tlog checkpoint vda --at '3 days ago'\n  \
    tlog checkpoint vda --rate 16MiB       gently\n  \
    tlog checkpoint vda --list")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    #[command(flatten)]
    moment: MomentArguments,
    /// Lists the checkpoints that are there, newest first
    #[arg(long)]
    list: bool,
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
    let Arguments { vdisk, moment, list: listed, rate, json, offline, settings } = arguments;
    if listed {
        return list(&vdisk, json, &settings).await;
    }
    let at = moment.of_log(&settings, &vdisk).await?.into();
    let request = Request::Checkpoint { at, rate: rate.map(|rate| rate.0) };
    let doing = format!("store a checkpoint of vdisk {vdisk}");
    print(&carry_out(&settings, &vdisk, offline, request, &doing).await?, json)?;
    Ok(ExitCode::SUCCESS)
}

/// A checkpoint, for a program.
#[derive(serde::Serialize)]
struct ShownCheckpoint {
    checkpoint: u64,
    #[serde(flatten)]
    place: PlaceReport,
    blocks: u64,
    bytes: u64,
    parts: usize,
    base: Option<u64>,
    later_moments: bool,
}

async fn list(vdisk: &VdiskId, json: bool, settings: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let (reader, keys) = open_to_list(settings, vdisk).await?;
    let checkpoints = reader.checkpoints(&keys).await?;
    let first = reader.extent().first;
    let mut out = io::stdout().lock();
    if json {
        let shown = |checkpoint: &Checkpoint| {
            let record = &checkpoint.record;
            ShownCheckpoint {
                checkpoint: checkpoint.number.0,
                place: (&record.place).into(),
                blocks: record.blocks,
                bytes: record.bytes,
                parts: record.parts.len(),
                base: record.base.map(|base| base.0),
                later_moments: checkpoint.is_base(first),
            }
        };
        let shown: Vec<ShownCheckpoint> = checkpoints.iter().map(shown).collect();
        writeln!(out, "{}", serde_json::to_string(&shown)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if checkpoints.is_empty() {
        writeln!(out, "vdisk {vdisk} has no checkpoints; 'tlog checkpoint {vdisk}' makes one")?;
    }
    for checkpoint in checkpoints {
        let record = &checkpoint.record;
        let (time, position) = (moment::show(record.place.timestamp), record.place.position);
        let serves =
            if checkpoint.is_base(first) { "this moment and later ones" } else { "this moment alone" };
        writeln!(
            out,
            "{}: {time} (generation {}, sequence {}), {} in {} parts, for {serves}",
            checkpoint.number,
            position.generation,
            position.sequence,
            show_size(record.bytes),
            record.parts.len(),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
