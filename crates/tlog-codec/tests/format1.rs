//! Format 1: the bytes of existing servers, recorded.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use support::{by_hand, delete, noise, set, vdisk};
use tlog_codec::format1::{self, Format1Error};
use tlog_codec::{ErasureError, Redundancy};
use tlog_crypto::blake2b_256;
use tlog_crypto::format1::{AesDecrypter, AesEncrypter};
use tlog_proto::{Aggregation, AggregationId, Block, BlockIndex, Operation, Sequence, Timestamp};

const KEY: &[u8] = b"12345678901234567890123456789012";
const NONCE: &str = "37b8e8a308c354048d245f6d";
const MAX_TRIES: usize = 100;

fn encrypter() -> AesEncrypter {
    AesEncrypter::new(KEY, NONCE).unwrap()
}

fn decrypter() -> AesDecrypter {
    AesDecrypter::new(KEY, NONCE).unwrap()
}

fn four_plus_two() -> Redundancy {
    Redundancy::new(4, 2).unwrap()
}

/// What was recorded.
struct Recorded {
    message: Vec<u8>,
    snappy: Vec<u8>,
    ciphertext: Vec<u8>,
    id: AggregationId,
    pieces: Vec<Bytes>,
}

impl Recorded {
    fn load(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let id = hex::decode(read("aggregation.key.hex").trim_ascii()).unwrap();
        Self {
            message: read("aggregation.bin"),
            snappy: read("aggregation.snappy.bin"),
            ciphertext: read("aggregation.encrypted.bin"),
            id: AggregationId(id.try_into().unwrap()),
            pieces: (0..6).map(|i| read(&format!("piece_{i}.bin")).into()).collect(),
        }
    }

    /// The copy in this repository.
    fn own() -> Self {
        Self::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"))
    }

    fn given(&self) -> Vec<Option<Bytes>> {
        self.pieces.iter().cloned().map(Some).collect()
    }
}

fn recorded_blocks() -> Vec<Block> {
    let timestamp = |after: u64| Timestamp(1_500_000_000_000_000_000 + after);
    let index = |index| BlockIndex::new(index).unwrap();
    let counting: Vec<u8> = (0..100).collect();
    vec![
        Block::set(Sequence(1), index(10), timestamp(1), vec![b'a'; 64].into()),
        Block::set(Sequence(2), index(11), timestamp(2), counting.into()),
        Block::delete(Sequence(3), index(10), timestamp(3)),
    ]
}

fn check_recorded(recorded: &Recorded) {
    // Every step by itself.
    let unpacked = snap::raw::Decoder::new().decompress_vec(&recorded.snappy).unwrap();
    assert_eq!(unpacked, recorded.message);
    assert_eq!(encrypter().encrypt(&recorded.snappy), recorded.ciphertext);
    assert_eq!(blake2b_256(&[&recorded.ciphertext]), recorded.id.0);
    let split = format1::split(&recorded.ciphertext, four_plus_two());
    assert_eq!((split.id, &split.shards), (recorded.id, &recorded.pieces));

    // What it says, of every choice of four pieces.
    let mut choices = 0;
    for choice in (0u32..1 << 6).filter(|set| set.count_ones() == 4) {
        let left: Vec<_> =
            (0..6).map(|i| (choice >> i & 1 == 1).then(|| recorded.pieces[i].clone())).collect();
        let read = format1::decode(recorded.id, &left, four_plus_two(), &decrypter()).unwrap();
        assert_eq!(read.name, "The Go Tlog");
        assert_eq!(read.timestamp, Timestamp(1_500_000_000_000_000_000));
        assert_eq!(read.vdisk_id, vdisk("myimg"));
        assert_eq!(read.prev[..], AggregationId::BEFORE_FIRST.0);
        assert_eq!(read.blocks, recorded_blocks());
        choices += 1;

        // Written again it is the same message, and reads the same whatever our snappy makes of it.
        let mut message = BytesMut::new();
        read.encode_into(&mut message);
        assert_eq!(message[..], recorded.message);
        let again = format1::encode(&read, &encrypter(), four_plus_two());
        let all: Vec<_> = again.shards.into_iter().map(Some).collect();
        let reread = format1::decode(again.id, &all, four_plus_two(), &decrypter()).unwrap();
        assert_eq!(reread, read);
    }
    assert_eq!(choices, 15);
}

#[test]
fn the_recorded_aggregation_is_written_and_read_byte_by_byte() {
    check_recorded(&Recorded::own());
}

#[test]
fn the_recordings_beside_the_repository_are_written_and_read_byte_by_byte() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden"));
    if !folder.join("aggregation.bin").exists() {
        eprintln!("skipped: no recorded bytes beside the repository");
        return;
    }
    check_recorded(&Recorded::load(&folder));
}

