//! Finding a moment in a log, in O(log n) reads of heads.
//!
//! A position (generation and sequence) only rises along the log: a binary search finds it. A time does not: clients' clocks step
//! back. The last aggregation with a write at or before it is found by the bounds that the headers have
//! ([`TimeReach`](tlog_codec::TimeReach)): from the end back, every run of aggregations is skipped of which all writes are later.
//!
//! What is found is the right one of several under its number, if a dead writer left some there: the chain of the next few
//! aggregations decides, as everywhere. A writer has no more in flight than that.

use tlog_codec::{Header, Kind, Opener, TimeReach};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp};
use tlog_quorum::HeadCandidate;

use crate::disk_state::DiskStateError;
use crate::history::HistoryError;
use crate::moment::Moment;
use crate::reader::LogReader;
use crate::walk::{Backward, Forward};

/// So many aggregations after one prove that it is part of the chain.
const PROOF: u64 = 64;

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
        let id = self.proven(number).await?;
        let whole = match moment {
            Moment::Newest | Moment::Aggregation(_) | Moment::Id(_) => true,
            Moment::At(_) | Moment::Sequence { .. } => {
                let head = self.reader.head_at(number).await?.head;
                let entries =
                    self.opener.manifest(&head).map_err(|source| self.unreadable(number, source))?;
                moment.blocks_of(&entries) == entries.len()
            }
        };
        Ok(Some(Found { number, id, whole }))
    }

    fn unreadable(&self, number: AggregationNumber, source: tlog_codec::OpenError) -> DiskStateError {
        DiskStateError::Manifest { vdisk: self.opener.vdisk().clone(), number, source }
    }

    /// The id of the aggregation under a number that what follows it names.
    async fn proven(&self, number: AggregationNumber) -> Result<AggregationId, HistoryError> {
        let to = AggregationNumber(number.0.saturating_add(PROOF)).min(self.reader.extent().last);
        let mut walk = Forward::new(self.reader.clone(), number, to);
        let mut id = None;
        let mut before = None;
        loop {
            let run = walk.next().await;
            if run.is_empty() {
                break;
            }
            for resolved in run {
                let Some(chosen) = resolved.chosen else {
                    return Err(self
                        .reader
                        .lost([resolved.number].into_iter().collect(), &resolved.conditions)
                        .await);
                };
                let found = chosen.head.header.prev;
                if let Some(expected) = before.filter(|before| *before != found) {
                    let source = tlog_codec::ChainBreak::Prev { number: resolved.number, expected, found };
                    return Err(HistoryError::ChainBroken { vdisk: self.reader.vdisk().clone(), source });
                }
                before = Some(chosen.head.id);
                id = id.or(before);
            }
        }
        match id {
            Some(id) => Ok(id),
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
        let opened = match found.head.header.kind {
            Kind::Record => self.opener.record(&found.head).map(drop),
            Kind::Blocks | Kind::Checkpoint => self.opener.manifest(&found.head).map(drop),
        };
        opened.map_err(|source| self.unreadable(number, source))?;
        Ok(found)
    }

    /// The last aggregation that has a write at or before a time.
    async fn last_at_or_before(&self, time: Timestamp) -> Result<Option<AggregationNumber>, DiskStateError> {
        let first = self.reader.extent().first;
        // Ends of runs that are still to be looked at, the last one on top; and where each begins.
        let mut ends = vec![self.reader.extent().last];
        while let Some(end) = ends.pop() {
            let header = self.head(end).await?.head.header;
            if header.kind == Kind::Blocks && header.oldest_timestamp <= time {
                return Ok(Some(end));
            }
            let run = TimeReach::run_start(end);
            let all_later =
                header.time_reach.bound_from(header.oldest_timestamp).is_some_and(|bound| bound > time);
            let top = ends.is_empty();
            if !all_later {
                // The runs that make it up, behind each other: the last one ends just before it.
                let mut part = 1;
                let mut inside = Vec::new();
                while end.0 - part >= run.0 {
                    inside.push(AggregationNumber(end.0 - part));
                    part *= 2;
                }
                // What lies before all of it is looked at last.
                if top {
                    ends.extend(run.previous());
                }
                ends.extend(inside.into_iter().rev());
            } else if top {
                ends.extend(run.previous());
            }
            ends.retain(|end| *end >= first);
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

fn end_of(header: &Header) -> LogPosition {
    LogPosition { generation: header.generation, sequence: header.last_sequence }
}
