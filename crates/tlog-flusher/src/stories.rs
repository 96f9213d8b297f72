//! What a log does when stores, servers and operators do what they do. On memory stores, in virtual time.

use std::time::Duration;

use tlog_codec::Redundancy;
use tlog_proto::{AggregationNumber, Generation, Sequence};
use tlog_quorum::{Quorums, StoreSet};
use tlog_store::{FaultControl, Operation, ShardSlot, ShardStore};

use crate::testing::{Cluster, append, block, content, durable, keys, position, settings, vdisk};
use crate::{CloseReason, LaneState, Log, LogSettings, OpenError};

#[tokio::test(start_paused = true)]
async fn what_is_appended_becomes_durable_and_is_there_after_opening_again() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, None);
    append(&log, 1, 1..=12).await;
    durable(&log, position(1, 10)).await.unwrap(); // two full aggregations, without any flush
    assert_eq!(log.durability().borrow().durable, Some(position(1, 10)));
    log.flush().await.unwrap();
    durable(&log, position(1, 12)).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=12).collect::<Vec<_>>());

    let (log, _) = cluster.open().await;
    let end = log.end();
    assert_eq!((end.generation, end.first, end.last), (Generation(1), Sequence(1), Some(Sequence(12))));
    append(&log, 2, 5..=7).await;
    log.close().await.unwrap();
    let (log, _) = cluster.open().await;
    assert_eq!((log.end().generation, log.end().first), (Generation(2), Sequence(5)));
    assert_eq!(content(&cluster).await, (1..=12).chain(5..=7).collect::<Vec<_>>());
}

