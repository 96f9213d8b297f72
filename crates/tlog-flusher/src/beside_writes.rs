//! Stories of records and parts of checkpoints among the writes of a log. On memory stores, in virtual time.

use std::time::Duration;

use futures::future::join_all;
use tlog_codec::Kind;
use tlog_proto::{AggregationNumber, Generation, Sequence, SessionId, Timestamp};

use crate::testing::{
    Cluster, Stored, append, content, durable, keys, mark, part, position, settings, stored_up_to,
};
use crate::{ExtraError, Log, LogEnd, LogSettings};

async fn stored(cluster: &Cluster, log: &Log) -> Vec<Stored> {
    let committed = log.status().await.unwrap().committed;
    stored_up_to(cluster, committed).await.unwrap()
}

fn kinds(stored: &[Stored]) -> Vec<Kind> {
    stored.iter().map(|stored| stored.header.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn they_take_their_places_between_writes_and_are_found_there() {
    let cluster = Cluster::new(4, 2, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    let first = log.append_record(mark(1)).await.unwrap();
    append(&log, 1, 6..=10).await;
    durable(&log, position(1, 10)).await.unwrap();
    let second = log.append_checkpoint(part(2..6), Timestamp(7)).await.unwrap();
    let third = log.append_record(mark(2)).await.unwrap();
    let all = stored(&cluster, &log).await;
    assert_eq!(kinds(&all), [Kind::Blocks, Kind::Record, Kind::Blocks, Kind::Checkpoint, Kind::Record]);
    for (answered, at) in [(first, 2), (second, 4), (third, 5)] {
        assert_eq!((answered.number, answered.id), (AggregationNumber(at), all[at as usize - 1].id));
    }
    assert!(all.windows(2).all(|pair| pair[1].header.prev == pair[0].id));
    // Each says where the log stands, what it is about, and where the record before it is.
    let header = &all[3].header;
    assert_eq!((header.first_sequence, header.last_sequence), (Sequence(11), Sequence(10)));
    assert_eq!((header.oldest_timestamp, header.newest_timestamp), (Timestamp(7), Timestamp(7)));
    let before: Vec<_> = all.iter().map(|stored| stored.header.record_before().map(|n| n.0)).collect();
    assert_eq!(before, [None, None, Some(2), Some(2), Some(2)]);
    // Blocks are found by their positions all the same, and what has none is never one.
    for sequence in 1..=10 {
        assert!(log.find(position(1, sequence)).await.unwrap().is_some(), "{sequence}");
    }
    assert_eq!(log.find(position(1, 11)).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn one_is_answered_when_w_stores_have_it_and_not_before() {
    let cluster = Cluster::new(4, 2, None);
    let (log, controls) = cluster.open().await;
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    controls[0].hang();
    controls[1].hang();
    let record = log.append_record(mark(1));
    tokio::pin!(record);
    assert!(tokio::time::timeout(Duration::from_millis(1500), &mut record).await.is_err(), "four have it");
    controls[1].release();
    assert_eq!(record.await.unwrap().number, AggregationNumber(2));
}

#[tokio::test(start_paused = true)]
async fn one_that_was_on_too_few_stores_when_the_writer_died_is_adopted_like_a_write() {
    for is_record in [true, false] {
        let cluster = Cluster::new(4, 2, None);
        let (log, controls) = cluster.open().await;
        append(&log, 1, 1..=5).await;
        durable(&log, position(1, 5)).await.unwrap();
        controls[0].hang();
        controls[1].hang();
        let unanswered = async {
            match is_record {
                true => log.append_record(mark(1)).await,
                false => log.append_checkpoint(part(0..3), Timestamp(3)).await,
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(100), unanswered).await.is_err());
        drop(log);
        let (log, _) = cluster.open().await;
        let end = LogEnd {
            generation: Generation(1),
            first: Sequence(1),
            last: Some(Sequence(5)),
            session: SessionId(1),
        };
        assert_eq!(log.end(), end);
        assert_eq!(log.durability().borrow().durable, Some(position(1, 5)));
        append(&log, 1, 6..=10).await;
        durable(&log, position(1, 10)).await.unwrap();
        let next = log.append_record(mark(2)).await.unwrap();
        let all = stored(&cluster, &log).await;
        let kind = if is_record { Kind::Record } else { Kind::Checkpoint };
        assert_eq!(kinds(&all), [Kind::Blocks, kind, Kind::Blocks, Kind::Record]);
        assert_eq!(next.number, AggregationNumber(4));
        let before = all[3].header.record_before();
        assert_eq!(before, is_record.then_some(AggregationNumber(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_ends_with_them_goes_on_where_its_writes_ended() {
    let cluster = Cluster::new(2, 1, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=3).await;
    append(&log, 2, 2..=9).await;
    log.flush().await.unwrap();
    durable(&log, position(2, 9)).await.unwrap();
    log.append_checkpoint(part(0..7), Timestamp(9)).await.unwrap();
    log.append_record(mark(1)).await.unwrap();
    log.close().await.unwrap();
    for _ in 0..2 {
        let (log, _) = cluster.open().await;
        let LogEnd { generation, first, last, session } = log.end();
        assert_eq!((generation, first, last), (Generation(2), Sequence(2), Some(Sequence(9))));
        assert_eq!(session, SessionId(2));
        log.append_record(mark(2)).await.unwrap();
        log.close().await.unwrap();
    }
    let (log, _) = cluster.open().await;
    append(&log, 2, 10..=12).await;
    log.close().await.unwrap();
    assert_eq!(content(&cluster).await, (1..=3).chain(2..=12).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn neither_a_client_that_never_pauses_nor_many_of_them_hold_the_other_up() {
    let cluster = Cluster::new(2, 1, None);
    let (set, controls) = cluster.connect(1);
    let log = Log::open(set, keys(), LogSettings { in_flight: 4, ..settings() }).await.unwrap();
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    controls.iter().for_each(|control| control.set_delay(Duration::from_millis(1)));
    // A hundred batches, and as many others, all there at once: one after the other.
    let writes = append(&log, 1, 6..=505);
    let records = join_all((0..50).map(|nth| log.append_record(mark(nth))));
    let parts = join_all((0..50).map(|_| log.append_checkpoint(part(0..3), Timestamp(3))));
    let (records, parts, ()) = tokio::join!(records, parts, writes);
    assert!(records.iter().chain(&parts).all(Result::is_ok));
    log.flush().await.unwrap();
    durable(&log, position(1, 505)).await.unwrap();
    let kinds = kinds(&stored(&cluster, &log).await);
    assert_eq!(kinds.len(), 201);
    let is_write = |kind: &Kind| *kind == Kind::Blocks;
    let run = |of: bool| {
        kinds.chunk_by(|a, b| is_write(a) == is_write(b)).filter(move |run| is_write(&run[0]) == of)
    };
    // At the beginning only some have arrived, and at the end only some are left.
    let longest = |of| run(of).map(<[Kind]>::len).max().unwrap();
    assert!(longest(true) <= 5 && longest(false) <= 5, "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_log_refuses_them_and_can_be_used_all_the_same() {
    let cluster = Cluster::new(2, 1, None);
    let (log, _) = cluster.open().await;
    assert_eq!(log.append_record(mark(1)).await, Err(ExtraError::EmptyLog));
    assert_eq!(log.append_checkpoint(part(0..3), Timestamp(3)).await, Err(ExtraError::EmptyLog));
    append(&log, 1, 1..=5).await;
    durable(&log, position(1, 5)).await.unwrap();
    assert_eq!(log.append_record(mark(1)).await.unwrap().number, AggregationNumber(2));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sealed_is_refused_and_the_log_goes_on() {
    let cluster = Cluster::new(2, 1, None);
    let (log, _) = cluster.open().await;
    append(&log, 1, 1..=10).await;
    durable(&log, position(1, 10)).await.unwrap();
    let mut backwards = part(0..3);
    backwards.reverse();
    let refused = log.append_checkpoint(backwards, Timestamp(3)).await;
    assert!(matches!(&refused, Err(ExtraError::Seal(why)) if why.contains("rise")), "{refused:?}");
    assert!(matches!(log.append_checkpoint(Vec::new(), Timestamp(3)).await, Err(ExtraError::Seal(_))));
    append(&log, 1, 11..=15).await;
    durable(&log, position(1, 15)).await.unwrap();
    let all = stored(&cluster, &log).await;
    assert_eq!(kinds(&all), [Kind::Blocks; 3]);
    // The number was given to the next one, and that one knows as much of times as if nothing had been asked for.
    assert_ne!(all[2].header.time_reach, tlog_codec::TimeReach::UNKNOWN);
}
