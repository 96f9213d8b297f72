//! Servers that are killed, started with an older state, or out of memory at any point.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_config::RedisServer;
use tlog_proto::{Epoch, VdiskId};
use tlog_redis::{Link, LinkLimits, RedisStore};
use tlog_store::{FillOutcome, LogState, Members, Shard, ShardSlot, ShardStore, StoreError, StoreErrorKind};
use tlog_testbed::{RedisOptions, RedisProcess};

use store_support::*;

/// A store that asks before each command whether its server is still there.
fn careful_store(server: &RedisProcess) -> RedisStore {
    let limits = LinkLimits { idle: Duration::ZERO, ..LinkLimits::default() };
    RedisStore::new(Link::new(RedisServer::new(server.host(), server.port()), limits))
}

fn said<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result.unwrap_err().kind {
        StoreErrorKind::Unavailable { source } => source.to_string(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_writer_is_told_once_that_its_server_was_restarted_and_the_server_what_it_still_has() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk, other) = (careful_store(&server), vdisk("disk"), vdisk("other"));
    for disk in [&disk, &other] {
        open(&store, disk).await;
        append_all_as(&store, disk, 1, 1..=5).await;
    }
    let known = store.status(&disk).await.unwrap();
    raw::<()>(&store, &["SAVE"]).await;
    append_all_as(&store, &disk, 1, 6..=9).await;
    server.restart();
    // An older state of the same log: nothing but what it holds tells it from what was there.
    assert_eq!(store.status(&disk).await.unwrap(), known);
    let refused = said(store.append(&disk, n(10), shard(1, 10), n(9)).await);
    assert!(refused.contains("started anew"), "{refused}");
    assert_eq!(store.status(&disk).await.unwrap(), known, "nothing was sent");
    store.append(&disk, n(10), shard(1, 10), n(9)).await.unwrap();
    assert_eq!(held(&store, &disk).await, [(1, 5), (10, 10)]);
    // Each writer is told. One that has not written before need not be.
    assert!(said(store.publish(&other, Epoch(1), n(5)).await).contains("started anew"));
    store.publish(&other, Epoch(1), n(5)).await.unwrap();
    careful_store(&server).append(&other, n(6), shard(1, 6), n(5)).await.unwrap();
    // Nor one that was told with a failure, nor anybody whose connection alone was lost.
    server.kill();
    store.append(&disk, n(11), shard(1, 11), n(9)).await.unwrap_err();
    server.restart();
    store.link().until_up().await;
    let third = vdisk("third");
    open(&store, &third).await;
    append_all_as(&store, &third, 1, 1..=5).await;
    raw::<()>(&careful_store(&server), &["CLIENT", "KILL", "TYPE", "normal"]).await;
    append_all_as(&store, &third, 1, 6..=9).await;
}

