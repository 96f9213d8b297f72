//! Slaves that an existing server's syncer has filled: blocks, and a sequence.

use tlog_player::slave::{NeedsResync, SlaveSyncState};
use tlog_proto::Sequence;

use crate::log::{TestLog, set_block};
use crate::scene::{Stores, Written, until, within};

/// The slave as that syncer leaves it after a write.
fn filled(written: &Written, stores: &Stores, write: usize, sequence: u64) {
    for (index, data) in &written.after[write].1 {
        let store = &stores.data[*index as usize % stores.data.len()];
        store.put(&written.log.vdisk, *index, data.clone());
    }
    stores.metadata.put_legacy_sequence(&written.log.vdisk, Sequence(sequence));
}

async fn assert_needs_resync(written: &Written, stores: &Stores, why: &str) {
    let disk = stores.disk(&written.log);
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    let SlaveSyncState::NeedsResync(reason @ NeedsResync::LegacyPosition { .. }) = status.state else {
        panic!("{:?}", status.state)
    };
    assert!(reason.to_string().contains(why), "{reason}");
    assert_eq!(stores.disk(&written.log), disk);
}

#[tokio::test]
async fn a_sequence_that_one_write_has_is_gone_on_from() {
    let mut written = Written::new(51).await;
    written.append(8).await;
    for (write, own_metadata) in [(1, true), (7, false), (written.after.len() - 1, true)] {
        // Interrupted anywhere as well.
        for steps in [None, Some(12), Some(13), Some(14), Some(15)] {
            let stores = Stores::new(2, own_metadata);
            filled(&written, &stores, write, write as u64);
            if let Some(steps) = steps {
                stores.gate.close_after(steps, true);
                let syncer = written.syncer(stores.cluster(&written.log));
                until(&syncer, |state| crate::scene::is_waiting(state) || *state == SlaveSyncState::UpToDate)
                    .await;
                syncer.stop().await;
                stores.gate.open();
            }
            let syncer = written.syncer(stores.cluster(&written.log));
            within(syncer.wait_until(written.end())).await.unwrap();
            assert_eq!(stores.disk(&written.log), *written.disk());
            syncer.stop().await;
            written.assert_prefix(&stores).await;
        }
    }
}

#[tokio::test]
async fn a_sequence_that_no_write_or_several_have_needs_a_resync() {
    let mut written = Written::new(52).await;
    written.append(4).await;
    let stores = Stores::new(2, true);
    filled(&written, &stores, 2, 1000);
    assert_needs_resync(&written, &stores, "no write").await;
    (written.log.sequence, written.generation) = (2, 2);
    written.append(2).await;
    let stores = Stores::new(2, true);
    filled(&written, &stores, 2, 2);
    assert_needs_resync(&written, &stores, "several").await;
}

#[tokio::test]
async fn the_last_sequence_of_format_1_is_gone_on_from_and_no_other_of_it() {
    let mut log = TestLog::unopened(2, 1);
    log.append_link(&[set_block(1, 1, 1, vec![1; 64]), set_block(2, 2, 1, vec![2; 64])]).await;
    let newest = log.append_link(&[set_block(3, 1, 1, vec![3; 64]), set_block(4, 3, 1, vec![4; 64])]).await;
    log.open(tlog_proto::Epoch(1), &log.all()).await;
    log.sequence = 5;
    let mut written = Written::on(log, 53);
    let blocks = [(1, vec![3; 64]), (2, vec![2; 64]), (3, vec![4; 64])];
    written.after[0].1 = blocks.into_iter().map(|(index, data)| (index, data.into())).collect();
    written.after[0].0.id = newest;
    written.append(3).await;

    let stores = Stores::new(2, true);
    filled(&written, &stores, 0, 4);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(stores.disk(&written.log), *written.disk());

    let stores = Stores::new(2, true);
    filled(&written, &stores, 0, 3);
    assert_needs_resync(&written, &stores, "not the last one").await;
    let stores = Stores::new(2, true);
    filled(&written, &stores, 0, 5);
    assert_needs_resync(&written, &stores, "several").await;
    // And an empty slave of such a log.
    let stores = Stores::new(2, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    assert_eq!(status.state, SlaveSyncState::NeedsResync(NeedsResync::Format1));
}
