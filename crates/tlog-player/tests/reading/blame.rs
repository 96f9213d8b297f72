//! Who wrote a block, against the list of writes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tlog_codec::BlockEntry;
use tlog_player::{
    Blame, BlockWrite, DiskStateError, HistoryError, LogReader, Moment, MomentError, ReadOptions,
    StoredFormat, WritePlace,
};
use tlog_proto::{AggregationNumber, BlockIndex, Generation, LogPosition, Sequence, SessionId, Timestamp};
use tlog_store::{Operation, ShardStore};

use crate::log::{BLOCK_SIZE, TestLog, number, set_block};
use crate::many_moments::moments_of;
use crate::oracle::{BLOCKS, Snapshot, Story, random_story, random_story_with_short_blocks};

pub(crate) fn place(s: &Snapshot) -> WritePlace {
    WritePlace {
        format: s.format,
        aggregation: (s.format == StoredFormat::Two).then_some(AggregationNumber(s.aggregation)),
        id: s.id,
        block: s.nth,
        position: LogPosition { generation: Generation(s.generation), sequence: Sequence(s.sequence) },
        timestamp: Timestamp(s.timestamp),
    }
}

fn write(s: &Snapshot) -> BlockWrite {
    let BlockEntry { operation, length, hash_prefix, .. } = BlockEntry::from(&s.block);
    let session = SessionId(s.session);
    BlockWrite { place: place(s), checkpoint: None, session, operation, length, hash_prefix }
}

fn index(at: u64) -> BlockIndex {
    BlockIndex::new(at).unwrap()
}

async fn all(mut blame: Blame) -> Result<Vec<BlockWrite>, DiskStateError> {
    let mut writes = Vec::new();
    while let Some(write) = blame.next().await? {
        writes.push(write);
    }
    Ok(writes)
}

/// All writes of a block up to a moment by the log, and by the list of writes.
pub(crate) async fn check(
    story: &Story,
    reader: &LogReader,
    at: u64,
    (moment, expected): (Moment, Option<&Snapshot>),
    about: &str,
) {
    let about = format!("{about}, {moment:?}, block {at}");
    let found = match reader.blame(&story.log.keys, index(at), moment, &ReadOptions::default()) {
        Ok(blame) => all(blame).await,
        Err(error) => Err(error.into()),
    };
    let Some(expected) = expected else {
        assert!(matches!(found, Err(DiskStateError::Moment(_))), "{about}: {found:?}");
        return;
    };
    let end = story.snapshots.iter().position(|s| place(s) == place(expected)).unwrap();
    let writes = story.snapshots[..=end].iter().rev().filter(|s| s.block.index == index(at));
    assert_eq!(found.unwrap(), writes.map(write).collect::<Vec<_>>(), "{about}");
}

#[tokio::test]
async fn every_write_of_a_block_up_to_any_moment_is_found_newest_first_with_who_wrote_it() {
    let mut rng = StdRng::seed_from_u64(4);
    for (seed, shards, links) in [(70, (4, 2), 0), (71, (2, 1), 8), (72, (1, 0), 0)] {
        let story = random_story_with_short_blocks(seed, shards, links, 25 - links).await;
        let reader = story.log.reader().await;
        for moment in moments_of(&story) {
            check(&story, &reader, rng.random_range(0..=BLOCKS), moment, &format!("seed {seed}")).await;
        }
    }
}

#[tokio::test]
async fn no_more_of_a_long_log_is_read_than_the_answer_takes() {
    let log = TestLog::with(2, 1, 400).await; // block n % 8 is written by sequence n
    let reader = log.reader().await;
    let read = || log.controls.iter().map(|control| control.calls(Operation::Heads)).sum::<u64>();
    let before = read();
    let mut blame = reader.blame(&log.keys, index(3), Moment::Newest, &ReadOptions::default()).unwrap();
    let last = blame.next().await.unwrap().unwrap();
    assert_eq!((last.place.aggregation, last.place.position.sequence), (Some(number(395)), Sequence(395)));
    assert_eq!((last.place.timestamp, last.session, last.length), (Timestamp(1395), SessionId(77), 64));
    assert_eq!(blame.reached().unwrap().aggregation, Some(number(400)));
    assert!(blame.progress().aggregations < 10, "{:?}", blame.progress());
    let of_one = read() - before;
    assert_eq!(all(blame).await.unwrap().len(), 49, "the others, down to sequence 3");
    assert!(read() - before > of_one, "the rest of the log was not read before");
    assert_eq!(reader.longest_block(&log.keys).await.unwrap(), Some(BLOCK_SIZE as u32));
}

