//! Bytes from a store that are cut, flipped or lie. Never a panic, never another result.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use std::ops::Range;

use bytes::Bytes;
use proptest::prelude::*;
use support::by_hand::{self, field};
use support::*;
use tlog_codec::{
    ErasureError, Header, HeaderError, ManifestError, OpenError, PayloadError, RebuildError, ShardFault,
    ShardHead, rebuild,
};
use tlog_proto::{Block, BlockIndex, Sequence, Timestamp};

#[test]
fn a_head_part_cut_anywhere_or_too_long_is_refused() {
    for shard in shards() {
        for length in 0..shard.head.len() {
            assert!(parse_as("myimg", shard.head.slice(..length)).is_err(), "{length}");
        }
        let longer = [&shard.head[..], &[0]].concat();
        let expected = ShardFault::Length { actual: longer.len(), expected: shard.head.len() };
        assert_eq!(parse_as("myimg", longer).unwrap_err(), expected);
    }
}

#[test]
fn every_flipped_bit_of_a_head_part_is_noticed() {
    let one_shard = stored(sealer(1, 0).seal(request(&few_blocks())).unwrap());
    for shard in shards().iter().chain(&one_shard) {
        for bit in 0..shard.head.len() * 8 {
            let parsed = parse_as("myimg", flipped(&shard.head, bit));
            assert!(parsed.is_err(), "byte {}, bit {}", bit / 8, bit % 8);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_payload_and_every_other_length_is_noticed() {
    for shard in shards() {
        let head = parse(&shard);
        let check = |payload: &[u8]| {
            assert_eq!(head.verify_payload(payload), Err(PayloadError));
            let several = [(&head, payload), (&head, &shard.payload[..])];
            assert_eq!(ShardHead::verify_payloads(&several), [Err(PayloadError), Ok(())]);
        };
        (0..shard.payload.len() * 8).for_each(|bit| check(&flipped(&shard.payload, bit)));
        (0..shard.payload.len()).for_each(|length| check(&shard.payload[..length]));
        check(&[&shard.payload[..], &[0]].concat());
    }
}

#[test]
fn a_header_cut_anywhere_is_refused() {
    let (head, _) = apart();
    for length in 0..Header::LEN {
        assert_eq!(Header::decode(&head.header[..length]), Err(HeaderError::Truncated), "{length}");
    }
    assert_eq!(Header::decode(&head.header).unwrap().encode(), head.header);
}

#[test]
fn what_is_not_known_to_this_version_is_refused_by_name() {
    let (head, _) = apart();
    let decode = |field: Range<usize>, value: u8| {
        let mut head = head.clone();
        head.put(field, value.into());
        // The whole head, too, though its id and check fit.
        let result = Header::decode(&head.header);
        let parsed = parse_as("myimg", head.put_together("myimg")).map(|head| head.header);
        assert_eq!(parsed, result.map_err(ShardFault::Header));
        result
    };
    for value in 0..=255 {
        if value != 2 {
            assert_eq!(decode(field::FORMAT, value), Err(HeaderError::UnknownFormat(value)));
        }
        let unknown = |what| Err(HeaderError::Unknown { what, value });
        if !(1..=3).contains(&value) {
            assert_eq!(decode(field::KIND, value), unknown("kind"));
        }
        if !(1..=2).contains(&value) {
            assert_eq!(decode(field::SUITE, value), unknown("suite"));
        }
        if value > 1 {
            assert_eq!(decode(field::MANIFEST_COMPRESSION, value), unknown("compression"));
            assert_eq!(decode(field::BODY_COMPRESSION, value), unknown("compression"));
        }
    }
    let mut no_magic = head.header;
    no_magic[0] = b't';
    assert_eq!(Header::decode(&no_magic), Err(HeaderError::Magic));
    assert_eq!(parse_as("myimg", vec![0; 500]), Err(ShardFault::NotAShard));
}

#[test]
fn lengths_and_counts_that_lie_are_refused_although_id_and_check_fit() {
    let (head, _) = apart();
    let check = |field: Range<usize>, value: u64, expected: ShardFault| {
        let mut head = head.clone();
        head.put(field.clone(), value);
        let fault = parse_as("myimg", head.put_together("myimg")).unwrap_err();
        assert_eq!(fault, expected, "{field:?} {value}");
    };
    let cannot_be = |what| ShardFault::Header(HeaderError::Inconsistent(what));
    let body_plain = head.number(field::BODY_PLAIN);
    let body_sealed = head.number(field::BODY_SEALED);
    let payload = head.number(field::PAYLOAD);
    for count in [0, 2, 4, u64::from(u32::MAX)] {
        check(field::BLOCK_COUNT, count, cannot_be("range of sequences"));
    }
    for last in [0, 8, 10, 12, u64::MAX] {
        check(field::LAST_SEQUENCE, last, cannot_be("range of sequences"));
    }
    check(field::FIRST_SEQUENCE, u64::MAX, cannot_be("range of sequences"));
    check(field::NUMBER, 0, cannot_be("number"));
    check(field::RECORD_BACK, 1, cannot_be("distance to a record"));
    for kind in [2, 3] {
        check(field::KIND, kind, cannot_be("range of sequences"));
    }
    check(field::OLDEST, u64::MAX, cannot_be("range of timestamps"));
    for plain in [0, 1, body_sealed - 16, body_sealed * 22, 1 << 30, u64::MAX] {
        check(field::BODY_PLAIN, plain, cannot_be("body length"));
    }
    for sealed in [0, 15, 16, body_plain + 16, 1 << 30, u64::MAX] {
        check(field::BODY_SEALED, sealed, cannot_be("body length"));
    }
    for length in [0, payload - 1, payload + 1, u64::from(u32::MAX)] {
        check(field::PAYLOAD, length, cannot_be("payload length"));
    }
    for plain in [0, 90, 134, 136, u64::from(u32::MAX)] {
        check(field::MANIFEST_PLAIN, plain, cannot_be("manifest length"));
    }
    for sealed in [0, 16, 151, 152, u64::from(u32::MAX)] {
        check(field::MANIFEST_SEALED, sealed, cannot_be("sealed manifest length"));
    }
    check(field::DATA, 0, cannot_be("number of shards"));
    check(field::DATA, 254, cannot_be("number of shards"));
    check(field::PARITY, 252, cannot_be("number of shards"));
    check(field::NONCE.start..field::NONCE.start + 1, 3, cannot_be("nonce"));

    // Lengths that agree with each other, and not with what is there.
    let (actual, n) = (parse(&shards()[0]), 6);
    let whole = 24 + 168 + n * 32 + head.manifest.len();
    assert_eq!(actual.header.redundancy.total(), n);
    for parity in [0, 1, 3, 251] {
        let expected = 24 + 168 + (4 + parity) * 32 + head.manifest.len();
        let length = ShardFault::Length { actual: whole, expected };
        check(field::PARITY, parity as u64, length);
    }
    let length = ShardFault::Length { actual: whole, expected: whole - 1 };
    check(field::MANIFEST_SEALED, head.manifest.len() as u64 - 1, length);
    let mut beyond = head.clone();
    beyond.index = 6;
    let fault = parse_as("myimg", beyond.put_together("myimg")).unwrap_err();
    assert_eq!(fault, ShardFault::Index(6));
}

#[test]
fn payloads_that_are_too_few_or_do_not_fit_are_refused() {
    let shards = shards();
    let head = parse(&shards[0]);
    let check = |payloads: &[Option<Bytes>], expected: ErasureError| {
        match opener().blocks(&head, payloads) {
            Err(OpenError::Erasure(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(rebuild(&head, payloads), Err(RebuildError::Erasure(expected)));
    };
    let all = payloads(&shards);
    let mut three = all.clone();
    (0..3).for_each(|i| three[i * 2] = None);
    let too_few = |present| ErasureError::TooFew { present, needed: 4 };
    check(&three, too_few(3));
    check(&vec![None; 6], too_few(0));
    check(&all[..5], ErasureError::Unequal);
    check(&[], ErasureError::Unequal);
    check(&[&all[..], &all[..1]].concat(), ErasureError::Unequal);
    let mut short = all.clone();
    short[5] = Some(all[5].clone().unwrap().slice(1..));
    check(&short, ErasureError::Unequal);
    let empty = vec![Some(Bytes::new()); 6];
    check(&empty, ErasureError::Unequal);
    let all_short = |payload: &Option<Bytes>| payload.as_ref().map(|payload| payload.slice(1..));
    check(&all.iter().map(all_short).collect::<Vec<_>>(), ErasureError::Unequal);
}

/// Seals what is given under the right key, and expects this when it is opened.
fn check_sealed(
    change: impl FnOnce(&mut by_hand::Head),
    manifest: &[u8],
    body: &[u8],
    expected: impl FnOnce(Result<Vec<Block>, OpenError>) -> bool,
) {
    let (mut head, _) = apart();
    change(&mut head);
    let payloads = head.seal("myimg", &master(), manifest, body);
    let parsed = parse_as("myimg", head.put_together("myimg")).unwrap();
    let payloads: Vec<_> = payloads.into_iter().map(Some).collect();
    let opened = opener().blocks(&parsed, &payloads);
    let shown = format!("{opened:?}");
    assert!(expected(opened), "{shown}");
}

#[test]
fn what_another_writer_sealed_stored_as_it_is_opens() {
    let blocks = few_blocks();
    let (manifest, body) = (by_hand::manifest_of(&blocks), by_hand::body_of("myimg", 5, &blocks));
    check_sealed(|_| {}, &manifest, &body, |opened| opened.unwrap() == blocks);
}

#[test]
fn header_manifest_and_body_that_disagree_under_the_right_key_are_refused() {
    let blocks = few_blocks();
    let (manifest, body) = (by_hand::manifest_of(&blocks), by_hand::body_of("myimg", 5, &blocks));
    let disagree = |what: &'static str| move |opened: Result<Vec<Block>, OpenError>| matches!(opened, Err(OpenError::Disagree(about)) if about == what);
    let put = |field: Range<usize>, value: u64| {
        move |head: &mut by_hand::Head| {
            head.put(field, value);
        }
    };

    let mut other = blocks.clone();
    other[1].index = BlockIndex::new(77).unwrap();
    let other_manifest = by_hand::manifest_of(&other);
    check_sealed(|_| {}, &other_manifest, &body, disagree("blocks"));
    let fewer = by_hand::body_of("myimg", 5, &blocks[..2]);
    check_sealed(|_| {}, &manifest, &fewer, disagree("blocks"));
    let none = by_hand::body_of("myimg", 5, &[]);
    check_sealed(|_| {}, &manifest, &none, disagree("blocks"));
    let of_another = by_hand::body_of("other", 5, &blocks);
    check_sealed(|_| {}, &manifest, &of_another, disagree("vdisk"));

    let shifted: Vec<Block> = blocks
        .iter()
        .map(|block| Block { sequence: Sequence(block.sequence.0 + 1), ..block.clone() })
        .collect();
    let (m, b) = (by_hand::manifest_of(&shifted), by_hand::body_of("myimg", 5, &shifted));
    check_sealed(|_| {}, &m, &b, disagree("sequences"));
    check_sealed(put(field::OLDEST, 7), &manifest, &body, disagree("timestamps"));
    check_sealed(put(field::NEWEST, u64::MAX), &manifest, &body, disagree("timestamps"));
    check_sealed(put(field::BLOCK_SIZE, 63), &manifest, &body, disagree("block size"));
}

#[test]
fn nonsense_sealed_under_the_right_key_is_refused() {
    let blocks = few_blocks();
    let (manifest, body) = (by_hand::manifest_of(&blocks), by_hand::body_of("myimg", 5, &blocks));
    let bad_entry = |expected: usize| move |opened: Result<Vec<Block>, OpenError>| matches!(opened, Err(OpenError::Manifest(ManifestError::Entry(at))) if at == expected);
    let mut operation = manifest.clone();
    operation[45 + 16] = 3;
    check_sealed(|_| {}, &operation, &body, bad_entry(1));
    let mut negative_index = manifest.clone();
    negative_index[90 + 15] |= 0x80;
    check_sealed(|_| {}, &negative_index, &body, bad_entry(2));

    let is_aggregation = |opened: Result<_, OpenError>| matches!(opened, Err(OpenError::Aggregation(_)));
    check_sealed(|_| {}, &manifest, b"no message", is_aggregation);
    check_sealed(|_| {}, &manifest, &vec![0xff; 400], is_aggregation);
    for length in (0..body.len()).step_by(8).skip(1) {
        check_sealed(|_| {}, &manifest, &body[..length], is_aggregation);
    }
    let at = body.windows(9).position(|window| window == b"some text").unwrap();
    check_sealed(|_| {}, &manifest, &flipped(&body, at * 8), is_aggregation);

    // A bomb: snappy bytes that would become more than the header says.
    let mut head = apart().0;
    head.put(field::DATA, 1)
        .put(field::PARITY, 0)
        .put(field::BODY_PLAIN, 200)
        .put(field::BODY_SEALED, 100 + 16)
        .put(field::PAYLOAD, 100 + 16)
        .put(field::MANIFEST_COMPRESSION, 0)
        .put(field::MANIFEST_SEALED, 135 + 16);
    let mut bomb = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    bomb.resize(100, 0xfe);
    let payloads = head.seal_as_it_says("myimg", &master(), &manifest, &bomb, (1, 0));
    let parsed = parse_as("myimg", head.put_together("myimg")).unwrap();
    let opened = opener().blocks(&parsed, &[Some(payloads[0].clone())]);
    assert!(matches!(opened, Err(OpenError::Decompress { part: "body" })), "{opened:?}");
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_shard(mut bytes in prop::collection::vec(any::<u8>(), 0..600), magic: bool) {
        if magic && bytes.len() > 40 {
            bytes[..4].copy_from_slice(b"TLS2");
            bytes[24..28].copy_from_slice(b"TLOG");
            bytes[28] = 2;
        }
        prop_assert!(parse_as("myimg", bytes).is_err());
    }

    #[test]
    fn a_header_that_is_accepted_has_only_one_way_to_be_written(
        changes in prop::collection::vec((0usize..168, any::<u8>()), 0..4)
    ) {
        let mut header = apart().0.header;
        changes.into_iter().for_each(|(at, value)| header[at] = value);
        if let Ok(decoded) = Header::decode(&header) {
            prop_assert_eq!(decoded.encode(), header);
        }
    }

    #[test]
    fn whatever_is_sealed_as_manifest_and_body_is_refused_or_what_it_says(
        at in any::<prop::sample::Index>(), value: u8, in_body: bool, timestamp: u64
    ) {
        let blocks = few_blocks();
        let mut manifest = by_hand::manifest_of(&blocks);
        let mut body = by_hand::body_of("myimg", Timestamp(timestamp).0, &blocks);
        let part = if in_body { &mut body } else { &mut manifest };
        let at = at.index(part.len());
        part[at] = value;
        check_sealed(|_| {}, &manifest, &body, |opened| opened.is_err() || opened.unwrap() == blocks);
    }
}

#[test]
fn many_heads_are_parsed_as_each_is_by_itself_damaged_ones_among_them() {
    let shards = shards();
    let mut heads: Vec<Bytes> = Vec::new();
    for (i, shard) in shards.iter().cycle().take(100).enumerate() {
        heads.push(match i % 7 {
            1 => flipped(&shard.head, i * 13 % (shard.head.len() * 8)).into(),
            3 => shard.head.slice(..i),
            5 => Bytes::new(),
            _ => shard.head.clone(),
        });
    }
    let each: Vec<_> = heads.iter().map(|head| ShardHead::parse(&vdisk("myimg"), head)).collect();
    assert!(each.iter().any(Result::is_ok) && each.iter().filter(|parsed| parsed.is_err()).count() > 30);
    assert_eq!(ShardHead::parse_many(&vdisk("myimg"), &heads), each);
    assert!(ShardHead::parse_many(&vdisk("other"), &heads).iter().all(Result::is_err));
    assert_eq!(ShardHead::parse_many(&vdisk("myimg"), &[]), []);
}
