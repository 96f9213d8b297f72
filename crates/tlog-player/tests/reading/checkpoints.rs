//! Images that a log keeps of its moments: random histories with them, with their beginning removed, and with what is wrong.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use tlog_codec::{CheckpointRecord, Content, PlaceInLog, Record};
use tlog_player::{Depth, DiskStateError, Moment, MomentError, ReadOptions, Verdict};
use tlog_proto::{Block, BlockIndex, Timestamp};
use tlog_store::Operation;

use crate::checkpoint_story::{After, BLOCKS, Made, Story};
use crate::log::{BLOCK_SIZE, choices, set_block};

#[tokio::test]
async fn every_moment_of_random_histories_with_checkpoints_equals_an_image_taken_then() {
    for (seed, (data, parity)) in (0..).zip([(4, 2), (2, 1), (1, 0), (3, 2)]) {
        let story = Story::random(seed, data, parity, 11).await;
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
async fn records_are_read_only_as_far_as_there_may_be_a_nearer_image() {
    let mut story = Story::new(3, 2, 1).await;
    story.write().await;
    for _ in 0..40 {
        story.mark().await;
    }
    story.write().await;
    let last = story.after.len() - 1;
    story.checkpoint_of(last).await;
    let heads = || -> u64 { story.log.controls.iter().map(|store| store.calls(Operation::Heads)).sum() };
    let before = heads();
    let made = story.restored(Moment::Newest, &ReadOptions::default()).await.unwrap();
    let asked = heads() - before;
    story.assert_is(last, &made, "from the image");
    assert!(asked < 40, "{asked} times heads were asked for, of which there are 40 marks");
}

#[tokio::test]
async fn what_is_left_when_the_beginning_was_removed_is_exact_or_a_named_error() {
    let mut exact = 0;
    for seed in 10..16 {
        let (data, parity) = [(4, 2), (2, 1), (1, 1)][seed as usize % 3];
        let mut story = Story::random(seed, data, parity, 8).await;
        let writes = story.after.len();
        let lasts: Vec<usize> =
            (1..writes - 2).filter(|at| story.after[*at].place.blocks == story.after[*at].place.of).collect();
        let base = *lasts.choose(&mut story.rng).unwrap();
        story.checkpoint_of(base).await;
        // And of moments that history will not reach any more, some of them over others.
        for _ in 0..4 {
            story.begin_checkpoint();
            while story.making.is_some() {
                story.go_on_with_checkpoint().await;
            }
        }
        story.log.publish().await;
        let place = story.after[base].place.aggregation.0;
        let moments = story.all_moments();
        for first in [place / 2 + 1, place, place + 1, place + 2] {
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
        let some: Vec<Moment> = moments.into_iter().step_by(4).collect();
        story.check(&some, &format!("seed {seed}, a store lost")).await;
    }
    assert!(exact > 5, "{exact} images were left of moments that history does not reach");
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

/// A log with one checkpoint, whose parts are whole and whose record is not what it says; and where history may begin with it.
async fn with_false_record(change: impl Fn(&mut CheckpointRecord, &Story)) -> (Story, u64) {
    let mut story = Story::new(52, 2, 1).await;
    for _ in 0..6 {
        story.write().await;
    }
    let write = story.after.len() - 1;
    let parts = story.parts_of(write).await;
    assert!(parts.len() > 1);
    for _ in 0..3 {
        story.write().await;
    }
    let mut record = story.record_of(write, None, parts);
    change(&mut record, &story);
    let stored = Record::Checkpoint(record.clone());
    story.log.append_without_writes(Content::Record(&stored), record.place.timestamp).await;
    story.write().await;
    story.log.publish().await;
    (story, record.place.aggregation.0 + 1)
}

#[tokio::test]
async fn a_checkpoint_that_is_not_what_its_record_says_is_never_used() {
    type Change = fn(&mut CheckpointRecord, &Story);
    let changes: [(&str, bool, Change); 5] = [
        ("the id of its place", false, |record, _| record.place.id.0[0] ^= 1),
        ("another aggregation", false, |record, story| {
            let later =
                story.after.iter().find(|after| after.place.aggregation > record.place.aggregation).unwrap();
            record.place = PlaceInLog { id: record.place.id, blocks: 1, of: 1, ..later.place };
        }),
        ("a part too few", true, |record, _| record.parts.truncate(record.parts.len() - 1)),
        ("more in a part", true, |record, _| record.parts[0].blocks += 1),
        ("another last block", true, |record, _| {
            let last = record.parts.last_mut().unwrap();
            last.last = BlockIndex::new(last.last.get() + 1).unwrap();
        }),
    ];
    for (what, is_of_parts, change) in changes {
        let (mut story, first) = with_false_record(change).await;
        // All of history is there: every moment is read, by way of it.
        story.check_never_wrong(u64::MAX, what).await;
        // Without it there is nothing else.
        story.prune(first).await;
        let error = story.restored(Moment::Newest, &ReadOptions::default()).await.unwrap_err();
        assert_eq!(matches!(error, DiskStateError::Checkpoint { .. }), is_of_parts, "{what}: {error}");
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
