//! Parts that are whole and belong elsewhere, and what can be forged without a key. Never another result.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use bytes::Bytes;
use support::by_hand::{self, field};
use support::*;
use tlog_codec::{OpenError, Opener, RebuildError, SealRequest, ShardFault, ShardHead, rebuild};
use tlog_crypto::MasterKey;
use tlog_proto::AggregationNumber;

#[test]
fn a_shard_of_another_vdisk_is_not_one_of_this() {
    for shard in shards() {
        assert_eq!(parse_as("other", shard.head.clone()), Err(ShardFault::Check));
        assert_eq!(parse_as("myim", shard.head.clone()), Err(ShardFault::Check));
    }
    // Made to fit the other vdisk, as anybody can who has no key: it does not open there.
    let (head, shards) = apart();
    let moved = parse_as("other", head.put_together("other")).unwrap();
    let opener = Opener::new(keys("other"));
    assert_forged(opener.manifest(&moved), "manifest");
    assert_forged(opener.blocks(&moved, &payloads(&shards)), "body");
}

fn assert_forged<T: std::fmt::Debug>(result: Result<T, OpenError>, expected: &str) {
    match result {
        Err(OpenError::Forged { part }) => assert_eq!(part, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_payload_under_another_index_is_noticed() {
    let shards = shards();
    for (i, one) in shards.iter().enumerate() {
        for (j, other) in shards.iter().enumerate() {
            assert_eq!(parse(one).verify_payload(&other.payload).is_ok(), i == j, "{i} {j}");
        }
    }
    // Put together in the wrong order all the same: it does not open, and is not rebuilt.
    let mut swapped = payloads(&shards);
    swapped.swap(1, 2);
    assert_forged(opener().blocks(&parse(&shards[0]), &swapped), "body");
    assert_eq!(rebuild(&parse(&shards[0]), &swapped), Err(RebuildError::Mismatch));
}

#[test]
fn without_its_key_nothing_opens_and_the_error_names_the_key() {
    let shards = shards();
    let (head, all) = (parse(&shards[0]), payloads(&shards));
    let opener = Opener::new(keys_of("myimg", [[1; 32], [2; 32]].map(MasterKey::from_bytes)));
    for result in [opener.manifest(&head).map(|_| ()), opener.blocks(&head, &all).map(|_| ())] {
        match result {
            Err(OpenError::Key(error)) => {
                assert_eq!(error.id, master().id());
                assert!(error.to_string().contains(&master().id().to_string()), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    // What needs no key goes on working.
    assert_eq!(rebuild(&head, &all).unwrap().id, head.id);
}

#[test]
fn a_header_that_names_another_key_of_the_ring_does_not_open() {
    let (mut head, shards) = apart();
    let other = MasterKey::from_bytes([1; 32]);
    head.put(field::KEY_ID, u64::from_le_bytes(other.id().0));
    let forged = parse_as("myimg", head.put_together("myimg")).unwrap();
    let opener = Opener::new(keys_of("myimg", [master(), other]));
    assert_forged(opener.manifest(&forged), "manifest");
    assert_forged(opener.blocks(&forged, &payloads(&shards)), "body");
}

#[test]
fn a_header_forged_without_a_key_opens_nothing() {
    // Every bit of what is bound, flipped, and id and check made to fit.
    let (head, shards) = apart();
    let (opener, all) = (opener(), payloads(&shards));
    let mut parsed = 0;
    for bit in 0..field::PREV.start * 8 {
        let mut forged = head.clone();
        forged.header[bit / 8] ^= 1 << (bit % 8);
        let Ok(forged) = parse_as("myimg", forged.put_together("myimg")) else {
            continue;
        };
        parsed += 1;
        assert!(opener.manifest(&forged).is_err(), "bit {bit}");
        assert!(opener.blocks(&forged, &all).is_err(), "bit {bit}");
    }
    // Number, generation, session, sealed at, key and most of nonce, block size and timestamps can be anything.
    assert!(parsed > 500, "{parsed}");
}

#[test]
fn a_manifest_or_payload_forged_without_a_key_opens_nothing() {
    let (head, shards) = apart();
    for bit in 0..head.manifest.len() * 8 {
        let mut forged = head.clone();
        forged.manifest = flipped(&head.manifest, bit);
        let forged = parse_as("myimg", forged.put_together("myimg")).unwrap();
        assert_forged(opener().manifest(&forged), "manifest");
        assert!(opener().blocks(&forged, &payloads(&shards)).is_err());
    }
    let mut forged_payloads: Vec<Bytes> = shards.iter().map(|shard| shard.payload.clone()).collect();
    forged_payloads[1] = flipped(&forged_payloads[1], 77).into();
    let mut forged = head;
    forged.hash(&forged_payloads);
    let forged = parse_as("myimg", forged.put_together("myimg")).unwrap();
    let mut given: Vec<_> = forged_payloads.into_iter().map(Some).collect();
    assert_forged(opener().blocks(&forged, &given), "body");
    given[0] = None;
    assert_forged(opener().blocks(&forged, &given), "body");
    given[1] = None;
    assert_eq!(opener().blocks(&forged, &given).unwrap(), few_blocks(), "parity is honest");
}

#[test]
fn parts_of_two_aggregations_do_not_make_one() {
    let seal = |number: u64, last: u8| {
        let mut nonce = NONCE;
        nonce[11] = last;
        let blocks = few_blocks();
        let request = SealRequest { number: AggregationNumber(number), nonce, ..request(&blocks) };
        stored(sealer(4, 2).seal(request).unwrap())
    };
    // Of other numbers; and of the same number, written twice with other nonces.
    for (one, two) in [(seal(1, 1), seal(2, 2)), (seal(1, 1), seal(1, 2))] {
        let (a, b) = (by_hand::Head::take_apart(&one[0].head), by_hand::Head::take_apart(&two[0].head));
        let mut with_its_manifest = a.clone();
        with_its_manifest.manifest = b.manifest;
        let mixed = parse_as("myimg", with_its_manifest.put_together("myimg")).unwrap();
        assert_forged(opener().manifest(&mixed), "manifest");

        let mut with_its_body = a;
        with_its_body.hashes = b.hashes;
        let mixed = parse_as("myimg", with_its_body.put_together("myimg")).unwrap();
        mixed.verify_payload(&two[0].payload).unwrap();
        assert_forged(opener().blocks(&mixed, &payloads(&two)), "body");
        // And payloads of the one with the head of the other, where nobody verified them.
        assert_forged(opener().blocks(&parse(&one[0]), &payloads(&two)), "body");
        assert_eq!(rebuild(&parse(&one[0]), &payloads(&two)), Err(RebuildError::Mismatch));
    }
}

#[test]
fn manifest_and_body_cannot_stand_in_for_each_other() {
    // One part long enough for both: the same bytes, sealed as manifest, are given as the body.
    let (mut head, _) = apart();
    let manifest = by_hand::manifest_of(&few_blocks());
    head.put(field::DATA, 1).put(field::PARITY, 0);
    head.seal("myimg", &master(), &manifest, &manifest);
    let as_body = Bytes::from(head.manifest.clone());
    head.hash(std::slice::from_ref(&as_body));
    let parsed = parse_as("myimg", head.put_together("myimg")).unwrap();
    assert_eq!(opener().manifest(&parsed).unwrap().len(), 3);
    assert_forged(opener().blocks(&parsed, &[Some(as_body)]), "body");
}

#[test]
fn shards_that_are_whole_and_do_not_belong_together_are_not_rebuilt() {
    // A writer whose parity was wrong: every payload has the hash that the head says.
    let (mut head, shards) = apart();
    let mut wrong: Vec<Bytes> = shards.iter().map(|shard| shard.payload.clone()).collect();
    wrong[4] = flipped(&wrong[4], 5).into();
    head.hash(&wrong);
    let heads: Vec<ShardHead> = (0..6)
        .map(|index| {
            head.index = index;
            parse_as("myimg", head.put_together("myimg")).unwrap()
        })
        .collect();
    for (head, payload) in heads.iter().zip(&wrong) {
        head.verify_payload(payload).unwrap();
    }
    let mut given: Vec<_> = wrong.into_iter().map(Some).collect();
    given[0] = None;
    assert_eq!(rebuild(&heads[1], &given), Err(RebuildError::Mismatch));
    assert_forged(opener().blocks(&heads[1], &given), "body");
    given[4] = None;
    assert_eq!(opener().blocks(&heads[1], &given).unwrap(), few_blocks());
    // The wrong parity cannot be made again from what is right.
    assert_eq!(rebuild(&heads[1], &given), Err(RebuildError::Mismatch));
}

#[test]
fn of_the_blocks_that_are_asked_for_every_hash_is_checked_and_others_are_not_answered() {
    let blocks = few_blocks();
    let at = |positions: &[u32]| {
        let shards = stored(sealer(4, 2).seal(request(&blocks)).unwrap());
        opener().blocks_at(&parse(&shards[0]), &payloads(&shards), positions).unwrap()
    };
    let some = |position: usize| Some(blocks[position].clone());
    assert_eq!(at(&[2, 0]), [some(2), some(0)]);
    assert_eq!(at(&[1, 3, u32::MAX, 1]), [some(1), None, None, some(1)]);
    assert_eq!(at(&[]), []);

    // Sealed by somebody with the key, with a hash that is not that of the data.
    let mut wrong = few_blocks();
    wrong[1].hash = wrong[0].hash;
    let shards = stored(sealer(4, 2).seal(request(&wrong)).unwrap());
    let (head, all) = (parse(&shards[0]), payloads(&shards));
    for positions in [&[1][..], &[0, 1], &[2, 1, 0]] {
        let refused = opener().blocks_at(&head, &all, positions);
        assert!(matches!(refused, Err(OpenError::Aggregation(_))), "{positions:?}");
    }
    assert!(matches!(opener().blocks(&head, &all), Err(OpenError::Aggregation(_))));
    assert_eq!(opener().blocks_at(&head, &all, &[0, 2]).unwrap(), [some(0), some(2)]);
}
