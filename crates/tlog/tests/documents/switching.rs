//! What a server answers who wants to switch to a slave.

use std::time::Duration;

use tlog_client::SlaveSyncError;
use tlog_proto::BlockIndex;

use crate::site::{Vdisk, until};
use crate::slave::{Site, connect, connect_to, slave_of, up_to_date};
use crate::support::Server;
use crate::writer::BLOCK;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_keep_the_slave_does_not_say_that_it_holds_everything() {
    let site = Site::new(2);
    let mut server = site.place.server_with_log(&["--slave-sync=false"]);
    let client = connect(&server).await;
    client.set(BlockIndex::new(1).unwrap(), vec![8; BLOCK]).await.unwrap();
    client.flush().await.unwrap();
    let answer = client.wait_nbd_slave_sync(LIMIT).await;
    assert!(answer.is_err(), "the slave is empty");
    server.waits_for_log("slave-sync off");
    assert_eq!(site.told()["state"], "blank");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vdisk_that_nobody_has_come_to_yet_has_the_slave_that_its_document_names() {
    let mut site = Site::new(2);
    site.documents.vdisk("another", "log");
    site.put();
    let server = site.place.server(&[]);
    let client = connect(&server).await;
    client.set(BlockIndex::new(1).unwrap(), vec![8; BLOCK]).await.unwrap();
    client.flush().await.unwrap();
    up_to_date(&server).await;
    // The store where the position is recorded hangs: whoever leaves the slave waits for it. Another vdisk comes meanwhile.
    site.slave[0].stop();
    client.set(BlockIndex::new(3).unwrap(), vec![8; BLOCK]).await.unwrap();
    client.close_after_flush().await.unwrap();
    until(&server, "it is applied", |status| slave_of(status)["position"]["sequence"] == 2).await;
    site.documents.vdisks.remove("a");
    site.put();
    until(&server, "the vdisk is gone", |status| status["documents"]["vdisks"] == 1).await;
    site.documents.vdisks.insert("b".to_owned(), Vdisk { cluster: "log", slave: Some("slave") });
    site.put();
    until(&server, "the vdisk is there", |status| status["documents"]["vdisks"] == 2).await;
    let client = connect_to(&server, "b").await;
    client.set(BlockIndex::new(1).unwrap(), vec![9; BLOCK]).await.unwrap();
    client.flush().await.unwrap();
    let early = client.wait_nbd_slave_sync(Duration::from_millis(300)).await;
    assert!(matches!(early, Err(SlaveSyncError::TimedOut { .. })), "{early:?}");
    site.slave[0].cont();
    client.wait_nbd_slave_sync(LIMIT).await.unwrap();
    until(&server, "it is stopped", |status| slave_of(status)["state"] == "stopped").await;
    assert_eq!(site.slave[1].cli(&["HLEN", "nondedup:b"]).trim(), "1");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_the_last_copy_of_a_disk_is_not_called_well_and_not_replaced_without_a_word() {
    let site = Site::new(2);
    let server = site.place.server(&[]);
    write(&server, 20).await;
    up_to_date(&server).await;
    server.stop();
    assert!(site.place.tlog(&["slave", "status", "a"]).status.success());
    let blocks = site.blocks();

    // The log is lost, and is begun anew.
    site.log.iter().for_each(|store| store.restart_empty());
    assert_eq!(site.told()["state"], "unknown");
    assert_eq!(site.place.tlog(&["slave", "status", "a"]).status.code(), Some(1));
    let server = site.place.server(&[]);
    write(&server, 3).await;
    server.stop();
    assert_eq!(site.told()["state"], "needs_resync");
    assert!(site.told()["lag"].is_null());
    let told = site.place.tlog(&["slave", "status", "a"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8(told.stdout).unwrap().contains("--discard"));
    let said = site.place.tlog_fails(&["slave", "resync", "a"]);
    assert!(said.contains("up to sequence 20 of 20") && said.contains("to sequence 3 of 20"), "{said}");
    assert!(said.contains("--discard"), "{said}");
    assert_eq!(site.blocks(), blocks);
    site.place.tlog_ok(&["slave", "resync", "a", "--discard"]);
    assert_eq!(site.blocks().len(), 3);
    assert_eq!(site.told()["state"], "filled");

    // Its stop may be forgotten.
    site.slave[0].cli(&["DEL", "tlog:slave:a", "tlog:last_slave_sync_seq:a"]);
    let said = site.place.tlog_fails(&["slave", "resync", "a"]);
    assert!(said.contains("--nobody-uses-it"), "{said}");
    site.place.tlog_ok(&["slave", "resync", "a", "--nobody-uses-it"]);
    assert_eq!(site.told()["state"], "filled");
}

/// Some blocks, each to a place of its own.
async fn write(server: &Server, blocks: u64) {
    let client = connect(server).await;
    for index in 0..blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![index as u8; BLOCK]).await.unwrap();
    }
    client.close_after_flush().await.unwrap();
}
