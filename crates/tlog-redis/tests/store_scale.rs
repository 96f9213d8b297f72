//! Long logs: what an operation costs does not grow with the history, and what goes in steps is right when it stops between two.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tlog_proto::Epoch;
use tlog_store::{Members, ShardSlot, ShardStore};
use tlog_testbed::{RedisOptions, RedisProcess};

use store_support::*;

/// Shards of numbers that no test reads, so that a log has a long history quickly.
const LONG_HISTORY: &str =
    "for i = 1, 200000 do redis.call('SET', 'tlog:{disk}:s:' .. string.format('%d', i), '') end
    redis.call('HSET', 'tlog:{disk}:log', 'run_first', '1', 'run_last', '200000', 'committed', '200000')";

async fn bytes_out(store: &tlog_redis::RedisStore) -> u64 {
    let stats: String = raw(store, &["INFO", "stats"]).await;
    let line = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn two_hundred_thousand_aggregations_make_nothing_dearer() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    let costs = async || {
        let mut costs: Vec<BTreeMap<String, u64>> = Vec::new();
        let next = store.status(&disk).await.unwrap().head().0 + 1;
        let mut before = calls(&store).await;
        for step in 0..4 {
            match step {
                0 => drop(store.append(&disk, n(next), shard(1, next), n(next - 1)).await.unwrap()),
                1 => drop(store.append(&disk, n(next + 2), shard(1, next), n(next - 1)).await.unwrap()),
                2 => drop(store.append(&disk, n(next + 1), shard(1, next), n(next - 1)).await.unwrap()),
                _ => assert_eq!(held(&store, &disk).await.len(), 1),
            }
            let after = calls(&store).await;
            costs.push(calls_between(&before, &after));
            before = after;
        }
        costs
    };
    // The server learns the scripts first.
    append_all(&store, &disk, 1..=3, 0).await;
    let short = costs().await;
    raw::<()>(&store, &["EVAL", LONG_HISTORY, "0"]).await;
    let long = costs().await;
    assert_eq!(long, short);
    // The usual append, and a status: so much and no more.
    let counted =
        |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<BTreeMap<_, u64>>();
    assert_eq!(long[0], counted(&["evalsha", "hmget", "set", "hset"]));
    assert_eq!(long[3], counted(&["evalsha", "exists", "hmget", "zrange"]));
    let before = bytes_out(&store).await;
    assert_eq!(held(&store, &disk).await, [(1, 200_003)]);
    let between = bytes_out(&store).await;
    assert!(between - before < 10_000, "a status has {} bytes", between - before);
}

#[tokio::test]
async fn a_large_value_does_not_go_through_the_script() {
    let users = vec!["client on >secret ~* +@all -eval -evalsha".to_owned()];
    let server = RedisProcess::start(RedisOptions { users, ..RedisOptions::default() });
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    store.append(&disk, n(1), usual_shard(1, 1), n(0)).await.unwrap();
    let before = calls(&store).await;
    for number in 2..=11 {
        store.append(&disk, n(number), usual_shard(1, number), n(number - 1)).await.unwrap();
    }
    let ran = calls_between(&before, &calls(&store).await);
    let once_each = ["set", "evalsha", "hmget", "rename", "persist", "hset"];
    assert_eq!(ran, once_each.map(|name| (name.to_owned(), 10)).into());
    for number in 1..=11 {
        assert_eq!(whole(&store, &disk, number).await, usual_shard(1, number));
        let expires: i64 = raw(&store, &["PTTL", &format!("tlog:{{disk}}:s:{number}")]).await;
        assert_eq!(expires, -1, "number {number} must stay");
    }
    assert_eq!(keys(&store).await, 2 + 11);
    // What a script does not take goes at once.
    store.prune(&disk, Epoch(1), n(4)).await.unwrap();
    store.append(&disk, n(3), usual_shard(1, 3), n(11)).await.unwrap();
    store.promise(&disk, Epoch(2)).await.unwrap();
    assert_eq!(kind(store.append(&disk, n(12), usual_shard(1, 12), n(11)).await), "fenced");
    assert_eq!(kind(store.append(&vdisk("other"), n(12), usual_shard(1, 12), n(11)).await), "no_log");
    assert_eq!(keys(&store).await, 2 + 8);
    // Where no script comes, it expires.
    let client = store_as(&server, "client", "secret");
    assert_eq!(kind(client.append(&disk, n(12), usual_shard(2, 12), n(11)).await), "unavailable");
    let left: Vec<String> = raw(&store, &["KEYS", "tlog:{disk}:in:*"]).await;
    assert_eq!(left.len(), 1);
    let expires: i64 = raw(&store, &["PTTL", &left[0]]).await;
    assert!((1..=60_000).contains(&expires), "{expires}");
}

