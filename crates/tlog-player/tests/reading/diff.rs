//! Which blocks differ between two moments, against images taken then.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tlog_player::{DiskDiff, DiskStateError, HistoryError, LogReader, Moment, MomentError, ReadOptions};
use tlog_proto::{Block, BlockIndex, Sequence, Timestamp};
use tlog_store::{Operation, ShardStore};

use crate::blame::place;
use crate::log::{BLOCK_SIZE, TestLog, number, set_block};
use crate::many_moments::moments_of;
use crate::oracle::{BLOCKS, Snapshot, Story, random_story_with_short_blocks};

async fn diff(
    log: &TestLog,
    reader: &LogReader,
    from: Moment,
    to: Moment,
) -> Result<DiskDiff, DiskStateError> {
    reader.diff(&log.keys, from, to, &ReadOptions::default(), |_| {}).await
}

fn indexes(diff: &DiskDiff) -> Vec<u64> {
    diff.blocks.iter().map(|block| block.index.get()).collect()
}

/// A block of an image, with the zeros that follow it.
fn block(snapshot: &Snapshot, at: u64) -> Vec<u8> {
    let data = snapshot.image.iter().skip(at as usize * BLOCK_SIZE).take(BLOCK_SIZE);
    data.copied().chain(std::iter::repeat(0)).take(BLOCK_SIZE).collect()
}

/// Compares two moments by the log, and by the images that were taken then; none where the story has no such moment.
pub(crate) async fn check(
    story: &Story,
    reader: &LogReader,
    (from, then): (Moment, Option<&Snapshot>),
    (to, now): (Moment, Option<&Snapshot>),
    about: &str,
) {
    let about = format!("{about}, from {from:?} to {to:?}");
    let found = diff(&story.log, reader, from, to).await;
    let (Some(then), Some(now)) = (then, now) else {
        assert!(matches!(found, Err(DiskStateError::Moment(_))), "{about}: {found:?}");
        return;
    };
    let found = found.unwrap();
    assert_eq!((found.from, found.to), (Some(place(then)), Some(place(now))), "{about}");
    let expected: Vec<u64> = (0..BLOCKS).filter(|&at| block(then, at) != block(now, at)).collect();
    assert_eq!(indexes(&found), expected, "{about}");
    for changed in &found.blocks {
        for (content, snapshot) in [(changed.from, then), (changed.to, now)] {
            let bytes = block(snapshot, changed.index.get());
            assert!(content.is_some() || bytes.iter().all(|byte| *byte == 0), "{about}");
        }
    }
    let in_ranges: Vec<u64> = found.ranges().into_iter().flatten().collect();
    assert_eq!(in_ranges, expected, "{about}");
}

#[tokio::test]
async fn the_blocks_that_differ_between_any_two_moments_are_those_that_differ_in_their_images() {
    let mut rng = StdRng::seed_from_u64(5);
    for (seed, shards, links) in [(60, (4, 2), 0), (61, (2, 1), 9), (62, (3, 2), 0), (63, (1, 0), 12)] {
        let story = random_story_with_short_blocks(seed, shards, links, 30 - links).await;
        let moments = moments_of(&story);
        let reader = story.log.reader().await;
        for _ in 0..400 {
            let (from, to) = (moments.choose(&mut rng).unwrap(), moments.choose(&mut rng).unwrap());
            check(&story, &reader, *from, *to, &format!("seed {seed}")).await;
        }
    }
}

#[tokio::test]
async fn what_was_written_back_or_deleted_again_does_not_differ() {
    let mut log = TestLog::new(2, 1).await;
    let delete = |sequence, index| {
        Block::delete(Sequence(sequence), BlockIndex::new(index).unwrap(), Timestamp(sequence))
    };
    log.append(1, &[set_block(1, 0, 1, vec![1; 64]), set_block(2, 1, 2, vec![2; 64])]).await;
    // Overwritten, deleted, never written before, zeros, another length.
    log.append(1, &[set_block(3, 0, 3, vec![7; 64]), delete(4, 1), set_block(5, 2, 5, vec![3; 64])]).await;
    log.append(1, &[set_block(6, 3, 6, vec![0; 64]), set_block(7, 4, 7, vec![4; 10])]).await;
    log.append(1, &[set_block(8, 0, 8, vec![1; 64]), delete(9, 2), delete(10, 4)]).await;
    log.publish().await;
    let reader = log.reader().await;
    let of = async |from, to| {
        let found = diff(&log, &reader, Moment::Aggregation(number(from)), Moment::Aggregation(number(to)))
            .await
            .unwrap();
        (indexes(&found), found.ranges().len(), found.bytes(), found.cleared())
    };
    assert_eq!(of(1, 2).await, (vec![0, 1, 2], 1, 128, 1));
    assert_eq!(of(2, 1).await, (vec![0, 1, 2], 1, 128, 1));
    assert_eq!(of(1, 3).await, (vec![0, 1, 2, 4], 2, 138, 1), "block 3 read as zeros all the time");
    assert_eq!(of(1, 4).await, (vec![1], 1, 0, 1));
    assert_eq!(of(4, 1).await, (vec![1], 1, 64, 0));
    assert_eq!(of(3, 3).await, (vec![], 0, 0, 0));
}