/// What a client was told, and what it had asked for.
#[derive(Clone, Default)]
struct Told {
    stored: BTreeMap<u64, Shard>,
    /// The highest of each, that was answered.
    epoch: u64,
    committed: u64,
    first: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_answered_is_there_after_a_kill_at_any_moment() {
    let server = RedisProcess::start(RedisOptions::durable());
    let seed: u64 = getrandom::u64().unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    let disk = vdisk("disk");
    let told = Arc::new(Mutex::new(Told { first: 1, ..Told::default() }));
    for round in 0..8u64 {
        let context = format!("seed {seed}, round {round}");
        let epoch = round + 1;
        let owner = store(&server);
        let state = owner.promise(&disk, Epoch(epoch)).await.unwrap();
        let so_far = told.lock().unwrap().clone();
        check_told(&owner, &disk, &state, &so_far, &context).await;
        let from = state.head().0 + 1;
        owner.start(&disk, start_at(epoch, from), &Members::default()).await.unwrap();
        told.lock().unwrap().epoch = epoch;
        let mut tasks = tokio::task::JoinSet::new();
        for number in from..from + 200 {
            let (owner, disk, told) = (owner.clone(), disk.clone(), Arc::clone(&told));
            let large = number % 3 != 0;
            tasks.spawn(async move {
                let shard = if large { usual_shard(epoch, number) } else { shard(epoch, number) };
                let committed = from.saturating_sub(1);
                if owner.append(&disk, n(number), shard.clone(), n(committed)).await.is_ok() {
                    let mut told = told.lock().unwrap();
                    told.stored.insert(number, shard);
                    told.committed = told.committed.max(committed);
                }
                let prune = number.saturating_sub(200);
                if number % 50 == 0
                    && prune > 0
                    && prune <= committed
                    && owner.prune(&disk, Epoch(epoch), n(prune)).await.is_ok()
                {
                    let mut told = told.lock().unwrap();
                    told.first = told.first.max(prune);
                }
            });
        }
        let enough = rng.random_range(1..200);
        for _ in 0..enough {
            tasks.join_next().await;
        }
        server.kill();
        tasks.join_all().await;
        server.restart();
    }
    let owner = store(&server);
    let state = owner.status(&disk).await.unwrap();
    let told = told.lock().unwrap().clone();
    check_told(&owner, &disk, &state, &told, &format!("seed {seed}")).await;
}

async fn check_told(store: &RedisStore, disk: &VdiskId, state: &LogState, told: &Told, context: &str) {
    assert!(state.epoch.0 >= told.epoch && state.committed.0 >= told.committed, "{context}: {state:?}");
    assert!(state.first.0 >= told.first, "{context}");
    for (&number, shard) in told.stored.range(state.first.0..) {
        assert!(state.held.contains(n(number)), "{context}: {number} is gone");
        assert_eq!(&whole(store, disk, number).await, shard, "{context}: {number}");
    }
    // What is held and was not answered is whole all the same.
    for number in state.held.iter().flat_map(|run| run.start().0..=run.end().0) {
        assert!(
            matches!(store.shard(disk, n(number)).await.unwrap(), ShardSlot::Held(_)),
            "{context}: {number}"
        );
    }
}

/// A crash of the whole machine, or a bad disk, takes the end of the file.
#[tokio::test]
async fn a_file_that_was_cut_short_anywhere_gives_an_earlier_state_and_never_half_an_operation() {
    let server = RedisProcess::start(RedisOptions::durable());
    let (before, disk) = (store(&server), vdisk("disk"));
    open(&before, &disk).await;
    let file = std::fs::read_dir(server.data().join("appendonlydir")).unwrap();
    let mut file =
        file.map(|entry| entry.unwrap().path()).filter(|path| path.to_str().unwrap().ends_with(".incr.aof"));
    let file = file.next().unwrap();
    // What there was after each operation, and how long the file.
    let mut states = vec![(std::fs::metadata(&file).unwrap().len(), before.status(&disk).await.unwrap())];
    for number in [1, 2, 5, 4, 3, 8] {
        before.append(&disk, n(number), usual_shard(1, number), n(number / 2)).await.unwrap();
        states.push((std::fs::metadata(&file).unwrap().len(), before.status(&disk).await.unwrap()));
    }
    before.prune(&disk, Epoch(1), n(2)).await.unwrap();
    states.push((std::fs::metadata(&file).unwrap().len(), before.status(&disk).await.unwrap()));
    before.start(&disk, start_at(2, 4), &Members::default()).await.unwrap();
    states.push((std::fs::metadata(&file).unwrap().len(), before.status(&disk).await.unwrap()));
    server.kill();
    let whole_file = std::fs::read(&file).unwrap();
    let seed = getrandom::u64().unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    for pair in states.windows(2) {
        let ((from, earlier), (to, later)) = (&pair[0], &pair[1]);
        for _ in 0..3 {
            // Mostly in the script's part, which is short and at the end.
            let at = if rng.random_bool(0.3) {
                rng.random_range(*from..*to)
            } else {
                to - rng.random_range(1..=200.min(to - from))
            };
            std::fs::write(&file, &whole_file[..at as usize]).unwrap();
            server.restart();
            let after = store(&server);
            let context = format!("seed {seed}: cut at {at}, between {from} and {to}");
            let state = after.status(&disk).await.unwrap();
            // A prune is told of in its first script, and takes away in its second.
            assert!(
                state == *earlier || state == *later,
                "{context}: {state:?} is neither {earlier:?} nor {later:?}"
            );
            for number in state.held.iter().flat_map(|run| run.start().0..=run.end().0) {
                assert_eq!(whole(&after, &disk, number).await, usual_shard(1, number), "{context}");
            }
            server.kill();
        }
    }
}

/// The limit is moved about where the server's use of memory is, so that each write of each operation is the one that meets it.
#[tokio::test]
async fn a_server_that_is_full_at_any_point_does_an_operation_whole_or_not_at_all() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, control, disk) = (store(&server), store(&server), vdisk("disk"));
    open(&store, &disk).await;
    append_all_as(&store, &disk, 1, [1, 2, 5]).await;
    store.publish(&disk, Epoch(1), n(5)).await.unwrap();
    let used = async || -> u64 {
        let info: String = raw(&control, &["INFO", "memory"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        line.trim().parse().unwrap()
    };
    let limit =
        async |bytes: u64| raw::<()>(&control, &["CONFIG", "SET", "maxmemory", &bytes.to_string()]).await;
    let (mut full, mut done) = (0, 0);
    let mut number = 10;
    for above in (0..60_000).step_by(400) {
        let before = store.status(&disk).await.unwrap();
        let count = keys(&control).await;
        number += 2;
        limit(used().await + above).await;
        let result = store.append(&disk, n(number), usual_shard(1, number), n(5)).await;
        limit(0).await;
        let after = store.status(&disk).await.unwrap();
        match result {
            Ok(_) => {
                done += 1;
                assert_eq!(whole(&store, &disk, number).await, usual_shard(1, number), "{above}");
                // With the next one the place is a run, beside those before.
                assert_eq!(after.held.count(), before.held.count() + 1, "{above}");
            }
            Err(error) => {
                full += 1;
                assert_eq!(error.kind.name(), "full", "{above}");
                assert_eq!((&after, keys(&control).await), (&before, count), "{above}");
            }
        }
        let before = store.status(&disk).await.unwrap();
        limit(used().await + above).await;
        let result = store.fill(&disk, n(4), usual_shard(1, number)).await;
        limit(0).await;
        match result {
            Ok(outcome) => {
                assert_eq!(outcome, FillOutcome::Stored);
                assert_eq!(whole(&store, &disk, 4).await, usual_shard(1, number));
            }
            Err(error) => {
                assert_eq!(error.kind.name(), "full", "{above}");
                assert_eq!(store.status(&disk).await.unwrap(), before, "{above}");
            }
        }
        let made = vdisk(&format!("disk-{above}"));
        limit(used().await + above / 20).await;
        let result = store.promise(&made, Epoch(1)).await;
        limit(0).await;
        let state = store.status(&made).await.unwrap();
        assert_eq!(state.identity.is_some(), result.is_ok(), "{above}: {result:?}");
        if result.is_ok() {
            assert!(store.vdisks().await.unwrap().contains(&made));
        }
    }
    assert!(full > 10 && done > 10, "{full} {done}");
}

/// Neither for want of memory nor as a replica: it will not, for the moment.
#[tokio::test]
async fn a_server_that_takes_no_writes_for_a_while_has_nothing_half_written() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk, another) = (store(&server), vdisk("disk"), vdisk("another"));
    open(&store, &disk).await;
    append_all_as(&store, &disk, 1, [1, 2, 5]).await;
    store.publish(&disk, Epoch(1), n(5)).await.unwrap();
    let known = store.status(&disk).await.unwrap();
    // Its file cannot take the place of what is there.
    std::fs::create_dir(server.data().join("dump.rdb")).unwrap();
    std::fs::write(server.data().join("dump.rdb").join("file"), "").unwrap();
    let refusals = [
        [["save", "3600 1"].as_slice(), &["stop-writes-on-bgsave-error", "yes"]],
        [["save", ""].as_slice(), &["min-replicas-to-write", "1"]],
    ];
    for (settings, says) in refusals.into_iter().zip(["MISCONF", "NOREPLICAS"]) {
        for setting in settings {
            raw::<()>(&store, &[["CONFIG", "SET"].as_slice(), setting].concat()).await;
        }
        if says == "MISCONF" {
            raw::<()>(&store, &["BGSAVE"]).await;
            while raw::<String>(&store, &["INFO", "persistence"]).await.contains("rdb_bgsave_in_progress:1") {
            }
        }
        let mut refused = vec![
            said(store.append(&disk, n(6), shard(1, 6), n(5)).await),
            said(store.append(&disk, n(6), usual_shard(1, 6), n(5)).await),
            said(store.fill(&disk, n(4), usual_shard(1, 4)).await),
            said(store.publish(&disk, Epoch(2), n(5)).await),
            said(store.prune(&disk, Epoch(1), n(3)).await),
            said(store.start(&disk, start_at(2, 2), &Members::default()).await),
            said(store.promise(&disk, Epoch(2)).await),
            said(store.promise(&another, Epoch(2)).await),
            said(store.delete(&disk, Epoch(2)).await),
        ];
        refused.retain(|said| !said.contains(says));
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!(store.status(&disk).await.unwrap(), known);
        assert_eq!(whole(&store, &disk, 5).await, shard(1, 5));
        assert_eq!(store.heads(&disk, n(1)..=n(9), usize::MAX).await.unwrap().len(), 3);
        // The log, its earlier run, its shards, the list.
        assert_eq!(keys(&store).await, 2 + 3 + 1, "{says}");
    }
    raw::<()>(&store, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    store.append(&disk, n(6), usual_shard(1, 6), n(5)).await.unwrap();
}