#[tokio::test]
async fn what_can_be_read_is_answered_before_the_error() {
    let log = TestLog::with(2, 1, 40).await;
    for store in &log.memory {
        assert!(store.remove(&log.vdisk, number(20)));
    }
    let reader = log.reader().await;
    let mut blame = reader.blame(&log.keys, index(5), Moment::Newest, &ReadOptions::default()).unwrap();
    for sequence in [37, 29, 21] {
        assert_eq!(blame.next().await.unwrap().unwrap().place.position.sequence, Sequence(sequence));
    }
    let error = all(blame).await.unwrap_err();
    assert!(matches!(error, DiskStateError::History(HistoryError::DataLost { .. })), "{error}");
    let moment = Moment::Aggregation(number(10));
    let error = all(reader.blame(&log.keys, index(3), moment, &ReadOptions::default()).unwrap()).await;
    assert!(matches!(error, Err(DiskStateError::History(HistoryError::DataLost { .. }))), "{error:?}");
}

#[tokio::test]
async fn where_history_was_removed_older_writes_are_not_said_to_be_none() {
    let log = TestLog::with(2, 1, 20).await;
    for store in &log.memory {
        store.prune(&log.vdisk, log.epoch, number(18)).await.unwrap();
    }
    let reader = log.reader().await;
    let blame = |at, accept_pruned_base| {
        let options = ReadOptions { accept_pruned_base, ..ReadOptions::default() };
        reader.blame(&log.keys, index(at), Moment::Newest, &options).unwrap()
    };
    let mut kept = blame(3, false);
    assert_eq!(kept.next().await.unwrap().unwrap().place.position.sequence, Sequence(19));
    let error = kept.next().await.unwrap_err();
    assert!(
        matches!(error, DiskStateError::Moment(MomentError::BasePruned { first, .. }) if first == number(18)),
        "{error}"
    );
    assert!(all(blame(5, false)).await.is_err(), "block 5 was written before, or not");
    assert_eq!(all(blame(5, true)).await.unwrap(), []);
}

#[tokio::test]
async fn an_uncertain_end_is_not_read_over_unless_that_is_accepted() {
    let mut log = TestLog::with(4, 2, 3).await;
    let beyond = log.encode(1, &[set_block(9, 0, 2000, vec![9; BLOCK_SIZE])]);
    log.store(&beyond, log.epoch, &[0, 1, 2, 3], 3).await;
    log.controls[5].set_down(true);
    let reader = log.reader().await;
    let error = reader.blame(&log.keys, index(1), Moment::Newest, &ReadOptions::default()).err().unwrap();
    assert!(matches!(error, MomentError::UncertainEnd { .. }), "{error}");
    let options = ReadOptions { accept_uncertain_end: true, ..ReadOptions::default() };
    let writes = all(reader.blame(&log.keys, index(1), Moment::Newest, &options).unwrap()).await.unwrap();
    assert_eq!(writes.len(), 1);
    let earlier = Moment::Aggregation(number(3));
    assert!(reader.blame(&log.keys, index(1), earlier, &ReadOptions::default()).is_ok());
}

#[tokio::test]
async fn an_empty_log_has_no_writes_and_only_its_newest_moment() {
    let log = TestLog::new(2, 1).await;
    let reader = log.reader().await;
    let options = ReadOptions::default();
    let blame = |moment| reader.blame(&log.keys, index(0), moment, &options).unwrap();
    assert_eq!(all(blame(Moment::Newest)).await.unwrap(), []);
    let error = all(blame(Moment::At(Timestamp(5)))).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::Empty { .. })), "{error}");
    assert_eq!(reader.longest_block(&log.keys).await.unwrap(), None);
}

#[tokio::test]
async fn without_the_key_the_aggregation_is_named() {
    let story = random_story(3, 2, 1, 5).await;
    let keys = crate::log::keys_of(&story.log.vdisk, 8);
    let reader = story.log.reader().await;
    let error = all(reader.blame(&keys, index(0), Moment::Newest, &ReadOptions::default()).unwrap()).await;
    assert!(matches!(error, Err(DiskStateError::Manifest { number: AggregationNumber(5), .. })), "{error:?}");
}
