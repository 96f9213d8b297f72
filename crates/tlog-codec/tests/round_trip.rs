//! What goes in comes out, of any k shards, and another implementation of the format agrees.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use bytes::Bytes;
use proptest::prelude::*;
use support::by_hand::{self, field};
use support::*;
use tlog_codec::{
    AGGREGATIONS_PER_DATA_KEY, BlockEntry, Opener, Redundancy, SealError, SealRequest, Sealer, ShardHead,
    rebuild,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockFault, BlockHash, BlockIndex, Epoch, Generation, Operation,
    Sequence, SessionId, Timestamp,
};

/// Seals, loses the shards `lost`, and expects everything back in every way there is.
fn check(request: SealRequest<'_>, redundancy: Redundancy, lost: &[usize]) {
    let (data, parity) = (redundancy.data(), redundancy.parity());
    let encoded =
        Sealer::new(keys("myimg"), redundancy).seal(request).unwrap().link(AggregationId([0xee; 32]));
    let shards: Vec<_> = (0..).map_while(|i| encoded.shard(i, Epoch(7))).collect();
    assert_eq!(shards.len(), data + parity);
    let stored: usize = shards.iter().map(|s| s.head.len() + s.payload.len()).sum();
    assert_eq!(encoded.stored_bytes(), stored);

    // Every shard proves itself and says what was sealed.
    let heads: Vec<ShardHead> = shards.iter().map(parse).collect();
    let pairs: Vec<_> = heads.iter().zip(&shards).map(|(h, s)| (h, &s.payload[..])).collect();
    assert!(ShardHead::verify_payloads(&pairs).iter().all(Result::is_ok));
    for (index, (head, shard)) in heads.iter().zip(&shards).enumerate() {
        head.verify_payload(&shard.payload).unwrap();
        assert_eq!((head.index, head.epoch, head.id), (index, Epoch(7), encoded.id));
        assert_eq!(head.header, encoded.header);
    }
    let header = &encoded.header;
    let (blocks, timestamps) = (request.blocks, || request.blocks.iter().map(|b| b.timestamp));
    assert_eq!(header.redundancy, redundancy);
    assert_eq!((header.number, header.generation), (request.number, request.generation));
    assert_eq!((header.session, header.sealed_at), (request.session, request.sealed_at));
    assert_eq!(header.first_sequence, blocks.first().unwrap().sequence);
    assert_eq!(header.last_sequence, blocks.last().unwrap().sequence);
    assert_eq!(header.oldest_timestamp, timestamps().min().unwrap());
    assert_eq!(header.newest_timestamp, timestamps().max().unwrap());
    assert_eq!(header.block_count as usize, blocks.len());
    assert_eq!(header.prev, AggregationId([0xee; 32]));
    let longest = blocks.iter().map(Block::size).max().unwrap() as u32;
    assert_eq!(header.block_size, longest.max(request.block_size));

    // Some shards are lost; any head and the payloads that are left are enough.
    let mut left = payloads(&shards);
    lost.iter().for_each(|i| left[*i] = None);
    let head = left.iter().position(Option::is_some).map(|i| &heads[i]).unwrap();
    let opener = opener();
    assert_eq!(opener.blocks(head, &left).unwrap(), blocks);
    let entries: Vec<BlockEntry> = blocks.iter().map(BlockEntry::from).collect();
    assert_eq!(opener.manifest(head).unwrap(), entries);
    assert_eq!(encoded.open(&opener).unwrap(), blocks);
    let rebuilt = rebuild(head, &left).unwrap();
    assert_eq!(rebuilt, encoded);
    for (index, shard) in shards.iter().enumerate() {
        assert_eq!(rebuilt.shard(index, Epoch(7)).as_ref(), Some(shard));
    }
    assert_eq!(rebuilt.shard(data + parity, Epoch(7)), None);

    // What was written is what the documentation says.
    let by_hand = by_hand::Head::take_apart(&shards[0].head);
    assert_eq!(by_hand.put_together("myimg"), shards[0].head);
    assert_eq!(by_hand.id("myimg"), encoded.id.0);
    assert_eq!(by_hand.open_manifest("myimg", &master()), by_hand::manifest_of(blocks));
    let all: Vec<Bytes> = shards.iter().map(|shard| shard.payload.clone()).collect();
    let opened = by_hand.open_body("myimg", &master(), &all[..data]);
    assert_eq!((opened.blocks, opened.prev.len()), (blocks.to_vec(), 0));
    assert_eq!(opened.timestamp, request.sealed_at);
    assert_eq!(by_hand::parity_by_definition(&all[..data], parity), all[data..]);
}

