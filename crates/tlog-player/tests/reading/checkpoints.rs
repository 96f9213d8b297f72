//! Images that a log keeps of its moments: random histories with them, with their beginning removed, and with what is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tlog_codec::{
    CheckpointPart, CheckpointRecord, Content, EncodedAggregation, Mark, MarkName, PlaceInLog, Record,
};
use tlog_player::{
    Depth, DiskStateError, MemoryTarget, Moment, MomentError, ReadOptions, RestoreOptions, Verdict,
};
use tlog_proto::{Block, BlockIndex, Generation, LogPosition, Sequence, Timestamp};
use tlog_store::ShardStore;

use crate::log::{BLOCK_SIZE, TestLog, choices, number, set_block};

/// The disk after a write.
#[derive(Clone)]
struct After {
    place: PlaceInLog,
    /// Blocks that have content, as they were written.
    content: BTreeMap<u64, Block>,
}

/// A checkpoint that stands in the log.
#[derive(Clone)]
struct Made {
    /// Number of its record.
    number: u64,
    /// After which write.
    write: usize,
    record: CheckpointRecord,
}

/// A checkpoint that is being written.
struct Making {
    write: usize,
    base: Option<u64>,
    parts: Vec<Vec<Block>>,
    done: Vec<CheckpointPart>,
}

struct Story {
    log: TestLog,
    rng: SmallRng,
    after: Vec<After>,
    made: Vec<Made>,
    making: Option<Making>,
    generation: u64,
    sequence: u64,
    time: u64,
    marks: BTreeMap<String, PlaceInLog>,
    /// Its first aggregation that is kept.
    first: u64,
}

const BLOCKS: u64 = 9;