#[tokio::test]
async fn head_parts_are_read_without_the_payloads_and_without_holding_up_the_server() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=1500 {
        let (store, disk) = (store.clone(), disk.clone());
        tasks.spawn(async move {
            store.append(&disk, n(number), usual_shard(1, number), n(0)).await.unwrap();
        });
    }
    tasks.join_all().await;
    let (before, sent) = (calls(&store).await, bytes_out(&store).await);
    let heads = store.heads(&disk, n(1)..=n(u64::MAX), usize::MAX).await.unwrap();
    let sent = bytes_out(&store).await - sent;
    assert_eq!(heads.len(), 1500);
    let ran = calls_between(&before, &calls(&store).await);
    assert_eq!(ran["evalsha"], 3, "512 at a time: {ran:?}");
    assert_eq!(ran["getrange"], 1500, "one short read each: {ran:?}");
    assert!(sent < 1500 * 1200, "{sent} bytes");
}

#[tokio::test]
async fn heads_skip_a_hole_of_any_width_at_once() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    append_all(&store, &disk, [1, 2, 1 << 40, (1 << 40) + 1, 1 << 50], 0).await;
    let before = calls(&store).await;
    let heads = store.heads(&disk, n(2)..=n(u64::MAX), usize::MAX).await.unwrap();
    let numbers: Vec<u64> = heads.iter().map(|(number, _)| number.0).collect();
    assert_eq!(numbers, [2, 1 << 40, (1 << 40) + 1, 1 << 50]);
    assert_eq!(calls_between(&before, &calls(&store).await)["getrange"], 4);
}

