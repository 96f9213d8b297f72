//! What several tests of this crate need.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use bytes::{Bytes, BytesMut};
use capnp::message::{AllocationStrategy, Builder, HeapAllocator, ReaderOptions};
use capnp::{any_pointer, serialize};
use tlog_proto::{
    Aggregation, Block, BlockIndex, BlockStatus, ClientMessage, HandshakeRequest, HandshakeResponse,
    HandshakeStatus, MessageType, Response, Sequence, Timestamp, VdiskId,
};

/// The bytes that `encode` appends.
pub(crate) fn bytes_of(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.to_vec()
}

/// Bytes written as hex, blanks and line ends ignored.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    hex::decode(digits).unwrap()
}

/// A message of one segment with these words in it.
pub(crate) fn message_of_words(words: &[u64]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&(words.len() as u32).to_le_bytes());
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out
}

/// The same message, laid out anew in segments of so many words.
pub(crate) fn in_segments_of(words: u32, message: &[u8]) -> Vec<u8> {
    let reader = serialize::read_message(message, ReaderOptions::new()).unwrap();
    let allocator =
        HeapAllocator::new().first_segment_words(words).allocation_strategy(AllocationStrategy::FixedSize);
    let mut builder = Builder::new(allocator);
    builder.set_root(reader.get_root::<any_pointer::Reader<'_>>().unwrap()).unwrap();
    serialize::write_message_to_words(&builder)
}

/// Segments of a message.
pub(crate) fn segments(message: &[u8]) -> u32 {
    u32::from_le_bytes(message[..4].try_into().unwrap()) + 1
}

pub(crate) fn set(sequence: u64, index: u64, timestamp: u64, data: impl Into<Bytes>) -> Block {
    Block::set(Sequence(sequence), BlockIndex::new(index).unwrap(), Timestamp(timestamp), data.into())
}

pub(crate) fn delete(sequence: u64, index: u64, timestamp: u64) -> Block {
    Block::delete(Sequence(sequence), BlockIndex::new(index).unwrap(), Timestamp(timestamp))
}

pub(crate) fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

pub(crate) fn handshake_request() -> HandshakeRequest {
    HandshakeRequest::new(vdisk("myimg"), Sequence(1))
}

pub(crate) fn handshake_response() -> HandshakeResponse {
    HandshakeResponse::new(HandshakeStatus::Ok)
}

pub(crate) fn response(status: BlockStatus, sequences: impl IntoIterator<Item = u64>) -> Response {
    Response { status, sequences: sequences.into_iter().map(Sequence).collect() }
}

pub(crate) fn aggregation(blocks: Vec<Block>, prev: &[u8]) -> Aggregation {
    Aggregation {
        name: Aggregation::NAME.to_owned(),
        timestamp: Timestamp(1_500_000_000_000_000_000),
        vdisk_id: vdisk("myimg"),
        blocks,
        prev: Bytes::copy_from_slice(prev),
    }
}

/// One decoder of whole messages, with a message that it accepts.
pub(crate) struct Decoder {
    pub(crate) name: &'static str,
    pub(crate) sample: Vec<u8>,
    /// What it makes of bytes, as text, so that all decoders are alike.
    pub(crate) decode: fn(&[u8]) -> Result<String, String>,
}

/// Every decoder of this crate that takes one whole message.
pub(crate) fn decoders() -> Vec<Decoder> {
    fn text<T: std::fmt::Debug, E: std::fmt::Display>(decoded: Result<T, E>) -> Result<String, String> {
        decoded.map(|value| format!("{value:?}")).map_err(|error| error.to_string())
    }
    let without_type_byte = |message: ClientMessage| bytes_of(|out| message.encode_into(out))[1..].to_vec();
    let block = set(7, 42, 1_500_000_000_000_000_000, vec![5; 100]);
    let blocks = vec![block.clone(), delete(8, 43, 2), set(9, 44, 3, vec![1; 7])];
    vec![
        Decoder {
            name: "HandshakeRequest",
            sample: bytes_of(|out| handshake_request().encode_into(out)),
            decode: |bytes| text(HandshakeRequest::decode(bytes)),
        },
        Decoder {
            name: "HandshakeResponse",
            sample: bytes_of(|out| handshake_response().encode_into(out)),
            decode: |bytes| text(HandshakeResponse::decode(bytes)),
        },
        Decoder {
            name: "Response",
            sample: bytes_of(|out| response(BlockStatus::FlushOk, 1..=25).encode_into(out)),
            decode: |bytes| text(Response::decode(bytes)),
        },
        Decoder {
            name: "ClientMessage of a block",
            sample: without_type_byte(block.into()),
            decode: |bytes| text(ClientMessage::decode(MessageType::TlogBlock, bytes)),
        },
        Decoder {
            name: "ClientMessage of a force flush",
            sample: without_type_byte(ClientMessage::ForceFlushAtSeq(Sequence(9))),
            decode: |bytes| text(ClientMessage::decode(MessageType::ForceFlushAtSeq, bytes)),
        },
        Decoder {
            name: "ClientMessage of a wait for the slave",
            sample: without_type_byte(ClientMessage::WaitNbdSlaveSync),
            decode: |bytes| text(ClientMessage::decode(MessageType::WaitNbdSlaveSync, bytes)),
        },
        Decoder {
            name: "Aggregation",
            sample: bytes_of(|out| aggregation(blocks, &[3; 32]).encode_into(out)),
            decode: |bytes| text(Aggregation::decode(bytes)),
        },
    ]
}
