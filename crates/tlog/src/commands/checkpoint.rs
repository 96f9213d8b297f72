//! `tlog checkpoint`: stores an image of a moment in the log, so that restores start there.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;
use tlog_proto::VdiskId;

use super::moment_arguments::MomentArguments;
use super::retention::{carry_out, print};
use crate::retention::Request;
use crate::running::OfflineFlag;
use crate::settings::{Settings, SettingsArgs, Size, show_size};
use crate::{logging, moment, reading};

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

async fn list(vdisk: &VdiskId, json: bool, settings: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(vdisk).await?;
    let reader = reading::open(&settings, vdisk).await?;
    let checkpoints = reader.checkpoints(&reading::keys_of(&settings, vdisk)?).await?;
    let first = reader.extent().first;
    let mut out = io::stdout().lock();
    if json {
        let shown: Vec<_> = checkpoints
            .iter()
            .map(|checkpoint| {
                let record = &checkpoint.record;
                json!({
                    "checkpoint": checkpoint.number.0,
                    "moment": moment::show(record.place.timestamp),
                    "moment_ns": record.place.timestamp.0,
                    "generation": record.place.position.generation.0,
                    "sequence": record.place.position.sequence.0,
                    "aggregation": record.place.aggregation.0,
                    "blocks": record.blocks,
                    "bytes": record.bytes,
                    "parts": record.parts.len(),
                    "base": record.base.map(|base| base.0),
                    "later_moments": checkpoint.is_base(first),
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::Value::from(shown))?;
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
