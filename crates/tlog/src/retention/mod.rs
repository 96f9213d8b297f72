//! What is done to a log beside writing it: moments get names, images of moments are stored in it, and history that nobody needs is
//! removed.
//!
//! Only the writer of a log can do that. Where a server has it, the server does it, through its admin endpoint; else `tlog` opens the
//! log itself. One of these at a time for each vdisk; clients write meanwhile.
//!
//! ```text
//! mark         locate the moment -> record
//! checkpoint   disk state -> its blocks, part by part -> read back and compared -> record
//! prune        what is to be kept -> checkpoint at the oldest moment that is -> images of single moments before it
//!                -> who still needs what is below? -> first number rises
//! ```
//! Nothing is removed before everything that takes its place was read back and is on all stores. A crash in between leaves an image
//! more, and no moment less.

pub mod background;
mod clock;
#[cfg(test)]
mod crash;
mod image;
pub mod keep;
pub mod limits;
mod marks;
mod prune;
mod report;
#[cfg(test)]
mod stories;
pub mod under_way;

use std::sync::Arc;

use anyhow::{Context, bail};
use tlog_codec::{PlaceInLog, Record, VdiskKeys};
use tlog_flusher::{ExtraError, Log, StoredAggregation};
use tlog_player::{LogReader, Moment, MomentReached, StoredFormat};
use tlog_proto::{AggregationId, AggregationNumber, Block, Generation, Sequence, Timestamp, VdiskId};

use self::keep::Keep;
pub use self::limits::{Limit, Limits};
pub use self::report::{CheckpointReport, MarkReport, PlaceReport, PointReport, PruneReport, Report};
use crate::storage::FlusherStorage;

/// What is to be done to a log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Gives a moment a name.
    Mark {
        /// The name.
        name: String,
        /// The moment.
        at: At,
    },
    /// Takes a name away.
    Unmark {
        /// The name.
        name: String,
    },
    /// Stores an image of a moment.
    Checkpoint {
        /// The moment.
        at: At,
        /// Bytes per second to write at most.
        rate: Option<u64>,
    },
    /// Removes history.
    Prune {
        /// What is kept.
        keep: Keep,
        /// How.
        how: How,
        /// Bytes per second to write at most.
        rate: Option<u64>,
    },
}

impl Request {
    /// For status.
    fn name(&self) -> &'static str {
        match self {
            Request::Mark { .. } | Request::Unmark { .. } => "mark",
            Request::Checkpoint { .. } => "checkpoint",
            Request::Prune { .. } => "prune",
        }
    }
}

/// How history is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// Only says what would be done.
    pub dry_run: bool,
    /// Also where stores are away, so that what is stored in place of history is not on all of them.
    pub degraded: bool,
    /// Also where a slave needs what is removed; it is filled anew then.
    pub ignore_slave: bool,
    /// Also where more is written than removed.
    pub anyway: bool,
}

/// A moment, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// After the last write.
    Newest,
    /// A time, nanoseconds since 1970.
    Time(u64),
    /// After a write.
    Sequence {
        /// Its generation.
        generation: Option<u64>,
        /// Its sequence.
        sequence: u64,
    },
    /// After an aggregation.
    Aggregation(u64),
    /// After the aggregation with an id, in hexadecimal digits.
    Id(String),
}

impl TryFrom<At> for Moment {
    type Error = anyhow::Error;

    fn try_from(at: At) -> anyhow::Result<Self> {
        Ok(match at {
            At::Newest => Moment::Newest,
            At::Time(time) => Moment::At(Timestamp(time)),
            At::Sequence { generation, sequence } => {
                Moment::Sequence { generation: generation.map(Generation), sequence: Sequence(sequence) }
            }
            At::Aggregation(number) => Moment::Aggregation(AggregationNumber(number)),
            At::Id(id) => Moment::Id(AggregationId::parse(&id).context("an id has 64 hexadecimal digits")?),
        })
    }
}

impl From<Moment> for At {
    fn from(moment: Moment) -> Self {
        match moment {
            Moment::Newest => At::Newest,
            Moment::At(time) => At::Time(time.0),
            Moment::Sequence { generation, sequence } => {
                At::Sequence { generation: generation.map(|g| g.0), sequence: sequence.0 }
            }
            Moment::Aggregation(number) => At::Aggregation(number.0),
            Moment::Id(id) => At::Id(id.to_string()),
        }
    }
}

