//! Stores and shards that are lost, damaged, swapped, or fail while they are read; and keys.

use std::sync::Arc;

use tlog_player::{
    DiskStateError, HistoryError, LogReader, MemoryTarget, Moment, ReadOptions, RestoreError, RestoreOptions,
};
use tlog_proto::VdiskId;
use tlog_store::{Operation, ShardSlot, ShardStore};

use crate::log::{TestLog, choices, keys_of, number};
use crate::oracle::{Story, random_story};

const AGGREGATIONS: u64 = 9;

/// What happens to the stores of a set.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Wiped,
    Down,
    /// A bit of every payload flips, unknown to the store.
    PayloadsRot,
    /// A bit of every head flips, unknown to the store.
    HeadsRot,
    /// The store knows that what it has is damaged.
    KnownDamage,
    Removed,
}

fn inflict(log: &TestLog, loss: Loss, on: &[usize]) {
    for &i in on {
        match loss {
            Loss::Wiped => log.memory[i].wipe(),
            Loss::Down => log.controls[i].set_down(true),
            _ => {}
        }
        for n in 1..=AGGREGATIONS {
            let flip = |bytes: &bytes::Bytes, at: usize| {
                let mut bytes = bytes.to_vec();
                let at = at % bytes.len();
                bytes[at] ^= 1 << (n % 8);
                bytes.into()
            };
            let at = (n * 37 + i as u64 * 11) as usize;
            match loss {
                Loss::Wiped | Loss::Down => continue,
                Loss::PayloadsRot => {
                    log.memory[i].damage(&log.vdisk, number(n), |s| s.payload = flip(&s.payload, at))
                }
                Loss::HeadsRot => log.memory[i].damage(&log.vdisk, number(n), |s| s.head = flip(&s.head, at)),
                Loss::KnownDamage => log.memory[i].mark_damaged(&log.vdisk, number(n)),
                Loss::Removed => log.memory[i].remove(&log.vdisk, number(n)),
            };
        }
    }
}

fn moments(story: &Story) -> Vec<(Moment, Vec<u8>)> {
    let mut moments = vec![(Moment::Newest, story.newest().image.clone())];
    for n in [1, 4, 6] {
        let expected = story.last_where(|s| s.aggregation == n).unwrap();
        moments.push((Moment::Aggregation(number(n)), expected.image.clone()));
    }
    moments
}

