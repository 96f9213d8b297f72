//! Moments in the history of a disk.

use tlog_codec::{BlockEntry, Kind};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp, VdiskId};
use tlog_quorum::LinkError;

use crate::extent::{Extent, UncertainEnd};
use crate::format1::{Passed, StoredFormat};
use crate::history::AggregationInfo;

/// A moment in the history of a disk: the state after some block of its log, in the log's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After the last block.
    Newest,
    /// After the last block, in the log's order, whose timestamp is at or before this. Timestamps are the clients' and may
    /// step back; blocks with a later timestamp that lie before that block in the log are part of the state.
    At(Timestamp),
    /// After the last block, in the log's order, with this sequence: that of the highest generation which has it, or of the
    /// generation given.
    Sequence {
        /// Only in this generation.
        generation: Option<Generation>,
        /// The block's sequence.
        sequence: Sequence,
    },
    /// After the last block of this aggregation of format 2.
    Aggregation(AggregationNumber),
    /// After the last block of the aggregation with this id, of either format.
    Id(AggregationId),
}

/// Where in the log a moment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MomentReached {
    /// In which format that is stored.
    pub format: StoredFormat,
    /// Aggregation of the last block that is part of the state; in format 1 counted from the oldest.
    pub aggregation: AggregationNumber,
    /// Id of that aggregation.
    pub id: AggregationId,
    /// How many of the aggregation's blocks are part of it.
    pub blocks: u32,
    /// How many blocks the aggregation has.
    pub of: u32,
    /// Generation and sequence of the last block that is part of it.
    pub position: LogPosition,
    /// That block's timestamp.
    pub timestamp: Timestamp,
}

/// The log has no such moment, or it cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MomentError {
    /// Nothing was logged yet.
    #[error("vdisk {vdisk}: its log is empty, there is no moment to go to")]
    Empty {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// All blocks are younger.
    #[error(
        "vdisk {vdisk}: its history begins at {oldest} ns and ends at {newest} ns since the Unix epoch; {asked} is before that"
    )]
    BeforeHistory {
        /// The vdisk.
        vdisk: VdiskId,
        /// What was asked for.
        asked: Timestamp,
        /// Lowest timestamp of its log.
        oldest: Timestamp,
        /// Highest timestamp of its log.
        newest: Timestamp,
    },
    /// No block has that sequence.
    #[error("vdisk {vdisk}: no block of its log has sequence {sequence}{}; it goes from {first} to {last} (generation:sequence)", in_generation(*generation))]
    NoSuchSequence {
        /// The vdisk.
        vdisk: VdiskId,
        /// What was asked for.
        sequence: Sequence,
        /// In which generation, if that was said.
        generation: Option<Generation>,
        /// First block of the log.
        first: LogPosition,
        /// Last block of the log.
        last: LogPosition,
    },
    /// No aggregation has that number.
    #[error("vdisk {vdisk}: its log has aggregations {first} to {last}, not {asked}")]
    NoSuchAggregation {
        /// The vdisk.
        vdisk: VdiskId,
        /// What was asked for.
        asked: AggregationNumber,
        /// Lowest number of the log.
        first: AggregationNumber,
        /// Highest number of the log.
        last: AggregationNumber,
    },
    /// No aggregation has that id.
    #[error("vdisk {vdisk}: no aggregation of its log has id {asked}; see 'tlog history {vdisk} --json'")]
    NoSuchId {
        /// The vdisk.
        vdisk: VdiskId,
        /// What was asked for.
        asked: AggregationId,
    },
    /// What may lie above the log's certain end would change what the moment is.
    #[error(
        "vdisk {vdisk}: it cannot be told whether aggregation {} was acknowledged and belongs to this moment: {} of {} stores that must hold it are in reach with it. Bring back {}, or accept the uncertain end, which may leave out the newest writes",
        end.beyond, end.holders.len(), end.needed, end.missing.join(", ")
    )]
    UncertainEnd {
        /// The vdisk.
        vdisk: VdiskId,
        /// What is not certain.
        end: Box<UncertainEnd>,
    },
    /// Newer aggregations of format 1 may have been acknowledged and cannot be read.
    #[error(
        "vdisk {vdisk}: the end of its history of format 1 cannot be told: {}. Bring back the stores that hold it, or accept the uncertain end, which may leave out the newest writes",
        doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Format1UncertainEnd {
        /// The vdisk.
        vdisk: VdiskId,
        /// What cannot be read.
        doubts: Vec<LinkError>,
    },
    /// Aggregations of format 1 cannot be named by number.
    #[error("vdisk {vdisk}: its history is one of format 1, which has no numbers; name a time or a sequence")]
    NoNumbers {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// What the disk was before the history that is kept is not known.
    #[error(
        "vdisk {vdisk}: history below aggregation {first} was removed, so blocks that were written only before it are not known; 'tlog points {vdisk}' shows the moments that are left"
    )]
    BasePruned {
        /// The vdisk.
        vdisk: VdiskId,
        /// Lowest number that is kept.
        first: AggregationNumber,
    },
}

