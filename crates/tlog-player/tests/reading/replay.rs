//! Whole histories in order, whatever the stores do; and which stores are asked for heads.

use std::ops::RangeInclusive;
use std::time::Duration;

use tlog_player::{HistoryError, LogReader, Moment, ReadOptions, ReplayError, ReplayOptions, Replayed};
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_quorum::ShardCondition;
use tlog_store::{Operation, RandomFaults, ShardSlot, ShardStore};

use crate::log::{TestLog, keys_of, number};
use crate::oracle::random_story;

const ALL: RangeInclusive<AggregationNumber> = number_of(0)..=number_of(u64::MAX);

const fn number_of(number: u64) -> AggregationNumber {
    AggregationNumber(number)
}

fn at_once(at_once: usize) -> ReplayOptions {
    ReplayOptions { at_once, ..ReplayOptions::default() }
}

/// What comes before the end or an error, and that error.
async fn replay(
    log: &TestLog,
    reader: &LogReader,
    range: RangeInclusive<AggregationNumber>,
    options: ReplayOptions,
) -> (Vec<Replayed>, Option<ReplayError>) {
    let mut replay = reader.replay(range, &log.keys, options);
    let mut all = Vec::new();
    loop {
        match replay.next().await {
            Ok(Some(replayed)) => all.push(replayed),
            Ok(None) => return (all, None),
            Err(error) => return (all, Some(error)),
        }
    }
}

/// Checks that these are the aggregations of a range, in order, each following the one before, block for block what was written.
fn check(replayed: &[Replayed], written: &[Vec<tlog_proto::Block>], range: RangeInclusive<u64>) {
    let numbers: Vec<u64> = replayed.iter().map(|r| r.info.number.0).collect();
    assert_eq!(numbers, range.collect::<Vec<_>>());
    let mut before: Option<AggregationId> = None;
    for Replayed { info, blocks } in replayed {
        assert!(before.is_none_or(|id| id == info.prev), "{}", info.number);
        before = Some(info.id);
        assert_eq!(blocks, &written[info.number.0 as usize - 1], "{}", info.number);
    }
}

