//! A server that does what a test tells it, step by step, over a real socket.
#![allow(dead_code, unreachable_pub)] // not every test file uses every verb

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::BytesMut;
use tlog_client::{Backoff, Client, ClientOptions, Durable, Start};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, ClientMessage, FrameReader, Generation, HandshakeRequest,
    HandshakeResponse, HandshakeStatus, Limits, LogPosition, Refusal, Response, Sequence, VdiskId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

pub fn vdisk() -> VdiskId {
    VdiskId::new("myimg").unwrap()
}

pub fn at(index: u64) -> BlockIndex {
    BlockIndex::new(index).unwrap()
}

/// Short where waiting in vain is what a test is about.
pub const SHORT: Duration = Duration::from_millis(50);

pub struct ScriptedServer {
    listener: TcpListener,
}

impl ScriptedServer {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn addr(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Accepts a connection and says nothing.
    pub async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Accepts a connection and reads the handshake.
    pub async fn accept_request(&self) -> Peer {
        let (reader, writer) = self.accept().await.into_split();
        let mut reader = FrameReader::new(reader, Limits::default());
        let request = reader.handshake_request().await.unwrap().unwrap();
        Peer { reader, writer, request }
    }

    /// Accepts a connection and answers the handshake with OK.
    pub async fn accept_handshake(&self) -> Peer {
        let mut peer = self.accept_request().await;
        peer.answer_handshake(HandshakeStatus::Ok, None).await;
        peer
    }

    /// Accepts a connection and answers the handshake with OK, and where the log durably ends.
    pub async fn accept_continuing(&self, last_flushed: u64) -> Peer {
        let mut peer = self.accept_request().await;
        peer.answer_handshake(HandshakeStatus::Ok, Some(last_flushed)).await;
        peer
    }

    /// Accepts a connection and refuses the handshake, and says why.
    pub async fn refuse_because(&self, refusal: Refusal) -> HandshakeRequest {
        let mut peer = self.accept_request().await;
        peer.answer_handshake_with(HandshakeResponse::refused(HandshakeStatus::InternalServerError, refusal))
            .await;
        peer.request
    }

    /// Accepts a connection and refuses the handshake.
    pub async fn refuse_handshake(
        &self,
        status: HandshakeStatus,
        last_flushed: Option<u64>,
    ) -> HandshakeRequest {
        let mut peer = self.accept_request().await;
        peer.answer_handshake(status, last_flushed).await;
        peer.request
    }
}

/// Beginning at sequence 1, with patience that no test runs out of.
pub fn defaults() -> ClientOptions {
    starting_at(1)
}

pub fn starting_at(sequence: u64) -> ClientOptions {
    let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(10) };
    let hour = Duration::from_secs(3600);
    ClientOptions {
        start: Start::At(Sequence(sequence)),
        answer_timeout: hour,
        resend_timeout: hour,
        flush_after: hour,
        backoff,
        ..ClientOptions::default()
    }
}

/// A client and the server's end of its connection.
pub async fn connected(options: ClientOptions) -> (Client, Peer) {
    connected_to(&ScriptedServer::start().await, options).await
}

/// The same, to a server that goes on.
pub async fn connected_to(server: &ScriptedServer, options: ClientOptions) -> (Client, Peer) {
    let (client, peer) =
        tokio::join!(Client::connect(server.addr(), vdisk(), options), server.accept_handshake());
    (client.unwrap(), peer)
}

pub async fn set(client: &Client, index: u64) -> Durable {
    client.set(at(index), vec![index as u8]).await.unwrap()
}

pub async fn set_many(client: &Client, count: u64) -> Vec<Durable> {
    let mut handles = Vec::new();
    for index in 0..count {
        handles.push(set(client, index).await);
    }
    handles
}

/// Whether a future is done, now that everything else had its turn.
pub fn is_pending<T>(future: impl Future<Output = T>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::pin!(future).poll(&mut context).is_pending()
}

/// Waits for something that must happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it happens soon")
}

/// The server's end of one connection.
pub struct Peer {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    pub request: HandshakeRequest,
}

