//! What somebody else did to the store's keys: never wrong bytes, never a panic, and a fill mends a shard.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tlog_proto::{Epoch, VdiskId};
use tlog_redis::RedisStore;
use tlog_store::{FillOutcome, HeadSlot, Members, ShardSlot, ShardStore, StoreErrorKind};
use tlog_testbed::{RedisOptions, RedisProcess};

use store_support::*;

const LOG: &str = "tlog:{disk}:log";
const HELD: &str = "tlog:{disk}:held";

async fn a_log(server: &RedisProcess) -> (RedisStore, VdiskId) {
    let (store, disk) = (store(server), vdisk("disk"));
    open(&store, &disk).await;
    append_all(&store, &disk, [1, 2, 3, 7, 8, 11], 9).await;
    (store, disk)
}

/// The value of a shard, as it is stored.
async fn value(store: &RedisStore, number: u64) -> Vec<u8> {
    store.link().run(redis::cmd("GET").arg(format!("tlog:{{disk}}:s:{number}"))).await.unwrap()
}

async fn put(store: &RedisStore, number: u64, value: &[u8]) {
    let mut command = redis::cmd("SET");
    command.arg(format!("tlog:{{disk}}:s:{number}")).arg(value);
    store.link().run::<()>(&command).await.unwrap();
}

/// The slot of number 2 is damaged, all others are not, and a fill brings back what was there.
async fn check_mended(store: &RedisStore, disk: &VdiskId, what: &str) {
    assert_eq!(store.shard(disk, n(2)).await.unwrap(), ShardSlot::Damaged, "{what}");
    let heads = store.heads(disk, n(1)..=n(3), usize::MAX).await.unwrap();
    assert_eq!(heads.iter().map(|(number, _)| number.0).collect::<Vec<_>>(), [1, 2, 3], "{what}");
    assert!(heads.iter().all(|(number, slot)| *number == n(2) || *slot != HeadSlot::Damaged), "{what}");
    assert_eq!(store.fill(disk, n(2), shard(1, 2)).await.unwrap(), FillOutcome::Stored, "{what}");
    assert_eq!(whole(store, disk, 2).await, shard(1, 2), "{what}");
    assert_eq!(store.fill(disk, n(2), shard(1, 2)).await.unwrap(), FillOutcome::AlreadyHeld, "{what}");
    let heads = store.heads(disk, n(2)..=n(2), usize::MAX).await.unwrap();
    assert!(matches!(heads[0].1, HeadSlot::Held(_)), "{what}");
}

#[tokio::test]
async fn a_damaged_shard_is_told_and_mended_whatever_happened_to_it() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    let good = value(&store, 2).await;
    let other = value(&store, 3).await;
    let flipped = |at: usize| {
        let mut value = good.clone();
        value[at] ^= 0x10;
        value
    };
    let mut lying = good.clone();
    lying[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    for (what, bytes) in [
        ("nothing in it", Vec::new()),
        ("one byte", vec![b't']),
        ("a part of the prefix", good[..71].to_vec()),
        ("the prefix alone", good[..72].to_vec()),
        ("cut in the payload", good[..good.len() - 1].to_vec()),
        ("one byte more", [good.as_slice(), b"x"].concat()),
        ("the shard of another number", other),
        ("garbage", vec![0xff; 5000]),
        ("flipped magic", flipped(0)),
        ("flipped epoch", flipped(19)),
        ("flipped head length", flipped(20)),
        ("flipped payload length", flipped(25)),
        ("flipped id", flipped(40)),
        ("flipped check", flipped(70)),
        ("flipped head part", flipped(75)),
        ("flipped payload", flipped(good.len() - 1)),
        ("a head part of 4 GiB", lying),
    ] {
        put(&store, 2, &bytes).await;
        check_mended(&store, &disk, what).await;
    }
    for (what, words) in [
        ("a list", ["LPUSH", "tlog:{disk}:s:2", "x", "y"]),
        ("a hash", ["HSET", "tlog:{disk}:s:2", "x", "y"]),
        ("a sorted set", ["ZADD", "tlog:{disk}:s:2", "1", "y"]),
    ] {
        raw::<()>(&store, &["DEL", "tlog:{disk}:s:2"]).await;
        raw::<()>(&store, &words).await;
        check_mended(&store, &disk, what).await;
    }
    assert_eq!(held(&store, &disk).await, [(1, 3), (7, 8), (11, 11)]);
}

