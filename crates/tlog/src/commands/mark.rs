//! `tlog mark`: gives a moment a name.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use tlog_codec::Mark;
use tlog_proto::VdiskId;

use super::moment_arguments::MomentArguments;
use super::retention::{carry_out, open_to_list, print};
use crate::moment;
use crate::retention::{PlaceReport, Request};
use crate::running::OfflineFlag;
use crate::settings::SettingsArgs;

/// Gives a moment of a disk a name, for going back to it: --at NAME then stands for it everywhere.
///
/// Without a moment: now, everything included that the server has received. The name stands in the log itself, as durable as any
/// write. A name that is there already moves to the new moment. Pruning keeps moments that have a mark, unless keep-marks is false.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog mark vda before-upgrade           now\n  \
    tlog mark vda monday --at 2024-03-04T00:00:00Z\n  \
    tlog mark vda                          lists the marks\n  \
    tlog mark vda monday --remove\n  \
    tlog restore vda -o disk.img --at before-upgrade")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// The name: letters, digits, '-', '_' and '.', beginning with a letter. Without it the marks are listed
    name: Option<String>,
    #[command(flatten)]
    moment: MomentArguments,
    /// Takes the name away
    #[arg(long, requires = "name")]
    remove: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: OfflineFlag,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { vdisk, name, moment, remove, json, offline, settings } = arguments;
    let Some(name) = name else {
        if moment.is_given() {
            bail!("a moment was named and no mark; say how the mark is to be called");
        }
        return list(&vdisk, json, &settings).await;
    };
    let request = match remove {
        true => Request::Unmark { name },
        false => Request::Mark { name, at: moment.of_log(&settings, &vdisk).await?.into() },
    };
    let report =
        carry_out(&settings, &vdisk, offline, request, &format!("mark a moment of vdisk {vdisk}")).await?;
    print(&report, json)?;
    Ok(ExitCode::SUCCESS)
}

/// A mark, for a program.
#[derive(serde::Serialize)]
struct ShownMark {
    name: String,
    #[serde(flatten)]
    place: PlaceReport,
}

async fn list(vdisk: &VdiskId, json: bool, settings: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let (reader, keys) = open_to_list(settings, vdisk).await?;
    let marks = reader.marks(&keys).await?;
    let mut out = io::stdout().lock();
    if json {
        let shown = |mark: &Mark| ShownMark { name: mark.name.to_string(), place: (&mark.place).into() };
        let marks: Vec<ShownMark> = marks.iter().map(shown).collect();
        writeln!(out, "{}", serde_json::to_string(&marks)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if marks.is_empty() {
        writeln!(out, "vdisk {vdisk} has no marks; 'tlog mark {vdisk} NAME' makes one")?;
    }
    for mark in marks {
        let place = &mark.place;
        let (time, position) = (moment::show(place.timestamp), place.position);
        writeln!(
            out,
            "{time}  generation {}, sequence {}  {}",
            position.generation, position.sequence, mark.name
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
