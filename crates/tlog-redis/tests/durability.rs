//! What servers with various settings say of their durability.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use tlog_config::RedisServer;
use tlog_redis::{Link, LinkLimits, durability};
use tlog_store::StoreDurability;
use tlog_testbed::{RedisOptions, RedisProcess};

fn link_to(process: &RedisProcess) -> Link {
    let limits = LinkLimits { idle: std::time::Duration::ZERO, ..LinkLimits::default() };
    Link::new(RedisServer::new(process.host(), process.port()), limits)
}

#[tokio::test]
async fn each_way_to_lose_data_is_found_by_asking() {
    async fn check(options: RedisOptions, name: &str, hint: &str) {
        let process = RedisProcess::start(options);
        let link = link_to(&process);
        let found = durability(&link).await.unwrap();
        assert_eq!(found.name(), name, "{found:?}");
        match &found {
            StoreDurability::Durable => {}
            StoreDurability::Volatile(why) | StoreDurability::Unknown(why) => {
                assert!(why.contains(hint), "{why}")
            }
        }
        assert_eq!(link.last_durability(), Some(found));
    }
    let with = |arguments: &[&str]| RedisOptions {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..RedisOptions::durable()
    };
    let evicting = RedisOptions {
        max_memory: Some(100 << 20),
        eviction: Some("allkeys-lru".into()),
        ..RedisOptions::durable()
    };
    check(RedisOptions::default(), "volatile", "appendonly yes").await;
    check(RedisOptions::durable(), "durable", "").await;
    check(with(&["--appendfsync", "everysec"]), "volatile", "last second").await;
    check(with(&["--appendfsync", "no"]), "volatile", "appendfsync no").await;
    check(with(&["--no-appendfsync-on-rewrite", "yes"]), "volatile", "no-appendfsync-on-rewrite no").await;
    check(with(&["--replicaof", "127.0.0.1", "1"]), "volatile", "replica").await;
    check(evicting, "volatile", "allkeys-lru").await;
    check(with(&["--rename-command", "CONFIG", "secret"]), "unknown", "CONFIG GET").await;
}

#[tokio::test]
async fn a_server_is_asked_again_when_it_comes_back() {
    let mut process = RedisProcess::start(RedisOptions::durable());
    let link = link_to(&process);
    assert_eq!(link.last_durability(), None);
    link.until_up().await;
    assert_eq!(link.last_durability(), Some(StoreDurability::Durable));
    process.restart_with(RedisOptions::default());
    // The link was idle: this dials anew.
    link.run::<()>(&redis::cmd("PING")).await.unwrap();
    assert_eq!(link.last_durability().unwrap().name(), "volatile");
}
