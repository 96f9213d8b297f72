//! `tlog scrub`: puts back what stores have lost.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use hyper::Method;
use hyper::body::Bytes;
use tlog_proto::VdiskId;

use super::progress;
use crate::running::{self, OfflineFlag};
use crate::scrub_report::ScrubReport;
use crate::settings::{Settings, SettingsArgs, Size};
use crate::storage::FlusherStorage;
use crate::stores::Stores;
use crate::{keys, logging};

/// Reads every shard of a vdisk's log on every store, and puts back what is missing or damaged.
///
/// Where a running server holds the stores, the server does it, through its admin endpoint; else this command does it itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog scrub vda                         after a store was lost and replaced, or now and then\n  \
    tlog scrub vda --rate 16MiB            gently\n  \
    tlog scrub vda --json                  for a program\n\n\
    Exit status: 0 every store holds every shard; 1 not so, or it could not be done; 64 wrong usage.\n\n\
    A scrub opens the log for writing, which takes most of its stores: with 4+2 and write-quorum 5, five that it knows. With \
    two lost for good nothing can be put back; the log can still be restored, and recorded into a new vdisk.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Bytes per second to read at most, such as 16MiB; in place of repair-rate
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    offline: OfflineFlag,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let report: ScrubReport = match running::server(&settings, arguments.offline).await? {
        Some(address) => {
            let vdisk = &arguments.vdisk;
            eprintln!("the server at {address} scrubs vdisk {vdisk} ...");
            let rate = arguments.rate.map(|rate| format!("?rate={}", rate.0)).unwrap_or_default();
            let path = format!("/vdisks/{vdisk}/scrub{rate}");
            running::ask_server(&address, Method::POST, &path, Bytes::new(), &format!("scrub vdisk {vdisk}"))
                .await?
        }
        None => {
            let rate = arguments.rate.map_or(settings.repair_rate, |rate| rate.0);
            directly(&settings, &arguments.vdisk, rate).await?
        }
    };
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => writeln!(out, "{report}")?,
    }
    out.flush()?;
    Ok(if report.whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn directly(settings: &Settings, vdisk: &VdiskId, rate: u64) -> anyhow::Result<ScrubReport> {
    // Opening for writing makes directories, so first make sure that this is the right place.
    let readers = Stores::for_reading(settings).await?;
    let mut known = false;
    for store in &readers.all {
        known |= store.status(vdisk).await.is_ok_and(|state| state.identity.is_some());
    }
    if !known {
        let places: Vec<_> = readers.all.iter().map(|store| store.address()).collect();
        bail!(
            "no store has a log of vdisk {vdisk} (looked in {}); set data-dir or storage",
            places.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ")
        );
    }
    let keys = keys::load(settings)?;
    let stores = Stores::for_writing(settings, "tlog scrub").await?;
    let storage = FlusherStorage::new(settings, stores.all, Some(Arc::new(keys.keyring)))?;
    let bar = progress::counting("scrubbing");
    let scrubbed = storage
        .scrub(vdisk, rate, |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })
        .await;
    bar.finish_and_clear();
    Ok(ScrubReport::new(vdisk, &scrubbed?))
}
