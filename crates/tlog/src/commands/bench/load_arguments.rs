//! What is written, how fast and for how long; on which stores; how often. Common to several measurements.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};
use tlog_proto::VdiskId;

use crate::bench::data::{Content, DataKind};
use crate::bench::load::{Limit, Load, Pace};
use crate::bench::site::{SiteOptions, StoreKind};
use crate::settings::{Settings, SettingsArgs, Size};

/// Aggregations that are outstanding where nobody says how many blocks: twice what the server has in flight by default.
const AGGREGATIONS_OUTSTANDING: usize = 16;

/// And at least so many blocks.
const LEAST_OUTSTANDING: usize = 1000;

/// Longest load.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What is written.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArguments {
    /// Vdisks, each with a client of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    vdisks: u32,
    /// Bytes of a block
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    block_size: Size,
    /// Size of the vdisk that random, text and zero blocks are scattered over
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    disk: Size,
    /// What is in the blocks: random, text, zero, or image:FILE for the blocks of a disk image
    #[arg(long, value_name = "DATA", default_value = "random")]
    data: DataKind,
    /// Blocks of each vdisk that are not durable at any time (closed loop) [default: 16 aggregations, at least 1000]
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "flush_each"], value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    outstanding: Option<u32>,
    /// Blocks per second of all vdisks, whatever becomes of them (open loop): latencies count from when each was due
    #[arg(long, value_name = "N", conflicts_with = "flush_each")]
    rate: Option<f64>,
    /// One block at a time, each with a flush
    #[arg(long)]
    flush_each: bool,
    /// How long to write
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, conflicts_with = "blocks")]
    seconds: f64,
    /// Blocks to write, on all vdisks together, however long that takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    blocks: Option<u64>,
    /// What data and places are drawn from: the same seed writes the same
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// What is started for a measurement.
#[derive(Debug, clap::Args)]
pub(super) struct SiteArguments {
    /// Which stores are started
    #[arg(long, value_name = "KIND", value_enum, default_value = "redis")]
    stores: StoreKind,
    /// Where their directory is made: for directories, on the disk to be measured [default: the system's directory for temporary
    /// files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// How often, and for whom.
#[derive(Debug, clap::Args)]
pub(super) struct RunArguments {
    /// How often all of it is done; shown is the median, with lowest and highest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: u32,
    /// Prints JSON, with the numbers of each run
    #[arg(long)]
    pub(super) json: bool,
}

impl SiteArguments {
    pub(super) fn options(&self, settings: &SettingsArgs) -> SiteOptions {
        SiteOptions { stores: self.stores, settings: settings.clone(), delayed: None }
    }

    pub(super) fn kind(&self) -> StoreKind {
        self.stores
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(std::env::temp_dir)
    }
}

impl LoadArguments {
    /// What data is drawn from.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The blocks.
    pub(super) fn content(&self) -> anyhow::Result<Arc<Content>> {
        let Ok(block_size) = usize::try_from(self.block_size.0) else { bail!("--block-size is too large") };
        let disk_blocks = self.disk.0 / self.block_size.0;
        Ok(Arc::new(Content::new(self.data.clone(), block_size, disk_blocks, self.seed)?))
    }

    /// Vdisks of these names, or of this one.
    pub(super) fn vdisks(&self, name: &VdiskId) -> anyhow::Result<Vec<VdiskId>> {
        match self.vdisks {
            1 => Ok(vec![name.clone()]),
            many => (0..many).map(|number| Ok(VdiskId::new(&format!("{name}-{number}"))?)).collect(),
        }
    }

    /// All of it, for a server. `flush_size` is that of the server, where it is known.
    pub(super) fn load(
        &self,
        server: &str,
        settings: &Settings,
        vdisks: Vec<VdiskId>,
        content: &Arc<Content>,
        flush_size: Option<usize>,
    ) -> anyhow::Result<Load> {
        Ok(Load {
            server: server.to_owned(),
            tls: settings.client_tls.as_ref().map(crate::recording::tls_options),
            vdisks,
            content: Arc::clone(content),
            pace: self.pace(settings, flush_size)?,
            limit: self.limit()?,
        })
    }

    fn pace(&self, settings: &Settings, flush_size: Option<usize>) -> anyhow::Result<Pace> {
        match (self.rate, self.outstanding) {
            _ if self.flush_each => Ok(Pace::FlushEach),
            (Some(rate), _) if (0.001..=1e7).contains(&rate) => Ok(Pace::Rate(rate)),
            (Some(rate), _) => {
                bail!("--rate {rate} is not a number of blocks per second from 0.001 to 10000000")
            }
            (None, Some(outstanding)) => {
                let outstanding = usize::try_from(outstanding)?;
                if let Some(flush_size) = flush_size.filter(|flush_size| outstanding < *flush_size) {
                    bail!(
                        "--outstanding {outstanding} is less than --flush-size {flush_size}: no aggregation would ever be full, and \
                         each would wait for flush-time; take more of them, a smaller --flush-size, or --flush-each"
                    );
                }
                Ok(Pace::Outstanding(outstanding))
            }
            (None, None) => {
                let blocks = settings.flush_size.saturating_mul(AGGREGATIONS_OUTSTANDING);
                Ok(Pace::Outstanding(blocks.max(LEAST_OUTSTANDING)))
            }
        }
    }

    fn limit(&self) -> anyhow::Result<Limit> {
        match self.blocks {
            Some(blocks) => Ok(Limit::Blocks(blocks)),
            None => match Duration::try_from_secs_f64(self.seconds) {
                Ok(time) if !time.is_zero() && time <= LONGEST => Ok(Limit::Time(time)),
                _ => bail!("--seconds {} is not a time to write, of at most a day", self.seconds),
            },
        }
    }

    /// What it is, for programs.
    pub(super) fn json(&self, load: &Load) -> Value {
        let (outstanding, rate) = match load.pace {
            Pace::Outstanding(outstanding) => (Some(outstanding), None),
            Pace::FlushEach => (Some(1), None),
            Pace::Rate(rate) => (None, Some(rate)),
        };
        json!({
            "vdisks": self.vdisks,
            "block_size": self.block_size.0,
            "data": self.data.name(),
            "outstanding": outstanding,
            "rate": rate,
            "flush_each": self.flush_each,
            "seconds": self.blocks.is_none().then_some(self.seconds),
            "blocks": self.blocks,
            "seed": self.seed,
        })
    }

    /// What it is, for people.
    pub(super) fn in_words(&self, load: &Load) -> String {
        let pace = match load.pace {
            Pace::Outstanding(outstanding) => format!("{outstanding} outstanding"),
            Pace::FlushEach => "one at a time, each with a flush".to_owned(),
            Pace::Rate(rate) => format!("{rate} per second"),
        };
        let vdisks = if self.vdisks == 1 { "1 vdisk".to_owned() } else { format!("{} vdisks", self.vdisks) };
        let data = self.data.name();
        format!("{vdisks}, {data} blocks of {} bytes, {pace}", self.block_size.0)
    }
}
