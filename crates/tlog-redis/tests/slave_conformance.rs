//! The store of a slave on a real server keeps every rule of its port.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tlog_config::RedisServer;
use tlog_redis::{Link, LinkLimits, RedisSlave};
use tlog_store::conformance::check_slave;
use tlog_store::slave::SlaveStore;
use tlog_testbed::{RedisOptions, RedisProcess};

async fn check(options: RedisOptions) {
    let arguments = ["--databases", "64"].map(String::from).into();
    let server = RedisProcess::start(RedisOptions { arguments, ..options });
    let next = AtomicU32::new(0);
    check_slave(|| {
        let database = next.fetch_add(1, Ordering::Relaxed);
        let server = RedisServer { database, ..RedisServer::new(server.host(), server.port()) };
        Arc::new(RedisSlave::new(Link::new(server, LinkLimits::default()))) as Arc<dyn SlaveStore>
    })
    .await;
}

#[tokio::test]
async fn a_redis_in_memory_keeps_every_rule() {
    check(RedisOptions::default()).await;
}

#[tokio::test]
async fn a_redis_that_writes_all_to_disk_keeps_every_rule() {
    check(RedisOptions { append_only: true, ..RedisOptions::default() }).await;
}