/// An old disk says truly that it does not have what was written since. In the place of a member that has just promised that must not be
/// taken for what the member says.
#[tokio::test(start_paused = true)]
async fn a_disk_that_is_exchanged_while_a_log_is_opened_ends_nothing() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    // Store 2 gets another disk, which is filled and then counts.
    let old = cluster.bays[2].pull();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    log.close().await.unwrap();
    let (log, controls) = cluster.open().await;
    // Acknowledged with five: store 4 does not have it, and nobody is told that it is committed.
    controls[4].set_down(true);
    append(&log, 1, 6..=10).await;
    durable(&log, position(1, 10)).await.unwrap();
    drop(log);

    let (set, controls) = cluster.connect(2);
    controls.iter().for_each(|control| control.set_delay(Duration::from_millis(10)));
    let opening = tokio::spawn(Log::open(set, keys(), settings()));
    controls[2].called(Operation::Heads, 1).await; // it has promised
    let member = cluster.bays[2].insert(old);
    controls[0].set_down(true);
    controls[5].called(Operation::Shard, 1).await; // everybody is asked for what may be adopted
    tokio::time::sleep(Duration::from_millis(5)).await;
    controls[0].set_down(false);
    let refused = opening.await.unwrap().unwrap_err();
    assert!(matches!(refused, OpenError::UncertainEnd(_)), "{refused}");

    drop(cluster.bays[2].insert(member));
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(10)), "acknowledged and lost");
    log.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_aggregation_that_is_not_full_is_flushed_when_it_is_old_enough() {
    let cluster = Cluster::new(2, 1, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=2).await;
    let before = tokio::time::Instant::now();
    durable(&log, position(1, 2)).await.unwrap();
    let waited = before.elapsed();
    assert!((Duration::from_secs(24)..Duration::from_secs(27)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_w_stores_have_it() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    controls[0].hang();
    controls[1].hang();
    append(&log, 1, 1..=5).await;
    // Four of six hold it; the fifth is needed. A minute of virtual time changes nothing but the timeouts.
    let early = tokio::time::timeout(Duration::from_millis(1500), durable(&log, position(1, 5))).await;
    assert!(early.is_err(), "acknowledged with four stores");
    controls[1].release();
    durable(&log, position(1, 5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_store_away_does_not_hold_up_and_is_filled_in_when_it_is_back() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    controls[2].set_down(true);
    append(&log, 1, 1..=50).await;
    durable(&log, position(1, 50)).await.unwrap();
    let status = log.status().await.unwrap();
    assert_eq!(status.stores[2].state, LaneState::Away);
    assert_eq!(status.stores[2].missing, 10);
    assert_eq!(status.losses_survived, 1);
    controls[2].set_down(false);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    assert_eq!(log.status().await.unwrap().losses_survived, 2);
    let state = cluster.bays[2].status(&vdisk()).await.unwrap();
    assert_eq!(state.held.count(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_misses_what_it_cannot_take_and_memory_stays_bounded() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    controls[3].set_delay(Duration::from_secs(1));
    append(&log, 1, 1..=500).await;
    durable(&log, position(1, 500)).await.unwrap();
    let asked = controls[3].calls(Operation::Append);
    assert!(asked <= 3 * 2 * settings().in_flight as u64, "{asked} appends were sent to the slow store");
    controls[3].set_delay(Duration::ZERO);
    assert!(log.wait_until_complete(Duration::from_secs(120)).await);
}

#[tokio::test(start_paused = true)]
async fn with_too_few_stores_the_log_closes_and_says_which_are_missing() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    controls[0].set_down(true);
    controls[1].set_down(true);
    append(&log, 1, 1..=5).await;
    let error = durable(&log, position(1, 5)).await.unwrap_err();
    assert!(error.contains("on 4 stores and must be on 5") && error.contains("memory:0"), "{error}");
    assert!(log.append(block(1, 6)).await.is_err());
    assert!(matches!(log.close().await.unwrap_err().0, CloseReason::Failed(_)));

    let (set, controls) = cluster.connect(2);
    controls[0].set_down(true);
    controls[5].set_down(true);
    match Log::open(set, keys(), settings()).await {
        Err(OpenError::TooFewStores(missing)) => assert_eq!((missing.counted, missing.missing.len()), (4, 2)),
        other => panic!("{other:?}"),
    }
    // What was not acknowledged was on k stores: it is adopted, not lost and not doubled.
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(5)));
}

#[tokio::test(start_paused = true)]
async fn an_idle_writer_that_asks_knows_whether_a_newer_one_has_the_log() {
    let cluster = Cluster::new(4, 2, None);
    let (older, controls) = cluster.open().await;
    append(&older, 1, 1..=5).await;
    durable(&older, position(1, 5)).await.unwrap();
    assert!(older.confirm().await.unwrap());
    // Every opening has five of the six stores: any two tell of it.
    let (newer, _) = cluster.open().await;
    controls[1..5].iter().for_each(|control| control.set_down(true));
    assert_eq!(older.confirm().await.unwrap_err().0, CloseReason::Fenced);
    // One alone may be the one that was not asked.
    controls[0].set_down(true);
    controls[5].set_down(true);
    assert!(!older.confirm().await.unwrap());
    assert!(newer.confirm().await.unwrap(), "it has ways of its own to the stores");
    newer.close().await.unwrap();
    assert_eq!(newer.confirm().await.unwrap_err().0, CloseReason::Requested);
}

#[tokio::test(start_paused = true)]
async fn an_older_writer_is_fenced_at_its_next_write() {
    let cluster = Cluster::new(4, 2, None);
    let (older, _) = cluster.open().await;
    append(&older, 1, 1..=5).await;
    durable(&older, position(1, 5)).await.unwrap();
    let (newer, _) = cluster.open().await;
    append(&older, 1, 6..=10).await;
    assert!(durable(&older, position(1, 10)).await.is_err());
    assert_eq!(older.close().await.unwrap_err().0, CloseReason::Fenced);
    append(&newer, 1, 6..=10).await;
    durable(&newer, position(1, 10)).await.unwrap();
    newer.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_was_in_flight_on_too_few_stores_never_comes_back() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    for control in &controls[1..] {
        control.hang(); // only store 0 takes the next one
    }
    append(&log, 1, 6..=10).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(log);
    // Opened without store 0: the end is ruled out, and stays so when store 0 is back.
    let (set, controls) = cluster.connect(2);
    controls[0].set_down(true);
    let log = Log::open(set, keys(), settings()).await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(5)));
    drop(log);
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(5)));
    log.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=5).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_wiped_under_the_writer_is_filled_and_counts_again() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=50).await;
    durable(&log, position(1, 50)).await.unwrap();
    controls[4].wipe();
    append(&log, 1, 51..=60).await;
    durable(&log, position(1, 60)).await.unwrap();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    log.close().await.unwrap();
    // It holds everything again: any other two may go now.
    let state = cluster.bays[4].status(&vdisk()).await.unwrap();
    assert_eq!(state.held.count(), 12);
    cluster.bays[0].disk().wipe();
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(60)));
}

