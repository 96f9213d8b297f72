//! A writer that is killed at any moment has stored what it acknowledged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_proto::{Epoch, VdiskId};
use tlog_store::{DirectoryStore, ShardSlot, ShardStore, lock_holder};

const CHILD: &str = "TLOG_TEST_KILLED_WRITER";
const DISKS: u64 = 3;
const IN_FLIGHT: u64 = 8;
const ROUNDS: u64 = 12;

fn vdisk(which: u64) -> VdiskId {
    VdiskId::new(&format!("disk-{which}")).unwrap()
}

fn payload(number: u64) -> usize {
    (number * 97 % 5000) as usize
}

/// Says that something is stored, in one write.
fn say(text: String) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}

/// Appends, publishes and prunes until it is killed.
async fn write_for_ever(directory: &Path) {
    let store = Arc::new(open_small_segments(directory));
    let mut tasks = tokio::task::JoinSet::new();
    for which in 0..DISKS {
        let disk = vdisk(which);
        let status = store.status(&disk).await.unwrap();
        let (epoch, first) = (status.epoch.next().0, status.head().next().0);
        begin(&store, &disk, epoch, first).await;
        say(format!("\nepoch {which} {epoch}\n"));
        let next = Arc::new(AtomicU64::new(first));
        for _ in 0..IN_FLIGHT {
            let (store, disk, next) = (Arc::clone(&store), disk.clone(), Arc::clone(&next));
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let committed = n(number.saturating_sub(IN_FLIGHT));
                    store
                        .append(&disk, n(number), shard(epoch, number, payload(number)), committed)
                        .await
                        .unwrap();
                    say(format!("\nstored {which} {number} {epoch}\n"));
                    if number % 50 == 0 {
                        let first = number.saturating_sub(60);
                        say(format!("\npruning {which} {first}\n"));
                        store.prune(&disk, Epoch(epoch), n(first)).await.unwrap();
                    }
                }
            });
        }
    }
    let ended = tasks.join_next().await;
    panic!("a writer ended by itself: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_append_survives_sigkill() {
    if let Some(directory) = std::env::var_os(CHILD) {
        return write_for_ever(directory.as_ref()).await;
    }
    let seed = getrandom::u64().unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    // (vdisk, number) -> epoch
    let mut stored: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut epochs: BTreeMap<u64, u64> = BTreeMap::new();
    let mut pruned: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_acknowledged_append_survives_sigkill", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines_left = rng.random_range(1..600);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "stored" if words.len() == 4 => {
                    stored.insert((number(1), number(2)), number(3));
                }
                "epoch" if words.len() == 3 => {
                    epochs.insert(number(1), number(2));
                }
                "pruning" if words.len() == 3 => {
                    let first = pruned.entry(number(1)).or_default();
                    *first = number(2).max(*first);
                }
                _ => continue,
            }
            lines_left -= 1;
            if lines_left == 0 {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success(), "it ended by itself");
        assert_eq!(lock_holder(directory.path()).unwrap(), None);

        // Whoever looks first: a reader, or the next writer.
        let store = match round % 2 {
            0 => DirectoryStore::open_read_only(directory.path()).unwrap(),
            _ => open_small_segments(directory.path()),
        };
        for (&which, &epoch) in &epochs {
            let status = store.status(&vdisk(which)).await.unwrap();
            assert!(status.epoch >= Epoch(epoch), "seed {seed}, round {round}: an epoch was forgotten");
        }
        for (&(which, number), &epoch) in &stored {
            if pruned.get(&which).is_some_and(|&first| number < first) {
                continue;
            }
            let slot = store.shard(&vdisk(which), n(number)).await.unwrap();
            let expected = ShardSlot::Held(shard(epoch, number, payload(number)));
            assert_eq!(slot, expected, "seed {seed}, round {round}, vdisk {which}, number {number}");
        }
    }
    assert!(stored.len() > 100, "the writers hardly wrote");
}

const DELETING: &str = "TLOG_TEST_KILLED_DELETER";

/// Makes a log of three shards, deletes it, and again, until it is killed.
async fn make_and_delete_for_ever(directory: &Path) {
    let store = open_small_segments(directory);
    let mut epoch = store.status(&disk()).await.unwrap().epoch.next().0;
    loop {
        begin(&store, &disk(), epoch, 1).await;
        for number in 1..=3 {
            store.append(&disk(), n(number), shard(epoch, number, 3000), n(number)).await.unwrap();
        }
        say(format!("\nwhole {epoch}\n"));
        store.delete(&disk(), Epoch(epoch)).await.unwrap();
        say(format!("\ndeleted {epoch}\n"));
        epoch += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_log_is_whole_or_gone_after_sigkill_and_never_comes_back() {
    if let Some(directory) = std::env::var_os(DELETING) {
        return make_and_delete_for_ever(directory.as_ref()).await;
    }
    let seed = getrandom::u64().unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_deleted_log_is_whole_or_gone_after_sigkill_and_never_comes_back",
                "--nocapture",
            ])
            .env(DELETING, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut whole, mut deleted, mut lines_left) = (0, 0, rng.random_range(1..60));
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("whole", epoch)) => whole = epoch.parse().unwrap(),
                Some(("deleted", epoch)) => deleted = epoch.parse().unwrap(),
                _ => continue,
            }
            lines_left -= 1;
            if lines_left == 0 {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success(), "it ended by itself");
        let store = match round % 2 {
            0 => DirectoryStore::open_read_only(directory.path()).unwrap(),
            _ => open_small_segments(directory.path()),
        };
        let status = store.status(&disk()).await.unwrap();
        if status.identity.is_some() {
            let epoch = status.epoch.0;
            assert!(
                epoch > deleted,
                "seed {seed}, round {round}: log {epoch} came back, {deleted} was deleted"
            );
            let all = epoch > whole || held(&store).await == [1, 2, 3];
            assert!(all, "seed {seed}, round {round}: half of log {epoch} is left");
            for number in held(&store).await {
                assert_eq!(slot(&store, number).await, ShardSlot::Held(shard(epoch, number, 3000)));
            }
        }
    }
}
