//! Nothing fails.

use std::sync::Arc;
use std::time::Duration;

use tlog_player::slave::{
    SlaveCluster, SlaveLag, SlaveStatus, SlaveSyncOptions, SlaveSyncState, SlaveSyncer,
};
use tlog_proto::{Epoch, Generation, LogPosition, Sequence};
use tlog_store::slave::{SlavePoint, SlaveStore};
use tokio::sync::{Semaphore, watch};

use crate::fencing::HeldUp;
use crate::scene::{Stores, Written, options, until, until_status, within};

#[tokio::test]
async fn a_slave_gets_every_write_also_those_that_come_later() {
    for (count, own_metadata) in [(1, false), (1, true), (2, false), (3, true)] {
        let mut written = Written::new(count as u64).await;
        written.append(20).await;
        let stores = Stores::new(count, own_metadata);
        let (tell, more) = watch::channel(());
        let syncer = written.syncer_told(stores.cluster(&written.log), more);
        within(syncer.wait_until(written.end())).await.unwrap();
        assert_eq!(stores.disk(&written.log), *written.disk());

        for _ in 0..5 {
            written.append(3).await;
            tell.send_replace(());
            within(syncer.wait_until(written.end())).await.unwrap();
            assert_eq!(stores.disk(&written.log), *written.disk());
        }
        let status = until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
        assert_eq!(status.blocks, written.log.sequence - 1);
        assert_eq!(status.position.unwrap().last.unwrap().position, written.end());
        assert_eq!(status.lag, Some(SlaveLag { aggregations: 0, blocks: Some(0), since: None }));
        syncer.stop().await;
        let state = stores.cluster(&written.log).state().await.unwrap();
        assert_eq!(state.record.legacy_sequence, Some(written.end().sequence));
        assert_eq!(state.position().unwrap().point, written.after.last().unwrap().0);
    }
}

#[tokio::test]
async fn an_empty_log_leaves_a_slave_that_is_up_to_date() {
    let mut written = Written::new(1).await;
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
    let state = stores.cluster(&written.log).state().await.unwrap();
    assert_eq!((state.position().unwrap().point, state.record.legacy_sequence), (SlavePoint::START, None));
    written.append(1).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn sequences_that_began_anew_are_followed_in_the_order_of_the_log() {
    let mut written = Written::new(3).await;
    written.append(5).await;
    written.log.sequence = 1;
    written.generation = 2;
    written.append(5).await;
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    // A sequence that both generations have: it is that of the second which is waited for.
    within(syncer.wait_until(LogPosition { generation: Generation(2), sequence: Sequence(1) }))
        .await
        .unwrap();
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn what_is_not_certainly_in_the_log_is_not_applied() {
    let mut written = Written::new(5).await;
    written.append(3).await;
    let (certain, disk) = (written.end(), written.disk().clone());
    // One store of three has the next one: its writer died, and the next opening may rule it out.
    let blocks = written.blocks(3);
    let encoded = written.log.encode(1, &blocks);
    written.log.store(&encoded, Epoch(1), &[0], 3).await;
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(certain)).await.unwrap();
    let status = until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
    assert_eq!(status.position.unwrap().last.unwrap().position, certain);
    assert_eq!(stores.disk(&written.log), disk);

    // It is ruled out, and others come in its place.
    written.log.open(Epoch(2), &[0, 1, 2]).await;
    written.log.sequence = certain.sequence.0 + 1;
    written.append(2).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn the_lag_grows_with_the_log_while_the_slave_catches_up() {
    let mut written = Written::new(19).await;
    written.append(4).await;
    let stores = Stores::new(1, false);
    let writes = Arc::new(Semaphore::new(0));
    let held = HeldUp { store: stores.data[0].clone(), writes: writes.clone(), promises: None };
    let held: Arc<dyn SlaveStore> = Arc::new(held);
    let slave = SlaveCluster::new(written.log.vdisk.clone(), vec![held.clone()], held).unwrap();
    let options = SlaveSyncOptions { check: Duration::ZERO, ..options() };
    let (log, keys, more) = (written.log.set.clone(), written.log.keys.clone(), watch::channel(()).1);
    let syncer = SlaveSyncer::start(log, keys, slave, more, options).unwrap();
    let lag = |status: &SlaveStatus| status.lag.map_or(0, |lag| lag.aggregations);
    until_status(&syncer, |status| lag(status) == 4).await;
    written.append(30).await;
    writes.add_permits(1);
    until_status(&syncer, |status| lag(status) > 4).await;
    writes.add_permits(1000);
    within(syncer.wait_until(written.end())).await.unwrap();
}

#[tokio::test]
async fn the_lag_is_exact_while_the_slave_is_away() {
    let mut written = Written::new(7).await;
    written.append(4).await;
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    let (before, first_missed) = (written.end(), written.log.next);
    stores.gate.close_after(0, false);
    written.append(9).await;
    let blocks = written.end().sequence.0 - before.sequence.0;
    let status = until_status(&syncer, |status| {
        matches!(status.state, SlaveSyncState::WaitingForSlave { .. })
            && status.lag.is_some_and(|lag| lag.aggregations == 9)
    })
    .await;
    let lag = status.lag.unwrap();
    assert_eq!((lag.blocks, lag.since.unwrap().0), (Some(blocks), 1_000_000 + first_missed.0));
    stores.gate.open();
    within(syncer.wait_until(written.end())).await.unwrap();
    let status = until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
    assert_eq!(status.lag.unwrap().aggregations, 0);
}

#[tokio::test]
async fn a_log_whose_stores_are_away_is_waited_for() {
    let mut written = Written::new(8).await;
    written.append(4).await;
    written.log.controls.iter().for_each(|control| control.set_down(true));
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    until(&syncer, |state| matches!(state, SlaveSyncState::WaitingForLog { .. })).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), syncer.wait_until(written.end())).await.is_err());
    written.log.controls.iter().for_each(|control| control.set_down(false));
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}
