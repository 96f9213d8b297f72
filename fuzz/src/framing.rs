//! Framing: a stream says the same in whatever pieces it arrives, and nothing is taken for what it claims alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, ClientMessage, FrameError, FrameReader, HandshakeRequest,
    HandshakeResponse, HandshakeStatus, Limits, Response, Sequence, Timestamp, VdiskId,
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::Target;
use crate::input::Input;

/// What is read, limits, and pieces; the rest is the stream.
pub const TARGET: Target = Target { name: "framing", memory: 1 << 20, check, seeds };

/// What is read from a stream.
#[derive(Clone, Copy, Debug)]
enum Read {
    ClientMessages,
    Responses,
    HandshakeRequest,
    HandshakeResponse,
}

/// Messages in the order in which they came, and how it ended: none where the peer closed between two of them.
type Told = (Vec<String>, Option<&'static str>);

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let read = match input.below(4) {
        0 => Read::ClientMessages,
        1 => Read::Responses,
        2 => Read::HandshakeRequest,
        _ => Read::HandshakeResponse,
    };
    let limits = match input.below(3) {
        0 => Limits::default(),
        1 => Limits { max_block_bytes: 16, max_segments: 2 },
        _ => Limits { max_block_bytes: usize::MAX, max_segments: usize::MAX },
    };
    let lengths = input.bytes(4);
    let stream = input.rest();
    let at_once = all(read, Pieces { rest: stream, lengths: &[], at: 0 }, limits);
    let in_pieces = all(read, Pieces { rest: stream, lengths, at: 0 }, limits);
    assert_eq!(at_once, in_pieces, "{read:?} in pieces of {lengths:?}");
    if let Read::ClientMessages = read {
        assert_eq!(by_slices(stream, &limits), at_once);
    }
}

fn all(read: Read, pieces: Pieces<'_>, limits: Limits) -> Told {
    // Nothing waits: a stream that is all there is always ready.
    futures_now(async move {
        let mut frames = FrameReader::new(pieces, limits);
        let mut told = Vec::new();
        loop {
            let next = match read {
                Read::ClientMessages => frames.client_message().await.map(|message| message.map(shown)),
                Read::Responses => frames.response().await.map(|message| message.map(shown)),
                Read::HandshakeRequest => frames.handshake_request().await.map(|message| message.map(shown)),
                Read::HandshakeResponse => {
                    frames.handshake_response().await.map(|message| message.map(shown))
                }
            };
            match next {
                Ok(Some(message)) => told.push(message),
                Ok(None) => return (told, None),
                Err(error) => return (told, Some(error.kind())),
            }
        }
    })
}

/// The same of client messages, without a reader.
fn by_slices(mut bytes: &[u8], limits: &Limits) -> Told {
    let mut told = Vec::new();
    while !bytes.is_empty() {
        match ClientMessage::decode_from_slice(bytes, limits) {
            Ok((message, used)) => {
                told.push(shown(message));
                bytes = &bytes[used..];
            }
            Err(error) => return (told, Some(FrameError::kind(&error))),
        }
    }
    (told, None)
}

fn shown(message: impl std::fmt::Debug) -> String {
    format!("{message:?}")
}

fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for bytes that are there"),
    }
}

/// A stream that arrives in pieces of these lengths, again and again; all at once where there are none.
struct Pieces<'a> {
    rest: &'a [u8],
    lengths: &'a [u8],
    at: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let length = this.lengths.get(this.at % this.lengths.len().max(1));
        this.at += 1;
        let length = length.map_or(usize::MAX, |length| usize::from(*length) + 1);
        let (now, rest) = this.rest.split_at(length.min(this.rest.len()).min(out.remaining()));
        out.put_slice(now);
        this.rest = rest;
        Poll::Ready(Ok(()))
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let of = |read: u8, limits: u8, encode: &dyn Fn(&mut BytesMut)| {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        [&[read, limits, 0, 7, 2, 30], &bytes[..]].concat()
    };
    let index = BlockIndex::new(3).unwrap();
    let block = |sequence| Block::set(Sequence(sequence), index, Timestamp(5), Bytes::from(vec![7; 20]));
    let messages = |out: &mut BytesMut| {
        block(1).encode_into(out);
        ClientMessage::ForceFlushAtSeq(Sequence(1)).encode_into(out);
        block(2).encode_into(out);
        ClientMessage::WaitNbdSlaveSync.encode_into(out);
    };
    let request = HandshakeRequest::new(VdiskId::new("myimg").unwrap(), Sequence(1));
    vec![
        of(0, 0, &messages),
        of(0, 1, &messages),
        of(0, 2, &messages),
        of(1, 0, &|out| {
            for status in [BlockStatus::RecvOk, BlockStatus::FlushOk] {
                Response { status, sequences: vec![Sequence(1)] }.encode_into(out);
            }
        }),
        of(2, 0, &|out| request.encode_into(out)),
        of(3, 0, &|out| HandshakeResponse::new(HandshakeStatus::Ok).encode_into(out)),
    ]
}