/// How far it is: bytes written, of how many.
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// Does what is asked for. `limits` says who needs history; `rate` counts where the request has none.
pub async fn run(
    storage: &FlusherStorage,
    vdisk: &VdiskId,
    request: Request,
    limits: &dyn Limits,
    rate: u64,
    progress: Progress<'_>,
) -> anyhow::Result<Report> {
    let Some(under_way) = under_way::UnderWay::begin(vdisk, request.name()) else {
        bail!("vdisk {vdisk}: a mark, checkpoint or prune of it is under way; wait until it is done");
    };
    let at = match &request {
        Request::Mark { at, .. } | Request::Checkpoint { at, .. } => Moment::try_from(at.clone())?,
        Request::Unmark { .. } | Request::Prune { .. } => Moment::Newest,
    };
    let progress: Progress<'_> = &mut |written, total| {
        under_way.tell(written, total);
        progress(written, total);
    };
    let mut work = Work::begin(storage, vdisk).await?;
    let done = match request {
        Request::Mark { name, .. } => marks::mark(&mut work, &name, at).await.map(Report::Mark),
        Request::Unmark { name } => marks::unmark(&mut work, &name).await.map(Report::Mark),
        Request::Checkpoint { rate: own, .. } => {
            let pace = image::Pace::new(own.unwrap_or(rate));
            image::checkpoint(&mut work, at, pace, progress).await.map(Report::Checkpoint)
        }
        Request::Prune { keep, how, rate: own } => {
            let pace = image::Pace::new(own.unwrap_or(rate));
            prune::prune(&mut work, &keep, how, limits, pace, progress).await.map(Report::Prune)
        }
    };
    work.end().await;
    done
}

/// How often something is stored again, where clients keep taking the log over meanwhile.
const ATTEMPTS: usize = 5;

/// A log that something is done to.
struct Work<'a> {
    storage: &'a FlusherStorage,
    vdisk: VdiskId,
    keys: VdiskKeys,
    log: Arc<Log>,
    /// It was opened for this.
    ours: bool,
}

impl<'a> Work<'a> {
    async fn begin(storage: &'a FlusherStorage, vdisk: &VdiskId) -> anyhow::Result<Self> {
        let set = storage.store_set(vdisk).context("the number of stores is not that of the shards")?;
        // Opening a log that is not there would begin one.
        if set.survey().await.identities().iter().all(Option::is_none) {
            bail!("no store has a log of vdisk {vdisk}, or all there is is history of format 1");
        }
        let keys = storage.keys(vdisk)?;
        let (log, ours) = storage.hold(vdisk, false).await?;
        Ok(Self { storage, vdisk: vdisk.clone(), keys, log, ours })
    }

    async fn end(mut self) {
        self.storage.let_go(&self.log, std::mem::take(&mut self.ours)).await;
    }

    /// The log as it is now.
    async fn reader(&self) -> anyhow::Result<LogReader> {
        let set = self.storage.store_set(&self.vdisk);
        let set = set.context("the number of stores is not that of the shards")?;
        Ok(LogReader::open_with(set, self.storage.format1_keys().cloned()).await?)
    }

    /// The log as it is once what was received up to now is in it.
    async fn reader_of_now(&self) -> anyhow::Result<LogReader> {
        self.log.flush().await?;
        let mut durability = self.log.durability();
        while let Some(status) = self.log.status().await
            && (status.waiting_blocks > 0 || status.in_flight > 0)
        {
            // A client that never pauses is waited for no longer than for what it had sent.
            let target = AggregationNumber(status.committed.0 + status.in_flight as u64);
            while self.log.status().await.is_some_and(|status| status.committed < target) {
                if durability.changed().await.is_err() {
                    break;
                }
            }
            if status.waiting_blocks == 0 {
                break;
            }
            self.log.flush().await?;
        }
        self.reader().await
    }

    async fn store_record(&mut self, record: Record) -> anyhow::Result<StoredAggregation> {
        self.store(Extra::Record(record)).await
    }

    async fn store_part(
        &mut self,
        blocks: Vec<Block>,
        about: Timestamp,
    ) -> anyhow::Result<StoredAggregation> {
        self.store(Extra::Part(blocks, about)).await
    }

    /// Stores something; where a client takes the log over meanwhile, in the log as that has it. It may then be there twice. Where another
    /// server takes it over, that one keeps it.
    async fn store(&mut self, extra: Extra) -> anyhow::Result<StoredAggregation> {
        let mut attempts = 1;
        loop {
            let stored = match &extra {
                Extra::Record(record) => self.log.append_record(record.clone()).await,
                Extra::Part(blocks, about) => self.log.append_checkpoint(blocks.clone(), *about).await,
            };
            match stored {
                Err(ExtraError::Closed(_)) if attempts < ATTEMPTS => {
                    attempts += 1;
                    self.storage.let_go(&self.log, self.ours).await;
                    (self.log, self.ours) = self.storage.hold_again(&self.log).await?;
                }
                stored => return Ok(stored?),
            }
        }
    }
}

/// Given up in the middle, as where whoever asked for it is gone.
impl Drop for Work<'_> {
    fn drop(&mut self) {
        if self.ours {
            self.storage.abandon(&self.log);
        }
    }
}

/// What has no writes.
enum Extra {
    Record(Record),
    Part(Vec<Block>, Timestamp),
}

/// Where in the log a moment is, as records have it.
fn place_of(reached: &MomentReached) -> PlaceInLog {
    let &MomentReached { format, aggregation, id, blocks, of, position, timestamp } = reached;
    // Numbers of format 1 are counted and not stored.
    let aggregation = if format == StoredFormat::Two { aggregation } else { AggregationNumber(0) };
    PlaceInLog { aggregation, id, blocks, of, position, timestamp }
}
