//! A disk at a moment is put into a slave's cluster.

use std::sync::atomic::{AtomicU64, Ordering};

use tlog_player::slave::{
    NeedsResync, SlaveCluster, SlaveRestoreError, SlaveRestoreOptions, SlaveRestoreSummary, SlaveSyncState,
    SlaveWaitError, Standing, restore_to_slave, resync_slave,
};
use tlog_player::{Moment, ReadOptions};
use tlog_proto::{Epoch, Sequence};
use tlog_store::slave::SlaveMark;

use crate::log::{TestLog, number, set_block};
use crate::scene::{Stores, Written, until, within};

async fn restore(
    written: &Written,
    slave: &SlaveCluster,
    moment: Moment,
    options: SlaveRestoreOptions,
) -> Result<SlaveRestoreSummary, SlaveRestoreError> {
    let reader = written.log.reader().await;
    let state = reader.disk_state(&written.log.keys, moment, &ReadOptions::default()).await.unwrap();
    restore_to_slave(&reader, &written.log.keys, &state, slave, &options, |_| {}).await
}

async fn resync(written: &Written, slave: &SlaveCluster) -> Result<SlaveRestoreSummary, SlaveRestoreError> {
    let reader = written.log.reader().await;
    let (read, options) = (ReadOptions::default(), SlaveRestoreOptions::default());
    resync_slave(&reader, &written.log.keys, slave, &read, &options, |_| {}).await
}

fn after(write: usize) -> Moment {
    Moment::Sequence { generation: None, sequence: Sequence(write as u64) }
}

#[tokio::test]
async fn every_moment_can_be_restored_into_any_number_of_stores_and_a_syncer_goes_on_from_it() {
    let mut written = Written::new(71).await;
    written.append(10).await;
    for write in 1..written.after.len() {
        let stores = Stores::new(1 + write % 4, write % 2 == 0);
        let cluster = stores.cluster(&written.log);
        let summary =
            restore(&written, &cluster, after(write), SlaveRestoreOptions::default()).await.unwrap();
        let (point, disk) = &written.after[write];
        assert_eq!(summary.position.point, *point);
        assert_eq!((summary.blocks, summary.blocks_total), (disk.len() as u64, disk.len() as u64));
        assert_eq!(stores.disk(&written.log), *disk);
        let state = cluster.state().await.unwrap();
        assert_eq!(state.record.legacy_sequence, Some(Sequence(write as u64)));
        assert!(matches!(state.standing(), Standing::Filled { .. }));
        let syncer = written.syncer(cluster);
        within(syncer.wait_until(written.end())).await.unwrap();
        assert_eq!(stores.disk(&written.log), *written.disk());
    }
}

