//! Writing goes on while stores are out, and they are brought up to date when they are back.

use std::time::Duration;

use tlog_testbed::RedisOptions;

use crate::site::{Disk, Site, stores_of, wait_for_store};

/// The bound on refilling; nothing here has more than a few megabytes.
const REFILLED: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_from_the_start_one_dying_and_coming_back_lose_nothing_that_was_acknowledged() {
    let site = Site::new();
    site.redis[3].kill();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(100).await;
    let out = wait_for_store(&server, "vda", 3, |store| store["state"] == "away").await;
    assert!(out["error"].as_str().unwrap().contains(&site.redis[3].address()), "{out}");
    assert!(out["out_since"].is_string() && out["missing"].as_u64() > Some(0), "{out}");

    // Comes back while blocks are written, and is filled.
    site.redis[3].restart();
    disk.write(100).await;
    wait_for_store(&server, "vda", 3, |store| store["state"] == "active" && store["missing"] == 0).await;

    // Another dies in the middle: the next acknowledgements do not wait for it.
    site.redis[0].kill();
    disk.slowest = Duration::ZERO;
    disk.write(200).await;
    println!("slowest acknowledgement after a store died: {:?}", disk.slowest);
    wait_for_store(&server, "vda", 0, |store| store["state"] == "away").await;
    site.redis[0].restart();
    disk.write(5).await;
    wait_for_store(&server, "vda", 0, |store| store["state"] == "active" && store["missing"] == 0).await;
    let said = site.wait_until_whole("vda", REFILLED);
    assert_eq!(said["verdict"], "whole");
    assert!(site.restored("vda") == disk.expected());
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_six_away_acknowledgements_wait_and_come_when_one_is_back() {
    let site = Site::with(6, &RedisOptions::durable(), "commit-timeout = \"60s\"");
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(10).await;
    site.redis[1].kill();
    site.redis[2].kill();
    let writing = tokio::spawn(async move {
        disk.write(20).await;
        disk
    });
    wait_for_store(&server, "vda", 1, |store| store["state"] == "away").await;
    wait_for_store(&server, "vda", 2, |store| store["state"] == "away").await;
    assert!(!writing.is_finished(), "four stores are not enough for an acknowledgement");
    site.redis[2].restart();
    let disk = writing.await.unwrap();
    site.redis[1].restart();
    site.wait_until_whole("vda", REFILLED);
    assert!(site.restored("vda") == disk.expected());
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_left_out_and_filled_when_it_goes_on() {
    let site = Site::new();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(50).await;
    site.redis[5].stop();
    // Many more than one lane keeps in flight.
    disk.write(500).await;
    wait_for_store(&server, "vda", 5, |store| store["state"] == "away").await;
    disk.write(50).await;
    site.redis[5].cont();
    wait_for_store(&server, "vda", 5, |store| store["state"] == "active" && store["missing"] == 0).await;
    site.wait_until_whole("vda", REFILLED);
    assert!(site.restored("vda") == disk.expected());
    server.stop();
}

/// Each way in which a store can stop taking writes, and be well again.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_or_read_only_or_refuses_the_password_is_left_out_and_said_why() {
    let site = Site::new();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(20).await;
    let full = (vec!["CONFIG", "SET", "maxmemory", "1"], vec!["CONFIG", "SET", "maxmemory", "0"], "full");
    let read_only = (vec!["REPLICAOF", "127.0.0.1", "1"], vec!["REPLICAOF", "NO", "ONE"], "no writes");
    let not_let_in = (
        vec!["ACL", "SETUSER", "default", "resetpass", ">secret", "-@all"],
        vec!["ACL", "SETUSER", "default", "nopass", "+@all", "~*"],
        "",
    );
    for (store, (breaking, mending, says)) in [(1, full), (2, read_only), (4, not_let_in)] {
        let redis = &site.redis[store];
        if store == 4 {
            // Whoever may still do everything mends it.
            redis.cli(&["ACL", "SETUSER", "mender", "on", ">pass", "+@all", "~*"]);
        }
        redis.cli(&breaking);
        disk.write(50).await;
        let out = wait_for_store(&server, "vda", store, |store| store["state"] == "away").await;
        let error = out["error"].as_str().unwrap();
        assert!(error.contains(says), "{error}");
        let mending = match store {
            4 => [&["--user", "mender", "--pass", "pass"], &mending[..]].concat(),
            _ => mending,
        };
        redis.cli(&mending);
        disk.write(10).await;
        wait_for_store(&server, "vda", store, |store| store["state"] == "active" && store["missing"] == 0)
            .await;
    }
    site.wait_until_whole("vda", REFILLED);
    assert!(site.restored("vda") == disk.expected());
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_restarted_empty_is_told_apart_filled_and_counted_again_also_while_nobody_writes() {
    let site = Site::new();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(60).await;
    let before = site.redis[4].cli(&["HGET", "tlog:{vda}:log", "identity"]);
    site.redis[4].restart_empty();
    // Nothing is written: the idle log notices by itself.
    let filled = wait_for_store(&server, "vda", 4, |store| {
        store["state"] == "active"
            && store["missing"] == 0
            && site.redis[4].cli(&["EXISTS", "tlog:{vda}:log"]) == "1"
    });
    filled.await;
    assert_ne!(site.redis[4].cli(&["HGET", "tlog:{vda}:log", "identity"]), before);
    site.wait_until_whole("vda", REFILLED);
    // The others alone are not needed: two of them may go now.
    site.redis[0].kill();
    site.redis[1].kill();
    assert!(site.restored("vda") == disk.expected());
    assert_eq!(stores_of(&server, "vda").await.len(), 6);
    drop(server);
}
