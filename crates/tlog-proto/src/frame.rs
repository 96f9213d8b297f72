//! Reading framed messages from a stream, from a peer that may lie.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::{self, FrameLength};
use crate::{
    ClientMessage, DecodeError, HandshakeRequest, HandshakeResponse, Limits, MessageType, Response,
    UnknownMessageType,
};

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The peer closed in the middle of a message.
    #[error("the stream ends in the middle of a message")]
    Truncated,
    /// More segments than [`Limits::max_segments`].
    #[error("a message of {segments} segments; at most {max} are accepted")]
    TooManySegments {
        /// What the message claims.
        segments: usize,
        /// What is accepted.
        max: usize,
    },
    /// More bytes than [`Limits::max_message_bytes`].
    #[error("a message of {bytes} bytes or more; at most {max} are accepted")]
    TooLarge {
        /// What the message claims, as far as it was counted.
        bytes: usize,
        /// What is accepted.
        max: usize,
    },
    /// The type byte means nothing.
    #[error(transparent)]
    UnknownMessageType(#[from] UnknownMessageType),
    /// The message is whole and means nothing.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl FrameError {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            FrameError::Io(_) => "io",
            FrameError::Truncated => "truncated",
            FrameError::TooManySegments { .. } => "too_many_segments",
            FrameError::TooLarge { .. } => "too_large",
            FrameError::UnknownMessageType(_) => "unknown_message_type",
            FrameError::Decode(_) => "malformed",
        }
    }
}

