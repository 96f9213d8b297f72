//! The bytes of the protocol: those recorded from existing peers, and some worked out by hand from
//! `docs/wire-protocol.md`, which are always there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use support::{
    aggregation, bytes_of, delete, from_hex, handshake_request, handshake_response, response, set, vdisk,
};
use tlog_proto::{
    Aggregation, Block, BlockStatus, ClientMessage, Generation, HandshakeRequest, HandshakeResponse,
    HandshakeStatus, Limits, LogPosition, Refusal, Response, Sequence, SessionId, Timestamp,
};

/// Recorded bytes; none where they are not beside the repository, which is no reason to fail.
fn recorded(name: &str) -> Option<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden");
    if !std::path::Path::new(folder).exists() {
        eprintln!("skipped: no recorded bytes beside the repository");
        return None;
    }
    Some(std::fs::read(format!("{folder}/{name}")).unwrap())
}

fn check_client_message(message: ClientMessage, bytes: &[u8]) {
    assert_eq!(hex::encode(bytes_of(|out| message.encode_into(out))), hex::encode(bytes));
    let decoded = ClientMessage::decode_from_slice(bytes, &Limits::default()).unwrap();
    assert_eq!(decoded, (message, bytes.len()));
}

fn check_response(response: Response, bytes: &[u8]) {
    assert_eq!(hex::encode(bytes_of(|out| response.encode_into(out))), hex::encode(bytes));
    assert_eq!(Response::decode(bytes).unwrap(), response);
}

fn check_aggregation(aggregation: Aggregation, bytes: &[u8]) {
    assert_eq!(hex::encode(bytes_of(|out| aggregation.encode_into(out))), hex::encode(bytes));
    assert_eq!(Aggregation::decode(bytes).unwrap(), aggregation);
}

#[test]
fn client_messages_equal_recorded_ones() {
    let data: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    let block = set(7, 42, 1_500_000_000_000_000_000, data);
    for (name, message) in [
        ("block.bin", block.into()),
        ("force_flush.bin", ClientMessage::ForceFlushAtSeq(Sequence(9))),
        ("wait_slave_sync.bin", ClientMessage::WaitNbdSlaveSync),
    ] {
        let Some(bytes) = recorded(name) else { return };
        check_client_message(message, &bytes);
    }
}

#[test]
fn responses_equal_recorded_ones() {
    for (name, expected) in [
        ("response_recv_ok.bin", response(BlockStatus::RecvOk, [7])),
        ("response_flush_ok.bin", response(BlockStatus::FlushOk, 1..=25)),
        ("response_force_flush_received.bin", response(BlockStatus::ForceFlushReceived, [])),
        ("response_flush_failed.bin", response(BlockStatus::FlushFailed, [])),
    ] {
        let Some(bytes) = recorded(name) else { return };
        check_response(expected, &bytes);
    }
}

#[test]
fn an_aggregation_equals_the_recorded_one() {
    let at = 1_500_000_000_000_000_000;
    let data: Vec<u8> = (0..100).collect();
    let blocks = vec![set(1, 10, at + 1, vec![b'a'; 64]), set(2, 11, at + 2, data), delete(3, 10, at + 3)];
    let Some(bytes) = recorded("aggregation.bin") else {
        return;
    };
    check_aggregation(aggregation(blocks, &[0; 32]), &bytes);
}

#[test]
fn recorded_handshakes_mean_what_they_say_and_leave_our_fields_unset() {
    // Field by field only: ours have more fields, so the bytes differ.
    let Some(bytes) = recorded("handshake_request.bin") else {
        return;
    };
    let request = HandshakeRequest::decode(&bytes).unwrap();
    assert_eq!(request.vdisk_id, vdisk("myimg"));
    assert_eq!(request.first_sequence, Sequence(1));
    assert!(!request.reset_first_sequence);
    assert_eq!(request.version.to_wire(), 0x0101_0008);
    assert_eq!(request.session, SessionId::UNKNOWN);

    for (name, status) in [
        ("handshake_response_ok.bin", HandshakeStatus::Ok),
        ("handshake_response_invalid_version.bin", HandshakeStatus::InvalidVersion),
    ] {
        let bytes = recorded(name).unwrap();
        let response = HandshakeResponse::decode(&bytes).unwrap();
        assert_eq!(response, HandshakeResponse { status, ..handshake_response() });
    }
}

#[test]
fn client_messages_have_the_documented_bytes() {
    let force_flush = "
        02                                   type byte: force flush
        00000000 03000000                    one segment of 3 words
        00000000 02000000                    root: a struct of 2 words of data
        02 00000000000000                    type, again
        0901000000000000                     sequence 265
    ";
    check_client_message(ClientMessage::ForceFlushAtSeq(Sequence(265)), &documented(force_flush));

    let wait = "
        03                                   type byte: wait for the slave
        00000000 03000000
        00000000 02000000
        03 00000000000000
        0000000000000000
    ";
    check_client_message(ClientMessage::WaitNbdSlaveSync, &documented(wait));

    let block = "
        01                                   type byte: block
        00000000 0c000000                    one segment of 12 words
        00000000 04000200                    root: a struct of 4 words of data, 2 pointers
        0700000000000000                     sequence
        2a00000000000000                     index
        0807060504030201                     timestamp
        01 00000000000000                    operation: set
        05000000 02010000                    hash: 1 word further, 32 bytes
        11000000 1a000000                    data: 4 words further, 3 bytes
        bddd813c634239723171ef3fee98579b     BLAKE2b-256 of abc
        94964e3bb1cb3e427262c8c068d52319
        616263 0000000000                    abc
    ";
    check_client_message(set(7, 42, 0x0102_0304_0506_0708, "abc").into(), &documented(block));

    let deletion = "
        01                                   type byte: block
        00000000 0b000000                    one segment of 11 words
        00000000 04000200
        0800000000000000
        2a00000000000000
        0000000000000000
        02 00000000000000                    operation: delete
        05000000 02010000
        00000000 00000000                    no data: a null pointer
        0e5751c026e543b2e8ab2eb06099daa1     BLAKE2b-256 of nothing
        d1e5df47778f7787faab45cdf12fe3a8
    ";
    check_client_message(delete(8, 42, 0).into(), &documented(deletion));
}

