//! How fast a directory store takes shards: `cargo run --release -p tlog-store --example directory_throughput [DIRECTORY]`.
//!
//! Appends 25-KiB shards to one vdisk with 16 in flight, and for the ratio writes the same bytes to a plain preallocated file with
//! one fdatasync for every 16. Says MB/s (10^6 bytes) of each, in turns, as a machine's disk has better and worse moments.
//! Then it appends 200,000 small shards and says how long it takes to open them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement stops where something is wrong")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{DirectoryOptions, DirectoryStore, Members, Shard, ShardStore, StartRecord};

const HEAD: usize = 600;
const PAYLOAD: usize = 25 << 10;
const IN_FLIGHT: u64 = 16;
const SHARDS: u64 = 12_000;
const SMALL_SHARDS: u64 = 200_000;
const TURNS: usize = 3;

#[tokio::main]
async fn main() {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for turn in 1..=TURNS {
        let scratch = tempfile::tempdir_in(&directory).unwrap();
        let plain = megabytes_per_second(plain_file(&scratch.path().join("plain")));
        let (store, opening) = store(&scratch.path().join("store"), SHARDS, PAYLOAD, IN_FLIGHT).await;
        let store = megabytes_per_second(store);
        let ratio = store / plain;
        println!(
            "turn {turn}: plain file {plain:.0} MB/s, store {store:.0} MB/s (ratio {ratio:.2}), reopened in {opening:?}"
        );
    }
    let scratch = tempfile::tempdir_in(&directory).unwrap();
    let (_, opening) = store(&scratch.path().join("store"), SMALL_SHARDS, 100, 1000).await;
    println!("{SMALL_SHARDS} small shards: opened in {opening:?}");
}

fn megabytes_per_second(time: Duration) -> f64 {
    SHARDS as f64 * (HEAD + PAYLOAD) as f64 / time.as_secs_f64() / 1e6
}

fn plain_file(path: &Path) -> Duration {
    let file = OpenOptions::new().write(true).create_new(true).open(path).unwrap();
    let bytes = vec![0x5a; HEAD + PAYLOAD];
    fallocate(&file, FallocateFlags::empty(), 0, SHARDS * bytes.len() as u64).unwrap();
    file.sync_all().unwrap();
    let begun = Instant::now();
    for at in 0..SHARDS {
        file.write_all_at(&bytes, at * bytes.len() as u64).unwrap();
        if (at + 1) % IN_FLIGHT == 0 {
            file.sync_data().unwrap();
        }
    }
    let time = begun.elapsed();
    std::fs::remove_file(path).unwrap();
    time
}

async fn store(directory: &Path, shards: u64, payload: usize, in_flight: u64) -> (Duration, Duration) {
    let store = Arc::new(DirectoryStore::open(directory, DirectoryOptions::default()).unwrap());
    let vdisk = VdiskId::new("throughput").unwrap();
    store.promise(&vdisk, Epoch(1)).await.unwrap();
    let start = StartRecord { epoch: Epoch(1), number: AggregationNumber(1) };
    store.start(&vdisk, start, &Members::default()).await.unwrap();
    let shard = Shard {
        epoch: Epoch(1),
        id: AggregationId([1; 32]),
        head: Bytes::from(vec![0xa5; HEAD]),
        payload: Bytes::from(vec![0x5a; payload]),
    };
    let next = Arc::new(AtomicU64::new(1));
    let begun = Instant::now();
    let writers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (store, vdisk, shard, next) =
                (Arc::clone(&store), vdisk.clone(), shard.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > shards {
                        break;
                    }
                    let committed = AggregationNumber(number.saturating_sub(in_flight));
                    store.append(&vdisk, AggregationNumber(number), shard.clone(), committed).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let time = begun.elapsed();
    drop(store);
    let begun = Instant::now();
    let store = DirectoryStore::open(directory, DirectoryOptions::default()).unwrap();
    assert_eq!(store.status(&vdisk).await.unwrap().held.count(), shards);
    (time, begun.elapsed())
}