fn in_generation(generation: Option<Generation>) -> String {
    generation.map(|g| format!(" in generation {g}")).unwrap_or_default()
}

impl Moment {
    /// Whether what may lie above the certain end could change where the moment is.
    pub(crate) fn depends_on(&self, end: &UncertainEnd) -> bool {
        let any = |holds: &dyn Fn(&AggregationInfo) -> bool| {
            end.more || end.tail.iter().filter(|info| info.kind == Kind::Blocks).any(holds)
        };
        match *self {
            Moment::Newest => true,
            Moment::At(time) => any(&|info| info.oldest_timestamp <= time),
            Moment::Sequence { generation, sequence } => any(&|info| {
                generation.is_none_or(|g| g == info.generation)
                    && (info.first_sequence..=info.last_sequence).contains(&sequence)
            }),
            Moment::Aggregation(number) => {
                number >= end.beyond && (end.more || end.tail.iter().any(|info| info.number == number))
            }
            Moment::Id(id) => any(&|info| info.id == id),
        }
    }

    /// Whether the moment is in an aggregation, by what is known of it without its blocks: given from new to old, the first that
    /// may have it and has such a block.
    pub(crate) fn may_be_in(&self, passed: &Passed) -> bool {
        match *self {
            Moment::Newest => true,
            Moment::At(time) => passed.oldest <= time,
            Moment::Sequence { generation, sequence } => {
                let (lowest, highest) = passed.sequences;
                generation.is_none_or(|g| g == passed.generation) && (lowest..=highest).contains(&sequence)
            }
            // What has no writes is not passed: then it is the one before it.
            Moment::Aggregation(number) => passed.format == StoredFormat::Two && passed.number <= number,
            Moment::Id(id) => passed.id == id,
        }
    }

    /// How many blocks of such an aggregation are part of the state.
    pub(crate) fn blocks_of(&self, entries: &[BlockEntry]) -> usize {
        let last = match *self {
            Moment::Newest | Moment::Aggregation(_) | Moment::Id(_) => return entries.len(),
            Moment::At(time) => entries.iter().rposition(|entry| entry.timestamp <= time),
            Moment::Sequence { sequence, .. } => entries.iter().rposition(|entry| entry.sequence == sequence),
        };
        last.map_or(0, |at| at + 1)
    }

    /// The error for a moment that no aggregation has. `seen` spans the whole log.
    pub(crate) fn not_found(&self, vdisk: &VdiskId, extent: &Extent, seen: &Span) -> MomentError {
        let vdisk = vdisk.clone();
        match *self {
            Moment::Newest => MomentError::Empty { vdisk },
            Moment::At(asked) => {
                MomentError::BeforeHistory { vdisk, asked, oldest: seen.oldest, newest: seen.newest }
            }
            Moment::Sequence { generation, sequence } => MomentError::NoSuchSequence {
                vdisk,
                sequence,
                generation,
                first: seen.first,
                last: seen.last,
            },
            Moment::Aggregation(asked) => {
                MomentError::NoSuchAggregation { vdisk, asked, first: extent.first, last: extent.last }
            }
            Moment::Id(asked) => MomentError::NoSuchId { vdisk, asked },
        }
    }
}

/// What a log spans, learned while it is walked from new to old.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    oldest: Timestamp,
    newest: Timestamp,
    first: LogPosition,
    last: LogPosition,
}

impl Span {
    /// Takes the next older aggregation in.
    pub(crate) fn add(span: &mut Option<Self>, passed: &Passed) {
        let &Passed { oldest, newest, first, last, .. } = passed;
        let span = span.get_or_insert(Self { oldest, newest, first, last });
        span.oldest = span.oldest.min(oldest);
        span.newest = span.newest.max(newest);
        span.first = first;
    }

    /// Takes the next newer aggregation in.
    pub(crate) fn extend(span: &mut Option<Self>, info: &AggregationInfo) {
        let at = |sequence| LogPosition { generation: info.generation, sequence };
        let (oldest, newest) = (info.oldest_timestamp, info.newest_timestamp);
        let (first, last) = (at(info.first_sequence), at(info.last_sequence));
        let span = span.get_or_insert(Self { oldest, newest, first, last });
        span.oldest = span.oldest.min(oldest);
        span.newest = span.newest.max(newest);
        span.last = last;
    }
}
