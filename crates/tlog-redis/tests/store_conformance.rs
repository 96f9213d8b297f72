//! The store on a real server keeps every rule of the port.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tlog_config::RedisServer;
use tlog_redis::{Link, LinkLimits, RedisStore};
use tlog_store::ShardStore;
use tlog_store::conformance::{check_against_model, check_store};
use tlog_testbed::{RedisOptions, RedisProcess};

/// Stores that know no log: each in a database of its own.
struct Databases<'a> {
    server: &'a RedisProcess,
    next: AtomicU32,
}

impl<'a> Databases<'a> {
    fn of(server: &'a RedisProcess) -> Self {
        Self { server, next: AtomicU32::new(0) }
    }

    fn another(&self) -> Arc<dyn ShardStore> {
        let database = self.next.fetch_add(1, Ordering::Relaxed);
        store(self.server, database)
    }
}

fn store(server: &RedisProcess, database: u32) -> Arc<dyn ShardStore> {
    let server = RedisServer { database, ..RedisServer::new(server.host(), server.port()) };
    Arc::new(RedisStore::new(Link::new(server, LinkLimits::default())))
}

fn start(append_only: bool) -> RedisProcess {
    RedisProcess::start(RedisOptions {
        append_only,
        arguments: ["--databases", "64"].map(String::from).into(),
        ..RedisOptions::default()
    })
}

#[tokio::test]
async fn a_redis_in_memory_keeps_every_rule() {
    let server = start(false);
    let databases = Databases::of(&server);
    check_store(|| databases.another()).await;
    for seed in 0..12 {
        check_against_model(databases.another(), seed, 400, |store| store).await;
    }
}

#[tokio::test]
async fn a_redis_that_writes_all_to_disk_keeps_every_rule() {
    let server = start(true);
    let databases = Databases::of(&server);
    check_store(|| databases.another()).await;
    for seed in 100..103 {
        check_against_model(databases.another(), seed, 200, |store| store).await;
    }
}

#[tokio::test]
async fn a_durable_redis_does_what_the_model_does_also_after_a_kill() {
    let server = start(true);
    for (database, seed) in (0..).zip(200..203) {
        check_against_model(store(&server, database), seed, 200, |before| {
            drop(before);
            server.restart();
            store(&server, database)
        })
        .await;
    }
}
