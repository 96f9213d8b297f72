//! Servers that are broken, or wish us no good.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use scripted::{Peer, at, connected, defaults, is_pending, soon};
use tlog_client::{Client, ClientOptions, EndCause, Event, LostCause};
use tlog_proto::{BlockStatus, Limits, Operation, Response, Sequence};

/// How the connection is lost after the server sends these bytes in answer to a block, and perhaps closes.
async fn lost_by(bytes: &[u8], and_closes: bool) -> Arc<LostCause> {
    let limits = Limits { max_block_bytes: 64 << 10, ..Limits::default() };
    let (client, mut peer) = connected(ClientOptions { limits, ..defaults() }).await;
    let mut events = client.events();
    client.set(at(0), vec![1]).await.unwrap();
    peer.expect_block(1).await;
    peer.send_bytes(bytes).await;
    let _open = (!and_closes).then_some(peer);
    let Some(Event::Reconnecting { cause, .. }) = soon(events.next()).await else { panic!("it goes on") };
    assert_eq!(client.unflushed().await.len(), 1, "nothing is lost");
    cause
}

fn protocol_error(cause: &LostCause) -> &'static str {
    match cause {
        LostCause::Protocol(error) => error.kind(),
        other => panic!("{other}"),
    }
}

fn response(status: BlockStatus, sequences: impl IntoIterator<Item = u64>) -> BytesMut {
    let mut wire = BytesMut::new();
    Response { status, sequences: sequences.into_iter().map(Sequence).collect() }.encode_into(&mut wire);
    wire
}

#[tokio::test]
async fn an_unknown_status_ends_the_connection() {
    let mut wire = response(BlockStatus::RecvOk, [1]);
    wire[16] = 77; // the status is the first byte of the struct, behind table and root pointer
    let cause = lost_by(&wire, false).await;
    assert_eq!(protocol_error(&cause), "malformed");
    assert!(cause.to_string().contains("unknown status 77"), "{cause}");
}

#[tokio::test]
async fn malformed_oversized_and_cut_messages_end_the_connection() {
    let mut malformed = response(BlockStatus::FlushOk, [1]);
    malformed[12] = 0xff; // the root pointer
    assert_eq!(protocol_error(&*lost_by(&malformed, false).await), "malformed");
    assert_eq!(protocol_error(&*lost_by(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], false).await), "too_large");
    assert_eq!(protocol_error(&*lost_by(&[0xff, 0xff, 0xff, 0xff], false).await), "too_many_segments");
    let whole = response(BlockStatus::FlushOk, [1]);
    assert_eq!(protocol_error(&*lost_by(&whole[..whole.len() - 1], true).await), "truncated");
    // Within the limits and announced in full, but most of it never comes: no memory, no acknowledgement.
    assert_eq!(protocol_error(&*lost_by(&[0, 0, 0, 0, 0, 0x1f, 0, 0, 1], true).await), "truncated");
}

#[tokio::test]
async fn what_came_before_the_damage_still_counts() {
    let (client, mut peer) = connected(defaults()).await;
    let first = client.set(at(0), vec![1]).await.unwrap();
    let second = client.set(at(1), vec![1]).await.unwrap();
    peer.expect_blocks(1..=2).await;
    let mut wire = response(BlockStatus::FlushOk, [1]);
    wire.extend_from_slice(&[0xff; 8]);
    peer.send_bytes(&wire).await;
    first.await.unwrap();
    assert!(is_pending(second), "it is kept for the next server");
    peer.until_closed().await;
}

#[tokio::test]
async fn responses_about_nothing_we_sent_are_counted_and_change_nothing() {
    let (client, mut peer) = connected(defaults()).await;
    let handle = client.set(at(0), vec![1]).await.unwrap();
    peer.expect_block(1).await;
    peer.ack_flush([0, 2, 3, u64::MAX]).await;
    peer.ack_received(9).await;
    peer.refuse(9).await;
    peer.ack_force_flush().await;
    peer.ack_slave_sync().await;
    peer.ack_flush([]).await;
    peer.ack_flush(10..20_000).await;
    peer.ack_flush([1, 1]).await;
    handle.await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.unexpected_responses, stats.repeated_responses), (4 + 1 + 1 + 1 + 1 + 19_990, 1));
    assert_eq!(stats.durable_blocks, 1);
    assert_eq!(client.set(at(1), vec![1]).await.unwrap().sequence(), Sequence(2));
    peer.expect_block(2).await;
}

/// A client whose server reads nothing any more, with more handed over than sockets can hold.
async fn never_read() -> (Client, Peer) {
    let max_unflushed_bytes = 32 << 20;
    let options = ClientOptions { max_unflushed_bytes, ..defaults() };
    let (client, peer) = connected(options).await;
    let data = Bytes::from(vec![1; 1 << 20]);
    while client.try_append(Operation::Set, at(0), data.clone()).is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(client.stats().unflushed_bytes <= max_unflushed_bytes as u64);
    (client, peer)
}

#[tokio::test]
async fn a_server_that_never_reads_costs_a_bounded_amount_and_is_given_up() {
    let (client, _peer) = never_read().await;
    let mut events = client.events();
    tokio::time::pause(); // the hour passes as soon as nothing moves
    let Some(Event::Reconnecting { cause, .. }) = events.next().await else { panic!("it goes on") };
    assert!(matches!(*cause, LostCause::Silent(_)), "{cause}");
    assert_eq!(client.unflushed().await.len(), 31);
    assert!(client.stats().unflushed_bytes <= 32 << 20);
    client.close().await;
}

#[tokio::test]
async fn closing_and_asking_work_at_once_while_the_server_reads_nothing() {
    let (client, _peer) = never_read().await;
    assert_eq!(client.unflushed().await.len(), 31);
    let waits = tokio::spawn({
        let client = client.clone();
        async move { client.set(at(0), vec![1; 1 << 20]).await }
    });
    tokio::task::yield_now().await;
    let ending = client.close().await;
    assert!(matches!(ending.cause(), EndCause::Closed));
    assert_eq!(ending.unacknowledged().to_string(), "1-31");
    assert!(waits.await.unwrap().is_err());
}
