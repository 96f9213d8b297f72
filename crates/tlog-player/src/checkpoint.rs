//! Images of moments that the log keeps of itself: which ones there are, and what is in them.
//!
//! ```text
//! writes      A         A+1 ... R ... end            the disk at R: the last writes of A+1 to R, and for the rest
//! image of A        p   p  p  C                      the image of A, whose parts p are complete when its record C is there
//! ```
//! A checkpoint says what the disk was after aggregation A. A restore to R, at or after A, reads no history before A. What is before A
//! can be removed from the log and the disk is still known at every moment from A on.
//!
//! A checkpoint may also be there for its moment alone, when what follows A was removed; and it may have only the blocks in which it
//! differs from the image of another one, its base.

use std::collections::{BTreeSet, HashMap};

use tlog_codec::{BlockEntry, CheckpointPart, CheckpointRecord, Kind, Opener, PlaceInLog, Record, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber, BlockIndex, Operation};
use tlog_quorum::{HeadCandidate, Located};

use crate::disk_state::{DiskState, DiskStateError, ReadOptions};
use crate::find::{Finder, Found};
use crate::moment::{Moment, MomentError};
use crate::reader::LogReader;
use crate::records::{RecordFound, Records, RecordsError};

/// Heads of parts that are asked for at once.
const PARTS_AT_ONCE: usize = 64;
/// Most images that are laid over each other. Each is made from the one before, so that more are a fault.
const MOST_LAYERS: usize = 1024;

/// A checkpoint that a log has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of its record.
    pub number: AggregationNumber,
    /// What it is an image of, and its parts.
    pub record: CheckpointRecord,
}

impl Checkpoint {
    /// Whether the disk at moments after it can be made from it and the history that is kept, which begins with `first`.
    pub fn is_base(&self, first: AggregationNumber) -> bool {
        let PlaceInLog { aggregation, blocks, of, .. } = self.record.place;
        self.record.base.is_none() && blocks == of && aggregation.next() >= first
    }

    /// Whether the disk at a moment can be made from it, the writes after it and nothing else of what is kept from `first` on.
    pub(crate) fn is_base_of(&self, found: &Found, first: AggregationNumber) -> bool {
        let aggregation = self.record.place.aggregation;
        // Where the moment is in the middle of its aggregation, an image of the whole of that is later.
        self.is_base(first) && (aggregation < found.number || found.whole && aggregation == found.number)
    }

    /// Whether all of the image is in what is kept from `first` on. `all` are those of the log, newest first.
    pub fn is_whole_from(&self, all: &[Checkpoint], first: AggregationNumber) -> bool {
        let layers = layers(all, self);
        let kept = |layer: &&Checkpoint| {
            layer.number >= first && layer.record.parts.iter().all(|part| part.number >= first)
        };
        layers.iter().all(kept) && layers.last().is_some_and(|lowest| lowest.record.base.is_none())
    }

    /// Whether this image is that of a moment.
    pub(crate) fn is_of(&self, moment: Moment) -> bool {
        let place = self.record.place;
        match moment {
            Moment::Newest | Moment::At(_) => false,
            Moment::Sequence { generation, sequence } => {
                place.position.sequence == sequence
                    && generation.is_none_or(|generation| generation == place.position.generation)
            }
            Moment::Aggregation(number) => place.aggregation == number && place.blocks == place.of,
            Moment::Id(id) => place.id == id && place.blocks == place.of,
        }
    }
}

/// What an image has of some blocks; those that it has not have no content.
pub(crate) struct FromImage {
    /// The checkpoint.
    pub(crate) checkpoint: Checkpoint,
    pub(crate) blocks: HashMap<BlockIndex, InPart>,
}

/// A block in a part of an image, as it was written.
pub(crate) struct InPart {
    /// The part.
    pub(crate) number: AggregationNumber,
    pub(crate) id: AggregationId,
    /// Which of its blocks it is.
    pub(crate) at: usize,
    pub(crate) entry: BlockEntry,
}