impl Peer {
    pub async fn answer_handshake(&mut self, status: HandshakeStatus, last_flushed: Option<u64>) {
        let last_flushed = last_flushed.map(Sequence);
        // Of a log that was empty when the client came first, or that ends with what was flushed last.
        let last = |sequence| LogPosition { generation: Generation(1), sequence };
        let unflushed = match self.request.returning {
            Some(_) => last(self.request.first_sequence),
            None => LogPosition::default(),
        };
        let end = (!status.is_error()).then(|| last_flushed.map_or(unflushed, last));
        let response = HandshakeResponse { last_flushed, end, ..HandshakeResponse::new(status) };
        self.answer_handshake_with(response).await;
    }

    pub async fn answer_handshake_with(&mut self, response: HandshakeResponse) {
        let mut wire = BytesMut::new();
        response.encode_into(&mut wire);
        self.send_bytes(&wire).await;
    }

    pub async fn next_message(&mut self) -> ClientMessage {
        self.reader.client_message().await.unwrap().expect("the client closed")
    }

    pub async fn expect_block(&mut self, sequence: u64) -> Block {
        match self.next_message().await {
            ClientMessage::Block(block) => {
                let block = block.verify().unwrap();
                assert_eq!(block.sequence, Sequence(sequence));
                block
            }
            other => panic!("block {sequence} expected, not {other:?}"),
        }
    }

    pub async fn expect_blocks(&mut self, sequences: RangeInclusive<u64>) {
        for sequence in sequences {
            self.expect_block(sequence).await;
        }
    }

    pub async fn expect_force_flush(&mut self, sequence: u64) {
        assert_eq!(self.next_message().await, ClientMessage::ForceFlushAtSeq(Sequence(sequence)));
    }

    /// The next message is a flush; up to where.
    pub async fn expect_some_flush(&mut self) -> u64 {
        match self.next_message().await {
            ClientMessage::ForceFlushAtSeq(sequence) => sequence.0,
            other => panic!("a flush expected, not {other:?}"),
        }
    }

    pub async fn expect_wait_slave_sync(&mut self) {
        assert_eq!(self.next_message().await, ClientMessage::WaitNbdSlaveSync);
    }

    /// The client closes and has sent nothing before.
    pub async fn expect_close(&mut self) {
        match self.reader.client_message().await {
            Ok(None) => {}
            Ok(Some(message)) => panic!("a close expected, not {message:?}"),
            Err(error) => assert_eq!(error.kind(), "io", "{error}"),
        }
    }

    /// The client closes, whatever it has sent before.
    pub async fn until_closed(mut self) {
        let mut stream = self.reader.into_inner();
        let mut buffer = vec![0; 1 << 16];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
        let _ = self.writer.shutdown().await;
    }

    pub async fn respond(&mut self, status: BlockStatus, sequences: impl IntoIterator<Item = u64>) {
        let mut wire = BytesMut::new();
        let sequences = sequences.into_iter().map(Sequence).collect();
        Response { status, sequences }.encode_into(&mut wire);
        self.send_bytes(&wire).await;
    }

    pub async fn ack_received(&mut self, sequence: u64) {
        self.respond(BlockStatus::RecvOk, [sequence]).await;
    }

    pub async fn refuse(&mut self, sequence: u64) {
        self.respond(BlockStatus::RecvFailed, [sequence]).await;
    }

    pub async fn ack_flush(&mut self, sequences: impl IntoIterator<Item = u64>) {
        self.respond(BlockStatus::FlushOk, sequences).await;
    }

    pub async fn ack_force_flush(&mut self) {
        self.respond(BlockStatus::ForceFlushReceived, []).await;
    }

    pub async fn ack_slave_sync(&mut self) {
        self.respond(BlockStatus::WaitNbdSlaveSyncReceived, []).await;
    }

    pub async fn fail_flush(&mut self) {
        self.respond(BlockStatus::FlushFailed, []).await;
    }

    /// Sends what a response is, in pieces of one byte.
    pub async fn respond_slowly(&mut self, status: BlockStatus, sequences: impl IntoIterator<Item = u64>) {
        let mut wire = BytesMut::new();
        let sequences = sequences.into_iter().map(Sequence).collect();
        Response { status, sequences }.encode_into(&mut wire);
        for byte in wire {
            self.send_bytes(&[byte]).await;
            tokio::task::yield_now().await;
        }
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
    }

    pub fn drop_connection(self) {}
}
