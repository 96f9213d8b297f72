//! What was written when, aggregation by aggregation, without a key.

use std::ops::RangeInclusive;

use std::collections::VecDeque;

use tlog_codec::{ChainBreak, ChainVerifier, Kind};
use tlog_proto::{AggregationId, AggregationNumber, Generation, Sequence, SessionId, Timestamp, VdiskId};
use tlog_quorum::{HeadCandidate, LinkRead, ReadError};
use tlog_store::NumberRanges;

use crate::format1::{Format1Error, LinkInfo, StoredFormat};
use crate::reader::LogReader;
use crate::resolve::Resolved;
use crate::walk::Forward;

/// What is said about one aggregation; of one of format 2 in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregationInfo {
    /// In which format it is stored.
    pub format: StoredFormat,
    /// What it has: writes, part of a checkpoint, or a record about the log.
    pub kind: Kind,
    /// Its number in the log. Aggregations of format 1 have none; they are counted from the oldest, which is 1.
    pub number: AggregationNumber,
    /// Generation of its writes; where it has none, of the last write before it. 1 in format 1, which does not know generations.
    pub generation: Generation,
    /// Client instance that wrote them; unknown in format 1.
    pub session: SessionId,
    /// Sequence of its first write; where it has none, one above the last.
    pub first_sequence: Sequence,
    /// Sequence of its last write; where it has none, of the last one before it.
    pub last_sequence: Sequence,
    /// Lowest timestamp of its writes; where it has none, that of the moment it is about.
    pub oldest_timestamp: Timestamp,
    /// Highest timestamp of its writes; likewise.
    pub newest_timestamp: Timestamp,
    /// When the server sealed it, by the server's clock.
    pub sealed_at: Timestamp,
    /// Blocks in it.
    pub blocks: u32,
    /// Bytes that all its shards take together, those that are lost included.
    pub stored_bytes: u64,
    /// Bytes that its blocks take as a message: what reading it takes memory for.
    pub plain_bytes: u64,
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
            format: StoredFormat::Two,
            kind: header.kind,
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
            plain_bytes: header.body_plain,
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
    /// The part of it that was written in format 1 cannot be read.
    #[error(transparent)]
    Format1(#[from] Format1Error),
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
    /// Whether the part in format 1 comes first and has yet to be walked.
    begins_in_format1: bool,
    /// What is left of it, oldest first, and the number and id of what was answered last.
    format1: VecDeque<LinkInfo>,
    answered: (u64, AggregationId),
    walk: Forward,
    reader: LogReader,
    chain: ChainVerifier,
    failed: Option<HistoryError>,
}

impl LogReader {
    /// All aggregations of the log, from old to new. Needs no key but for those of format 1.
    ///
    /// Of format 1 all bytes are read before the first batch comes, from new to old, and about 100 bytes of memory are taken for
    /// each aggregation: only so the oldest is found.
    pub fn history(&self) -> History {
        let of_format2 = self.history_of(self.extent().first..=self.extent().last);
        History { begins_in_format1: self.has_format1(), ..of_format2 }
    }

    /// The aggregations of format 2 of a range, as far as the log has it. Where it does not begin at number 1, what its first
    /// one follows is taken on trust.
    pub fn history_of(&self, range: RangeInclusive<AggregationNumber>) -> History {
        let (from, to) = ((*range.start()).max(self.extent().first), (*range.end()).min(self.extent().last));
        History {
            begins_in_format1: false,
            format1: VecDeque::new(),
            answered: (0, AggregationId::BEFORE_FIRST),
            walk: Forward::new(self.clone(), from, to),
            reader: self.clone(),
            chain: self.chain_from(from),
            failed: None,
        }
    }

    /// Proves the chain of format 2 from a number on.
    pub(crate) fn chain_from(&self, from: AggregationNumber) -> ChainVerifier {
        match (from.0, self.before().id()) {
            (1, Some(before)) => ChainVerifier::after(from, before),
            _ => ChainVerifier::from_pruned(from),
        }
    }
}

/// Aggregations of format 1 in one batch of history.
const FORMAT1_BATCH: usize = 256;

impl History {
    /// The next few; none at the end. What is before a fault comes first, then the error, again and again: nothing is skipped.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<AggregationInfo>>, HistoryError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.begins_in_format1 {
            match self.walk_format1().await {
                Ok(links) => (self.format1, self.begins_in_format1) = (links, false),
                Err(error) => {
                    self.failed = Some(error.clone().into());
                    return Err(error.into());
                }
            }
        }
        if !self.format1.is_empty() {
            return Ok(Some(self.next_of_format1()));
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

    /// All of the part in format 1, oldest first.
    async fn walk_format1(&self) -> Result<VecDeque<LinkInfo>, Format1Error> {
        let mut links = VecDeque::new();
        if let Some(mut walk) = self.reader.format1_walk(LinkRead::All)? {
            while let Some(link) = walk.next().await? {
                links.push_front(LinkInfo::from(&link));
            }
        }
        Ok(links)
    }

    fn next_of_format1(&mut self) -> Vec<AggregationInfo> {
        let total = self.reader.stores().stores().len();
        let count = self.format1.len().min(FORMAT1_BATCH);
        let answered = &mut self.answered;
        let infos = self.format1.drain(..count).map(|link| {
            let (number, prev) = *answered;
            *answered = (number + 1, link.id());
            link.in_history(number + 1, prev, total)
        });
        infos.collect()
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