#[tokio::test]
async fn an_evicted_shard_is_an_empty_slot_and_a_fill_brings_it_back() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    for number in [2, 7, 11] {
        raw::<()>(&store, &["DEL", &format!("tlog:{{disk}}:s:{number}")]).await;
        assert_eq!(store.shard(&disk, n(number)).await.unwrap(), ShardSlot::Empty);
        let heads = store.heads(&disk, n(1)..=n(20), usize::MAX).await.unwrap();
        assert!(heads.iter().all(|(other, _)| other.0 != number));
    }
    for number in [2, 7] {
        assert_eq!(store.fill(&disk, n(number), shard(1, number)).await.unwrap(), FillOutcome::Stored);
        assert_eq!(whole(&store, &disk, number).await, shard(1, number));
    }
    store.append(&disk, n(11), shard(1, 11), n(9)).await.unwrap();
    assert_eq!(whole(&store, &disk, 11).await, shard(1, 11));
}

#[tokio::test]
async fn a_log_whose_hash_is_gone_is_an_empty_store_that_is_filled_over_what_lies_there() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    let before = store.status(&disk).await.unwrap();
    raw::<()>(&store, &["DEL", LOG]).await;
    assert_eq!(store.status(&disk).await.unwrap().identity, None);
    assert_eq!(kind(store.append(&disk, n(12), shard(1, 12), n(9)).await), "no_log");
    let made = store.promise(&disk, Epoch(2)).await.unwrap();
    assert_ne!(made.identity, before.identity);
    assert_eq!((made.head(), made.committed), (n(0), n(0)));
    assert_eq!(store.shard(&disk, n(2)).await.unwrap(), ShardSlot::Empty);
    store.publish(&disk, Epoch(2), n(9)).await.unwrap();
    for number in 1..=9 {
        assert_eq!(store.fill(&disk, n(number), shard(2, number)).await.unwrap(), FillOutcome::Stored);
        assert_eq!(whole(&store, &disk, number).await, shard(2, number));
    }
    assert_eq!(held(&store, &disk).await, [(1, 9)]);
}

#[tokio::test]
async fn rot_that_looks_like_a_newer_epoch_fences_nobody() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    let mut rotten = value(&store, 2).await;
    rotten[4] = b'8';
    put(&store, 2, &rotten).await;
    store.append(&disk, n(2), shard(1, 2), n(9)).await.unwrap();
    assert_eq!(whole(&store, &disk, 2).await, shard(1, 2));
    // What really is of a newer one does.
    store.fill(&disk, n(2), shard(4, 2)).await.unwrap();
    let error = store.append(&disk, n(2), shard(1, 2), n(9)).await.unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::Fenced { promised: Epoch(4) }), "{error}");
}

/// Every operation answers that the log's records are damaged, and where, and changes nothing.
async fn check_refused(store: &RedisStore, disk: &VdiskId, what: &str, where_: &str, only_status: bool) {
    let keys_before = keys(store).await;
    let mut said = vec![damaged_where(store.status(disk).await)];
    if !only_status {
        said.push(damaged_where(store.promise(disk, Epoch(5)).await));
        said.push(damaged_where(store.start(disk, start_at(1, 2), &Members::default()).await));
        said.push(damaged_where(store.append(disk, n(5), shard(1, 5), n(9)).await));
        said.push(damaged_where(store.fill(disk, n(5), shard(1, 5)).await));
        said.push(damaged_where(store.heads(disk, n(1)..=n(9), 100).await));
        said.push(damaged_where(store.shard(disk, n(1)).await));
    }
    for said in said {
        assert!(said.starts_with(where_), "{what}: {said}");
    }
    assert_eq!(keys(store).await, keys_before, "{what}");
}

