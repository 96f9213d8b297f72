//! Cap'n Proto messages: what decodes and is encoded again says the same.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    Aggregation, Block, BlockIndex, BlockStatus, ClientMessage, Generation, HandshakeRequest,
    HandshakeResponse, HandshakeStatus, Limits, LogPosition, MessageType, Refusal, Response, Sequence,
    SessionId, Timestamp, VdiskId,
};

use crate::Target;

/// The first byte says as which message the rest is read.
pub const TARGET: Target = Target { name: "messages", memory: 1 << 20, check, seeds };

fn check(input: &[u8]) {
    let Some((&kind, message)) = input.split_first() else { return };
    match kind % 7 {
        0 => again(HandshakeRequest::decode(message).ok(), HandshakeRequest::encode_into, |bytes| {
            HandshakeRequest::decode(bytes).ok()
        }),
        1 => again(HandshakeResponse::decode(message).ok(), HandshakeResponse::encode_into, |bytes| {
            HandshakeResponse::decode(bytes).ok()
        }),
        2 => {
            again(Response::decode(message).ok(), Response::encode_into, |bytes| Response::decode(bytes).ok())
        }
        3 => aggregation(message),
        4 => {
            let decode = |bytes: &[u8]| {
                let (decoded, used) = ClientMessage::decode_from_slice(bytes, &Limits::default()).ok()?;
                assert!(used <= bytes.len());
                Some(decoded)
            };
            again(decode(message), ClientMessage::encode_into, decode);
        }
        5 => block(message),
        _ => {
            for message_type in [MessageType::ForceFlushAtSeq, MessageType::WaitNbdSlaveSync] {
                let _ = ClientMessage::decode(message_type, message);
            }
        }
    }
}

/// Encodes what was decoded, and decodes that.
fn again<T: PartialEq + Debug>(
    decoded: Option<T>,
    encode: impl Fn(&T, &mut BytesMut),
    decode: impl Fn(&[u8]) -> Option<T>,
) {
    let Some(decoded) = decoded else { return };
    let mut bytes = BytesMut::new();
    encode(&decoded, &mut bytes);
    assert_eq!(decode(&bytes).as_ref(), Some(&decoded), "encoded and decoded again");
}

/// Three ways to decode one that answer the same.
fn aggregation(message: &[u8]) {
    let copied = Aggregation::decode(message).ok();
    let bytes = Bytes::copy_from_slice(message);
    assert_eq!(Aggregation::decode_shared(&bytes).ok(), copied);
    assert_eq!(Aggregation::decode_hashing(&bytes, |_| true).ok(), copied);
    if let Ok(trusted) = Aggregation::decode_hashing(&bytes, |_| false) {
        assert!(trusted.blocks.len() <= message.len());
    }
    again(copied, Aggregation::encode_into, |bytes| Aggregation::decode(bytes).ok());
}

/// One that is taken for good has the hash of its data.
fn block(message: &[u8]) {
    let copied = ClientMessage::decode(MessageType::TlogBlock, message).ok();
    let bytes = Bytes::copy_from_slice(message);
    assert_eq!(ClientMessage::decode_shared(MessageType::TlogBlock, &bytes).ok(), copied);
    let Some(ClientMessage::Block(block)) = copied else { return };
    let unverified = block.clone();
    let Ok(block) = block.verify() else { return };
    let expected = match block.data.is_empty() {
        true => Block::delete(block.sequence, block.index, block.timestamp),
        false => Block::set(block.sequence, block.index, block.timestamp, block.data.clone()),
    };
    assert_eq!(block, expected);
    assert_eq!(tlog_proto::UnverifiedBlock::from(block), unverified);
}

fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, encode: &dyn Fn(&mut BytesMut)| {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        [&[kind], &bytes[..]].concat()
    };
    let vdisk = VdiskId::new("myimg").unwrap();
    let position = LogPosition { generation: Generation(2), sequence: Sequence(9) };
    let request = HandshakeRequest {
        session: SessionId(7),
        returning: Some(position),
        ..HandshakeRequest::new(vdisk.clone(), Sequence(10))
    };
    let response = HandshakeResponse {
        last_flushed: Some(Sequence(9)),
        end: Some(position),
        ..HandshakeResponse::refused(HandshakeStatus::InvalidRequest, Refusal::LogUnavailable)
    };
    let index = BlockIndex::new(3).unwrap();
    let set = Block::set(Sequence(1), index, Timestamp(5), Bytes::from_static(b"some text"));
    let delete = Block::delete(Sequence(2), index, Timestamp(6));
    let aggregation = Aggregation {
        name: "The Go Tlog".to_owned(),
        timestamp: Timestamp(7),
        vdisk_id: vdisk,
        blocks: vec![set.clone(), delete.clone()],
        prev: Bytes::from_static(b"before"),
    };
    let answer = Response { status: BlockStatus::FlushOk, sequences: vec![Sequence(1), Sequence(2)] };
    let without_type = |block: &Block, out: &mut BytesMut| {
        let mut bytes = BytesMut::new();
        block.encode_into(&mut bytes);
        out.extend_from_slice(&bytes[1..]);
    };
    vec![
        of(0, &|out| request.encode_into(out)),
        of(1, &|out| response.encode_into(out)),
        of(2, &|out| answer.encode_into(out)),
        of(3, &|out| aggregation.encode_into(out)),
        of(4, &|out| set.encode_into(out)),
        of(4, &|out| ClientMessage::ForceFlushAtSeq(Sequence(9)).encode_into(out)),
        of(4, &|out| ClientMessage::WaitNbdSlaveSync.encode_into(out)),
        of(5, &|out| without_type(&set, out)),
        of(5, &|out| without_type(&delete, out)),
    ]
}
