//! That a restore works is proven before it is needed: by the tool, by the server, and what it reads stays meanwhile.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use std::path::{Path, PathBuf};

use hyper::Method;
use hyper::body::Bytes;
use serde_json::{Value, json};
use support::{Place, Server};
use tlog::admin_client::{AdminError, ask, ask_with};
use tlog_client::{Client, ClientOptions};
use tlog_crypto::blake2b_256;
use tlog_proto::{BlockIndex, VdiskId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn write(server: &Server, vdisk: &str, blocks: std::ops::Range<u64>) {
    let vdisk = VdiskId::new(vdisk).unwrap();
    let client = Client::connect(server.addr(), vdisk, ClientOptions::default()).await.unwrap();
    for index in blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![index as u8; 4096]).await.unwrap();
    }
    client.flush().await.unwrap();
    client.close().await;
}

async fn status(server: &Server) -> Value {
    serde_json::from_str(&ask(&server.admin(), Method::GET, "/status").await.unwrap()).unwrap()
}

async fn metrics(server: &Server) -> String {
    ask(&server.admin(), Method::GET, "/metrics").await.unwrap()
}

fn json_of(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// As `docs/restore.md` says it is made.
fn digest_of(image: &Path, block_size: usize) -> String {
    let image = std::fs::read(image).unwrap();
    let mut all = b"tlog disk 1\n".to_vec();
    all.extend((block_size as u32).to_le_bytes());
    for (index, block) in image.chunks(block_size).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            all.extend((index as u64).to_le_bytes());
            all.extend(blake2b_256(&[block, &vec![0; block_size - block.len()]]));
        }
    }
    blake2b_256(&[&all]).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files of stores whose bytes are other ones for a while.
struct Rotten(Vec<(PathBuf, Vec<u8>)>);

impl Rotten {
    /// The middle of every segment of a vdisk on these stores.
    fn on(place: &Place, vdisk: &str, stores: &[usize]) -> Self {
        let mut kept = Vec::new();
        for &store in stores {
            for entry in std::fs::read_dir(place.store(store).join(vdisk)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let mut rotten = bytes.clone();
                let used = rotten.iter().rposition(|byte| *byte != 0).unwrap();
                rotten[used / 4..used * 3 / 4].iter_mut().for_each(|byte| *byte ^= 0x55);
                std::fs::write(&path, rotten).unwrap();
                kept.push((path, bytes));
            }
        }
        Self(kept)
    }