#[tokio::test]
async fn a_damaged_log_names_its_key_and_field() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    let long = "9".repeat(200);
    let garbage = ["", "x", "-1", "1e3", "0x10", " 1", "nan", "9007199254740992", &long];
    for field in ["epoch", "committed", "first", "run_first", "run_last"] {
        let good: String = raw(&store, &["HGET", LOG, field]).await;
        for value in garbage {
            raw::<()>(&store, &["HSET", LOG, field, value]).await;
            let what = format!("{field} = {value:?}");
            check_refused(&store, &disk, &what, &format!("{LOG} {field}"), false).await;
        }
        raw::<()>(&store, &["HDEL", LOG, field]).await;
        check_refused(&store, &disk, &format!("no {field}"), &format!("{LOG} {field}"), false).await;
        raw::<()>(&store, &["HSET", LOG, field, &good]).await;
    }
    for (field, garbage) in [
        ("identity", ["", "x", "0123456789abcdef0123456789abcdeg"]),
        ("starts", ["1", "1:1,2:2", "1:9007199254740992"]),
        ("members", ["", "1 1", "0 0 0 0 x"]),
    ] {
        let good: String = raw(&store, &["HGET", LOG, field]).await;
        for value in garbage {
            raw::<()>(&store, &["HSET", LOG, field, value]).await;
            check_refused(&store, &disk, value, &format!("{LOG} {field}"), true).await;
        }
        raw::<()>(&store, &["HDEL", LOG, field]).await;
        check_refused(&store, &disk, field, &format!("{LOG} {field}"), true).await;
        raw::<()>(&store, &["HSET", LOG, field, &good]).await;
    }
    for field in ["clean_epoch", "clean_from", "late"] {
        let good: String = raw(&store, &["HGET", LOG, field]).await;
        raw::<()>(&store, &["HSET", LOG, field, "x"]).await;
        let said = damaged_where(store.start(&disk, start_at(1, 2), &Members::default()).await);
        assert_eq!(said, format!("{LOG} {field}"));
        raw::<()>(&store, &["HSET", LOG, field, &good]).await;
    }
    // What another version of this program made is left alone.
    raw::<()>(&store, &["HSET", LOG, "layout", "2"]).await;
    check_refused(&store, &disk, "another layout", &format!("{LOG} layout"), false).await;
    raw::<()>(&store, &["HSET", LOG, "layout", "1"]).await;
    // A last run that ends before it begins.
    raw::<()>(&store, &["HSET", LOG, "run_first", "12"]).await;
    check_refused(&store, &disk, "an empty run", &format!("{LOG} run_first"), false).await;
    raw::<()>(&store, &["HSET", LOG, "run_first", "11"]).await;
    assert_eq!(held(&store, &disk).await, [(1, 3), (7, 8), (11, 11)]);
}

