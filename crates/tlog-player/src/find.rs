//! Finding a moment in a log, in O(log n) reads of heads.
//!
//! A position (generation and sequence) only rises along the log: a binary search finds it. A time does not: clients' clocks step
//! back. The last aggregation with a write at or before it is found by the bounds that the headers have
//! ([`TimeReach`](tlog_codec::TimeReach)): from the end back, every run of aggregations is skipped of which all writes are later. Three
//! reads for each doubling of the log, and a few more where times step back by much.
//!
//! What is found is the right one of several under its number, if a dead writer left some there: the chain of the next few
//! aggregations decides, as everywhere. A writer has no more in flight than that.

use tlog_codec::{Header, Kind, Opener, TimeReach};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp};
use tlog_quorum::{HeadCandidate, ShardCondition};

use crate::disk_state::DiskStateError;
use crate::history::HistoryError;
use crate::moment::Moment;
use crate::reader::LogReader;
use crate::walk::{Backward, Forward};

#[cfg(test)]
mod tests;

/// So many aggregations after one prove that it is part of the chain.
const PROOF: u64 = 64;
/// A run that is no longer, and does not say how far it reaches, is read as a whole.
const AT_ONCE: u64 = 64;

/// Where a moment is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The last aggregation at or below which it is: for a time or sequence the one that has the write.
    pub(crate) number: AggregationNumber,
    /// Its id.
    pub(crate) id: AggregationId,
    /// Whether all writes of the aggregation are part of the state.
    pub(crate) whole: bool,
}