#[tokio::test]
async fn any_m_stores_may_be_lost_in_any_way_and_every_moment_restores_equal() {
    use Loss::{Down, HeadsRot, KnownDamage, PayloadsRot, Removed, Wiped};
    for (data, parity) in [(4, 2), (2, 1), (3, 2)] {
        for loss in [Wiped, Down, PayloadsRot, HeadsRot, KnownDamage, Removed] {
            for lost in choices(data + parity, parity) {
                let story = random_story(1, data, parity, AGGREGATIONS).await;
                inflict(&story.log, loss, &lost);
                for (moment, image) in moments(&story) {
                    let restored = story.log.restore(moment).await.unwrap();
                    assert!(restored == image, "{data}+{parity}, {loss:?} {lost:?}, {moment:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn one_store_more_is_a_named_error_and_never_wrong_bytes() {
    for (data, parity) in [(4, 2), (2, 1), (3, 2), (1, 0)] {
        for loss in
            [Loss::Wiped, Loss::Down, Loss::PayloadsRot, Loss::HeadsRot, Loss::KnownDamage, Loss::Removed]
        {
            for lost in choices(data + parity, parity + 1) {
                let story = random_story(2, data, parity, AGGREGATIONS).await;
                inflict(&story.log, loss, &lost);
                let log = &story.log;
                let error = match LogReader::open(log.set.clone()).await {
                    Err(error) => error.to_string(),
                    Ok(_) => match log.state(Moment::Newest).await {
                        Err(error @ DiskStateError::History(HistoryError::DataLost { .. })) => {
                            error.to_string()
                        }
                        Err(error) => panic!("{data}+{parity}, {loss:?} {lost:?}: {error}"),
                        Ok(_) => match log.restore(Moment::Newest).await {
                            Err(error @ RestoreError::DataLost { .. }) => error.to_string(),
                            other => panic!("{data}+{parity}, {loss:?} {lost:?}: {other:?}"),
                        },
                    },
                };
                assert!(error.contains("disk"), "{error}");
                // With all stores empty there is nobody who knows of them.
                for i in lost.into_iter().filter(|_| data > 1) {
                    assert!(error.contains(&format!("memory:{i}")), "{loss:?}: {error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_hole_in_the_middle_stops_history_where_it_is() {
    let log = TestLog::with(2, 1, 40).await;
    for n in [7, 8, 30] {
        for store in &log.memory {
            store.remove(&log.vdisk, number(n));
        }
    }
    let mut history = log.reader().await.history();
    let before = history.next_batch().await.unwrap().unwrap();
    assert_eq!(before.iter().map(|info| info.number.0).collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
    for _ in 0..2 {
        let error = history.next_batch().await.unwrap_err();
        let HistoryError::DataLost { numbers, source, .. } = &error else { panic!("{error}") };
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [number(7)..=number(8)]);
        assert_eq!(source.number, number(7));
        assert!(error.to_string().contains("7-8"), "{error}");
    }
    let error = log.state(Moment::Newest).await.unwrap_err();
    let DiskStateError::History(HistoryError::DataLost { numbers, .. }) = &error else { panic!("{error}") };
    assert!(numbers.contains(number(30)), "{error}");
}

#[tokio::test]
async fn shards_under_another_number_or_on_another_store_are_not_taken_for_what_they_replace() {
    let story = random_story(3, 4, 2, AGGREGATIONS).await;
    let log = &story.log;
    let shard =
        async |store: usize, n: u64| match log.memory[store].shard(&log.vdisk, number(n)).await.unwrap() {
            ShardSlot::Held(shard) => shard,
            other => panic!("{other:?}"),
        };
    // Two of one store change places; so do two stores' shards of one aggregation.
    for ((store, n), (other_store, other_n)) in [((0, 2), (0, 5)), ((1, 3), (2, 3))] {
        let (a, b) = (shard(store, n).await, shard(other_store, other_n).await);
        log.memory[store].damage(&log.vdisk, number(n), |shard| *shard = b);
        log.memory[other_store].damage(&log.vdisk, number(other_n), |shard| *shard = a);
    }
    for (moment, image) in moments(&story) {
        assert!(log.restore(moment).await.unwrap() == image, "{moment:?}");
    }
}

#[tokio::test]
async fn stores_may_fail_in_the_middle_of_a_restore_and_so_may_what_is_left_of_them() {
    for down in [2, 3] {
        let story = random_story(4, 4, 2, AGGREGATIONS).await;
        let log = &story.log;
        let reader = log.reader().await;
        let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
        let target = Arc::new(MemoryTarget::default());
        let one_at_a_time = RestoreOptions { memory: 1, ..RestoreOptions::default() };
        let mut seen = Vec::new();
        let result = reader.restore(&log.keys, &state, target.clone(), &one_at_a_time, |progress| {
            seen.push(*progress);
            if progress.aggregations == 2 {
                log.controls.iter().take(down).for_each(|control| control.set_down(true));
            }
        });
        match (down, result.await) {
            (2, Ok(summary)) => {
                assert!(target.bytes() == story.newest().image);
                let last = seen.last().unwrap();
                assert_eq!((last.aggregations, last.blocks), (summary.aggregations, summary.blocks));
                assert_eq!((last.aggregations_total, last.blocks_total), (last.aggregations, last.blocks));
                assert!(summary.aggregations > 2 && last.bytes == last.bytes_total && last.position.0 > 0);
            }
            (3, Err(RestoreError::DataLost { source })) => assert_eq!(source.present, 3),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_store_that_comes_back_while_a_restore_is_about_to_fail_is_asked_again() {
    let story = random_story(5, 2, 1, AGGREGATIONS).await;
    let log = &story.log;
    log.controls[0].set_down(true);
    let reader = log.reader().await;
    let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
    log.controls[0].set_down(false);
    log.controls[1].set_down(true);
    let target = Arc::new(MemoryTarget::default());
    reader.restore(&log.keys, &state, target.clone(), &RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(target.bytes() == story.newest().image);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_its_time_limit_and_no_more() {
    let story = random_story(6, 2, 1, 3).await;
    let log = &story.log;
    let reader = log.reader().await;
    let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
    log.controls[1].hang();
    let target = Arc::new(MemoryTarget::default());
    reader.restore(&log.keys, &state, target.clone(), &RestoreOptions::default(), |_| {}).await.unwrap();
    assert!(target.bytes() == story.newest().image);
}

#[tokio::test]
async fn only_aggregations_that_have_something_needed_are_read() {
    let mut log = TestLog::new(2, 1).await;
    for _ in 0..6 {
        // All write block 3.
        let block = crate::log::set_block(log.sequence, 3, log.sequence, vec![log.sequence as u8; 64]);
        log.sequence += 1;
        log.append(1, &[block]).await;
    }
    log.publish().await;
    let before = log.controls[0].calls(Operation::Shard);
    log.restore(Moment::Newest).await.unwrap();
    assert_eq!(log.controls[0].calls(Operation::Shard) - before, 1);
}

#[tokio::test]
async fn a_key_that_is_missing_or_of_another_vdisk_is_an_error() {
    let log = TestLog::with(2, 1, 2).await;
    let reader = log.reader().await;
    let options = ReadOptions::default();
    let missing = keys_of(&log.vdisk, 8);
    let error = reader.disk_state(&missing, Moment::Newest, &options).await.unwrap_err();
    assert!(
        matches!(&error, DiskStateError::Manifest { source: tlog_codec::OpenError::Key(_), .. }),
        "{error}"
    );
    let other = keys_of(&VdiskId::new("other").unwrap(), 7);
    let error = reader.disk_state(&other, Moment::Newest, &options).await.unwrap_err();
    assert!(matches!(&error, DiskStateError::Manifest { .. }), "{error}");

    let state = log.state(Moment::Newest).await.unwrap();
    let target = Arc::new(MemoryTarget::default());
    let restored = reader.restore(&missing, &state, target, &RestoreOptions::default(), |_| {}).await;
    assert!(matches!(
        restored.unwrap_err(),
        RestoreError::Open { source: tlog_codec::OpenError::Key(_), .. }
    ));
    assert_eq!(reader.history().collect().await.unwrap().len(), 2, "history needs no key");
}
