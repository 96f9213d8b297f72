//! What is encoded decodes to the same, in any layout and at any address.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use bytes::Bytes;
use proptest::prelude::*;
use support::{bytes_of, decoders, in_segments_of, segments};
use tlog_proto::{
    Aggregation, Block, BlockHash, BlockIndex, BlockStatus, ClientMessage, Generation, HandshakeRequest,
    HandshakeResponse, HandshakeStatus, Limits, LogPosition, Refusal, Response, Sequence, SessionId,
    Timestamp, UnverifiedBlock, VdiskId, Version,
};

fn position() -> impl Strategy<Value = LogPosition> {
    any::<(u64, u64)>().prop_map(|(generation, sequence)| LogPosition {
        generation: Generation(generation),
        sequence: Sequence(sequence),
    })
}

fn vdisk_id() -> impl Strategy<Value = VdiskId> {
    ("[a-zA-Z0-9]", prop::collection::vec("[a-zA-Z0-9._:@+-]", 0..128))
        .prop_map(|(first, rest)| VdiskId::new(&(first + &rest.concat())).unwrap())
}

fn data(longest: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..longest).prop_map(Bytes::from)
}

fn block() -> impl Strategy<Value = Block> {
    (any::<u64>(), 0..=i64::MAX as u64, any::<u64>(), data(200)).prop_map(
        |(sequence, index, timestamp, data)| {
            let (sequence, index) = (Sequence(sequence), BlockIndex::new(index).unwrap());
            match data.is_empty() {
                true => Block::delete(sequence, index, Timestamp(timestamp)),
                false => Block::set(sequence, index, Timestamp(timestamp), data),
            }
        },
    )
}

fn unverified_block() -> impl Strategy<Value = UnverifiedBlock> {
    (any::<(u64, i64, u8, u64)>(), any::<Option<[u8; 32]>>(), data(2000)).prop_map(
        |((sequence, index, operation, timestamp), hash, data)| UnverifiedBlock {
            sequence: Sequence(sequence),
            index,
            operation,
            timestamp: Timestamp(timestamp),
            hash: hash.map(BlockHash),
            data,
        },
    )
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    prop_oneof![
        unverified_block().prop_map(ClientMessage::Block),
        any::<u64>().prop_map(|sequence| ClientMessage::ForceFlushAtSeq(Sequence(sequence))),
        Just(ClientMessage::WaitNbdSlaveSync),
    ]
}