/// A log of `count` aggregations of one to three blocks, and these.
async fn written(data: usize, parity: usize, count: u64) -> (TestLog, Vec<Vec<tlog_proto::Block>>) {
    let mut log = TestLog::new(data, parity).await;
    let mut all = Vec::new();
    for nth in 0..count {
        let blocks: Vec<_> = (0..=nth % 3).map(|_| log.one_block()).collect();
        log.append(1, &blocks).await;
        all.push(blocks);
    }
    log.publish().await;
    (log, all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_in_order_however_little_is_read_ahead() {
    let (log, all) = written(4, 2, 70).await;
    let reader = log.reader().await;
    for options in [
        ReplayOptions::default(),
        at_once(1),
        at_once(3),
        ReplayOptions { memory: 0, ..at_once(9) },
        ReplayOptions { memory: 3000, ..at_once(9) },
    ] {
        let (replayed, error) = replay(&log, &reader, ALL, options).await;
        assert!(error.is_none(), "{options:?}: {error:?}");
        check(&replayed, &all, 1..=70);
    }
    let (replayed, _) = replay(&log, &reader, number(20)..=number(33), ReplayOptions::default()).await;
    check(&replayed, &all, 20..=33);
    let (replayed, error) = replay(&log, &reader, number(71)..=number(90), ReplayOptions::default()).await;
    assert!(replayed.is_empty() && error.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_order_stays_when_stores_fail_and_are_slow_at_random() {
    for seed in 0..8 {
        let story = random_story(seed, 4, 2, 60).await;
        let log = &story.log;
        let reader = log.reader().await;
        let (expected, _) = replay(log, &reader, ALL, at_once(1)).await;
        for control in &log.controls {
            let longest_delay = Duration::from_millis(40);
            control.set_random(RandomFaults { delay: 0.3, longest_delay, ..RandomFaults::default() });
        }
        let failing = RandomFaults { unavailable: 0.3, ..RandomFaults::default() };
        log.controls[seed as usize % 6].set_random(failing);
        log.controls[(seed as usize + 3) % 6].hang();
        let (replayed, error) = replay(log, &reader, ALL, ReplayOptions::default()).await;
        assert!(error.is_none(), "seed {seed}: {error:?}");
        assert_eq!(replayed.len(), expected.len(), "seed {seed}");
        for (one, other) in replayed.iter().zip(&expected) {
            assert_eq!((one.info.id, &one.blocks), (other.info.id, &other.blocks), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn lost_data_is_an_error_at_its_place_and_comes_again_until_it_is_back() {
    let (log, all) = written(2, 1, 40).await;
    let reader = log.reader().await;
    let ShardSlot::Held(whole) = log.memory[0].shard(&log.vdisk, number(23)).await.unwrap() else { panic!() };
    let flip = |shard: &mut tlog_store::Shard| shard.payload = vec![0; shard.payload.len()].into();
    log.memory[0].damage(&log.vdisk, number(23), flip);
    log.memory[2].damage(&log.vdisk, number(23), flip);
    let mut running = reader.replay(ALL, &log.keys, ReplayOptions::default());
    let mut replayed = Vec::new();
    for _ in 1..=22 {
        replayed.push(running.next().await.unwrap().unwrap());
    }
    check(&replayed, &all, 1..=22);
    for _ in 0..2 {
        let error = running.next().await.unwrap_err();
        let ReplayError::DataLost { source } = &error else { panic!("{error}") };
        assert_eq!((source.number, source.present, source.needed), (number(23), 1, 2));
        assert!(matches!(source.conditions[2].1, ShardCondition::Damaged(_)), "{error}");
    }
    log.memory[0].damage(&log.vdisk, number(23), |shard| *shard = whole);
    while let Some(next) = running.next().await.unwrap() {
        replayed.push(next);
    }
    check(&replayed, &all, 1..=40);
}

#[tokio::test]
async fn heads_that_are_lost_are_an_error_after_what_is_before_them() {
    let (log, all) = written(2, 1, 40).await;
    let reader = log.reader().await;
    assert!(log.memory.iter().all(|store| store.remove(&log.vdisk, number(30))));
    let (replayed, error) = replay(&log, &reader, ALL, ReplayOptions::default()).await;
    check(&replayed, &all, 1..=29);
    let Some(ReplayError::History(HistoryError::DataLost { numbers, .. })) = &error else {
        panic!("{error:?}")
    };
    assert!(numbers.contains(number(30)));
}

#[tokio::test]
async fn a_wrong_key_is_an_error_and_nothing_is_given() {
    let (log, _) = written(2, 1, 3).await;
    let reader = log.reader().await;
    let mut replay = reader.replay(ALL, &keys_of(&log.vdisk, 8), ReplayOptions::default());
    let error = replay.next().await.unwrap_err();
    assert!(matches!(error, ReplayError::Open { number, .. } if number.0 == 1), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_state_asks_one_store_for_heads_and_others_only_for_what_it_lacks() {
    let (log, _) = written(4, 2, 200).await;
    let reader = log.reader().await;
    let calls = || -> Vec<u64> { log.controls.iter().map(|c| c.calls(Operation::Heads)).collect() };
    let state = async || {
        let before = calls();
        let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
        let asked: Vec<u64> = calls().iter().zip(&before).map(|(now, before)| now - before).collect();
        (state.blocks().map(|(index, place)| (index, *place)).collect::<Vec<_>>(), asked)
    };
    let (expected, asked) = state().await;
    assert!(asked[0] > 0);
    // The newest head says things about others, and is asked of all.
    let newest = asked[5];
    assert!(newest <= 2);
    assert_eq!(asked[1..], [newest; 5], "a store holds all that is needed besides");

    // One is damaged, one is gone, and three in a row.
    log.memory[0].mark_damaged(&log.vdisk, number(120));
    for n in [7, 60, 61, 62] {
        log.memory[0].remove(&log.vdisk, number(n));
    }
    log.memory[1].remove(&log.vdisk, number(61));
    let (found, asked) = state().await;
    assert!(found == expected);
    assert_eq!(
        asked[1..],
        [3, 1, 0, 0, 0].map(|more| more + newest),
        "a run at once; and what the next lacks too from the one after it"
    );

    log.controls[0].hang();
    let began = tokio::time::Instant::now();
    let (found, asked) = state().await;
    assert!(found == expected && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(asked[1] > 0);
}