#[test]
fn a_damaged_piece_is_noticed_and_found_by_leaving_out_one_after_the_other() {
    let recorded = Recorded::own();
    for at in 0..6 {
        let mut given = recorded.given();
        let mut bytes = recorded.pieces[at].to_vec();
        bytes[50] ^= 4;
        given[at] = Some(bytes.into());
        let plain = format1::decode(recorded.id, &given, four_plus_two(), &decrypter());
        match plain {
            // Parity is not looked at while all data shards are there.
            Ok(_) => assert!(at >= 4),
            Err(Format1Error::WrongId { expected, actual }) => {
                assert_eq!((expected, at < 4), (recorded.id, true));
                assert_ne!(actual, recorded.id);
            }
            other => panic!("{other:?}"),
        }
        let joined = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap();
        assert_eq!((&joined.ciphertext[..], joined.damaged), (&recorded.ciphertext[..], vec![at]));
        assert_eq!(joined.shards, recorded.pieces);
        let (read, damaged) =
            format1::decode_any(recorded.id, &given, four_plus_two(), &decrypter(), MAX_TRIES).unwrap();
        assert_eq!((read.blocks, damaged), (recorded_blocks(), vec![at]));
    }
}

#[test]
fn any_two_damaged_pieces_of_4_plus_2_are_found() {
    let recorded = Recorded::own();
    let damage = |given: &mut Vec<Option<Bytes>>, at: usize, how: usize| {
        let mut bytes = recorded.pieces[at].to_vec();
        match how {
            0 => bytes[97] ^= 1,        // the last byte, which is padding in piece 3
            1 => bytes.truncate(90),    // of another length than the rest
            _ => bytes[..8].fill(0xff), // a length that lies, in piece 0
        }
        given[at] = Some(bytes.into());
    };
    for one in 0..6 {
        for two in 0..6 {
            for how in 0..9 {
                let mut given = recorded.given();
                damage(&mut given, one, how % 3);
                if two != one {
                    damage(&mut given, two, how / 3);
                }
                let joined = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap();
                let mut expected = vec![one, two];
                expected.sort();
                expected.dedup();
                assert_eq!(joined.damaged, expected);
                assert_eq!(joined.shards, recorded.pieces);
            }
        }
    }
}

#[test]
fn one_lost_and_one_damaged_piece_are_made_up_for_and_no_more() {
    let recorded = Recorded::own();
    let mut given = recorded.given();
    given[1] = None;
    given[2] = Some(Bytes::from(vec![7; 98]));
    let joined = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap();
    assert_eq!((joined.damaged, joined.shards), (vec![2], recorded.pieces.clone()));
    given[4] = None;
    let error = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap_err();
    assert!(matches!(error, Format1Error::WrongId { .. }), "{error}");
    given[5] = None;
    let error = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap_err();
    let too_few = ErasureError::TooFew { present: 3, needed: 4 };
    assert!(matches!(error, Format1Error::Erasure(e) if e == too_few), "{error}");
}

#[test]
fn the_number_of_tries_is_bounded() {
    let recorded = Recorded::own();
    let mut given = recorded.given();
    given[0] = Some(Bytes::from(vec![7; 98]));
    // Without piece 0 is among the first five choices of four: 0123, then those that pass over one of them.
    let fits = |tries| format1::join_any(recorded.id, &given, four_plus_two(), tries).is_ok();
    assert!(!fits(0));
    assert!(fits(5));
    let wide = Redundancy::new(40, 40).unwrap();
    let encoded = format1::split(&[1; 400], wide);
    let other = AggregationId([1; 32]);
    let all: Vec<_> = encoded.shards.into_iter().map(Some).collect();
    assert!(format1::join_any(other, &all, wide, 50).is_err());
}

#[test]
fn pieces_cut_anywhere_and_lengths_that_lie_are_refused() {
    let recorded = Recorded::own();
    for length in 0..98 {
        let cut: Vec<_> = recorded.pieces.iter().map(|piece| Some(piece.slice(..length))).collect();
        assert!(format1::decode(recorded.id, &cut, four_plus_two(), &decrypter()).is_err());
        let mut one_cut = recorded.given();
        one_cut[2] = Some(recorded.pieces[2].slice(..length));
        let error = format1::join(recorded.id, &one_cut, four_plus_two()).unwrap_err();
        assert!(matches!(error, Format1Error::Erasure(ErasureError::Unequal)), "{error}");
    }
    for length in [0, 381, 384, 385, 1 << 40, u64::MAX] {
        let mut body = length.to_le_bytes().to_vec();
        body.extend_from_slice(&recorded.ciphertext);
        body.resize(392, 0);
        let pieces: Vec<Bytes> = body.chunks(98).map(Bytes::copy_from_slice).collect();
        let given: Vec<_> = pieces.into_iter().map(Some).chain([None, None]).collect();
        match format1::join(recorded.id, &given, four_plus_two()).unwrap_err() {
            Format1Error::Length(lie) => assert!(lie == length && lie > 384),
            Format1Error::WrongId { .. } => assert!(length <= 384),
            other => panic!("{other}"),
        }
    }
    for shards in [&recorded.given()[..5], &[], &vec![None; 6]] {
        let error = format1::join_any(recorded.id, shards, four_plus_two(), MAX_TRIES).unwrap_err();
        assert!(matches!(error, Format1Error::Erasure(_)), "{error}");
    }
}

