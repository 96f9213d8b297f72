//! `tlog blame`: who wrote a block, and when.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tlog_codec::VdiskKeys;
use tlog_player::{BlockWrite, DiskStateError, LogReader, MomentError};
use tlog_proto::{BlockIndex, Operation, VdiskId};

use super::moment_arguments::{self, MomentArguments};
use super::progress;
use crate::settings::{Settings, SettingsArgs};
use crate::{logging, moment, reading};

/// Shows who wrote a block of a vdisk, and when: the last write, or all of them, from new to old.
///
/// Up to a moment, or the newest. Each with sequence, generation, client, its time, and the aggregation that has it. Takes the key, and
/// reads no data and no more of the log than the answer takes. Where history was removed, a checkpoint has sequence and time of the last
/// write before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog blame vda --block 1204                 the last write of that block\n  \
    tlog blame vda --block 1204 --all --json    all of them, one JSON object on each line\n  \
    tlog blame vda --offset 4931584 --limit 5   of the block at that byte of the disk\n  \
    tlog blame vda --block 1204 --at '5m ago'   as it was then")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Which block: byte offset divided by block size
    #[arg(long, value_name = "INDEX", required_unless_present = "offset", conflicts_with = "offset")]
    block: Option<u64>,
    /// The block at this byte of the disk; faster with --block-size, else the longest block of the whole log counts
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Every write of it, from new to old
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// So many writes of it, from new to old
    #[arg(long, value_name = "N", default_value_t = 1)]
    limit: u64,
    #[command(flatten)]
    moment: MomentArguments,
    /// Prints one JSON object for each write
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Arguments {
    async fn index(&self, reader: &LogReader, keys: &VdiskKeys) -> anyhow::Result<BlockIndex> {
        let index = match (self.block, self.offset) {
            (Some(index), _) => index,
            (None, Some(offset)) => {
                let block_size = match self.moment.options().block_size {
                    Some(block_size) => Some(block_size),
                    None => reader.longest_block(keys).await?,
                };
                let block_size = block_size.filter(|&size| size > 0).with_context(|| {
                    format!(
                        "vdisk {}: its log does not tell how long blocks are; say --block-size",
                        self.vdisk
                    )
                })?;
                offset / u64::from(block_size)
            }
            (None, None) => bail!("name a block with --block or --offset"),
        };
        BlockIndex::new(index).with_context(|| format!("no disk has a block {index}"))
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let (vdisk, moment) = (&arguments.vdisk, arguments.moment.moment()?);
    let reader = reading::open(&settings, vdisk).await?;
    let keys = reading::keys_of(&settings, vdisk)?;
    let moment = moment.resolve(&reader, &keys).await?;
    let index = arguments.index(&reader, &keys).await?;
    let tell = |error: MomentError| moment_arguments::tell(error.into());
    let mut blame = reader.blame(&keys, index, moment, &arguments.moment.options()).map_err(tell)?;
    let bar = progress::counting("reading");
    bar.set_length(reader.extent().count());
    let mut out = io::stdout().lock();
    let mut shown = 0;
    while arguments.all || shown < arguments.limit {
        let next = blame.next_telling(|progress| bar.set_position(progress.aggregations)).await;
        let write = match next {
            Ok(Some(write)) => write,
            Ok(None) => break,
            // What is kept was shown, and that is what can be known.
            Err(DiskStateError::Moment(error @ MomentError::BasePruned { .. })) if shown > 0 => {
                bar.finish_and_clear();
                eprintln!("tlog: {error}");
                break;
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err(moment_arguments::tell(error));
            }
        };
        bar.suspend(|| match arguments.json {
            true => writeln!(out, "{}", as_json(index, &write)),
            false if shown == 0 => writeln!(out, "{HEADING}\n{}", as_line(&write)),
            false => writeln!(out, "{}", as_line(&write)),
        })?;
        shown += 1;
        if let Some(checkpoint) = write.checkpoint {
            bar.suspend(|| {
                eprintln!(
                    "tlog: the aggregation of that write was removed; it is known from checkpoint {checkpoint}, which does not have its \
                     generation and client"
                );
            });
        }
    }
    bar.finish_and_clear();
    if shown == 0 && arguments.limit > 0 && !arguments.json {
        let why = match blame.is_empty_in_checkpoint() {
            true => "has no content at that moment, as a checkpoint says, and the history before was removed",
            false => "was never written up to that moment",
        };
        writeln!(out, "vdisk {vdisk}: block {index} {why}; it reads as zeros")?;
    }
    Ok(ExitCode::SUCCESS)
}

const HEADING: &str = "time                      generation:sequence   number    what    bytes       client                hash              id";

fn as_line(write: &BlockWrite) -> String {
    let BlockWrite { place, checkpoint, session, operation, length, hash_prefix } = write;
    let (number, position) = match (checkpoint, place.aggregation) {
        (Some(_), _) => ("removed".to_owned(), format!("?:{}", place.position.sequence)),
        (None, Some(number)) => (number.to_string(), place.position.to_string()),
        (None, None) => ("old".to_owned(), place.position.to_string()),
    };
    let client = if session.is_known() { session.to_string() } else { "unknown".to_owned() };
    let id = if checkpoint.is_none() { place.id.to_string() } else { String::new() };
    let hash = match operation {
        Operation::Set => hex_of(hash_prefix),
        Operation::Delete => String::new(),
    };
    format!(
        "{:<24}  {:<20}  {number:<8}  {:<6}  {length:<10}  {client:<20}  {:<16}  {}",
        moment::show(place.timestamp),
        position,
        name_of(*operation),
        hash.get(..16).unwrap_or(&hash),
        id.get(..16).unwrap_or(&id),
    )
}

fn as_json(index: BlockIndex, write: &BlockWrite) -> Value {
    let BlockWrite { place, checkpoint, session, operation, length, hash_prefix } = write;
    // Of a checkpoint the place is that of a copy.
    let its_own = checkpoint.is_none();
    json!({
        "block": index.get(),
        "time": moment::show(place.timestamp),
        "time_ns": place.timestamp.0,
        "generation": its_own.then_some(place.position.generation.0),
        "sequence": place.position.sequence.0,
        "session": session.0,
        "format": place.format.number(),
        "aggregation": place.aggregation.filter(|_| its_own).map(|number| number.0),
        "id": its_own.then(|| place.id.to_string()),
        "block_of_aggregation": its_own.then_some(place.block),
        "checkpoint": checkpoint.map(|number| number.0),
        "operation": name_of(*operation),
        "length": length,
        "hash_prefix": (*operation == Operation::Set).then(|| hex_of(hash_prefix)),
    })
}

fn name_of(operation: Operation) -> &'static str {
    match operation {
        Operation::Set => "set",
        Operation::Delete => "delete",
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