impl LogReader {
    /// Blocks as they were at a moment, where no write of them up to it is kept: from the newest image that fits and can be read. None
    /// where no image fits. Reads heads of those parts alone that can have one of the blocks.
    pub(crate) async fn blocks_in_image(
        &self,
        keys: &VdiskKeys,
        moment: Moment,
        wanted: &BTreeSet<BlockIndex>,
    ) -> Result<Option<FromImage>, DiskStateError> {
        let opener = Opener::new(keys.clone());
        let start = Finder::new(self, &opener).find(moment).await?;
        let mut failed = None;
        for base in self.bases_of(keys, moment, start, &ReadOptions::default()).await? {
            let Some(uppermost) = base.first() else { continue };
            match self.blocks_in_layers(&opener, &base, wanted).await {
                Ok(blocks) => return Ok(Some(FromImage { checkpoint: uppermost.clone(), blocks })),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    async fn blocks_in_layers(
        &self,
        opener: &Opener,
        base: &[Checkpoint],
        wanted: &BTreeSet<BlockIndex>,
    ) -> Result<HashMap<BlockIndex, InPart>, DiskStateError> {
        if let Some(uppermost) = base.first() {
            self.check_is_of_chain(&uppermost.record.place).await?;
        }
        let mut blocks = HashMap::new();
        for layer in base {
            let may_have = |part: &&CheckpointPart| {
                wanted.range(part.first..).next().is_some_and(|index| *index <= part.last)
            };
            let parts: Vec<CheckpointPart> = layer.record.parts.iter().filter(may_have).copied().collect();
            let take = |part: &HeadCandidate, entries: Vec<BlockEntry>| {
                let (number, id) = (part.head.header.number, part.head.id);
                for (at, entry) in entries.into_iter().enumerate() {
                    if wanted.contains(&entry.index) {
                        // What is in the image above counts.
                        blocks.entry(entry.index).or_insert(InPart { number, id, at, entry });
                    }
                }
            };
            self.heads_of_parts(opener, layer, &parts, take).await?;
        }
        Ok(blocks)
    }

    /// Of images that a moment can be made from the one that is nearest to it. Reads records only as far as there may be a nearer one:
    /// each stands behind the moment that it is an image of.
    pub(crate) async fn nearest_base(
        &self,
        keys: &VdiskKeys,
        found: &Found,
    ) -> Result<Option<Checkpoint>, RecordsError> {
        let first = self.extent().first;
        let mut nearest: Option<Checkpoint> = None;
        let mut records = self.records(keys);
        let place = |checkpoint: &Checkpoint| checkpoint.record.place.aggregation;
        while nearest.as_ref().map(place) < records.no_higher_than()
            && let Some(RecordFound { number, record, .. }) = records.next().await?
        {
            let Record::Checkpoint(record) = record else { continue };
            let checkpoint = Checkpoint { number, record };
            let fits = checkpoint.is_base_of(found, first) && checkpoint.is_whole_from(&[], first);
            // Of two of one moment the newer.
            if fits && nearest.as_ref().map(place) < Some(place(&checkpoint)) {
                nearest = Some(checkpoint);
            }
        }
        Ok(nearest)
    }

    /// The checkpoints of the log that are complete, newest first.
    pub async fn checkpoints(&self, keys: &VdiskKeys) -> Result<Vec<Checkpoint>, RecordsError> {
        let mut found = Vec::new();
        let mut records: Records = self.records(keys);
        while let Some(record) = records.next().await? {
            if let Record::Checkpoint(checkpoint) = record.record {
                found.push(Checkpoint { number: record.number, record: checkpoint });
            }
        }
        // A part that was removed takes its checkpoint with it, and that those that are laid over it.
        let first = self.extent().first;
        let all = found.clone();
        found.retain(|checkpoint| checkpoint.is_whole_from(&all, first));
        Ok(found)
    }

    /// The disk that a checkpoint of this log is an image of, from the image alone.
    pub async fn image(
        &self,
        keys: &VdiskKeys,
        number: AggregationNumber,
    ) -> Result<DiskState, DiskStateError> {
        let record = self.checkpoint_at(keys, number).await?;
        self.image_of(keys, Checkpoint { number, record }).await
    }

    /// The same of one whose parts are stored and whose record is not, so that nobody goes by it yet.
    pub async fn image_to_be(
        &self,
        keys: &VdiskKeys,
        record: CheckpointRecord,
    ) -> Result<DiskState, DiskStateError> {
        self.image_of(keys, Checkpoint { number: self.extent().last.next(), record }).await
    }

    async fn image_of(&self, keys: &VdiskKeys, checkpoint: Checkpoint) -> Result<DiskState, DiskStateError> {
        let mut layers = vec![checkpoint.clone()];
        let mut base = checkpoint.record.base;
        while let Some(number) = base {
            if layers.len() >= MOST_LAYERS {
                return Err(self.not_as_said(&checkpoint, "it is laid over too many others"));
            }
            let record = self.checkpoint_at(keys, number).await?;
            base = record.base;
            layers.push(Checkpoint { number, record });
        }
        self.image_of_layers(keys, &checkpoint, &layers).await
    }

    async fn checkpoint_at(
        &self,
        keys: &VdiskKeys,
        number: AggregationNumber,
    ) -> Result<CheckpointRecord, DiskStateError> {
        if self.extent().contains(number)
            && let Some(Record::Checkpoint(record)) = self.record_at(keys, number).await?
        {
            return Ok(record);
        }
        let (vdisk, extent) = (self.vdisk().clone(), self.extent());
        let (first, last) = (extent.first, extent.last);
        Err(MomentError::NoSuchAggregation { vdisk, asked: number, first, last }.into())
    }

    /// Hands the heads of a checkpoint's parts on, by rising index of their blocks, each proven by the id that the record has of it.
    pub(crate) async fn parts_of(
        &self,
        opener: &Opener,
        checkpoint: &Checkpoint,
        mut take: impl FnMut(&HeadCandidate, Vec<BlockEntry>),
    ) -> Result<(), DiskStateError> {
        let mut content = (0, 0);
        let count = |part: &HeadCandidate, entries: Vec<BlockEntry>| {
            for entry in entries.iter().filter(|entry| entry.operation == Operation::Set) {
                content = (content.0 + 1, content.1 + u64::from(entry.length));
            }
            take(part, entries);
        };
        self.heads_of_parts(opener, checkpoint, &checkpoint.record.parts, count).await?;
        let CheckpointRecord { base, blocks, bytes, .. } = checkpoint.record;
        if base.is_none() && content != (blocks, bytes) {
            return Err(self.not_as_said(checkpoint, "its parts have more or less"));
        }
        Ok(())
    }

    /// The same of some of its parts.
    async fn heads_of_parts(
        &self,
        opener: &Opener,
        checkpoint: &Checkpoint,
        mut parts: &[CheckpointPart],
        mut take: impl FnMut(&HeadCandidate, Vec<BlockEntry>),
    ) -> Result<(), DiskStateError> {
        while let Some(front) = parts.first() {
            // Writes may lie between them.
            let near = |part: &&CheckpointPart| {
                (front.number.0..front.number.0.saturating_add(PARTS_AT_ONCE as u64)).contains(&part.number.0)
            };
            let count = parts.iter().take(PARTS_AT_ONCE).take_while(near).count().max(1);
            let (run, rest) = parts.split_at(count.min(parts.len()));
            parts = rest;
            let last = run.iter().map(|part| part.number).max().unwrap_or(front.number);
            let mut located = self.stores().heads_soon(self.survey(), front.number..=last).await;
            let is_there = |located: &[Located], part: &CheckpointPart| {
                let at = located.iter().find(|located| located.number == part.number);
                at.is_some_and(|at| at.candidates.iter().any(|c| c.head.id == part.id))
            };
            if !run.iter().all(|part| is_there(&located, part)) {
                // A store that was not waited for may have it.
                located = self.stores().heads(self.survey(), front.number..=last).await;
            }
            for part in run {
                let at = located.iter().find(|located| located.number == part.number);
                let found = at.and_then(|at| at.candidates.iter().find(|c| c.head.id == part.id));
                let Some(found) = found else {
                    let conditions = at.map(|at| at.conditions.as_slice()).unwrap_or_default();
                    return Err(self.lost([part.number].into_iter().collect(), conditions).await.into());
                };
                let entries = opener.manifest(&found.head).map_err(|source| DiskStateError::Manifest {
                    vdisk: self.vdisk().clone(),
                    number: part.number,
                    source,
                })?;
                let ends =
                    (entries.first().map(|entry| entry.index), entries.last().map(|entry| entry.index));
                let is_it = found.head.header.kind == Kind::Checkpoint
                    && entries.len() == part.blocks as usize
                    && ends == (Some(part.first), Some(part.last));
                if !is_it {
                    return Err(self.not_as_said(checkpoint, "a part has other blocks"));
                }
                take(found, entries);
            }
        }
        Ok(())
    }

    fn not_as_said(&self, checkpoint: &Checkpoint, what: &'static str) -> DiskStateError {
        DiskStateError::Checkpoint { vdisk: self.vdisk().clone(), number: checkpoint.number, what }
    }
}

/// A checkpoint and those of `all`, which are the newest first, that it is laid over; the uppermost first.
pub(crate) fn layers<'a>(all: &'a [Checkpoint], checkpoint: &'a Checkpoint) -> Vec<&'a Checkpoint> {
    let mut layers = vec![checkpoint];
    let mut base = checkpoint.record.base;
    while let Some(number) = base.filter(|_| layers.len() < MOST_LAYERS)
        && let Ok(at) = all.binary_search_by(|other| number.cmp(&other.number)) // newest first
        && let Some(next) = all.get(at)
    {
        base = next.record.base;
        layers.push(next);
    }
    layers
}
