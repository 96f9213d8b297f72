//! Moments worth restoring: where the log itself says that something ended, began, or stood still, and those that have a name or an
//! image.
//!
//! All but the last two is about the joints between aggregations, as headers have no more; what happened within one takes its key.
//! An aggregation has one client and one generation, and is sealed a bounded time after its first block, so that another client, another
//! generation and a longer pause are always at a joint.

use std::collections::VecDeque;
use std::time::Duration;

use tlog_codec::{Kind, MarkName, PlaceInLog, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, SessionId, Timestamp};

use crate::format1::StoredFormat;
use crate::history::{AggregationInfo, History, HistoryError};
use crate::moment::Moment;
use crate::reader::LogReader;
use crate::records::RecordsError;

/// Which moments are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointOptions {
    /// Only those at or after this.
    pub since: Option<Timestamp>,
    /// Nothing was written for longer than this: a pause.
    pub gap: Duration,
}

impl PointOptions {
    /// Longer than a client that writes now and then leaves between two writes.
    pub const DEFAULT_GAP: Duration = Duration::from_secs(5 * 60);
}

impl Default for PointOptions {
    fn default() -> Self {
        Self { since: None, gap: Self::DEFAULT_GAP }
    }
}

/// Why a moment is worth restoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointReason {
    /// It is the first aggregation with writes that is kept.
    Beginning,
    /// The log ends there.
    End,
    /// A new generation begins after it: the last moment before the client began its sequences anew.
    BeforeGeneration(Generation),
    /// It is the first write of its generation.
    FirstOfGeneration(Generation),
    /// Another client instance goes on after it.
    BeforeSession(SessionId),
    /// Nothing was written after it for so long: a quiet moment.
    BeforePause(Duration),
    /// Timestamps step back by so much after it. A moment that is named by a time near it may be after the step.
    BeforeStepBack(Duration),
    /// What older servers wrote ends there.
    EndOfFormat1,
    /// Somebody called it so.
    Mark(MarkName),
    /// The log has an image of it.
    Checkpoint {
        /// Number of the checkpoint's record.
        record: AggregationNumber,
        /// Later moments can be made from it too.
        is_base: bool,
    },
}

impl PointReason {
    /// For JSON.
    pub fn name(&self) -> &'static str {
        match self {
            PointReason::Beginning => "beginning",
            PointReason::End => "end",
            PointReason::BeforeGeneration(_) => "before_generation",
            PointReason::FirstOfGeneration(_) => "first_of_generation",
            PointReason::BeforeSession(_) => "before_session",
            PointReason::BeforePause(_) => "before_pause",
            PointReason::BeforeStepBack(_) => "before_step_back",
            PointReason::EndOfFormat1 => "end_of_format1",
            PointReason::Mark(_) => "mark",
            PointReason::Checkpoint { .. } => "checkpoint",
        }
    }
}

/// A moment worth restoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Exactly that moment, whatever the clocks said.
    pub moment: Moment,
    /// When, about: highest timestamp of its aggregation; for the first write of a generation the lowest.
    pub timestamp: Timestamp,
    /// Generation and sequence of the last write that is part of it.
    pub position: LogPosition,
    /// In which format its aggregation is stored.
    pub format: StoredFormat,
    /// Its aggregation; in format 1 counted from the oldest, and 0 where a mark alone tells of it. It may have been removed, where the
    /// log has an image of the moment.
    pub aggregation: AggregationNumber,
    /// Id of that aggregation.
    pub id: AggregationId,
    /// Why; at least one reason.
    pub reasons: Vec<PointReason>,
}

/// The moments worth restoring, from old to new. Made by [`LogReader::points`].
pub struct Points {
    history: History,
    options: PointOptions,
    /// The aggregation before the next one, and why it is worth restoring as far as that is known.
    previous: Option<(AggregationInfo, Vec<PointReason>)>,
    /// Marks and checkpoints that were not answered yet, from old to new, each moment once.
    recorded: VecDeque<Point>,
    ended: bool,
    aggregations: u64,
}

impl LogReader {
    /// Moments worth restoring, by what headers say. Needs no key but that of a part in format 1, of which all bytes are read.
    pub fn points(&self, options: PointOptions) -> Points {
        let history = self.history();
        Points { history, options, previous: None, recorded: VecDeque::new(), ended: false, aggregations: 0 }
    }

    /// The same, and besides the moments that have a mark or an image, which takes the key. Marks of moments that were removed, and of
    /// which there is no image, are left out.
    pub async fn points_with_records(
        &self,
        keys: &VdiskKeys,
        options: PointOptions,
    ) -> Result<Points, RecordsError> {
        let (marks, checkpoints) = (self.marks(keys).await?, self.checkpoints(keys).await?);
        let first = self.extent().first;
        let mut recorded = Vec::new();
        for mark in marks {
            let removed = first.0 > 1 && mark.place.aggregation < first;
            let moment = moment_of(&mark.place);
            if !removed || checkpoints.iter().any(|checkpoint| checkpoint.is_of(moment)) {
                recorded.push(Point::at(&mark.place, PointReason::Mark(mark.name)));
            }
        }
        for checkpoint in checkpoints {
            let (record, is_base) = (checkpoint.number, checkpoint.is_base(first));
            recorded.push(Point::at(&checkpoint.record.place, PointReason::Checkpoint { record, is_base }));
        }
        recorded.sort_by_key(|point| point.position);
        recorded.dedup_by(|later, earlier| earlier.takes(later));
        Ok(Points { recorded: recorded.into(), ..self.points(options) })
    }
}

