//! A syncer is killed, or cut off from the slave, between any two steps.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_player::slave::SlaveSyncState;

use crate::scene::{Stores, Written, is_waiting, until, within};

/// Lets so many operations on the slave happen, kills the syncer, and looks. Whether it came so far at all.
async fn killed_after(written: &Written, stores: &Stores, steps: u64, loses_answer: bool) -> bool {
    stores.gate.close_after(steps, loses_answer);
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| is_waiting(state) || *state == SlaveSyncState::UpToDate).await;
    let was_cut_off = is_waiting(&status.state);
    syncer.stop().await;
    stores.gate.open();
    written.assert_prefix(stores).await;
    was_cut_off
}

async fn assert_completes(written: &Written, stores: &Stores) {
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    syncer.stop().await;
    assert_eq!(stores.disk(&written.log), *written.disk());
    assert_eq!(written.assert_prefix(stores).await, written.after.len() - 1);
}

#[tokio::test]
async fn a_kill_between_any_two_steps_leaves_the_disk_after_some_write_and_the_next_syncer_goes_on() {
    let mut written = Written::new(11).await;
    written.append(8).await;
    let mut explored = 0;
    for count in 1..=3 {
        for loses_answer in [false, true] {
            let mut steps = 0;
            loop {
                let stores = Stores::new(count, count == 2);
                let was_cut_off = killed_after(&written, &stores, steps, loses_answer).await;
                assert_completes(&written, &stores).await;
                if !was_cut_off {
                    break;
                }
                steps += 1;
            }
            explored += steps;
        }
    }
    assert!(explored > 100, "{explored} steps");
}

#[tokio::test]
async fn many_kills_one_after_the_other_while_the_log_grows_lose_nothing() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut written = Written::new(seed).await;
        let stores = Stores::new(rng.random_range(1..=4), rng.random());
        let mut before = 0;
        for _ in 0..12 {
            let aggregations = rng.random_range(0..4);
            written.append(aggregations).await;
            killed_after(&written, &stores, rng.random_range(0..40), rng.random()).await;
            // Nothing steps back.
            let now = written.assert_prefix(&stores).await;
            assert!(now >= before, "seed {seed}");
            before = now;
        }
        written.append(1).await;
        assert_completes(&written, &stores).await;
    }
}

#[tokio::test]
async fn a_syncer_that_is_cut_off_again_and_again_goes_on_by_itself() {
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut written = Written::new(100 + seed).await;
        written.append(10).await;
        let stores = Stores::new(rng.random_range(1..=3), rng.random());
        let syncer = written.syncer(stores.cluster(&written.log));
        for _ in 0..10 {
            stores.gate.close_after(rng.random_range(0..20), rng.random());
            written.append(1).await;
            until(&syncer, is_waiting).await;
            stores.gate.open();
        }
        within(syncer.wait_until(written.end())).await.unwrap();
        assert_eq!(stores.disk(&written.log), *written.disk(), "seed {seed}");
    }
}