#[tokio::test]
async fn an_empty_disk_can_be_restored_too() {
    let mut written = Written::new(72).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    restore(&written, &cluster, Moment::Newest, SlaveRestoreOptions::default()).await.unwrap();
    written.append(3).await;
    let syncer = written.syncer(cluster);
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_restore_that_was_interrupted_between_any_two_steps_is_no_disk_and_goes_on() {
    let mut written = Written::new(73).await;
    written.append(12).await;
    let write = written.after.len() - 3;
    for loses_answer in [false, true] {
        let mut resumed = 0;
        for steps in 0.. {
            let stores = Stores::new(2, true);
            let cluster = stores.cluster(&written.log);
            stores.gate.close_after(steps, loses_answer);
            let first = restore(&written, &cluster, after(write), SlaveRestoreOptions::default()).await;
            stores.gate.open();
            let state = cluster.state().await.unwrap();
            if first.is_ok() {
                break;
            }
            match state.standing() {
                Standing::Blank => assert!(stores.disk(&written.log).is_empty()),
                Standing::Restoring(_) => {
                    assert_eq!(state.record.legacy_sequence, None);
                    // Nobody takes it for a disk: no syncer, no other restore, nor is it handed to anybody.
                    let syncer = written.syncer(cluster.clone());
                    until(&syncer, |state| matches!(state, SlaveSyncState::Restoring(_))).await;
                    syncer.stop().await;
                    let other = restore(&written, &cluster, after(1), SlaveRestoreOptions::default()).await;
                    assert!(matches!(other, Err(SlaveRestoreError::OtherRestore { .. })), "{other:?}");
                    assert!(cluster.stop().await.is_err());
                }
                // Everything is done, and only the answer was lost.
                Standing::Filled { .. } => {
                    assert!(loses_answer);
                    assert_eq!(stores.disk(&written.log), written.after[write].1);
                    let again =
                        restore(&written, &cluster, after(write), SlaveRestoreOptions::default()).await;
                    assert_eq!(again.unwrap().blocks, 0);
                    break;
                }
                other => panic!("after {steps} steps: {other:?}"),
            }
            let summary =
                restore(&written, &cluster, after(write), SlaveRestoreOptions::default()).await.unwrap();
            resumed += u32::from(summary.resumed);
            assert_eq!(stores.disk(&written.log), written.after[write].1, "after {steps} steps");
            assert_eq!(cluster.state().await.unwrap().position().unwrap().point, written.after[write].0);
        }
        assert!(resumed > 10, "{resumed}");
    }
}

#[tokio::test]
async fn what_is_there_is_not_replaced_unless_that_is_said() {
    let mut written = Written::new(74).await;
    written.append(5).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    stores.data[0].put(&written.log.vdisk, 100, bytes::Bytes::from_static(b"somebody's"));
    let refused = restore(&written, &cluster, Moment::Newest, SlaveRestoreOptions::default()).await;
    assert!(
        matches!(refused, Err(SlaveRestoreError::Occupied { blocks: 1, position: None, .. })),
        "{refused:?}"
    );
    let overwrite = SlaveRestoreOptions { overwrite: true, ..SlaveRestoreOptions::default() };
    restore(&written, &cluster, Moment::Newest, overwrite).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
    let refused = restore(&written, &cluster, after(2), SlaveRestoreOptions::default()).await;
    assert!(matches!(refused, Err(SlaveRestoreError::Occupied { position: Some(_), .. })), "{refused:?}");
    restore(&written, &cluster, after(2), overwrite).await.unwrap();
    assert_eq!(stores.disk(&written.log), written.after[2].1);

    // A primary needs more than that.
    cluster.stop().await.unwrap();
    let refused = restore(&written, &cluster, Moment::Newest, overwrite).await;
    assert!(matches!(refused, Err(SlaveRestoreError::Stopped { .. })), "{refused:?}");
    assert!(matches!(resync(&written, &cluster).await, Err(SlaveRestoreError::Stopped { .. })));
    let overwrite = SlaveRestoreOptions { overwrite_stopped: true, ..overwrite };
    restore(&written, &cluster, Moment::Newest, overwrite).await.unwrap();
    assert_eq!(*cluster.state().await.unwrap().mark(), SlaveMark::Running);
}

#[tokio::test]
async fn a_slave_that_needs_a_resync_is_filled_anew_while_its_syncer_waits() {
    let mut written = Written::new(75).await;
    written.append(8).await;
    let stores = Stores::new(3, true);
    let cluster = stores.cluster(&written.log);
    let syncer = written.syncer(cluster.clone());
    within(syncer.wait_until(written.end())).await.unwrap();
    stores.data[2].wipe();
    until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    written.append(2).await;
    resync(&written, &cluster).await.unwrap();
    written.append(2).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());

    // Also one that is well, and is up to date while that happens: it is fenced, and goes on.
    resync(&written, &cluster).await.unwrap();
    written.append(1).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_resync_finishes_the_moment_that_was_begun_though_the_log_has_grown() {
    let mut written = Written::new(76).await;
    written.append(8).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    stores.gate.close_after(22, false);
    assert!(resync(&written, &cluster).await.is_err());
    stores.gate.open();
    let (point, _) = written.after.last().unwrap().clone();
    written.append(4).await;
    let summary = resync(&written, &cluster).await.unwrap();
    assert_eq!((summary.position.point, summary.resumed), (point, true));
    let syncer = written.syncer(cluster);
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn who_waits_for_a_slave_of_which_a_restore_was_interrupted_is_told() {
    let mut written = Written::new(79).await;
    written.append(8).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    stores.gate.close_after(22, false);
    assert!(resync(&written, &cluster).await.is_err());
    stores.gate.open();
    let syncer = written.syncer(cluster);
    let answer = within(syncer.hand_over(Some(written.end()))).await;
    assert_eq!(answer, Err(SlaveWaitError::Restoring));
}

#[tokio::test]
async fn a_store_that_loses_blocks_while_it_is_restored_is_noticed_and_the_next_try_begins_from_nothing() {
    let mut written = Written::new(77).await;
    written.append(12).await;
    let stores = Stores::new(2, true);
    let cluster = stores.cluster(&written.log);
    let reader = written.log.reader().await;
    let state = reader.disk_state(&written.log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
    let begun = std::sync::Mutex::new(None);
    let seen = AtomicU64::new(0);
    let (options, keys) = (SlaveRestoreOptions::default(), written.log.keys.clone());
    let failed = restore_to_slave(&reader, &keys, &state, &cluster, &options, |progress| {
        seen.store(progress.aggregations, Ordering::Relaxed);
        if progress.aggregations == 0 {
            *begun.lock().unwrap() = Some(stores.data[0].copy());
        } else if progress.aggregations == progress.aggregations_total
            && let Some(older) = begun.lock().unwrap().take()
        {
            older(&stores.data[0]);
        }
    })
    .await;
    assert!(matches!(failed, Err(SlaveRestoreError::Incomplete { .. })), "{failed:?}");
    let summary = restore(&written, &cluster, Moment::Newest, options).await.unwrap();
    assert!(!summary.resumed);
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_disk_of_format_1_is_restored_and_followed_when_its_log_goes_on_in_format_2() {
    let mut log = TestLog::unopened(2, 1);
    log.append_link(&[set_block(1, 1, 1, vec![1; 64]), set_block(2, 2, 1, vec![2; 64])]).await;
    log.append_link(&[set_block(3, 1, 1, vec![3; 64]), set_block(4, 3, 1, vec![4; 64])]).await;
    let mut written = Written::on(log, 78);
    // One that goes on in format 1 cannot be followed.
    let early = Stores::new(3, false);
    restore(&written, &early.cluster(&written.log), after(4), SlaveRestoreOptions::default()).await.unwrap();
    let follower = written.syncer(early.cluster(&written.log));
    until(&follower, |state| *state == SlaveSyncState::UpToDate).await;
    written.log.append_link(&[set_block(5, 3, 1, vec![5; 64])]).await;
    let status = until(&follower, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert_eq!(status.state, SlaveSyncState::NeedsResync(NeedsResync::Format1));
    let (whole, within_one) = (Stores::new(3, false), Stores::new(3, false));
    restore(&written, &whole.cluster(&written.log), after(5), SlaveRestoreOptions::default()).await.unwrap();
    restore(&written, &within_one.cluster(&written.log), after(3), SlaveRestoreOptions::default())
        .await
        .unwrap();
    written.after[0].1 = whole.disk(&written.log);
    assert_eq!(written.after[0].1.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(within_one.disk(&written.log).keys().copied().collect::<Vec<_>>(), [1, 2]);

    written.log.open(Epoch(1), &[0, 1, 2]).await;
    (written.log.next, written.log.sequence) = (number(1), 6);
    written.append(3).await;
    let syncer = written.syncer(whole.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(whole.disk(&written.log), *written.disk());

    let syncer = written.syncer(within_one.cluster(&written.log));
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert_eq!(status.state, SlaveSyncState::NeedsResync(NeedsResync::Format1Moment));
    resync(&written, &within_one.cluster(&written.log)).await.unwrap();
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(within_one.disk(&written.log), *written.disk());
}