proptest! {
    #[test]
    fn the_data_of_each_block_of_an_aggregation_is_where_it_is_said_to_be(
        vdisk_id in vdisk_id(),
        blocks in prop::collection::vec(block(), 0..20),
    ) {
        let lengths: Vec<u32> = blocks.iter().map(|block| block.size() as u32).collect();
        let (name, timestamp, prev) = (Aggregation::NAME.to_owned(), Timestamp(1), Bytes::new());
        let aggregation = Aggregation { name, timestamp, vdisk_id: vdisk_id.clone(), blocks, prev };
        let message = bytes_of(|out| aggregation.encode_into(out));
        let places = Aggregation::data_places(&vdisk_id, &lengths);
        prop_assert_eq!(places.len(), lengths.len());
        for (block, place) in aggregation.blocks.iter().zip(places) {
            prop_assert_eq!(&message[place as usize..][..block.size()], &block.data[..]);
        }
    }

    #[test]
    fn handshake_requests(
        vdisk_id in vdisk_id(),
        (version, first, reset, session) in any::<(u32, u64, bool, u64)>(),
        returning in prop::option::of(position()),
        words in 1..20u32,
    ) {
        let request = HandshakeRequest {
            version: Version::from_wire(version),
            vdisk_id,
            first_sequence: Sequence(first),
            reset_first_sequence: reset,
            session: SessionId(session),
            returning,
        };
        let bytes = bytes_of(|out| request.encode_into(out));
        prop_assert_eq!(segments(&bytes), 1);
        prop_assert_eq!(&HandshakeRequest::decode(&bytes).unwrap(), &request);
        prop_assert_eq!(&HandshakeRequest::decode(&in_segments_of(words, &bytes)).unwrap(), &request);
    }

    #[test]
    fn handshake_responses(
        version: u32,
        status in prop::sample::select(HandshakeStatus::ALL),
        last_flushed: Option<u64>,
        refusal in prop::option::of(prop::sample::select(Refusal::ALL)),
        end in prop::option::of(position()),
        words in 1..20u32,
    ) {
        let version = Version::from_wire(version);
        let response = HandshakeResponse { version, status, last_flushed: last_flushed.map(Sequence), refusal, end };
        let bytes = bytes_of(|out| response.encode_into(out));
        prop_assert_eq!(segments(&bytes), 1);
        prop_assert_eq!(&HandshakeResponse::decode(&bytes).unwrap(), &response);
        prop_assert_eq!(&HandshakeResponse::decode(&in_segments_of(words, &bytes)).unwrap(), &response);
    }

    #[test]
    fn responses(
        status in prop::sample::select(BlockStatus::ALL),
        sequences in prop::collection::vec(any::<u64>().prop_map(Sequence), 0..200),
        words in 1..20u32,
    ) {
        let response = Response { status, sequences };
        let bytes = bytes_of(|out| response.encode_into(out));
        prop_assert_eq!(segments(&bytes), 1);
        prop_assert_eq!(&Response::decode(&bytes).unwrap(), &response);
        prop_assert_eq!(&Response::decode(&in_segments_of(words, &bytes)).unwrap(), &response);
    }

    #[test]
    fn client_messages(message in client_message(), words in 1..20u32, more in data(20)) {
        let bytes = bytes_of(|out| message.encode_into(out));
        prop_assert_eq!(segments(&bytes[1..]), 1);
        let laid_out = [&bytes[..1], &in_segments_of(words, &bytes[1..])].concat();
        for bytes in [bytes, laid_out] {
            let followed = [&bytes[..], &more].concat();
            let (decoded, used) = ClientMessage::decode_from_slice(&followed, &Limits::default()).unwrap();
            prop_assert_eq!(used, bytes.len());
            prop_assert_eq!(&decoded, &message);
        }
    }

    #[test]
    fn aggregations(
        name in "\\PC{0,20}",
        timestamp: u64,
        vdisk_id in vdisk_id(),
        blocks in prop::collection::vec(block(), 0..30),
        prev in data(40),
        words in 1..40u32,
    ) {
        let aggregation = Aggregation { name, timestamp: Timestamp(timestamp), vdisk_id, blocks, prev };
        let bytes = bytes_of(|out| aggregation.encode_into(out));
        prop_assert_eq!(segments(&bytes), 1);
        prop_assert_eq!(&Aggregation::decode(&bytes).unwrap(), &aggregation);
        prop_assert_eq!(&Aggregation::decode_shared(&Bytes::copy_from_slice(&bytes)).unwrap(), &aggregation);
        let in_segments = Bytes::from(in_segments_of(words, &bytes));
        prop_assert_eq!(&Aggregation::decode(&in_segments).unwrap(), &aggregation);
        prop_assert_eq!(&Aggregation::decode_shared(&in_segments).unwrap(), &aggregation);
    }
}

#[test]
fn messages_of_many_small_segments_are_read_by_every_decoder() {
    for decoder in decoders() {
        let expected = (decoder.decode)(&decoder.sample).unwrap();
        for words in 1..40 {
            let laid_out = in_segments_of(words, &decoder.sample);
            assert_eq!((decoder.decode)(&laid_out).unwrap(), expected, "{}, {words} words", decoder.name);
        }
        let smallest = in_segments_of(1, &decoder.sample);
        assert!(segments(&smallest) > 1, "{}", decoder.name);
    }
}

#[test]
fn messages_are_read_at_any_address() {
    for decoder in decoders() {
        let expected = (decoder.decode)(&decoder.sample).unwrap();
        for message in [decoder.sample.clone(), in_segments_of(2, &decoder.sample)] {
            for shift in 0..8 {
                let shifted = [&vec![0; shift], &message[..]].concat();
                let decoded = (decoder.decode)(&shifted[shift..]);
                assert_eq!(decoded.as_ref(), Ok(&expected), "{}, shifted by {shift}", decoder.name);
            }
        }
    }
}
