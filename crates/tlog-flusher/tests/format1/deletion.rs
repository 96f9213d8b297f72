//! Deleting logs of format 1.

use tlog_codec::format1;
use tlog_flusher::format1::{DeleteError, Keys, delete};
use tlog_proto::AggregationId;

use crate::cluster::{Cluster, append, keys};

async fn written(cluster: &Cluster, blocks: u64) {
    let log = cluster.open().await;
    append(&log, 1..=blocks).await;
    log.close().await.unwrap();
}

fn assert_gone(cluster: &Cluster, shards_left: usize) {
    for i in 0..cluster.memory.len() {
        assert_eq!(cluster.chains(i).shard_count(), shards_left, "store {i}");
        assert!(cluster.chains(i).list(&cluster.vdisk).is_empty());
    }
}

#[tokio::test]
async fn every_shard_and_list_of_the_vdisk_goes_and_nothing_else() {
    let cluster = Cluster::new(4, 2);
    let other = Cluster::of("other", cluster.memory.clone(), cluster.redundancy);
    written(&other, 6).await;
    written(&cluster, 30).await;
    // A writer died over it, and the other vdisk's newest has come into a list.
    let torn = cluster.encode(cluster.front(), 31, 31);
    cluster.store(&torn, &[3]).await;
    let stray = [cluster.chains(5).list(&cluster.vdisk), vec![other.front()]].concat();
    cluster.chains(5).set_list(&cluster.vdisk, stray);
    let mut last = None;
    let report = delete(&cluster.set, &keys(), |progress| last = Some(progress)).await.unwrap();
    assert_eq!((report.aggregations, last.unwrap().removed), (11, 11));
    assert_gone(&cluster, 2);
    assert_eq!(other.content().await.len(), 6);
    assert_eq!(delete(&cluster.set, &keys(), |_| {}).await.unwrap().aggregations, 0);
    assert_eq!(cluster.open().await.end().last, None);
}

#[tokio::test]
async fn a_deletion_that_stops_anywhere_is_finished_by_another_one() {
    for stop_at in 0..10 {
        for store in [0, 3, 5] {
            let cluster = Cluster::new(4, 2);
            written(&cluster, 30).await;
            let stopped = delete(&cluster.set, &keys(), |progress| {
                if (progress.found, progress.removed) == (10, stop_at) {
                    cluster.chains(store).set_down(true);
                }
            })
            .await;
            // The last aggregation is read before the walk is told of as over, so that stopping at 0 may be in the walk.
            let error = stopped.unwrap_err();
            assert!(matches!(error, DeleteError::Store(_) | DeleteError::Unreachable(_)), "{error}");
            let error = delete(&cluster.set, &keys(), |_| {}).await.unwrap_err();
            assert!(matches!(error, DeleteError::TooFewStores(_)), "{error}");
            cluster.chains(store).set_down(false);
            delete(&cluster.set, &keys(), |_| {}).await.unwrap();
            assert_gone(&cluster, 0);
        }
    }
}

#[tokio::test]
async fn under_a_wrong_key_nothing_is_deleted() {
    let cluster = Cluster::new(2, 1);
    written(&cluster, 6).await;
    let wrong = Keys::new(&[3; 32], "37b8e8a308c354048d245f6d").unwrap();
    let error = delete(&cluster.set, &wrong, |_| {}).await.unwrap_err();
    assert!(matches!(error, DeleteError::Key(_)), "{error}");
    assert_eq!(cluster.content().await.len(), 6);
    // One that somebody sealed under another key and wrote into the list keeps nobody from deleting the rest.
    let stray = format1::split(&wrong.encrypter().encrypt(b"something"), cluster.redundancy);
    cluster.store(&stray, &[0, 1, 2]).await;
    let report = delete(&cluster.set, &keys(), |_| {}).await.unwrap();
    assert_eq!((report.aggregations, report.broken[0].id), (2, stray.id));
    assert_gone(&cluster, 1);
}

#[tokio::test]
async fn where_the_chain_is_broken_what_can_be_found_goes_and_the_place_is_told() {
    let cluster = Cluster::new(2, 1);
    written(&cluster, 12).await;
    let list = cluster.chains(0).list(&cluster.vdisk);
    for store in 0..2 {
        assert!(cluster.chains(store).remove_shard(list[2]));
    }
    let report = delete(&cluster.set, &keys(), |_| {}).await.unwrap();
    assert_eq!((report.broken[0].id, report.aggregations), (list[2], 4), "the list names what is behind it");
    assert_gone(&cluster, 0);
    assert_ne!(list[0], AggregationId::BEFORE_FIRST);
}
