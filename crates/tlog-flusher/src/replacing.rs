//! Stories of stores that are lost, moved, mistaken for each other, or hang; and of the operator who has to do something about
//! it. On memory stores, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use tlog_proto::{AggregationNumber, Sequence};
use tlog_quorum::{ShardCondition, StoreSet};
use tlog_store::{FaultControl, Operation, ShardStore};
use tokio::time::Instant;

use crate::testing::{Cluster, append, block, content, durable, keys, position, settings, vdisk};
use crate::{
    CloseReason, DeleteError, LaneState, Log, LogSettings, OpenError, ReplaceError, delete_log, scrub,
};

/// A closed log with twenty blocks, everything on every store.
async fn written(cluster: &Cluster) {
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=20).await;
    log.close().await.unwrap();
}

async fn replace(set: StoreSet) -> Result<Log, OpenError> {
    Log::open_replacing(set, keys(), settings(), |_| {}).await
}

/// How many stores hold their own whole shard of what counts under a number.
async fn holders(cluster: &Cluster, number: u64) -> usize {
    let (set, _) = cluster.connect(0);
    let survey = set.survey().await;
    let (_, conditions) = set.all_shards(&survey, AggregationNumber(number)).await;
    conditions.iter().filter(|condition| matches!(condition, ShardCondition::Held(_))).count()
}

