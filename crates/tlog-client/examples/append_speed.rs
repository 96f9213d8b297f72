//! How fast blocks can be handed over, by one task and by eight at once, to a server that acknowledges everything at once and
//! keeps nothing: `cargo run --release -p tlog-client --example append_speed -- [BLOCKS] [BYTES] [ROUNDS]`.
//!
//! Checks on the way that the sequences of all tasks together have no gap, and that the server gets them in order. The two are
//! measured in turn, several times; what counts is their ratio.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tlog_client::{Client, ClientOptions, Start};
use tlog_proto::{
    BlockIndex, BlockStatus, ClientMessage, FrameReader, HandshakeResponse, HandshakeStatus, Limits,
    Response, Sequence, VdiskId,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// Acknowledges what arrived together with one answer. Answers how many blocks came, and panics where one is out of order.
async fn serve(stream: TcpStream) -> u64 {
    stream.set_nodelay(true).unwrap();
    let (read, mut write) = stream.into_split();
    let mut reader = FrameReader::new(read, Limits::default());
    let first = reader.handshake_request().await.unwrap().unwrap().first_sequence;
    let mut wire = BytesMut::new();
    HandshakeResponse::new(HandshakeStatus::Ok).encode_into(&mut wire);
    write.write_all(&wire).await.unwrap();
    let mut next = first;
    while let Some(message) = reader.client_message().await.unwrap() {
        let (mut message, mut durable, mut flushes) = (Some(message), Vec::new(), 0);
        while let Some(came) = message {
            match came {
                ClientMessage::Block(block) => {
                    assert_eq!(block.sequence, next, "out of order");
                    next = next.next();
                    durable.push(block.sequence);
                }
                _ => flushes += 1,
            }
            message = reader.buffered_client_message().unwrap();
        }
        wire.clear();
        for _ in 0..flushes {
            let status = BlockStatus::ForceFlushReceived;
            Response { status, sequences: Vec::new() }.encode_into(&mut wire);
        }
        if !durable.is_empty() {
            Response { status: BlockStatus::FlushOk, sequences: durable }.encode_into(&mut wire);
        }
        write.write_all(&wire).await.unwrap();
    }
    next.0 - first.0
}

/// Hands blocks over, and answers how long that took until all were durable.
async fn measure(tasks: u64, blocks: u64, bytes: usize) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
    let options = ClientOptions { start: Start::At(Sequence(1)), ..ClientOptions::default() };
    let client = Client::connect(address, VdiskId::new("speed").unwrap(), options).await.unwrap();
    let data = Bytes::from(vec![7; bytes]);
    let began = Instant::now();
    let handing_over: Vec<_> = (0..tasks)
        .map(|task| {
            let (client, data) = (client.clone(), data.clone());
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for index in 0..blocks / tasks {
                    let handle = client.set(BlockIndex::new(index).unwrap(), data.clone()).await.unwrap();
                    mine.push(handle.sequence().0);
                }
                assert!(mine.is_sorted(), "task {task} was overtaken by itself");
                mine
            })
        })
        .collect();
    let mut sequences = Vec::new();
    for task in handing_over {
        sequences.extend(task.await.unwrap());
    }
    client.flush().await.unwrap();
    let took = began.elapsed();
    sequences.sort_unstable();
    assert!(sequences.iter().copied().eq(1..=blocks / tasks * tasks), "the sequences have gaps");
    client.close().await;
    assert_eq!(server.await.unwrap(), blocks / tasks * tasks);
    took
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let blocks = arguments.next().unwrap_or(1_000_000);
    let bytes = usize::try_from(arguments.next().unwrap_or(4096)).unwrap();
    let rounds = arguments.next().unwrap_or(5);
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let one = measure(1, blocks, bytes).await;
        let eight = measure(8, blocks, bytes).await;
        let speed = |took: Duration| blocks as f64 / took.as_secs_f64();
        let ratio = speed(eight) / speed(one);
        println!(
            "round {round}: {blocks} blocks of {bytes} bytes: one task {:.0} blocks/s, eight {:.0} blocks/s, ratio {ratio:.2}",
            speed(one),
            speed(eight)
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("median ratio {median:.2}");
    }
}
