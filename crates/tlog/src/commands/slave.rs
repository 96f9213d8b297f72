//! `tlog slave`: the storage cluster that a disk can switch to.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use tlog_player::slave::{SlaveCluster, SlaveRestoreError, SlaveRestoreOptions, resync_slave};
use tlog_proto::VdiskId;
use tlog_store::slave::{LastWrite, SlaveMark};

use super::replay::{in_words, summary_json, tell_restore};
use super::{progress, slave_status};
use crate::settings::{Settings, SettingsArgs};
use crate::slaves::{InPlace, slave_cluster};
use crate::stores::StoreOpener;
use crate::{logging, moment, reading};

/// The slave of a vdisk: block storage that is kept up to date with its log, and that a disk can switch to.
///
/// Which cluster it is on is in the documents of vdisks and clusters (tlog.slaveStorageClusterID); a server with slave-sync keeps it
/// up to date. What these commands say is kept in the slave cluster itself, so they work with a server running or not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog slave status vda\n  \
    tlog slave stop vda                    somebody uses it as its disk from now on\n  \
    tlog slave resync vda                  fills it anew with the newest state of the disk")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(StatusArguments),
    Stop(StopArguments),
    Start(StartArguments),
    Resync(ResyncArguments),
}

/// Says what a slave holds, how far it is behind the log, and whether it can be switched to.
///
/// While a server writes, both move on between two looks: the lag is exact once nothing is written.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tlog slave status vda\n  tlog slave status vda --json\n\n\
    Exit status: 0 it is the disk at a moment of its log, or stopped; 1 it is not, or that cannot be told.")]
