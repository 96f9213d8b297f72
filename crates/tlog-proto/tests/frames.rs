//! A `FrameReader` on streams that arrive in pieces, end early, or lie.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use support::{
    bytes_of, decoders, delete, handshake_request, handshake_response, in_segments_of, response, set,
};
use tlog_proto::{
    BlockStatus, ClientMessage, FrameError, FrameReader, HandshakeRequest, Limits, Response, Sequence,
    VdiskId,
};
use tokio::io::{AsyncRead, ReadBuf};

/// A stream that arrives in these pieces, with a pause before each, and then ends.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    paused: bool,
}

impl Pieces {
    fn new(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), paused: false }
    }

    fn of_sizes(bytes: &[u8], sizes: &[usize]) -> Self {
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = bytes;
        Self::new(std::iter::from_fn(|| {
            let piece;
            (piece, rest) = rest.split_at(sizes.next()?.min(rest.len()));
            (!piece.is_empty()).then(|| piece.to_vec())
        }))
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.paused = !self.paused;
        if self.paused {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(to.remaining()));
            to.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn messages() -> Vec<ClientMessage> {
    vec![
        set(1, 2, 3, vec![1; 4096]).into(),
        ClientMessage::ForceFlushAtSeq(Sequence(1)),
        delete(2, 2, 4).into(),
        set(3, 1 << 40, 5, vec![2; 100_000]).into(),
        ClientMessage::WaitNbdSlaveSync,
        set(4, 0, 6, "x").into(),
    ]
}

/// A client's side of a connection; every other message in several segments.
fn client_stream() -> Vec<u8> {
    let mut stream = bytes_of(|out| handshake_request().encode_into(out));
    for (at, message) in messages().into_iter().enumerate() {
        let bytes = bytes_of(|out| message.encode_into(out));
        stream.push(bytes[0]);
        match at % 2 {
            0 => stream.extend_from_slice(&bytes[1..]),
            _ => stream.extend_from_slice(&in_segments_of(3, &bytes[1..])),
        }
    }
    stream
}

async fn read_all(
    stream: impl AsyncRead + Unpin,
) -> Result<(Option<HandshakeRequest>, Vec<ClientMessage>), FrameError> {
    let mut frames = FrameReader::new(stream, Limits::default());
    let request = frames.handshake_request().await?;
    let mut messages = Vec::new();
    while let Some(message) = frames.client_message().await? {
        messages.push(message);
    }
    assert!(!frames.is_mid_message());
    Ok((request, messages))
}

#[test]
fn a_stream_that_arrives_byte_by_byte_is_read_whole() {
    let read = block_on(read_all(Pieces::of_sizes(&client_stream(), &[1]))).unwrap();
    assert_eq!(read, (Some(handshake_request()), messages()));
}

#[test]
fn a_stream_that_ends_between_two_messages_has_ended_and_anywhere_else_is_truncated() {
    let stream = client_stream();
    let mut ends = vec![0, bytes_of(|out| handshake_request().encode_into(out)).len()];
    let mut rest = &stream[ends[1]..];
    while !rest.is_empty() {
        let (_, used) = ClientMessage::decode_from_slice(rest, &Limits::default()).unwrap();
        rest = &rest[used..];
        ends.push(stream.len() - rest.len());
    }
    // Every byte where a message begins or ends, and some within the large ones.
    let near_an_end = |at: &usize| ends.iter().any(|end| end.abs_diff(*at) < 80);
    for at in (0..=stream.len()).filter(|at| near_an_end(at) || at % 4093 == 0) {
        match block_on(read_all(&stream[..at])) {
            Ok((request, messages)) => {
                assert!(ends.contains(&at), "cut at {at}");
                assert_eq!(usize::from(request.is_some()) + messages.len(), ends.binary_search(&at).unwrap());
            }
            Err(error) => {
                assert!(matches!(error, FrameError::Truncated), "cut at {at}: {error}");
                assert!(!ends.contains(&at), "cut at {at}");
            }
        }
    }
}

#[tokio::test]
async fn a_servers_side_is_read_too() {
    let mut stream = bytes_of(|out| handshake_response().encode_into(out));
    let responses = [
        response(BlockStatus::RecvOk, [7]),
        response(BlockStatus::FlushOk, 1..=25),
        response(BlockStatus::FlushFailed, []),
    ];
    for response in &responses {
        stream.extend(bytes_of(|out| response.encode_into(out)));
    }
    let mut frames = FrameReader::new(Pieces::of_sizes(&stream, &[7]), Limits::default());
    assert_eq!(frames.handshake_response().await.unwrap(), Some(handshake_response()));
    let mut read: Vec<Response> = Vec::new();
    while let Some(response) = frames.response().await.unwrap() {
        read.push(response);
    }
    assert_eq!(read, responses);
}

#[tokio::test]
async fn messages_that_have_arrived_are_answered_without_waiting() {
    let stream = client_stream();
    let mut frames = FrameReader::new(Pieces::new([stream]), Limits::default());
    assert_eq!(frames.buffered_client_message().unwrap(), None);
    frames.handshake_request().await.unwrap();
    // One read brings the first three; the large one arrives in part.
    assert!(frames.read_more().await.unwrap());
    for expected in &messages()[..3] {
        assert_eq!(frames.buffered_client_message().unwrap().as_ref(), Some(expected));
    }
    assert_eq!(frames.buffered_client_message().unwrap(), None);
    assert!(frames.is_mid_message());
    assert_eq!(frames.client_message().await.unwrap().as_ref(), Some(&messages()[3]));
}

#[tokio::test]
async fn reading_that_is_given_up_loses_nothing() {
    let stream = client_stream();
    let mut frames = FrameReader::new(Pieces::of_sizes(&stream, &[1000]), Limits::default());
    frames.handshake_request().await.unwrap();
    let mut read = Vec::new();
    while read.len() < messages().len() {
        // Given up at every second poll: before each piece the stream has a pause.
        tokio::select! {
            biased;
            message = frames.client_message() => read.extend(message.unwrap()),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(read, messages());
}

#[tokio::test]
async fn a_message_that_means_nothing_does_not_hide_the_next_one() {
    let mut stream = vec![1];
    stream.extend(support::message_of_words(&[3]));
    stream.extend(bytes_of(|out| set(1, 2, 3, "a").encode_into(out)));
    let mut frames = FrameReader::new(&stream[..], Limits::default());
    assert_eq!(frames.client_message().await.unwrap_err().kind(), "malformed");
    assert_eq!(frames.client_message().await.unwrap(), Some(set(1, 2, 3, "a").into()));
}

#[tokio::test]
async fn a_type_byte_that_means_nothing_is_refused_as_soon_as_it_is_there() {
    for byte in [0].into_iter().chain(4..=255) {
        let stream = [byte];
        let error = FrameReader::new(&stream[..], Limits::default()).client_message().await.unwrap_err();
        assert_eq!(error.to_string(), format!("unknown message type {byte}"));
    }
}

#[tokio::test]
async fn a_table_that_lies_is_refused_as_soon_as_the_lie_is_there() {
    // Nothing follows the lie; a reader that waited for more would answer that the stream ends.
    for (table, kind) in [
        (&[u32::MAX][..], "too_many_segments"),
        (&[64], "too_many_segments"),
        (&[0, u32::MAX], "too_large"),
        (&[1, 1 << 20, 2 << 20], "too_large"),
        (&[63, 0, 0, u32::MAX], "too_large"),
    ] {
        let stream: Vec<u8> =
            [1].into_iter().chain(table.iter().flat_map(|word| word.to_le_bytes())).collect();
        let mut frames = FrameReader::new(&stream[..], Limits::default());
        assert_eq!(frames.client_message().await.unwrap_err().kind(), kind, "{table:?}");
        let mut frames = FrameReader::new(&stream[1..], Limits::default());
        assert_eq!(frames.response().await.unwrap_err().kind(), kind, "{table:?}");
        let mut frames = FrameReader::new(&stream[1..], Limits::default());
        assert_eq!(frames.handshake_request().await.unwrap_err().kind(), kind, "{table:?}");
        let mut frames = FrameReader::new(&stream[1..], Limits::default());
        assert_eq!(frames.handshake_response().await.unwrap_err().kind(), kind, "{table:?}");
    }
}

#[tokio::test]
async fn a_block_of_the_largest_size_is_read_and_a_larger_one_is_not() {
    let limits = Limits { max_block_bytes: 100_000, ..Limits::default() };
    let largest = bytes_of(|out| set(1, 2, 3, vec![1; 100_000]).encode_into(out));
    let small_segments = [&largest[..1], &in_segments_of(2000, &largest[1..])].concat();
    for stream in [largest, small_segments] {
        let message = FrameReader::new(&stream[..], limits).client_message().await.unwrap();
        assert_eq!(message, Some(set(1, 2, 3, vec![1; 100_000]).into()));
    }
    let larger = bytes_of(|out| set(1, 2, 3, vec![1; 110_000]).encode_into(out));
    let error = FrameReader::new(&larger[..], limits).client_message().await.unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { bytes, max } if bytes > 110_000 && max < 110_000));
}

#[tokio::test]
async fn a_handshake_is_read_up_to_its_own_limit_only() {
    let longest =
        HandshakeRequest { vdisk_id: VdiskId::new(&"x".repeat(128)).unwrap(), ..handshake_request() };
    let bytes = bytes_of(|out| longest.encode_into(out));
    // From a later version, with fields that we do not know.
    let mut padded = bytes.clone();
    padded.resize(Limits::MAX_HANDSHAKE_BYTES, 0);
    let words = (padded.len() - 8) / 8;
    padded[4..8].copy_from_slice(&(words as u32).to_le_bytes());
    for stream in [bytes, padded] {
        let mut frames = FrameReader::new(&stream[..], Limits::default());
        assert_eq!(frames.handshake_request().await.unwrap(), Some(longest.clone()));
    }
    let too_many_words = (Limits::MAX_HANDSHAKE_BYTES / 8 + 1) as u32;
    let table = [0_u32.to_le_bytes(), too_many_words.to_le_bytes()].concat();
    let error = FrameReader::new(&table[..], Limits::default()).handshake_request().await.unwrap_err();
    assert_eq!(error.kind(), "too_large");
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_apart_from_one_that_was_closed() {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    let error = FrameReader::new(Broken, Limits::default()).client_message().await.unwrap_err();
    assert!(matches!(&error, FrameError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset));
    assert_eq!(error.kind(), "io");
}

#[tokio::test]
async fn a_reader_that_looks_whether_the_other_end_is_gone_keeps_what_comes_meanwhile() {
    let stream = bytes_of(|out| set(1, 2, 3, "a").encode_into(out));
    let mut frames = FrameReader::new(&stream[..], Limits::default());
    // Something has come, and perhaps somebody listens.
    for _ in 0..3 {
        tokio::select! {
            biased;
            () = frames.gone() => panic!("it has sent something that was not looked at"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(frames.client_message().await.unwrap(), Some(set(1, 2, 3, "a").into()));
    frames.gone().await;
}

proptest! {
    #[test]
    fn a_stream_is_read_whole_in_whatever_pieces_it_arrives(
        sizes in prop::collection::vec(prop_oneof![1..20usize, 1..100_000usize], 1..20),
    ) {
        let read = block_on(read_all(Pieces::of_sizes(&client_stream(), &sizes))).unwrap();
        prop_assert_eq!(read, (Some(handshake_request()), messages()));
    }

    #[test]
    fn streams_with_flipped_bits_end_in_an_answer(
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        sizes in prop::collection::vec(1..5000usize, 1..5),
    ) {
        let mut stream: Vec<u8> = bytes_of(|out| handshake_request().encode_into(out));
        for decoder in decoders().into_iter().filter(|decoder| decoder.name.contains("block")) {
            stream.push(1);
            stream.extend(decoder.sample);
        }
        for flip in flips {
            let bit = flip.index(stream.len() * 8);
            stream[bit / 8] ^= 1 << (bit % 8);
        }
        let _ = block_on(read_all(Pieces::of_sizes(&stream, &sizes)));
    }
}
