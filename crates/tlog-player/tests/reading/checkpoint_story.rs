//! Random histories with images of their own moments among the writes, and what the disk is at each moment that is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tlog_codec::{
    CheckpointPart, CheckpointRecord, Content, EncodedAggregation, Mark, MarkName, PlaceInLog, Record,
};
use tlog_player::{DiskStateError, MemoryTarget, Moment, ReadOptions, RestoreOptions};
use tlog_proto::{Block, BlockIndex, Generation, LogPosition, Sequence, Timestamp};
use tlog_store::ShardStore;

use crate::log::{BLOCK_SIZE, TestLog, number, set_block};

/// The disk after a write.
#[derive(Clone)]
pub(crate) struct After {
    pub(crate) place: PlaceInLog,
    /// Blocks that have content, as they were written.
    pub(crate) content: BTreeMap<u64, Block>,
}

/// A checkpoint that stands in the log.
#[derive(Clone)]
pub(crate) struct Made {
    /// Number of its record.
    pub(crate) number: u64,
    /// After which write.
    pub(crate) write: usize,
    pub(crate) record: CheckpointRecord,
}

/// A checkpoint that is being written.
pub(crate) struct Making {
    pub(crate) write: usize,
    pub(crate) base: Option<u64>,
    pub(crate) parts: Vec<Vec<Block>>,
    pub(crate) done: Vec<CheckpointPart>,
}

pub(crate) struct Story {
    pub(crate) log: TestLog,
    pub(crate) rng: SmallRng,
    pub(crate) after: Vec<After>,
    pub(crate) made: Vec<Made>,
    pub(crate) making: Option<Making>,
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    pub(crate) time: u64,
    pub(crate) marks: BTreeMap<String, PlaceInLog>,
    /// Its first aggregation that is kept.
    pub(crate) first: u64,
}

pub(crate) const BLOCKS: u64 = 9;

impl Story {
    pub(crate) async fn new(seed: u64, data: usize, parity: usize) -> Self {
        Self {
            log: TestLog::new(data, parity).await,
            rng: SmallRng::seed_from_u64(seed),
            after: Vec::new(),
            made: Vec::new(),
            making: None,
            generation: 1,
            sequence: 0,
            time: 5000,
            marks: BTreeMap::new(),
            first: 1,
        }
    }

    /// Writes, with everything else among them.
    pub(crate) async fn random(seed: u64, data: usize, parity: usize, aggregations: u64) -> Self {
        let mut story = Self::new(seed, data, parity).await;
        for _ in 0..aggregations {
            story.write().await;
            for _ in 0..story.rng.random_range(0..3) {
                story.something_else().await;
            }
        }
        story.log.publish().await;
        story
    }

    pub(crate) async fn write(&mut self) {
        if self.rng.random_bool(0.15) {
            self.generation += 1;
            self.sequence = self.rng.random_range(0..4);
        }
        let before = self.after.last().map(|after| after.content.clone()).unwrap_or_default();
        let (mut contents, mut blocks) = (vec![before], Vec::new());
        let count = self.rng.random_range(1..5);
        for _ in 0..count {
            self.time = match self.rng.random_range(0..8) {
                0 => self.time,
                1 => self.time - self.rng.random_range(1..60),
                _ => self.time + self.rng.random_range(1..40),
            };
            let index = if self.after.is_empty() { 0 } else { self.rng.random_range(0..BLOCKS) };
            let mut content = contents.last().unwrap().clone();
            let block = if self.rng.random_ratio(1, 5) && !self.after.is_empty() {
                content.remove(&index);
                Block::delete(Sequence(self.sequence), BlockIndex::new(index).unwrap(), Timestamp(self.time))
            } else {
                let bytes = (0..BLOCK_SIZE).map(|_| self.rng.random()).collect();
                let block = set_block(self.sequence, index, self.time, bytes);
                content.insert(index, block.clone());
                block
            };
            self.sequence += 1;
            contents.push(content);
            blocks.push(block);
        }
        let encoded = self.log.append(self.generation, &blocks).await;
        for (at, (block, content)) in (1..).zip(blocks.iter().zip(contents.drain(1..))) {
            let place = PlaceInLog {
                aggregation: encoded.header.number,
                id: encoded.id,
                blocks: at,
                of: count as u32,
                position: LogPosition { generation: Generation(self.generation), sequence: block.sequence },
                timestamp: block.timestamp,
            };
            self.after.push(After { place, content });
        }
    }

