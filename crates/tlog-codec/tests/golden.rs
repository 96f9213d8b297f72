//! What earlier versions stored is read for ever, and comes out the same when it is sealed again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use bytes::Bytes;
use support::by_hand::{self, field};
use support::golden::{self, Golden};
use support::keys_of;
use tlog_codec::{BlockEntry, EncodedShard, Opener, Sealer, ShardHead, Suite, VdiskKeys};
use tlog_crypto::MasterKey;

fn keys() -> VdiskKeys {
    let key = std::fs::read_to_string(golden::folder().join("key.hex")).unwrap();
    keys_of("golden", [MasterKey::from_hex(key.trim()).unwrap()])
}

fn all() -> Vec<(Golden, Vec<EncodedShard>)> {
    golden::all().iter().map(|folder| Golden::load(folder)).collect()
}

/// Sealed as a writer of today does: earlier ones hashed payloads with BLAKE2b, and compressed a body where that saved anything; by hand
/// none was.
fn sealed_as_today(shard: &EncodedShard) -> bool {
    let head = by_hand::Head::take_apart(&shard.head);
    let (plain, sealed) = (head.number(field::BODY_PLAIN), head.number(field::BODY_SEALED) - 16);
    let as_written = if sealed <= plain - plain / 8 { 1 } else { 0 };
    head.number(field::SUITE) == 2 && head.number(field::BODY_COMPRESSION) == as_written
}

#[test]
fn golden_aggregations_are_read_of_every_choice_of_k_shards() {
    let opener = Opener::new(keys());
    for (golden, shards) in all() {
        let heads: Vec<ShardHead> =
            shards.iter().map(|shard| ShardHead::parse(&golden.vdisk, &shard.head).unwrap()).collect();
        for (index, (head, shard)) in heads.iter().zip(&shards).enumerate() {
            assert_eq!((head.index, head.epoch, head.id), (index, golden.epoch, golden.id));
            head.verify_payload(&shard.payload).unwrap();
        }
        let entries: Vec<BlockEntry> = golden.blocks.iter().map(BlockEntry::from).collect();
        let n = golden.redundancy.total();
        let mut choices = 0;
        for choice in (0u32..1 << n).filter(|set| set.count_ones() as usize == golden.redundancy.data()) {
            let left: Vec<Option<Bytes>> =
                (0..n).map(|i| (choice >> i & 1 == 1).then(|| shards[i].payload.clone())).collect();
            let head = &heads[choice.trailing_zeros() as usize];
            assert_eq!(opener.blocks(head, &left).unwrap(), golden.blocks);
            assert_eq!(opener.manifest(head).unwrap(), entries);
            choices += 1;
        }
        assert_eq!(choices, if n == 6 { 15 } else { n });
    }
}

#[test]
fn golden_headers_say_what_was_sealed() {
    for (golden, shards) in all() {
        let header = ShardHead::parse(&golden.vdisk, &shards[0].head).unwrap().header;
        assert_eq!((header.number, header.prev), (golden.number, golden.prev));
        assert_eq!((header.generation, header.session), (golden.generation, golden.session));
        assert_eq!((header.sealed_at, header.redundancy), (golden.sealed_at, golden.redundancy));
        assert_eq!(header.block_count as usize, golden.blocks.len());
        let key = keys_of("golden", [MasterKey::from_bytes([0x6b; 32])]);
        assert_eq!(format!("{key:?}"), format!("{:?}", keys()), "the ids of keys never change");
    }
}

#[test]
fn sealed_again_with_the_same_nonce_they_are_the_same_bytes() {
    let mut sealed_again = 0;
    for (golden, shards) in all() {
        if !sealed_as_today(&shards[0]) {
            continue;
        }
        let sealer = Sealer::new(keys(), golden.redundancy);
        let encoded = sealer.seal(golden.request()).unwrap().link(golden.prev);
        assert_eq!(encoded.id, golden.id);
        for (index, shard) in shards.iter().enumerate() {
            assert_eq!(encoded.shard(index, golden.epoch).as_ref(), Some(shard));
        }
        sealed_again += 1;
    }
    assert!(sealed_again >= 2);
}

#[test]
fn the_text_of_a_golden_aggregation_is_all_there_is_to_it() {
    for folder in golden::all() {
        let text = std::fs::read_to_string(folder.join("aggregation.txt")).unwrap();
        assert_eq!(Golden::from_text(&text).to_text(), text);
    }
}

#[test]
fn every_way_to_compress_is_among_them() {
    let ways: Vec<(u64, u64)> = all()
        .iter()
        .map(|(_, shards)| {
            let head = by_hand::Head::take_apart(&shards[0].head);
            let manifest = head.number(field::MANIFEST_COMPRESSION);
            (manifest, head.number(field::BODY_COMPRESSION))
        })
        .collect();
    for way in [(1, 1), (0, 1), (0, 0)] {
        assert!(ways.contains(&way), "{way:?} of {ways:?}");
    }
}

#[test]
fn every_suite_is_among_them() {
    let suites: Vec<Suite> = all()
        .iter()
        .map(|(golden, shards)| ShardHead::parse(&golden.vdisk, &shards[0].head).unwrap().header.suite)
        .collect();
    for suite in [Suite::AesGcmBlake2b, Suite::AesGcmBlake3] {
        assert!(suites.contains(&suite), "{suites:?}");
    }
}
