//! What existing clients sent, and what existing servers answered, byte for byte.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use std::path::Path;

use bytes::BytesMut;
use support::{Client, Running, handshake, soon};
use tlog_proto::{ClientMessage, HandshakeRequest, HandshakeResponse, SessionId, VdiskId};
use tlog_server::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// None, with a message, where the recordings are not there.
fn golden(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden"));
    if !folder.is_dir() {
        eprintln!("skipped: no recordings at {}", folder.display());
        return None;
    }
    Some(std::fs::read(folder.join(name)).unwrap())
}

fn blocks(sequences: impl IntoIterator<Item = u64>) -> BytesMut {
    let mut bytes = BytesMut::new();
    sequences.into_iter().for_each(|sequence| support::block(sequence).encode_into(&mut bytes));
    bytes
}

async fn expect(stream: &mut TcpStream, expected: &[u8], what: &str) {
    let mut got = vec![0; expected.len()];
    soon(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, expected, "{what}");
}

async fn expect_handshake(stream: &mut TcpStream, recorded: &[u8]) {
    // Ours has more fields, which existing clients do not look at: 2 words of root pointer and table, 4 of data.
    let mut got = vec![0; 48];
    soon(stream.read_exact(&mut got)).await.unwrap();
    let (got, recorded) = (HandshakeResponse::decode(&got), HandshakeResponse::decode(recorded));
    let (got, recorded) = (got.unwrap(), recorded.unwrap());
    let got = HandshakeResponse { end: None, ..got }; // that is ours
    assert_eq!(got, recorded, "field for field");
}

#[tokio::test]
async fn a_recorded_client_gets_the_recorded_answers() {
    let Some(hello) = golden("handshake_request.bin") else {
        return;
    };
    let server = Running::start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    expect_handshake(&mut stream, &golden("handshake_response_ok.bin").unwrap()).await;

    // The recorded block has sequence 7; the handshake said that the client begins at 1.
    stream.write_all(&blocks(1..=6)).await.unwrap();
    let recv_ok = golden("response_recv_ok.bin").unwrap();
    let mut ignored = vec![0; recv_ok.len() * 6];
    soon(stream.read_exact(&mut ignored)).await.unwrap();
    stream.write_all(&golden("block.bin").unwrap()).await.unwrap();
    expect(&mut stream, &recv_ok, "RecvOK for block 7").await;

    stream.write_all(&blocks(8..=25)).await.unwrap();
    let mut ignored = vec![0; recv_ok.len() * 18];
    soon(stream.read_exact(&mut ignored)).await.unwrap();
    stream.write_all(&golden("force_flush.bin").unwrap()).await.unwrap();
    expect(&mut stream, &golden("response_force_flush_received.bin").unwrap(), "ForceFlushReceived").await;
    expect(&mut stream, &golden("response_flush_ok.bin").unwrap(), "FlushOK for 1 to 25").await;
    let stored = server.logs.disk("myimg").durable();
    assert_eq!(stored, (1..=25).map(|sequence| (1, sequence)).collect::<Vec<_>>());

    stream.write_all(&golden("wait_slave_sync.bin").unwrap()).await.unwrap();
    // No recording of this one: it is ForceFlushReceived with another status.
    let mut synced = golden("response_force_flush_received.bin").unwrap();
    synced[16] = 4;
    expect(&mut stream, &synced, "WaitNbdSlaveSyncReceived").await;
    assert!(server.stop().await.all_durable());
}

/// The recorded handshake of a client that starts over: `resetFirstSequence` is the lowest bit of byte 4 of the struct's
/// data, which lies behind the segment table and the root pointer.
fn recorded_reset(hello: &[u8]) -> Vec<u8> {
    let mut reset = hello.to_vec();
    reset[8 + 8 + 4] |= 1;
    let (recorded, read) = (HandshakeRequest::decode(hello), HandshakeRequest::decode(&reset));
    let expected = HandshakeRequest { reset_first_sequence: true, ..recorded.unwrap() };
    assert_eq!(read.unwrap(), expected, "nothing else has changed");
    reset
}

