//! Walking the heads of a log, in either direction, a bounded number of bytes at a time.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use tlog_codec::ChainBreak;
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_quorum::{HeadCandidate, HeadsRead, Located};
use tlog_store::NumberRanges;

use crate::history::HistoryError;
use crate::reader::LogReader;
use crate::resolve::{Resolution, Resolved, resolve};
use crate::task::Task;

/// Bytes of heads, from all stores together, that one step of a walk aims at.
const STEP_BYTES: u64 = 8 << 20;
/// Numbers that the first step asks for, when nothing is known yet of how large their heads are.
const FIRST_STEP: u64 = 16;
/// Most numbers in one step.
const LONGEST_STEP: u64 = 1024;

/// How many numbers the next step asks for. Heads are as large as manifests are long, so that is learned on the way.
#[derive(Clone, Copy, Debug)]
struct Step(u64);

impl Step {
    fn learn(&mut self, located: &[Located]) {
        let bytes = |c: &HeadCandidate| (c.holders.len() * c.head.stored_len()) as u64;
        let total: u64 = located.iter().flat_map(|l| &l.candidates).map(bytes).sum();
        self.learn_bytes(total, located.len() as u64);
    }

    fn learn_bytes(&mut self, total: u64, numbers: u64) {
        let each = (total / numbers.max(1)).max(1);
        self.0 = (STEP_BYTES / each).clamp(1, self.0.saturating_mul(4).min(LONGEST_STEP));
    }
}

/// From old to new. Never fails: what is lost or does not fit is marked.
pub(crate) struct Forward {
    reader: LogReader,
    /// The next number to answer.
    next: AggregationNumber,
    /// The last number to answer.
    to: AggregationNumber,
    /// Id of what is before `next`, where it is known.
    before: Option<AggregationId>,
    /// Asked for, but what follows has yet to decide between candidates.
    undecided: Vec<Located>,
    /// Stores that are slow are not waited for, as long as what must be there is found.
    soon: bool,
    step: Step,
}

impl Forward {
    /// Answers the numbers `from` to `to`, which must be within the extent.
    pub(crate) fn new(reader: LogReader, from: AggregationNumber, to: AggregationNumber) -> Self {
        let before = reader.before().id().filter(|_| from.0 == 1);
        Self { reader, next: from, to, before, undecided: Vec::new(), soon: false, step: Step(FIRST_STEP) }
    }

    /// The same without waiting for the slowest stores: for looking a few numbers up, not for what says what each store has.
    pub(crate) fn soon(reader: LogReader, from: AggregationNumber, to: AggregationNumber) -> Self {
        Self { soon: true, ..Self::new(reader, from, to) }
    }

    /// The next few numbers; nothing after the last.
    pub(crate) async fn next(&mut self) -> Vec<Resolved> {
        let end = self.reader.extent().last;
        if self.next > self.to {
            return Vec::new();
        }
        loop {
            let from = self.undecided.last().map_or(self.next, |located| located.number.next());
            // What decides may lie above what is to be answered.
            let limit = if self.undecided.is_empty() { self.to } else { end };
            let to = AggregationNumber(from.0.saturating_add(self.step.0 - 1)).min(limit);
            let (stores, survey) = (self.reader.stores(), self.reader.survey());
            let located = match self.soon {
                true => stores.heads_soon(survey, from..=to).await,
                false => stores.heads(survey, from..=to).await,
            };
            self.step.learn(&located);
            self.undecided.extend(located);
            let last_id = if to >= end { self.reader.last_id() } else { None };
            let Resolution { mut run, ambiguous } = resolve(self.before, &self.undecided, last_id);
            if ambiguous && to < end {
                continue;
            }
            if std::mem::take(&mut self.soon) {
                if run.iter().any(|resolved| resolved.chosen.is_none()) {
                    self.undecided.clear();
                    continue; // a store that was not waited for may have it
                }
                self.soon = true;
            }
            self.undecided.clear();
            self.before = run.last().and_then(|r| r.chosen.as_ref()).map(|c| c.head.id);
            self.next = to.next();
            run.retain(|resolved| resolved.number <= self.to);
            return run;
        }
    }
}

/// From new to old. Each step is proven by the one before: an aggregation names the one that it follows. So one store is asked, and
/// others only for what it lacks.
pub(crate) struct Backward {
    reader: LogReader,
    /// The highest number that was not answered yet.
    next: AggregationNumber,
    /// Its id; none where it is lost.
    expected: Option<AggregationId>,
    /// The lowest number to answer.
    to: AggregationNumber,
    step: Step,
    /// What is below is read while what is above is looked at: ranges one below the other, with their lowest numbers.
    ahead: VecDeque<(AggregationNumber, Task<HeadsRead>)>,
}

