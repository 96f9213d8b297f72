//! A client whose servers answer with any bytes: it goes on with the next server or ends, and gives back what is not durable.

use bytes::BytesMut;
use tlog_proto::{BlockStatus, HandshakeResponse, HandshakeStatus, LogPosition, Response, Sequence};

use crate::Target;
use crate::client_answers::{Manner, play};

/// As in `client-answers`; what servers do is how many bytes they send, and these.
pub const TARGET: Target = Target { name: "client-bytes", memory: 8 << 20, check, seeds };

fn check(input: &[u8]) {
    play(input, Manner::Bytes);
}

fn seeds() -> Vec<Vec<u8>> {
    let steps: &[u8] = &[10, 0, 1, 7, 9, 10, 1, 2, 8, 9, 14, 3];
    let piece = |bytes: &[u8]| [&[bytes.len() as u8], bytes].concat();
    let mut accepted = BytesMut::new();
    HandshakeResponse { end: Some(LogPosition::default()), ..HandshakeResponse::new(HandshakeStatus::Ok) }
        .encode_into(&mut accepted);
    let answer = |status, sequences: &[u64]| {
        let mut bytes = BytesMut::new();
        let sequences = sequences.iter().map(|sequence| Sequence(*sequence)).collect();
        Response { status, sequences }.encode_into(&mut bytes);
        piece(&bytes)
    };
    let of = |script: &[Vec<u8>]| [&[2, 1, steps.len() as u8], steps, &[2], &script.concat()[..]].concat();
    let accepted = piece(&accepted);
    vec![
        of(&[accepted.clone(), answer(BlockStatus::RecvOk, &[1]), answer(BlockStatus::FlushOk, &[1, 2])]),
        of(&[accepted.clone(), answer(BlockStatus::FlushFailed, &[1]), vec![255], vec![2], accepted.clone()]),
        of(&[piece(b"HTTP/1.1 400 Bad Request\r\n\r\n")]),
        of(&[piece(&[0xff; 8])]),
    ]
}
