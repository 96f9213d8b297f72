//! Makes golden aggregations of format 2 that are not there yet: `cargo run -p tlog-codec --example make_golden`.
//!
//! What is there is never written again. Golden files say what earlier versions wrote; where a test finds that they no
//! longer load or come out the same, it is the code that is wrong.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;

use support::by_hand::{self, field};
use support::golden::{self, Golden};
use support::{keys_of, noise};
use tlog_codec::{EncodedShard, Redundancy, Sealer, ShardHead};
use tlog_crypto::MasterKey;
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
};

const VDISK: &str = "golden";

fn main() {
    let folder = golden::folder();
    let key = folder.join("key.hex");
    if !key.exists() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&key, format!("{}\n", "6b".repeat(32))).unwrap();
    }
    let master = || MasterKey::from_hex(fs::read_to_string(&key).unwrap().trim()).unwrap();

    let text = |i: u64| format!("block {i} of a log that is kept; ").repeat(16).into_bytes();
    let texts = (1..=12).map(|i| set(i, i * 3, text(i))).collect();
    let random = |at: u64| u64::from_le_bytes(noise(at, 8).try_into().unwrap());
    let index = BlockIndex::new(random(2) >> 1).unwrap();
    let one = vec![Block::set(Sequence(random(3)), index, Timestamp(random(4)), noise(5, 100).into())];
    let deletes = vec![
        delete(1, 36),
        set(2, 36, text(2)),
        delete(3, 3),
        delete(4, i64::MAX as u64),
        set(5, 0, vec![0; 512]),
    ];
    let as_is = vec![set(6, 1, noise(6, 100)), delete(7, 2)];

    let first = made("1-text-4+2", (1, 0, 0), (4, 2), texts, AggregationId::BEFORE_FIRST);
    let first = write(first, |golden| seal(golden, master()));
    let second = write(made("2-noise-1+0", (2, 0, 576), (1, 0), one, first), |golden| seal(golden, master()));
    let third =
        write(made("3-deletes-2+1", (3, 1, 576), (2, 1), deletes, second), |golden| seal(golden, master()));
    let fourth =
        write(made("4-as-is-1+0", (4, 1, 576), (1, 0), as_is, third), |golden| seal_as_is(golden, &master()));
    let texts = (8..=19).map(|i| set(i, i * 3, text(i))).collect();
    let fifth =
        write(made("5-text-4+2", (5, 1, 576), (4, 2), texts, fourth), |golden| seal(golden, master()));
    let mixed = vec![set(20, 7, noise(7, 5000)), delete(21, 9), set(22, 8, noise(8, 4096))];
    write(made("6-noise-2+1", (6, 1, 576), (2, 1), mixed, fifth), |golden| seal(golden, master()));
}

/// A folder, and what is to be in it.
fn made(
    name: &'static str,
    (number, generation, block_size): (u64, u64, u32),
    (data, parity): (usize, usize),
    blocks: Vec<Block>,
    prev: AggregationId,
) -> (&'static str, Golden) {
    let golden = Golden {
        vdisk: support::vdisk(VDISK),
        number: AggregationNumber(number),
        generation: Generation(generation),
        session: SessionId(0x1122_3344_5566_7788 * generation),
        sealed_at: Timestamp(1_500_000_001_000_000_000 + number),
        block_size,
        nonce: noise(1000 + number, 12).try_into().unwrap(),
        redundancy: Redundancy::new(data, parity).unwrap(),
        epoch: Epoch(number * 5),
        prev,
        id: prev,
        blocks,
    };
    (name, golden)
}

fn set(sequence: u64, index: u64, data: Vec<u8>) -> Block {
    let (index, timestamp) = (BlockIndex::new(index).unwrap(), timestamp(sequence));
    Block::set(Sequence(sequence), index, timestamp, data.into())
}

fn delete(sequence: u64, index: u64) -> Block {
    Block::delete(Sequence(sequence), BlockIndex::new(index).unwrap(), timestamp(sequence))
}

fn timestamp(sequence: u64) -> Timestamp {
    Timestamp(1_500_000_000_000_000_000 + sequence * 1_000_003 % 7_000_000)
}

fn seal(golden: &Golden, master: MasterKey) -> (AggregationId, Vec<EncodedShard>) {
    let sealer = Sealer::new(keys_of(VDISK, [master]), golden.redundancy);
    let encoded = sealer.seal(golden.request()).unwrap().link(golden.prev);
    let shards = (0..).map_while(|i| encoded.shard(i, golden.epoch)).collect();
    (encoded.id, shards)
}

/// Manifest and body not compressed. Every message of Cap'n Proto shrinks a little, so that no sealer of ours leaves one as
/// it is; the format allows it, and readers must go on taking it.
fn seal_as_is(golden: &Golden, master: &MasterKey) -> (AggregationId, Vec<EncodedShard>) {
    let compressed = seal(golden, MasterKey::from_hex(&master.expose_hex()).unwrap()).1;
    let mut head = by_hand::Head::take_apart(&compressed[0].head);
    let manifest = by_hand::manifest_of(&golden.blocks);
    let body = by_hand::body_of(VDISK, golden.sealed_at.0, &golden.blocks);
    let payloads = head.seal(VDISK, master, &manifest, &body);
    assert_eq!(head.number(field::BODY_COMPRESSION), 0);
    let shards = (0..).zip(payloads).map(|(index, payload)| {
        head.index = index;
        let head = head.put_together(VDISK);
        EncodedShard { head, payload }
    });
    let shards: Vec<EncodedShard> = shards.collect();
    let parsed = ShardHead::parse(&golden.vdisk, &shards[0].head).unwrap();
    (parsed.id, shards)
}

/// Writes it where it is not there, and answers the id of what is there now.
fn write(
    (name, mut golden): (&str, Golden),
    seal: impl FnOnce(&Golden) -> (AggregationId, Vec<EncodedShard>),
) -> AggregationId {
    let folder = golden::folder().join(name);
    if folder.exists() {
        println!("{name}: is there, left alone");
        return Golden::load(&folder).0.id;
    }
    let (id, shards) = seal(&golden);
    golden.id = id;
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("aggregation.txt"), golden.to_text()).unwrap();
    for (index, shard) in shards.iter().enumerate() {
        fs::write(folder.join(format!("shard-{index}.head")), &shard.head).unwrap();
        fs::write(folder.join(format!("shard-{index}.payload")), &shard.payload).unwrap();
    }
    println!("{name}: {id}");
    id
}
