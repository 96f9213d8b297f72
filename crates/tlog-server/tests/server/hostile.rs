//! Peers that take what they can and give nothing: each kind is gone in time and counted, and a client beside them does not notice.

use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::HandshakeStatus;
use tlog_server::ServerSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::block_of;
use crate::support::*;

/// Whoever shows for so long that it is no client is gone by then, with the settings that a server has by default.
const PROMISED: Duration = Duration::from_secs(30);

/// A connection without a socket, so that time can be paused.
fn dial(server: &Running) -> DuplexStream {
    let (ours, theirs) = duplex(4096);
    server.server.serve_stream(theirs, "127.0.0.1:1".parse().unwrap());
    ours
}

async fn greet(server: &Running, vdisk: &str) -> Client<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>> {
    let mut client = Client::over(dial(server));
    client.say_hello(handshake(vdisk, 7, 1)).await;
    assert_eq!(client.hears_handshake().await.status, HandshakeStatus::Ok);
    client
}

fn hello(vdisk: &str) -> BytesMut {
    let mut bytes = BytesMut::new();
    handshake(vdisk, 7, 1).encode_into(&mut bytes);
    bytes
}

fn wire(sequence: u64, bytes: usize) -> BytesMut {
    let mut wire = BytesMut::new();
    tlog_proto::ClientMessage::from(block_of(sequence, bytes)).encode_into(&mut wire);
    wire
}