#[tokio::test(start_paused = true)]
async fn empty_stores_are_never_taken_for_an_empty_log() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    log.close().await.unwrap();
    for bay in &cluster.bays[1..3] {
        bay.disk().wipe();
    }
    let (set, _) = cluster.connect(2);
    match Log::open(set, keys(), settings()).await {
        Err(error @ OpenError::TooFewStores(_)) => {
            assert!(error.to_string().contains("memory:1 is blank"), "{error}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_not_there_at_the_first_opening_is_filled_when_it_comes() {
    let cluster = Cluster::new(4, 2, None);
    let (set, controls) = cluster.connect(1);
    controls[5].set_down(true);
    let log = Log::open(set, keys(), settings()).await.unwrap();
    append(&log, 1, 1..=20).await;
    durable(&log, position(1, 20)).await.unwrap();
    controls[5].set_down(false);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn committed_numbers_without_k_shards_refuse_the_opening_by_name() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=25).await;
    log.close().await.unwrap();
    for bay in &cluster.bays[..3] {
        assert!(bay.disk().remove(&vdisk(), AggregationNumber(2)));
    }
    let (set, _) = cluster.connect(2);
    let error = Log::open(set, keys(), settings()).await.unwrap_err();
    assert!(matches!(error, OpenError::DataLost { .. }), "{error}");
    assert!(error.to_string().contains("aggregations 2 are held"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn damage_at_the_end_that_may_have_been_acknowledged_is_not_cut() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    for control in &controls {
        control.set_random(Default::default());
    }
    drop(log); // the stores were never told that number 1 is committed
    for bay in &cluster.bays[..3] {
        assert!(bay.disk().damage(&vdisk(), AggregationNumber(1), |shard| {
            shard.payload = shard.payload.slice(1..);
        }));
    }
    let (set, _) = cluster.connect(2);
    let error = Log::open(set, keys(), settings()).await.unwrap_err();
    assert!(matches!(error, OpenError::UncertainEnd(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn scrub_puts_back_what_is_missing_or_damaged() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=25).await;
    durable(&log, position(1, 25)).await.unwrap();
    log.close().await.unwrap();
    let (log, _) = cluster.open().await;
    cluster.bays[1].disk().remove(&vdisk(), AggregationNumber(3));
    cluster.bays[5].disk().mark_damaged(&vdisk(), AggregationNumber(4));
    let mut seen = Vec::new();
    let report = log.scrub(u64::MAX, |progress| seen.push(progress.done)).await.unwrap();
    assert_eq!((report.stores[1].missing.count(), report.stores[5].damaged.count()), (1, 1));
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    let again = log.scrub(u64::MAX, |_| {}).await.unwrap();
    assert!(again.stores.iter().all(|store| store.missing.is_empty() && store.damaged.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_comes_late_to_its_store_while_a_scrub_is_at_it_is_not_missing() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=25).await;
    durable(&log, position(1, 25)).await.unwrap();
    log.close().await.unwrap();
    let (disk, number) = (cluster.bays[1].disk(), AggregationNumber(5));
    let ShardSlot::Held(shard) = disk.shard(&vdisk(), number).await.unwrap() else { panic!("it is there") };
    disk.remove(&vdisk(), number);
    let (set, controls) = cluster.connect(3);
    controls[1].set_delay(Duration::from_millis(50));
    let scrub = crate::scrub(&set, u64::MAX, |_| {});
    // The writer's append arrives after the scrub has looked, and before it puts the shard back.
    let late = async {
        controls[1].called(Operation::Fill, 1).await;
        disk.fill(&vdisk(), number, shard).await.unwrap();
    };
    let (report, ()) = tokio::join!(scrub, late);
    let report = report.unwrap();
    assert!(report.is_whole(), "{report:#?}");
    let store = &report.stores[1];
    assert!(store.missing.is_empty() && store.refilled.is_empty() && store.error.is_none(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_block_is_found_by_its_position_in_any_generation() {
    let cluster = Cluster::new(2, 1, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=33).await;
    append(&log, 2, 20..=40).await;
    log.flush().await.unwrap();
    durable(&log, position(2, 40)).await.unwrap();
    for (generation, sequence) in [(1, 1), (1, 33), (2, 20), (2, 40), (1, 17)] {
        let entry = log.find(position(generation, sequence)).await.unwrap().unwrap();
        let expected = block(generation, sequence).block;
        assert_eq!(
            (entry.sequence, entry.timestamp, entry.index),
            (expected.sequence, expected.timestamp, expected.index)
        );
    }
    for (generation, sequence) in [(1, 0), (1, 34), (2, 19), (2, 41), (3, 1)] {
        assert_eq!(log.find(position(generation, sequence)).await.unwrap(), None, "{generation}:{sequence}");
    }
}

#[tokio::test(start_paused = true)]
async fn append_waits_while_too_much_is_not_durable() {
    let cluster = Cluster::new(2, 1, None);
    let (set, controls) = cluster.connect(1);
    let small = LogSettings { max_unflushed_bytes: 2000, ..settings() };
    let log = Log::open(set, keys(), small).await.unwrap();
    for control in &controls {
        control.hang();
    }
    let many = async {
        for sequence in 1..=50 {
            log.append(block(1, sequence)).await.unwrap();
        }
    };
    tokio::pin!(many);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), &mut many).await.is_err(),
        "nothing made it wait"
    );
    for control in &controls {
        control.release();
    }
    many.await;
    log.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_append_that_needs_room_flushes_what_is_held_back_for_a_full_aggregation() {
    let cluster = Cluster::new(2, 1, None);
    let (set, _) = cluster.connect(1);
    let log = Log::open(set, keys(), LogSettings { max_unflushed_bytes: 1000, ..settings() }).await.unwrap();
    let before = tokio::time::Instant::now();
    append(&log, 1, 1..=4).await; // three of these take all the room, five would be a full aggregation
    assert!(before.elapsed() < Duration::from_secs(1), "waited until the blocks were old enough");
}

#[tokio::test(start_paused = true)]
async fn after_a_close_every_store_knows_what_is_committed() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=7).await;
    log.close().await.unwrap();
    for bay in &cluster.bays {
        assert_eq!(bay.status(&vdisk()).await.unwrap().committed, AggregationNumber(2));
    }
    assert!(log.close().await.is_ok(), "closing again answers at once");
}

#[tokio::test(start_paused = true)]
async fn raising_the_write_quorum_does_not_forget_what_was_acknowledged_with_fewer_stores() {
    let cluster = Cluster::new(4, 2, Some(5));
    let (log, controls) = cluster.open().await;
    controls[5].set_down(true);
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    drop(log); // five stores hold it, and none knows that it is committed

    let strict = Quorums::new(cluster.quorums.redundancy(), 6).unwrap();
    let stores = |controls: &[FaultControl], set: &StoreSet| {
        controls[0].set_down(true);
        controls[1].set_down(true);
        StoreSet::new(vdisk(), set.stores().to_vec(), strict, set.timeout()).unwrap()
    };
    // Four stores are enough where six acknowledge: but of these four, three hold what was acknowledged.
    let (set, controls) = cluster.connect(2);
    let strict_set = stores(&controls, &set);
    match Log::open(strict_set.clone(), keys(), settings()).await {
        Err(OpenError::TooFewStores(missing)) => assert_eq!((missing.counted, missing.needed), (4, 5)),
        other => panic!("{other:?}"),
    }
    controls[0].set_down(false);
    controls[1].set_down(false);
    let log = Log::open(strict_set, keys(), settings()).await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(5)));
}

#[tokio::test(start_paused = true)]
async fn a_log_is_not_opened_with_another_number_of_data_shards() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    log.close().await.unwrap();
    let other = Quorums::default_for(Redundancy::new(3, 3).unwrap());
    let (set, _) = cluster.connect(2);
    let set = StoreSet::new(vdisk(), set.stores().to_vec(), other, set.timeout()).unwrap();
    let error = Log::open(set, keys(), settings()).await.unwrap_err();
    assert!(error.to_string().contains("on 6 stores (4+2), not on 6 (3+3)"), "{error}");
}