#[tokio::test]
async fn runs_that_are_none_are_damage_and_never_an_endless_loop() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    for member in ["", "x", "5", "6-5", "0-5", "5-9007199254740992", "-5--6", "\r\n"] {
        raw::<()>(&store, &["ZADD", HELD, "5", member]).await;
        check_refused(&store, &disk, member, HELD, true).await;
        let _ = store.append(&disk, n(5), shard(1, 5), n(9)).await.unwrap_err();
        let _ = store.heads(&disk, n(1)..=n(9), 100_000).await.unwrap_err();
        let _ = store.start(&disk, start_at(2, 2), &Members::default()).await.unwrap_err();
        raw::<()>(&store, &["ZREM", HELD, member]).await;
    }
    assert_eq!(held(&store, &disk).await, [(1, 3), (7, 8), (11, 11)]);
    // Runs that overlap, or lie under a score that is not theirs, are still only numbers.
    raw::<()>(&store, &["ZADD", HELD, "2", "2-9"]).await;
    raw::<()>(&store, &["ZADD", HELD, "6", "4-30"]).await;
    assert_eq!(held(&store, &disk).await, [(1, 30)]);
    let _ = store.heads(&disk, n(1)..=n(40), usize::MAX).await;
    store.append(&disk, n(5), shard(1, 5), n(9)).await.unwrap();
    store.prune(&disk, Epoch(1), n(10)).await.unwrap();
    store.start(&disk, start_at(2, 1), &Members::default()).await.unwrap();
    store.delete(&disk, Epoch(2)).await.unwrap();
}

#[tokio::test]
async fn keys_of_another_type_are_damage() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    for (key, words) in [
        (HELD, ["SET", HELD, "text"].as_slice()),
        (HELD, &["RPUSH", HELD, "1-3"]),
        (LOG, &["SET", LOG, "text"]),
        (LOG, &["ZADD", LOG, "1", "1-3"]),
        (LOG, &["SADD", LOG, "epoch"]),
    ] {
        raw::<()>(&store, &["DEL", key]).await;
        raw::<()>(&store, words).await;
        check_refused(&store, &disk, &format!("{words:?}"), key, true).await;
        let before = keys(&store).await;
        for said in [
            damaged_where(store.promise(&disk, Epoch(5)).await),
            damaged_where(store.append(&disk, n(5), shard(1, 5), n(9)).await),
            damaged_where(store.start(&disk, start_at(2, 2), &Members::default()).await),
            damaged_where(store.delete(&disk, Epoch(9)).await),
        ] {
            assert!(said.starts_with(key), "{said}");
        }
        assert_eq!(keys(&store).await, before, "nothing is half written");
        raw::<()>(&store, &["DEL", LOG, HELD]).await;
        open(&store, &disk).await;
        append_all(&store, &disk, [1, 2, 3, 7, 8, 11], 9).await;
    }
    raw::<()>(&store, &["DEL", "tlog:vdisks"]).await;
    raw::<()>(&store, &["SET", "tlog:vdisks", "text"]).await;
    assert!(damaged_where(store.vdisks().await).starts_with("tlog:vdisks"));
    // A log that is there can be opened all the same.
    store.promise(&disk, Epoch(7)).await.unwrap();
}

#[tokio::test]
async fn names_that_are_none_and_logs_that_are_gone_are_not_listed() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = a_log(&server).await;
    raw::<()>(&store, &["SADD", "tlog:vdisks", "", "a/b", "{disk}", "nobody", &"x".repeat(500)]).await;
    assert_eq!(store.vdisks().await.unwrap(), std::slice::from_ref(&disk));
    // A list that was lost is made again by the next opening.
    raw::<()>(&store, &["DEL", "tlog:vdisks"]).await;
    assert_eq!(store.vdisks().await.unwrap(), []);
    store.promise(&disk, Epoch(2)).await.unwrap();
    assert_eq!(store.vdisks().await.unwrap(), [disk]);
}

#[tokio::test]
async fn more_names_than_one_script_looks_up_are_all_listed() {
    let server = RedisProcess::start(RedisOptions::default());
    let store = store(&server);
    let mut disks: Vec<VdiskId> = (0..600).map(|i| vdisk(&format!("disk-{i}"))).collect();
    for disk in &disks {
        store.promise(disk, Epoch(1)).await.unwrap();
    }
    disks.sort();
    assert_eq!(store.vdisks().await.unwrap(), disks);
}

