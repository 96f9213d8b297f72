//! The messages of a connection, as plain types.

use bytes::{Bytes, BytesMut};

use crate::flat::Flat;
use crate::frame::FrameError;
use crate::generated::tlog_capnp::{
    command, handshake_request, handshake_response, tlog_block, tlog_response,
};
use crate::wire::{self, FrameLength};
use crate::{
    Block, BlockHash, BlockStatus, Generation, HandshakeStatus, IllegalVdiskId, Limits, LogPosition, Refusal,
    Sequence, SessionId, Timestamp, UnknownStatus, UnverifiedBlock, VdiskId, Version,
};

/// A whole message arrived and does not mean anything.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not Cap'n Proto: a pointer out of bounds, a list of the wrong kind, too deep, or cut short.
    #[error("malformed Cap'n Proto message: {0}")]
    Malformed(#[from] capnp::Error),
    /// A handshake for a vdisk that cannot exist.
    #[error("illegal vdisk id: {0}")]
    IllegalVdiskId(#[from] IllegalVdiskId),
    /// A status of a later protocol, or none.
    #[error(transparent)]
    UnknownStatus(#[from] UnknownStatus),
}

/// First message of a connection, client to server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// What the client speaks.
    pub version: Version,
    /// The vdisk it writes.
    pub vdisk_id: VdiskId,
    /// Sequence of the first block that it will send.
    pub first_sequence: Sequence,
    /// Start over at `first_sequence`, whatever the log holds.
    pub reset_first_sequence: bool,
    /// Which client instance this is; [`SessionId::UNKNOWN`] from clients that do not tell.
    pub session: SessionId,
    /// This client instance was accepted before, here or at another server, and the log ended there then
    /// ([`HandshakeResponse::end`] of the first answer that accepted it). It takes the vdisk over from nobody who came after it, and
    /// begins a new generation only where nothing was stored since. None from a client that comes for the first time.
    pub returning: Option<LogPosition>,
}

impl HandshakeRequest {
    /// That of a client of this version that was never there before, and does not tell its session.
    pub fn new(vdisk_id: VdiskId, first_sequence: Sequence) -> Self {
        Self {
            version: Version::CURRENT,
            vdisk_id,
            first_sequence,
            reset_first_sequence: false,
            session: SessionId::UNKNOWN,
            returning: None,
        }
    }

    /// Parses one message, without anything before or after it.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let reader = wire::open(message)?;
        let root = reader.get_root::<handshake_request::Reader<'_>>()?;
        Ok(Self {
            version: Version::from_wire(root.get_version()),
            vdisk_id: VdiskId::from_bytes(root.get_vdisk_i_d()?.as_bytes())?,
            first_sequence: Sequence(root.get_first_sequence()),
            reset_first_sequence: root.get_reset_first_sequence(),
            session: SessionId(root.get_session()),
            returning: root
                .get_returning()
                .then(|| position(root.get_found_generation(), root.get_found_sequence())),
        })
    }

    /// Appends it to `out` as it goes over the wire.
    pub fn encode_into(&self, out: &mut BytesMut) {
        let words = 1 + 5 + 1 + wire::words(self.vdisk_id.as_str().len() + 1);
        wire::build(out, words, |message| {
            let mut root = message.init_root::<handshake_request::Builder<'_>>();
            root.set_version(self.version.to_wire());
            root.set_vdisk_i_d(self.vdisk_id.as_str());
            root.set_first_sequence(self.first_sequence.0);
            root.set_reset_first_sequence(self.reset_first_sequence);
            root.set_session(self.session.0);
            if let Some(found) = self.returning {
                root.set_returning(true);
                root.set_found_generation(found.generation.0);
                root.set_found_sequence(found.sequence.0);
            }
        });
    }
}

/// Answer to a [`HandshakeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeResponse {
    /// What the server speaks.
    pub version: Version,
    /// How it went.
    pub status: HandshakeStatus,
    /// Last sequence that is durable in the generation which the client would continue. None from servers that do
    /// not tell, and where nothing is.
    pub last_flushed: Option<Sequence>,
    /// Why the status is an error, closer than it can say. None from servers that do not tell.
    pub refusal: Option<Refusal>,
    /// Where the log ends for the client that is accepted; generation and sequence 0 where it is empty. None from servers that do not
    /// tell, and in a refusal.
    pub end: Option<LogPosition>,
}

impl HandshakeResponse {
    /// The answer of this version, with nothing told beside the status.
    pub fn new(status: HandshakeStatus) -> Self {
        Self { version: Version::CURRENT, status, last_flushed: None, refusal: None, end: None }
    }