#[test]
fn responses_have_the_documented_bytes() {
    let flush_ok = "
        00000000 05000000                    one segment of 5 words
        00000000 01000100                    root: a struct of 1 word of data, 1 pointer
        02 00000000000000                    status FlushOk
        01000000 15000000                    sequences: right behind, 2 elements of 8 bytes
        0700000000000000
        0800000000000000
    ";
    check_response(response(BlockStatus::FlushOk, [7, 8]), &documented(flush_ok));

    let flush_failed = "
        00000000 03000000
        00000000 01000100
        fe 00000000000000                    status FlushFailed, -2
        01000000 05000000                    an empty list, not a null pointer
    ";
    check_response(response(BlockStatus::FlushFailed, []), &documented(flush_failed));
}

#[test]
fn handshakes_have_the_documented_bytes() {
    let request = HandshakeRequest {
        first_sequence: Sequence(3),
        reset_first_sequence: true,
        session: SessionId(0x0102_0304_0506_0708),
        returning: Some(LogPosition { generation: Generation(2), sequence: Sequence(0x0c) }),
        ..handshake_request()
    };
    let bytes = documented(
        "
        00000000 08000000                    one segment of 8 words
        00000000 05000100                    root: a struct of 5 words of data, 1 pointer
        08000101 03 000000                   version; reset (lowest bit), returning (the next)
        0300000000000000                     first sequence
        0807060504030201                     session
        0200000000000000                     found generation
        0c00000000000000                     found sequence
        01000000 32000000                    vdisk id: right behind, 6 bytes with the zero
        6d79696d67 000000                    myimg
        ",
    );
    assert_eq!(hex::encode(bytes_of(|out| request.encode_into(out))), hex::encode(&bytes));
    assert_eq!(HandshakeRequest::decode(&bytes).unwrap(), request);

    let response = HandshakeResponse {
        status: HandshakeStatus::InternalServerError,
        last_flushed: Some(Sequence(9)),
        refusal: Some(Refusal::TakenOver),
        end: Some(LogPosition { generation: Generation(1), sequence: Sequence(0x0a) }),
        ..handshake_response()
    };
    let bytes = documented(
        "
        00000000 05000000                    one segment of 5 words
        00000000 04000000                    root: a struct of 4 words of data
        08000101 fc 03 02 00                 version, status, hasLastFlushed (lowest bit) and hasEnd, refusal
        0900000000000000                     last flushed sequence
        0100000000000000                     end: generation
        0a00000000000000                     end: sequence
        ",
    );
    assert_eq!(hex::encode(bytes_of(|out| response.encode_into(out))), hex::encode(&bytes));
    assert_eq!(HandshakeResponse::decode(&bytes).unwrap(), response);
}

#[test]
fn handshakes_of_existing_peers_mean_what_they_say() {
    let request = documented(
        "
        00000000 05000000
        00000000 02000100                    2 words of data: no session
        08000101 00 000000
        0100000000000000
        01000000 32000000
        6d79696d67 000000
        ",
    );
    assert_eq!(HandshakeRequest::decode(&request).unwrap(), handshake_request());
    let response = documented(
        "
        00000000 02000000
        00000000 01000000                    1 word of data: no last flushed sequence
        08000101 fe 000000
        ",
    );
    let expected = HandshakeResponse { status: HandshakeStatus::InvalidVersion, ..handshake_response() };
    assert_eq!(HandshakeResponse::decode(&response).unwrap(), expected);
}

#[test]
fn an_aggregation_has_the_documented_bytes() {
    // Existing readers do not care about the order of the parts; that it stays keeps ids the same.
    let bytes = documented(
        "
        00000000 18000000                    one segment of 24 words
        00000000 02000400                    root: a struct of 2 words of data, 4 pointers
        0100000000000000                     size: one block
        0500000000000000                     timestamp
        0d000000 12000000                    name: 2 bytes with the zero
        1d000000 12000000                    vdisk id
        1d000000 37000000                    blocks: structs, 6 words in all
        05000000 02010000                    prev: 32 bytes
        74 00000000000000                    t
        09090909090909090909090909090909
        09090909090909090909090909090909
        76 00000000000000                    v
        04000000 04000200                    1 element of 4 words of data, 2 pointers
        0100000000000000                     sequence
        0200000000000000                     index
        0300000000000000                     timestamp
        02 00000000000000                    operation: delete
        05000000 02010000
        00000000 00000000
        0e5751c026e543b2e8ab2eb06099daa1
        d1e5df47778f7787faab45cdf12fe3a8
        ",
    );
    let aggregation = Aggregation {
        name: "t".to_owned(),
        timestamp: Timestamp(5),
        vdisk_id: vdisk("v"),
        blocks: vec![Block::delete(Sequence(1), tlog_proto::BlockIndex::new(2).unwrap(), Timestamp(3))],
        prev: vec![9; 32].into(),
    };
    check_aggregation(aggregation, &bytes);
}

/// Bytes as hex, each line with a remark behind three blanks or more.
fn documented(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|line| line.trim_start().split("   ").next().unwrap());
    from_hex(&lines.collect::<Vec<_>>().join(" "))
}