/// What is held after appends in a random order and starts, against a plain set.
#[tokio::test]
async fn runs_are_those_of_a_plain_set_whatever_the_order() {
    let server = RedisProcess::start(RedisOptions::default());
    let store = store(&server);
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = vdisk(&format!("disk-{seed}"));
        open(&store, &disk).await;
        store.publish(&disk, Epoch(1), n(80)).await.unwrap();
        let mut epoch = 1;
        let mut written: BTreeMap<u64, u64> = BTreeMap::new();
        for step in 0..12 {
            let mut numbers: Vec<u64> = (1..=80).filter(|_| rng.random_bool(0.4)).collect();
            numbers.shuffle(&mut rng);
            for number in numbers {
                store.append(&disk, n(number), shard(epoch, number), n(0)).await.unwrap();
                written.insert(number, epoch);
            }
            epoch += 1;
            let from = rng.random_range(1..=85);
            // Some of the next epoch's shards are there before its start, which must leave them.
            for number in [rng.random_range(1..=80), rng.random_range(1..=80)] {
                store.append(&disk, n(number), shard(epoch, number), n(0)).await.unwrap();
                written.insert(number, epoch);
            }
            store.start(&disk, start_at(epoch, from), &Members::default()).await.unwrap();
            written.retain(|&number, &mut e| number < from || e >= epoch);
            // Fills bring something older there, and the same or another start of the epoch comes again.
            for _ in 0..rng.random_range(0..4) {
                for _ in 0..rng.random_range(0..4) {
                    let (number, of) = (rng.random_range(1..=80), rng.random_range(1..=epoch));
                    // Each with an id of its own, so that none is held already.
                    let salt = rng.random::<u64>() >> 16;
                    store.fill(&disk, n(number), shard(of, salt)).await.unwrap();
                    written.insert(number, of);
                }
                let from = if rng.random_bool(0.5) { from } else { rng.random_range(1..=85) };
                store.start(&disk, start_at(epoch, from), &Members::default()).await.unwrap();
                written.retain(|&number, &mut e| number < from || e >= epoch);
            }
            let set: BTreeSet<u64> =
                held(&store, &disk).await.into_iter().flat_map(|(first, last)| first..=last).collect();
            let plain: BTreeSet<u64> = written.keys().copied().collect();
            assert_eq!(set, plain, "seed {seed}, step {step}");
            let heads = store.heads(&disk, n(1)..=n(100), usize::MAX).await.unwrap();
            let found: BTreeSet<u64> = heads.iter().map(|(number, _)| number.0).collect();
            assert_eq!(found, plain, "seed {seed}, step {step}");
            let stored: u64 = raw(&store, &["DBSIZE"]).await;
            let others = 1 + (seed + 1) + u64::from(held(&store, &disk).await.len() > 1);
            // Nothing that was dropped is left behind. Of earlier disks only their log is there.
            assert!(stored <= others + plain.len() as u64, "seed {seed}, step {step}: {stored} keys");
        }
        store.start(&disk, start_at(epoch + 1, 1), &Members::default()).await.unwrap();
        assert_eq!(held(&store, &disk).await, []);
    }
}

#[tokio::test]
async fn a_start_drops_any_amount_and_spares_what_its_own_epoch_wrote() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    // More than one script looks at, in one long run and in many short ones.
    append_all(&store, &disk, (1..=1500).chain((1501..3501).filter(|i| i % 2 == 0)), 9).await;
    store.promise(&disk, Epoch(2)).await.unwrap();
    for number in [700, 701, 2000, 3000] {
        store.append(&disk, n(number), shard(2, number), n(9)).await.unwrap();
    }
    store.start(&disk, start_at(2, 11), &Members::default()).await.unwrap();
    assert_eq!(held(&store, &disk).await, [(1, 10), (700, 701), (2000, 2000), (3000, 3000)]);
    let status = store.status(&disk).await.unwrap();
    assert_eq!(status.starts, [start_at(1, 1), start_at(2, 11)]);
    // Log, list of vdisks, earlier runs, 14 shards.
    assert_eq!(keys(&store).await, 3 + 14);
    store.append(&disk, n(3001), shard(2, 3001), n(9)).await.unwrap();
    assert_eq!(held(&store, &disk).await.last(), Some(&(3000, 3001)));
}

#[tokio::test]
async fn a_start_sent_again_costs_the_same_however_much_was_written_since() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    append_all(&store, &disk, (1..=2000).chain((2001..2400).filter(|i| i % 3 != 0)), 2000).await;
    let before = calls(&store).await;
    store.start(&disk, start_at(1, 1), &Members::default()).await.unwrap();
    let ran = calls_between(&before, &calls(&store).await);
    assert_eq!((ran["evalsha"], ran.get("getrange")), (1, None), "{ran:?}");
    // A fill of what an older epoch wrote is found all the same.
    store.promise(&disk, Epoch(3)).await.unwrap();
    store.start(&disk, start_at(3, 1990), &Members::default()).await.unwrap();
    append_all_as(&store, &disk, 3, 1990..=2010).await;
    store.fill(&disk, n(2000), shard(2, 77)).await.unwrap();
    store.start(&disk, start_at(3, 1990), &Members::default()).await.unwrap();
    assert_eq!(held(&store, &disk).await, [(1, 1999), (2001, 2010)]);
}

