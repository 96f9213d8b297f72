//! A client that does as it is told.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, ClientMessage, FrameReader, HandshakeRequest, HandshakeResponse,
    HandshakeStatus, Limits, LogPosition, Response, Sequence, SessionId, Timestamp, VdiskId, Version,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use super::soon;

/// A handshake of a client of today.
pub fn handshake(vdisk: &str, session: u64, first: u64) -> HandshakeRequest {
    HandshakeRequest {
        session: SessionId(session),
        ..HandshakeRequest::new(VdiskId::new(vdisk).unwrap(), Sequence(first))
    }
}

/// The same, of one that was there before and found an empty log.
pub fn back(vdisk: &str, session: u64, first: u64) -> HandshakeRequest {
    HandshakeRequest { returning: Some(LogPosition::default()), ..handshake(vdisk, session, first) }
}

/// A block of so many bytes, which tell its sequence.
pub fn block_of(sequence: u64, bytes: usize) -> Block {
    let data = Bytes::from(vec![sequence as u8; bytes]);
    Block::set(Sequence(sequence), BlockIndex::new(sequence).unwrap(), Timestamp(sequence), data)
}

pub fn block(sequence: u64) -> Block {
    block_of(sequence, 64)
}

pub struct Client<R = OwnedReadHalf, W = OwnedWriteHalf> {
    reader: FrameReader<R>,
    writer: W,
}

impl Client {
    /// Connects and says nothing.
    pub async fn dial(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap(); // a client that does not read is noticed soon
        let stream = socket.connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, writer) = stream.into_split();
        Self { reader: FrameReader::new(read, Limits::default()), writer }
    }

    /// Connects and is accepted.
    pub async fn connect(addr: SocketAddr, vdisk: &str, session: u64, first: u64) -> Self {
        let (client, response) = Self::greet(addr, handshake(vdisk, session, first)).await;
        assert_eq!(response.status, HandshakeStatus::Ok);
        client
    }

    /// Connects and hears how the handshake went.
    pub async fn greet(addr: SocketAddr, request: HandshakeRequest) -> (Self, HandshakeResponse) {
        let mut client = Self::dial(addr).await;
        client.say_hello(request).await;
        let response = client.hears_handshake().await;
        (client, response)
    }

    /// The connection itself.
    pub fn into_raw_parts(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        (self.reader.into_inner(), self.writer)
    }

    pub async fn into_raw(self) -> TcpStream {
        self.reader.into_inner().reunite(self.writer).unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<ReadHalf<S>, WriteHalf<S>> {
    /// Says nothing yet, over a connection of any kind.
    pub fn over(stream: S) -> Self {
        let (read, writer) = tokio::io::split(stream);
        Self { reader: FrameReader::new(read, Limits::default()), writer }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    pub async fn say_hello(&mut self, request: HandshakeRequest) {
        let mut bytes = BytesMut::new();
        request.encode_into(&mut bytes);
        self.sends_bytes(&bytes).await;
    }

    pub async fn hears_handshake(&mut self) -> HandshakeResponse {
        soon(self.reader.handshake_response()).await.unwrap().expect("a handshake response")
    }

    pub async fn sends_bytes(&mut self, bytes: &[u8]) {
        soon(self.writer.write_all(bytes)).await.unwrap();
        soon(self.writer.flush()).await.unwrap();
    }

    pub async fn sends(&mut self, messages: impl IntoIterator<Item = impl Into<ClientMessage>>) {
        let mut bytes = BytesMut::new();
        messages.into_iter().for_each(|message| message.into().encode_into(&mut bytes));
        self.sends_bytes(&bytes).await;
    }

    pub async fn sends_blocks(&mut self, sequences: impl IntoIterator<Item = u64>) {
        self.sends(sequences.into_iter().map(block)).await;
    }

    pub async fn asks_to_flush(&mut self, sequence: u64) {
        self.sends([ClientMessage::ForceFlushAtSeq(Sequence(sequence))]).await;
    }

    /// Sends until the server takes no more for a while; answers how many blocks it took at least.
    pub async fn sends_until_stuck(&mut self, mut blocks: impl Iterator<Item = Block>) -> usize {
        const TOGETHER: usize = 16;
        let mut sent = 0;
        loop {
            let mut bytes = BytesMut::new();
            blocks.by_ref().take(TOGETHER).for_each(|block| block.encode_into(&mut bytes));
            assert!(!bytes.is_empty(), "{sent} blocks and it is still taking more");
            let written =
                tokio::time::timeout(std::time::Duration::from_millis(200), self.writer.write_all(&bytes));
            match written.await {
                Ok(Ok(())) => sent += TOGETHER,
                Ok(Err(_)) | Err(_) => return sent,
            }
        }
    }

    /// Sends and never reads, until the server has closed the connection.
    pub async fn sends_without_end(&mut self, block: Block) {
        let mut bytes = BytesMut::new();
        (0..16).for_each(|_| block.encode_into(&mut bytes));
        while self.writer.write_all(&bytes).await.is_ok() {}
    }

    /// The next response.
    pub async fn hears(&mut self) -> (BlockStatus, Vec<u64>) {
        let Response { status, sequences } = soon(self.reader.response()).await.unwrap().expect("a response");
        (status, sequences.into_iter().map(|sequence| sequence.0).collect())
    }

    pub async fn hears_recv_ok(&mut self, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            assert_eq!(self.hears().await, (BlockStatus::RecvOk, vec![sequence]));
        }
    }

    pub async fn hears_recv_failed(&mut self, sequence: u64) {
        assert_eq!(self.hears().await, (BlockStatus::RecvFailed, vec![sequence]));
    }

    pub async fn hears_flush_ok(&mut self, sequences: impl IntoIterator<Item = u64>) {
        assert_eq!(self.hears().await, (BlockStatus::FlushOk, sequences.into_iter().collect::<Vec<_>>()));
    }

    pub async fn hears_just(&mut self, status: BlockStatus) {
        assert_eq!(self.hears().await, (status, vec![]));
    }

    /// Hears until every one of these sequences was flushed.
    pub async fn hears_flushed(&mut self, sequences: impl IntoIterator<Item = u64>) {
        let mut missing: std::collections::BTreeSet<u64> = sequences.into_iter().collect();
        while !missing.is_empty() {
            let (status, sequences) = self.hears().await;
            if status == BlockStatus::FlushOk {
                sequences.iter().for_each(|sequence| _ = missing.remove(sequence));
            }
        }
    }

    /// The server closes and says so in whatever the connection has for that.
    pub async fn hears_the_end(&mut self) {
        assert!(matches!(soon(self.reader.response()).await, Ok(None)));
    }

    /// The server closes, without a further word.
    pub async fn sees_the_end(&mut self) {
        match soon(self.reader.response()).await {
            Ok(None) | Err(tlog_proto::FrameError::Io(_) | tlog_proto::FrameError::Truncated) => {}
            other => panic!("{other:?} instead of the end"),
        }
    }

    /// Everything works for this one: one block goes in and is flushed.
    pub async fn works(&mut self, sequence: u64) {
        self.sends_blocks([sequence]).await;
        self.hears_recv_ok([sequence]).await;
        self.asks_to_flush(sequence).await;
        self.hears_just(BlockStatus::ForceFlushReceived).await;
        self.hears_flush_ok([sequence]).await;
    }
}
