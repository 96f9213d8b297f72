//! A vdisk that goes on in format 2.

use tlog_flusher::format1::{GoingOnError, OpenError as Format1OpenError};
use tlog_flusher::{Log, OpenError};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, SessionId};

use crate::cluster::{Cluster, append, block, position, settings};

async fn written(data: usize, parity: usize, blocks: u64) -> Cluster {
    let cluster = Cluster::new(data, parity);
    let log = cluster.open().await;
    append(&log, 1..=blocks).await;
    log.close().await.unwrap();
    cluster
}

async fn durable(log: &Log, at: LogPosition) {
    let mut durability = log.durability();
    let state =
        durability.wait_for(|state| state.durable >= Some(at) || state.closed.is_some()).await.unwrap();
    assert_eq!(state.closed, None);
}

async fn write(log: &Log, generation: u64, sequences: std::ops::RangeInclusive<u64>) {
    let last = position(generation, *sequences.end());
    for sequence in sequences {
        log.append(block(generation, sequence, sequence)).await.unwrap();
    }
    log.flush().await.unwrap();
    durable(log, last).await;
}

/// What aggregation 1 follows.
async fn anchor(cluster: &Cluster) -> AggregationId {
    let survey = cluster.set.survey().await;
    let first = AggregationNumber(1);
    cluster.set.heads(&survey, first..=first).await[0].candidates[0].head.header.prev
}

#[tokio::test]
async fn the_first_aggregation_of_format_2_follows_the_last_of_format_1() {
    let cluster = written(4, 2, 8).await;
    let front = cluster.front();
    let log = cluster.open_format2().await.unwrap();
    let end = log.end();
    assert_eq!((end.generation, end.first, end.last), (Generation(1), Sequence(1), Some(Sequence(8))));
    assert_eq!(end.session, SessionId::UNKNOWN);
    assert_eq!(log.durability().borrow().durable, Some(position(1, 8)));
    assert_eq!(log.find(position(1, 5)).await.unwrap().unwrap().timestamp.0, 5, "what was before is found");
    write(&log, 1, 9..=11).await;
    assert_eq!(log.find(position(1, 10)).await.unwrap().unwrap().timestamp.0, 10);
    write(&log, 2, 1..=2).await;
    log.close().await.unwrap();
    assert_eq!(anchor(&cluster).await, front);

    let log = cluster.open_format2().await.unwrap();
    assert_eq!((log.end().generation, log.end().last), (Generation(2), Some(Sequence(2))));
    log.close().await.unwrap();
    // It is not asked for again, nor are its keys needed: the log says what it follows.
    let reads = cluster.chains(0).reads();
    let log = Log::open(cluster.set.clone(), cluster.vdisk_keys(), settings()).await.unwrap();
    assert_eq!(log.status().await.unwrap().committed, AggregationNumber(2));
    assert_eq!(cluster.chains(0).reads(), (reads.0 + 1, reads.1));
}

#[tokio::test]
async fn without_the_keys_a_log_is_not_founded_and_history_not_cut_off() {
    let cluster = written(4, 2, 8).await;
    let open = || Log::open(cluster.set.clone(), cluster.vdisk_keys(), settings());
    let error = open().await.unwrap_err();
    assert!(matches!(error, OpenError::GoingOn(GoingOnError::KeysMissing { .. })), "{error}");
    assert!(error.to_string().contains("set private-key and nonce"), "{error}");
    // Nothing was promised: format 1 can still be written.
    assert!(cluster.set.survey().await.identities().iter().all(Option::is_none));
    assert_eq!(cluster.open().await.end().last, Some(Sequence(8)));
    // Nor is the end guessed.
    let front = cluster.front();
    (0..3).for_each(|i| assert!(cluster.chains(i).remove_shard(front)));
    let error = cluster.open_format2().await.unwrap_err();
    assert!(matches!(error, OpenError::GoingOn(GoingOnError::End(_))), "{error}");
    // Too few lists can be read, though all stores answer for format 2.
    (0..2).for_each(|i| cluster.chains(i).set_down(true));
    let error = cluster.open_format2().await.unwrap_err();
    assert!(matches!(&error, OpenError::TooFewStores(e) if (e.counted, e.needed) == (4, 5)), "{error}");
    assert!(cluster.set.survey().await.identities().iter().all(Option::is_none));
}

#[tokio::test]
async fn there_is_no_way_back_once_it_was_opened_in_format_2() {
    let cluster = written(2, 1, 4).await;
    let log = cluster.open_format2().await.unwrap();
    log.close().await.unwrap();
    let error = cluster.try_open().await.unwrap_err();
    assert!(matches!(&error, Format1OpenError::Format2 { stores, .. } if stores.len() == 3), "{error}");
    assert!(error.to_string().contains("set format = 2"), "{error}");
    // Opened, and nothing written: it still goes on from format 1, and needs its keys.
    let error = Log::open(cluster.set.clone(), cluster.vdisk_keys(), settings()).await.unwrap_err();
    assert!(matches!(error, OpenError::GoingOn(GoingOnError::KeysMissing { .. })), "{error}");
    let log = cluster.open_format2().await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(4)));
    write(&log, 1, 5..=5).await;
    log.close().await.unwrap();
    assert_eq!(anchor(&cluster).await, cluster.front());
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_first_aggregation_is_kept_even_if_the_chain_then_seems_to_end_elsewhere() {
    let cluster = written(4, 2, 4).await;
    let front = cluster.front();
    // A writer of format 1 died: four stores have its last aggregation, one of which is out of reach at first.
    let torn = cluster.encode(front, 5, 99);
    cluster.store(&torn, &[0, 1, 2, 3]).await;
    cluster.set_down(3, true);
    let log = cluster.open_format2().await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(4)));
    write(&log, 1, 5..=6).await;
    // Dropped: nobody is told what is committed. Then all stores are there, and the torn one could be read.
    drop(log);
    cluster.set_down(3, false);
    let log = cluster.open_format2().await.unwrap();
    assert_eq!(log.end().last, Some(Sequence(6)));
    assert_eq!(log.find(position(1, 5)).await.unwrap().unwrap().timestamp.0, 5);
    log.close().await.unwrap();
    assert_eq!(anchor(&cluster).await, front);
}

#[tokio::test]
async fn a_new_vdisk_costs_one_list_of_each_store_and_follows_nothing() {
    let cluster = Cluster::new(4, 2);
    let log = Log::open(cluster.set.clone(), cluster.vdisk_keys(), settings()).await.unwrap();
    write(&log, 1, 1..=2).await;
    log.close().await.unwrap();
    assert_eq!(anchor(&cluster).await, AggregationId::BEFORE_FIRST);
    assert!((0..6).all(|i| cluster.chains(i).reads() == (1, 0)));
}

#[tokio::test]
async fn a_chain_that_holds_only_what_was_never_acknowledged_is_nothing_to_go_on_from() {
    let cluster = Cluster::new(4, 2);
    let torn = cluster.encode(AggregationId::BEFORE_FIRST, 1, 1);
    cluster.store(&torn, &[2]).await;
    let log = cluster.open_format2().await.unwrap();
    assert_eq!(log.end().last, None);
    write(&log, 1, 7..=8).await;
    assert_eq!(anchor(&cluster).await, AggregationId::BEFORE_FIRST);
}