#[tokio::test]
async fn a_recorded_client_that_starts_over_gets_the_recorded_answers_and_a_new_generation() {
    let Some(hello) = golden("handshake_request.bin") else {
        return;
    };
    let server = Running::start().await;
    let handshake_ok = golden("handshake_response_ok.bin").unwrap();
    let recv_ok = golden("response_recv_ok.bin").unwrap();
    let received = |blocks: usize| vec![0; recv_ok.len() * blocks];
    let mut before = TcpStream::connect(server.addr).await.unwrap();
    before.write_all(&hello).await.unwrap();
    expect_handshake(&mut before, &handshake_ok).await;
    // 11 is in order and not durable, 13 waits for 12.
    before.write_all(&blocks((1..=11).chain([13]))).await.unwrap();
    soon(before.read_exact(&mut received(12))).await.unwrap();
    assert_eq!(server.logs.disk("myimg").durable(), []);

    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&recorded_reset(&hello)).await.unwrap();
    expect_handshake(&mut stream, &handshake_ok).await;
    let first_generation = (1..=11).map(|sequence| (1, sequence));
    let stored = server.logs.disk("myimg").durable();
    assert_eq!(stored, first_generation.clone().collect::<Vec<_>>(), "ordered, so durable; 13 was not");
    // Once what it was told of is read, there is nothing but the end.
    while soon(before.read(&mut [0; 1024])).await.unwrap_or(0) > 0 {}

    stream.write_all(&blocks(1..=6)).await.unwrap();
    soon(stream.read_exact(&mut received(6))).await.unwrap();
    stream.write_all(&golden("block.bin").unwrap()).await.unwrap();
    expect(&mut stream, &recv_ok, "RecvOK for block 7").await;
    stream.write_all(&blocks(8..=25)).await.unwrap();
    soon(stream.read_exact(&mut received(18))).await.unwrap();
    stream.write_all(&golden("force_flush.bin").unwrap()).await.unwrap();
    expect(&mut stream, &golden("response_force_flush_received.bin").unwrap(), "ForceFlushReceived").await;
    expect(&mut stream, &golden("response_flush_ok.bin").unwrap(), "FlushOK for 1 to 25").await;
    let second_generation = (1..=25).map(|sequence| (2, sequence));
    let stored = server.logs.disk("myimg").durable();
    assert_eq!(stored, first_generation.chain(second_generation).collect::<Vec<_>>());
    assert!(server.stop().await.all_durable());
}

#[tokio::test]
async fn a_force_flush_that_comes_before_its_blocks_flushes_when_they_are_there() {
    let Some(hello) = golden("handshake_request.bin") else {
        return;
    };
    let server = Running::start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    expect_handshake(&mut stream, &golden("handshake_response_ok.bin").unwrap()).await;
    stream.write_all(&golden("force_flush.bin").unwrap()).await.unwrap();
    expect(&mut stream, &golden("response_force_flush_received.bin").unwrap(), "ForceFlushReceived").await;
    assert_eq!(server.logs.disk("myimg").appended(), 0);
    stream.write_all(&blocks(1..=9)).await.unwrap();
    let mut flushes = server.logs.disk("myimg").flushes.subscribe();
    soon(flushes.wait_for(|&flushes| flushes > 0)).await.unwrap();
    assert_eq!(server.logs.disk("myimg").durable().last(), Some(&(1, 9)));
}

#[tokio::test]
async fn an_old_client_and_a_failed_flush_get_the_recorded_answers() {
    let Some(hello) = golden("handshake_request.bin") else {
        return;
    };
    let server = Running::start().await;
    let mut old = HandshakeRequest::decode(&hello).unwrap();
    assert_eq!((old.vdisk_id.clone(), old.session), (VdiskId::new("myimg").unwrap(), SessionId::UNKNOWN));
    old.version = "1.0.9".parse().unwrap();
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let mut bytes = BytesMut::new();
    old.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    expect_handshake(&mut stream, &golden("handshake_response_invalid_version.bin").unwrap()).await;
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap(), 0, "then it closes");

    let (client, _) = Client::greet(server.addr, handshake("myimg", 0, 1)).await;
    let mut stream = client.into_raw().await;
    server.logs.disk("myimg").fail(CloseReason::Failed("no store answers".to_owned()));
    expect(&mut stream, &golden("response_flush_failed.bin").unwrap(), "FlushFailed").await;
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap(), 0, "then it closes");
}

#[test]
fn recorded_messages_are_what_this_test_takes_them_for() {
    let Some(block) = golden("block.bin") else { return };
    let (ClientMessage::Block(block), _) =
        ClientMessage::decode_from_slice(&block, &Default::default()).unwrap()
    else {
        panic!("not a block");
    };
    assert_eq!(block.sequence.0, 7);
}
