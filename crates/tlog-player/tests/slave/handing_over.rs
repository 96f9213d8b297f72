//! A disk switches to its slave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_player::slave::{NeedsResync, SlaveCluster, SlaveSyncState, SlaveWaitError, Standing};
use tlog_proto::LogPosition;
use tlog_store::slave::{SlaveMark, SlaveStore};
use tokio::sync::Semaphore;

use crate::fencing::HeldUp;
use crate::scene::{Stores, Written, is_waiting, until, within};

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
    let status = until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
    assert_eq!(status.lag, None);
    let another = written.syncer(cluster.clone());
    until(&another, |state| *state == SlaveSyncState::Stopped).await;
    let stopped = SlaveWaitError::Stopped { vdisk: written.log.vdisk.clone(), held: Some(end) };
    assert_eq!(within(another.wait_until(written.end())).await, Err(stopped));
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
async fn who_is_told_that_a_slave_is_handed_over_can_rely_on_every_store_whatever_fails_on_the_way() {
    // One store after the other loses its connection, before or after it did what it was told.
    let mut begun = Written::new(49).await;
    begun.append(4).await;
    let mut interrupted = 0;
    for own_metadata in [true, false] {
        for loses_answer in [true, false] {
            for steps in 0..24 {
                let stores = Stores::new(3, own_metadata);
                let cluster = stores.cluster(&begun.log);
                let syncer = begun.syncer(cluster.clone());
                within(syncer.wait_until(begun.end())).await.unwrap();
                let older = stores.metadata.copy();
                stores.gate.close_after(steps, loses_answer);
                let syncer = Arc::new(syncer);
                let asking = tokio::spawn({
                    let (syncer, end) = (syncer.clone(), begun.end());
                    async move { syncer.hand_over(Some(end)).await }
                });
                until(&syncer, |state| is_waiting(state) || *state == SlaveSyncState::Stopped).await;
                interrupted += usize::from(!asking.is_finished());
                stores.gate.open();
                assert_eq!(within(asking).await.unwrap(), Ok(()), "after {steps} steps");
                syncer.stop().await;
                let state = cluster.state().await.unwrap();
                assert_eq!(*state.mark(), SlaveMark::Stopped);
                let forgets = own_metadata.then(|| older(&stores.metadata));
                let epochs: Vec<_> = state.parts.iter().map(|(_, part)| part.epoch).collect();
                assert_eq!(epochs, [state.record.epoch; 3], "after {steps} steps");
                if forgets.is_some() {
                    let standing = cluster.state().await.unwrap().standing();
                    assert!(
                        matches!(standing, Standing::NeedsResync(_)),
                        "after {steps} steps: {standing:?}"
                    );
                }
            }
        }
    }
    assert!(interrupted > 10, "{interrupted}");
}

#[tokio::test]
async fn a_stop_that_failed_before_every_store_knew_is_finished_by_whoever_looks_next() {
    let mut written = Written::new(50).await;
    written.append(4).await;
    for steps in 0..16 {
        let stores = Stores::new(3, true);
        let cluster = stores.cluster(&written.log);
        let syncer = written.syncer(cluster.clone());
        within(syncer.wait_until(written.end())).await.unwrap();
        syncer.stop().await;
        stores.gate.close_after(steps, false);
        let stopped = cluster.stop().await;
        stores.gate.open();
        if *cluster.state().await.unwrap().mark() == SlaveMark::Stopped {
            let syncer = written.syncer(cluster.clone());
            until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
            let state = cluster.state().await.unwrap();
            assert!(state.parts.iter().all(|(_, part)| part.epoch == state.record.epoch), "{stopped:?}");
        }
    }
}

#[tokio::test]
async fn a_stopped_slave_of_another_log_does_not_hold_what_that_log_has() {
    let mut written = Written::new(51).await;
    written.append(8).await;
    let stores = Stores::new(2, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.hand_over(Some(written.end()))).await.unwrap();
    syncer.stop().await;
    for aggregations in [0, 3, 8, 12] {
        let mut anew = Written::new(52).await;
        anew.append(aggregations).await;
        let syncer = anew.syncer(stores.cluster(&anew.log));
        // None: the log is empty.
        let end = (aggregations > 0).then(|| anew.end());
        let answer = within(syncer.hand_over(end)).await;
        let Err(SlaveWaitError::NeedsResync(reason)) = answer else { panic!("{aggregations}: {answer:?}") };
        let of_another = matches!(reason, NeedsResync::OtherLog { .. } | NeedsResync::SlaveAhead { .. });
        assert!(of_another, "{aggregations}: {reason}");
    }
    // Its own log still gets the answer.
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.hand_over(Some(written.end()))).await.unwrap();
}

#[tokio::test]
async fn a_slave_that_was_started_again_is_not_taken_for_one_that_was_handed_over() {
    let mut written = Written::new(53).await;
    written.append(4).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    cluster.stop().await.unwrap();
    let syncer = written.syncer(cluster.clone());
    until(&syncer, |state| *state == SlaveSyncState::Stopped).await;
    cluster.start(true).await.unwrap();
    within(syncer.hand_over(Some(written.end()))).await.unwrap();
    let state = cluster.state().await.unwrap();
    assert_eq!((state.mark(), stores.disk(&written.log)), (&SlaveMark::Stopped, written.disk().clone()));
}

#[tokio::test]
async fn a_stop_does_not_take_the_position_back_that_a_syncer_has_recorded_meanwhile() {
    let mut written = Written::new(54).await;
    written.append(4).await;
    let stores = Stores::new(2, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    // The command has asked what is there, and the syncer goes on before it has an epoch.
    let paused = Arc::new(HeldUp {
        store: stores.metadata.clone(),
        writes: Arc::new(Semaphore::new(0)),
        promises: Some(Semaphore::new(0)),
    });
    let data = stores.data.iter().map(|store| store.clone() as Arc<dyn SlaveStore>).collect();
    let cluster = SlaveCluster::new(written.log.vdisk.clone(), data, paused.clone()).unwrap();
    let stopping = tokio::spawn(async move { cluster.stop().await });
    tokio::task::yield_now().await;
    written.append(4).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    paused.promises.as_ref().unwrap().add_permits(8);
    within(stopping).await.unwrap().unwrap();
    let state = stores.cluster(&written.log).state().await.unwrap();
    assert_eq!(state.position().unwrap().point, written.after.last().unwrap().0);
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
