//! `tlog replay`: a disk as it was, into a storage cluster.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use tlog_config::{StorageCluster, StoreAddress, common_store};
use tlog_player::Moment;
use tlog_player::slave::{
    SlaveCluster, SlaveRestoreError, SlaveRestoreOptions, SlaveRestoreSummary, restore_to_slave,
};
use tlog_proto::VdiskId;

use super::moment_arguments::{self, MomentArguments};
use super::progress;
use crate::moment::WrittenMoment;
use crate::settings::{Settings, SettingsArgs, show_size};
use crate::slaves::{show_position, slave_cluster};
use crate::stores::StoreOpener;
use crate::{documents, logging, moment, pinned, reading};

/// Restores a disk as it was at any moment of its history into a storage cluster, block by block.
///
/// For when the cluster with the blocks of a disk is lost: another one, of as many Redis servers as you like, gets them from the log.
/// Block i is on server i mod (number of servers), in the hash nondedup:VDISK. Each block is written once. If it is interrupted the same
/// command goes on; until it is done the cluster says that it holds half a disk. A slave syncer can go on from what was replayed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog replay vda --to-cluster spare                              a cluster of the documents, as the disk is now\n  \
    tlog replay vda --to-cluster spare --at '5m ago'\n  \
    tlog replay vda --to 10.0.0.1:6379,10.0.0.2:6379 --sequence 1204\n  \
    tlog replay vda --to redis://:password@10.0.0.1:6379 --overwrite")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// To this storage cluster of the documents (config-source)
    #[arg(long, value_name = "ID", required_unless_present = "to", conflicts_with = "to")]
    to_cluster: Option<String>,
    /// To these Redis servers, in order
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',')]
    to: Vec<String>,
    /// With --to: where the position is kept [default: the first server]
    #[arg(long, value_name = "ADDR", requires = "to")]
    metadata: Option<String>,
    #[command(flatten)]
    moment: MomentArguments,
    /// Removes what the cluster holds of the vdisk
    #[arg(long)]
    overwrite: bool,
    /// Prints what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Arguments {
    async fn target(&self, settings: &Settings) -> anyhow::Result<StorageCluster> {
        let address = |text: &String| Ok::<_, anyhow::Error>(StoreAddress::parse(text)?);
        let Some(id) = &self.to_cluster else {
            let data = self.to.iter().map(address).collect::<Result<_, _>>()?;
            let metadata = self.metadata.as_ref().map(address).transpose()?;
            let id = "of these servers".to_owned();
            return Ok(StorageCluster { id, data, metadata, shards: Default::default() });
        };
        let Some(documents) = &settings.documents else {
            bail!(
                "--to-cluster names a storage cluster of the documents: set config-source, or name servers with --to"
            );
        };
        let configuration = documents::open(documents).await?;
        let cluster = configuration.storage_cluster(id).borrow().clone();
        let cluster =
            cluster.with_context(|| format!("there is no storage cluster {id} in {}", documents.source))?;
        Ok((*cluster).clone())
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let (vdisk, moment) = (&arguments.vdisk, arguments.moment.moment()?);
    let target = arguments.target(&settings).await?;
    let kept = kept_slave(&settings, vdisk, &target).await?;
    if kept && moment != WrittenMoment::from(Moment::Newest) {
        bail!(
            "vdisk {vdisk}: storage cluster {} is its slave: a server with slave-sync applies the whole log to it, and it would not stay \
             as it was at that moment. Name another cluster, or take tlog.slaveStorageClusterID out of the documents first",
            target.id
        );
    }
    let settings = settings.of_vdisk(vdisk).await?;
    let slave = slave_cluster(StoreOpener::new(&settings, None).links(), vdisk, &target)?;
    let replaying = replay(&arguments, &settings, &moment, &slave);
    let done = pinned::while_reading(&settings, vdisk, "tlog replay", replaying).await?;
    let target = arguments.to_cluster.clone().unwrap_or_else(|| slave.to_string());
    match arguments.json {
        true => println!("{}", summary_json(vdisk, &target, &done)),
        false => println!("vdisk {vdisk}: {target} {}", in_words(&done)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn replay(
    arguments: &Arguments,
    settings: &Settings,
    moment: &WrittenMoment,
    slave: &SlaveCluster,
) -> anyhow::Result<SlaveRestoreSummary> {
    let vdisk = &arguments.vdisk;
    let reader = reading::open(settings, vdisk).await?;
    let keys = reading::keys_of(settings, vdisk)?;
    let moment = moment.resolve(&reader, &keys).await?;
    let state = reader.disk_state(&keys, moment, &arguments.moment.options()).await;
    let state = state.map_err(moment_arguments::tell)?;
    if state.reached().is_none() {
        bail!("vdisk {vdisk}: its log is empty, there is nothing to replay");
    }
    let options = SlaveRestoreOptions { overwrite: arguments.overwrite, ..SlaveRestoreOptions::default() };
    let bar = progress::of_bytes("replaying");
    let done = restore_to_slave(&reader, &keys, &state, slave, &options, |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(moment::show(progress.position));
    });
    let done = done.await;
    bar.finish_and_clear();
    done.map_err(|error| match error {
        SlaveRestoreError::Occupied { .. } | SlaveRestoreError::OtherRestore { .. } => {
            anyhow!("{error} (--overwrite)")
        }
        error => tell_restore(error),
    })
}

/// Whether a cluster, or a store of it, is that of the vdisk's slave.
async fn kept_slave(settings: &Settings, vdisk: &VdiskId, target: &StorageCluster) -> anyhow::Result<bool> {
    let Some(documents) = &settings.documents else { return Ok(false) };
    let config = documents::open(documents).await?.vdisk(vdisk).borrow().clone();
    let slave = config.and_then(|config| config.tlog.as_ref()?.slave.clone());
    Ok(slave.is_some_and(|slave| slave.id == target.id || common_store(&slave, target).is_some()))
}

/// Why a cluster does not hold the disk, with moments as a person writes them.
pub(super) fn tell_restore(error: SlaveRestoreError) -> anyhow::Error {
    match error {
        SlaveRestoreError::DiskState(error) => moment_arguments::tell(error),
        error => error.into(),
    }
}

/// Behind the name of what holds it now.
pub(super) fn in_words(done: &SlaveRestoreSummary) -> String {
    let at = done.position.last.map(|last| {
        format!(" as it was at {} (sequence {})", moment::show(last.timestamp), last.position.sequence)
    });
    let now = match (done.resumed, done.aggregations) {
        (true, 0) => "it held it already".to_owned(),
        (true, _) => format!(
            "{} of them ({}) written now, where it had been interrupted",
            done.blocks,
            show_size(done.bytes)
        ),
        (false, _) => format!("{} written", show_size(done.bytes)),
    };
    format!("holds the disk{}: {} blocks, {now}", at.unwrap_or_default(), done.blocks_total)
}

pub(super) fn summary_json(vdisk: &VdiskId, cluster: &str, done: &SlaveRestoreSummary) -> Value {
    json!({
        "vdisk": vdisk.as_str(),
        "cluster": cluster,
        "position": show_position(&done.position),
        "resumed": done.resumed,
        "aggregations_read": done.aggregations,
        "blocks_written": done.blocks,
        "bytes_written": done.bytes,
        "blocks": done.blocks_total,
    })
}