struct StatusArguments {
    /// Whose slave
    vdisk: VdiskId,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Stops syncing for good: the slave is somebody's primary from now on.
///
/// Whatever server syncs it is shut out at once, also across restarts. A client's WaitNbdSlaveSync does the same, once the slave holds
/// everything. Use this where the primary is lost and the slave is to be used as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tlog slave stop vda")]
struct StopArguments {
    /// Whose slave
    vdisk: VdiskId,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Takes a stop back: the slave is a slave again.
///
/// It may have been written to meanwhile, so it needs a resync, unless you know better and say --unchanged.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tlog slave start vda && tlog slave resync vda\n  tlog slave start vda --unchanged"
)]
struct StartArguments {
    /// Whose slave
    vdisk: VdiskId,
    /// Nobody has written to it since it was stopped
    #[arg(long)]
    unchanged: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Fills a slave anew with the newest state of its disk; a server that syncs it goes on from there.
///
/// Each block is written once, so it takes as long as the disk is large, not as its history is long. What the slave had is removed, so it
/// refuses where that may be the last copy of something: where a disk may use the slave, and where the log does not have what the slave
/// holds. If it is interrupted the same command goes on, and until it is done nobody takes the slave for a disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tlog slave resync vda\n  \
    tlog slave resync vda --nobody-uses-it   its metadata store was emptied; you have looked that no disk uses the slave\n  \
    tlog slave resync vda --discard          the log was begun anew; what only the slave holds is lost")]
struct ResyncArguments {
    /// Whose slave
    vdisk: VdiskId,
    /// You have looked: no disk has switched to the slave. Where the slave may have forgotten that
    #[arg(long)]
    nobody_uses_it: bool,
    /// Loses what only the slave holds, where the log does not have it
    #[arg(long)]
    discard: bool,
    /// Goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long)]
    accept_uncertain_end: bool,
    /// Takes what was written before the history that is kept as zeros
    #[arg(long)]
    accept_pruned_base: bool,
    /// Prints what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Status(StatusArguments { vdisk, json, settings }) => {
            slave_status::show(&find(&settings, &vdisk).await?, &vdisk, json).await
        }
        Command::Stop(StopArguments { vdisk, settings }) => {
            find(&settings, &vdisk).await?.slave.stop().await?;
            println!(
                "vdisk {vdisk}: the slave is stopped; nothing is applied to it until 'tlog slave start {vdisk}'"
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Start(arguments) => start(arguments).await,
        Command::Resync(arguments) => resync(arguments).await,
    }
}

/// A slave, and the settings with the stores of its log.
pub(super) struct Found {
    /// Why it is none, where the disk itself is or its log.
    in_place: Result<(), InPlace>,
    pub(super) settings: Settings,
    pub(super) cluster: String,
    pub(super) slave: SlaveCluster,
}

async fn find(arguments: &SettingsArgs, vdisk: &VdiskId) -> anyhow::Result<Found> {
    let settings = Settings::load(arguments)?;
    logging::init_for_tool(&settings.logging);
    let described = settings.described(vdisk).await?;
    let Some((config, configuration)) = &described.vdisk else {
        bail!("which slave a vdisk has is in the documents of vdisks and clusters: set config-source");
    };
    let cluster = config.tlog.as_ref().and_then(|log| log.slave.as_ref());
    let cluster = cluster.with_context(|| {
        format!("vdisk {vdisk} has no slave in the configuration: it needs tlog.slaveStorageClusterID")
    })?;
    let primary = config.nbd.as_ref().and_then(|nbd| {
        let primary = configuration.storage_cluster(&nbd.storage_cluster_id);
        primary.borrow().clone()
    });
    let log_stores = described.settings.stores().iter().map(ToString::to_string).collect::<Vec<_>>();
    let in_place = InPlace::check(cluster, primary.as_deref(), log_stores);
    let opener = StoreOpener::new(&described.settings, None);
    let slave = slave_cluster(opener.links(), vdisk, cluster)?;
    Ok(Found { in_place, cluster: cluster.id.clone(), slave, settings: described.settings })
}

async fn start(arguments: StartArguments) -> anyhow::Result<ExitCode> {
    let StartArguments { vdisk, unchanged, settings } = arguments;
    let Found { slave, .. } = find(&settings, &vdisk).await?;
    if *slave.state().await?.mark() != SlaveMark::Stopped {
        println!("vdisk {vdisk}: the slave was not stopped; nothing was done");
        return Ok(ExitCode::SUCCESS);
    }
    slave.start(unchanged).await?;
    match unchanged {
        true => println!("vdisk {vdisk}: a server with slave-sync goes on from where the slave was"),
        false => println!("vdisk {vdisk}: the slave has to be filled anew: 'tlog slave resync {vdisk}'"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn resync(arguments: ResyncArguments) -> anyhow::Result<ExitCode> {
    let Found { in_place, settings, cluster, slave } = find(&arguments.settings, &arguments.vdisk).await?;
    let vdisk = &arguments.vdisk;
    in_place.with_context(|| format!("vdisk {vdisk}: nothing was changed"))?;
    let reader = reading::open(&settings, vdisk).await?;
    let keys = reading::keys_of(&settings, vdisk)?;
    let read = tlog_player::ReadOptions {
        accept_uncertain_end: arguments.accept_uncertain_end,
        accept_pruned_base: arguments.accept_pruned_base,
        ..tlog_player::ReadOptions::default()
    };
    let bar = progress::of_bytes("filling the slave");
    let options = SlaveRestoreOptions {
        nobody_uses_it: arguments.nobody_uses_it,
        discard: arguments.discard,
        ..SlaveRestoreOptions::default()
    };
    let done = resync_slave(&reader, &keys, &slave, &read, &options, |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(moment::show(progress.position));
    });
    let done = done.await;
    bar.finish_and_clear();
    let done = done.map_err(|error| match error {
        error @ SlaveRestoreError::Stopped { .. } => anyhow!("{error} ('tlog slave start {vdisk}')"),
        error @ SlaveRestoreError::MayBeInUse { .. } => anyhow!("{error} (--nobody-uses-it)"),
        SlaveRestoreError::WouldDiscard { vdisk, reason, slave, log } => anyhow!(
            "vdisk {vdisk}: the log does not have what the slave holds: {reason}. The slave is up to {}, the log to {}; what only the slave \
             holds would be lost. Look first which of the two is the disk (--discard)",
            slave.map_or_else(|| "nobody knows where".to_owned(), show_write),
            log.map_or_else(|| "nothing".to_owned(), show_write),
        ),
        error => tell_restore(error),
    })?;
    match arguments.json {
        true => println!("{}", summary_json(vdisk, &cluster, &done)),
        false => println!("vdisk {vdisk}: the slave on {cluster} {}", in_words(&done)),
    }
    Ok(ExitCode::SUCCESS)
}

fn show_write(last: LastWrite) -> String {
    format!("sequence {} of {}", last.position.sequence, moment::show(last.timestamp))
}
