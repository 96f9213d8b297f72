//! Pieces of stored format 1, which do not prove themselves: what is put together is what the id says, or an error.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use tlog_codec::Redundancy;
use tlog_codec::format1::{self, AesDecrypter, AesEncrypter};
use tlog_crypto::blake2b_256;
use tlog_proto::{Aggregation, AggregationId, Block, BlockIndex, Sequence, Timestamp, VdiskId};

use crate::Target;
use crate::input::Input;

/// What is to be a ciphertext, what was encrypted, or what is to be done to the pieces of an aggregation.
pub const TARGET: Target = Target { name: "format1", memory: 2 << 20, check, seeds };

const KEY: &[u8] = b"12345678901234567890123456789012";
const NONCE: &str = "37b8e8a308c354048d245f6d";

/// k + m of the pieces.
const SHARDS: (usize, usize) = (4, 2);

struct Stored {
    aggregation: Aggregation,
    message: Vec<u8>,
    encoded: format1::Encoded,
    encrypter: AesEncrypter,
    decrypter: AesDecrypter,
}

static STORED: LazyLock<Stored> = LazyLock::new(|| {
    let index = |index| BlockIndex::new(index).expect("a low index");
    let aggregation = Aggregation {
        name: "The Go Tlog".to_owned(),
        timestamp: Timestamp(9),
        vdisk_id: VdiskId::new("myimg").expect("a legal id"),
        blocks: vec![
            Block::set(Sequence(1), index(10), Timestamp(1), vec![b'a'; 64].into()),
            Block::delete(Sequence(2), index(10), Timestamp(3)),
        ],
        prev: Bytes::from_static(&[7; 32]),
    };
    let mut message = BytesMut::new();
    aggregation.encode_into(&mut message);
    let encrypter = AesEncrypter::new(KEY, NONCE).expect("a good key");
    let encoded = format1::encode(&aggregation, &encrypter, redundancy());
    let decrypter = AesDecrypter::new(KEY, NONCE).expect("a good key");
    Stored { aggregation, message: message.to_vec(), encoded, encrypter, decrypter }
});

fn redundancy() -> Redundancy {
    Redundancy::new(SHARDS.0, SHARDS.1).expect("few shards")
}

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    match input.below(5) {
        0 => drop(format1::open(input.rest(), &STORED.decrypter)),
        1 => drop(format1::open(&STORED.encrypter.encrypt(input.rest()), &STORED.decrypter)),
        2 => {
            let packed = snap::raw::Encoder::new().compress_vec(input.rest()).expect("it is short");
            let opened = format1::open(&STORED.encrypter.encrypt(&packed), &STORED.decrypter);
            assert!(
                opened.is_err()
                    || Aggregation::decode(
                        &snap::raw::Decoder::new().decompress_vec(&packed).expect("it was compressed")
                    )
                    .is_ok()
            );
        }
        3 => damaged(&mut input),
        _ => of_any_shape(&mut input),
    }
}

/// Pieces of what was stored, some of them not as they were.
fn damaged(input: &mut Input<'_>) {
    let stored = &*STORED;
    let mut pieces: Vec<Option<Vec<u8>>> =
        stored.encoded.shards.iter().map(|piece| Some(piece.to_vec())).collect();
    while !input.is_empty() {
        let what = input.below(4);
        let which = input.below(pieces.len());
        let Some(piece) = &mut pieces[which] else { continue };
        match what {
            0 => pieces[which] = None,
            1 => piece.truncate(usize::from(input.u16())),
            2 => pieces.swap(which, 0),
            _ => {
                let (at, mask) = (usize::from(input.u16()), input.byte());
                let at = at % piece.len().max(1);
                piece.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
            }
        }
    }
    let is_good = |(piece, was): (&Option<Vec<u8>>, &Bytes)| piece.as_ref().is_some_and(|piece| piece == was);
    let good = pieces.iter().zip(&stored.encoded.shards).filter(|both| is_good(*both)).count();
    let damaged: Vec<usize> = (0..pieces.len())
        .filter(|&at| pieces[at].is_some() && !is_good((&pieces[at], &stored.encoded.shards[at])))
        .collect();
    let same_length = pieces.iter().flatten().all(|piece| piece.len() == stored.encoded.shards[0].len());
    let pieces: Vec<Option<Bytes>> = pieces.into_iter().map(|piece| piece.map(Bytes::from)).collect();
    let id = stored.encoded.id;
    if let Ok(aggregation) = format1::decode(id, &pieces, redundancy(), &stored.decrypter) {
        assert_eq!(aggregation, stored.aggregation);
    }
    // Of 6 pieces there are 15 choices of 4.
    match format1::decode_any(id, &pieces, redundancy(), &stored.decrypter, 15) {
        Ok((aggregation, found)) => {
            assert_eq!(aggregation, stored.aggregation);
            assert_eq!(found, damaged);
        }
        Err(error) => assert!(good < SHARDS.0 || !same_length, "{good} good pieces are enough: {error}"),
    }
}

/// Pieces of any shape, under the id that they would have to be proven by.
fn of_any_shape(input: &mut Input<'_>) {
    let Ok(redundancy) = Redundancy::new(1 + input.below(6), input.below(4)) else { return };
    let length = usize::from(input.byte());
    let mut pieces = Vec::new();
    while !input.is_empty() && pieces.len() < 12 {
        let present = input.flag();
        let piece = Bytes::copy_from_slice(input.bytes(length));
        pieces.push(present.then_some(piece));
    }
    let all: Vec<u8> = pieces.iter().flatten().flat_map(|piece| piece.iter().copied()).collect();
    let id = AggregationId(blake2b_256(&[all.get(8..).unwrap_or_default()]));
    if let Ok(joined) = format1::join_any(id, &pieces, redundancy, 20) {
        assert_eq!(AggregationId(blake2b_256(&[&joined.ciphertext])), id);
        assert_eq!(joined.shards.len(), redundancy.total());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let stored = &*STORED;
    let packed = snap::raw::Encoder::new().compress_vec(&stored.message).expect("it is short");
    let ciphertext = stored.encrypter.encrypt(&packed);
    vec![
        [&[0], &ciphertext[..]].concat(),
        [&[1], &packed[..]].concat(),
        [&[2], &stored.message[..]].concat(),
        vec![3],
        vec![3, 0, 0, 0, 5],
        vec![3, 3, 1, 5, 0, 1, 3, 4, 5, 0, 8],
        vec![3, 2, 3, 1, 2, 7, 0],
        vec![4, 1, 1, 8, 1, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
}
