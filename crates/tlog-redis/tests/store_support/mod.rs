//! What the tests of the store share.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use bytes::Bytes;
use redis::{FromRedisValue, Value};
use tlog_config::{RedisServer, Secret};
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_redis::{Link, LinkLimits, RedisStore};
pub use tlog_store::conformance::{shard, vdisk};
use tlog_store::{Members, Shard, ShardSlot, ShardStore, StartRecord, StoreError, StoreErrorKind};
use tlog_testbed::RedisProcess;

pub fn n(number: u64) -> AggregationNumber {
    AggregationNumber(number)
}

pub fn start_at(epoch: u64, number: u64) -> StartRecord {
    StartRecord { epoch: Epoch(epoch), number: n(number) }
}

/// A store with a link of its own.
pub fn store(server: &RedisProcess) -> RedisStore {
    RedisStore::new(Link::new(RedisServer::new(server.host(), server.port()), LinkLimits::default()))
}

/// The same as another user.
pub fn store_as(server: &RedisProcess, user: &str, password: &str) -> RedisStore {
    let server = RedisServer {
        user: Some(user.into()),
        password: Some(Secret::new(password)),
        ..RedisServer::new(server.host(), server.port())
    };
    RedisStore::new(Link::new(server, LinkLimits::default()))
}

/// A log of epoch 1 that begins at number 1.
pub async fn open(store: &RedisStore, disk: &VdiskId) {
    store.promise(disk, Epoch(1)).await.unwrap();
    store.start(disk, start_at(1, 1), &Members::default()).await.unwrap();
}

/// Appends the numbers as epoch 1, many at once, and says that all up to `committed` are.
pub async fn append_all(
    store: &RedisStore,
    disk: &VdiskId,
    numbers: impl IntoIterator<Item = u64>,
    committed: u64,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in numbers {
        let (store, disk) = (store.clone(), disk.clone());
        tasks.spawn(async move {
            store.append(&disk, n(number), shard(1, number), n(committed)).await.unwrap();
        });
    }
    tasks.join_all().await;
}

/// Appends the numbers as another epoch, one after the other.
pub async fn append_all_as(
    store: &RedisStore,
    disk: &VdiskId,
    epoch: u64,
    numbers: impl IntoIterator<Item = u64>,
) {
    for number in numbers {
        store.append(disk, n(number), shard(epoch, number), n(0)).await.unwrap();
    }
}

/// A shard of about the size that one of 25 blocks of 4 KiB has.
pub fn usual_shard(epoch: u64, salt: u64) -> Shard {
    Shard {
        head: Bytes::from(vec![salt as u8; 1000]),
        payload: Bytes::from(vec![!salt as u8; 25_000]),
        ..shard(epoch, salt)
    }
}

pub async fn held(store: &RedisStore, disk: &VdiskId) -> Vec<(u64, u64)> {
    let status = store.status(disk).await.unwrap();
    status.held.iter().map(|run| (run.start().0, run.end().0)).collect()
}

pub async fn whole(store: &RedisStore, disk: &VdiskId, number: u64) -> Shard {
    match store.shard(disk, n(number)).await.unwrap() {
        ShardSlot::Held(shard) => shard,
        other => panic!("number {number}: {other:?}"),
    }
}

/// Any command, past the store.
pub async fn raw<T: FromRedisValue>(store: &RedisStore, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    store.link().run(&command).await.unwrap()
}

/// How many keys there are.
pub async fn keys(store: &RedisStore) -> u64 {
    raw(store, &["DBSIZE"]).await
}

/// How often the server ran each command since it was started, those of scripts included.
pub async fn calls(store: &RedisStore) -> BTreeMap<String, u64> {
    let stats: Value = raw(store, &["INFO", "commandstats"]).await;
    let stats = String::from_redis_value(stats).unwrap();
    let mut calls = BTreeMap::new();
    for line in stats.lines() {
        let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        calls.insert(name.to_owned(), rest.split(',').next().unwrap().parse().unwrap());
    }
    calls
}

/// What ran between two looks, but for looking.
pub fn calls_between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut ran = BTreeMap::new();
    for (name, count) in after {
        let more = count - before.get(name).copied().unwrap_or_default();
        if more > 0 && name != "info" {
            ran.insert(name.clone(), more);
        }
    }
    ran
}

#[track_caller]
pub fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> &'static str {
    result.unwrap_err().kind.name()
}

#[track_caller]
pub fn damaged_where<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result.unwrap_err().kind {
        StoreErrorKind::Damaged { what } => what,
        other => panic!("not damaged: {other}"),
    }
}