/// Reads messages from a stream.
///
/// It takes memory for bytes that have arrived, never for bytes that a peer merely announces: the buffer grows at most
/// to twice what is in it. All reading methods are cancel safe: what has arrived stays in the reader. They answer
/// `None` where the peer closed between two messages.
///
/// The data of blocks is not copied: it is a part of the buffer that they were read into, which stays in memory as long as any of them
/// does. Such a buffer has at most [`FrameReader::SHARED_BYTES`]; the next one is begun when it is nearly full, and takes over the
/// message that is not whole yet. So blocks of 4 KiB keep a tenth more than what [`FrameReader::taken`] counts, and whatever comes
/// at most three times that, as long as they are let go of in the order in which they came. A block that is kept while later ones go is
/// to be copied. The data of what is larger than such a buffer is copied here.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    limits: Limits,
    /// What has arrived and was not returned.
    buffer: BytesMut,
    /// Bytes of the whole buffer that this is the rest of.
    buffer_bytes: usize,
    taken: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Room for one read from the stream. With less than a quarter of it a new buffer is begun.
    const READ_BYTES: usize = 64 << 10;
    /// Most bytes of a buffer that blocks are parts of.
    pub const SHARED_BYTES: usize = Self::READ_BYTES;
    /// Bytes of the first buffer for a handshake: as many as nearly all of them take. Whoever connects gets no more for saying nothing.
    const GREETING_BYTES: usize = 512;

    /// Reads from `reader`, accepting what `limits` allow.
    pub fn new(reader: R, limits: Limits) -> Self {
        Self { reader, limits, buffer: BytesMut::new(), buffer_bytes: 0, taken: 0 }
    }

    /// Reads a handshake request; one of at most [`Limits::MAX_HANDSHAKE_BYTES`].
    pub async fn handshake_request(&mut self) -> Result<Option<HandshakeRequest>, FrameError> {
        self.message(Self::GREETING_BYTES, self.limits.of_handshake(), HandshakeRequest::decode).await
    }

    /// Reads a handshake response; one of at most [`Limits::MAX_HANDSHAKE_BYTES`].
    pub async fn handshake_response(&mut self) -> Result<Option<HandshakeResponse>, FrameError> {
        self.message(Self::GREETING_BYTES, self.limits.of_handshake(), HandshakeResponse::decode).await
    }

    /// Reads a response of the server.
    pub async fn response(&mut self) -> Result<Option<Response>, FrameError> {
        self.message(Self::READ_BYTES, self.limits, Response::decode).await
    }

    /// Reads what a client sends after the handshake: type byte and message.
    pub async fn client_message(&mut self) -> Result<Option<ClientMessage>, FrameError> {
        loop {
            if let Some(message) = self.buffered_client_message()? {
                return Ok(Some(message));
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads from the stream once. False where the peer closed between two messages. For whoever looks at
    /// [`Self::buffered_client_message`] and [`Self::awaited`] itself between two reads.
    pub async fn read_more(&mut self) -> Result<bool, FrameError> {
        self.fill(Self::READ_BYTES).await
    }

    /// Bytes that the client message takes which has begun to arrive, its type byte included; none where its segment table is not there
    /// yet, or no message has begun. A peer claims it: it is within the limits, and most of it may never come.
    pub fn awaited(&self) -> Option<usize> {
        match wire::frame_length(self.buffer.get(1..)?, &self.limits) {
            Ok(FrameLength::Whole(length)) => Some(1 + length),
            _ => None,
        }
    }

    /// Bytes that have arrived and were not returned.
    pub fn arrived(&self) -> usize {
        self.buffer.len()
    }

    /// The next client message, if it has arrived already. Never waits.
    pub fn buffered_client_message(&mut self) -> Result<Option<ClientMessage>, FrameError> {
        let Some((&type_byte, bytes)) = self.buffer.split_first() else {
            return Ok(None);
        };
        let message_type = MessageType::try_from(type_byte)?;
        let Some(length) = whole_message(bytes, &self.limits)? else {
            return Ok(None);
        };
        self.taken += 1 + length as u64;
        if message_type == MessageType::TlogBlock && self.buffer_bytes <= Self::SHARED_BYTES {
            let mut message = self.buffer.split_to(1 + length).freeze();
            message.advance(1);
            return Ok(Some(ClientMessage::decode_shared(message_type, &message)?));
        }
        let decoded = ClientMessage::decode(message_type, bytes.get(..length).unwrap_or_default());
        self.buffer.advance(1 + length);
        Ok(Some(decoded?))
    }

    /// Bytes of all client messages that were returned, their own framing included.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether bytes have arrived that were not returned yet. Where [`Self::buffered_client_message`] has nothing, they
    /// are a part of a message whose rest is to come.
    pub fn is_mid_message(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads on until the stream ends, or breaks, with nothing in it that was not returned: its other end has gone. Returns no message;
    /// what comes is kept for whoever reads next, up to 64 KiB, and then nothing more is read. Cancel safe.
    pub async fn gone(&mut self) {
        loop {
            if self.buffer.len() >= Self::READ_BYTES {
                return std::future::pending().await;
            }
            match self.fill(Self::GREETING_BYTES).await {
                Ok(true) => {}
                Ok(false) | Err(FrameError::Io(_)) => return,
                // Who has sent something and closes may still listen.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// The stream it reads from. What has been read from it and not been returned is gone.
    pub fn into_inner(self) -> R {
        self.reader
    }

    async fn message<T>(
        &mut self,
        room: usize,
        limits: Limits,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(length) = whole_message(&self.buffer, &limits)? {
                let decoded = decode(self.buffer.get(..length).unwrap_or_default());
                self.buffer.advance(length);
                return Ok(Some(decoded?));
            }
            if !self.fill(room).await? {
                return Ok(None);
            }
        }
    }

    /// Reads once, into a buffer of at least `room` bytes. False where the peer closed between two messages.
    async fn fill(&mut self, room: usize) -> Result<bool, FrameError> {
        self.make_room(room);
        match self.reader.read_buf(&mut self.buffer).await? {
            0 if self.buffer.is_empty() => Ok(false),
            0 => Err(FrameError::Truncated),
            _ => Ok(true),
        }
    }

    fn make_room(&mut self, room: usize) {
        let unread = self.buffer.len();
        if unread == 0 && self.buffer_bytes > 4 * Self::READ_BYTES {
            self.buffer = BytesMut::new(); // one large message must not keep its memory for ever
        }
        if self.buffer.capacity() - unread >= room / 4 {
            return;
        }
        let bytes = (unread * 2).max(room);
        // The same one, where nobody has a part of it any more.
        if bytes <= self.buffer_bytes && self.buffer.try_reclaim(self.buffer_bytes - unread) {
            return;
        }
        let mut larger = BytesMut::with_capacity(bytes);
        larger.extend_from_slice(&self.buffer);
        self.buffer = larger;
        self.buffer_bytes = bytes;
    }
}

/// How long the message is that `bytes` begin with, if all of it is there.
fn whole_message(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, FrameError> {
    match wire::frame_length(bytes, limits)? {
        FrameLength::Whole(length) if length <= bytes.len() => Ok(Some(length)),
        _ => Ok(None),
    }
}
