//! Whether and where a server keeps a slave up to date, as its documents change.

use std::time::Duration;

use tlog_client::SlaveSyncError;
use tlog_proto::BlockIndex;
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{status, until, write};
use crate::slave::{Site, connect, slave_of, up_to_date};
use crate::support::Server;
use crate::writer::BLOCK;

/// A server that writes format 1, with keys for it.
const FORMAT1: &str = "\nformat = 1\nprivate-key = \"12345678901234567890123456789012\"\nnonce = \"37b8e8a308c354048d245f6d\"\n";

/// Documents with one vdisk, its log with these settings on these stores.
fn documents(site: &Site, log: &[String], of_log: &str, of_vdisk: &str) -> String {
    let stores = |addresses: &[String]| {
        addresses.iter().map(|store| format!("{{ address: {store} }}")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "storageClusters:\n  log: {{ dataStorage: [{}]{of_log} }}\n  slave: {{ dataStorage: [{}] }}\nvdisks:\n  a: {{ type: db, blockSize: \
         512, size: 1, tlog: {{ storageClusterID: log, slaveStorageClusterID: slave }}{of_vdisk} }}\n",
        stores(log),
        stores(&site.slave.addresses()),
    )
}

async fn write_some(server: &Server, blocks: u64) {
    let client = connect(server).await;
    for index in 0..blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![7; BLOCK]).await.unwrap();
    }
    client.close_after_flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_that_is_the_disk_itself_is_left_alone() {
    let site = Site::new(2);
    let server = site.place.server(&[]);
    write_some(&server, 6).await;
    up_to_date(&server).await;
    let blocks = site.blocks();
    // After a switch somebody moves the disk, and leaves the slave.
    let text = documents(&site, &site.log.addresses(), "", ", nbd: { storageClusterID: slave }");
    write(&site.place, "vdisks.yaml", &text);
    let checked = site.place.tlog(&["config", "check", "vdisks.yaml"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(
        !checked.status.success() && said.contains("another cluster than nbd.storageClusterID"),
        "{said}"
    );
    until(&server, "it is no slave", |status| slave_of(status)["state"] == "unusable").await;
    let client = connect(&server).await;
    client.set(BlockIndex::new(0).unwrap(), vec![9; BLOCK]).await.unwrap();
    client.flush().await.unwrap();
    assert!(client.wait_nbd_slave_sync(Duration::from_secs(60)).await.is_err());
    for arguments in [&["slave", "resync", "a"][..], &["slave", "resync", "a", "--discard"]] {
        let said = site.place.tlog_fails(arguments);
        assert!(said.contains("it is where the disk is"), "{said}");
    }
    assert_eq!(site.blocks(), blocks);
    // It is a slave again.
    write(&site.place, "vdisks.yaml", &documents(&site, &site.log.addresses(), "", ""));
    up_to_date(&server).await;
    assert_eq!(site.blocks()[&0], vec![9; BLOCK]);
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_follows_a_log_whose_shards_and_then_its_stores_are_others() {
    let site = Site::new(1);
    let log = RedisServers::start(3, &RedisOptions::durable());
    let old = log.addresses();
    let shards = |quorum: u32| format!(", dataShards: 1, parityShards: 2, writeQuorum: {quorum}");
    write(&site.place, "vdisks.yaml", &documents(&site, &old, &shards(2), ""));
    let mut server = site.place.server_with_log(&[]);
    write_some(&server, 6).await;
    up_to_date(&server).await;
    write(&site.place, "vdisks.yaml", &documents(&site, &old, &shards(3), ""));
    until(&server, "the write quorum is three", |status| {
        status["clusters"][0]["redundancy"] == "1+2, write quorum 3"
    })
    .await;
    write_some(&server, 6).await;
    // Two stores are replaced, one after the other, and the old ones are gone then.
    let new = RedisServers::start(2, &RedisOptions::durable());
    let (first, second) = (&new.addresses()[0], &new.addresses()[1]);
    for stores in [[first, &old[1], &old[2]], [first, second, &old[2]]] {
        let client = connect(&server).await;
        let stores = stores.map(Clone::clone);
        write(&site.place, "vdisks.yaml", &documents(&site, &stores, &shards(3), ""));
        server.waits_for_log("every log has the new store");
        client.close().await;
    }
    log.iter().take(2).for_each(|store| store.kill());
    write_some(&server, 6).await;
    let sequence = |sequence: u64| move |status: &_| slave_of(status)["position"]["sequence"] == sequence;
    until(&server, "it has all", sequence(18)).await;
    up_to_date(&server).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_open_and_still_empty_is_not_looked_for_all_the_time() {
    let site = Site::new(1);
    let settings = std::fs::read_to_string(site.place.path().join("tlog.toml")).unwrap();
    write(&site.place, "tlog.toml", &format!("{settings}{FORMAT1}"));
    let server = site.place.server(&[]);
    let client = connect(&server).await;
    until(&server, "there is no log", |status| slave_of(status)["state"] == "no_log").await;
    let commands = || {
        let told = site.log[0].cli(&["INFO", "stats"]);
        let line = told.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = commands();
    let waited = client.wait_nbd_slave_sync(Duration::from_millis(500)).await;
    assert!(matches!(waited, Err(SlaveSyncError::TimedOut { .. })), "{waited:?}");
    let (now, status) = (commands(), status(&server).await);
    assert!(now - before < 200, "{} commands: {}", now - before, slave_of(&status));
    client.close().await;
    server.stop();
}
