//! What an operator does with logs on Redis servers: list, scrub, replace, delete.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tlog_testbed::{RedisOptions, RedisProcess};

use crate::site::{Disk, Site, wait_for_store};

const FILLED: Duration = Duration::from_secs(60);

async fn written(site: &Site, vdisks: &[&str]) -> Vec<Disk> {
    let server = site.serve();
    let mut disks = Vec::new();
    for vdisk in vdisks {
        let mut disk = Disk::connect(&server, vdisk).await;
        disk.write(50).await;
        disks.push(disk);
    }
    server.stop();
    disks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_replaced_for_every_vdisk_while_the_server_runs() {
    let site = Site::new();
    let server = site.serve();
    let admin = server.admin();
    let mut disks = Vec::new();
    for vdisk in ["vda", "vdb"] {
        let mut disk = Disk::connect(&server, vdisk).await;
        disk.write(50).await;
        disks.push(disk);
    }
    site.redis[2].kill();
    let new = RedisProcess::start(RedisOptions::durable());
    let (old, to) = (site.redis[2].address(), new.address());
    let said =
        site.place.tlog_ok(&["store", "replace", "--all", &old, &to, "--json", "--admin-listen", &admin]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["vdisks"].as_array().unwrap().len(), 2);
    let again = site.place.tlog_ok(&["store", "replace", "vda", &old, &to, "--admin-listen", &admin]);
    assert!(again.contains("vdisk vda: filled"), "{again}");
    for disk in &mut disks {
        disk.write(25).await;
    }
    for vdisk in ["vda", "vdb"] {
        let store = wait_for_store(&server, vdisk, 2, |store| store["state"] == "active").await;
        assert!(store["address"].as_str().unwrap().contains(&to), "{store}");
    }
    server.stop();
    let mut addresses = site.redis.addresses();
    addresses[2] = to;
    site.write_settings(&addresses, "");
    for (vdisk, disk) in ["vda", "vdb"].iter().zip(&disks) {
        site.wait_until_whole(vdisk, FILLED);
        assert!(site.restored(vdisk) == disk.expected());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_lost_for_good_are_replaced_by_the_operators_word_and_the_log_is_written_on() {
    let site = Site::new();
    let disks = written(&site, &["vda"]).await;
    site.wait_until_whole("vda", FILLED);
    site.redis[0].kill();
    site.redis[5].kill();
    let new = [RedisProcess::start(RedisOptions::durable()), RedisProcess::start(RedisOptions::durable())];
    let (lost, to) =
        ([site.redis[0].address(), site.redis[5].address()], [new[0].address(), new[1].address()]);
    let refused = site.place.tlog_fails(&["store", "replace", "--all", &lost[0], &to[0], &lost[1], &to[1]]);
    assert!(refused.contains("--offline"), "{refused}");
    let arguments = ["store", "replace", "--all", &lost[0], &to[0], &lost[1], &to[1], "--offline"];
    let said = site.place.tlog_ok(&arguments);
    assert!(said.contains("vdisk vda: filled"), "{said}");
    assert!(site.place.tlog_ok(&arguments).contains("vdisk vda: filled"), "the same again does no harm");
    let mut addresses = site.redis.addresses();
    (addresses[0], addresses[5]) = (to[0].clone(), to[1].clone());
    site.write_settings(&addresses, "");
    site.wait_until_whole("vda", FILLED);
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vdb").await;
    disk.write(10).await;
    server.stop();
    // Any two others may go now.
    site.redis[2].kill();
    site.redis[3].kill();
    assert!(site.restored("vda") == disks[0].expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_were_lost_or_rot_are_put_back_by_a_scrub_and_by_the_server_itself() {
    let site = Site::new();
    let disks = written(&site, &["vda"]).await;
    site.wait_until_whole("vda", FILLED);
    site.redis[1].cli(&["DEL", "tlog:{vda}:s:3", "tlog:{vda}:s:7"]);
    site.redis[4].cli(&["SETRANGE", "tlog:{vda}:s:5", "150", "rotten"]);
    let verdict = site.place.tlog(&["verify", "vda", "--deep"]);
    assert_eq!(verdict.status.code(), Some(1), "degraded: {verdict:?}");
    let report: Value =
        serde_json::from_str(&site.place.tlog_ok(&["scrub", "vda", "--json", "--offline", "--rate", "1GiB"]))
            .unwrap();
    assert_eq!(report["stores"][1]["missing"], serde_json::json!([[3, 3], [7, 7]]));
    assert_eq!(report["stores"][4]["damaged"], serde_json::json!([[5, 5]]));
    assert_eq!(report["whole"], true);
    site.place.tlog_ok(&["verify", "vda", "--deep"]);

    site.redis[2].cli(&["DEL", "tlog:{vda}:s:1"]);
    let server = site.place.server(&["--scrub-interval", "50ms"]);
    let began = std::time::Instant::now();
    while site.redis[2].cli(&["EXISTS", "tlog:{vda}:s:1"]) == "0" {
        assert!(began.elapsed() < FILLED);
    }
    server.stop();
    assert!(site.restored("vda") == disks[0].expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vdisk_is_deleted_from_every_store_by_its_typed_id_and_the_others_stay() {
    let site = Site::new();
    let disks = written(&site, &["vda", "vdb"]).await;
    let delete = |typed: &str| {
        let mut child = site.place.tlog_begin_with(&["delete", "vda"], Stdio::piped());
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert_eq!(delete("vdb\n").status.code(), Some(1));
    site.redis[3].kill();
    let output = site.place.tlog(&["delete", "vda", "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(&site.redis[3].address()), "{said}");
    site.redis[3].restart();
    let deleted = delete("vda\n");
    assert!(deleted.status.success(), "{deleted:?}");
    for redis in site.redis.iter() {
        assert_eq!(redis.cli(&["KEYS", "tlog:{vda}*"]), "");
    }
    let listed = site.place.tlog_ok(&["vdisks", "--json"]);
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["vdisk"], &listed[0]["stores_with_log"]), (&"vdb".into(), &6.into()));
    assert!(site.restored("vdb") == disks[1].expected());
    let said = site.place.tlog_fails(&["delete", "vda", "--yes"]);
    assert!(said.contains("no store that answers has a log of vdisk vda"), "{said}");
    // A new log of that name begins at its beginning.
    let disks = written(&site, &["vda"]).await;
    assert!(site.restored("vda") == disks[0].expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vdisk_deleted_under_a_running_server_is_closed_at_once_and_can_begin_anew() {
    let site = Site::new();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(20).await;
    site.place.tlog_ok(&["delete", "vda", "--yes"]);
    let began = std::time::Instant::now();
    assert!(!disk.try_write(5).await);
    // Far below the time that an aggregation may take to be committed.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    let mut disk = Disk::connect_again_empty(&server, "vda").await;
    disk.write(20).await;
    server.stop();
    assert!(site.restored("vda") == disk.expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_do_not_answer_are_named_by_a_listing() {
    let site = Site::new();
    written(&site, &["vda"]).await;
    site.redis[0].kill();
    let output = site.place.tlog(&["vdisks"]);
    assert!(output.status.success(), "five of six know of every vdisk: {output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&site.redis[0].address()));
    site.redis.iter().for_each(RedisProcess::kill);
    let output = site.place.tlog(&["vdisks"]);
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_cannot_be_given_a_store_that_has_another_place_by_whatever_name() {
    let site = Site::new();
    let server = site.serve();
    let admin = server.admin();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(25).await;
    let [old, other] = [site.redis[2].address(), site.redis[4].address()];
    let replace = |new: &str| {
        site.place.tlog_fails(&["store", "replace", "--all", &old, new, "--admin-listen", &admin])
    };
    let said = replace(&other);
    assert!(said.contains("is one of the stores already"), "{said}");
    // The same server under another name: only its identity tells.
    let twin = other.replace("127.0.0.1", "localhost");
    let said = replace(&twin);
    assert!(said.contains(&format!("localhost:{}/0 is the same store as", site.redis[4].port())), "{said}");
    disk.write(25).await;
    wait_for_store(&server, "vda", 2, |store| store["state"] == "active").await;
    server.stop();
    site.wait_until_whole("vda", FILLED);
    assert!(site.restored("vda") == disk.expected());
}
