//! Stores of the slave lose what they have answered.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_player::slave::{NeedsResync, SlaveSyncState, SlaveWaitError};
use tlog_proto::VdiskId;
use tlog_store::slave::MemorySlave;

use crate::scene::{Stores, Written, is_waiting, until, within};

/// Gives a store back what it had.
type Older = Box<dyn FnOnce(&MemorySlave)>;

/// Something is done to a slave that is up to date, while its syncer runs, or before the next one starts: it needs a resync.
async fn check(count: usize, own_metadata: bool, harm: impl Fn(&Stores, &VdiskId), kind: &str) {
    for while_running in [true, false] {
        let mut written = Written::new(21).await;
        written.append(12).await;
        let stores = Stores::new(count, own_metadata);
        let mut syncer = written.syncer(stores.cluster(&written.log));
        within(syncer.wait_until(written.end())).await.unwrap();
        if while_running {
            harm(&stores, &written.log.vdisk);
        } else {
            syncer.stop().await;
            harm(&stores, &written.log.vdisk);
            syncer = written.syncer(stores.cluster(&written.log));
        }
        let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
        let SlaveSyncState::NeedsResync(reason) = status.state else { unreachable!() };
        assert_eq!(reason.kind(), kind, "{reason}");
        let disk = stores.disk(&written.log);
        written.append(2).await;
        let waited = within(syncer.wait_until(written.end())).await;
        assert_eq!(waited, Err(SlaveWaitError::NeedsResync(reason)));
        assert_eq!(stores.disk(&written.log), disk, "nothing is applied any more");
    }
}

#[tokio::test]
async fn a_data_store_that_comes_back_empty_needs_a_resync() {
    check(3, false, |stores, _| stores.data[1].wipe(), "store_replaced").await;
    check(2, true, |stores, _| stores.data[0].wipe(), "store_replaced").await;
}

#[tokio::test]
async fn a_metadata_store_that_comes_back_empty_needs_a_resync() {
    check(2, true, |stores, _| stores.metadata.wipe(), "metadata_lost").await;
    check(3, false, |stores, _| stores.metadata.wipe(), "metadata_lost").await;
}

#[tokio::test]
async fn a_slave_that_was_emptied_as_a_whole_is_filled_from_the_beginning() {
    for while_running in [true, false] {
        let mut written = Written::new(22).await;
        written.append(12).await;
        let stores = Stores::new(2, true);
        let mut syncer = written.syncer(stores.cluster(&written.log));
        within(syncer.wait_until(written.end())).await.unwrap();
        if !while_running {
            syncer.stop().await;
        }
        stores
            .data
            .iter()
            .chain([&stores.metadata])
            .for_each(|store: &std::sync::Arc<MemorySlave>| store.wipe());
        if !while_running {
            syncer = written.syncer(stores.cluster(&written.log));
        }
        written.append(1).await;
        within(syncer.wait_until(written.end())).await.unwrap();
        assert_eq!(stores.disk(&written.log), *written.disk());
    }
}