fn any_content() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![
        2 => Just(None),
        3 => prop::collection::vec(any::<u8>(), 1..300).prop_map(|data| Some(data.into())),
        2 => (any::<u64>(), 300usize..6000).prop_map(|(seed, length)| Some(noise(seed, length).into())),
        2 => ("[a-z ]{1,30}", 1usize..200).prop_map(|(text, times)| Some(text.repeat(times).into())),
        1 => (1usize..5000).prop_map(|length| Some(vec![0; length].into())),
    ]
}

prop_compose! {
    fn any_blocks()(
        first in prop_oneof![Just(0u64), 1u64..1000, Just(u64::MAX - 40)],
        contents in prop::collection::vec((any_content(), any::<u64>(), any::<u64>()), 1..40),
    ) -> Vec<Block> {
        let block = |(sequence, (content, index, timestamp)): (u64, (Option<Bytes>, u64, u64))| {
            let (index, timestamp) = (BlockIndex::new(index >> 1).unwrap(), Timestamp(timestamp));
            match content {
                Some(data) => Block::set(Sequence(sequence), index, timestamp, data),
                None => Block::delete(Sequence(sequence), index, timestamp),
            }
        };
        (first..).zip(contents).map(block).collect()
    }
}

proptest! {
    #[test]
    fn any_blocks_come_back_of_any_k_shards(
        blocks in any_blocks(),
        data in 1usize..10,
        parity in 0usize..6,
        order in Just((0..15usize).collect::<Vec<_>>()).prop_shuffle(),
        lost in 0usize..6,
        (number, generation, session) in (1u64.., any::<u64>(), any::<u64>()),
        (sealed_at, block_size) in (any::<u64>(), prop_oneof![Just(0u32), Just(4096), any::<u32>()]),
        nonce: [u8; 12],
    ) {
        let request = SealRequest {
            number: AggregationNumber(number),
            generation: Generation(generation),
            session: SessionId(session),
            sealed_at: Timestamp(sealed_at),
            block_size,
            finding: Default::default(),
            nonce,
            blocks: &blocks,
        };
        let lost: Vec<usize> = order.into_iter().filter(|i| *i < data + parity).take(lost.min(parity)).collect();
        check(request, Redundancy::new(data, parity).unwrap(), &lost);
    }
}

#[test]
fn every_choice_of_lost_shards_of_4_plus_2_is_made_up_for() {
    let blocks = few_blocks();
    for one in 0..6 {
        for other in 0..6 {
            check(request(&blocks), Redundancy::new(4, 2).unwrap(), &[one, other]);
        }
    }
}

#[test]
fn the_extremes_of_redundancy_work() {
    let blocks = few_blocks();
    let check = |data: usize, parity: usize, lost: &[usize]| {
        check(request(&blocks), Redundancy::new(data, parity).unwrap(), lost)
    };
    check(1, 0, &[]);
    check(1, 1, &[0]);
    check(4, 0, &[]);
    check(255, 0, &[]);
    check(1, 254, &(0..254).collect::<Vec<_>>());
    check(128, 127, &(0..127).collect::<Vec<_>>());
    check(254, 1, &[17]);
}

