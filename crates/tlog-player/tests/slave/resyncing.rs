//! A slave is filled anew, unless it may hold the last copy of something.

use std::sync::Arc;

use bytes::Bytes;
use tlog_player::ReadOptions;
use tlog_player::slave::{
    NeedsResync, SlaveCluster, SlaveRestoreError, SlaveRestoreOptions, SlaveRestoreSummary, resync_slave,
};
use tlog_proto::Sequence;
use tlog_store::slave::SlaveStore;

use crate::scene::{Stores, Written, within};

async fn resync(
    written: &Written,
    slave: &SlaveCluster,
    options: SlaveRestoreOptions,
) -> Result<SlaveRestoreSummary, SlaveRestoreError> {
    let reader = written.log.reader().await;
    resync_slave(&reader, &written.log.keys, slave, &ReadOptions::default(), &options, |_| {}).await
}

/// A slave that holds a log, and is handed over if that is asked for.
async fn filled(written: &Written, own_metadata: bool, hand_over: bool) -> Stores {
    let stores = Stores::new(2, own_metadata);
    let syncer = written.syncer(stores.cluster(&written.log));
    if hand_over {
        within(syncer.hand_over(Some(written.end()))).await.unwrap();
        stores.data[1].put(&written.log.vdisk, 7, Bytes::from_static(b"primary"));
    } else {
        within(syncer.wait_until(written.end())).await.unwrap();
    }
    syncer.stop().await;
    stores
}

#[tokio::test]
async fn a_primary_of_which_the_stop_was_forgotten_is_not_filled_anew_unless_somebody_vouches_for_it() {
    let mut written = Written::new(81).await;
    written.append(6).await;
    for reordered in [false, true] {
        let stores = filled(&written, !reordered, true).await;
        let cluster = if reordered {
            // The first one is the metadata store, where none is named: it is another one now.
            let data: Vec<_> =
                stores.data.iter().rev().map(|store| store.clone() as Arc<dyn SlaveStore>).collect();
            let metadata = data[0].clone();
            SlaveCluster::new(written.log.vdisk.clone(), data, metadata).unwrap()
        } else {
            stores.metadata.wipe();
            stores.cluster(&written.log)
        };
        let before = stores.disk(&written.log);
        for options in [
            SlaveRestoreOptions::default(),
            SlaveRestoreOptions { discard: true, ..SlaveRestoreOptions::default() },
        ] {
            let refused = resync(&written, &cluster, options).await;
            let Err(SlaveRestoreError::MayBeInUse { reason, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(reason.kind(), "metadata_lost");
            assert!(reason.remedy().contains("--nobody-uses-it"));
            assert_eq!(stores.disk(&written.log), before);
        }
        let options = SlaveRestoreOptions { nobody_uses_it: true, ..SlaveRestoreOptions::default() };
        resync(&written, &cluster, options).await.unwrap();
        if !reordered {
            assert_eq!(stores.disk(&written.log), *written.disk());
        }
    }
}

#[tokio::test]
async fn blocks_of_which_nobody_knows_anything_are_not_replaced_unless_somebody_vouches_for_it() {
    let mut written = Written::new(82).await;
    written.append(6).await;
    let stores = Stores::new(2, true);
    stores.data[1].put(&written.log.vdisk, 7, Bytes::from_static(b"primary"));
    let cluster = stores.cluster(&written.log);
    let refused = resync(&written, &cluster, SlaveRestoreOptions::default()).await;
    assert!(matches!(refused, Err(SlaveRestoreError::MayBeInUse { blocks: 1, .. })), "{refused:?}");
    let options = SlaveRestoreOptions { nobody_uses_it: true, ..SlaveRestoreOptions::default() };
    resync(&written, &cluster, options).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_slave_that_holds_what_the_log_lacks_is_not_replaced_unless_that_may_be_lost() {
    let mut written = Written::new(83).await;
    written.append(6).await;
    type Harm = fn(&Stores);
    let harms: [Harm; 3] = [
        |_| (),
        // Other things that are wrong with it do not make it worthless.
        |stores| stores.data[0].wipe(),
        |stores| stores.metadata.wipe(),
    ];
    for harm in harms {
        for aggregations in [0, 1, 6, 9] {
            let stores = filled(&written, true, false).await;
            harm(&stores);
            let before = stores.disk(&written.log);
            let mut anew = Written::new(84).await;
            anew.append(aggregations).await;
            let cluster = stores.cluster(&anew.log);
            let options = SlaveRestoreOptions { nobody_uses_it: true, ..SlaveRestoreOptions::default() };
            let refused = resync(&anew, &cluster, options).await;
            let Err(SlaveRestoreError::WouldDiscard { reason, slave, log, .. }) = refused else {
                panic!("{refused:?}")
            };
            let of_another = matches!(*reason, NeedsResync::OtherLog { .. } | NeedsResync::SlaveAhead { .. });
            assert!(of_another && reason.remedy().contains("--discard"), "{reason}");
            if let Some(slave) = slave {
                assert_eq!(slave.position, written.end());
            }
            assert_eq!(log.map(|log| log.position), (aggregations > 0).then(|| anew.end()));
            assert_eq!(stores.disk(&written.log), before);
            resync(&anew, &cluster, SlaveRestoreOptions { discard: true, ..options }).await.unwrap();
            assert_eq!(stores.disk(&anew.log), *anew.disk());
        }
    }
    // And one of this log is filled anew without a word.
    let stores = filled(&written, true, false).await;
    stores.data[0].wipe();
    written.append(1).await;
    resync(&written, &stores.cluster(&written.log), SlaveRestoreOptions::default()).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());
}

#[tokio::test]
async fn a_slave_of_an_existing_server_that_names_no_write_of_the_log_is_not_replaced_either() {
    let mut written = Written::new(85).await;
    written.append(3).await;
    let stores = Stores::new(1, false);
    stores.data[0].put(&written.log.vdisk, 3, Bytes::from_static(b"theirs"));
    stores.data[0].put_legacy_sequence(&written.log.vdisk, Sequence(900));
    let cluster = stores.cluster(&written.log);
    let refused = resync(&written, &cluster, SlaveRestoreOptions::default()).await;
    assert!(matches!(refused, Err(SlaveRestoreError::WouldDiscard { slave: None, .. })), "{refused:?}");
}