/// Finds moments in the part of a log that is in format 2.
pub(crate) struct Finder<'a> {
    reader: &'a LogReader,
    opener: &'a Opener,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(reader: &'a LogReader, opener: &'a Opener) -> Self {
        Self { reader, opener }
    }

    /// None where no aggregation that is kept has it.
    pub(crate) async fn find(&self, moment: Moment) -> Result<Option<Found>, DiskStateError> {
        let extent = self.reader.extent();
        if extent.is_empty() {
            return Ok(None);
        }
        let number = match moment {
            Moment::Newest => {
                // What no store has any more the walk back says better.
                let id = match self.reader.last_id() {
                    Some(id) => id,
                    None => self.head(extent.last).await?.head.id,
                };
                return Ok(Some(Found { number: extent.last, id, whole: true }));
            }
            Moment::Aggregation(number) => Some(number).filter(|number| extent.contains(*number)),
            Moment::At(time) => self.last_at_or_before(time).await?,
            Moment::Sequence { generation, sequence } => self.with_sequence(generation, sequence).await?,
            Moment::Id(id) => return Ok(self.with_id(id).await?),
        };
        let Some(number) = number else { return Ok(None) };
        let head = self.proven(number).await?.head;
        let whole = match moment {
            Moment::Newest | Moment::Aggregation(_) | Moment::Id(_) => true,
            Moment::At(_) | Moment::Sequence { .. } => {
                let entries =
                    self.opener.manifest(&head).map_err(|source| self.unreadable(number, source))?;
                moment.blocks_of(&entries) == entries.len()
            }
        };
        Ok(Some(Found { number, id: head.id, whole }))
    }

    fn unreadable(&self, number: AggregationNumber, source: tlog_codec::OpenError) -> DiskStateError {
        DiskStateError::Manifest { vdisk: self.opener.vdisk().clone(), number, source }
    }

    /// The aggregation under a number that what follows it names. What is lost behind it proves nothing more, and is no reason to doubt it
    /// where nothing else stands under its number.
    async fn proven(&self, number: AggregationNumber) -> Result<HeadCandidate, HistoryError> {
        let to = AggregationNumber(number.0.saturating_add(PROOF)).min(self.reader.extent().last);
        let mut walk = Forward::soon(self.reader.clone(), number, to);
        let mut proven: Option<HeadCandidate> = None;
        let (mut alone, mut before) = (false, None);
        'proof: loop {
            let run = walk.next().await;
            if run.is_empty() {
                break;
            }
            for resolved in run {
                let Some(chosen) = resolved.chosen else {
                    if proven.is_some() && alone {
                        break 'proof;
                    }
                    let lost = [resolved.number].into_iter().collect();
                    return Err(self.reader.lost(lost, &resolved.conditions).await);
                };
                let found = chosen.head.header.prev;
                if let Some(expected) = before.filter(|before| *before != found) {
                    let source = tlog_codec::ChainBreak::Prev { number: resolved.number, expected, found };
                    return Err(HistoryError::ChainBroken { vdisk: self.reader.vdisk().clone(), source });
                }
                before = Some(chosen.head.id);
                if proven.is_none() {
                    let other = |condition: &ShardCondition| matches!(condition, ShardCondition::Held(id) if *id != chosen.head.id);
                    alone = !resolved.conditions.iter().any(other);
                    proven = Some(chosen);
                }
            }
        }
        match proven {
            Some(proven) => Ok(proven),
            None => Err(self.reader.lost([number].into_iter().collect(), &[]).await),
        }
    }

    /// The aggregation with an id: nothing leads to that but the chain.
    async fn with_id(&self, id: AggregationId) -> Result<Option<Found>, HistoryError> {
        let mut walk = Backward::from_end(self.reader.clone());
        loop {
            let links = walk.next().await?;
            if let Some(link) = links.iter().find(|link| link.head.id == id) {
                return Ok(Some(Found { number: link.head.header.number, id, whole: true }));
            }
            if links.is_empty() {
                return Ok(None);
            }
        }
    }

    /// One head, and that its header is what was sealed.
    async fn head(&self, number: AggregationNumber) -> Result<HeadCandidate, DiskStateError> {
        let found = self.reader.head_at(number).await?;
        self.open(&found)?;
        Ok(found)
    }

    /// What is said in the clear is proven by what is sealed.
    fn open(&self, found: &HeadCandidate) -> Result<(), DiskStateError> {
        let header = &found.head.header;
        let opened = match header.kind {
            Kind::Record => self.opener.record(&found.head).map(drop),
            Kind::Blocks | Kind::Checkpoint => self.opener.manifest(&found.head).map(drop),
        };
        opened.map_err(|source| self.unreadable(header.number, source))
    }

    /// The last aggregation that has a write at or before a time.
    async fn last_at_or_before(&self, time: Timestamp) -> Result<Option<AggregationNumber>, DiskStateError> {
        let first = self.reader.extent().first;
        let mut end = self.reader.extent().last;
        while end >= first {
            let header = self.head(end).await?.head.header;
            if is_at_or_before(&header, time) {
                return Ok(Some(end));
            }
            let run = TimeReach::run_start(end);
            // Into the run, unless all of it is later.
            let mut next = end.previous();
            match header.time_reach.bound_from(header.oldest_timestamp) {
                Some(bound) if bound > time => next = run.previous(),
                Some(_) => {}
                None if (1..AT_ONCE).contains(&(end.0 - run.0)) => {
                    // One answer tells more than looking at the runs that make it up.
                    let last = AggregationNumber(end.0 - 1);
                    if let found @ Some(_) = self.last_of(run.max(first), last, time).await? {
                        return Ok(found);
                    }
                    next = run.previous();
                }
                None => {}
            }
            let Some(next) = next else { return Ok(None) };
            end = next;
        }
        Ok(None)
    }

    /// The same among a few that are all read.
    async fn last_of(
        &self,
        from: AggregationNumber,
        to: AggregationNumber,
        time: Timestamp,
    ) -> Result<Option<AggregationNumber>, DiskStateError> {
        let mut walk = Forward::new(self.reader.clone(), from, to);
        let mut all = Vec::new();
        loop {
            let run = walk.next().await;
            if run.is_empty() {
                break;
            }
            all.extend(run);
        }
        for resolved in all.into_iter().rev() {
            let Some(chosen) = resolved.chosen else {
                let lost = [resolved.number].into_iter().collect();
                return Err(self.reader.lost(lost, &resolved.conditions).await.into());
            };
            self.open(&chosen)?;
            if is_at_or_before(&chosen.head.header, time) {
                return Ok(Some(resolved.number));
            }
        }
        Ok(None)
    }

    /// The aggregation that has the write with a sequence, in the highest generation that has one or in the one given.
    async fn with_sequence(
        &self,
        generation: Option<Generation>,
        sequence: Sequence,
    ) -> Result<Option<AggregationNumber>, DiskStateError> {
        let last = self.head(self.reader.extent().last).await?.head.header;
        let mut of = generation.unwrap_or(last.generation);
        loop {
            let position = LogPosition { generation: of, sequence };
            let reached = self.first_where(|header| end_of(header) >= position).await?;
            if let Some(header) = &reached
                && header.kind == Kind::Blocks
                && header.generation == of
                && (header.first_sequence..=header.last_sequence).contains(&sequence)
            {
                return Ok(Some(header.number));
            }
            if generation.is_some() {
                return Ok(None);
            }
            // The generation before it.
            let begin = self.first_where(|header| header.generation >= of).await?;
            let Some(before) = begin.and_then(|header| header.number.previous()) else { return Ok(None) };
            if before < self.reader.extent().first {
                return Ok(None);
            }
            of = self.head(before).await?.head.header.generation;
        }
    }

    /// The first aggregation for which `reached` holds; it must hold for all behind it.
    async fn first_where(&self, reached: impl Fn(&Header) -> bool) -> Result<Option<Header>, DiskStateError> {
        let extent = self.reader.extent();
        let (mut low, mut high) = (extent.first.0, extent.last.0.saturating_add(1));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let header = self.head(AggregationNumber(middle)).await?.head.header;
            if reached(&header) {
                high = middle;
                found = Some(header);
            } else {
                low = middle + 1;
            }
        }
        Ok(found)
    }
}

/// Whether it has a write at or before a time.
fn is_at_or_before(header: &Header, time: Timestamp) -> bool {
    header.kind == Kind::Blocks && header.oldest_timestamp <= time
}

fn end_of(header: &Header) -> LogPosition {
    LogPosition { generation: header.generation, sequence: header.last_sequence }
}