    /// The answer of this version that refuses, and says why.
    pub fn refused(status: HandshakeStatus, refusal: Refusal) -> Self {
        Self { refusal: Some(refusal), ..Self::new(status) }
    }

    /// The log cannot be opened, or not in time.
    pub fn unavailable() -> Self {
        Self::refused(HandshakeStatus::InternalServerError, Refusal::LogUnavailable)
    }
}

impl HandshakeResponse {
    /// Parses one message, without anything before or after it.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let reader = wire::open(message)?;
        let root = reader.get_root::<handshake_response::Reader<'_>>()?;
        Ok(Self {
            version: Version::from_wire(root.get_version()),
            status: root.get_status().try_into()?,
            last_flushed: root.get_has_last_flushed().then(|| Sequence(root.get_last_flushed_sequence())),
            refusal: Refusal::from_wire(root.get_refusal()),
            end: root.get_has_end().then(|| position(root.get_end_generation(), root.get_end_sequence())),
        })
    }

    /// Appends it to `out` as it goes over the wire.
    pub fn encode_into(&self, out: &mut BytesMut) {
        wire::build(out, 1 + 4, |message| {
            let mut root = message.init_root::<handshake_response::Builder<'_>>();
            root.set_version(self.version.to_wire());
            root.set_status(self.status.number());
            if let Some(sequence) = self.last_flushed {
                root.set_last_flushed_sequence(sequence.0);
                root.set_has_last_flushed(true);
            }
            root.set_refusal(self.refusal.map_or(0, Refusal::to_wire));
            if let Some(end) = self.end {
                root.set_has_end(true);
                root.set_end_generation(end.generation.0);
                root.set_end_sequence(end.sequence.0);
            }
        });
    }
}

fn position(generation: u64, sequence: u64) -> LogPosition {
    LogPosition { generation: Generation(generation), sequence: Sequence(sequence) }
}

/// The byte in front of every message that a client sends after the handshake.
///
/// It alone decides what the message is: the `type` that a command repeats inside is written and not looked at.
///
/// The original calls the values `MessageTlogBlock`, `MessageForceFlushAtSeq` and `MessageWaitNbdSlaveSync`, and the
/// two functions `ReadCheckMessageType` and `WriteMessageType`; here reading is `MessageType::try_from(byte)` (or
/// [`crate::FrameReader`], which does it) and writing is [`MessageType::byte`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A block follows.
    TlogBlock,
    /// A command follows: flush as soon as every block up to a sequence is there.
    ForceFlushAtSeq,
    /// A command follows: answer when the slave holds everything flushed so far.
    WaitNbdSlaveSync,
}

/// A byte that is no [`MessageType`]: the stream cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown message type {0}")]
pub struct UnknownMessageType(pub u8);

impl MessageType {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            MessageType::TlogBlock => 1,
            MessageType::ForceFlushAtSeq => 2,
            MessageType::WaitNbdSlaveSync => 3,
        }
    }
}

impl TryFrom<u8> for MessageType {
    type Error = UnknownMessageType;

    fn try_from(byte: u8) -> Result<Self, UnknownMessageType> {
        match byte {
            1 => Ok(MessageType::TlogBlock),
            2 => Ok(MessageType::ForceFlushAtSeq),
            3 => Ok(MessageType::WaitNbdSlaveSync),
            other => Err(UnknownMessageType(other)),
        }
    }
}

/// What a client sends after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A write.
    Block(UnverifiedBlock),
    /// Flush as soon as every block up to this sequence is there.
    ForceFlushAtSeq(Sequence),
    /// Answer when the slave holds everything flushed so far.
    WaitNbdSlaveSync,
}

impl ClientMessage {
    /// Parses the message that follows the given type byte.
    pub fn decode(message_type: MessageType, message: &[u8]) -> Result<Self, DecodeError> {
        // The data is copied, so that nothing keeps the message.
        Self::decode_with(message_type, message, Bytes::copy_from_slice)
    }

    /// The same without copying: a block's data is a part of the message, and keeps all of its memory.
    pub fn decode_shared(message_type: MessageType, message: &Bytes) -> Result<Self, DecodeError> {
        Self::decode_with(message_type, message, |data| part_of(message, data))
    }

    fn decode_with(
        message_type: MessageType,
        message: &[u8],
        share: impl FnOnce(&[u8]) -> Bytes,
    ) -> Result<Self, DecodeError> {
        let reader = wire::open(message)?;
        let command = || reader.get_root::<command::Reader<'_>>();
        Ok(match message_type {
            MessageType::TlogBlock => ClientMessage::Block(read_block(reader.get_root()?, share)?),
            MessageType::ForceFlushAtSeq => {
                ClientMessage::ForceFlushAtSeq(Sequence(command()?.get_sequence()))
            }
            MessageType::WaitNbdSlaveSync => {
                command()?;
                ClientMessage::WaitNbdSlaveSync
            }
        })
    }

