//! What a server answers who wants to switch to a slave.

use std::time::Duration;

use tlog_client::SlaveSyncError;
use tlog_proto::BlockIndex;

use crate::site::{Vdisk, until};
use crate::slave::{Site, connect, connect_to, slave_of, up_to_date};
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
