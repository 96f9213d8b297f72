//! Aggregations of which little still counts: that alone is read, and proven, and whatever is wrong with it the disk comes out right.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tlog_player::{MemoryTarget, Moment, ReadOptions, RestoreOptions, RestoreSummary};

use crate::log::{TestLog, set_block};

/// Long enough that what is around the data does not make a body shrink.
const BLOCK: usize = 1024;

const DISK: u64 = 200;
const IN_AGGREGATION: u64 = 40;
const AGGREGATIONS: u64 = 30;

/// A disk that is written at random, with what cannot be compressed or what can, and what it is in the end.
async fn written_all_over(compressible: bool) -> (TestLog, Vec<u8>) {
    let mut rng = StdRng::seed_from_u64(5);
    let mut log = TestLog::new(4, 2).await;
    let mut image = vec![0; DISK as usize * BLOCK];
    for aggregation in 0..AGGREGATIONS {
        let blocks: Vec<_> = (0..IN_AGGREGATION)
            .map(|i| {
                // Every block once at first, so that the disk is whole.
                let first = aggregation * IN_AGGREGATION + i;
                let index = if first < DISK { first } else { rng.random_range(0..DISK) };
                let mut data = vec![aggregation as u8; BLOCK];
                if !compressible {
                    rng.fill_bytes(&mut data);
                }
                image[index as usize * BLOCK..][..BLOCK].copy_from_slice(&data);
                set_block(first + 1, index, first + 1, data)
            })
            .collect();
        log.append(1, &blocks).await;
    }
    log.publish().await;
    (log, image)
}

async fn restored(log: &TestLog) -> (Vec<u8>, RestoreSummary) {
    let reader = log.reader().await;
    let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
    let target = Arc::new(MemoryTarget::default());
    let options = RestoreOptions::default();
    let summary = reader.restore(&log.keys, &state, target.clone(), &options, |_| {}).await.unwrap();
    (target.bytes(), summary)
}

#[tokio::test]
async fn what_is_read_follows_the_disk_and_not_what_was_written() {
    let (log, image) = written_all_over(false).await;
    let (bytes, summary) = restored(&log).await;
    assert!(bytes == image);
    let stored = IN_AGGREGATION * BLOCK as u64;
    let whole = summary.aggregations * stored;
    let disk = DISK * BLOCK as u64;
    assert!(whole > 4 * disk, "little of each counts: {summary:?}");
    assert!(summary.read_bytes < 2 * disk, "{summary:?}");

    let (log, image) = written_all_over(true).await;
    let (bytes, summary) = restored(&log).await;
    assert!(bytes == image);
    assert!(summary.aggregations > 20, "{summary:?}");
}

#[tokio::test]
async fn where_a_store_is_lost_or_its_bytes_are_wrong_all_of_the_aggregation_makes_up_for_it() {
    for store in 0..4 {
        for flip in [false, true] {
            let (log, image) = written_all_over(false).await;
            if flip {
                for number in 1..=AGGREGATIONS {
                    let flip = |shard: &mut tlog_store::Shard| {
                        let bytes: Vec<u8> = shard.payload.iter().map(|byte| byte ^ 0x10).collect();
                        shard.payload = bytes.into();
                    };
                    assert!(log.memory[store].damage(&log.vdisk, crate::log::number(number), flip));
                }
            } else {
                log.controls[store].set_down(true);
            }
            let (bytes, _) = restored(&log).await;
            assert!(bytes == image, "store {store}, flipped: {flip}");
        }
    }
}

#[tokio::test]
async fn a_pipe_gets_the_same_disk() {
    let (log, image) = written_all_over(false).await;
    let reader = log.reader().await;
    let state = reader.disk_state(&log.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
    let piped = Piped::default();
    let options = RestoreOptions::default();
    let written = tlog_player::restore_in_order(&reader, &log.keys, &state, piped.clone(), &options, |_| {});
    written.await.unwrap();
    assert!(*piped.0.lock().unwrap() == image);
}

#[derive(Clone, Default)]
struct Piped(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Piped {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
