//! The chain decides which aggregation stands under a number, and tells when none does.

use tlog_codec::ChainBreak;
use tlog_player::{DiskStateError, HistoryError, Moment};
use tlog_proto::Epoch;

use crate::log::{TestLog, number};

#[tokio::test]
async fn history_tells_what_is_in_each_aggregation() {
    let mut log = TestLog::new(4, 2).await;
    let blocks = [log.one_block(), log.one_block(), log.one_block()];
    let first = log.append(1, &blocks).await;
    let second = log.append_one().await;
    log.publish().await;
    let history = log.reader().await.history().collect().await.unwrap();
    assert_eq!(history.len(), 2);
    let info = &history[0];
    assert_eq!((info.number, info.id, info.prev), (number(1), first.id, first.header.prev));
    assert_eq!((info.first_sequence.0, info.last_sequence.0, info.blocks), (1, 3, 3));
    assert_eq!((info.oldest_timestamp.0, info.newest_timestamp.0), (1001, 1003));
    assert_eq!((info.generation.0, info.session.0, info.sealed_at.0), (1, 77, 1_000_001));
    assert_eq!((info.stored_bytes, info.holders), (first.stored_bytes() as u64, 6));
    assert_eq!((history[1].id, history[1].prev), (second.id, first.id));
}

#[tokio::test]
async fn long_histories_come_in_batches_and_any_part_of_them_can_be_asked_for() {
    let log = TestLog::with(2, 1, 150).await;
    let reader = log.reader().await;
    let (mut history, mut numbers, mut batches) = (reader.history(), Vec::new(), 0);
    while let Some(batch) = history.next_batch().await.unwrap() {
        batches += 1;
        numbers.extend(batch.iter().map(|info| info.number.0));
    }
    assert_eq!(numbers, (1..=150).collect::<Vec<_>>());
    assert!(batches > 2, "{batches}");
    assert!(history.next_batch().await.unwrap().is_none());
    for (range, expected) in [(40..=60, 40..=60), (0..=3, 1..=3), (149..=999, 149..=150)] {
        let part = reader.history_of(number(*range.start())..=number(*range.end())).collect().await.unwrap();
        assert_eq!(part.iter().map(|info| info.number.0).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
    assert_eq!(reader.history_of(number(151)..=number(160)).collect().await.unwrap(), []);
}

/// A log of 40, with another candidate of a higher epoch under one number on some stores. Both follow the same one.
async fn check_candidates(shards: (usize, usize), at: u64, on: &[usize]) {
    let mut log = TestLog::new(shards.0, shards.1).await;
    let mut right = Vec::new();
    let mut stale = None;
    for n in 1..=40 {
        if n == at {
            let block = log.one_block();
            stale = Some(log.encode(1, &[block]));
        }
        right.push(log.append_one().await.id);
    }
    log.publish().await;
    log.plant(&stale.unwrap(), Epoch(9), on);
    let reader = log.reader().await;
    let history = reader.history().collect().await.unwrap();
    assert_eq!(history.iter().map(|info| info.id).collect::<Vec<_>>(), right, "{shards:?} at {at}");
    assert_eq!(history[at as usize - 1].holders, log.memory.len() - on.len());
    let part = reader.history_of(number(at)..=number(at)).collect().await.unwrap();
    assert_eq!(part.len(), 1);
    assert_eq!(part[0].id, right[at as usize - 1], "{shards:?} at {at}");
    assert!(log.restore(Moment::Newest).await.is_ok(), "{shards:?} at {at}");
}

#[tokio::test]
async fn of_several_candidates_the_next_one_in_the_chain_decides_even_against_a_higher_epoch() {
    // 16 is the last number of a step, 40 the last of the log.
    for at in [1, 5, 15, 16, 17, 39] {
        check_candidates((4, 2), at, &[3]).await;
        check_candidates((2, 2), at, &[2, 3]).await; // either could be rebuilt
    }
    // Nothing follows the last: the one that can be rebuilt counts.
    check_candidates((4, 2), 40, &[3]).await;
}

#[tokio::test]
async fn history_and_disk_end_with_the_same_aggregation_where_candidates_are_left_at_the_end() {
    let mut log = TestLog::with(1, 2, 2).await;
    let blocks = [log.one_block(), log.one_block()];
    let (right, other) = (log.encode(1, &blocks[..1]), log.encode(1, &blocks[1..]));
    log.store(&right, Epoch(1), &[0, 1], 2).await;
    log.store(&other, Epoch(9), &[2], 2).await;
    let reader = log.reader().await;
    assert_eq!(reader.last_id(), Some(right.id), "two of three hold it");
    assert_eq!(reader.history().collect().await.unwrap()[2].id, right.id);
    let state = log.state(Moment::Newest).await.unwrap();
    assert_eq!(state.reached().unwrap().position.sequence, right.header.first_sequence);
}

#[tokio::test]
async fn an_aggregation_that_was_replaced_on_all_stores_breaks_the_chain() {
    let mut log = TestLog::with(2, 1, 6).await;
    let block = log.one_block();
    let replaced = log.encode_as(number(3), tlog_proto::AggregationId([1; 32]), 1, &[block]);
    log.plant(&replaced, Epoch(1), &log.all());
    let reader = log.reader().await;
    let mut history = reader.history();
    assert_eq!(history.next_batch().await.unwrap().unwrap().len(), 2);
    let error = history.next_batch().await.unwrap_err();
    let expected = number(3);
    assert!(
        matches!(&error, HistoryError::ChainBroken { source: ChainBreak::Prev { number, .. }, .. } if *number == expected),
        "{error}"
    );
    // From the end, the one that 4 follows is not there.
    let error = log.state(Moment::Newest).await.unwrap_err();
    assert!(
        matches!(&error, DiskStateError::History(HistoryError::DataLost { numbers, .. }) if numbers.contains(expected)),
        "{error}"
    );
}

#[tokio::test]
async fn history_that_is_pruned_while_it_is_read_is_not_called_lost() {
    use tlog_store::ShardStore;
    let log = TestLog::with(2, 1, 40).await;
    let reader = log.reader().await;
    let mut history = reader.history();
    history.next_batch().await.unwrap();
    for store in &log.memory {
        store.prune(&log.vdisk, log.epoch, number(39)).await.unwrap();
    }
    let error = history.next_batch().await.unwrap_err();
    assert!(matches!(&error, HistoryError::Pruned { first, .. } if *first == number(39)), "{error}");
    let report = reader.verify(tlog_player::Depth::Chain, |_| {}).await.unwrap();
    assert_eq!(report.verdict, tlog_player::Verdict::Whole, "what is kept now is whole");
}
