//! The chain, verified by somebody who has no key: there is none in this file, nor in what it uses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use bytes::Bytes;
use proptest::prelude::*;
use support::by_hand::{self, field};
use support::golden::{self, Golden};
use support::{noise, vdisk};
use tlog_codec::{ChainBreak, ChainVerifier, ShardHead, rebuild};
use tlog_proto::{AggregationId, AggregationNumber, Epoch};

/// Head parts of a log: every part of them as it must be, but what is "sealed" in them is noise.
fn log(name: &str, seed: u64, length: u64) -> Vec<Bytes> {
    let mut prev = [0; 32];
    let mut head = by_hand::Head {
        index: 0,
        epoch: 1,
        header: [0; by_hand::HEADER],
        hashes: Vec::new(),
        manifest: Vec::new(),
    };
    head.header[..4].copy_from_slice(b"TLOG");
    let next = |number: u64| {
        let (manifest, payload) = (noise(seed + number, 45 + 16), noise(seed + number * 7, 100 + 16));
        head.put(field::FORMAT, 2)
            .put(field::DATA, 1)
            .put(field::PARITY, 0)
            .put(field::KIND, 1)
            .put(field::SUITE, 1)
            .put(field::BLOCK_COUNT, 1)
            .put(field::NUMBER, number)
            .put(field::MANIFEST_PLAIN, 45)
            .put(field::MANIFEST_SEALED, 45 + 16)
            .put(field::PAYLOAD, 100 + 16)
            .put(field::BODY_PLAIN, 100)
            .put(field::BODY_SEALED, 100 + 16);
        head.header[field::PREV].copy_from_slice(&prev);
        head.manifest = manifest;
        head.hash(&[payload.into()]);
        prev = head.id(name);
        head.put_together(name)
    };
    (1..=length).map(next).collect()
}

fn walk(mut verifier: ChainVerifier, name: &str, heads: &[Bytes]) -> Result<(), ChainBreak> {
    let vdisk = vdisk(name);
    let mut heads = heads.iter().map(|head| ShardHead::parse(&vdisk, head).unwrap());
    heads.try_for_each(|head| verifier.handle(&head))
}

fn id(name: &str, head: &Bytes) -> AggregationId {
    ShardHead::parse(&vdisk(name), head).unwrap().id
}

fn number(expected: u64, found: u64) -> Result<(), ChainBreak> {
    Err(ChainBreak::Number { expected: AggregationNumber(expected), found: AggregationNumber(found) })
}

#[test]
fn a_whole_log_holds_from_its_start_and_from_anywhere_in_it() {
    let log = log("myimg", 1, 9);
    assert_eq!(walk(ChainVerifier::from_start(), "myimg", &log), Ok(()));
    for at in 1..log.len() {
        let next = AggregationNumber(at as u64 + 1);
        let after = ChainVerifier::after(next, id("myimg", &log[at - 1]));
        assert_eq!(walk(after, "myimg", &log[at..]), Ok(()));
        assert_eq!(walk(ChainVerifier::from_pruned(next), "myimg", &log[at..]), Ok(()));
        let wrong = ChainVerifier::after(next, AggregationId([1; 32]));
        assert!(matches!(walk(wrong, "myimg", &log[at..]), Err(ChainBreak::Prev { .. })));
    }
}

#[test]
fn what_is_removed_reordered_or_doubled_is_noticed_where_it_is() {
    let whole = log("myimg", 1, 5);
    let check = |change: &dyn Fn(&mut Vec<Bytes>), expected| {
        let mut log = whole.clone();
        change(&mut log);
        assert_eq!(walk(ChainVerifier::from_start(), "myimg", &log), expected);
    };
    check(&|log| drop(log.remove(0)), number(1, 2));
    check(&|log| drop(log.remove(2)), number(3, 4));
    check(&|log| log.swap(1, 2), number(2, 3));
    check(&|log| log.insert(3, log[2].clone()), number(4, 3));
    check(&|log| log.reverse(), number(1, 5));
}

#[test]
fn a_replaced_aggregation_breaks_the_chain_at_the_one_after_it() {
    let name = "myimg";
    let mut whole = log(name, 1, 5);
    let other = log(name, 2, 5);
    // Of another log of the same vdisk, such as one that was started over: its prev does not fit.
    let mut replaced = whole.clone();
    replaced[2] = other[2].clone();
    let expected = ChainBreak::Prev {
        number: AggregationNumber(3),
        expected: id(name, &whole[1]),
        found: id(name, &other[1]),
    };
    assert_eq!(walk(ChainVerifier::from_start(), name, &replaced), Err(expected));

    // Made to fit what is before it: then what is after it does not fit.
    let mut forged = by_hand::Head::take_apart(&other[2]);
    forged.header[field::PREV].copy_from_slice(&id(name, &whole[1]).0);
    let before = id(name, &whole[2]);
    whole[2] = forged.put_together(name);
    let expected =
        ChainBreak::Prev { number: AggregationNumber(4), expected: id(name, &whole[2]), found: before };
    assert_eq!(walk(ChainVerifier::from_start(), name, &whole), Err(expected));
}

