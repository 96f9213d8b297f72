//! A server of 1.1.0-alpha, which knows no field of ours and sends none: it reads and writes bytes as they were recorded.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use bytes::BytesMut;
use scripted::{ScriptedServer, defaults, set_many, soon, vdisk};
use tlog_client::{Client, ClientOptions, Start};
use tlog_proto::{BlockStatus, HandshakeStatus, Response, Sequence};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// HandshakeResponse: one segment of 2 words; version 1.1.0-alpha, status 1.
const ACCEPTED: [u8; 24] = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 1, 1, 1, 0, 0, 0];

/// Reads the handshake as such a server does: what it knows of it.
async fn accept(server: &ScriptedServer) -> (tokio::net::TcpStream, u64) {
    let mut stream = server.accept().await;
    let mut table = [0; 8];
    stream.read_exact(&mut table).await.unwrap();
    assert_eq!(table[..4], [0; 4], "one segment");
    let mut words = vec![0; usize::from(table[4]) * 8];
    stream.read_exact(&mut words).await.unwrap();
    assert_eq!(words[8..12], [8, 0, 1, 1], "version");
    let first = u64::from_le_bytes(words[16..24].try_into().unwrap());
    assert!(words.windows(5).any(|text| text == b"myimg"));
    stream.write_all(&ACCEPTED).await.unwrap();
    (stream, first)
}

async fn expect_block(stream: &mut tokio::net::TcpStream, sequence: u64) {
    let (mut kind, mut table) = ([0], [0; 8]);
    stream.read_exact(&mut kind).await.unwrap();
    assert_eq!(kind, [1]);
    stream.read_exact(&mut table).await.unwrap();
    let mut words = vec![0; usize::from(table[4]) * 8];
    stream.read_exact(&mut words).await.unwrap();
    assert_eq!(u64::from_le_bytes(words[8..16].try_into().unwrap()), sequence);
}

async fn say(stream: &mut tokio::net::TcpStream, status: BlockStatus, sequences: &[u64]) {
    let mut wire = BytesMut::new();
    let sequences = sequences.iter().copied().map(Sequence).collect();
    Response { status, sequences }.encode_into(&mut wire);
    stream.write_all(&wire).await.unwrap();
}

#[tokio::test]
async fn our_client_works_with_it_over_a_lost_connection_too() {
    let server = ScriptedServer::start().await;
    let connect = Client::connect(server.addr(), vdisk(), defaults());
    let (client, (mut stream, first)) = tokio::join!(connect, accept(&server));
    let client = client.unwrap();
    assert_eq!((first, client.last_flushed_at_connect()), (1, None));
    let handles = set_many(&client, 3).await;
    for sequence in 1..=3 {
        expect_block(&mut stream, sequence).await;
    }
    say(&mut stream, BlockStatus::RecvOk, &[1]).await;
    say(&mut stream, BlockStatus::FlushOk, &[1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    drop(stream);
    let (mut stream, first) = soon(accept(&server)).await;
    assert_eq!(first, 2, "the last flushed + 1");
    for sequence in 2..=3 {
        expect_block(&mut stream, sequence).await;
    }
    say(&mut stream, BlockStatus::FlushOk, &[2, 3]).await;
    for handle in handles {
        handle.await.unwrap();
    }
    let flushed = client.flush();
    soon(flushed).await.unwrap();
}

#[tokio::test]
async fn it_does_not_tell_where_a_log_ends() {
    let server = ScriptedServer::start().await;
    let options = ClientOptions { start: Start::Continue, ..defaults() };
    let refuse = server.refuse_handshake(HandshakeStatus::InternalServerError, None);
    let (client, _) = tokio::join!(Client::connect(server.addr(), vdisk(), options), refuse);
    let error = client.unwrap_err();
    assert!(error.to_string().contains("give the first sequence yourself"), "{error}");
}