#[tokio::test(start_paused = true)]
async fn stores_lost_for_good_beyond_the_promise_are_replaced_by_the_operators_word() {
    let cluster = Cluster::new(4, 2, None);
    written(&cluster).await;
    let lost = [cluster.bays[1].pull(), cluster.bays[4].pull()];
    let (set, _) = cluster.connect(2);
    assert!(matches!(Log::open(set.clone(), keys(), settings()).await, Err(OpenError::TooFewStores(_))));
    let log = replace(set).await.unwrap();
    // It answers when it is a log like any other: W stores take part.
    let status = log.status().await.unwrap();
    assert!(status.stores.iter().filter(|store| store.state == LaneState::Active).count() >= 5, "{status:?}");
    append(&log, 2, 1..=10).await;
    durable(&log, position(2, 10)).await.unwrap();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    assert_eq!(log.status().await.unwrap().losses_survived, 2);
    log.close().await.unwrap();
    for number in 1..=6 {
        assert_eq!(holders(&cluster, number).await, 6, "aggregation {number}");
    }
    // The lost disks are none of the log's any more: put back, they count for nothing.
    for (bay, disk) in [1, 4].into_iter().zip(lost) {
        cluster.bays[bay].insert(disk);
    }
    let (set, _) = cluster.connect(3);
    match Log::open(set, keys(), settings()).await {
        Err(OpenError::TooFewStores(missing)) => assert_eq!((missing.counted, missing.needed), (4, 5)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_acknowledged_on_lost_stores_is_not_given_up() {
    // Held by five, acknowledged, and three of them left: or never held by more than these three. Nobody can tell.
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    controls[3].set_down(true);
    append(&log, 1, 6..=10).await;
    durable(&log, position(1, 10)).await.unwrap();
    drop(log);
    let old = cluster.bays[1].pull();
    cluster.bays[4].pull();
    let (set, _) = cluster.connect(2);
    let error = replace(set.clone()).await.unwrap_err();
    assert!(matches!(error, OpenError::UncertainEnd(_)), "{error}");
    assert!(error.to_string().contains("aggregation 2: 3 of 4"), "{error}");
    // One of them was not lost after all.
    cluster.bays[1].insert(old);
    let log = replace(set).await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(10)));
}

#[tokio::test(start_paused = true)]
async fn lost_stores_are_not_replaced_while_one_may_merely_be_out_of_reach() {
    let cluster = Cluster::new(4, 2, None);
    written(&cluster).await;
    cluster.bays[1].pull();
    let (set, controls) = cluster.connect(2);
    controls[4].set_down(true);
    match replace(set.clone()).await {
        Err(OpenError::Replace(ReplaceError::NotAllAnswer { stores, .. })) => {
            assert!(stores.len() == 1 && stores[0].contains("memory:4"), "{stores:?}");
        }
        other => panic!("{other:?}"),
    }
    controls[4].set_down(false);
    for bay in [0, 2] {
        cluster.bays[bay].pull();
    }
    match replace(set).await {
        Err(OpenError::Replace(ReplaceError::TooFewLeft { left, needed, blank, .. })) => {
            assert_eq!((left, needed, blank.len()), (3, 4, 3));
        }
        other => panic!("{other:?}"),
    }
    let nothing = Cluster::new(4, 2, None);
    match replace(nothing.connect(1).0).await {
        Err(OpenError::Replace(ReplaceError::NoLog { .. })) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_still_running_is_fenced_when_its_stores_are_replaced_by_mistake() {
    let cluster = Cluster::new(4, 2, None);
    let (older, _) = cluster.open().await;
    append(&older, 1, 1..=10).await;
    durable(&older, position(1, 10)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The operator believes that two stores are gone; the older writer still has them.
    let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
    let other = Cluster::new(4, 2, None);
    for (at, (bay, empty)) in cluster.bays.iter().zip(&other.bays).enumerate() {
        stores.push(if at < 2 { empty.clone() } else { bay.clone() });
    }
    let set = StoreSet::new(vdisk(), stores, cluster.quorums, Duration::from_secs(2)).unwrap();
    let newer = replace(set).await.unwrap();
    assert_eq!(newer.end().last, Some(Sequence(10)));
    append(&older, 1, 11..=15).await;
    assert!(durable(&older, position(1, 15)).await.is_err());
    assert_eq!(older.close().await.unwrap_err().0, CloseReason::Fenced);
    append(&newer, 2, 1..=5).await;
    durable(&newer, position(2, 5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn replacing_that_stops_anywhere_is_made_again() {
    for patience in (1..120).step_by(3) {
        let cluster = Cluster::new(4, 2, None);
        written(&cluster).await;
        let lost = cluster.bays[1].pull();
        cluster.bays[4].pull();
        let (set, controls) = cluster.connect(2);
        controls.iter().for_each(|control| control.set_delay(Duration::from_millis(3)));
        let _stopped = tokio::time::timeout(Duration::from_millis(patience), replace(set)).await;
        // In the middle, the disk that was lost turns up again: a member, or no longer one, but never half of one.
        if patience % 2 == 0 {
            cluster.bays[1].insert(lost);
        }
        let log = replace(cluster.connect(3).0).await.unwrap();
        assert!(log.wait_until_complete(Duration::from_secs(60)).await);
        append(&log, 2, 1..=5).await;
        log.close().await.unwrap();
        assert_eq!(content(&cluster).await, (1..=20).chain(1..=5).collect::<Vec<_>>());
        for number in 1..=5 {
            assert_eq!(holders(&cluster, number).await, 6, "aggregation {number} after {patience} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_usual_and_a_replacing_opening_at_once_one_is_fenced_and_nothing_forks() {
    for late in 0..40 {
        let cluster = Cluster::new(4, 2, None);
        written(&cluster).await;
        let lost = cluster.bays[1].pull();
        cluster.bays[4].pull();
        let (set, controls) = cluster.connect(2);
        controls.iter().for_each(|control| control.set_delay(Duration::from_millis(2)));
        let replacing = tokio::spawn(replace(set));
        tokio::time::sleep(Duration::from_millis(late)).await;
        cluster.bays[1].insert(lost);
        let (set, controls) = cluster.connect(3);
        controls.iter().for_each(|control| control.set_delay(Duration::from_millis(2)));
        let usual = tokio::spawn(Log::open(set, keys(), settings()));
        let logs = [replacing.await.unwrap(), usual.await.unwrap()];
        let mut acknowledged = Vec::new();
        for (generation, log) in (2..).zip(logs.iter().flatten()) {
            if log.append(block(generation, 1)).await.is_ok()
                && log.flush().await.is_ok()
                && durable(log, position(generation, 1)).await.is_ok()
            {
                acknowledged.push(log);
            }
        }
        assert!(acknowledged.len() <= 1, "{late} ms apart: both wrote");
        drop(logs);
        let log = replace(cluster.connect(4).0).await.unwrap();
        assert!(log.end().last.is_some());
        assert_eq!(content(&cluster).await[..20], (1..=20).collect::<Vec<_>>());
    }
}

/// Stores of which the last place leads to the first one.
fn one_store_twice(cluster: &Cluster) -> StoreSet {
    let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
    for (at, bay) in cluster.bays.iter().enumerate() {
        stores.push(if at == 5 { cluster.bays[0].clone() } else { bay.clone() });
    }
    StoreSet::new(vdisk(), stores, cluster.quorums, Duration::from_secs(2)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_store_behind_two_places_is_refused_at_founding_and_at_every_opening() {
    let cluster = Cluster::new(4, 2, None);
    for _ in 0..2 {
        let error = Log::open(one_store_twice(&cluster), keys(), settings()).await.unwrap_err();
        assert!(error.to_string().contains("memory:0 and memory:0 are one and the same store"), "{error}");
    }
    let cluster = Cluster::new(4, 2, None);
    written(&cluster).await;
    let set = one_store_twice(&cluster);
    for error in [
        Log::open(set.clone(), keys(), settings()).await.unwrap_err().to_string(),
        replace(set.clone()).await.unwrap_err().to_string(),
        scrub(&set, u64::MAX, |_| {}).await.unwrap_err().to_string(),
        set.survey().await.require(set.quorums().reading()).unwrap_err().to_string(),
        delete_log(&set).await.unwrap_err().to_string(),
    ] {
        assert!(error.contains("are one and the same store"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_another_place_is_never_filled() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=20).await;
    durable(&log, position(1, 20)).await.unwrap();
    controls[5].set_down(true);
    append(&log, 1, 21..=25).await;
    durable(&log, position(1, 25)).await.unwrap();
    // Place 5 leads to the store of place 2 now.
    let own = cluster.bays[5].insert(cluster.bays[2].disk());
    controls[5].set_down(false);
    assert!(!log.wait_until_complete(Duration::from_secs(60)).await);
    let store = log.status().await.unwrap().stores[5].clone();
    assert_eq!(store.state, LaneState::Filling);
    assert!(store.error.as_ref().unwrap().contains("memory:5 is the same store as memory:2"), "{store:?}");
    cluster.bays[5].insert(own);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    for number in 1..=5 {
        assert_eq!(holders(&cluster, number).await, 6, "aggregation {number}");
    }
    // Nor is one whose shards belong elsewhere, although nobody knows it any more.
    let moved = cluster.bays[3].pull();
    append(&log, 1, 26..=30).await;
    durable(&log, position(1, 30)).await.unwrap();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    cluster.bays[1].insert(moved);
    append(&log, 1, 31..=35).await;
    durable(&log, position(1, 35)).await.unwrap();
    assert!(!log.wait_until_complete(Duration::from_secs(60)).await);
    let store = log.status().await.unwrap().stores[1].clone();
    assert!(store.error.as_ref().unwrap().contains("memory:1 holds shards of memory:3"), "{store:?}");
}

#[tokio::test(start_paused = true)]
async fn two_empty_places_with_one_store_behind_them_fill_it_for_one_place_only() {
    for late in 0..30 {
        let cluster = Cluster::new(4, 2, Some(6));
        written(&cluster).await;
        let (log, controls) = cluster.open().await;
        controls.iter().for_each(|control| control.set_delay(Duration::from_millis(2)));
        cluster.bays[0].pull();
        append(&log, 2, 1..=1).await;
        log.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(late)).await;
        cluster.bays[5].insert(cluster.bays[0].disk());
        append(&log, 2, 2..=2).await;
        let _ = log.flush().await;
        tokio::time::sleep(Duration::from_millis(50)).await; // both places are found out
        let complete = log.wait_until_complete(Duration::from_secs(15)).await;
        assert!(!complete, "{late} ms apart: {:#?}", log.status().await);
        // Whichever place it was filled for, its shards are that place's.
        for number in 1..=4 {
            assert!(holders(&cluster, number).await >= 4, "aggregation {number}, {late} ms apart");
            let (set, _) = cluster.connect(0);
            let survey = set.survey().await;
            let (_, conditions) = set.all_shards(&survey, AggregationNumber(number)).await;
            let damaged = conditions.iter().filter(|c| matches!(c, ShardCondition::Damaged(_))).count();
            assert_eq!(damaged, 0, "{late} ms apart: {conditions:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_log_notices_a_wiped_a_lost_and_a_returned_store_by_itself() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=20).await;
    durable(&log, position(1, 20)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let state = async |store: usize| log.status().await.unwrap().stores[store].state;
    let until = async |store: usize, wanted: LaneState| {
        let began = Instant::now();
        while state(store).await != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(began.elapsed() < Duration::from_secs(60), "never {wanted:?}");
        }
        began.elapsed()
    };
    controls[3].set_down(true);
    assert!(until(3, LaneState::Away).await <= Duration::from_secs(6));
    let status = log.status().await.unwrap();
    assert!(status.stores[3].out_since.is_some() && status.stores[3].error.is_some(), "{status:?}");
    // What is on it is not lost; nothing more was written.
    assert_eq!((status.losses_survived, status.behind), (2, 0));
    controls[3].set_down(false);
    assert!(until(3, LaneState::Active).await <= Duration::from_secs(11));
    controls[2].wipe();
    let asked = Instant::now();
    while cluster.bays[2].status(&vdisk()).await.unwrap().held.count() < 4 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(asked.elapsed() < Duration::from_secs(7), "the wiped store is not filled");
    }
    assert!(log.wait_until_complete(Duration::from_secs(5)).await);
    // A shard that got lost is put back as well.
    assert!(cluster.bays[0].disk().remove(&vdisk(), AggregationNumber(2)));
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(holders(&cluster, 2).await, 6);
}

#[tokio::test(start_paused = true)]
async fn an_idle_log_asks_each_store_once_in_an_interval() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before: Vec<u64> = controls.iter().map(|control| control.calls(Operation::Status)).collect();
    tokio::time::sleep(Duration::from_secs(100)).await;
    for (control, before) in controls.iter().zip(before) {
        let asked = control.calls(Operation::Status) - before;
        assert!((18..=26).contains(&asked), "{asked} times in 100 seconds");
    }
    // While everything is answered all the time, nobody asks.
    let before: Vec<u64> = controls.iter().map(|control| control.calls(Operation::Status)).collect();
    for sequence in 6..=105 {
        append(&log, 1, sequence..=sequence).await;
        log.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (control, before) in controls.iter().zip(before) {
        assert_eq!(control.calls(Operation::Status), before);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_writer_that_was_fenced_closes_by_itself() {
    let cluster = Cluster::new(4, 2, None);
    let (older, _) = cluster.open().await;
    let (_newer, _) = cluster.open().await;
    let mut durability = older.durability();
    let closed = durability.wait_for(|state| state.closed.is_some());
    let state = tokio::time::timeout(Duration::from_secs(6), closed).await.unwrap().unwrap();
    assert_eq!(state.closed, Some(CloseReason::Fenced));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_keeps_a_bounded_memory_and_delays_nobody() {
    let cluster = Cluster::new(4, 2, None);
    let (set, controls) = cluster.connect(1);
    let set =
        StoreSet::new(vdisk(), set.stores().to_vec(), cluster.quorums, Duration::from_secs(10)).unwrap();
    let small = LogSettings { max_unflushed_bytes: 20_000, in_flight: 16, ..settings() };
    let bound = 20_000 * 6 / 4 + 16 * (64 << 10);
    let log = Log::open(set, keys(), small).await.unwrap();
    controls.iter().for_each(|control| control.set_delay(Duration::from_millis(1)));
    controls[2].hang();
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for aggregation in 0..2000 {
        let sent = Instant::now();
        append(&log, 1, aggregation * 5 + 1..=aggregation * 5 + 5).await;
        durable(&log, position(1, aggregation * 5 + 5)).await.unwrap();
        slowest = slowest.max(sent.elapsed());
        let store = log.status().await.unwrap().stores[2].clone();
        assert!(store.unanswered_bytes <= bound, "{} bytes kept", store.unanswered_bytes);
        assert!(store.unanswered_bytes == 0 || began.elapsed() <= Duration::from_secs(40));
    }
    assert!(slowest <= Duration::from_millis(10), "an acknowledgement took {slowest:?}");
    assert!(controls[2].calls(Operation::Append) <= 32);
    let status = log.status().await.unwrap();
    assert_eq!(status.losses_survived, 1, "what hangs is not taken for stored");
    assert!(status.behind >= 1900 && status.stores[2].missing_bytes > Some(0), "{status:?}");
    assert_eq!(status.stores[2].first_missing, Some(AggregationNumber(33)), "the others may still arrive");
}

#[tokio::test(start_paused = true)]
async fn what_a_store_has_not_answered_is_not_taken_for_stored() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    assert_eq!(log.status().await.unwrap().losses_survived, 2);
    controls[2].hang();
    append(&log, 1, 6..=10).await;
    durable(&log, position(1, 10)).await.unwrap();
    let status = log.status().await.unwrap();
    assert_eq!((status.losses_survived, status.behind, status.stores[2].state), (1, 1, LaneState::Active));
    controls[2].release();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(log.status().await.unwrap().is_complete());
    // A store that was away from the beginning holds nobody knows what.
    log.close().await.unwrap();
    let (set, controls) = cluster.connect(2);
    controls[4].set_down(true);
    let log = Log::open(set, keys(), settings()).await.unwrap();
    let status = log.status().await.unwrap();
    assert_eq!((status.losses_survived, status.behind), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_delay_a_close_for_long() {
    let cluster = Cluster::new(4, 2, None);
    let (set, controls) = cluster.connect(1);
    let set =
        StoreSet::new(vdisk(), set.stores().to_vec(), cluster.quorums, Duration::from_secs(10)).unwrap();
    let log = Log::open(set, keys(), settings()).await.unwrap();
    controls[2].hang();
    append(&log, 1, 1..=7).await;
    let began = Instant::now();
    log.close().await.unwrap();
    assert!(
        began.elapsed() <= settings().close_patience + Duration::from_millis(10),
        "{:?}",
        began.elapsed()
    );
    for at in [0, 1, 3, 4, 5] {
        assert_eq!(cluster.bays[at].status(&vdisk()).await.unwrap().committed, AggregationNumber(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_always_slow_neither_goes_out_nor_keeps_others_from_being_filled() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    controls[0].set_delay(Duration::from_secs(1));
    controls[5].set_down(true);
    let mut sequence = 0;
    let write = async |rounds: u64, sequence: &mut u64| {
        for _ in 0..rounds {
            append(&log, 1, *sequence + 1..=*sequence + 5).await;
            *sequence += 5;
            durable(&log, position(1, *sequence)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // With one away, the slow one is needed: nothing is lost by that, and it does not go out.
    write(20, &mut sequence).await;
    controls[5].set_down(false);
    let began = Instant::now();
    loop {
        write(10, &mut sequence).await;
        let status = log.status().await.unwrap();
        assert_eq!(status.stores[0].state, LaneState::Active, "{:?}", status.stores[0]);
        if status.stores[5].state == LaneState::Active && status.stores[5].missing == 0 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the store that is back is not filled: {status:?}"
        );
    }
    controls[0].set_delay(Duration::ZERO);
    assert!(log.wait_until_complete(Duration::from_secs(120)).await);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_rebuilt_is_shown_and_filled_in_when_a_store_more_is_there() {
    let cluster = Cluster::new(2, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=20).await;
    durable(&log, position(1, 20)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Three of four shards of number 3 are gone: one by one they show, and none can be made again.
    let kept = cluster.bays[1].disk().shard(&vdisk(), AggregationNumber(3)).await.unwrap();
    for at in [0, 1, 2] {
        assert!(cluster.bays[at].disk().remove(&vdisk(), AggregationNumber(3)));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let status = log.status().await.unwrap();
    for at in [0, 1, 2] {
        let store = &status.stores[at];
        assert_eq!((store.missing, store.first_missing), (0, None), "{store:?}");
        assert!(store.unrepairable.contains(AggregationNumber(3)), "{store:?}");
    }
    assert_eq!((status.losses_survived, status.behind), (0, 1));
    // Its shard turns up again, by another way, and a store goes and comes.
    let tlog_store::ShardSlot::Held(shard) = kept else { panic!("{kept:?}") };
    cluster.bays[1].fill(&vdisk(), AggregationNumber(3), shard).await.unwrap();
    controls[0].set_down(true);
    tokio::time::sleep(Duration::from_secs(6)).await;
    controls[0].set_down(false);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await, "{:?}", log.status().await);
    assert_eq!(holders(&cluster, 3).await, 4);
}

#[tokio::test(start_paused = true)]
async fn backfill_keeps_its_rate_over_all_stores() {
    let cluster = Cluster::new(2, 3, Some(3));
    let (set, controls) = cluster.connect(1);
    let rate = 20_000;
    let log =
        Log::open(set, keys(), LogSettings { fill_bytes_per_second: rate, ..settings() }).await.unwrap();
    for at in [3, 4] {
        controls[at].set_down(true);
    }
    append(&log, 1, 1..=1000).await;
    durable(&log, position(1, 1000)).await.unwrap();
    let one = cluster.bays[0].shard(&vdisk(), AggregationNumber(1)).await.unwrap();
    let tlog_store::ShardSlot::Held(shard) = one else { panic!("{one:?}") };
    // Two stores lack two hundred shards each; two payloads are read for each.
    let least = Duration::from_secs(2 * 200 * 2 * shard.payload.len() as u64 / rate);
    let began = Instant::now();
    for at in [3, 4] {
        controls[at].set_down(false);
    }
    assert!(log.wait_until_complete(Duration::from_secs(600)).await);
    let took = began.elapsed();
    assert!(took >= least && took <= least * 2 + Duration::from_secs(15), "{took:?}, at least {least:?}");
}

#[tokio::test(start_paused = true)]
async fn a_log_is_deleted_from_every_store_or_not_begun_to() {
    let cluster = Cluster::new(4, 2, None);
    let (set, controls) = cluster.connect(1);
    assert_eq!(delete_log(&set).await.unwrap(), 0);
    let (writer, _) = cluster.open().await;
    append(&writer, 1, 1..=5).await;
    durable(&writer, position(1, 5)).await.unwrap();
    controls[3].set_down(true);
    match delete_log(&set).await {
        Err(DeleteError::NotAllAnswer { missing, .. }) => {
            assert!(missing.len() == 1 && missing[0].contains("memory:3"), "{missing:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(holders(&cluster, 1).await, 6);
    controls[3].set_down(false);
    // It stops in the middle, and is done again.
    controls[4].set_read_only(true);
    assert!(matches!(delete_log(&set).await, Err(DeleteError::NotDeleted { .. })));
    controls[4].set_read_only(false);
    assert_eq!(delete_log(&set).await.unwrap(), 6);
    for bay in &cluster.bays {
        assert_eq!(bay.status(&vdisk()).await.unwrap().identity, None);
    }
    // The writer finds out by itself, and does not bring it back.
    append(&writer, 1, 6..=10).await;
    assert!(durable(&writer, position(1, 10)).await.is_err());
    for bay in &cluster.bays {
        assert_eq!(bay.status(&vdisk()).await.unwrap().identity, None);
    }
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, None);
}

#[tokio::test(start_paused = true)]
async fn a_scrub_says_why_a_store_took_no_part_and_goes_on_past_a_full_one() {
    let cluster = Cluster::new(4, 2, None);
    written(&cluster).await;
    for number in 1..=2 {
        cluster.bays[2].disk().remove(&vdisk(), AggregationNumber(number));
        cluster.bays[3].disk().remove(&vdisk(), AggregationNumber(number + 2));
    }
    let (set, controls): (StoreSet, Vec<FaultControl>) = cluster.connect(2);
    controls[2].set_full(true);
    controls[5].set_down(true);
    let report = scrub(&set, u64::MAX, |_| {}).await.unwrap();
    assert!(!report.is_whole());
    assert_eq!((report.stores[2].missing.count(), report.stores[2].refilled.count()), (2, 0));
    assert_eq!(report.stores[3].refilled.count(), 2);
    assert!(report.stores[2].error.as_ref().unwrap().contains("is full"), "{report:?}");
    assert!(!report.stores[5].counted && report.stores[5].error.as_ref().unwrap().contains("out of reach"));
}
