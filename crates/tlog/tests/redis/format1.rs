//! Stored format 1 on real servers: written, read without being told, and gone on from.

use std::time::Duration;

use serde_json::Value;
use tlog_testbed::RedisOptions;

use crate::site::{Disk, Site};

const KEYS: &str = "private-key = \"12345678901234567890123456789012\"\nnonce = \"37b8e8a308c354048d245f6d\"";

#[tokio::test(flavor = "multi_thread")]
async fn history_in_format_1_is_written_read_and_gone_on_from_in_format_2() {
    let site = Site::with(6, &RedisOptions::durable(), &format!("format = 1\n{KEYS}"));
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(40).await;
    server.stop();
    // What existing readers look for.
    assert_eq!(site.redis[0].cli(&["LLEN", "last_hash_vda"]), "5");
    assert_eq!(site.redis[0].cli(&["KEYS", "tlog:*"]), "");
    assert_eq!(site.redis[0].cli(&["DBSIZE"]), "9", "eight shards and the list");
    let old = disk.expected();
    assert!(site.restored("vda") == old);
    let lines = site.place.tlog_ok(&["history", "vda", "--json"]);
    assert_eq!(lines.lines().count(), 8);
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(line["format"], 1, "{line}");

    // An image can be the first that is written, too.
    std::fs::write(site.place.path().join("image"), &old).unwrap();
    let server = site.serve();
    let record = ["record", "vdb", "image", "--server", &server.addr(), "--block-size", "512"];
    site.place.tlog_ok(&record);
    server.stop();
    assert!(site.restored("vdb") == old);
    site.place.tlog_ok(&["delete", "vdb", "--yes"]);

    // The same stores, format 2: clients go on, and the first aggregation refers to the last id of format 1.
    site.write_settings(&site.redis.addresses(), KEYS);
    assert!(site.restored("vda") == old, "nobody has to say which format it is");
    let server = site.serve();
    let mut disk = Disk::connect_again(&server, "vda", disk).await;
    disk.write(25).await;
    server.stop();
    site.wait_until_whole("vda", Duration::from_secs(60));
    let newest = site.redis[0].cli(&["LINDEX", "last_hash_vda", "0"]);
    assert!(!newest.is_empty());
    site.redis[1].kill();
    site.redis[4].kill();
    assert!(site.restored("vda") == disk.expected(), "with two stores lost, over both formats");
    let output = site.place.tlog(&["restore", "vda", "-o", "old", "--sequence", "40"]);
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(site.place.path().join("old")).unwrap() == old);
    let listed = site.place.tlog_ok(&["vdisks"]);
    assert!(listed.contains("1, 2"), "{listed}");

    // Without the keys of format 1 nothing is left out silently.
    site.write_settings(&site.redis.addresses(), "");
    let said = site.place.tlog_fails(&["restore", "vda", "-o", "x"]);
    assert!(said.contains("private-key"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_format_1_takes_every_store_and_fails_where_one_stays_away() {
    let site = Site::with(6, &RedisOptions::durable(), &format!("format = 1\n{KEYS}"));
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(10).await;
    site.redis[2].kill();
    assert!(!disk.try_write(5).await, "not acknowledged with a store away");
    site.redis[2].restart();
    let mut disk = Disk::connect_again(&server, "vda", disk).await;
    disk.write(10).await;
    server.stop();
    assert!(site.restored("vda") == disk.expected());
}