#[tokio::test]
async fn a_data_store_that_is_set_back_needs_a_resync_whichever_writes_it_lost() {
    let mut found = 0;
    for store in 0..3 {
        for steps in [17, 20, 23, 26, 29, 32, 35] {
            let stores = Stores::new(3, true);
            stores.gate.close_after(steps, false);
            let mut written = Written::new(24).await;
            written.append(10).await;
            let syncer = written.syncer(stores.cluster(&written.log));
            until(&syncer, is_waiting).await;
            syncer.stop().await;
            let older = stores.data[store].copy();
            stores.gate.open();
            let syncer = written.syncer(stores.cluster(&written.log));
            within(syncer.wait_until(written.end())).await.unwrap();
            let before = stores.data[store].blocks(&written.log.vdisk);
            syncer.stop().await;
            older(&stores.data[store]);
            if stores.data[store].blocks(&written.log.vdisk) == before {
                continue;
            }
            let syncer = written.syncer(stores.cluster(&written.log));
            let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
            let SlaveSyncState::NeedsResync(NeedsResync::StoreLostWrites { address, has, should }) =
                status.state
            else {
                panic!("{:?}", status.state)
            };
            assert_eq!(address, format!("memory:{store}"));
            assert!(has.place() < should.place());
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

#[tokio::test]
async fn a_store_that_lost_what_the_record_does_not_know_of_yet_is_found_by_reading_the_log() {
    // Killed at every step of the second half; then any one store is set back to where it was before that.
    let mut found = 0;
    for steps in 1..40 {
        for store in 0..3 {
            let mut written = Written::new(25).await;
            written.append(4).await;
            let stores = Stores::new(3, true);
            let syncer = written.syncer(stores.cluster(&written.log));
            within(syncer.wait_until(written.end())).await.unwrap();
            syncer.stop().await;
            let older = stores.data[store].copy();
            written.append(6).await;
            stores.gate.close_after(steps, false);
            let syncer = written.syncer(stores.cluster(&written.log));
            until(&syncer, |state| is_waiting(state) || *state == SlaveSyncState::UpToDate).await;
            syncer.stop().await;
            stores.gate.open();
            older(&stores.data[store]);
            let syncer = written.syncer(stores.cluster(&written.log));
            let status = until(&syncer, |state| {
                matches!(state, SlaveSyncState::NeedsResync(_)) || *state == SlaveSyncState::UpToDate
            })
            .await;
            match status.state {
                // What it lost, if anything, was the last of all.
                SlaveSyncState::UpToDate => assert_eq!(stores.disk(&written.log), *written.disk()),
                _ => found += 1,
            }
        }
    }
    assert!(found > 20, "{found}");
}

#[tokio::test]
async fn data_stores_in_another_order_or_number_need_a_resync() {
    let mut written = Written::new(26).await;
    written.append(10).await;
    let mut stores = Stores::new(3, true);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    syncer.stop().await;
    let needs = async |stores: &Stores| {
        let syncer = written.syncer(stores.cluster(&written.log));
        let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
        let SlaveSyncState::NeedsResync(reason) = status.state else { unreachable!() };
        assert_eq!(reason.kind(), "other_shape", "{reason}");
    };
    stores.data.swap(0, 2);
    needs(&stores).await;
    stores.data.swap(0, 2);
    let last = stores.data.pop().unwrap();
    needs(&stores).await;
    stores.data.push(last);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
}

#[tokio::test]
async fn blocks_that_nobody_says_anything_of_need_a_resync() {
    let mut written = Written::new(27).await;
    written.append(2).await;
    let stores = Stores::new(2, false);
    stores.data[1].put(&written.log.vdisk, 3, bytes::Bytes::from_static(b"whose?"));
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    let expected = NeedsResync::BlocksWithoutPosition { blocks: 1 };
    assert_eq!(status.state, SlaveSyncState::NeedsResync(expected));
}

#[tokio::test]
async fn whatever_stores_forget_and_whenever_nobody_goes_on_with_holes() {
    let (mut went_on, mut needed_a_resync) = (0, 0);
    for seed in 0..150 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut written = Written::new(1000 + seed).await;
        let stores = Stores::new(rng.random_range(1..=4), rng.random());
        let all: Vec<_> = stores.data.iter().chain([&stores.metadata]).cloned().collect();
        let mut copies: Vec<(usize, Older)> = Vec::new();
        for _ in 0..8 {
            written.append(rng.random_range(0..4)).await;
            stores.gate.close_after(rng.random_range(0..60), rng.random());
            let syncer = written.syncer(stores.cluster(&written.log));
            until(&syncer, |state| is_waiting(state) || *state == SlaveSyncState::UpToDate).await;
            syncer.stop().await;
            stores.gate.open();
            let of = rng.random_range(0..all.len());
            copies.push((of, Box::new(all[of].copy())));
        }
        // One or two are set back, to any of the states that they were in, or emptied.
        for _ in 0..rng.random_range(1..=2) {
            if rng.random_ratio(1, 5) {
                all[rng.random_range(0..all.len())].wipe();
            } else if !copies.is_empty() {
                let (of, copy) = copies.swap_remove(rng.random_range(0..copies.len()));
                copy(&all[of]);
            }
        }
        let syncer = written.syncer(stores.cluster(&written.log));
        let status = until(&syncer, |state| {
            matches!(state, SlaveSyncState::NeedsResync(_)) || *state == SlaveSyncState::UpToDate
        })
        .await;
        if status.state == SlaveSyncState::UpToDate {
            assert_eq!(stores.disk(&written.log), *written.disk(), "seed {seed}");
            went_on += 1;
        } else {
            needed_a_resync += 1;
        }
    }
    assert!(went_on > 10 && needed_a_resync > 50, "{went_on} and {needed_a_resync}");
}
