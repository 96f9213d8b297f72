//! The log is not any more what was applied.

use tlog_player::slave::{NeedsResync, SlaveSyncState};
use tlog_store::ShardStore;

use crate::log::number;
use crate::scene::{Stores, Written, until, within};

async fn filled(written: &Written) -> Stores {
    let stores = Stores::new(2, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    syncer.stop().await;
    stores
}

async fn reason(written: &Written, stores: &Stores) -> NeedsResync {
    let disk = stores.disk(&written.log);
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert_eq!(stores.disk(&written.log), disk);
    match status.state {
        SlaveSyncState::NeedsResync(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_log_that_was_begun_anew_is_not_applied_however_long_it_is() {
    let mut written = Written::new(61).await;
    written.append(5).await;
    let stores = filled(&written).await;
    for aggregations in [5, 6, 20] {
        let mut another = Written::new(62).await;
        another.append(aggregations).await;
        let reason = reason(&another, &stores).await;
        assert!(matches!(reason, NeedsResync::OtherLog { .. }), "{reason}");
    }
}

#[tokio::test]
async fn a_log_that_ends_before_what_was_applied_is_not_gone_on_with() {
    let mut written = Written::new(61).await;
    written.append(5).await;
    let stores = filled(&written).await;
    for aggregations in [0, 1, 4] {
        let mut another = Written::new(61).await;
        another.append(aggregations).await;
        let reason = reason(&another, &stores).await;
        let expected = NeedsResync::SlaveAhead { applied: number(5), last: number(aggregations) };
        assert_eq!(reason, expected);
    }
}

#[tokio::test]
async fn a_log_that_is_begun_anew_while_it_is_followed_is_noticed() {
    let mut written = Written::new(63).await;
    written.append(5).await;
    let stores = Stores::new(2, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    written.log.memory.iter().for_each(|store| store.wipe());
    // The same stores, from their first promise on.
    written.log.prev = tlog_proto::AggregationId::BEFORE_FIRST;
    written.log.next = number(1);
    written.log.forget_members();
    written.log.open(tlog_proto::Epoch(1), &[0, 1, 2]).await;
    written.append(7).await;
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    let SlaveSyncState::NeedsResync(reason) = status.state else { unreachable!() };
    assert!(matches!(reason, NeedsResync::OtherLog { .. } | NeedsResync::SlaveAhead { .. }), "{reason}");
}

#[tokio::test]
async fn history_that_was_removed_before_it_was_applied_needs_a_resync() {
    let mut written = Written::new(65).await;
    written.append(5).await;
    let stores = filled(&written).await;
    written.append(10).await;
    for store in &written.log.memory {
        store.prune(&written.log.vdisk, written.log.epoch, number(9)).await.unwrap();
    }
    let expected = NeedsResync::Pruned { next: number(5), first: number(9) };
    assert_eq!(reason(&written, &stores).await, expected);
    // And an empty slave.
    let stores = Stores::new(1, false);
    let expected = NeedsResync::Pruned { next: number(1), first: number(9) };
    assert_eq!(reason(&written, &stores).await, expected);
}

#[tokio::test]
async fn a_slave_beyond_what_the_stores_in_reach_can_tell_waits_for_the_others() {
    let mut written = Written::new(66).await;
    written.append(5).await;
    let blocks = written.blocks(2);
    // Acknowledged on all stores; that it is committed none of them knows yet.
    written.append_blocks(&blocks).await;
    let stores = filled(&written).await;
    written.log.controls[0].set_down(true);
    written.log.controls[1].set_down(true);
    let syncer = written.syncer(stores.cluster(&written.log));
    until(&syncer, |state| matches!(state, SlaveSyncState::WaitingForLog { .. })).await;
    written.log.controls[0].set_down(false);
    written.log.controls[1].set_down(false);
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}