    pub(crate) async fn something_else(&mut self) {
        match self.rng.random_range(0..4) {
            0 => self.mark().await,
            1 if self.making.is_none() => self.begin_checkpoint(),
            _ => self.go_on_with_checkpoint().await,
        }
    }

    pub(crate) async fn mark(&mut self) {
        let name = format!("m{}", self.rng.random_range(0..4));
        let mark_name = MarkName::new(&name).unwrap();
        let place = self.after.choose(&mut self.rng).unwrap().place;
        let record = if self.rng.random_ratio(1, 4) {
            self.marks.remove(&name);
            Record::MarkRemoved(mark_name)
        } else {
            self.marks.insert(name, place);
            Record::Mark(Mark { name: mark_name, place })
        };
        self.log.append_without_writes(Content::Record(&record), place.timestamp).await;
    }

    /// Of any write up to now, whole or over the image of another.
    pub(crate) fn begin_checkpoint(&mut self) {
        let write = self.rng.random_range(0..self.after.len());
        let base = self.made.choose(&mut self.rng).filter(|_| write % 2 == 0);
        let mut blocks = self.after[write].content.clone();
        if let Some(base) = base {
            let below = &self.after[base.write].content;
            let gone = below.keys().filter(|index| !self.after[write].content.contains_key(index)).copied();
            let gone: Vec<u64> = gone.collect();
            blocks.retain(|index, block| below.get(index) != Some(block));
            for index in gone {
                let delete =
                    Block::delete(Sequence(1), BlockIndex::new(index).unwrap(), Timestamp(self.time));
                blocks.insert(index, delete);
            }
        }
        let blocks: Vec<Block> = blocks.into_values().collect();
        let length = self.rng.random_range(1..5);
        let parts = blocks.chunks(length).map(<[Block]>::to_vec).rev().collect();
        self.making = Some(Making { write, base: base.map(|base| base.number), parts, done: Vec::new() });
    }

    /// The next part, or the record at the end.
    pub(crate) async fn go_on_with_checkpoint(&mut self) {
        let Some(making) = &mut self.making else { return };
        let place = &self.after[making.write].place;
        if let Some(part) = making.parts.pop() {
            let stored = self.log.append_without_writes(Content::Checkpoint(&part), place.timestamp).await;
            making.done.push(described(&stored, &part));
            return;
        }
        let (base, done) = (making.base, std::mem::take(&mut making.done));
        let write = making.write;
        let record = self.record_of(write, base, done);
        self.making = None;
        let stored = Record::Checkpoint(record.clone());
        let stored = self.log.append_without_writes(Content::Record(&stored), record.place.timestamp).await;
        self.made.push(Made { number: stored.header.number.0, write, record });
    }

    /// What is true of a checkpoint of a write.
    pub(crate) fn record_of(
        &self,
        write: usize,
        base: Option<u64>,
        parts: Vec<CheckpointPart>,
    ) -> CheckpointRecord {
        let After { place, content } = &self.after[write];
        CheckpointRecord {
            place: *place,
            block_size: BLOCK_SIZE as u32,
            blocks: content.len() as u64,
            bytes: content.len() as u64 * BLOCK_SIZE as u64,
            base: base.map(number),
            parts,
        }
    }

    /// The parts of a checkpoint of a write, without its record.
    pub(crate) async fn parts_of(&mut self, write: usize) -> Vec<CheckpointPart> {
        let blocks: Vec<Block> = self.after[write].content.values().cloned().collect();
        let mut parts = Vec::new();
        for part in blocks.chunks(2) {
            let about = self.after[write].place.timestamp;
            let stored = self.log.append_without_writes(Content::Checkpoint(part), about).await;
            parts.push(described(&stored, part));
        }
        parts
    }