/// Sends so many bytes every second until the server closes; answers how long that took, and how many bytes it was.
async fn drips(mut stream: DuplexStream, bytes: &[u8], every_second: usize) -> (Duration, usize) {
    let begun = Instant::now();
    let mut sent = 0;
    for piece in bytes.chunks(every_second) {
        if stream.write_all(piece).await.is_err() {
            break;
        }
        sent += piece.len();
        let mut answer = [0; 256];
        if matches!(timeout(Duration::from_secs(1), stream.read(&mut answer)).await, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    (begun.elapsed(), sent)
}

#[tokio::test(start_paused = true)]
async fn a_greeting_of_one_byte_a_second_is_given_up_in_time() {
    let (counters, _guard) = Counters::install();
    let server = Running::start().await;
    let (took, _) = drips(dial(&server), &hello("vd"), 1).await;
    assert!(took <= PROMISED, "{took:?}");
    assert_eq!(counters.get("tlog_server_handshakes_refused_total{timeout}"), 1);
    server.until(|status| (status.newcomers, status.connections) == (0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_one_byte_a_second_is_given_up_in_time_and_silence_between_messages_is_not() {
    let (counters, _guard) = Counters::install();
    let server = Running::start().await;
    let mut silent = greet(&server, "silent").await;
    let mut stream = dial(&server);
    stream.write_all(&hello("vd")).await.unwrap();
    let (took, _) = drips(stream, &wire(1, 4096), 1).await;
    assert!(took <= PROMISED, "{took:?}");
    assert_eq!(counters.get("tlog_server_disconnects_total{stopped_mid_message}"), 1);
    sleep(Duration::from_secs(24 * 3600)).await;
    silent.works(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_message_may_take_its_time_as_long_as_it_moves() {
    let server = Running::start().await;
    let mut client = greet(&server, "vd").await;
    // Over four minutes.
    for piece in wire(1, 16 << 20).chunks(ServerSettings::LEAST_MESSAGE_RATE) {
        client.sends_bytes(piece).await;
        sleep(Duration::from_secs(1)).await;
    }
    client.hears_recv_ok([1]).await;
    assert_eq!(server.server.status().message_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_given_up_in_time() {
    let (counters, _guard) = Counters::install();
    let server = Running::start().await;
    let mut client = greet(&server, "vd").await;
    let begun = Instant::now();
    timeout(2 * PROMISED, client.sends_without_end(block_of(1, 64))).await.expect("it is closed");
    assert!(begun.elapsed() <= PROMISED, "{:?}", begun.elapsed());
    assert_eq!(counters.get("tlog_server_disconnects_total{not_reading}"), 1);
}

#[tokio::test]
async fn hundreds_that_drip_their_greeting_are_gone_in_time_beside_a_client_that_notices_nothing() {
    const HOSTILE: usize = 200;
    let (counters, _guard) = Counters::install();
    let settings = ServerSettings { handshake_timeout: Duration::from_millis(500), ..small() };
    let server = Running::with(settings).await;
    let mut good = Client::connect(server.addr, "good", 7, 1).await;
    let mut dripping = tokio::task::JoinSet::new();
    for _ in 0..HOSTILE {
        let (mut read, mut write) = Client::dial(server.addr).await.into_raw_parts();
        dripping.spawn(async move {
            for byte in hello("vd") {
                let mut answer = [0; 256];
                if write.write_all(&[byte]).await.is_err() {
                    return;
                }
                let answer = timeout(Duration::from_millis(20), read.read(&mut answer)).await;
                if answer.is_ok() {
                    return; // `InvalidRequest`, or the end
                }
            }
            panic!("it was let in");
        });
    }
    let mut sequence = 0;
    while let Some(gone) = soon_or_none(&mut dripping, &mut good, &mut sequence).await {
        gone.unwrap();
    }
    assert!(sequence > 0);
    server.until(|status| (status.newcomers, status.connections) == (0, 1)).await;
    assert_eq!(counters.get("tlog_server_handshakes_refused_total{timeout}"), HOSTILE as u64);
    assert_eq!(server.logs.disk("good").durable().len() as u64, sequence);
}

/// The next of them that is gone, while the client writes and has each block made durable.
async fn soon_or_none(
    dripping: &mut tokio::task::JoinSet<()>,
    good: &mut Client,
    sequence: &mut u64,
) -> Option<Result<(), tokio::task::JoinError>> {
    *sequence += 1;
    good.works(*sequence).await;
    soon(dripping.join_next()).await
}

#[tokio::test]
async fn who_opens_and_vanishes_is_counted_and_leaves_nothing() {
    let (counters, _guard) = Counters::install();
    let server = Running::with(small()).await;
    let mut good = Client::connect(server.addr, "good", 7, 1).await;
    for number in 0..100 {
        let (_, mut write) = Client::dial(server.addr).await.into_raw_parts();
        if number % 2 == 0 {
            write.write_all(&[0]).await.unwrap();
            // Closing with bytes that were not sent, or at once: a reset.
            write.as_ref().set_zero_linger().unwrap();
        }
    }
    good.works(1).await;
    server.until(|status| (status.newcomers, status.connections) == (0, 1)).await;
    let gone = counters.get("tlog_server_handshakes_refused_total{vanished}")
        + counters.get("tlog_server_handshakes_refused_total{unreadable}");
    assert_eq!(gone, 100, "in the middle of its greeting, or before it");
}

#[tokio::test]
async fn a_client_gets_in_although_others_sit_on_every_place_and_say_nothing() {
    let (counters, _guard) = Counters::install();
    let settings = ServerSettings { max_newcomers: 4, ..small() };
    let server = Running::with(settings).await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(Client::dial(server.addr).await);
    }
    let mut good = Client::connect(server.addr, "good", 7, 1).await;
    good.works(1).await;
    // Three had to go, the oldest; who has said who it is does not.
    assert_eq!(counters.get("tlog_server_handshakes_refused_total{crowded_out}"), 3);
    for client in silent.iter_mut().take(3) {
        client.sees_the_end().await;
    }
    good.works(2).await;
    assert_eq!(server.server.status().newcomers, 3);
}

const LARGE: usize = 1 << 20;

/// A server that takes one large message at a time, and three clients that each send the beginning of one and no more.
async fn who_begin_large_messages(bytes: usize) -> (Running, Vec<Client>) {
    let mut settings = small();
    settings.limits.max_block_bytes = LARGE;
    (settings.max_window_bytes, settings.max_total_window_bytes) = (2 * LARGE, 2 * LARGE);
    (settings.max_unflushed_bytes, settings.max_total_unflushed_bytes) = (4 * LARGE, 16 * LARGE);
    settings.max_total_message_bytes = 3 * LARGE;
    settings.message_timeout = Duration::from_millis(400);
    let server = Running::with(settings).await;
    let mut hostile = Vec::new();
    for vdisk in ["a", "b", "c"] {
        let mut client = Client::connect(server.addr, vdisk, 7, 1).await;
        client.sends_bytes(&wire(1, LARGE)[..bytes]).await;
        hostile.push(client);
    }
    (server, hostile)
}

#[tokio::test]
async fn who_only_claims_large_messages_gets_no_memory_for_them_and_waits_for_none() {
    let (counters, _guard) = Counters::install();
    let (server, hostile) = who_begin_large_messages(100).await;
    let mut good = Client::connect(server.addr, "good", 7, 1).await;
    good.sends([block_of(1, LARGE)]).await;
    good.hears_recv_ok([1]).await;
    for mut client in hostile {
        client.sees_the_end().await;
    }
    assert_eq!(counters.get("tlog_server_disconnects_total{stopped_mid_message}"), 3);
    assert_eq!(counters.get("tlog_server_large_messages_waited_total"), 0);
    server.until(|status| status.message_bytes == 0).await;
}

#[tokio::test]
async fn large_messages_that_never_come_take_bounded_memory_and_are_given_up() {
    let (counters, _guard) = Counters::install();
    let (server, mut hostile) = who_begin_large_messages(40 << 10).await;
    server.until(|status| status.message_bytes > 0).await;
    let mut good = Client::connect(server.addr, "good", 7, 1).await;
    // Small ones do not wait for it; a large one gets its turn.
    good.works(1).await;
    assert!(server.server.status().message_bytes <= 3 * LARGE);
    good.sends([block_of(2, LARGE)]).await;
    good.hears_recv_ok([2]).await;
    for client in &mut hostile {
        client.sees_the_end().await;
    }
    assert_eq!(counters.get("tlog_server_disconnects_total{stopped_mid_message}"), 3);
    assert!(counters.get("tlog_server_large_messages_waited_total") >= 2);
    server.until(|status| status.message_bytes == 0).await;
    good.sends_blocks([3]).await;
    good.asks_to_flush(3).await;
    good.hears_flushed([2, 3]).await;
}
