//! `tlog slave`: the storage cluster that a disk can switch to.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use tlog_player::LogReader;
use tlog_player::slave::{
    SlaveCluster, SlaveLag, SlaveRestoreError, SlaveRestoreOptions, SlaveState, SlaveSurvey, Standing,
    lag_behind, resync_slave,
};
use tlog_proto::VdiskId;
use tlog_store::slave::{SlaveMark, SlavePoint, SlavePosition};

use super::progress;
use super::replay::{in_words, summary_json, tell_restore};
use crate::settings::{Settings, SettingsArgs};
use crate::slaves::{show_lag, show_position, show_restoring, slave_cluster};
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
    Exit status: 0 it is a disk at some moment of the log, or stopped; 1 it is not, or cannot be asked.")]
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
/// Each block is written once, so it takes as long as the disk is large, not as its history is long. What the slave had is removed. If it
/// is interrupted the same command goes on, and until it is done nobody takes the slave for a disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tlog slave resync vda")]
struct ResyncArguments {
    /// Whose slave
    vdisk: VdiskId,
    /// Goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long)]
    accept_uncertain_end: bool,
    /// Prints what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Status(arguments) => status(arguments).await,
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
struct Found {
    settings: Settings,
    cluster: String,
    slave: SlaveCluster,
}

async fn find(arguments: &SettingsArgs, vdisk: &VdiskId) -> anyhow::Result<Found> {
    let settings = Settings::load(arguments)?;
    logging::init_for_tool(&settings.logging);
    let described = settings.described(vdisk).await?;
    let Some((config, _)) = &described.vdisk else {
        bail!("which slave a vdisk has is in the documents of vdisks and clusters: set config-source");
    };
    let cluster = config.tlog.as_ref().and_then(|log| log.slave.as_ref());
    let cluster = cluster.with_context(|| {
        format!("vdisk {vdisk} has no slave in the configuration: it needs tlog.slaveStorageClusterID")
    })?;
    let opener = StoreOpener::new(&described.settings, None);
    let slave = slave_cluster(opener.links(), vdisk, cluster)?;
    Ok(Found { cluster: cluster.id.clone(), slave, settings: described.settings })
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
    let Found { settings, cluster, slave } = find(&arguments.settings, &arguments.vdisk).await?;
    let vdisk = &arguments.vdisk;
    let reader = reading::open(&settings, vdisk).await?;
    let keys = reading::keys_of(&settings, vdisk)?;
    let read = tlog_player::ReadOptions {
        accept_uncertain_end: arguments.accept_uncertain_end,
        ..tlog_player::ReadOptions::default()
    };
    let bar = progress::of_bytes("filling the slave");
    let options = SlaveRestoreOptions::default();
    let done = resync_slave(&reader, &keys, &slave, &read, &options, |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(moment::show(progress.position));
    });
    let done = done.await;
    bar.finish_and_clear();
    let done = done.map_err(|error| match error {
        error @ SlaveRestoreError::Stopped { .. } => anyhow::anyhow!("{error} ('tlog slave start {vdisk}')"),
        error => tell_restore(error),
    })?;
    match arguments.json {
        true => println!("{}", summary_json(vdisk, &cluster, &done)),
        false => println!("vdisk {vdisk}: the slave on {cluster} {}", in_words(&done)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(arguments: StatusArguments) -> anyhow::Result<ExitCode> {
    let Found { settings, cluster, slave } = find(&arguments.settings, &arguments.vdisk).await?;
    // First the slave: what is applied meanwhile does not make it look as if it were ahead.
    let survey = slave.survey().await;
    let state = slave.state().await;
    let log = reading::open(&settings, &arguments.vdisk).await;
    let standing = state.as_ref().ok().map(SlaveState::standing);
    let usable = match (&standing, &state) {
        (
            Some(Standing::Stopped | Standing::Filled { .. } | Standing::Blank | Standing::Legacy { .. }),
            _,
        ) => true,
        (Some(Standing::Restoring(_) | Standing::NeedsResync(_)) | None, _) => false,
    };
    let lag = match (&state, &log) {
        (Ok(state), Ok(log)) => {
            let nothing = SlavePosition { point: SlavePoint::START, last: None };
            Some(lag_behind(log, &state.position().unwrap_or(nothing)).await?)
        }
        _ => None,
    };
    let (state, log) = (state.as_ref().ok(), log.as_ref());
    let shown = Shown { cluster: &cluster, survey: &survey, state, standing, lag, log };
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", shown.as_json(&arguments.vdisk))?,
        false => write!(out, "{}", shown.in_words(&arguments.vdisk))?,
    }
    out.flush()?;
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was found of a slave and its log.
struct Shown<'a> {
    cluster: &'a str,
    survey: &'a SlaveSurvey,
    state: Option<&'a SlaveState>,
    standing: Option<Standing>,
    /// None where slave or log cannot be asked.
    lag: Option<SlaveLag>,
    log: Result<&'a LogReader, &'a anyhow::Error>,
}

impl Shown<'_> {
    fn silent(&self) -> Vec<String> {
        let SlaveSurvey { record: (_, record), parts } = self.survey;
        let parts = parts.iter().filter_map(|(_, part)| part.as_ref().err());
        record.as_ref().err().into_iter().chain(parts).map(ToString::to_string).collect()
    }

    fn as_json(&self, vdisk: &VdiskId) -> Value {
        let (kind, because) = match &self.standing {
            None => ("away", Some(self.silent().join("; "))),
            Some(Standing::Stopped) => ("stopped", None),
            Some(Standing::Restoring(_)) => ("restoring", None),
            Some(Standing::Blank) => ("blank", None),
            Some(Standing::Legacy { .. }) => ("legacy", None),
            Some(Standing::Filled { .. }) => ("filled", None),
            Some(Standing::NeedsResync(why)) => ("needs_resync", Some(why.to_string())),
        };
        json!({
            "vdisk": vdisk.as_str(),
            "cluster": self.cluster,
            "state": kind,
            "because": because,
            "restoring": match &self.standing {
                Some(Standing::Restoring(restoring)) => Some(show_restoring(restoring)),
                _ => None,
            },
            "position": self.state.and_then(|state| state.position()).as_ref().map(show_position),
            "blocks": self.state.map(SlaveState::blocks),
            "lag": self.lag.as_ref().map(show_lag),
            "log_last_aggregation": self.log.ok().map(|log| log.extent().last.0),
            "stores": self.survey.parts.iter().map(|(address, part)| json!({
                "address": address,
                "blocks": part.as_ref().ok().map(|part| part.blocks),
                "error": part.as_ref().err().map(ToString::to_string),
            })).collect::<Vec<_>>(),
        })
    }

    fn in_words(&self, vdisk: &VdiskId) -> String {
        let mut lines = format!("vdisk {vdisk}, slave on storage cluster {}\n", self.cluster);
        let mut say = |what: &str, words: String| lines.push_str(&format!("  {what:<10} {words}\n"));
        say(
            "state",
            match &self.standing {
                None => format!("not known, stores do not answer: {}", self.silent().join("; ")),
                Some(Standing::Stopped) => {
                    "stopped: it is somebody's primary, nothing is applied to it".to_owned()
                }
                Some(Standing::Restoring(restoring)) => format!(
                    "half restored ({} of {} aggregations): no disk until the restore is complete",
                    restoring.aggregations.1, restoring.aggregations.0
                ),
                Some(Standing::Blank) => "empty: nothing was applied to it yet".to_owned(),
                Some(Standing::Legacy { sequence, .. }) => {
                    format!(
                        "filled by a server of 1.1.0-alpha up to sequence {sequence}; a syncer looks whether it can go on from there"
                    )
                }
                Some(Standing::Filled { .. }) => "the disk at one moment of its log".to_owned(),
                Some(Standing::NeedsResync(why)) => format!("needs a resync: {why}"),
            },
        );
        if let Some(position) = self.state.and_then(|state| state.position()) {
            let last = position.last.map(|last| {
                format!(", sequence {} of {}", last.position.sequence, moment::show(last.timestamp))
            });
            say("holds", format!("aggregation {}{}", position.point.aggregation, last.unwrap_or_default()));
        }
        if let Some(state) = self.state {
            say("blocks", state.blocks().to_string());
        }
        match (self.lag, self.log) {
            (Some(SlaveLag { aggregations: 0, .. }), _) => say("behind", "nothing".to_owned()),
            (Some(SlaveLag { aggregations, blocks, since }), _) => {
                let blocks = blocks.map(|blocks| format!(", {blocks} writes")).unwrap_or_default();
                let since = since.map(|since| format!(", since {}", moment::show(since))).unwrap_or_default();
                say("behind", format!("{aggregations} aggregations{blocks}{since}"))
            }
            (None, Err(error)) => say("behind", format!("not known: {error:#}")),
            (None, Ok(_)) => say("behind", "not known".to_owned()),
        }
        lines
    }
}
