//! `tlog bench restore`: a log read back.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::json;
use tlog_proto::VdiskId;

use super::load_arguments::{LoadArguments, RunArguments, SiteArguments};
use super::report::{Machine, Report, entries};
use crate::bench::data::Content;
use crate::bench::figures::Runs;
use crate::bench::reading_back;
use crate::bench::site::{Site, StoreKind};
use crate::bench::writing::{Measured, measure, verify};
use crate::commands::progress;
use crate::logging;
use crate::settings::{Settings, SettingsArgs};

/// Measures reading back: the whole history of a log, block by block, and the disk at its end, to nothing and to a file.
///
/// It starts stores and a server, writes a log and stops the server; what was read back is compared with what was written. With --vdisk it
/// reads one that is there, as the settings say where; nothing is written to its stores. GB/s of a replay are those of all blocks ever written,
/// of a restore those of the disk's content, from opening the log until the file is on disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench restore                     a log of what can be written in 3 s\n  \
    tlog bench restore --blocks 100000 --disk 64MiB --stores directory --runs 5\n  \
    tlog bench restore --vdisk vda --data-dir /srv/tlog --json\n\n\
    Exit status: 0 measured, and a log of its own is what was written; 1 not so; 64 wrong usage.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    site: SiteArguments,
    /// A vdisk whose log is there
    #[arg(long, value_name = "VDISK", conflicts_with = "stores")]
    vdisk: Option<VdiskId>,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let (runs, verified, stores) = match &arguments.vdisk {
        Some(vdisk) => {
            let settings = Settings::load(&arguments.settings)?;
            logging::init_for_tool(&settings.logging);
            let settings = settings.of_vdisk(vdisk).await?;
            let directory =
                tempfile::Builder::new().prefix("tlog-bench-").tempdir_in(arguments.site.scratch())?;
            (measure_runs(&arguments, &settings, vdisk, directory.path(), || None).await?, None, None)
        }
        None => {
            let (runs, verified) = own_log(&arguments).await?;
            (runs, Some(verified), Some(arguments.site.kind().name()))
        }
    };
    let what = match (&arguments.vdisk, stores) {
        (Some(vdisk), _) => format!("vdisk {vdisk}"),
        (None, stores) => format!("a log on {} stores", stores.unwrap_or_default()),
    };
    let about = entries([
        ("vdisk", json!(arguments.vdisk.as_ref().map(VdiskId::as_str))),
        ("stores", json!(stores)),
        ("verified_blocks", json!(verified)),
    ]);
    let ending = verified.map(|blocks| {
        format!("verified: {blocks} blocks in the log, each as it was written, and the restored file is the last of each")
    });
    let heading = format!("{what}, read back");
    Report { benchmark: "restore", heading, about, machine, runs, ending }.print(arguments.run.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a log and reads it back. Answers how many blocks were found as they were written.
async fn own_log(arguments: &Arguments) -> anyhow::Result<(Runs, u64)> {
    logging::init_for_tool(&Settings::from_flags(&arguments.settings)?.logging);
    if arguments.site.kind() == StoreKind::Memory {
        bail!("stores in memory are gone with their server: nothing could be read back; take other --stores");
    }
    let content: Arc<Content> = arguments.load.content()?;
    let vdisk = VdiskId::new("bench")?;
    let vdisks = arguments.load.vdisks(&vdisk)?;
    if vdisks.len() > 1 {
        bail!("one vdisk is read back: leave --vdisks out");
    }
    let site = Site::start(&arguments.site.options(&arguments.settings), &arguments.site.scratch()).await?;
    let server = site.start_server().await?;
    let flush_size = Some(site.settings().flush_size);
    let load = arguments.load.load(&server.address, site.settings(), vdisks, &content, flush_size)?;
    let Measured { written, .. } = measure(load, &server.watched(), || None).await?;
    server.stop().await?;
    let runs =
        measure_runs(arguments, site.settings(), &vdisk, site.directory(), || site.stores_cpu()).await?;
    let verified = verify(site.settings(), &written, &content, &[]).await?;
    let acknowledged = written.vdisks.first().context("nothing was written")?;
    reading_back::compare(&site.directory().join(RESTORED), acknowledged, &content)?;
    Ok((runs, verified))
}

/// What the disk is restored to, within a directory of the measurement's own.
const RESTORED: &str = "restored.img";

async fn measure_runs(
    arguments: &Arguments,
    settings: &Settings,
    vdisk: &VdiskId,
    directory: &Path,
    stores_cpu: impl Fn() -> Option<f64>,
) -> anyhow::Result<Runs> {
    let file = directory.join(RESTORED);
    let bar = progress::counting("reading");
    bar.set_length(u64::from(arguments.run.runs));
    let mut runs = Runs::default();
    for number in 0..arguments.run.runs {
        if number > 0 {
            std::fs::remove_file(&file)?;
        }
        runs.add(reading_back::measure(settings, vdisk, &file, &stores_cpu).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(runs)
}