    /// Parses the first message in `bytes`, type byte included; answers how many bytes it took.
    ///
    /// For streams, use [`crate::FrameReader`]; this is for bytes that are all there.
    pub fn decode_from_slice(bytes: &[u8], limits: &Limits) -> Result<(Self, usize), FrameError> {
        let (&type_byte, rest) = bytes.split_first().ok_or(FrameError::Truncated)?;
        let message_type = MessageType::try_from(type_byte)?;
        let FrameLength::Whole(length) = wire::frame_length(rest, limits)? else {
            return Err(FrameError::Truncated);
        };
        let message = rest.get(..length).ok_or(FrameError::Truncated)?;
        Ok((Self::decode(message_type, message)?, 1 + length))
    }

    /// Appends type byte and message to `out` as they go over the wire.
    pub fn encode_into(&self, out: &mut BytesMut) {
        match self {
            ClientMessage::Block(block) => encode_block(block.fields(), out),
            ClientMessage::ForceFlushAtSeq(sequence) => {
                encode_command(MessageType::ForceFlushAtSeq, *sequence, out)
            }
            ClientMessage::WaitNbdSlaveSync => {
                encode_command(MessageType::WaitNbdSlaveSync, Sequence(0), out)
            }
        }
    }
}

impl From<Block> for ClientMessage {
    fn from(block: Block) -> Self {
        ClientMessage::Block(block.into())
    }
}

impl Block {
    /// Appends type byte and message to `out`, as a client sends them.
    pub fn encode_into(&self, out: &mut BytesMut) {
        encode_block(self.fields(), out);
    }

    pub(crate) fn fields(&self) -> BlockFields<'_> {
        BlockFields {
            sequence: self.sequence,
            index: self.index.to_wire(),
            operation: self.operation.number(),
            timestamp: self.timestamp,
            hash: Some(&self.hash),
            data: &self.data,
        }
    }
}

impl UnverifiedBlock {
    fn fields(&self) -> BlockFields<'_> {
        BlockFields {
            sequence: self.sequence,
            index: self.index,
            operation: self.operation,
            timestamp: self.timestamp,
            hash: self.hash.as_ref(),
            data: &self.data,
        }
    }
}

/// A block's fields, borrowed, as they are written into messages.
pub(crate) struct BlockFields<'a> {
    sequence: Sequence,
    index: i64,
    operation: u8,
    timestamp: Timestamp,
    hash: Option<&'a BlockHash>,
    data: &'a [u8],
}

impl BlockFields<'_> {
    /// Words of the struct of a `TlogBlock`.
    pub(crate) const STRUCT: usize = 4 + 2;

    /// Words of its hash.
    pub(crate) const HASH: usize = 4;

    /// Words of its hash and data.
    pub(crate) fn content_words(&self) -> usize {
        self.hash.map_or(0, |_| Self::HASH) + wire::words(self.data.len())
    }

    /// Writes the struct. Empty data becomes a null pointer, as existing peers have it.
    pub(crate) fn write_struct(&self, out: &mut Flat<'_>) {
        out.word(self.sequence.0);
        out.word(self.index as u64);
        out.word(self.timestamp.0);
        out.word(self.operation.into());
        match self.hash {
            Some(hash) => out.bytes_pointer(hash.0.len()),
            None => out.null(),
        }
        match self.data.len() {
            0 => out.null(),
            length => out.bytes_pointer(length),
        }
    }

    /// Writes what its pointers lead to.
    pub(crate) fn write_content(&self, out: &mut Flat<'_>) {
        if let Some(hash) = self.hash {
            out.bytes(&hash.0);
        }
        out.bytes(self.data);
    }

    /// The same with the builder, for what needs more than one segment.
    pub(crate) fn build(&self, mut to: tlog_block::Builder<'_>) {
        to.set_sequence(self.sequence.0);
        to.set_index(self.index);
        to.set_timestamp(self.timestamp.0);
        to.set_operation(self.operation);
        if let Some(hash) = self.hash {
            to.set_hash(&hash.0);
        }
        if !self.data.is_empty() {
            to.set_data(self.data);
        }
    }
}

/// Reads a block out of a message or an aggregation. `share` makes its data of the message's.
pub(crate) fn read_block(
    from: tlog_block::Reader<'_>,
    share: impl FnOnce(&[u8]) -> Bytes,
) -> Result<UnverifiedBlock, DecodeError> {
    Ok(UnverifiedBlock {
        sequence: Sequence(from.get_sequence()),
        index: from.get_index(),
        operation: from.get_operation(),
        timestamp: Timestamp(from.get_timestamp()),
        hash: from.get_hash()?.try_into().ok().map(BlockHash),
        data: share(from.get_data()?),
    })
}

