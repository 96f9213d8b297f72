//! Everything that a peer can do wrong. Each time: the answer, a count, and everybody else unaffected.

use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{
    Block, BlockHash, BlockStatus, ClientMessage, HandshakeStatus, Operation, UnverifiedBlock, Version,
};
use tlog_server::ServerSettings;
use tokio::io::AsyncReadExt;

use crate::support::*;

/// A server with small bounds, somebody who behaves, and the counters.
struct Scene {
    server: Running,
    bystander: Client,
    counters: &'static Counters,
    _guard: metrics::LocalRecorderGuard<'static>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(small()).await
    }

    async fn with(settings: ServerSettings) -> Self {
        let (counters, guard) = Counters::install();
        let server = Running::with(settings).await;
        let bystander = Client::connect(server.addr, "bystander", 9, 1).await;
        Self { server, bystander, counters, _guard: guard }
    }

    /// A client with block 1 received, not flushed.
    async fn victim(&self) -> Client {
        let mut client = Client::connect(self.server.addr, "vd", 7, 1).await;
        client.sends_blocks([1]).await;
        client.hears_recv_ok([1]).await;
        client
    }

    /// It was counted, others go on, and what was received is not lost.
    async fn ends(mut self, counter: &str) {
        assert_eq!(self.counters.get(counter), 1, "{counter}");
        self.bystander.works(1).await;
        let (mut back, response) = Client::greet(self.server.addr, handshake("vd", 7, 1)).await;
        assert_eq!(response.status, HandshakeStatus::Ok);
        back.sends_blocks([1]).await;
        back.asks_to_flush(1).await;
        back.hears_flushed([1]).await;
        drop((back, self.bystander));
        assert!(self.server.stop().await.all_durable());
    }

    /// These bytes after the handshake end the connection.
    async fn check_stream(bytes: &[u8], kind: &str) {
        let scene = Self::new().await;
        let mut client = scene.victim().await;
        client.sends_bytes(bytes).await;
        client.sees_the_end().await;
        scene.ends(&format!("tlog_server_bad_messages_total{{{kind}}}")).await;
    }

    /// These bytes as a handshake get this status.
    async fn check_handshake(bytes: &[u8], status: HandshakeStatus, reason: &str) {
        let scene = Self::new().await;
        let mut client = Client::dial(scene.server.addr).await;
        client.sends_bytes(bytes).await;
        assert_eq!(client.hears_handshake().await.status, status, "{reason}");
        client.sees_the_end().await;
        scene.ends(&format!("tlog_server_handshakes_refused_total{{{reason}}}")).await;
    }
}

fn wire(message: impl Into<ClientMessage>) -> BytesMut {
    let mut bytes = BytesMut::new();
    message.into().encode_into(&mut bytes);
    bytes
}

#[tokio::test]
async fn an_unknown_type_byte_ends_the_connection() {
    for byte in [0, 4, 255] {
        let mut bytes = wire(block(2));
        bytes[0] = byte;
        Scene::check_stream(&bytes, "unknown_message_type").await;
    }
}

#[tokio::test]
async fn what_came_whole_before_a_fault_counts() {
    let scene = Scene::new().await;
    let mut client = scene.victim().await;
    let mut bytes = wire(block(2));
    bytes.extend_from_slice(&[0; 9]);
    client.sends_bytes(&bytes).await;
    scene
        .server
        .until(|status| status.vdisks.iter().any(|v| v.ordered.is_some_and(|p| p.sequence.0 == 2)))
        .await;
    scene.server.until(|status| status.connections == 1).await;
    scene.ends("tlog_server_bad_messages_total{unknown_message_type}").await;
}

#[tokio::test]
async fn lengths_that_lie_are_refused_before_memory_is_taken() {
    // Type byte, one segment, of 4 GiB words, of a little more than allowed; then a table of very many segments.
    Scene::check_stream(&[1, 0, 0, 0, 0, 255, 255, 255, 255], "too_large").await;
    let words = ((16_u32 << 10) + 4096) / 8 + 1;
    Scene::check_stream(&[&[1, 0, 0, 0, 0][..], &words.to_le_bytes()].concat(), "too_large").await;
    Scene::check_stream(&[1, 255, 255, 255, 255], "too_many_segments").await;
}

