//! The writes of a log from new to old, aggregation by aggregation and over both formats, for questions that are answered by
//! manifests alone.

use std::collections::VecDeque;

use tlog_codec::{BlockEntry, Kind, Opener, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber, LogPosition, SessionId, Timestamp};
use tlog_quorum::{HeadCandidate, Link, LinkRead};

use crate::disk_state::DiskStateError;
use crate::format1::{Format1Walk, Passed, StoredFormat};
use crate::history::HistoryError;
use crate::moment::{Moment, MomentError, MomentReached, Span};
use crate::reader::LogReader;
use crate::walk::Backward;

/// How far a walk from new to old is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkProgress {
    /// Aggregations that it has passed, of both formats.
    pub aggregations: u64,
    /// How many aggregations the log has in format 2. How many it has in format 1 is not known before the end.
    pub of: u64,
    /// Position in history: lowest timestamp of the aggregation that was passed last.
    pub position: Timestamp,
}

/// Where in the log a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritePlace {
    /// In which format its aggregation is stored.
    pub format: StoredFormat,
    /// Its aggregation; none in format 1, which has no numbers.
    pub aggregation: Option<AggregationNumber>,
    /// Id of that aggregation.
    pub id: AggregationId,
    /// Which of the aggregation's blocks it is, from 0.
    pub block: u32,
    /// Generation and sequence of the write.
    pub position: LogPosition,
    /// The client's time.
    pub timestamp: Timestamp,
}

impl WritePlace {
    pub(crate) fn new(passed: &Passed, block: usize, entry: &BlockEntry) -> Self {
        Self {
            format: passed.format,
            aggregation: (passed.format == StoredFormat::Two).then_some(passed.number),
            id: passed.id,
            block: block as u32,
            position: LogPosition { generation: passed.generation, sequence: entry.sequence },
            timestamp: entry.timestamp,
        }
    }
}

impl From<&MomentReached> for WritePlace {
    fn from(reached: &MomentReached) -> Self {
        let &MomentReached { format, aggregation, id, blocks, position, timestamp, .. } = reached;
        let aggregation = (format == StoredFormat::Two).then_some(aggregation);
        Self { format, aggregation, id, block: blocks.saturating_sub(1), position, timestamp }
    }
}

/// An aggregation on the way, before anybody looked at its blocks.
pub(crate) struct Passing {
    pub(crate) passed: Passed,
    pub(crate) session: SessionId,
    manifest: Manifest,
}

enum Manifest {
    Sealed(Box<HeadCandidate>),
    Plain(Vec<BlockEntry>),
}

/// Walks a log from its end to its beginning. Memory is bounded by one step of heads, or one aggregation of format 1.
pub(crate) struct Writes {
    reader: LogReader,
    opener: Opener,
    heads: Backward,
    /// Read and not answered yet, newest first.
    ahead: VecDeque<HeadCandidate>,
    /// Begun when all of format 2 was passed.
    links: Option<Format1Walk>,
    heads_passed: bool,
    links_passed: u64,
    progress: WalkProgress,
}

impl Writes {
    pub(crate) fn new(reader: &LogReader, keys: &VdiskKeys) -> Self {
        Self {
            reader: reader.clone(),
            opener: Opener::new(keys.clone()),
            heads: Backward::from_end(reader.clone()),
            ahead: VecDeque::new(),
            links: None,
            heads_passed: false,
            links_passed: 0,
            progress: WalkProgress { of: reader.extent().count(), ..WalkProgress::default() },
        }
    }

    pub(crate) fn reader(&self) -> &LogReader {
        &self.reader
    }

    pub(crate) fn progress(&self) -> WalkProgress {
        self.progress
    }

    /// The next older aggregation that has blocks; none after the first of the log.
    pub(crate) async fn next(&mut self) -> Result<Option<Passing>, HistoryError> {
        let next = match self.next_of_format2().await? {
            Some(head) => Some(Passing::from(head)),
            None => self.next_of_format1().await?,
        };
        if let Some(Passing { passed, .. }) = &next {
            self.progress.aggregations += 1;
            self.progress.position = passed.oldest;
        }
        Ok(next)
    }

