//! `tlog bench codec`: the stages of an aggregation, each by itself.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;
use tlog_codec::Redundancy;

use super::report::{Machine, Report, entries};
use crate::bench::codec_stages::Shape;
use crate::bench::data::{Content, DataKind};
use crate::bench::figures::Runs;
use crate::commands::progress;
use crate::logging;
use crate::settings::{Settings, SettingsArgs, Size};

/// Measures what becomes of blocks in the server and when they are read back, stage by stage, on one thread, without stores or network.
///
/// Parsing, hashing, putting together, encrypting, hashing shards, sealing as a whole, linking; verifying, opening, rebuilding. Compressing
/// and splitting happen inside sealing and cannot be called alone: they are told as what sealing takes beyond its other parts. GB/s are
/// those of block data.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench codec                       aggregations of 25 random blocks of 4 KiB, 4+2\n  \
    tlog bench codec --data text --flush-size 250 --runs 5 --json")]
pub(crate) struct Arguments {
    /// Bytes of a block
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    block_size: Size,
    /// What is in the blocks: random, text, zero or image:FILE
    #[arg(long, value_name = "DATA", default_value = "random")]
    data: DataKind,
    /// What data is drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    run: super::load_arguments::RunArguments,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments, machine: Machine) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_flags(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let Ok(block_size) = usize::try_from(arguments.block_size.0) else { bail!("--block-size is too large") };
    let (data, flush_size) = (arguments.data.name(), settings.flush_size);
    let content = Content::new(arguments.data.clone(), block_size, 1 << 18, arguments.seed)?;
    let (k, m) = (settings.redundancy.data_shards, settings.redundancy.parity_shards);
    let shape = Shape { blocks: flush_size, redundancy: Redundancy::new(k.into(), m.into())? };
    let bar = progress::counting("measuring");
    bar.set_length(u64::from(arguments.run.runs));
    let mut runs = Runs::default();
    for _ in 0..arguments.run.runs {
        runs.add(shape.measure(&content).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let about = entries([
        ("data", json!(data)),
        ("block_size", json!(block_size)),
        ("flush_size", json!(flush_size)),
        ("data_shards", json!(k)),
        ("parity_shards", json!(m)),
    ]);
    let heading = format!(
        "aggregations of {flush_size} {data} blocks of {block_size} bytes, {k}+{m} shards, one thread"
    );
    Report { benchmark: "codec", heading, about, machine, runs, ending: None }.print(arguments.run.json)?;
    Ok(ExitCode::SUCCESS)
}
