//! Single blocks out of bodies that are not compressed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use support::*;
use tlog_codec::{BlockEntry, BodyBlock, EncodedAggregation, PlainBody};
use tlog_proto::{AggregationId, Block, Epoch};

fn sealed(data: usize, parity: usize, blocks: &[Block]) -> EncodedAggregation {
    sealer(data, parity).seal(request(blocks)).unwrap().link(AggregationId::BEFORE_FIRST)
}

fn places(blocks: &[Block]) -> Vec<BodyBlock> {
    let entries: Vec<BlockEntry> = blocks.iter().map(BlockEntry::from).collect();
    let block = |(entry, place): (&BlockEntry, u32)| BodyBlock {
        place,
        length: entry.length,
        hash_prefix: entry.hash_prefix,
    };
    entries.iter().zip(PlainBody::places(&vdisk("myimg"), &entries)).map(block).collect()
}

#[test]
fn each_block_alone_is_what_the_whole_aggregation_has() {
    let blocks = [set(5, noise(1, 7000)), delete(6), set(7, noise(2, 640)), set(8, noise(3, 4096))];
    for (data, parity) in [(4, 2), (1, 0), (7, 3)] {
        let encoded = sealed(data, parity, &blocks);
        let body = PlainBody::of(&encoded.header).expect("noise does not shrink");
        let opener = opener();
        for (block, at) in blocks.iter().zip(places(&blocks)) {
            let parts = body.parts(&at).unwrap();
            assert!(parts.iter().all(|part| part.shard < data && !part.bytes.is_empty()));
            let part = |part: &tlog_codec::PayloadPart| {
                let payload = encoded.shard(part.shard, Epoch(7)).unwrap().payload;
                payload[part.bytes.start as usize..part.bytes.end as usize].to_vec()
            };
            let encrypted: Vec<u8> = parts.iter().flat_map(part).collect();
            let mut opened = [(at, encrypted.clone())];
            assert_eq!(opener.open_parts(&body, &mut opened), Some(vec![block.hash]));
            assert_eq!(opened[0].1, block.data);

            for bit in 0..encrypted.len().min(40) {
                let mut wrong = encrypted.clone();
                wrong[bit] ^= 1 << (bit % 8);
                assert_eq!(opener.open_parts(&body, &mut [(at, wrong)]), None);
            }
            let elsewhere = BodyBlock { place: at.place + 8, ..at };
            if !block.data.is_empty() {
                assert_eq!(opener.open_parts(&body, &mut [(elsewhere, encrypted)]), None);
                assert_eq!(opener.open_parts(&body, &mut [(at, Vec::new())]), None, "cut short");
            }
        }
        let beyond = BodyBlock { place: body.len() as u32 - 3, length: 4, hash_prefix: [0; 16] };
        assert_eq!(body.parts(&beyond), None);
        assert_eq!(body.parts(&BodyBlock { place: u32::MAX, ..beyond }), None);
    }
}

#[test]
fn a_compressed_body_has_no_parts() {
    let encoded = sealed(4, 2, &[set(1, vec![7; 4096])]);
    assert_eq!(PlainBody::of(&encoded.header), None);
}
