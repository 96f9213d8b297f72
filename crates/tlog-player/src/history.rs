//! What was written when, aggregation by aggregation, without a key.

use std::ops::RangeInclusive;

use tlog_codec::{ChainBreak, ChainVerifier};
use tlog_proto::{AggregationId, AggregationNumber, Generation, Sequence, SessionId, Timestamp, VdiskId};
use tlog_quorum::{HeadCandidate, ReadError};
use tlog_store::NumberRanges;

use crate::reader::LogReader;
use crate::resolve::Resolved;
use crate::walk::Forward;

/// What is said in the clear about one aggregation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregationInfo {
    /// Its number in the log.
    pub number: AggregationNumber,
    /// Generation of its blocks.
    pub generation: Generation,
    /// Client instance that wrote them.
    pub session: SessionId,
    /// Sequence of its first block.
    pub first_sequence: Sequence,
    /// Sequence of its last block.
    pub last_sequence: Sequence,
    /// Lowest timestamp of its blocks.
    pub oldest_timestamp: Timestamp,
    /// Highest timestamp of its blocks.
    pub newest_timestamp: Timestamp,
    /// When the server sealed it, by the server's clock.
    pub sealed_at: Timestamp,
    /// Blocks in it.
    pub blocks: u32,
    /// Bytes that all its shards take together, those that are lost included.
    pub stored_bytes: u64,
    /// Stores in reach that hold a shard of it.
    pub holders: usize,
    /// Its id.
    pub id: AggregationId,
    /// Id of the one before it.
    pub prev: AggregationId,
}

impl From<&HeadCandidate> for AggregationInfo {
    fn from(candidate: &HeadCandidate) -> Self {
        let (head, header) = (&candidate.head, &candidate.head.header);
        Self {
            number: header.number,
            generation: header.generation,
            session: header.session,
            first_sequence: header.first_sequence,
            last_sequence: header.last_sequence,
            oldest_timestamp: header.oldest_timestamp,
            newest_timestamp: header.newest_timestamp,
            sealed_at: header.sealed_at,
            blocks: header.block_count,
            stored_bytes: (head.stored_len() as u64 + u64::from(header.payload_len))
                * header.redundancy.total() as u64,
            holders: candidate.holders.len(),
            id: head.id,
            prev: header.prev,
        }
    }
}

/// History cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Something in the middle is gone.
    #[error(
        "vdisk {vdisk}: aggregations {} of its log are lost on the stores in reach ({source}); bring back stores or run tlog verify",
        list(numbers)
    )]
    DataLost {
        /// The vdisk.
        vdisk: VdiskId,
        /// Numbers that are known to be lost; there may be more.
        numbers: NumberRanges,
        /// What the stores have under the first of them.
        #[source]
        source: ReadError,
    },
    /// An aggregation does not follow the one before it: one of them is not what was written.
    #[error("vdisk {vdisk}: the chain of its log is broken: {source}; run tlog verify")]
    ChainBroken {
        /// The vdisk.
        vdisk: VdiskId,
        /// Where.
        #[source]
        source: ChainBreak,
    },
    /// It was removed while it was being read.
    #[error(
        "vdisk {vdisk}: history below aggregation {first} was removed while it was being read; begin again"
    )]
    Pruned {
        /// The vdisk.
        vdisk: VdiskId,
        /// Lowest number that is kept now.
        first: AggregationNumber,
    },
}

/// Numbers as a person reads them: `3, 7-9`.
pub(crate) fn list(numbers: &NumberRanges) -> String {
    let range = |r: RangeInclusive<AggregationNumber>| match r.start() == r.end() {
        true => r.start().to_string(),
        false => format!("{}-{}", r.start(), r.end()),
    };
    numbers.iter().map(range).collect::<Vec<_>>().join(", ")
}

/// The aggregations of a log from old to new, proven by the chain. Made by [`LogReader::history`].
pub struct History {
    walk: Forward,
    reader: LogReader,
    chain: ChainVerifier,
    failed: Option<HistoryError>,
}

impl LogReader {
    /// All aggregations of the log, from old to new. Needs no key.
    pub fn history(&self) -> History {
        self.history_of(self.extent().first..=self.extent().last)
    }

    /// The aggregations of a range, as far as the log has it. Where it does not begin at number 1, what its first one follows
    /// is taken on trust.
    pub fn history_of(&self, range: RangeInclusive<AggregationNumber>) -> History {
        let (from, to) = ((*range.start()).max(self.extent().first), (*range.end()).min(self.extent().last));
        let chain = match from.0 {
            1 => ChainVerifier::from_start(),
            _ => ChainVerifier::from_pruned(from),
        };
        History { walk: Forward::new(self.clone(), from, to), reader: self.clone(), chain, failed: None }
    }
}

impl History {
    /// The next few; none at the end. What is before a fault comes first, then the error, again and again: nothing is skipped.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<AggregationInfo>>, HistoryError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let run = self.walk.next().await;
        let mut batch = Vec::with_capacity(run.len());
        for resolved in &run {
            match self.prove(resolved) {
                Ok(Some(info)) => batch.push(info),
                Ok(None) => {
                    let lost: NumberRanges =
                        run.iter().filter(|r| r.chosen.is_none()).map(|r| r.number).collect();
                    self.failed = Some(self.reader.lost(lost, &resolved.conditions).await);
                    break;
                }
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        match (&self.failed, batch.is_empty()) {
            (Some(error), true) => Err(error.clone()),
            (None, true) => Ok(None),
            (_, false) => Ok(Some(batch)),
        }
    }

    /// All that is left, at once.
    pub async fn collect(mut self) -> Result<Vec<AggregationInfo>, HistoryError> {
        let mut all = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            all.extend(batch);
        }
        Ok(all)
    }

    /// None where it is lost.
    fn prove(&mut self, resolved: &Resolved) -> Result<Option<AggregationInfo>, HistoryError> {
        let Some(candidate) = &resolved.chosen else { return Ok(None) };
        self.chain
            .handle(&candidate.head)
            .map_err(|source| HistoryError::ChainBroken { vdisk: self.reader.vdisk().clone(), source })?;
        Ok(Some(AggregationInfo::from(candidate)))
    }
}
