//! Which moment of a disk a command is about, and what a person has to say before it can be put together.

use anyhow::anyhow;
use tlog_player::{DiskStateError, Moment, MomentError, ReadOptions};
use tlog_proto::{AggregationNumber, Generation, Sequence, VdiskId};

use crate::moment::WrittenMoment;
use crate::reading;
use crate::settings::{Settings, SettingsArgs};

/// Arguments of every command that restores something.
#[derive(Debug, clap::Args)]
pub(crate) struct MomentArguments {
    /// At this moment: a mark, RFC 3339, '2h30m ago', 'now', newest, seq:N, gen:G/seq:N, agg:N, id:HEX
    #[arg(long, value_name = "MOMENT", conflicts_with_all = ["sequence", "aggregation"])]
    at: Option<String>,
    /// After the write with this sequence, in the newest generation that has it
    #[arg(long, value_name = "N", conflicts_with = "aggregation")]
    sequence: Option<u64>,
    /// With --sequence: in this generation
    #[arg(long, value_name = "N", requires = "sequence")]
    generation: Option<u64>,
    /// After this aggregation
    #[arg(long, value_name = "N")]
    aggregation: Option<u64>,
    /// Bytes of a block, where the log does not tell
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// Goes without the newest writes where it cannot be told whether they were acknowledged
    #[arg(long)]
    accept_uncertain_end: bool,
    /// Takes what was written before the history that is kept as zeros
    #[arg(long)]
    accept_pruned_base: bool,
    /// Reads all of history although there is a checkpoint, where all of it is there
    #[arg(long)]
    ignore_checkpoints: bool,
}

impl MomentArguments {
    /// The moment as it was written; the newest where none was.
    pub(crate) fn moment(&self) -> anyhow::Result<WrittenMoment> {
        let moment = match (&self.at, self.aggregation, self.sequence) {
            (Some(text), _, _) => return Ok(text.parse()?),
            (None, Some(number), _) => Moment::Aggregation(AggregationNumber(number)),
            (None, None, Some(sequence)) => {
                Moment::Sequence { generation: self.generation.map(Generation), sequence: Sequence(sequence) }
            }
            (None, None, None) => Moment::Newest,
        };
        Ok(moment.into())
    }

    /// Whether one was named.
    pub(crate) fn is_given(&self) -> bool {
        self.at.is_some() || self.sequence.is_some() || self.aggregation.is_some()
    }

    /// The moment, of a log that is opened for that only where it is the log that knows it.
    pub(crate) async fn of_log(&self, settings: &SettingsArgs, vdisk: &VdiskId) -> anyhow::Result<Moment> {
        match self.moment()? {
            WrittenMoment::Itself(moment) => Ok(moment),
            named @ WrittenMoment::Named(_) => {
                let settings = Settings::load(settings)?.of_vdisk(vdisk).await?;
                let reader = reading::open(&settings, vdisk).await?;
                Ok(named.resolve(&reader, &reading::keys_of(&settings, vdisk)?).await?)
            }
        }
    }

    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions {
            accept_uncertain_end: self.accept_uncertain_end,
            accept_pruned_base: self.accept_pruned_base,
            ignore_checkpoints: self.ignore_checkpoints,
            block_size: self.block_size,
        }
    }
}

/// Why the disk cannot be told at a moment, with what a person may say to go on.
pub(crate) fn tell(error: DiskStateError) -> anyhow::Error {
    match error {
        error @ DiskStateError::Moment(MomentError::UncertainEnd { .. }) => {
            anyhow!("{error} (--accept-uncertain-end)")
        }
        error => reading::tell(error),
    }
}