/// What was read out of a message as a part of it.
pub(crate) fn part_of(message: &Bytes, data: &[u8]) -> Bytes {
    match message.as_ptr_range().contains(&data.as_ptr()) {
        true => message.slice_ref(data),
        false => Bytes::copy_from_slice(data), // nothing but what is empty
    }
}

fn encode_block(block: BlockFields<'_>, out: &mut BytesMut) {
    let fixed = 1 + BlockFields::STRUCT;
    let words = fixed + block.content_words();
    out.reserve(1 + 8 + words * 8);
    out.extend_from_slice(&[MessageType::TlogBlock.byte()]);
    let Some(mut flat) = Flat::begin(out, words, fixed, block.data.len()) else {
        return wire::build(out, words, |message| block.build(message.init_root()));
    };
    flat.struct_pointer(4, 2);
    block.write_struct(&mut flat);
    block.write_content(&mut flat);
}

fn encode_command(message_type: MessageType, sequence: Sequence, out: &mut BytesMut) {
    out.extend_from_slice(&[message_type.byte()]);
    wire::build(out, 1 + 2, |message| {
        let mut root = message.init_root::<command::Builder<'_>>();
        root.set_type(message_type.byte());
        root.set_sequence(sequence.0);
    });
}

/// What the server says about blocks and commands, any time after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// What happened.
    pub status: BlockStatus,
    /// To which sequences; empty for some statuses.
    pub sequences: Vec<Sequence>,
}

impl Response {
    /// Parses one message, without anything before or after it.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let reader = wire::open(message)?;
        let root = reader.get_root::<tlog_response::Reader<'_>>()?;
        let sequences = root.get_sequences()?;
        // A list of empty structs can claim any length without being long; one of UInt64 cannot.
        Ok(Self {
            status: root.get_status().try_into()?,
            sequences: sequences.iter().map(Sequence).collect(),
        })
    }

    /// Appends it to `out` as it goes over the wire.
    pub fn encode_into(&self, out: &mut BytesMut) {
        Self::encode(self.status, &self.sequences, out);
    }

    /// Appends a response to `out` that nobody has made a [`Response`] of.
    pub fn encode(status: BlockStatus, sequences: &[Sequence], out: &mut BytesMut) {
        let count = sequences.len();
        let Some(mut flat) = Flat::begin(out, 3 + count, 3, count) else {
            return Self::build(status, sequences, out);
        };
        flat.struct_pointer(1, 1);
        flat.word(u64::from(status.number() as u8));
        flat.numbers_pointer(count);
        sequences.iter().for_each(|sequence| flat.word(sequence.0));
    }

    fn build(status: BlockStatus, sequences: &[Sequence], out: &mut BytesMut) {
        let count = u32::try_from(sequences.len()).unwrap_or(u32::MAX);
        wire::build(out, 1 + 2 + sequences.len(), |message| {
            let mut root = message.init_root::<tlog_response::Builder<'_>>();
            root.set_status(status.number());
            let mut list = root.init_sequences(count);
            for (at, sequence) in (0..count).zip(sequences) {
                list.set(at, sequence.0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_flat_is_what_the_builder_makes(
            numbers: (u64, i64, u64, u8),
            hash in prop::option::of(any::<[u8; 32]>()),
            data in prop::collection::vec(any::<u8>(), 0..40),
            sequences in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let (sequence, index, timestamp, operation) = numbers;
            let hash = hash.map(BlockHash);
            let fields = || BlockFields {
                sequence: Sequence(sequence),
                index,
                operation,
                timestamp: Timestamp(timestamp),
                hash: hash.as_ref(),
                data: &data,
            };
            let (mut flat, mut built) = (BytesMut::new(), BytesMut::from(&[1][..]));
            encode_block(fields(), &mut flat);
            wire::build(&mut built, 20, |message| fields().build(message.init_root()));
            prop_assert_eq!(flat, built);

            let sequences = sequences.into_iter().map(Sequence).collect();
            for status in [BlockStatus::RecvFailed, BlockStatus::FlushOk] {
                let response = Response { status, sequences: Vec::clone(&sequences) };
                let (mut flat, mut built) = (BytesMut::new(), BytesMut::new());
                response.encode_into(&mut flat);
                Response::build(response.status, &response.sequences, &mut built);
                prop_assert_eq!(flat, built);
            }
        }
    }
}