#[tokio::test]
async fn a_block_above_the_limit_is_refused() {
    Scene::check_stream(&wire(client::block_of(2, 32 << 10))[..64], "too_large").await;
}

#[tokio::test]
async fn a_pointer_out_of_bounds_ends_the_connection() {
    let mut bytes = wire(block(2));
    bytes[9..17].fill(0xff);
    Scene::check_stream(&bytes, "malformed").await;
    let mut bytes = wire(ClientMessage::ForceFlushAtSeq(tlog_proto::Sequence(3)));
    bytes[9..17].copy_from_slice(&[0xf8, 0xff, 0xff, 0x7f, 2, 0, 0, 0]);
    Scene::check_stream(&bytes, "malformed").await;
}

#[tokio::test]
async fn handshakes_that_cannot_be_served_get_their_status() {
    let hello = |change: &dyn Fn(&mut tlog_proto::HandshakeRequest)| {
        let mut request = handshake("vd", 7, 1);
        change(&mut request);
        let mut bytes = BytesMut::new();
        request.encode_into(&mut bytes);
        bytes
    };
    let old = hello(&|request| request.version = Version::from_wire(0x0100_0008));
    Scene::check_handshake(&old, HandshakeStatus::InvalidVersion, "version").await;
    let mut illegal = hello(&|_| {});
    let at = illegal.windows(2).position(|two| two == b"vd").unwrap();
    illegal[at] = b'/';
    Scene::check_handshake(&illegal, HandshakeStatus::InvalidVdiskId, "vdisk_id").await;
    Scene::check_handshake(&[255; 16], HandshakeStatus::InvalidRequest, "unreadable").await;
    Scene::check_handshake(&[0, 0, 0, 0, 255, 255, 255, 0], HandshakeStatus::InvalidRequest, "unreadable")
        .await;
    let mut pointer = hello(&|_| {});
    pointer[8..16].fill(0xff);
    Scene::check_handshake(&pointer, HandshakeStatus::InvalidRequest, "unreadable").await;
}

#[tokio::test]
async fn an_unknown_vdisk_is_refused() {
    let scene = Scene::new().await;
    scene.server.logs.forget("strange");
    let (mut client, response) = Client::greet(scene.server.addr, handshake("strange", 7, 1)).await;
    assert_eq!(response.status, HandshakeStatus::InvalidVdiskId);
    client.sees_the_end().await;
    assert_eq!(scene.server.server.status().vdisks.len(), 1, "nothing of it is kept");
    scene.ends("tlog_server_handshakes_refused_total{unknown_vdisk}").await;
}