#[test]
fn an_aggregation_of_another_vdisk_is_none_of_this_one() {
    let (mine, other) = (log("myimg", 1, 4), log("other", 1, 4));
    assert!(ShardHead::parse(&vdisk("myimg"), &other[2]).is_err());
    // Made to fit this vdisk, which changes its id, and with that the one after it no longer follows.
    let mut moved = mine.clone();
    moved[1] = by_hand::Head::take_apart(&other[1]).put_together("myimg");
    let walked = walk(ChainVerifier::from_start(), "myimg", &moved);
    assert!(matches!(walked, Err(ChainBreak::Prev { .. })), "{walked:?}");
}

#[test]
fn the_first_follows_nothing_even_after_pruning() {
    let mut log = log("myimg", 1, 1);
    let mut first = by_hand::Head::take_apart(&log[0]);
    first.header[field::PREV].copy_from_slice(&[9; 32]);
    log[0] = first.put_together("myimg");
    for verifier in [
        ChainVerifier::from_start(),
        ChainVerifier::from_pruned(AggregationNumber(1)),
        ChainVerifier::from_pruned(AggregationNumber(0)),
    ] {
        let walked = walk(verifier, "myimg", &log);
        assert!(matches!(walked, Err(ChainBreak::Prev { .. })), "{walked:?}");
    }
}

#[test]
fn after_a_break_the_verifier_still_expects_what_was_missing() {
    let log = log("myimg", 1, 3);
    let head = |at: usize| ShardHead::parse(&vdisk("myimg"), &log[at]).unwrap();
    let mut verifier = ChainVerifier::from_start();
    verifier.handle(&head(0)).unwrap();
    assert!(verifier.handle(&head(2)).is_err());
    assert_eq!(verifier.next(), AggregationNumber(2));
    verifier.handle(&head(1)).unwrap();
    verifier.handle(&head(2)).unwrap();
    assert_eq!(verifier.next(), AggregationNumber(4));
}

#[test]
fn the_golden_log_is_proven_and_rebuilt_by_an_auditor_without_a_key() {
    let mut verifier = ChainVerifier::from_start();
    for folder in golden::all() {
        let (golden, shards) = Golden::load(&folder);
        let heads: Vec<ShardHead> =
            shards.iter().map(|shard| ShardHead::parse(&golden.vdisk, &shard.head).unwrap()).collect();
        verifier.handle(&heads[0]).unwrap();
        for (head, shard) in heads.iter().zip(&shards) {
            assert_eq!(head.id, golden.id);
            head.verify_payload(&shard.payload).unwrap();
        }
        // All of m lost, from the first on: the rest makes the same bytes again.
        let parity = golden.redundancy.parity();
        let left: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(i, shard)| (i >= parity).then(|| shard.payload.clone()))
            .collect();
        let rebuilt = rebuild(heads.last().unwrap(), &left).unwrap();
        for (index, shard) in shards.iter().enumerate() {
            assert_eq!(rebuilt.shard(index, golden.epoch).as_ref(), Some(shard));
        }
        // Written again by a later epoch only the prefix differs.
        let later = rebuilt.shard(0, Epoch(golden.epoch.0 + 1)).unwrap();
        assert_ne!(later.head, shards[0].head);
        assert_eq!(later.head[by_hand::PREFIX..], shards[0].head[by_hand::PREFIX..]);
    }
    assert!(verifier.next() > AggregationNumber(3));
}

proptest! {
    #[test]
    fn any_other_order_or_choice_of_a_log_is_no_chain(
        picks in prop::collection::vec((0usize..6, any::<bool>()), 1..8)
    ) {
        let (mine, other) = (log("myimg", 1, 6), log("myimg", 2, 6));
        let picked: Vec<Bytes> = picks
            .iter()
            .map(|(at, from_other)| if *from_other { other[*at].clone() } else { mine[*at].clone() })
            .collect();
        let holds = walk(ChainVerifier::from_start(), "myimg", &picked).is_ok();
        prop_assert_eq!(holds, mine.starts_with(&picked) || other.starts_with(&picked));
    }
}