#[test]
fn every_flipped_bit_of_a_data_piece_is_noticed_but_for_padding() {
    let recorded = Recorded::own();
    for at in 0..4 {
        for bit in 0..98 * 8 {
            let mut given = recorded.given();
            let mut bytes = recorded.pieces[at].to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            given[at] = Some(bytes.into());
            let padding = at == 3 && bit / 8 >= 96;
            let joined = format1::join(recorded.id, &given, four_plus_two());
            assert_eq!(joined.is_ok(), padding, "piece {at}, bit {bit}");
            let found = format1::join_any(recorded.id, &given, four_plus_two(), MAX_TRIES).unwrap();
            assert_eq!(found.damaged, [at], "padding is compared too");
        }
    }
}

#[test]
fn under_another_key_or_nonce_nothing_is_read() {
    let recorded = Recorded::own();
    for wrong in [
        AesDecrypter::new(&[1; 32], NONCE).unwrap(),
        AesDecrypter::new(KEY, "37b8e8a308c354048d245f6e").unwrap(),
    ] {
        let error = format1::decode(recorded.id, &recorded.given(), four_plus_two(), &wrong).unwrap_err();
        assert!(matches!(error, Format1Error::Decrypt), "{error}");
    }
}

#[test]
fn what_is_sealed_and_no_aggregation_is_refused_and_a_bomb_takes_no_memory() {
    let decode = |packed: &[u8]| {
        let encoded = format1::split(&encrypter().encrypt(packed), four_plus_two());
        let all: Vec<_> = encoded.shards.into_iter().map(Some).collect();
        format1::decode(encoded.id, &all, four_plus_two(), &decrypter()).unwrap_err()
    };
    let bomb = [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0xfe; 100]].concat();
    for not_snappy in [&bomb[..], &[0x80; 20], &[5, 1]] {
        let error = decode(not_snappy);
        assert!(matches!(error, Format1Error::Decompress), "{error}");
    }
    let snappy = |plain: &[u8]| snap::raw::Encoder::new().compress_vec(plain).unwrap();
    let recorded = Recorded::own();
    for length in (0..recorded.message.len()).step_by(8) {
        let error = decode(&snappy(&recorded.message[..length]));
        assert!(matches!(error, Format1Error::Aggregation(_)), "{length}: {error}");
    }
    let mut changed = recorded.message.clone();
    let at = changed.windows(4).position(|window| window == b"aaaa").unwrap();
    changed[at] = b'b';
    assert!(matches!(decode(&snappy(&changed)), Format1Error::Aggregation(_)));
}

#[test]
fn what_could_not_be_read_again_is_not_encoded() {
    let block = Block { data: Bytes::from(vec![0; 1 << 29]), ..recorded_blocks().remove(0) };
    let aggregation = aggregation(vec![block]);
    let refused = format1::try_encode(&aggregation, &encrypter(), four_plus_two()).unwrap_err();
    assert!(refused.bytes > 1 << 29);
}

fn aggregation(blocks: Vec<Block>) -> Aggregation {
    Aggregation {
        name: Aggregation::NAME.to_owned(),
        timestamp: Timestamp(5),
        vdisk_id: vdisk("myimg"),
        blocks,
        prev: Bytes::copy_from_slice(&[3; 32]),
    }
}

proptest! {
    #[test]
    fn any_aggregation_comes_back_of_any_k_pieces_some_of_them_damaged(
        lengths in prop::collection::vec(0usize..3000, 0..20),
        data in 1usize..8,
        parity in 0usize..5,
        order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        lost in 0usize..5,
        damaged in 0usize..3,
    ) {
        let blocks = (1..).zip(&lengths).map(|(sequence, length)| match length {
            0 => delete(sequence),
            length => set(sequence, noise(sequence, *length)),
        });
        let aggregation = aggregation(blocks.collect());
        prop_assert!(aggregation.blocks.iter().all(|b| (b.operation == Operation::Set) != b.data.is_empty()));
        let redundancy = Redundancy::new(data, parity).unwrap();
        let encoded = format1::encode(&aggregation, &encrypter(), redundancy);
        prop_assert_eq!(&by_hand::parity_by_definition(&encoded.shards[..data], parity), &encoded.shards[data..]);
        let all: Vec<_> = encoded.shards.iter().cloned().map(Some).collect();
        prop_assert_eq!(format1::decode(encoded.id, &all, redundancy, &decrypter()).unwrap(), aggregation.clone());

        let order: Vec<usize> = order.into_iter().filter(|i| *i < data + parity).collect();
        let lost = lost.min(parity);
        let damaged = damaged.min(parity - lost);
        let mut given = all;
        order[..lost].iter().for_each(|i| given[*i] = None);
        let mut expected = order[lost..lost + damaged].to_vec();
        for i in &expected {
            let flipped: Vec<u8> = encoded.shards[*i].iter().map(|byte| byte ^ 0x55).collect();
            given[*i] = Some(flipped.into());
        }
        expected.sort();
        let (read, found) =
            format1::decode_any(encoded.id, &given, redundancy, &decrypter(), 2000).unwrap();
        prop_assert_eq!((read, found), (aggregation, expected));
    }
}
