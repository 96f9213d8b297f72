//! The whole history with its data, from old to new.
//!
//! ```text
//! heads of all stores -> listed, proven by the chain -> read from k stores, checked, opened -> given, in order
//!      a step ahead          bounded in number            bounded in bytes and in number
//! ```
//! What is ahead is worked on at the same time, on all cores; what comes out is in the order of the log and nothing is skipped. Where
//! something cannot be read, everything before it comes first, then the error.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use tlog_codec::{Kind, Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, Block, VdiskId};
use tlog_quorum::{Candidate, ReadError};
use tokio::sync::mpsc;

use crate::history::{AggregationInfo, HistoryError};
use crate::reader::{LogReader, Opens, Unreadable};
use crate::task::Task;

/// Lists of aggregations that wait to be read. Each has up to about a thousand of them.
const LISTS_AHEAD: usize = 1;

/// How far a replay works ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Bytes of memory for what is read and not given yet, about. One aggregation is read even if it takes more.
    pub memory: u64,
    /// Most aggregations that are read at once, or wait to be given.
    pub at_once: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { memory: 128 << 20, at_once: 32 }
    }
}

/// An aggregation with its blocks.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// What is known of it without a key.
    pub info: AggregationInfo,
    /// Its blocks, in order, each checked by its hash. They share one piece of memory.
    pub blocks: Vec<Block>,
}

/// History cannot be replayed on. Everything before was given.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be listed on: heads are lost, or the chain is broken.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Too few shards of an aggregation are whole and in reach.
    #[error("{source}; bring back stores")]
    DataLost {
        /// Which aggregation, and what each store has.
        #[source]
        source: ReadError,
    },
    /// An aggregation does not open: the key is not there, or is not the right one.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Open {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
}

/// The aggregations of a log with their blocks, from old to new. Made by [`LogReader::replay`].
#[derive(Debug)]
pub struct Replay {
    reader: LogReader,
    opener: Opener,
    options: ReplayOptions,
    lists: mpsc::Receiver<Result<Vec<AggregationInfo>, HistoryError>>,
    /// Fills `lists`.
    _listing: Task<()>,
    listed: VecDeque<AggregationInfo>,
    /// Why nothing more is listed.
    ended: Option<HistoryError>,
    reading: VecDeque<Reading>,
    /// What `reading` takes.
    bytes: u64,
}

#[derive(Debug)]
struct Reading {
    info: AggregationInfo,
    blocks: Task<Result<Vec<Block>, ReplayError>>,
}

impl LogReader {
    /// The aggregations of format 2 in a range, as far as the log has it, with their blocks: exactly in order, each proven to follow the
    /// one before it. `keys` must be those of the reader's vdisk.
    ///
    /// Must be called within a runtime; with several threads it uses as many cores.
    pub fn replay(
        &self,
        range: RangeInclusive<AggregationNumber>,
        keys: &VdiskKeys,
        options: ReplayOptions,
    ) -> Replay {
        let (put, lists) = mpsc::channel(LISTS_AHEAD);
        let mut history = self.history_of(range);
        let listing = Task::spawn(async move {
            while let Some(list) = history.next_batch().await.transpose() {
                let failed = list.is_err();
                if put.send(list).await.is_err() || failed {
                    break;
                }
            }
        });
        Replay {
            reader: self.clone(),
            opener: Opener::new(keys.clone()),
            options,
            lists,
            _listing: listing,
            listed: VecDeque::new(),
            ended: None,
            reading: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl Replay {
    /// The next one; none at the end. Can be dropped and called again. After an error the same is tried again: nothing is skipped.
    pub async fn next(&mut self) -> Result<Option<Replayed>, ReplayError> {
        self.read_ahead().await;
        let Some(reading) = self.reading.front_mut() else {
            return self.ended.clone().map_or(Ok(None), |error| Err(error.into()));
        };
        let blocks = (&mut reading.blocks).await;
        let Some(Reading { info, .. }) = self.reading.pop_front() else { return Ok(None) };
        self.bytes = self.bytes.saturating_sub(cost(&info));
        match blocks {
            Ok(blocks) => Ok(Some(Replayed { info, blocks })),
            Err(error) => {
                let later = self.reading.drain(..).map(|reading| reading.info);
                let again: Vec<AggregationInfo> = std::iter::once(info).chain(later).collect();
                again.into_iter().rev().for_each(|info| self.listed.push_front(info));
                self.bytes = 0;
                Err(error)
            }
        }
    }

    /// Has as much read as the bounds allow, and at least one.
    async fn read_ahead(&mut self) {
        loop {
            let Some(info) = self.listed.front().copied() else {
                let list = match self.reading.is_empty() {
                    true => self.lists.recv().await,
                    // There is something to give; who lists has time until then.
                    false => self.lists.try_recv().ok(),
                };
                match list {
                    Some(Ok(list)) => self.listed.extend(list.into_iter().filter(has_blocks)),
                    Some(Err(error)) => self.ended = Some(error),
                    None => return,
                }
                continue;
            };
            let fits = self.reading.len() < self.options.at_once
                && self.bytes.saturating_add(cost(&info)) <= self.options.memory;
            if !fits && !self.reading.is_empty() {
                return;
            }
            self.listed.pop_front();
            self.bytes = self.bytes.saturating_add(cost(&info));
            let blocks = Task::spawn(read(self.reader.clone(), self.opener.clone(), info));
            self.reading.push_back(Reading { info, blocks });
        }
    }
}

/// Whether there is something to replay in it: parts of checkpoints and records have no writes.
fn has_blocks(info: &AggregationInfo) -> bool {
    info.kind == Kind::Blocks
}

/// Bytes of memory that reading an aggregation takes, about.
fn cost(info: &AggregationInfo) -> u64 {
    info.stored_bytes.saturating_add(info.plain_bytes)
}

async fn read(reader: LogReader, opener: Opener, info: AggregationInfo) -> Result<Vec<Block>, ReplayError> {
    let vdisk = reader.vdisk().clone();
    let open = move |candidate: &Candidate| opener.blocks(&candidate.head, &candidate.payloads);
    let read = reader.fetch(info.number, info.id, Opens::InTask, open).await;
    read.map(|(blocks, _)| blocks).map_err(|error| match error {
        Unreadable::Lost(source) => ReplayError::DataLost { source },
        Unreadable::Pruned { first } => HistoryError::Pruned { vdisk, first }.into(),
        Unreadable::Refused(source) => ReplayError::Open { vdisk, number: info.number, source },
    })
}