impl Points {
    /// The next few, perhaps none of a long stretch; nothing at the end. After what is before a fault comes the error, again and
    /// again.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Point>>, HistoryError> {
        if self.ended {
            return Ok(None);
        }
        let mut points = Vec::new();
        match self.history.next_batch().await? {
            Some(batch) => {
                self.aggregations += batch.len() as u64;
                // Parts of checkpoints and records are about moments, and none themselves.
                let with_writes = batch.into_iter().filter(|info| info.kind == Kind::Blocks);
                with_writes.for_each(|info| self.handle(info, &mut points));
            }
            None => {
                self.ended = true;
                if let Some((last, mut reasons)) = self.previous.take() {
                    reasons.push(PointReason::End);
                    self.answer(Point::after(&last, reasons), &mut points);
                }
                points.extend(self.recorded.drain(..));
            }
        }
        points.retain(|point| self.options.since.is_none_or(|since| point.timestamp >= since));
        Ok(Some(points))
    }

    /// All that are left, at once.
    pub async fn collect(mut self) -> Result<Vec<Point>, HistoryError> {
        let mut all = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            all.extend(batch);
        }
        Ok(all)
    }

    /// How many aggregations were read.
    pub fn aggregations(&self) -> u64 {
        self.aggregations
    }

    /// Takes the next newer aggregation in, which tells about the one before it.
    fn handle(&mut self, next: AggregationInfo, points: &mut Vec<Point>) {
        let Some((previous, mut reasons)) = self.previous.take() else {
            self.previous = Some((next, vec![PointReason::Beginning]));
            return;
        };
        let joint = between(&previous, &next, self.options.gap);
        let new_generation = next.generation != previous.generation;
        reasons.extend(joint);
        if !reasons.is_empty() {
            self.answer(Point::after(&previous, reasons), points);
        }
        if new_generation {
            self.answer(Point::first_of(&next), points);
        }
        self.previous = Some((next, Vec::new()));
    }

    /// Answers a point, after what was recorded of earlier moments and together with what was of the same.
    fn answer(&mut self, mut point: Point, points: &mut Vec<Point>) {
        while let Some(recorded) = self.recorded.pop_front_if(|next| next.position <= point.position) {
            if !point.takes(&recorded) {
                points.push(recorded);
            }
        }
        points.push(point);
    }
}

/// The moment after a write, by its position: the one name that it has for ever.
fn moment_of(place: &PlaceInLog) -> Moment {
    let LogPosition { generation, sequence } = place.position;
    Moment::Sequence { generation: Some(generation), sequence }
}

/// Why the moment between two aggregations is worth restoring.
fn between(before: &AggregationInfo, after: &AggregationInfo, gap: Duration) -> Vec<PointReason> {
    let mut reasons = Vec::new();
    if before.format != after.format {
        reasons.push(PointReason::EndOfFormat1);
    }
    if before.generation != after.generation {
        reasons.push(PointReason::BeforeGeneration(after.generation));
    }
    if before.session != after.session && before.format == after.format {
        reasons.push(PointReason::BeforeSession(after.session));
    }
    let (last, next) = (before.newest_timestamp.0, after.oldest_timestamp.0);
    if next < last {
        reasons.push(PointReason::BeforeStepBack(Duration::from_nanos(last - next)));
    } else if Duration::from_nanos(next - last) > gap {
        reasons.push(PointReason::BeforePause(Duration::from_nanos(next - last)));
    }
    reasons
}

impl Point {
    /// After the last block of an aggregation.
    fn after(info: &AggregationInfo, reasons: Vec<PointReason>) -> Self {
        let moment = match info.format {
            StoredFormat::Two => Moment::Aggregation(info.number),
            // It has no numbers, and its sequences and times need not be its own.
            StoredFormat::One => Moment::Id(info.id),
        };
        let position = LogPosition { generation: info.generation, sequence: info.last_sequence };
        Self { position, timestamp: info.newest_timestamp, reasons, ..Self::of(info, moment) }
    }

    /// After the first block of an aggregation of format 2 that begins a generation.
    fn first_of(info: &AggregationInfo) -> Self {
        let (generation, sequence) = (info.generation, info.first_sequence);
        let moment = Moment::Sequence { generation: Some(generation), sequence };
        let reasons = vec![PointReason::FirstOfGeneration(generation)];
        Self { reasons, ..Self::of(info, moment) }
    }

    /// A moment that something was recorded of.
    fn at(place: &PlaceInLog, reason: PointReason) -> Self {
        let &PlaceInLog { aggregation, id, position, timestamp, .. } = place;
        let format = if aggregation.0 == 0 { StoredFormat::One } else { StoredFormat::Two };
        Self { moment: moment_of(place), timestamp, position, format, aggregation, id, reasons: vec![reason] }
    }

    /// Takes the reasons of another point over, where it is the same moment.
    fn takes(&mut self, other: &Point) -> bool {
        let same = self.position == other.position && self.id == other.id;
        if same {
            self.reasons.extend_from_slice(&other.reasons);
        }
        same
    }

    fn of(info: &AggregationInfo, moment: Moment) -> Self {
        Self {
            moment,
            timestamp: info.oldest_timestamp,
            position: LogPosition { generation: info.generation, sequence: info.first_sequence },
            format: info.format,
            aggregation: info.number,
            id: info.id,
            reasons: Vec::new(),
        }
    }
}