/// Another tenant of the same database writes whatever it likes.
#[tokio::test]
async fn whatever_is_written_to_the_keys_no_wrong_bytes_are_answered_and_every_operation_ends() {
    let server = RedisProcess::start(RedisOptions::default());
    let store = store(&server);
    let seed = getrandom::u64().unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    let texts = [
        "",
        "0",
        "1",
        "5",
        "-1",
        "nan",
        "inf",
        "1e300",
        "9007199254740992",
        "3-9",
        "2-2",
        "x",
        "1:1",
        "0 0 0 0",
    ];
    let fields = [
        "identity",
        "epoch",
        "committed",
        "first",
        "run_first",
        "run_last",
        "starts",
        "members",
        "clean_epoch",
        "clean_from",
        "late",
        "layout",
    ];
    let scores = ["inf", "-inf", "1e300", "-1", "0", "2.5", "9007199254740993", "7"];
    let runs = ["3-9", "2-2", "1-30", "8-7", "00002-3", "1-", "5", "", "9-9007199254740992"];
    for round in 0..150 {
        raw::<()>(&store, &["FLUSHALL"]).await;
        let disk = vdisk("disk");
        open(&store, &disk).await;
        append_all(&store, &disk, [1, 2, 3, 7, 8, 11], 9).await;
        let mut done = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let shard_key = format!("tlog:{{disk}}:s:{}", rng.random_range(1..12));
            let key = *["tlog:{disk}:log", HELD, "tlog:{disk}:deleted", "tlog:vdisks", &shard_key]
                .choose(&mut rng)
                .unwrap();
            let text = *texts.choose(&mut rng).unwrap();
            let words: Vec<&str> = match rng.random_range(0..10) {
                0 => vec!["SET", key, text],
                1 => vec!["DEL", key],
                2 => vec!["RENAME", "tlog:{disk}:s:2", &shard_key],
                3..6 => vec!["HSET", LOG, fields.choose(&mut rng).unwrap(), text],
                6 => vec!["LPUSH", key, text],
                7 => vec!["APPEND", &shard_key, text],
                _ => vec![
                    "ZADD",
                    *[HELD, "tlog:{disk}:deleted"].choose(&mut rng).unwrap(),
                    scores.choose(&mut rng).unwrap(),
                    runs.choose(&mut rng).unwrap(),
                ],
            };
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            // Some are refused: there is something of another type.
            let _ = store.link().run::<redis::Value>(&command).await;
            done.push(words.join(" "));
        }
        let context = format!("seed {seed}, round {round}: {done:?}");
        let all = async {
            let (a, b) = (rng.random_range(1..12), rng.random_range(1..12));
            let mut heads = store.heads(&disk, n(1)..=n(40), usize::MAX).await.unwrap_or_default();
            match rng.random_range(0..8) {
                0 => drop(store.append(&disk, n(a), shard(1, a), n(b)).await),
                1 => drop(store.fill(&disk, n(a), shard(1, a)).await),
                2 => drop(store.start(&disk, start_at(2, a), &Members::default()).await),
                3 => drop(store.prune(&disk, Epoch(5), n(a)).await),
                4 => drop(store.delete(&disk, Epoch(5)).await),
                5 => drop(store.publish(&disk, Epoch(1), n(a)).await),
                _ => drop(store.promise(&disk, Epoch(3)).await),
            }
            let _ = (store.status(&disk).await, store.vdisks().await);
            heads.extend(store.heads(&disk, n(1)..=n(40), usize::MAX).await.unwrap_or_default());
            for (number, slot) in heads {
                if let HeadSlot::Held(head) = slot {
                    assert_eq!(
                        (head.id, &head.head),
                        (shard(1, number.0).id, &shard(1, number.0).head),
                        "{context}"
                    );
                }
            }
            for number in 1..40 {
                if let Ok(ShardSlot::Held(found)) = store.shard(&disk, n(number)).await {
                    assert_eq!(found, shard(1, number), "{context}");
                }
            }
        };
        let limit = std::time::Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, all).await.is_ok(), "{context}: it does not end");
    }
}