#[tokio::test]
async fn no_more_of_a_long_log_is_read_than_the_answer_takes() {
    let log = TestLog::with(2, 1, 400).await; // eight blocks, written in turn
    let reader = log.reader().await;
    let read = || log.controls.iter().map(|control| control.calls(Operation::Heads)).sum::<u64>();
    let mut passed = 0;
    let (before, options) = (read(), ReadOptions::default());
    let from = Moment::Aggregation(number(397));
    let found =
        reader.diff(&log.keys, from, Moment::Newest, &options, |at| passed = at.aggregations).await.unwrap();
    assert_eq!(indexes(&found), [0, 6, 7], "397 was block 5, 398 to 400 were 6, 7 and 0");
    assert_eq!(passed, 11, "down to 390, where the first of the three blocks was written before");
    let of_few = read() - before;
    let before = read();
    diff(&log, &reader, Moment::Aggregation(number(1)), Moment::Newest).await.unwrap();
    assert!(read() - before > of_few);
}

#[tokio::test]
async fn history_that_was_removed_matters_only_where_a_block_was_not_written_since() {
    let log = TestLog::with(2, 1, 40).await;
    for store in &log.memory {
        store.prune(&log.vdisk, log.epoch, number(20)).await.unwrap();
    }
    let reader = log.reader().await;
    let at = |n| Moment::Aggregation(number(n));
    assert_eq!(indexes(&diff(&log, &reader, at(38), at(40)).await.unwrap()), [0, 7]);
    let error = diff(&log, &reader, at(20), at(40)).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::BasePruned { .. })), "{error}");
    let options = ReadOptions { accept_pruned_base: true, ..ReadOptions::default() };
    let accepted = reader.diff(&log.keys, at(20), at(40), &options, |_| {}).await.unwrap();
    assert_eq!(accepted.blocks.len(), 8);
    let error = diff(&log, &reader, at(19), at(40)).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::NoSuchAggregation { .. })), "{error}");
}

#[tokio::test]
async fn lost_data_and_an_uncertain_end_are_errors_only_where_they_matter() {
    let mut log = TestLog::with(4, 2, 40).await;
    for store in &log.memory {
        assert!(store.remove(&log.vdisk, number(20)));
    }
    let beyond = log.encode(1, &[set_block(41, 0, 2000, vec![9; BLOCK_SIZE])]);
    log.store(&beyond, log.epoch, &[0, 1, 2, 3], 40).await;
    log.controls[5].set_down(true);
    let reader = log.reader().await;
    let at = |n| Moment::Aggregation(number(n));
    assert_eq!(indexes(&diff(&log, &reader, at(28), at(40)).await.unwrap()), [0, 1, 2, 3, 4, 5, 6, 7]);
    let error = diff(&log, &reader, at(27), at(40)).await.unwrap_err();
    assert!(matches!(error, DiskStateError::History(HistoryError::DataLost { .. })), "{error}");
    for (from, to) in [(at(38), Moment::Newest), (Moment::Newest, at(38))] {
        let error = diff(&log, &reader, from, to).await.unwrap_err();
        assert!(matches!(error, DiskStateError::Moment(MomentError::UncertainEnd { .. })), "{error}");
    }
}

#[tokio::test]
async fn an_empty_log_does_not_differ_from_itself() {
    let log = TestLog::new(2, 1).await;
    let reader = log.reader().await;
    let found = diff(&log, &reader, Moment::Newest, Moment::Newest).await.unwrap();
    assert_eq!(found, DiskDiff { from: None, to: None, blocks: Vec::new() });
    let error = diff(&log, &reader, Moment::At(Timestamp(1)), Moment::Newest).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::Empty { .. })), "{error}");
}