    /// What each block of it did, in the log's order.
    pub(crate) fn entries(&self, passing: Passing) -> Result<Vec<BlockEntry>, DiskStateError> {
        match passing.manifest {
            Manifest::Plain(entries) => Ok(entries),
            Manifest::Sealed(head) => {
                self.opener.manifest(&head.head).map_err(|source| DiskStateError::Manifest {
                    vdisk: self.opener.vdisk().clone(),
                    number: passing.passed.number,
                    source,
                })
            }
        }
    }

    async fn next_of_format2(&mut self) -> Result<Option<HeadCandidate>, HistoryError> {
        loop {
            if self.ahead.is_empty() && !self.heads_passed {
                self.ahead = self.heads.next().await?.into();
                self.heads_passed = self.ahead.is_empty();
            }
            match self.ahead.pop_front() {
                // Parts of checkpoints and records have no writes.
                Some(head) if head.head.header.kind != Kind::Blocks => {}
                next => return Ok(next),
            }
        }
    }

    async fn next_of_format1(&mut self) -> Result<Option<Passing>, HistoryError> {
        if self.links.is_none() {
            self.links = self.reader.format1_walk(LinkRead::Enough)?;
        }
        let Some(links) = &mut self.links else { return Ok(None) };
        while let Some(link) = links.next().await? {
            self.links_passed += 1;
            if let Some(passing) = Passing::of_link(&link, self.links_passed) {
                return Ok(Some(passing));
            }
        }
        Ok(None)
    }
}

impl From<HeadCandidate> for Passing {
    fn from(head: HeadCandidate) -> Self {
        let header = &head.head.header;
        Self {
            passed: Passed { id: head.head.id, ..Passed::from(header) },
            session: header.session,
            manifest: Manifest::Sealed(Box::new(head)),
        }
    }
}

impl Passing {
    /// None where it has no blocks.
    fn of_link(link: &Link, back: u64) -> Option<Self> {
        let entries: Vec<BlockEntry> = link.aggregation.blocks.iter().map(BlockEntry::from).collect();
        let passed = Passed::of_link(link, back, &entries)?;
        Some(Self { passed, session: SessionId::UNKNOWN, manifest: Manifest::Plain(entries) })
    }
}

/// Looks for a moment while a log is passed from new to old.
pub(crate) struct Search {
    moment: Moment,
    reached: Option<WritePlace>,
}

impl Search {
    pub(crate) fn new(moment: Moment) -> Self {
        Self { moment, reached: None }
    }

    pub(crate) fn moment(&self) -> Moment {
        self.moment
    }

    /// The last write that is part of the state at the moment, once it was passed.
    pub(crate) fn reached(&self) -> Option<&WritePlace> {
        self.reached.as_ref()
    }

    /// Whether the blocks of an aggregation can tell more.
    pub(crate) fn may_be_in(&self, passed: &Passed) -> bool {
        self.reached.is_none() && self.moment.may_be_in(passed)
    }

    /// How many of an aggregation's blocks are part of the state at the moment: all of them, once it was passed.
    pub(crate) fn handle(&mut self, passed: &Passed, entries: &[BlockEntry]) -> usize {
        if self.reached.is_some() {
            return entries.len();
        }
        if !self.moment.may_be_in(passed) {
            return 0;
        }
        let blocks = self.moment.blocks_of(entries);
        if let Some(last) = entries.get(..blocks).and_then(<[_]>::last) {
            self.reached = Some(WritePlace::new(passed, blocks - 1, last));
        }
        blocks
    }

    /// At the beginning of the log: an error where the moment was not met, unless it is the newest one of an empty log.
    pub(crate) fn end(&self, reader: &LogReader, span: Option<&Span>) -> Result<(), MomentError> {
        match (&self.reached, span) {
            (Some(_), _) => Ok(()),
            (None, Some(span)) => Err(self.moment.not_found(reader.vdisk(), reader.extent(), span)),
            (None, None) if self.moment == Moment::Newest => Ok(()),
            (None, None) => Err(MomentError::Empty { vdisk: reader.vdisk().clone() }),
        }
    }
}