#[test]
fn one_block_one_long_block_and_ten_thousand_blocks_work() {
    let four_plus_two = Redundancy::new(4, 2).unwrap();
    check(request(&[set(0, vec![1])]), four_plus_two, &[0, 1]);
    check(request(&[delete(u64::MAX)]), four_plus_two, &[3, 5]);
    check(request(&[set(1, noise(5, 1 << 20))]), four_plus_two, &[0, 3]);
    check(request(&[set(1, vec![0; 2 << 20])]), four_plus_two, &[0, 3]);
    let many: Vec<Block> =
        (1..=10_000).map(|i| if i % 7 == 0 { delete(i) } else { set(i, noise(i, 64)) }).collect();
    check(request(&many), four_plus_two, &[2, 4]);
}

#[test]
fn the_same_request_gives_the_same_bytes_and_another_nonce_gives_others() {
    let blocks = few_blocks();
    let seal = |nonce| {
        let request = SealRequest { nonce, ..request(&blocks) };
        stored(sealer(4, 2).seal(request).unwrap())
    };
    assert_eq!(seal(NONCE), seal(NONCE));
    // The lowest bit is not the caller's: it tells manifest and body apart.
    let mut same = NONCE;
    same[0] ^= 1;
    assert_eq!(seal(NONCE), seal(same));
    let mut other = NONCE;
    other[11] ^= 1;
    for (one, two) in seal(NONCE).iter().zip(seal(other)) {
        assert_ne!(one.head, two.head);
        assert_ne!(one.payload, two.payload);
    }
}

#[test]
fn sealing_does_not_need_the_aggregation_before_and_linking_changes_only_the_place() {
    let blocks = few_blocks();
    let sealed = sealer(4, 2).seal(request(&blocks)).unwrap();
    let one = sealed.clone().link(AggregationId([1; 32]));
    let two = sealed.link(AggregationId([2; 32]));
    assert_ne!(one.id, two.id);
    for index in 0..6 {
        let (one, two) = (one.shard(index, Epoch(1)).unwrap(), two.shard(index, Epoch(1)).unwrap());
        assert_eq!(one.payload, two.payload);
        let (mut one, two) = (by_hand::Head::take_apart(&one.head), by_hand::Head::take_apart(&two.head));
        one.header[field::PREV].copy_from_slice(&[2; 32]);
        assert_eq!(one, two);
    }
}

#[test]
fn the_data_key_changes_with_its_window() {
    let blocks = few_blocks();
    for (number, window) in [
        (1, 0),
        (AGGREGATIONS_PER_DATA_KEY - 1, 0),
        (AGGREGATIONS_PER_DATA_KEY, 1),
        (2 * AGGREGATIONS_PER_DATA_KEY - 1, 1),
        (u64::MAX, u64::MAX >> 29),
    ] {
        let request = SealRequest { number: AggregationNumber(number), ..request(&blocks) };
        check(request, Redundancy::new(2, 1).unwrap(), &[0]);
        // Under this key, and under none of the windows beside it.
        let shards = stored(sealer(2, 1).seal(request).unwrap());
        let head = by_hand::Head::take_apart(&shards[0].head);
        let mut associated = [&[5, 0][..], b"myimg"].concat();
        associated.extend_from_slice(&head.header[..136]);
        let nonce: [u8; 12] = head.header[field::NONCE].try_into().unwrap();
        for near in [window, window + 1, window.wrapping_sub(1)] {
            let key = tlog_crypto::DataKey::derive(&master(), b"myimg", near);
            let (sealed, tag) = head.manifest.split_last_chunk().unwrap();
            let opened = key.open_in_place(&mut sealed.to_vec(), nonce, &associated, tag);
            assert_eq!(opened.is_ok(), near == window, "number {number}, window {near}");
        }
    }
}

