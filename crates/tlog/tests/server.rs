//! The real `tlog-server`: starting, stopping, its key, its locks and its admin endpoint.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use hyper::Method;
use serde_json::Value;
use support::{Place, Server};
use tlog::admin_client::{AdminError, ask};
use tlog_client::{Client, ClientOptions, Event};
use tlog_proto::{BlockIndex, Sequence, VdiskId};

async fn connect(server: &Server) -> Client {
    let vdisk = VdiskId::new("vda").unwrap();
    Client::connect(server.addr(), vdisk, ClientOptions::default()).await.unwrap()
}

async fn send(client: &Client, blocks: u64) {
    for index in 0..blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![index as u8; 4096]).await.unwrap();
    }
}

async fn status(server: &Server) -> Value {
    let text = ask(&server.admin(), Method::GET, "/status").await.unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_server_told_to_stop_makes_everything_durable_and_says_so() {
    for signal in ["-TERM", "-INT"] {
        let place = Place::new();
        let server = place.server(&[]);
        let client = connect(&server).await;
        // Fewer than an aggregation, so that only the shutdown flushes them.
        send(&client, 7).await;
        let mut events = client.events();
        let last = client.set(BlockIndex::new(7).unwrap(), vec![7; 4096]).await.unwrap();
        while !matches!(events.next().await.unwrap(), Event::Received(Sequence(8))) {}
        server.signal(signal);
        let (ended, durable) = tokio::join!(tokio::task::spawn_blocking(|| server.wait()), last);
        let (exit, said) = ended.unwrap();
        assert_eq!((exit.code(), said.as_str()), (Some(0), "stopped, everything is durable\n"));
        assert!(durable.is_ok(), "{durable:?}");
        let server = place.server(&[]);
        assert_eq!(connect(&server).await.last_flushed_at_connect().map(|sequence| sequence.0), Some(8));
    }
}

#[tokio::test]
async fn what_a_killed_server_acknowledged_is_there_when_it_starts_again() {
    let place = Place::new();
    let server = place.server(&["--flush-size", "5"]);
    let client = connect(&server).await;
    send(&client, 23).await;
    client.flush().await.unwrap();
    server.kill();
    let server = place.server(&[]);
    assert_eq!(connect(&server).await.last_flushed_at_connect().map(|sequence| sequence.0), Some(23));
}

#[tokio::test]
async fn the_admin_endpoint_shows_health_metrics_and_status() {
    let place = Place::new();
    let server = place.server(&["--server-id", "server-7"]);
    let client = connect(&server).await;
    send(&client, 25).await;
    client.flush().await.unwrap();
    let admin = server.admin();
    let get = async |path: &str| ask(&admin, Method::GET, path).await.unwrap();
    assert_eq!(get("/healthz").await, "ok\n");
    assert_eq!(get("/readyz").await, "ready\n");
    let metrics = get("/metrics").await;
    for line in [
        "tlog_build_info{version=",
        "tlog_log_aggregations_committed_total{vdisk=\"vda\"} 1",
        "tlog_log_blocks_committed_total{vdisk=\"vda\"} 25",
        "tlog_server_connections 1",
        "tlog_log_commit_seconds_bucket{le=",
    ] {
        assert!(metrics.contains(line), "no {line} in:\n{metrics}");
    }
    let status = status(&server).await;
    assert_eq!(status["server_id"], "server-7");
    assert_eq!(status["redundancy"], "4+2, write quorum 5");
    let vdisk = &status["vdisks"][0];
    assert_eq!((&vdisk["vdisk"], &vdisk["durable"]["sequence"]), (&"vda".into(), &25.into()));
    assert_eq!(vdisk["log"]["stores"].as_array().unwrap().len(), 6);
    assert_eq!(vdisk["log"]["losses_survived"], 2, "{vdisk}");
    server.stop();
    assert!(matches!(ask(&admin, Method::GET, "/healthz").await, Err(AdminError::Connect { .. })));
}

#[tokio::test]
async fn a_second_server_on_the_same_stores_is_refused_and_the_first_named() {
    let place = Place::new();
    let server = place.server(&[]);
    let said = place.server_fails(&[]);
    assert!(said.contains("in use by another process"), "{said}");
    assert!(said.contains(&format!("tlog-server on {}", server.address)), "{said}");
    assert!(said.contains(&server.admin()), "{said}");
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() {
    let place = Place::new();
    for (arguments, says) in [
        (&["--write-quorum", "4"][..], "it must be from 5 to 6"),
        (&["--storage", "file:a"], "need 6; add 5"),
        (&["--storage", "file:a,file:b", "-k1", "-m1"], "tlog keygen -o tlog-data/tlog.key"),
        (&["--key-file", "none"], "tlog keygen -o none"),
        (&["-c", "none.toml"], "none.toml cannot be read"),
        (&["--admin-listen", "192.0.2.1:1"], "cannot listen on 192.0.2.1:1"),
    ] {
        let said = place.server_fails(arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert!(!place.path().join("tlog-data").exists(), "a refused start leaves nothing behind");
    let server = place.server(&[]);
    let taken = server.addr();
    let said = place.server_fails(&["--listen", &taken, "--data-dir", "other"]);
    assert!(said.contains(&format!("cannot listen on {taken}")), "{said}");
}

#[tokio::test]
async fn a_lost_key_is_not_replaced_and_the_server_does_not_start() {
    let place = Place::new();
    let server = place.server(&[]);
    let client = connect(&server).await;
    send(&client, 1).await;
    client.flush().await.unwrap();
    server.stop();
    std::fs::rename(place.path().join("tlog-data/tlog.key"), place.path().join("kept.key")).unwrap();
    let said = place.server_fails(&[]);
    assert!(said.contains("a new key would not help"), "{said}");
    place.server(&["--key-file", "kept.key"]).stop();
}

#[tokio::test]
async fn a_scrub_through_the_running_server_fills_a_wiped_store() {
    let place = Place::new();
    let server = place.server(&[]);
    let client = connect(&server).await;
    send(&client, 60).await;
    client.flush().await.unwrap();
    client.close().await;
    let said = place.tlog_ok(&["scrub", "vda"]);
    assert!(said.contains("every store holds every shard"), "{said}");
    server.stop();

    std::fs::remove_dir_all(place.store(2)).unwrap();
    let server = place.server(&[]);
    let report: Value = serde_json::from_str(&place.tlog_ok(&["scrub", "vda", "--json"])).unwrap();
    assert_eq!((&report["whole"], &report["aggregations"]), (&true.into(), &3.into()), "{report}");
    assert_eq!(report["filled_stores"], serde_json::json!(["file:tlog-data/store-2"]), "{report}");
    let said = place.tlog_fails(&["scrub", "nothing"]);
    assert!(said.contains("no store has a log of vdisk nothing"), "{said}");
    server.stop();
}

#[tokio::test]
async fn a_scrub_without_a_server_fills_a_wiped_store() {
    let place = Place::new();
    let said = place.tlog_fails(&["scrub", "vda"]);
    assert!(said.contains("no store has a log of vdisk vda (looked in file:tlog-data/store-0"), "{said}");
    assert!(!place.path().join("tlog-data").exists());
    let server = place.server(&[]);
    let client = connect(&server).await;
    send(&client, 60).await;
    client.flush().await.unwrap();
    server.stop();
    std::fs::remove_dir_all(place.store(5)).unwrap();
    let said = place.tlog_ok(&["scrub", "vda"]);
    assert!(said.contains("store-5: came back empty, and was filled"), "{said}");
    let report: Value = serde_json::from_str(&place.tlog_ok(&["scrub", "vda", "--json"])).unwrap();
    assert_eq!((&report["whole"], &report["filled_stores"]), (&true.into(), &serde_json::json!([])));
}

#[test]
fn a_server_without_admin_endpoint_is_named_by_a_scrub() {
    let place = Place::new();
    let server = place.server_without_admin();
    let said = place.tlog_fails(&["scrub", "vda"]);
    assert!(
        said.contains(&format!("tlog-server on {}), which has no admin endpoint", server.address)),
        "{said}"
    );
    assert!(said.contains("--admin-listen"), "{said}");
    server.stop();
}

#[tokio::test]
async fn vdisks_of_the_embedded_store_are_listed_beside_a_server_and_deleted_when_it_has_stopped() {
    let place = Place::new();
    let server = place.server(&[]);
    let client = connect(&server).await;
    send(&client, 10).await;
    client.flush().await.unwrap();
    let listed = place.tlog_ok(&["vdisks"]);
    assert!(listed.lines().any(|line| line.starts_with("vda ") && line.ends_with("6/6")), "{listed}");
    let said = place.tlog_fails(&["delete", "vda", "--yes"]);
    assert!(said.contains(&format!("tlog-server on {}", server.address)), "{said}");
    server.stop();
    let said = place.tlog_fails(&["delete", "vdb", "--yes"]);
    assert!(said.contains("no store that answers has a log of vdisk vdb"), "{said}");
    let said = place.tlog_ok(&["delete", "vda", "--yes", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["vdisk"], &said["stores"]), (&"vda".into(), &6.into()));
    assert_eq!(place.tlog_ok(&["vdisks", "--json"]), "");
    for store in 0..6 {
        assert!(!place.store(store).join("vda").exists());
    }
}

#[tokio::test]
async fn a_directory_store_is_replaced_while_the_server_runs() {
    let place = Place::new();
    let server = place.server(&["--check-stores-every", "50ms"]);
    let client = connect(&server).await;
    send(&client, 60).await;
    client.flush().await.unwrap();
    let old = format!("file:{}", place.store(3).display());
    let unknown = place.tlog_fails(&["store", "replace", "--all", "file:/nowhere", "file:new"]);
    assert!(unknown.contains("is not one of the stores, which are file:"), "{unknown}");
    let relative = "file:tlog-data/store-3";
    let said = place.tlog_ok(&["store", "replace", "--all", relative, "file:new-disk"]);
    assert!(said.contains("vdisk vda: filled"), "{said} ({old})");
    send(&client, 10).await;
    client.flush().await.unwrap();
    server.stop();
    std::fs::remove_dir_all(place.store(3)).unwrap();
    std::fs::rename(place.path().join("new-disk"), place.store(3)).unwrap();
    place.tlog_ok(&["verify", "vda", "--deep"]);
}
