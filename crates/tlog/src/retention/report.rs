//! What was done, for people and programs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tlog_codec::{MarkName, PlaceInLog};
use tlog_player::{DiskState, Extent};
use tlog_proto::{AggregationNumber, Timestamp, VdiskId};

use crate::moment;
use crate::settings::show_size;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A name was given or taken away.
    Mark(MarkReport),
    /// An image was stored.
    Checkpoint(CheckpointReport),
    /// History was removed, or not.
    Prune(PruneReport),
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// RFC 3339.
    pub moment: String,
    /// Nanoseconds since 1970.
    pub moment_ns: u64,
    /// Its last write.
    pub generation: u64,
    /// Its last write.
    pub sequence: u64,
    /// The aggregation of that; 0 where it is in format 1.
    pub aggregation: u64,
}

impl From<&PlaceInLog> for PlaceReport {
    fn from(place: &PlaceInLog) -> Self {
        Self {
            moment: moment::show(place.timestamp),
            moment_ns: place.timestamp.0,
            generation: place.position.generation.0,
            sequence: place.position.sequence.0,
            aggregation: place.aggregation.0,
        }
    }
}

impl fmt::Display for PlaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { moment, generation, sequence, aggregation, .. } = self;
        write!(f, "{moment} (aggregation {aggregation}, generation {generation}, sequence {sequence})")
    }
}

/// What became of a mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkReport {
    /// The vdisk.
    pub vdisk: String,
    /// The name.
    pub name: String,
    /// The moment that it names now; none where it was taken away.
    pub place: Option<PlaceReport>,
    /// The moment that it named before.
    pub before: Option<PlaceReport>,
    /// The aggregation that says so.
    pub record: u64,
}

impl MarkReport {
    pub(super) fn new(
        vdisk: &VdiskId,
        name: &MarkName,
        place: Option<PlaceInLog>,
        before: Option<PlaceInLog>,
        record: AggregationNumber,
    ) -> Self {
        Self {
            vdisk: vdisk.to_string(),
            name: name.to_string(),
            place: place.as_ref().map(PlaceReport::from),
            before: before.as_ref().map(PlaceReport::from),
            record: record.0,
        }
    }
}

/// An image that was stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// The vdisk.
    pub vdisk: String,
    /// Number of its record.
    pub checkpoint: u64,
    /// What it is an image of.
    pub place: PlaceReport,
    /// Blocks that have content.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Aggregations that have them.
    pub parts: usize,
    /// How long it took.
    pub seconds: f64,
}

impl CheckpointReport {
    pub(super) fn new(
        vdisk: &VdiskId,
        number: AggregationNumber,
        place: &PlaceInLog,
        disk: &DiskState,
        parts: usize,
        took: Duration,
    ) -> Self {
        Self {
            vdisk: vdisk.to_string(),
            checkpoint: number.0,
            place: place.into(),
            blocks: disk.block_count() as u64,
            bytes: disk.content_bytes(),
            parts,
            seconds: took.as_secs_f64(),
        }
    }
}

/// A single moment that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointReport {
    /// Why it is kept.
    pub why: String,
    /// Where it is.
    pub place: PlaceReport,
}

impl PointReport {
    pub(super) fn new(why: &str, place: &PlaceInLog) -> Self {
        Self { why: why.to_owned(), place: place.into() }
    }
}

/// What became of a prune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// The vdisk.
    pub vdisk: String,
    /// Whether it was only asked what would be done.
    pub dry_run: bool,
    /// Whether history was removed.
    pub pruned: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// Every moment from here on is kept: RFC 3339.
    pub kept_since: String,
    /// Lowest aggregation that was kept before.
    pub first_before: u64,
    /// Lowest aggregation that is kept now; in a dry run, that would be.
    pub first: u64,
    /// Last aggregation of the log when it began.
    pub last: u64,
    /// Bytes on all stores that what is removed takes, about.
    pub removed_bytes: u64,
    /// Bytes on all stores that what is stored in its place takes, about.
    pub written_bytes: u64,
    /// The checkpoint that what is kept begins with.
    pub base: Option<u64>,
    /// Single moments before that which are kept.
    pub points: Vec<PointReport>,
    /// Who needs more than would have been kept.
    pub held_back_by: Option<String>,
    /// Stores that are out and remove it when they are back.
    pub later: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl PruneReport {
    pub(super) fn new(vdisk: &VdiskId, extent: &Extent, since: Timestamp, dry_run: bool) -> Self {
        Self {
            vdisk: vdisk.to_string(),
            dry_run,
            pruned: false,
            why_not: None,
            kept_since: moment::show(since),
            first_before: extent.first.0,
            first: extent.first.0,
            last: extent.last.0,
            removed_bytes: 0,
            written_bytes: 0,
            base: None,
            points: Vec::new(),
            held_back_by: None,
            later: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(super) fn planned(&mut self, first: AggregationNumber, removed_bytes: u64, written_bytes: u64) {
        (self.first, self.removed_bytes, self.written_bytes) = (first.0, removed_bytes, written_bytes);
    }

    pub(super) fn nothing(self, why: String) -> Self {
        Self { why_not: Some(why), first: self.first_before, ..self }
    }

    pub(super) fn done(&mut self, first: AggregationNumber, later: Vec<String>, took: Duration) {
        self.pruned = true;
        (self.first, self.later, self.seconds) = (first.0, later, took.as_secs_f64());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Mark(report) => report.fmt(f),
            Report::Checkpoint(report) => report.fmt(f),
            Report::Prune(report) => report.fmt(f),
        }
    }
}

impl fmt::Display for MarkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, name, place, before, .. } = self;
        match place {
            Some(place) => write!(f, "vdisk {vdisk}: mark {name} is {place}")?,
            None => write!(f, "vdisk {vdisk}: mark {name} is removed")?,
        }
        match before {
            Some(before) if place.as_ref() != Some(before) => write!(f, "; it was {before}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, checkpoint, place, blocks, bytes, parts, seconds } = self;
        write!(
            f,
            "vdisk {vdisk}: checkpoint {checkpoint} of {place}: {blocks} blocks ({}) in {parts} parts, stored and read back in \
             {seconds:.2} s",
            show_size(*bytes)
        )
    }
}

impl fmt::Display for PruneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, first_before, first, kept_since, .. } = self;
        let (removed, written) = (show_size(self.removed_bytes), show_size(self.written_bytes));
        if let Some(why) = &self.why_not {
            return write!(f, "vdisk {vdisk}: nothing was removed: {why}");
        }
        let last_removed = first.saturating_sub(1);
        let verb = if self.dry_run { "would be removed" } else { "are removed" };
        write!(
            f,
            "vdisk {vdisk}: aggregations {first_before} to {last_removed} {verb} (about {removed}; about {written} written in their \
             place); every moment since {kept_since} is kept"
        )?;
        for PointReport { why, place } in &self.points {
            write!(f, "\n  kept: {place}: {why}")?;
        }
        if let Some(who) = &self.held_back_by {
            write!(f, "\n  more stays, because {who} needs it")?;
        }
        if !self.later.is_empty() {
            write!(f, "\n  stores that are away remove it when they are back: {}", self.later.join(", "))?;
        }
        Ok(())
    }
}