#[test]
fn a_manifest_that_does_not_shrink_stays_as_it_is() {
    let compression = |blocks: &[Block]| {
        let shards = stored(sealer(4, 2).seal(request(blocks)).unwrap());
        shards[0].head[by_hand::PREFIX + field::MANIFEST_COMPRESSION.start]
    };
    let random = |at: u64| u64::from_le_bytes(noise(at, 8).try_into().unwrap());
    let index = BlockIndex::new(random(1) >> 1).unwrap();
    let one = Block::set(Sequence(random(2)), index, Timestamp(random(3)), noise(4, 100).into());
    assert_eq!(compression(&[one]), 0);
    assert_eq!(compression(&(1..20).map(delete).collect::<Vec<_>>()), 1);
}

#[test]
fn an_older_master_key_still_opens_what_it_sealed_and_the_active_one_seals() {
    let blocks = few_blocks();
    let new_master = || tlog_crypto::MasterKey::from_bytes([7; 32]);
    let old = stored(sealer(4, 2).seal(request(&blocks)).unwrap());
    let both = keys_of("myimg", [new_master(), master()]);
    let new =
        stored(Sealer::new(both.clone(), Redundancy::new(4, 2).unwrap()).seal(request(&blocks)).unwrap());
    let opener = Opener::new(both);
    for (shards, master) in [(old, master()), (new, new_master())] {
        assert_eq!(parse(&shards[0]).header.key_id, master.id());
        assert_eq!(opener.blocks(&parse(&shards[0]), &payloads(&shards)).unwrap(), blocks);
    }
}

#[test]
fn what_no_reader_would_take_is_not_sealed() {
    let refuse = |number: u64, blocks: &[Block]| {
        let request = SealRequest { number: AggregationNumber(number), ..request(blocks) };
        sealer(4, 2).seal(request).unwrap_err()
    };
    assert!(matches!(refuse(1, &[]), SealError::NoBlocks));
    assert!(matches!(refuse(1, &[delete(1), delete(3)]), SealError::Sequences));
    assert!(matches!(refuse(1, &[delete(2), delete(1)]), SealError::Sequences));
    assert!(matches!(refuse(1, &[delete(2), delete(2)]), SealError::Sequences));
    let last = u64::MAX;
    assert!(matches!(refuse(1, &[delete(last), delete(last)]), SealError::Sequences));
    assert!(matches!(refuse(1, &[delete(last), delete(0)]), SealError::Sequences));
    assert!(matches!(refuse(0, &[delete(1)]), SealError::Header(_)));

    let empty_set = Block { operation: Operation::Set, ..delete(1) };
    let full_delete = Block { operation: Operation::Delete, ..set(2, vec![1, 2, 3]) };
    let check = |block: Block, expected: BlockFault| match refuse(1, std::slice::from_ref(&block)) {
        SealError::Block { sequence, fault } => assert_eq!((sequence, fault), (block.sequence, expected)),
        other => panic!("{other}"),
    };
    check(empty_set, BlockFault::SetWithoutData);
    check(full_delete, BlockFault::DeleteWithData(3));
}

#[test]
fn more_than_the_format_holds_is_refused_before_memory_is_taken() {
    // One mapping of zeros stands for all data: nobody reads it, or this test would take a while.
    let data = Bytes::from(vec![0; 1 << 29]);
    let block =
        |sequence: u64, data: Bytes| Block { data, hash: BlockHash([0; 32]), ..set(sequence, vec![1]) };
    let refuse = |blocks: &[Block]| match sealer(4, 2).seal(request(blocks)).unwrap_err() {
        SealError::TooLarge(bytes) => bytes,
        other => panic!("{other}"),
    };
    // Longer than Cap'n Proto can write down.
    assert!(refuse(&[block(1, data.clone())]) > 1 << 29);
    let half = data.slice(1..);
    assert!(refuse(&[block(1, half.clone()), block(2, half.clone()), block(3, half)]) > 3 << 28);
}