    /// A checkpoint of a write, whole, right now.
    pub(crate) async fn checkpoint_of(&mut self, write: usize) -> Made {
        self.making = None;
        let parts = self.after[write].content.values().cloned().collect::<Vec<_>>();
        let parts = parts.chunks(3).map(<[Block]>::to_vec).rev().collect();
        self.making = Some(Making { write, base: None, parts, done: Vec::new() });
        while self.making.is_some() {
            self.go_on_with_checkpoint().await;
        }
        self.log.publish().await;
        self.made.last().unwrap().clone()
    }

    pub(crate) async fn prune(&mut self, first: u64) {
        self.first = first;
        for store in &self.log.memory {
            store.prune(&self.log.vdisk, self.log.epoch, number(first)).await.unwrap();
        }
    }

    /// Whether a checkpoint and all that it is laid over are there.
    pub(crate) fn is_kept(&self, made: &Made) -> bool {
        made.number >= self.first
            && made.record.parts.iter().all(|part| part.number.0 >= self.first)
            && made.record.base.is_none_or(|base| {
                self.made.iter().any(|other| other.number == base.0 && self.is_kept(other))
            })
    }

    /// The last write of the log before which nothing that is kept is needed.
    pub(crate) fn bases(&self) -> impl Iterator<Item = &Made> {
        let is_base = |made: &&Made| {
            let PlaceInLog { aggregation, blocks, of, .. } = made.record.place;
            made.record.base.is_none() && blocks == of && aggregation.0 + 1 >= self.first
        };
        self.made.iter().filter(move |made| self.is_kept(made)).filter(is_base)
    }

    /// After which write the disk is at a moment; none where the log cannot tell.
    pub(crate) fn expected(&self, moment: Moment) -> Option<usize> {
        let place = |write: usize| &self.after[write].place;
        let kept = || (0..self.after.len()).rev().filter(|write| place(*write).aggregation.0 >= self.first);
        let last = self.log.last().0;
        let moment = if moment == Moment::Newest { Moment::Aggregation(self.log.last()) } else { moment };
        let found = match moment {
            Moment::Aggregation(asked) => {
                let within = (self.first..=last).contains(&asked.0);
                let found = kept().find(|write| place(*write).aggregation <= asked);
                found.filter(|_| within).or_else(|| {
                    // Only what has no writes lies between.
                    let below = |made: &&Made| within && made.record.place.aggregation <= asked;
                    self.bases().filter(below).map(|made| made.write).max()
                })
            }
            Moment::Id(id) => kept().find(|write| place(*write).id == id),
            Moment::Newest => None, // made an aggregation above
            Moment::At(time) => kept().find(|write| place(*write).timestamp <= time),
            Moment::Sequence { generation, sequence } => kept().find(|write| {
                let position = place(*write).position;
                position.sequence == sequence && generation.is_none_or(|g| g == position.generation)
            }),
        };
        let beginning = self.first == 1;
        match found {
            // What was written before must be known from somewhere.
            Some(write) => {
                let whole = |at: usize| place(at).blocks == place(at).of;
                let below = |made: &Made| {
                    let base = place(made.write).aggregation;
                    base < place(write).aggregation || base == place(write).aggregation && whole(write)
                };
                Some(write).filter(|_| beginning || self.bases().any(below))
            }
            None => self.image_of(moment),
        }
    }

    /// What an image alone is of.
    pub(crate) fn image_of(&self, moment: Moment) -> Option<usize> {
        let fits = |made: &&Made| {
            let place = made.record.place;
            match moment {
                Moment::Newest => false,
                Moment::At(time) => {
                    let is_base = made.record.base.is_none() && place.blocks == place.of;
                    is_base && place.aggregation.0 + 1 == self.first && place.timestamp <= time
                }
                Moment::Sequence { generation, sequence } => {
                    place.position.sequence == sequence
                        && generation.is_none_or(|g| g == place.position.generation)
                }
                Moment::Aggregation(asked) => place.aggregation == asked && place.blocks == place.of,
                Moment::Id(id) => place.id == id && place.blocks == place.of,
            }
        };
        self.made.iter().filter(|made| self.is_kept(made)).filter(fits).map(|made| made.write).max()
    }

