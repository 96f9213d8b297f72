//! What is written, and when it is acknowledged.

use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use tlog_codec::format1;
use tlog_flusher::format1::{Format1Log, Keys, OpenError};
use tlog_flusher::{CloseReason, LogEnd, LogSettings};
use tlog_proto::{Aggregation, AggregationId, Generation, Sequence, SessionId};
use tlog_store::LinkStep;

use crate::cluster::{Cluster, append, block, durable, keys, position, settings};

#[tokio::test]
async fn what_is_written_is_what_existing_readers_read() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    assert_eq!(log.end(), LogEnd::default());
    append(&log, 1..=20).await;
    log.close().await.unwrap();

    let all = cluster.aggregations(cluster.front()).await;
    assert_eq!(all.len(), 7, "three blocks each");
    assert_eq!(cluster.chains(0).shard_count(), 7);
    let mut prev = AggregationId::BEFORE_FIRST;
    let mut ids = Vec::new();
    for aggregation in &all {
        assert_eq!(aggregation.name, "The Go Tlog");
        assert_eq!((&aggregation.vdisk_id, &aggregation.prev[..]), (&cluster.vdisk, &prev.0[..]));
        assert!(aggregation.timestamp.0 > 1_500_000_000_000_000_000, "nanoseconds");
        // Every shard on its store is what encoding it again makes, under the hash of the ciphertext.
        let again = format1::encode(aggregation, keys().encrypter(), cluster.redundancy);
        for (i, shard) in again.shards.iter().enumerate() {
            assert_eq!(cluster.chains(i).shard(again.id).as_ref(), Some(shard));
        }
        prev = again.id;
        ids.insert(0, again.id);
    }
    for i in 0..6 {
        assert_eq!(cluster.chains(i).list(&cluster.vdisk), ids[..5], "the newest five, newest first");
    }
    let sequences: Vec<u64> = cluster.content().await.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_of_an_existing_server_is_gone_on_with() {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden"));
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tlog-codec/tests/golden/v1"));
    for folder in [own, shared] {
        if !folder.join("aggregation.bin").exists() {
            eprintln!("skipped: no recorded bytes in {}", folder.display());
            continue;
        }
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let like = Cluster::new(4, 2);
        let cluster = Cluster::of("myimg", like.memory, like.redundancy);
        let recorded = Aggregation::decode(&read("aggregation.bin")).unwrap();
        let pieces = (0..6).map(|i| read(&format!("piece_{i}.bin")).into()).collect();
        let id = format1::split(&read("aggregation.encrypted.bin"), cluster.redundancy).id;
        cluster.store(&format1::Encoded { id, shards: pieces }, &[0, 1, 2, 3, 4, 5]).await;

        let log = cluster.open().await;
        let end = log.end();
        assert_eq!((end.generation, end.first, end.last), (Generation(1), Sequence(1), Some(Sequence(3))));
        assert_eq!(end.session, SessionId::UNKNOWN);
        append(&log, 4..=4).await;
        log.close().await.unwrap();
        let all = cluster.aggregations(cluster.front()).await;
        assert_eq!((&all[0], all.len(), &all[1].prev[..]), (&recorded, 2, &id.0[..]));
        // Every field is where the recorded message has it: ours differs from it in values alone.
        let mut ours = BytesMut::new();
        let (timestamp, blocks) = (recorded.timestamp, recorded.blocks.clone());
        Aggregation { timestamp, blocks, prev: recorded.prev.clone(), ..all[1].clone() }
            .encode_into(&mut ours);
        assert_eq!(ours[..], read("aggregation.bin"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_every_store_has_it() {
    for after in [LinkStep::Nothing, LinkStep::Shard, LinkStep::List, LinkStep::Trim] {
        let cluster = Cluster::new(4, 2);
        let log = cluster.open().await;
        append(&log, 1..=3).await;
        durable(&log, position(1, 3)).await.unwrap();

        // Three failures in a row are made up for.
        cluster.chains(4).fail_appends(3, after);
        append(&log, 4..=6).await;
        durable(&log, position(1, 6)).await.unwrap();
        assert_eq!((cluster.chains(4).appends(), cluster.chains(3).appends()), (5, 2));
        assert_eq!(cluster.front(), cluster.chains(0).list(&cluster.vdisk)[0]);

        // Four are not.
        cluster.chains(4).fail_appends(4, after);
        append(&log, 7..=9).await;
        let why = durable(&log, position(1, 9)).await.unwrap_err();
        assert!(why.contains("memory:4") && why.contains("1 did not take it"), "{why}");
        assert_eq!(log.durability().borrow().durable, Some(position(1, 6)));
        let error = log.append(block(1, 10, 10)).await.unwrap_err();
        assert!(matches!(error.0, CloseReason::Failed(_)));
        assert_eq!(log.close().await.unwrap_err(), error);
        assert!(log.status().await.is_none());

        // Opened again, what most stores have is settled on all of them, and nothing is in the way.
        let log = cluster.open().await;
        assert_eq!(log.end().last, Some(Sequence(9)), "{after:?}");
        append(&log, 10..=10).await;
        log.close().await.unwrap();
        let sequences: Vec<u64> = cluster.content().await.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, (1..=10).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_that_holds_up_writing_is_shown() {
    let cluster = Cluster::new(2, 1);
    let log = cluster.open().await;
    cluster.chains(1).fail_appends(2, LinkStep::Nothing);
    append(&log, 1..=3).await;
    let errors = async || {
        let status = log.status().await.unwrap();
        (status.in_flight, status.stores.into_iter().map(|store| store.error.is_some()).collect::<Vec<_>>())
    };
    while errors().await.1 != [false, true, false] {
        tokio::task::yield_now().await;
    }
    assert!(errors().await.0);
    durable(&log, position(1, 3)).await.unwrap();
    assert_eq!(errors().await, (false, vec![false; 3]));
}

#[tokio::test(start_paused = true)]
async fn blocks_are_flushed_when_they_are_old_or_on_request_and_one_aggregation_after_the_other() {
    let cluster = Cluster::new(2, 1);
    let settings = LogSettings { max_age: Duration::from_secs(25), ..settings() };
    let log = Format1Log::open(cluster.set.clone(), keys(), settings).await.unwrap();
    append(&log, 1..=2).await;
    assert_eq!(log.status().await.unwrap().waiting_blocks, 2);
    let began = tokio::time::Instant::now();
    durable(&log, position(1, 2)).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(25));
    append(&log, 3..=3).await;
    log.flush().await.unwrap();
    durable(&log, position(1, 3)).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(25));
    let status = log.status().await.unwrap();
    assert_eq!((status.stored, status.in_flight, status.losses_survived), (2, false, 1));
    assert_eq!(status.newest, Some(cluster.front()));
    log.close().await.unwrap();
    log.close().await.unwrap();
}

#[tokio::test]
async fn memory_for_what_is_not_durable_is_bounded() {
    let cluster = Cluster::new(2, 1);
    let settings = LogSettings { max_unflushed_bytes: 900, max_blocks: 100, ..settings() };
    let log = Format1Log::open(cluster.set.clone(), keys(), settings).await.unwrap();
    // Each takes 256 + 32 bytes, so that the fourth waits for what it makes flush.
    append(&log, 1..=50).await;
    log.close().await.unwrap();
    assert_eq!(cluster.content().await.len(), 50);
    assert!(cluster.chains(0).shard_count() >= 16);
}

#[tokio::test]
async fn a_client_that_comes_back_is_told_what_the_log_holds_as_far_back_as_it_is_known() {
    let cluster = Cluster::new(2, 1);
    let log = cluster.open().await;
    append(&log, 5..=9).await;
    // It starts over: another generation here, a step back of the sequences in the chain.
    for sequence in 2..=7 {
        log.append(block(2, sequence, 100 + sequence)).await.unwrap();
    }
    log.flush().await.unwrap();
    durable(&log, position(2, 7)).await.unwrap();
    let mark = async |log: &Format1Log, generation, sequence| {
        let found = log.find(position(generation, sequence)).await.unwrap();
        found.map(|entry| entry.timestamp.0)
    };
    assert_eq!(mark(&log, 1, 6).await, Some(6));
    assert_eq!(mark(&log, 2, 6).await, Some(106));
    assert_eq!(mark(&log, 2, 8).await, None);
    log.close().await.unwrap();

    let log = cluster.open().await;
    let end = log.end();
    assert_eq!((end.generation.0, end.first.0, end.last), (1, 2, Some(Sequence(7))));
    assert_eq!(mark(&log, 1, 6).await, Some(106), "of a sequence that came twice the later one");
    assert_eq!(mark(&log, 1, 9).await, None);
    assert_eq!(mark(&log, 2, 6).await, None);
    assert_eq!(log.durability().borrow().durable, Some(position(1, 7)));
    log.close().await.unwrap();
    let larger = LogSettings { max_blocks: 25, ..settings() };
    let log = Format1Log::open(cluster.set.clone(), keys(), larger).await.unwrap();
    append(&log, 8..=3000).await;
    log.close().await.unwrap();
    let log = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(3000)));
    let first = log.end().first.0;
    assert!(1900 < first && first < 2000, "{first}: looked back for about 1024 blocks, not for all");
    assert_eq!(mark(&log, 1, first).await, Some(first));
    assert_eq!(mark(&log, 1, first - 1).await, None);
}

#[tokio::test(start_paused = true)]
async fn every_store_must_answer_before_it_is_opened_for_writing() {
    let cluster = Cluster::new(4, 2);
    for with_history in [false, true] {
        if with_history {
            let log = cluster.open().await;
            append(&log, 1..=3).await;
            log.close().await.unwrap();
        }
        for store in 0..6 {
            cluster.set_down(store, true);
            let error = cluster.try_open().await.unwrap_err();
            assert!(
                matches!(&error, OpenError::TooFewStores(e) if e.counted == 5 && e.needed == 6),
                "{error}"
            );
            assert!(error.to_string().contains(&format!("memory:{store}")), "{error}");
            cluster.set_down(store, false);
        }
    }
    // Empty is an answer: the store was replaced. What is written from now on is on it.
    cluster.memory[2].wipe();
    let log = cluster.open().await;
    assert_eq!(log.end().last, Some(Sequence(3)));
    assert_eq!(cluster.chains(2).list(&cluster.vdisk), [cluster.front()]);
    assert!(cluster.chains(2).shard(cluster.front()).is_some());
}

#[tokio::test]
async fn a_wrong_key_or_a_lost_end_is_refused_and_nothing_is_changed() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    append(&log, 1..=6).await;
    log.close().await.unwrap();
    let front = cluster.front();
    let wrong = Keys::new(&[3; 32], "37b8e8a308c354048d245f6d").unwrap();
    let error = Format1Log::open(cluster.set.clone(), wrong, settings()).await.unwrap_err();
    assert!(matches!(error, OpenError::End(tlog_quorum::ChainEndError::Key { .. })), "{error}");
    assert!(error.to_string().contains("private key and nonce"), "{error}");
    let lost: Vec<_> = (0..3).map(|i| cluster.chains(i).shard(front).unwrap()).collect();
    (0..3).for_each(|i| assert!(cluster.chains(i).remove_shard(front)));
    let error = cluster.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::End(tlog_quorum::ChainEndError::Unclear { .. })), "{error}");
    assert!(error.to_string().contains(&front.to_string()), "{error}");
    assert_eq!(cluster.chains(5).appends(), 2);
    lost.into_iter().enumerate().for_each(|(i, shard)| cluster.chains(i).put_shard(front, shard));
    assert_eq!(cluster.open().await.end().last, Some(Sequence(6)));
}

#[tokio::test]
async fn two_vdisks_on_the_same_stores_do_not_touch_each_other() {
    let one = Cluster::new(2, 1);
    let other = Cluster::of("other", one.memory.clone(), one.redundancy);
    let (log, second) = (one.open().await, other.open().await);
    append(&log, 1..=4).await;
    append(&second, 10..=12).await;
    log.close().await.unwrap();
    second.close().await.unwrap();
    assert_eq!((one.content().await.len(), other.content().await.len()), (4, 3));
    assert_eq!(one.open().await.end().last, Some(Sequence(4)));
    assert_eq!(other.open().await.end().last, Some(Sequence(12)));
}