    fn heal(self) {
        for (path, bytes) in self.0 {
            std::fs::write(path, bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn the_tool_proves_moments_beside_a_server_and_its_digest_is_that_of_the_restored_image() {
    let place = Place::new();
    let server = place.server(&["--flush-size", "10"]);
    write(&server, "vda", 0..40).await;
    let proven = place.tlog(&["verify", "vda", "--restore", "--json", "--aggregation", "2", "--at", "now"]);
    assert_eq!(proven.status.code(), Some(0), "{proven:?}");
    let report = json_of(&proven);
    assert_eq!(report["verdict"], "proven");
    let [newest, second] = [&report["proofs"][0], &report["proofs"][1]];
    assert_eq!((&newest["blocks"], &newest["aggregations_read"]), (&40.into(), &4.into()), "{report}");
    assert_eq!((&second["moment"]["aggregation"], &second["blocks"]), (&2.into(), &20.into()), "{report}");
    place.tlog_ok(&["restore", "vda", "-o", "newest.img"]);
    place.tlog_ok(&["restore", "vda", "-o", "second.img", "--aggregation", "2"]);
    assert_eq!(newest["digest"], digest_of(&place.path().join("newest.img"), 4096));
    assert_eq!(second["digest"], digest_of(&place.path().join("second.img"), 4096));
    let said = place.tlog_ok(&["verify", "vda", "--restore", "--rate", "1GiB"]);
    assert!(said.contains("can be restored: 160 KiB long, 40 blocks"), "{said}");
    assert!(said.contains(newest["digest"].as_str().unwrap()), "{said}");
    server.stop();
}

#[tokio::test]
async fn the_verdict_of_a_proof_follows_what_is_left_of_the_stores() {
    let place = Place::new();
    let server = place.server(&["--flush-size", "10"]);
    write(&server, "vda", 0..40).await;
    server.stop();
    std::fs::rename(place.store(0), place.path().join("away")).unwrap();
    let degraded = place.tlog(&["verify", "vda", "--restore"]);
    let said = String::from_utf8_lossy(&degraded.stdout).into_owned();
    assert_eq!(degraded.status.code(), Some(1), "{degraded:?}");
    assert!(said.contains("without file:tlog-data/store-0, out of reach or empty"), "{said}");

    let rotten = Rotten::on(&place, "vda", &[1, 2]);
    let lost = place.tlog(&["verify", "vda", "--restore", "--json"]);
    assert_eq!(lost.status.code(), Some(2), "{lost:?}");
    let report = json_of(&lost);
    assert_eq!((&report["verdict"], &report["proofs"][0]["verdict"]), (&"lost".into(), &"lost".into()));
    let error = report["proofs"][0]["error"].as_str().unwrap();
    assert!(error.contains("CANNOT BE RESTORED") && error.contains("tlog verify vda --deep"), "{error}");
    rotten.heal();
    std::fs::rename(place.path().join("away"), place.store(0)).unwrap();
    assert_eq!(place.tlog(&["verify", "vda", "--restore"]).status.code(), Some(0));

    // Neither proven nor lost.
    for arguments in [
        &["verify", "nothing", "--restore"][..],
        &["verify", "vda", "--restore", "--aggregation", "99"],
        &["verify", "vda", "--restore", "--key-file", "none"],
    ] {
        assert_eq!(place.tlog(arguments).status.code(), Some(3), "{arguments:?}");
    }
    for arguments in [&["verify", "vda", "--restore", "--deep"][..], &["verify", "vda", "--at", "now"]] {
        assert_eq!(place.tlog(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[tokio::test]
async fn the_server_proves_its_vdisks_by_itself_and_remembers_what_it_proved_when_it_starts_again() {
    let place = Place::new();
    let mut server = place.server_with_log(&["--verify-restore-every", "400ms", "--flush-size", "10"]);
    write(&server, "vda", 0..40).await;
    write(&server, "vdb", 0..10).await;
    let mut proven = Vec::new();
    while !(proven.contains(&("vda".to_owned(), 4)) && proven.contains(&("vdb".to_owned(), 1))) {
        let line = server.waits_for_log("proven that the vdisk can be restored");
        assert!(!line.contains("NOT PROVEN"), "{line}");
        proven = status(&server).await["restore"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|of| {
                Some((of["vdisk"].as_str()?.to_owned(), of["proof"]["last_aggregation"].as_u64()?))
            })
            .collect();
    }
    let shown = metrics(&server).await;
    for line in [
        "tlog_restore_proof_failing{vdisk=\"vda\"} 0",
        "tlog_restore_proofs_total{vdisk=\"vdb\"} ",
        "tlog_restore_proof_age_seconds{vdisk=\"vda\"} ",
        "tlog_restore_proven_timestamp_seconds{vdisk=\"vda\"} 1",
    ] {
        assert!(shown.contains(line), "no {line} in:\n{shown}");
    }
    server.stop();

    let server = place.server(&[]);
    let restore = status(&server).await["restore"].clone();
    assert_eq!((&restore[0]["vdisk"], &restore[0]["proof"]["blocks"]), (&"vda".into(), &40.into()));
    assert_eq!(restore[0]["proof"]["verdict"], "proven");
    assert!(restore[0]["proof_age_seconds"].as_f64().unwrap() > 0.0, "{restore}");
    // What is written now is not proven yet.
    let vda = VdiskId::new("vda").unwrap();
    let client = Client::connect(server.addr(), vda, ClientOptions::default()).await.unwrap();
    client.set(BlockIndex::new(0).unwrap(), vec![9; 4096]).await.unwrap();
    client.flush().await.unwrap();
    let restore = status(&server).await["restore"].clone();
    assert_eq!(restore[0]["behind_aggregations"], 1, "{restore}");
    assert!(restore[0]["behind_seconds"].as_f64().unwrap() > 0.0, "{restore}");
    // Asked for, it is proven at once.
    let report = ask_with(&server.admin(), Method::POST, "/vdisks/vda/prove", Bytes::new()).await.unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["verdict"], &report["last_aggregation"]), (&"proven".into(), &5.into()));
    assert_eq!(status(&server).await["restore"][0]["behind_aggregations"], 0);
    let listed = place.tlog_ok(&["vdisks", "--json"]);
    let listed: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&listed["proof"]["last_aggregation"], &listed["behind_aggregations"]),
        (&5.into(), &0.into())
    );
    let listed = place.tlog_ok(&["vdisks"]);
    assert!(listed.lines().any(|line| line.starts_with("vda ") && line.contains(" ago")), "{listed}");
    client.close().await;
    server.stop();

    place.tlog_ok(&["delete", "vda", "--yes"]);
    let server = place.server(&[]);
    let restore = status(&server).await["restore"].clone();
    assert_eq!((restore.as_array().unwrap().len(), &restore[0]["vdisk"]), (1, &"vdb".into()), "{restore}");
    server.stop();
}

#[tokio::test]
async fn stores_that_are_damaged_beyond_repair_fail_the_proof_until_they_are_as_they_were() {
    let place = Place::new();
    let server = place.server(&["--flush-size", "10"]);
    write(&server, "vda", 0..40).await;
    ask_with(&server.admin(), Method::POST, "/vdisks/vda/prove", Bytes::new()).await.unwrap();
    server.stop();
    let rotten = Rotten::on(&place, "vda", &[1, 3, 4]);

    let mut server = place.server_with_log(&["--verify-restore-every", "300ms"]);
    // A proof that is recent enough still counts as the last one.
    let line = server.waits_for_log("NOT PROVEN that the vdisk can be restored");
    assert!(line.contains("vda") && line.contains("CANNOT BE RESTORED"), "{line}");
    // Tried again by itself.
    server.waits_for_log("NOT PROVEN that the vdisk can be restored");
    let restore = status(&server).await["restore"][0].clone();
    assert_eq!(restore["proof"]["verdict"], "proven", "what was proven before stays: {restore}");
    assert_eq!(restore["failure"]["verdict"], "lost", "{restore}");
    assert!(restore["failure"]["attempts"].as_u64().unwrap() >= 1, "{restore}");
    let error = restore["failure"]["error"].as_str().unwrap();
    assert!(error.contains("vdisk vda") && error.contains("tlog verify vda --deep"), "{error}");
    let shown = metrics(&server).await;
    assert!(shown.contains("tlog_restore_proof_failing{vdisk=\"vda\"} 1"), "{shown}");
    assert!(shown.contains("tlog_restore_proof_failures_total{vdisk=\"vda\",verdict=\"lost\"}"), "{shown}");
    let asked = ask_with(&server.admin(), Method::POST, "/vdisks/vda/prove", Bytes::new()).await;
    assert!(matches!(&asked, Err(AdminError::Refused { status, .. }) if status.as_u16() == 500), "{asked:?}");
    server.stop();

    rotten.heal();
    let mut server = place.server_with_log(&["--verify-restore-every", "300ms"]);
    server.waits_for_log("it can be restored again");
    server.waits_for_log("proven that the vdisk can be restored");
    let restore = status(&server).await["restore"][0].clone();
    assert_eq!((&restore["failure"], &restore["proof"]["blocks"]), (&Value::Null, &40.into()), "{restore}");
    assert!(metrics(&server).await.contains("tlog_restore_proof_failing{vdisk=\"vda\"} 0"));
    server.stop();
}

#[tokio::test]
async fn a_server_that_is_proving_stops_at_once() {
    let place = Place::new();
    let server = place.server(&[]);
    write(&server, "vda", 0..50).await;
    server.stop();
    // At that rate it would take days.
    let arguments = ["--verify-restore-every", "200ms", "--verify-restore-rate", "1"];
    let server = place.server(&arguments);
    while status(&server).await["pins"].as_array().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let pinned = status(&server).await["pins"][0].clone();
    assert_eq!((&pinned["vdisk"], &pinned["from"]), (&"vda".into(), &1.into()), "{pinned}");
    let twice = ask_with(&server.admin(), Method::POST, "/vdisks/vda/prove", Bytes::new()).await.unwrap_err();
    assert!(twice.to_string().contains("is being made already"), "{twice}");
    server.stop();
}

#[tokio::test]
async fn whoever_reads_pins_history_renews_the_pin_and_lets_it_go() {
    let place = Place::new();
    let mut server = place.server_with_log(&["--flush-size", "10"]);
    write(&server, "vda", 0..40).await;
    let admin = server.admin();
    let ask = async |method: Method, path: &str, body: Value| {
        ask_with(&admin, method, path, Bytes::from(body.to_string())).await
    };
    let pins = "/vdisks/vda/pins";
    let granted = ask(Method::POST, pins, json!({"from": 3, "who": "a test", "seconds": 60})).await.unwrap();
    let granted: Value = serde_json::from_str(&granted).unwrap();
    assert_eq!(granted["first"], 3);
    let shown = status(&server).await["pins"].clone();
    assert_eq!((&shown[0]["who"], &shown[0]["from"]), (&"a test".into(), &3.into()), "{shown}");
    let of_pin = format!("{pins}/{}", granted["id"].as_str().unwrap());
    ask(Method::PUT, &of_pin, json!({"seconds": 600})).await.unwrap();
    assert!(status(&server).await["pins"][0]["ends_in_seconds"].as_f64().unwrap() > 500.0);
    ask(Method::DELETE, &of_pin, json!({})).await.unwrap();
    assert_eq!(status(&server).await["pins"], json!([]));
    let refused = |answer: Result<String, AdminError>| match answer.unwrap_err() {
        AdminError::Refused { status, .. } => status.as_u16(),
        other => panic!("{other}"),
    };
    assert_eq!(refused(ask(Method::PUT, &of_pin, json!({"seconds": 600})).await), 404);
    assert_eq!(refused(ask(Method::POST, pins, json!({"from": 3})).await), 400);
    assert_eq!(refused(ask(Method::POST, pins, json!({"from": 3, "who": "", "seconds": 9})).await), 400);

    // A page in a browser cannot send the tool's header, and gets nothing.
    let mut page = tokio::net::TcpStream::connect(&admin).await.unwrap();
    let body = r#"{"from":1,"who":"a page","seconds":60}"#;
    let request = format!("POST {pins} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    page.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    page.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");

    for (arguments, who) in [
        (&["restore", "vda", "-o", "disk.img"][..], "tlog restore, process"),
        (&["verify", "vda", "--restore"], "tlog verify --restore, process"),
        (&["verify", "vda", "--deep"], "tlog verify --deep, process"),
    ] {
        place.tlog_ok(arguments);
        loop {
            if server.waits_for_log("history is pinned").contains(who) {
                break;
            }
        }
        server.waits_for_log("a pin was let go");
    }
    assert_eq!(status(&server).await["pins"], json!([]));
    // A server that hangs does not keep anybody from restoring.
    server.pause();
    place.tlog_ok(&["restore", "vda", "-o", "again.img"]);
    server.kill();
}
