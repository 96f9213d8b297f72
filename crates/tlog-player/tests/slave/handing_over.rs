//! A disk switches to its slave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_player::slave::{SlaveSyncState, SlaveWaitError, Standing};
use tlog_proto::LogPosition;
use tlog_store::slave::SlaveMark;

use crate::scene::{Stores, Written, until, within};

#[tokio::test]
async fn a_slave_that_was_handed_over_has_everything_and_nobody_applies_more() {
    let mut written = Written::new(41).await;
    written.append(6).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    let syncer = written.syncer(cluster.clone());
    let end = written.end();
    within(syncer.hand_over(Some(end))).await.unwrap();
    let disk = stores.disk(&written.log);
    assert_eq!(disk, *written.disk());
    assert_eq!(*cluster.state().await.unwrap().mark(), SlaveMark::Stopped);

    // The disk that switched writes to it, and the log goes on.
    stores.data[1].put(&written.log.vdisk, 7, Bytes::from_static(b"primary"));
    written.append(3).await;
    until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
    let another = written.syncer(cluster.clone());
    until(&another, |state| *state == SlaveSyncState::Stopped).await;
    assert_eq!(within(another.wait_until(written.end())).await, Err(SlaveWaitError::Stopped));
    // Who asks again, as the answer was lost, is told the same.
    assert_eq!(within(another.hand_over(Some(end))).await, Ok(()));
    assert_eq!(stores.data[1].blocks(&written.log.vdisk)[&7], "primary");

    cluster.start(false).await.unwrap();
    let status = until(&another, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert!(matches!(status.state, SlaveSyncState::NeedsResync(reason) if reason.kind() == "was_stopped"));
}

#[tokio::test]
async fn a_slave_that_nobody_wrote_to_is_gone_on_with_after_it_was_stopped() {
    let mut written = Written::new(42).await;
    written.append(6).await;
    let stores = Stores::new(3, false);
    let cluster = stores.cluster(&written.log);
    let syncer = written.syncer(cluster.clone());
    within(syncer.wait_until(written.end())).await.unwrap();
    cluster.stop().await.unwrap();
    cluster.stop().await.unwrap();
    written.append(3).await;
    until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
    assert!(stores.disk(&written.log) != *written.disk());
    cluster.start(true).await.unwrap();
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_slave_that_was_written_to_is_found_out_where_that_can_be_seen_though_somebody_vouched() {
    let mut written = Written::new(46).await;
    written.append(6).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    let syncer = written.syncer(cluster.clone());
    within(syncer.hand_over(Some(written.end()))).await.unwrap();
    stores.data[1].put(&written.log.vdisk, 1001, Bytes::from_static(b"primary"));
    cluster.start(true).await.unwrap();
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert!(matches!(status.state, SlaveSyncState::NeedsResync(reason) if reason.kind() == "blocks_changed"));
}

#[tokio::test]
async fn a_metadata_store_that_forgets_that_the_slave_was_stopped_makes_nobody_write_over_a_primary() {
    for by_command in [true, false] {
        let mut written = Written::new(48).await;
        written.append(6).await;
        let stores = Stores::new(2, true);
        let cluster = stores.cluster(&written.log);
        let syncer = written.syncer(cluster.clone());
        within(syncer.wait_until(written.end())).await.unwrap();
        let older = stores.metadata.copy();
        if by_command {
            cluster.stop().await.unwrap();
        } else {
            within(syncer.hand_over(Some(written.end()))).await.unwrap();
        }
        syncer.stop().await;
        older(&stores.metadata);
        written.append(3).await;
        let syncer = written.syncer(cluster);
        let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
        assert!(
            matches!(status.state, SlaveSyncState::NeedsResync(reason) if reason.kind() == "metadata_lost")
        );
    }
}

#[tokio::test]
async fn a_stop_that_was_interrupted_is_finished_by_the_next_one() {
    let mut written = Written::new(43).await;
    written.append(3).await;
    for steps in 0..14 {
        let stores = Stores::new(3, true);
        let cluster = stores.cluster(&written.log);
        let syncer = written.syncer(cluster.clone());
        within(syncer.wait_until(written.end())).await.unwrap();
        syncer.stop().await;
        stores.gate.close_after(steps, true);
        let stopped = cluster.stop().await;
        stores.gate.open();
        if stopped.is_err() {
            cluster.stop().await.unwrap();
        }
        assert_eq!(cluster.state().await.unwrap().standing(), Standing::Stopped);
        assert_eq!(stores.disk(&written.log), *written.disk());
        cluster.start(true).await.unwrap();
        let syncer = written.syncer(cluster);
        within(syncer.wait_until(written.end())).await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_slave_can_be_stopped_and_is_not_touched_then() {
    let mut written = Written::new(44).await;
    let stores = Stores::new(2, false);
    let cluster = stores.cluster(&written.log);
    cluster.stop().await.unwrap();
    written.append(3).await;
    let syncer = written.syncer(cluster.clone());
    until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
    assert!(stores.disk(&written.log).is_empty());
    cluster.start(true).await.unwrap();
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn who_does_not_wait_any_more_does_not_switch() {
    let mut written = Written::new(47).await;
    written.append(2).await;
    let stores = Stores::new(2, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    let later = LogPosition { sequence: written.end().sequence.next(), ..written.end() };
    let given_up = tokio::time::timeout(Duration::from_millis(20), syncer.hand_over(Some(later))).await;
    assert!(given_up.is_err());
    written.append(2).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(*stores.cluster(&written.log).state().await.unwrap().mark(), SlaveMark::Running);
}

#[tokio::test]
async fn everybody_who_waits_is_told_when_the_syncer_ends() {
    let mut written = Written::new(45).await;
    written.append(3).await;
    let stores = Stores::new(2, false);
    stores.gate.close_after(0, false);
    let syncer = Arc::new(written.syncer(stores.cluster(&written.log)));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (syncer, end) = (syncer.clone(), written.end());
            tokio::spawn(async move { syncer.wait_until(end).await })
        })
        .collect();
    until(&syncer, crate::scene::is_waiting).await;
    syncer.stop().await;
    syncer.stop().await;
    for waiting in waiting {
        assert_eq!(within(waiting).await.unwrap(), Err(SlaveWaitError::Ended));
    }
    assert_eq!(syncer.wait_until(written.end()).await, Err(SlaveWaitError::Ended));
    assert_eq!(syncer.status().borrow().state, SlaveSyncState::Ended);
}