#[tokio::test]
async fn a_bad_block_is_refused_and_the_connection_lives_on() {
    let good = || UnverifiedBlock::from(block(2));
    let cases: [(UnverifiedBlock, &str); 6] = [
        (UnverifiedBlock { hash: Some(BlockHash([7; 32])), ..good() }, "wrong_hash"),
        (UnverifiedBlock { hash: None, ..good() }, "no_hash"),
        (UnverifiedBlock { operation: 3, ..good() }, "unknown_operation"),
        (UnverifiedBlock { index: -1, ..good() }, "negative_index"),
        (UnverifiedBlock { operation: Operation::Delete.number(), ..good() }, "delete_with_data"),
        (UnverifiedBlock { data: bytes::Bytes::new(), ..good() }, "set_without_data"),
    ];
    for (bad, kind) in cases {
        let scene = Scene::new().await;
        let mut client = scene.victim().await;
        client.sends([ClientMessage::Block(bad), block(3).into()]).await;
        client.hears_recv_failed(2).await;
        client.hears_recv_ok([3]).await;
        assert_eq!(scene.server.logs.disk("vd").appended(), 1, "3 waits for 2");
        client.sends_blocks([2]).await;
        client.hears_recv_ok([2]).await;
        client.asks_to_flush(3).await;
        client.hears_just(BlockStatus::ForceFlushReceived).await;
        client.hears_flush_ok(1..=3).await;
        scene.ends(&format!("tlog_server_blocks_refused_total{{{kind}}}")).await;
    }
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_message_is_closed_in_time() {
    let settings = ServerSettings { message_timeout: Duration::from_millis(50), ..small() };
    let scene = Scene::with(settings).await;
    let mut client = scene.victim().await;
    client.sends_bytes(&wire(block(2))[..40]).await;
    client.sees_the_end().await;
    scene.ends("tlog_server_disconnects_total{stopped_mid_message}").await;
}

#[tokio::test]
async fn who_dribbles_a_message_is_closed_in_time_and_who_is_silent_between_messages_is_not() {
    let settings = ServerSettings { message_timeout: Duration::from_millis(50), ..small() };
    let scene = Scene::with(settings).await;
    let mut stream = scene.victim().await.into_raw_parts();
    // One byte at a time for as long as the server takes them. It takes them for no longer than the timeout.
    let bytes = wire(client::block_of(2, 8 << 10));
    let dribble = async {
        for byte in bytes.iter().cycle() {
            use tokio::io::AsyncWriteExt;
            if stream.1.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut end = [0; 1];
            let read = tokio::time::timeout(Duration::ZERO, stream.0.read(&mut end)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    };
    soon(dribble).await;
    // The one who behaves has been silent all the time.
    scene.ends("tlog_server_disconnects_total{stopped_mid_message}").await;
}

#[tokio::test]
async fn who_says_nothing_is_closed_in_time() {
    let settings = ServerSettings { handshake_timeout: Duration::from_millis(30), ..small() };
    let scene = Scene::with(settings).await;
    let mut client = Client::dial(scene.server.addr).await;
    assert_eq!(client.hears_handshake().await.status, HandshakeStatus::InvalidRequest);
    client.sees_the_end().await;
    scene.ends("tlog_server_handshakes_refused_total{timeout}").await;
}

#[tokio::test]
async fn who_is_silent_for_too_long_is_closed_where_that_is_wanted() {
    let settings = ServerSettings { idle_timeout: Some(Duration::from_millis(40)), ..small() };
    let server = Running::with(settings).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sees_the_end().await;
    server.until(|status| status.connections == 0).await;
}

#[tokio::test]
async fn who_never_reads_is_closed_and_his_answers_take_no_memory() {
    let settings = ServerSettings { write_timeout: Duration::from_millis(100), ..small() };
    let scene = Scene::with(settings).await;
    let mut client = scene.victim().await;
    // One durable block, sent again and again: each time 40 bytes of answer that nobody reads.
    client.asks_to_flush(1).await;
    client.hears_flushed([1]).await;
    let again: Vec<Block> = vec![block(1)];
    client.sends_until_stuck(again.into_iter().cycle().take(2_000_000)).await;
    scene.server.until(|status| status.connections == 1).await;
    scene.ends("tlog_server_disconnects_total{not_reading}").await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_live_on() {
    let scene = Scene::with(ServerSettings { max_connections: 2, ..small() }).await;
    let client = scene.victim().await;
    let (mut third, response) = Client::greet(scene.server.addr, handshake("third", 8, 1)).await;
    assert_eq!(response, tlog_proto::HandshakeResponse::unavailable());
    third.sees_the_end().await;
    drop((client, third));
    scene.server.until(|status| status.connections == 1).await;
    scene.ends("tlog_server_handshakes_refused_total{too_many}").await;
}

#[tokio::test]
async fn a_client_that_vanishes_mid_message_takes_nothing_along() {
    let scene = Scene::new().await;
    let mut client = scene.victim().await;
    client.sends_bytes(&wire(block(2))[..40]).await;
    drop(client);
    scene.server.until(|status| status.connections == 1).await;
    scene.ends("tlog_server_bad_messages_total{truncated}").await;
}