#[tokio::test]
async fn what_a_fill_brings_while_a_start_goes_on_is_found_by_the_next() {
    let server = RedisProcess::start(RedisOptions::default());
    for round in 0..6 {
        let (opener, filler) = (store(&server), store(&server));
        let disk = vdisk(&format!("disk-{round}"));
        open(&opener, &disk).await;
        append_all(&opener, &disk, 1..=2000, 2000).await;
        let filled = tokio::spawn({
            let disk = disk.clone();
            async move {
                for number in (11..=2000).step_by(37) {
                    filler.fill(&disk, n(number), shard(1, number + 10_000)).await.unwrap();
                }
            }
        });
        opener.start(&disk, start_at(2, 11), &Members::default()).await.unwrap();
        filled.await.unwrap();
        opener.start(&disk, start_at(2, 11), &Members::default()).await.unwrap();
        assert_eq!(held(&opener, &disk).await, [(1, 10)], "round {round}");
    }
}

#[tokio::test]
async fn a_start_that_stops_half_way_is_a_promise_and_can_be_sent_again() {
    // Such a user's script is refused when it has dropped the shards of its first step.
    let users = vec!["half on >secret ~* +@all -hset".to_owned()];
    let server = RedisProcess::start(RedisOptions { users, ..RedisOptions::durable() });
    let (owner, disk) = (store(&server), vdisk("disk"));
    open(&owner, &disk).await;
    append_all(&owner, &disk, (1..=900).chain([1000]), 5).await;
    let half = store_as(&server, "half", "secret");
    half.start(&disk, start_at(2, 11), &Members::default()).await.unwrap_err();
    server.restart();
    let owner = store(&server);
    assert_eq!(owner.status(&disk).await.unwrap().starts, [start_at(1, 1)]);
    assert_eq!(whole(&owner, &disk, 10).await, shard(1, 10));
    owner.start(&disk, start_at(2, 11), &Members::default()).await.unwrap();
    assert_eq!(held(&owner, &disk).await, [(1, 10)]);
    assert_eq!(keys(&owner).await, 2 + 10);
}

#[tokio::test]
async fn a_prune_that_stops_half_way_tells_of_nothing_below_and_the_next_one_takes_it_away() {
    let users = vec!["half on >secret ~* +@all -zadd".to_owned()];
    let server = RedisProcess::start(RedisOptions { users, ..RedisOptions::durable() });
    let (owner, disk) = (store(&server), vdisk("disk"));
    open(&owner, &disk).await;
    append_all(&owner, &disk, (1..=1800).chain(1901..=2000), 2000).await;
    // Its second step is refused behind its first write, and the server is killed there.
    let half = store_as(&server, "half", "secret");
    half.prune(&disk, Epoch(1), n(1700)).await.unwrap_err();
    server.restart();
    let owner = store(&server);
    let left = keys(&owner).await;
    assert!(left > 3 + 300, "{left} keys: nothing is left to take away");
    let status = owner.status(&disk).await.unwrap();
    assert_eq!(status.first, n(1700));
    assert!(status.held.first() >= Some(n(1700)), "{:?}", status.held);
    for number in [1, 600, 1699] {
        assert_eq!(owner.shard(&disk, n(number)).await.unwrap(), ShardSlot::Empty);
    }
    let heads = owner.heads(&disk, n(1)..=n(3000), usize::MAX).await.unwrap();
    assert!(heads.iter().all(|(number, _)| *number >= n(1700)));
    owner.append(&disk, n(5), shard(1, 5), n(2000)).await.unwrap();
    assert_eq!(owner.shard(&disk, n(5)).await.unwrap(), ShardSlot::Empty);
}

