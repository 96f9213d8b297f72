//! `tlog scrub`: puts back what stores have lost.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::Value;
use tlog_proto::VdiskId;
use tlog_store::lock_holder;

use super::progress;
use crate::scrub_report::ScrubReport;
use crate::settings::{Settings, SettingsArgs, StoreAddress};
use crate::storage::FlusherStorage;
use crate::stores::Stores;
use crate::{admin_client, keys, logging, service};

/// Reads every shard of a vdisk's log on every store, and puts back what is missing or damaged.
///
/// Where a running server holds the stores, the server does it, through its admin endpoint; else this command does it itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog scrub vda                         after a store was lost and replaced, or now and then\n  \
    tlog scrub vda --json                  for a program\n\n\
    Exit status: 0 every store holds every shard; 1 not so, or it could not be done; 64 wrong usage.\n\n\
    A scrub opens the log for writing, which takes most of its stores: with 4+2 and write-quorum 5, five that it knows. With \
    two lost for good nothing can be put back; the log can still be restored, and recorded into a new vdisk.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let report = match server(&settings)? {
        Some(address) => through_server(&address, &arguments.vdisk).await?,
        None => directly(&settings, &arguments.vdisk).await?,
    };
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => writeln!(out, "{report}")?,
    }
    out.flush()?;
    Ok(if report.whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The admin endpoint of the server that holds the stores; none where nobody does.
fn server(settings: &Settings) -> anyhow::Result<Option<String>> {
    for store in settings.stores() {
        let StoreAddress::Directory(directory) = &store else { continue };
        let holder = match lock_holder(directory) {
            Ok(Some(holder)) => holder,
            Ok(None) => continue,
            Err(error) => {
                eprintln!("tlog: warning: {store}: who holds it cannot be told: {error}");
                continue;
            }
        };
        return match service::admin_in_note(&holder.note) {
            Some(address) => Ok(Some(address.to_owned())),
            None => bail!(
                "{store} is in use by process {} ({}), which has no admin endpoint; start the server with --admin-listen \
                 127.0.0.1:11212 to scrub while it runs, or stop it first",
                holder.pid,
                if holder.note.is_empty() { "it says no more" } else { &holder.note },
            ),
        };
    }
    Ok(None)
}

async fn through_server(address: &str, vdisk: &VdiskId) -> anyhow::Result<ScrubReport> {
    eprintln!("the server at {address} scrubs vdisk {vdisk} ...");
    let answer = admin_client::ask(address, Method::POST, &format!("/vdisks/{vdisk}/scrub")).await;
    let body = match answer {
        Err(admin_client::AdminError::Refused { body, .. }) => {
            let told: Value = serde_json::from_str(&body).unwrap_or_default();
            let error = told.get("error").and_then(Value::as_str).unwrap_or(&body);
            bail!("the server at {address} could not scrub vdisk {vdisk}: {error}");
        }
        other => other?,
    };
    serde_json::from_str(&body)
        .with_context(|| format!("the server at {address} answered something else than a report"))
}

async fn directly(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<ScrubReport> {
    // Opening for writing makes directories, so first make sure that this is the right place.
    let readers = Stores::for_reading(settings)?;
    let mut known = false;
    for store in &readers.all {
        known |= store.status(vdisk).await.is_ok_and(|state| state.identity.is_some());
    }
    if !known {
        let places: Vec<_> = readers.all.iter().map(|store| store.address()).collect();
        bail!(
            "no store has a log of vdisk {vdisk} (looked in {}); set data-dir or storage",
            places.join(", ")
        );
    }
    let keys = keys::load(settings)?;
    let stores = Stores::for_writing(settings, "tlog scrub").await?;
    let storage = FlusherStorage::new(settings, stores.all, Arc::new(keys.keyring))?;
    let bar = progress::counting("scrubbing");
    let scrubbed = storage
        .scrub(vdisk, settings.repair_rate, |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })
        .await;
    bar.finish_and_clear();
    Ok(ScrubReport::new(vdisk, &scrubbed?))
}