    pub(crate) fn all_moments(&self) -> Vec<Moment> {
        let mut all = vec![Moment::Newest];
        for After { place, .. } in &self.after {
            let LogPosition { generation, sequence } = place.position;
            all.extend([None, Some(generation)].map(|generation| Moment::Sequence { generation, sequence }));
            all.push(Moment::Id(place.id));
            let time = place.timestamp.0;
            all.extend([time - 1, time].map(|time| Moment::At(Timestamp(time))));
        }
        all.extend((0..=self.log.next.0).map(|at| Moment::Aggregation(number(at))));
        all
    }

    pub(crate) async fn restored(
        &self,
        moment: Moment,
        options: &ReadOptions,
    ) -> Result<(PlaceInLog, Vec<u8>), DiskStateError> {
        let reader = self.log.reader().await;
        let state = reader.disk_state(&self.log.keys, moment, options).await?;
        let target = Arc::new(MemoryTarget::default());
        let options = RestoreOptions::default();
        reader.restore(&self.log.keys, &state, target.clone(), &options, |_| {}).await.unwrap();
        let reached = *state.reached().unwrap();
        let place = PlaceInLog {
            aggregation: reached.aggregation,
            id: reached.id,
            blocks: reached.blocks,
            of: reached.of,
            position: reached.position,
            timestamp: reached.timestamp,
        };
        Ok((place, target.bytes()))
    }

    pub(crate) fn image(&self, write: usize) -> Vec<u8> {
        let mut image = Vec::new();
        for (index, block) in &self.after[write].content {
            image.resize(*index as usize * BLOCK_SIZE, 0);
            image.extend_from_slice(&block.data);
        }
        image
    }

    pub(crate) fn assert_is(&self, write: usize, (place, bytes): &(PlaceInLog, Vec<u8>), what: &str) {
        assert_eq!(*place, self.after[write].place, "{what}");
        assert!(*bytes == self.image(write), "{what}: another disk");
    }

    /// Every moment is what it was, or the error that says why it is not known.
    pub(crate) async fn check(&self, moments: &[Moment], what: &str) {
        for moment in moments {
            let what = format!("{what}, first {}, {moment:?}", self.first);
            let found = self.restored(*moment, &ReadOptions::default()).await;
            match (self.expected(*moment), found) {
                (Some(write), Ok(found)) => self.assert_is(write, &found, &what),
                (None, Err(DiskStateError::Moment(_))) => {}
                (expected, found) => {
                    let found = found.map(|(place, _)| place);
                    panic!("{what}: {found:?} and not {:?}", expected.map(|write| self.after[write].place))
                }
            }
        }
    }

    /// Where something is wrong and all of history is there: no moment is another than it was, and those below stay readable.
    pub(crate) async fn check_never_wrong(&self, readable_below: u64, what: &str) {
        for (write, After { place, .. }) in self.after.iter().enumerate() {
            let moment = Moment::Sequence {
                generation: Some(place.position.generation),
                sequence: place.position.sequence,
            };
            match self.restored(moment, &ReadOptions::default()).await {
                Ok(found) => self.assert_is(write, &found, what),
                Err(error) => {
                    assert!(
                        self.first > 1 || place.aggregation.0 >= readable_below,
                        "{what}, {moment:?}: {error}"
                    );
                }
            }
        }
    }
}

pub(crate) fn described(stored: &EncodedAggregation, blocks: &[Block]) -> CheckpointPart {
    CheckpointPart {
        number: stored.header.number,
        id: stored.id,
        blocks: blocks.len() as u32,
        first: blocks.first().unwrap().index,
        last: blocks.last().unwrap().index,
    }
}