impl Story {
    async fn new(seed: u64, data: usize, parity: usize) -> Self {
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
    async fn random(seed: u64, data: usize, parity: usize, aggregations: u64) -> Self {
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

    async fn write(&mut self) {
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

    async fn something_else(&mut self) {
        match self.rng.random_range(0..4) {
            0 => self.mark().await,
            1 if self.making.is_none() => self.begin_checkpoint(),
            _ => self.go_on_with_checkpoint().await,
        }
    }

    async fn mark(&mut self) {
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
    fn begin_checkpoint(&mut self) {
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
    async fn go_on_with_checkpoint(&mut self) {
        let Some(making) = &mut self.making else { return };
        let After { place, content } = &self.after[making.write];
        if let Some(part) = making.parts.pop() {
            let stored = self.log.append_without_writes(Content::Checkpoint(&part), place.timestamp).await;
            making.done.push(described(&stored, &part));
            return;
        }
        let record = CheckpointRecord {
            place: *place,
            block_size: BLOCK_SIZE as u32,
            blocks: content.len() as u64,
            bytes: content.len() as u64 * BLOCK_SIZE as u64,
            base: making.base.map(number),
            parts: std::mem::take(&mut making.done),
        };
        let write = making.write;
        self.making = None;
        let stored = Record::Checkpoint(record.clone());
        let stored = self.log.append_without_writes(Content::Record(&stored), record.place.timestamp).await;
        self.made.push(Made { number: stored.header.number.0, write, record });
    }

    /// A checkpoint of a write, whole, right now.
    async fn checkpoint_of(&mut self, write: usize) -> Made {
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

    async fn prune(&mut self, first: u64) {
        self.first = first;
        for store in &self.log.memory {
            store.prune(&self.log.vdisk, self.log.epoch, number(first)).await.unwrap();
        }
    }

    /// Whether a checkpoint and all that it is laid over are there.
    fn is_kept(&self, made: &Made) -> bool {
        made.number >= self.first
            && made.record.parts.iter().all(|part| part.number.0 >= self.first)
            && made.record.base.is_none_or(|base| {
                self.made.iter().any(|other| other.number == base.0 && self.is_kept(other))
            })
    }

    /// The last write of the log before which nothing that is kept is needed.
    fn bases(&self) -> impl Iterator<Item = &Made> {
        let is_base = |made: &&Made| {
            let PlaceInLog { aggregation, blocks, of, .. } = made.record.place;
            made.record.base.is_none() && blocks == of && aggregation.0 + 1 >= self.first
        };
        self.made.iter().filter(move |made| self.is_kept(made)).filter(is_base)
    }

    /// After which write the disk is at a moment; none where the log cannot tell.
    fn expected(&self, moment: Moment) -> Option<usize> {
        let place = |write: usize| &self.after[write].place;
        let kept = || (0..self.after.len()).rev().filter(|write| place(*write).aggregation.0 >= self.first);
        let last = self.log.last().0;
        let found = match moment {
            Moment::Newest => kept().next(),
            Moment::Aggregation(asked) => {
                let within = (self.first..=last).contains(&asked.0);
                let found = kept().find(|write| place(*write).aggregation <= asked);
                found.filter(|_| within).or_else(|| {
                    // Only what has no writes lies between.
                    let below = |made: &&Made| within && made.record.place.aggregation <= asked;
                    self.bases().filter(below).map(|made| made.write).max()
                })
            }
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
    fn image_of(&self, moment: Moment) -> Option<usize> {
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
            }
        };
        self.made.iter().filter(|made| self.is_kept(made)).filter(fits).map(|made| made.write).max()
    }

    fn all_moments(&self) -> Vec<Moment> {
        let mut all = vec![Moment::Newest];
        for After { place, .. } in &self.after {
            let LogPosition { generation, sequence } = place.position;
            all.extend([None, Some(generation)].map(|generation| Moment::Sequence { generation, sequence }));
            let time = place.timestamp.0;
            all.extend([time - 1, time].map(|time| Moment::At(Timestamp(time))));
        }
        all.extend((0..=self.log.next.0).map(|at| Moment::Aggregation(number(at))));
        all
    }

    async fn restored(
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

    fn image(&self, write: usize) -> Vec<u8> {
        let mut image = Vec::new();
        for (index, block) in &self.after[write].content {
            image.resize(*index as usize * BLOCK_SIZE, 0);
            image.extend_from_slice(&block.data);
        }
        image
    }

    fn assert_is(&self, write: usize, (place, bytes): &(PlaceInLog, Vec<u8>), what: &str) {
        assert_eq!(*place, self.after[write].place, "{what}");
        assert!(*bytes == self.image(write), "{what}: another disk");
    }

    /// Every moment is what it was, or the error that says why it is not known.
    async fn check(&self, moments: &[Moment], what: &str) {
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
    async fn check_never_wrong(&self, readable_below: u64, what: &str) {
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

fn described(stored: &EncodedAggregation, blocks: &[Block]) -> CheckpointPart {
    CheckpointPart {
        number: stored.header.number,
        id: stored.id,
        blocks: blocks.len() as u32,
        first: blocks.first().unwrap().index,
        last: blocks.last().unwrap().index,
    }
}

#[tokio::test]
async fn every_moment_of_random_histories_with_checkpoints_equals_an_image_taken_then() {
    for (seed, (data, parity)) in (0..).zip([(4, 2), (2, 1), (1, 0), (3, 2)]) {
        let story = Story::random(seed, data, parity, 14).await;
        story.check(&story.all_moments(), &format!("seed {seed}")).await;
        // Without them it is the same.
        let options = ReadOptions { ignore_checkpoints: true, ..ReadOptions::default() };
        for After { place, .. } in &story.after {
            let moment = Moment::At(place.timestamp);
            let write = story.expected(moment).unwrap();
            story.assert_is(write, &story.restored(moment, &options).await.unwrap(), "ignored");
        }
    }
}

#[tokio::test]
async fn what_is_left_when_the_beginning_was_removed_is_exact_or_a_named_error() {
    let mut exact = 0;
    for seed in 10..22 {
        let (data, parity) = [(4, 2), (2, 1), (1, 1)][seed as usize % 3];
        let mut story = Story::random(seed, data, parity, 10).await;
        let writes = story.after.len();
        let lasts: Vec<usize> =
            (1..writes - 2).filter(|at| story.after[*at].place.blocks == story.after[*at].place.of).collect();
        let base = *lasts.choose(&mut story.rng).unwrap();
        story.checkpoint_of(base).await;
        let place = story.after[base].place.aggregation.0;
        let moments = story.all_moments();
        for first in [place / 2 + 1, place, place + 1] {
            story.prune(first).await;
            story.check(&moments, &format!("seed {seed}")).await;
        }
        exact += story
            .made
            .iter()
            .filter(|made| story.is_kept(made) && made.record.place.aggregation.0 < place)
            .count();
        // With as many stores lost as may be.
        let lost = choices(data + parity, parity.min(1));
        for store in lost.choose(&mut story.rng).unwrap() {
            story.log.controls[*store].set_down(true);
        }
        story.check(&moments, &format!("seed {seed}, a store lost")).await;
    }
    assert!(exact > 3, "{exact} images were left of moments that history does not reach");
}

#[tokio::test]
async fn history_and_verify_of_a_log_with_checkpoints_and_no_beginning_are_whole() {
    let mut story = Story::random(30, 4, 2, 12).await;
    let base = story.after.iter().position(|after| after.place.blocks == after.place.of).unwrap();
    story.checkpoint_of(base).await;
    for first in [1, story.after[base].place.aggregation.0 + 1] {
        story.prune(first).await;
        let reader = story.log.reader().await;
        let history = reader.history().collect().await.unwrap();
        let numbers: Vec<u64> = history.iter().map(|info| info.number.0).collect();
        assert_eq!(numbers, (first..=story.log.last().0).collect::<Vec<_>>());
        for depth in [Depth::Chain, Depth::Deep(&story.log.keys)] {
            let report = reader.verify(depth, |_| {}).await.unwrap();
            assert_eq!(report.verdict, Verdict::Whole, "{report:?}");
        }
    }
}

#[tokio::test]
async fn of_marks_with_one_name_the_newest_counts_unless_it_was_removed() {
    for seed in 40..46 {
        let mut story = Story::random(seed, 2, 1, 12).await;
        let marks = story.log.reader().await.marks(&story.log.keys).await.unwrap();
        let found: BTreeMap<String, PlaceInLog> =
            marks.into_iter().map(|mark| (mark.name.as_str().to_owned(), mark.place)).collect();
        assert_eq!(found, story.marks, "seed {seed}");
        let complete: Vec<u64> = {
            let all = story.log.reader().await.checkpoints(&story.log.keys).await.unwrap();
            all.iter().rev().map(|checkpoint| checkpoint.number.0).collect()
        };
        assert_eq!(complete, story.made.iter().map(|made| made.number).collect::<Vec<_>>(), "seed {seed}");
        let first = story.log.last().0 / 2;
        story.prune(first).await;
        let kept: Vec<u64> =
            story.made.iter().filter(|made| story.is_kept(made)).map(|made| made.number).collect();
        let all = story.log.reader().await.checkpoints(&story.log.keys).await.unwrap();
        assert_eq!(all.iter().rev().map(|checkpoint| checkpoint.number.0).collect::<Vec<_>>(), kept);
    }
}

/// A story with a checkpoint of its middle, and writes behind it.
async fn with_checkpoint(seed: u64, older: bool) -> (Story, Made) {
    let mut story = Story::new(seed, 2, 1).await;
    let mut made = None;
    for nth in 0..9 {
        story.write().await;
        if nth == 2 && older {
            story.checkpoint_of(story.after.len() - 1).await;
        }
        if nth == 5 {
            made = Some(story.checkpoint_of(story.after.len() - 1).await);
        }
    }
    story.log.publish().await;
    (story, made.unwrap())
}

#[tokio::test]
async fn a_checkpoint_of_which_a_part_is_lost_is_never_used() {
    let (mut story, made) = with_checkpoint(50, true).await;
    let part = made.record.parts[0].number;
    for store in &story.log.memory {
        store.remove(&story.log.vdisk, part);
    }
    story.check_never_wrong(part.0, "a part is lost").await;
    // With history removed up to the older one, that one is used for what lies between the two.
    let older = story.made[0].clone();
    story.prune(older.record.place.aggregation.0 + 1).await;
    story.check_never_wrong(0, "a part is lost, the beginning removed").await;
    let place = made.record.place;
    let moment = Moment::Aggregation(place.aggregation);
    let found = story.restored(moment, &ReadOptions::default()).await.unwrap();
    story.assert_is(made.write, &found, "by the older one");
    // Without it there is nothing else.
    story.prune(place.aggregation.0 + 1).await;
    let error = story.restored(Moment::Newest, &ReadOptions::default()).await.unwrap_err();
    assert!(matches!(error, DiskStateError::History(_)), "{error}");
    let reached =
        Moment::Sequence { generation: Some(place.position.generation), sequence: place.position.sequence };
    let error = story.restored(reached, &ReadOptions::default()).await.unwrap_err();
    assert!(matches!(error, DiskStateError::History(_)), "{error}");
}

#[tokio::test]
async fn a_checkpoint_under_whose_part_stands_something_else_is_never_used() {
    let (mut story, made) = with_checkpoint(51, false).await;
    let part = made.record.parts[0].number;
    // The same blocks with other content, sealed with the right key, under the same number and after the same one.
    let blocks = [set_block(1, 0, 5000, vec![0xee; BLOCK_SIZE])];
    let prev = story.log.reader().await.history().collect().await.unwrap()[part.0 as usize - 1].prev;
    let other = story.log.encode_as(part, prev, 1, &blocks);
    story.log.plant(&other, story.log.epoch, &story.log.all());
    // Whoever can do that can have changed what is near it too: that part of the chain proves nothing.
    story.check_never_wrong(0, "another part").await;
    story.prune(made.record.place.aggregation.0 + 1).await;
    assert!(story.restored(Moment::Newest, &ReadOptions::default()).await.is_err());
}

/// Appends a record of a checkpoint that is not what it says; its parts are whole.
async fn with_false_record(change: impl Fn(&mut CheckpointRecord, &Story)) -> (Story, u64) {
    let (mut story, made) = with_checkpoint(52, false).await;
    // Of another moment, so that it would show.
    let write = story.after.iter().position(|after| after.place.aggregation.0 == 4).unwrap() - 1;
    assert_ne!(story.image(write), story.image(made.write));
    let mut record = made.record.clone();
    change(&mut record, &story);
    let stored = Record::Checkpoint(record.clone());
    story.log.append_without_writes(Content::Record(&stored), record.place.timestamp).await;
    story.write().await;
    story.log.publish().await;
    let first = record.place.aggregation.0 + 1;
    (story, first)
}

#[tokio::test]
async fn a_checkpoint_that_is_not_what_its_record_says_is_never_used() {
    type Change = fn(&mut CheckpointRecord, &Story);
    let changes: [(&str, Change); 5] = [
        ("the id of its place", |record, _| record.place.id.0[0] ^= 1),
        ("another aggregation", |record, story| {
            let later =
                story.after.iter().find(|after| after.place.aggregation > record.place.aggregation).unwrap();
            record.place = PlaceInLog { id: record.place.id, blocks: 1, of: 1, ..later.place };
        }),
        ("a part too few", |record, _| record.parts.truncate(record.parts.len() - 1)),
        ("more in a part", |record, _| record.parts[0].blocks += 1),
        ("another last block", |record, _| {
            let last = record.parts.last_mut().unwrap();
            last.last = BlockIndex::new(last.last.get() + 1).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (mut story, first) = with_false_record(change).await;
        // All of history is there: every moment is read, by way of it.
        story.check_never_wrong(u64::MAX, what).await;
        // With history removed the right one is still there, and may be needed.
        story.prune(first).await;
        story.check_never_wrong(0, what).await;
    }
}

#[tokio::test]
async fn a_checkpoint_without_its_record_is_not_used() {
    let mut story = Story::new(60, 2, 1).await;
    for _ in 0..5 {
        story.write().await;
    }
    // Parts that would show.
    let parts: Vec<Block> =
        (0..BLOCKS).map(|index| set_block(1, index, 5000, vec![0xee; BLOCK_SIZE])).collect();
    story.log.append_without_writes(Content::Checkpoint(&parts), Timestamp(5000)).await;
    story.write().await;
    story.log.append_without_writes(Content::Checkpoint(&parts), Timestamp(5000)).await;
    story.log.publish().await;
    story.check(&story.all_moments(), "incomplete").await;
    story.prune(3).await;
    let error = story.restored(Moment::Newest, &ReadOptions::default()).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::BasePruned { .. })), "{error}");
}
