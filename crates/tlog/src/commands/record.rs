//! `tlog record`: an image into the log.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use futures::{StreamExt, stream};
use serde_json::json;
use tlog_proto::VdiskId;

use super::progress;
use crate::logging;
use crate::recording::{DEFAULT_BLOCK_SIZE, Recorded, Recording};
use crate::settings::{ListenAddress, Settings, SettingsArgs, TimeSpan, show_size};

/// Logs what changed in a disk image since what the log holds, and waits until it is durable.
///
/// The first time that is everything but zeros. Blocks that became zero are logged as deletions. A second run without a change
/// sends nothing. Nobody should write to the image meanwhile: record a snapshot of a disk that is in use.
///
/// Needs a running server, and the same settings as the server has: what the log holds is read from the stores.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog record vda disk.img               into the log 'vda' of the server on this machine\n  \
    tlog record vda disk.img --block-size 16384\n  \
    tlog record vda /dev/vg0/snapshot --server tlog-1:11211,tlog-2:11211 --json")]
pub(crate) struct Arguments {
    /// Into the log of which vdisk; a new name begins a new log
    vdisk: VdiskId,
    /// Disk image or block device
    image: PathBuf,
    /// Bytes of a block: a power of two [default: that of the log; for a new one that of the vdisk's document, or 4096]
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// Where the server is, or several of the same log, of which the first that works is taken [default: those that the documents name for
    /// the vdisk, or where the settings say that it listens]
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',')]
    server: Vec<ListenAddress>,
    /// How long to go on trying, once the recording has begun, when no server works any more
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    give_up_after: TimeSpan,
    /// Prints what was recorded as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let described = settings.described(&arguments.vdisk).await?;
    let settings = &described.settings;
    let (servers, lists) = match (&arguments.server[..], described.servers()) {
        ([], Some((servers, lists))) => (servers.into(), lists.left_stream()),
        ([], None) => (settings.listen.to_connect().to_string().into(), stream::empty().right_stream()),
        (servers, _) => (servers.into(), stream::empty().right_stream()),
    };
    let documented = described.vdisk.as_ref().map(|(config, _)| config.block_size);
    let recording = Recording {
        vdisk: arguments.vdisk,
        image: arguments.image,
        block_size: arguments.block_size,
        new_block_size: documented.unwrap_or(DEFAULT_BLOCK_SIZE),
        servers,
        give_up_after: arguments.give_up_after.0,
    };
    let bar = progress::of_bytes("recording");
    let (progress, beside) = (bar.clone(), bar.clone());
    let recorded = recording
        .run(
            settings,
            lists,
            move |done, total| {
                progress.set_length(total);
                progress.set_position(done);
            },
            move |words| beside.suspend(|| eprintln!("tlog: {words}")),
        )
        .await;
    bar.finish_and_clear();
    let recorded = recorded?;
    let mut out = io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", as_json(&recording.vdisk, &recorded))?,
        false => writeln!(out, "vdisk {}: {}", recording.vdisk, in_words(&recorded))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(vdisk: &VdiskId, recorded: &Recorded) -> serde_json::Value {
    json!({
        "vdisk": vdisk.as_str(),
        "image_bytes": recorded.image_bytes,
        "block_size": recorded.block_size,
        "blocks": recorded.set + recorded.deleted,
        "set": recorded.set,
        "deleted": recorded.deleted,
        "bytes": recorded.bytes,
        "seconds": recorded.took.as_secs_f64(),
        "last_sequence": recorded.last_sequence.map(|sequence| sequence.0),
    })
}

/// What was recorded, for a person.
pub(crate) fn in_words(recorded: &Recorded) -> String {
    let Recorded { set, deleted, bytes, took, .. } = recorded;
    let seconds = took.as_secs_f64();
    if set + deleted == 0 {
        return format!("nothing changed, nothing sent ({seconds:.2} s)");
    }
    let deletions = match deleted {
        0 => String::new(),
        deleted => format!(" and {deleted} deletions"),
    };
    format!("{set} blocks{deletions} ({}) in {seconds:.2} s, all durable", show_size(*bytes))
}