#[tokio::test]
async fn a_prune_killed_half_way_goes_on_where_it_stopped() {
    let server = RedisProcess::start(RedisOptions::durable());
    let (store_before, disk) = (store(&server), vdisk("disk"));
    open(&store_before, &disk).await;
    append_all(&store_before, &disk, (1..=2500).chain(2601..=2700), 2700).await;
    let (pruning, watching) = (store(&server), store(&server));
    let pruned = tokio::spawn({
        let disk = disk.clone();
        async move { pruning.prune(&disk, Epoch(1), n(2650)).await }
    });
    // As soon as the first shard is gone; whether the last one is by then is up to the machine.
    while raw::<bool>(&watching, &["EXISTS", "tlog:{disk}:s:1"]).await {}
    server.kill();
    let _ = pruned.await.unwrap();
    server.restart();
    let after = store(&server);
    let status = after.status(&disk).await.unwrap();
    assert_eq!((status.first, status.held.first()), (n(2650), Some(n(2650))));
    assert_eq!(held(&after, &disk).await, [(2650, 2700)]);
    assert_eq!(after.shard(&disk, n(2649)).await.unwrap(), ShardSlot::Empty);
    after.prune(&disk, Epoch(1), n(2650)).await.unwrap();
    assert_eq!(keys(&after).await, 2 + 51);
    assert_eq!(whole(&after, &disk, 2650).await, shard(1, 2650));
}

#[tokio::test]
async fn a_delete_leaves_nothing_and_a_fenced_one_everything() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk, other) = (store(&server), vdisk("disk"), vdisk("other"));
    for disk in [&disk, &other] {
        open(&store, disk).await;
        append_all(&store, disk, (1..=700).chain(800..=1500).chain([1600]), 1000).await;
    }
    let before = store.promise(&disk, Epoch(5)).await.unwrap();
    assert_eq!(kind(store.delete(&disk, Epoch(4)).await), "fenced");
    assert_eq!(store.status(&disk).await.unwrap(), before);
    store.delete(&disk, Epoch(5)).await.unwrap();
    assert_eq!(store.status(&disk).await.unwrap().identity, None);
    assert_eq!(store.vdisks().await.unwrap(), std::slice::from_ref(&other));
    store.delete(&disk, Epoch(1)).await.unwrap();
    assert_eq!(keys(&store).await, 1 + 2 + 1402);
    let made = store.promise(&disk, Epoch(1)).await.unwrap();
    assert_ne!(made.identity, before.identity);
    assert_eq!(made.head(), n(0));
    assert_eq!(store.vdisks().await.unwrap(), [disk, other]);
}

#[tokio::test]
async fn a_delete_that_stops_half_way_has_no_log_and_is_finished_by_the_next_or_by_a_new_log() {
    let users = vec!["half on >secret ~* +@all -zrem".to_owned()];
    for finish in ["delete", "promise"] {
        let server = RedisProcess::start(RedisOptions { users: users.clone(), ..RedisOptions::durable() });
        let (owner, disk) = (store(&server), vdisk("disk"));
        open(&owner, &disk).await;
        append_all(&owner, &disk, (1..=700).chain(800..=1500), 1000).await;
        let half = store_as(&server, "half", "secret");
        half.delete(&disk, Epoch(1)).await.unwrap_err();
        server.restart();
        let owner = store(&server);
        assert!(keys(&owner).await > 500);
        assert_eq!(owner.status(&disk).await.unwrap().identity, None);
        assert_eq!(owner.vdisks().await.unwrap(), []);
        assert_eq!(kind(owner.append(&disk, n(1501), shard(1, 1), n(1000)).await), "no_log");
        assert_eq!(kind(owner.shard(&disk, n(1500)).await), "no_log");
        if finish == "delete" {
            owner.delete(&disk, Epoch(0)).await.unwrap();
            assert_eq!(keys(&owner).await, 0);
        } else {
            let made = owner.promise(&disk, Epoch(1)).await.unwrap();
            assert_eq!((made.head(), made.committed), (n(0), n(0)));
            assert_eq!(keys(&owner).await, 2);
        }
    }
}
