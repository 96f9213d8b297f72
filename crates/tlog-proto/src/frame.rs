//! Reading framed messages from a stream, from a peer that may lie.

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
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    limits: Limits,
    buffer: Vec<u8>,
    /// What is unread is `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Room for one read from the stream.
    const READ_BYTES: usize = 64 << 10;

    /// Reads from `reader`, accepting what `limits` allow.
    pub fn new(reader: R, limits: Limits) -> Self {
        Self { reader, limits, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Reads a handshake request; one of at most [`Limits::MAX_HANDSHAKE_BYTES`].
    pub async fn handshake_request(&mut self) -> Result<Option<HandshakeRequest>, FrameError> {
        self.message(self.limits.of_handshake(), HandshakeRequest::decode).await
    }

    /// Reads a handshake response; one of at most [`Limits::MAX_HANDSHAKE_BYTES`].
    pub async fn handshake_response(&mut self) -> Result<Option<HandshakeResponse>, FrameError> {
        self.message(self.limits.of_handshake(), HandshakeResponse::decode).await
    }

    /// Reads a response of the server.
    pub async fn response(&mut self) -> Result<Option<Response>, FrameError> {
        self.message(self.limits, Response::decode).await
    }

    /// Reads what a client sends after the handshake: type byte and message.
    pub async fn client_message(&mut self) -> Result<Option<ClientMessage>, FrameError> {
        loop {
            if let Some(message) = self.buffered_client_message()? {
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next client message, if it has arrived already. Never waits.
    pub fn buffered_client_message(&mut self) -> Result<Option<ClientMessage>, FrameError> {
        let Some(&type_byte) = self.unread().first() else {
            return Ok(None);
        };
        let message_type = MessageType::try_from(type_byte)?;
        self.buffered(1, self.limits, |message| ClientMessage::decode(message_type, message))
    }

    /// Whether bytes have arrived that were not returned yet. Where [`Self::buffered_client_message`] has nothing, they
    /// are a part of a message whose rest is to come.
    pub fn is_mid_message(&self) -> bool {
        self.start < self.end
    }

    /// The stream it reads from. What has been read from it and not been returned is gone.
    pub fn into_inner(self) -> R {
        self.reader
    }

    async fn message<T>(
        &mut self,
        limits: Limits,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(message) = self.buffered(0, limits, &decode)? {
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Decodes the message that begins `skip` bytes into what is unread, if all of it is there.
    fn buffered<T>(
        &mut self,
        skip: usize,
        limits: Limits,
        decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, FrameError> {
        let bytes = self.unread().get(skip..).unwrap_or_default();
        let FrameLength::Whole(length) = wire::frame_length(bytes, &limits)? else {
            return Ok(None);
        };
        let Some(message) = bytes.get(..length) else {
            return Ok(None);
        };
        let decoded = decode(message);
        self.start += skip + length;
        Ok(Some(decoded?))
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads once. False where the peer closed between two messages.
    async fn fill(&mut self) -> Result<bool, FrameError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == 0 && self.buffer.len() > 4 * Self::READ_BYTES {
            self.buffer = Vec::new(); // one large message must not keep its memory for ever
        }
        if self.end == self.buffer.len() {
            self.buffer.resize((self.end * 2).max(Self::READ_BYTES), 0);
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        match self.reader.read(free).await? {
            0 if self.end == 0 => Ok(false),
            0 => Err(FrameError::Truncated),
            read => {
                self.end += read;
                Ok(true)
            }
        }
    }
}
