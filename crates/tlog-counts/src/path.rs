//! The whole way of a block: a client that sends bytes made before, over TCP to a server of this process, on one thread.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, BytesMut};
use tlog_proto::{
    Block, BlockStatus, FrameReader, HandshakeRequest, HandshakeStatus, Limits, Sequence, SessionId,
};
use tlog_server::{Server, ServerSettings};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::storage::Storage;
use crate::subject::vdisk;

/// A server and its client.
pub(crate) struct Path {
    runtime: Runtime,
    client: Client,
}

struct Client {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// What is sent in a round, but for the sequences.
    wire: Vec<u8>,
    /// Where in it the sequences stand.
    sequences: Vec<usize>,
    sent: u64,
}

impl Path {
    /// Connects. In each round these blocks are sent, under the next sequences.
    pub(crate) fn new(storage: Storage, blocks: &[Block]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let address = listener.local_addr()?;
            let server = Server::new(ServerSettings::default(), Arc::new(storage), None)?;
            // It ends with the runtime.
            tokio::spawn(async move { server.run(listener, CancellationToken::new()).await });
            Client::connect(TcpStream::connect(address).await?, blocks).await
        })?;
        Ok(Self { runtime, client })
    }

    /// Sends the blocks and waits until all of them are durable.
    pub(crate) fn round(&mut self) -> Result<()> {
        self.runtime.block_on(self.client.round())
    }
}

impl Client {
    async fn connect(stream: TcpStream, blocks: &[Block]) -> Result<Self> {
        stream.set_nodelay(true)?;
        let (read, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(read, Limits::default());
        let mut hello = BytesMut::new();
        let session = SessionId(1);
        HandshakeRequest { session, ..HandshakeRequest::new(vdisk()?, Sequence(1)) }.encode_into(&mut hello);
        writer.write_all(&hello).await?;
        let answer = reader.handshake_response().await?.context("no answer")?;
        ensure!(answer.status == HandshakeStatus::Ok, "refused: {answer:?}");
        let (mut wire, mut sequences) = (Vec::new(), Vec::new());
        for block in blocks {
            let [message, other] = [0, u64::MAX].map(|sequence| {
                let mut message = BytesMut::new();
                Block { sequence: Sequence(sequence), ..block.clone() }.encode_into(&mut message);
                message
            });
            let differs = message.iter().zip(&other).position(|(one, other)| one != other);
            sequences.push(wire.len() + differs.context("no sequence in a message")?);
            wire.extend_from_slice(&message);
        }
        Ok(Self { reader, writer, wire, sequences, sent: 0 })
    }

    async fn round(&mut self) -> Result<()> {
        for &at in &self.sequences {
            self.sent += 1;
            self.wire.get_mut(at..).unwrap_or_default().put_u64_le(self.sent);
        }
        self.writer.write_all(&self.wire).await?;
        loop {
            let response = self.reader.response().await?.context("the server closed the connection")?;
            match response.status {
                BlockStatus::RecvOk => {}
                BlockStatus::FlushOk if response.sequences.contains(&Sequence(self.sent)) => return Ok(()),
                BlockStatus::FlushOk => {}
                status => anyhow::bail!("the server answers {status:?}"),
            }
        }
    }
}
