//! Stories of a log that loses its beginning. On memory stores, in virtual time.

use std::time::Duration;

use tlog_codec::Kind;
use tlog_proto::{AggregationNumber, Sequence, Timestamp};
use tlog_store::{FaultControl, Operation, ShardStore};

use crate::testing::{
    Cluster, append, content, durable, keys, mark, part, position, settings, stored_up_to, vdisk,
};
use crate::{AppendError, CloseReason, Log, LogSettings, LogStatus, PruneError};

const FIRST: AggregationNumber = AggregationNumber(7);

/// A log with ten aggregations of five writes each.
async fn written(cluster: &Cluster) -> (Log, Vec<FaultControl>) {
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=50).await;
    durable(&log, position(1, 50)).await.unwrap();
    (log, controls)
}

/// Whether every store keeps what is from `first` on, and nothing else.
async fn assert_removed(cluster: &Cluster, first: AggregationNumber, last: u64) {
    for bay in &cluster.bays {
        let state = bay.status(&vdisk()).await.unwrap();
        let kept: Vec<_> = state.held.iter().collect();
        assert_eq!((state.first, kept), (first, vec![first..=AggregationNumber(last)]), "{}", bay.address());
    }
}

/// Every store has everything, and the status says so.
fn assert_complete(status: &LogStatus) {
    assert!(
        status.stores.iter().all(|store| store.missing == 0 && store.unrepairable.is_empty()),
        "{status:#?}"
    );
    assert_eq!(
        (status.behind, status.losses_survived),
        (0, status.losses_survived_when_complete),
        "{status:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_below_is_gone_from_all_stores_and_the_log_goes_on() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = written(&cluster).await;
    let pruned = log.prune(FIRST).await.unwrap();
    assert_eq!((pruned.first, pruned.later), (FIRST, Vec::<String>::new()));
    assert_removed(&cluster, FIRST, 10).await;
    assert_complete(&log.status().await.unwrap());
    assert!(log.find(position(1, 31)).await.unwrap().is_some());
    assert_eq!(log.find(position(1, 30)).await.unwrap(), None);
    append(&log, 1, 51..=55).await;
    durable(&log, position(1, 55)).await.unwrap();
    // What is less than was removed already changes nothing.
    assert_eq!(log.prune(AggregationNumber(3)).await.unwrap().first, FIRST);
    log.close().await.unwrap();
    let (log, _) = cluster.open().await;
    assert_eq!((log.end().first, log.end().last), (Sequence(31), Some(Sequence(55))));
    assert_complete(&log.status().await.unwrap());
    assert_eq!(content(&cluster).await, (31..=55).collect::<Vec<_>>());
    assert!(log.scrub(u64::MAX, |_| {}).await.unwrap().is_whole());
}

#[tokio::test(start_paused = true)]
async fn the_last_committed_aggregation_stays_so_that_the_next_one_has_something_to_follow() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = written(&cluster).await;
    let last = AggregationNumber(10);
    for first in [11, 12, u64::MAX].map(AggregationNumber) {
        assert_eq!(log.prune(first).await, Err(PruneError::NotCommitted { first, committed: last }));
    }
    log.prune(last).await.unwrap();
    log.close().await.unwrap();
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(50)));
    append(&log, 1, 51..=55).await;
    log.close().await.unwrap();
    let all = stored_up_to(&cluster, AggregationNumber(11)).await.unwrap();
    assert_eq!((all.len(), all[1].header.prev), (2, all[0].id));
}

#[tokio::test(start_paused = true)]
async fn a_log_of_which_only_what_has_no_writes_is_left_goes_on_where_its_writes_ended() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = written(&cluster).await;
    log.append_checkpoint(part(0..7), Timestamp(50)).await.unwrap();
    let record = log.append_record(mark(1)).await.unwrap();
    log.prune(AggregationNumber(11)).await.unwrap();
    log.close().await.unwrap();
    let (log, _) = cluster.open().await;
    assert_eq!((log.end().generation.0, log.end().last, log.end().session.0), (1, Some(Sequence(50)), 1));
    assert_eq!(log.find(position(1, 50)).await.unwrap(), None, "it was removed");
    append(&log, 1, 51..=55).await;
    durable(&log, position(1, 55)).await.unwrap();
    assert!(log.find(position(1, 53)).await.unwrap().is_some());
    log.close().await.unwrap();
    let all = stored_up_to(&cluster, AggregationNumber(13)).await.unwrap();
    let kinds: Vec<Kind> = all.iter().map(|stored| stored.header.kind).collect();
    assert_eq!(kinds, [Kind::Checkpoint, Kind::Record, Kind::Blocks]);
    assert_eq!((all[2].header.record_before(), all[2].header.prev), (Some(record.number), record.id));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_out_does_it_when_it_is_back() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=20).await;
    durable(&log, position(1, 20)).await.unwrap();
    controls[2].set_down(true);
    append(&log, 1, 21..=50).await;
    durable(&log, position(1, 50)).await.unwrap();
    let pruned = log.prune(FIRST).await.unwrap();
    assert_eq!(pruned.later, ["memory:2"]);
    let status = log.status().await.unwrap();
    assert_eq!((status.stores[2].missing, status.behind, status.losses_survived), (4, 4, 1), "{status:#?}");
    controls[2].set_down(false);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    assert_eq!(log.prune(FIRST).await.unwrap().later, Vec::<String>::new());
    assert_removed(&cluster, FIRST, 10).await;
    assert_complete(&log.status().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_came_back_empty_gets_only_what_is_kept() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = written(&cluster).await;
    controls[4].wipe();
    append(&log, 1, 51..=55).await;
    durable(&log, position(1, 55)).await.unwrap();
    log.prune(FIRST).await.unwrap();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    log.prune(FIRST).await.unwrap();
    assert_removed(&cluster, FIRST, 11).await;
    assert_complete(&log.status().await.unwrap());
    // It holds everything again: another one may go now.
    cluster.bays[0].disk().wipe();
    let (log, _) = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(55)));
}