/// Steps that a walk back reads ahead: reading takes about twice as long as looking at what was read.
const AHEAD: usize = 2;

impl Backward {
    /// From an aggregation down to `to`, or to the first that the log keeps.
    pub(crate) fn new(
        reader: LogReader,
        (from, id): (AggregationNumber, AggregationId),
        to: AggregationNumber,
    ) -> Self {
        let to = to.max(reader.extent().first);
        Self { reader, next: from, expected: Some(id), to, step: Step(FIRST_STEP), ahead: VecDeque::new() }
    }

    /// From the end of the log.
    pub(crate) fn from_end(reader: LogReader) -> Self {
        let (next, expected, to) = (reader.extent().last, reader.last_id(), reader.extent().first);
        Self { reader, next, expected, to, step: Step(FIRST_STEP), ahead: VecDeque::new() }
    }

    /// What the last one that was answered follows.
    pub(crate) fn before(&self) -> Option<AggregationId> {
        self.expected
    }

    /// The next few, newest first; nothing after the last of them.
    pub(crate) async fn next(&mut self) -> Result<Vec<HeadCandidate>, HistoryError> {
        let first = self.to;
        if self.next < first {
            return Ok(Vec::new());
        }
        let ahead = match self.ahead.pop_front() {
            Some((_, ahead)) => Some(ahead.await).filter(|read| *read.range().end() == self.next),
            None => None,
        };
        let read = match ahead {
            Some(read) => read,
            None => {
                self.ahead.clear(); // it went on elsewhere
                self.read_from(self.next).1.await
            }
        };
        let range = read.range().clone();
        self.step.learn_bytes(read.bytes(), range.end().0 + 1 - range.start().0);
        let mut lowest = self.ahead.back().map_or(*range.start(), |(lowest, _)| *lowest);
        while self.ahead.len() < AHEAD && lowest > first {
            let Some(below) = lowest.previous() else { break };
            let read = self.read_from(below);
            lowest = read.0;
            self.ahead.push_back(read);
        }
        let (stores, survey) = (self.reader.stores(), self.reader.survey());
        let links = match self.expected {
            Some(newest) => stores.named_heads(survey, read, newest).await,
            None => None,
        };
        let links = match links {
            Some(links) => links,
            None => self.links_of_all_stores(range.clone()).await?,
        };
        let last = links.last().map(|link| &link.head.header);
        let (lowest, prev) = last.map(|header| (header.number, header.prev)).unzip();
        self.expected = prev;
        self.next = lowest.unwrap_or(*range.start()).previous().unwrap_or_default();
        if self.next.0 == 0 {
            self.check_beginning(&links)?;
        }
        Ok(links)
    }

    /// Reads as many heads down from a number as one step has; the first is their lowest number.
    fn read_from(&self, newest: AggregationNumber) -> (AggregationNumber, Task<HeadsRead>) {
        let oldest = AggregationNumber(newest.0.saturating_sub(self.step.0 - 1)).max(self.to);
        let reader = self.reader.clone();
        let read = async move { reader.stores().heads_of_one(reader.survey(), oldest..=newest).await };
        (oldest, Task::spawn(read))
    }

    /// The same of all stores, for what was not found on one after the other: the error names what is lost.
    async fn links_of_all_stores(
        &self,
        range: RangeInclusive<AggregationNumber>,
    ) -> Result<Vec<HeadCandidate>, HistoryError> {
        let located = self.reader.stores().heads(self.reader.survey(), range).await;
        let mut expected = self.expected;
        let mut links = Vec::with_capacity(located.len());
        for at in located.iter().rev() {
            let link = at.candidates.iter().find(|c| Some(c.head.id) == expected);
            let Some(link) = link else {
                if !links.is_empty() {
                    // They may be all that is asked for; the loss is told when they are not.
                    return Ok(links);
                }
                let gone = located.iter().filter(|l| l.candidates.is_empty() || l.number == at.number);
                // From low to high as they are reported, with what was found under the lowest.
                let conditions = gone.clone().next().map_or(&at.conditions, |l| &l.conditions);
                let numbers: NumberRanges = gone.map(|l| l.number).collect();
                return Err(self.reader.lost(numbers, conditions).await);
            };
            expected = Some(link.head.header.prev);
            links.push(link.clone());
        }
        Ok(links)
    }

    fn check_beginning(&self, links: &[HeadCandidate]) -> Result<(), HistoryError> {
        let found = links.last().map(|link| link.head.header.prev);
        match (self.reader.before().id(), found) {
            (Some(expected), Some(found)) if found != expected => Err(HistoryError::ChainBroken {
                vdisk: self.reader.vdisk().clone(),
                source: ChainBreak::Prev { number: AggregationNumber(1), expected, found },
            }),
            _ => Ok(()),
        }
    }
}
