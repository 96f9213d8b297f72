//! `tlog delete`: removes a vdisk's log.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;
use tlog_config::StoreAddress;
use tlog_proto::VdiskId;
use tlog_store::lock_holder;

use crate::proofs::Records;
use crate::settings::{Settings, SettingsArgs};
use crate::stores::Stores;
use crate::{logging, reading};

/// Removes the log of a vdisk, all of its history, from every store. It cannot be brought back.
///
/// Every store must answer: one that does not would come back with its shards later, and be taken for damage. A server that has
/// the vdisk open is fenced first; a client that goes on sending begins a new log. Directory stores are open in one process
/// alone: stop the server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog delete vda                        asks for the id to be typed\n  \
    tlog delete vda --yes                  for a program")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Does not ask
    #[arg(long)]
    yes: bool,
    /// Prints what was removed as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let vdisk = &arguments.vdisk;
    let settings = settings.of_vdisk(vdisk).await?;
    refuse_where_locked(&settings)?;
    // Opening for writing makes directories, so first make sure that this is the right place.
    let readers = reading::store_set(&settings, vdisk).await?;
    let survey = readers.survey().await;
    let chains = readers.may_have_chain() && readers.chain_survey().await.exists();
    if survey.views.iter().flat_map(|view| &view.answer).all(|state| state.identity.is_none()) && !chains {
        bail!("no store that answers has a log of vdisk {vdisk}; 'tlog vdisks' lists what there is");
    }
    drop(readers);
    if !arguments.yes && !confirmed(vdisk, survey.committed().0)? {
        bail!("not deleted: that takes the vdisk's id, typed when asked for, or --yes");
    }
    let stores = Stores::for_writing(&settings, "tlog delete").await?;
    let deleted = crate::deleting::delete(&settings, stores.all, vdisk).await?;
    if let Err(error) = Records::of(&settings.data_dir).remove(vdisk) {
        eprintln!(
            "tlog: warning: what was proven of restoring it stays in {}: {error}",
            settings.data_dir.display()
        );
    }
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(
            out,
            "{}",
            json!({ "vdisk": vdisk.as_str(), "aggregations": survey.committed().0, "stores": deleted })
        )?,
        false => writeln!(out, "vdisk {vdisk} is deleted from {deleted} stores")?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn confirmed(vdisk: &VdiskId, last: u64) -> anyhow::Result<bool> {
    eprint!(
        "This removes all history of vdisk {vdisk} (up to aggregation {last}), its marks and checkpoints too, for good.\nType its id to go on: "
    );
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("nothing could be read")?;
    Ok(line.trim() == vdisk.as_str())
}

fn refuse_where_locked(settings: &Settings) -> anyhow::Result<()> {
    for store in settings.stores() {
        if let StoreAddress::Directory(directory) = &store
            && let Ok(Some(holder)) = lock_holder(directory)
        {
            bail!("{store} is in use by process {} ({}); stop it first", holder.pid, holder.note);
        }
    }
    Ok(())
}