#[tokio::test(start_paused = true)]
async fn what_a_writer_began_that_was_killed_between_any_two_stores_the_next_one_finishes() {
    for stores in 1..=6 {
        let cluster = Cluster::new(4, 2, None);
        let (log, _) = written(&cluster).await;
        let epoch = cluster.bays[0].status(&vdisk()).await.unwrap().epoch;
        drop(log);
        for bay in &cluster.bays[..stores] {
            bay.publish(&vdisk(), epoch, AggregationNumber(10)).await.unwrap();
            bay.prune(&vdisk(), epoch, FIRST).await.unwrap();
        }
        let (log, _) = cluster.open().await;
        // Whoever asks for nothing more only waits for it.
        assert_eq!(log.prune(FIRST).await.unwrap().later, Vec::<String>::new(), "after {stores}");
        assert_removed(&cluster, FIRST, 10).await;
        assert_complete(&log.status().await.unwrap());
        assert_eq!(content(&cluster).await, (31..=50).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_a_store_knows_that_is_out_of_reach_is_finished_when_it_is_back() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = written(&cluster).await;
    drop(log);
    let epoch = cluster.bays[3].status(&vdisk()).await.unwrap().epoch;
    cluster.bays[3].publish(&vdisk(), epoch, AggregationNumber(10)).await.unwrap();
    cluster.bays[3].prune(&vdisk(), epoch, FIRST).await.unwrap();
    let (set, controls) = cluster.connect(2);
    controls[3].set_down(true);
    let log = Log::open(set, keys(), settings()).await.unwrap();
    assert_eq!(content(&cluster).await.len(), 20, "whoever asks all stores knows it");
    assert_eq!(cluster.bays[0].status(&vdisk()).await.unwrap().first, AggregationNumber(1));
    controls[3].set_down(false);
    // Nobody has to ask for it, nor has it to be looked for among what silent stores say.
    for store in [0, 1, 2, 4, 5] {
        controls[store].called(Operation::Prune, 1).await;
    }
    assert_eq!(log.prune(AggregationNumber(1)).await.unwrap().first, FIRST);
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    assert_removed(&cluster, FIRST, 10).await;
    assert_complete(&log.status().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_was_overtaken_removes_nothing_not_even_where_nobody_told_a_store_of_it() {
    let cluster = Cluster::new(4, 2, None);
    let (older, _) = written(&cluster).await;
    let (set, controls) = cluster.connect(2);
    controls[0].set_down(true);
    let newer = Log::open(set, keys(), settings()).await.unwrap();
    let refused = older.prune(FIRST).await;
    assert_eq!(refused, Err(PruneError::Closed(AppendError(CloseReason::Fenced))));
    for bay in &cluster.bays {
        assert_eq!(bay.status(&vdisk()).await.unwrap().first, AggregationNumber(1));
    }
    drop(newer);
    // Nor does one that cannot know whether it was.
    let (log, controls) = cluster.open().await;
    controls[..5].iter().for_each(|control| control.set_down(true));
    assert_eq!(log.prune(FIRST).await, Err(PruneError::NotConfirmed));
    assert_eq!(cluster.bays[5].status(&vdisk()).await.unwrap().first, AggregationNumber(1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_nobody_up_for_longer_than_its_time_limit() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=45).await;
    durable(&log, position(1, 45)).await.unwrap();
    controls[3].hang();
    append(&log, 1, 46..=55).await; // it answers neither of these two
    durable(&log, position(1, 55)).await.unwrap();
    let before = tokio::time::Instant::now();
    let status = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        log.status().await.unwrap()
    };
    let (pruned, status) = tokio::join!(log.prune(AggregationNumber(11)), status);
    assert!(before.elapsed() <= Duration::from_secs(3), "{:?}", before.elapsed());
    assert_eq!(pruned.unwrap().later, ["memory:3"]);
    assert_eq!(status.behind, 1, "what is removed is no debt: {status:#?}");
    let status = log.status().await.unwrap();
    assert_eq!((status.stores[3].missing, status.behind), (1, 1), "{status:#?}");
    controls[3].release();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    log.prune(AggregationNumber(11)).await.unwrap();
    assert_removed(&cluster, AggregationNumber(11), 11).await;
    assert_complete(&log.status().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_while_a_store_catches_up_is_not_taken_for_lost() {
    for wipe in [false, true] {
        let cluster = Cluster::new(4, 2, None);
        let (set, controls) = cluster.connect(1);
        // What fails to be filled is not tried again here.
        let retry_after = if wipe { Duration::from_secs(3600) } else { settings().retry_after };
        let slow = LogSettings {
            fill_bytes_per_second: 5000,
            retry_after,
            retry_at_most: Duration::from_secs(3600),
            ..settings()
        };
        let log = Log::open(set, keys(), slow).await.unwrap();
        controls[2].set_down(!wipe);
        append(&log, 1, 1..=195).await;
        durable(&log, position(1, 195)).await.unwrap();
        if wipe {
            controls[2].wipe();
        }
        append(&log, 1, 196..=200).await;
        durable(&log, position(1, 200)).await.unwrap();
        controls[2].set_down(false);
        controls[2].called(Operation::Fill, 5).await;
        log.prune(AggregationNumber(30)).await.unwrap();
        assert!(log.wait_until_complete(Duration::from_secs(60)).await, "wiped: {wipe}");
        log.prune(AggregationNumber(30)).await.unwrap();
        assert_removed(&cluster, AggregationNumber(30), 40).await;
        assert_complete(&log.status().await.unwrap());
        // And it is at rest: nothing is tried again and again.
        let filled = controls[2].calls(Operation::Fill) + controls[0].calls(Operation::Shard);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(controls[2].calls(Operation::Fill) + controls[0].calls(Operation::Shard), filled);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_while_a_scrub_is_at_it_is_not_taken_for_lost() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = written(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // every store knows what is committed
    cluster.bays[1].disk().remove(&vdisk(), AggregationNumber(9));
    let (set, _) = cluster.connect(3);
    let (mut done, scrubbed) = (0, tokio::sync::Notify::new());
    let scrub = crate::scrub(&set, 10_000, |progress| {
        done = progress.done;
        if done == 3 {
            scrubbed.notify_one();
        }
    });
    let prune = async {
        scrubbed.notified().await;
        log.prune(FIRST).await.unwrap();
    };
    let (report, ()) = tokio::join!(scrub, prune);
    let report = report.unwrap();
    assert_eq!(done, 10);
    assert!(report.is_whole() && report.stores[1].refilled.contains(AggregationNumber(9)), "{report:#?}");
    assert_eq!(report.stores.iter().map(|store| store.missing.count()).sum::<u64>(), 1, "{report:#?}");
    assert!(report.stores.iter().all(|store| store.error.is_none()), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn thousands_are_removed_in_steps_between_which_a_store_takes_writes() {
    let cluster = Cluster::new(1, 1, None);
    let (set, controls) = cluster.connect(1);
    let log = Log::open(set, keys(), LogSettings { max_blocks: 1, ..settings() }).await.unwrap();
    append(&log, 1, 1..=2500).await;
    durable(&log, position(1, 2500)).await.unwrap();
    log.prune(AggregationNumber(2400)).await.unwrap();
    assert_eq!(controls[0].calls(Operation::Prune), 3);
    assert_removed(&cluster, AggregationNumber(2400), 2500).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_put_back_and_has_removed_what_the_log_keeps_is_to_be_emptied() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = written(&cluster).await;
    let epoch = cluster.bays[2].status(&vdisk()).await.unwrap().epoch;
    cluster.bays[2].publish(&vdisk(), epoch, AggregationNumber(10)).await.unwrap();
    cluster.bays[2].prune(&vdisk(), epoch, FIRST).await.unwrap();
    // Before anybody hears of it another disk takes its place, and then it comes back.
    let old = cluster.bays[2].pull();
    append(&log, 1, 51..=55).await;
    durable(&log, position(1, 55)).await.unwrap();
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    drop(cluster.bays[2].insert(old));
    append(&log, 1, 56..=60).await;
    durable(&log, position(1, 60)).await.unwrap();
    let asked = controls[2].calls(Operation::Status);
    controls[2].called(Operation::Status, asked + 3).await;
    let error = log.status().await.unwrap().stores[2].error.clone().unwrap();
    assert!(error.contains("below aggregation 7") && error.contains("from 1 on: empty it"), "{error}");
    drop(cluster.bays[2].pull());
    assert!(log.wait_until_complete(Duration::from_secs(60)).await);
    assert_removed(&cluster, AggregationNumber(1), 12).await;
    assert_complete(&log.status().await.unwrap());
}
