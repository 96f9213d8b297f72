//! What the tests of this crate share: blocks, keys, and format 2 written down a second time.
#![allow(dead_code, unreachable_pub)] // each test uses its own part of it

pub mod by_hand;
pub mod golden;

use std::sync::Arc;

use bytes::Bytes;
use tlog_codec::{
    EncodedShard, Opener, Redundancy, SealRequest, Sealed, Sealer, ShardFault, ShardHead, VdiskKeys,
};
use tlog_crypto::{Keyring, MasterKey};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
    VdiskId,
};

pub const NONCE: [u8; 12] = *b"\x01twelve byte";

/// The master key that most tests seal under.
pub fn master() -> MasterKey {
    MasterKey::from_bytes([0x42; 32])
}

pub fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

pub fn keys_of(name: &str, keys: impl IntoIterator<Item = MasterKey>) -> VdiskKeys {
    let mut keys = keys.into_iter();
    let mut ring = Keyring::new(keys.next().unwrap());
    let active = ring.active().expose_hex();
    keys.for_each(|key| ring.activate(key));
    ring.activate(MasterKey::from_hex(&active).unwrap());
    VdiskKeys::new(vdisk(name), Arc::new(ring))
}

pub fn keys(name: &str) -> VdiskKeys {
    keys_of(name, [master()])
}

pub fn sealer(data: usize, parity: usize) -> Sealer {
    Sealer::new(keys("myimg"), Redundancy::new(data, parity).unwrap())
}

pub fn opener() -> Opener {
    Opener::new(keys("myimg"))
}

pub fn request(blocks: &[Block]) -> SealRequest<'_> {
    SealRequest {
        number: AggregationNumber(1),
        generation: Generation(3),
        session: SessionId(0x5e55),
        sealed_at: Timestamp(1_500_000_000_000_000_009),
        block_size: 0,
        nonce: NONCE,
        finding: Default::default(),
        blocks,
    }
}

/// A set of `data`, some of whose fields follow from the sequence.
pub fn set(sequence: u64, data: impl Into<Bytes>) -> Block {
    let index = BlockIndex::new(sequence % 1000 * 7).unwrap();
    Block::set(Sequence(sequence), index, timestamp(sequence), data.into())
}

pub fn delete(sequence: u64) -> Block {
    Block::delete(Sequence(sequence), BlockIndex::new(sequence % 1000 * 7).unwrap(), timestamp(sequence))
}

/// Steps back now and then, as clients' clocks do.
fn timestamp(sequence: u64) -> Timestamp {
    Timestamp(1_500_000_000_000_000_000 + sequence % 5 * 1000)
}

/// Three blocks: text, noise, a delete.
pub fn few_blocks() -> Vec<Block> {
    vec![set(9, b"some text, some text, some text".to_vec()), set(10, noise(1, 64)), delete(11)]
}

/// Bytes in which snappy finds nothing.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).skip(32).take(length).collect()
}

/// All shards of an aggregation, as they are stored.
pub fn stored(sealed: Sealed) -> Vec<EncodedShard> {
    let encoded = sealed.link(AggregationId::BEFORE_FIRST);
    (0..).map_while(|i| encoded.shard(i, Epoch(7))).collect()
}

pub fn parse(shard: &EncodedShard) -> ShardHead {
    ShardHead::parse(&vdisk("myimg"), &shard.head).unwrap()
}

pub fn payloads(shards: &[EncodedShard]) -> Vec<Option<Bytes>> {
    shards.iter().map(|shard| Some(shard.payload.clone())).collect()
}

/// All shards of a 4 + 2 aggregation of [`few_blocks`].
pub fn shards() -> Vec<EncodedShard> {
    stored(sealer(4, 2).seal(request(&few_blocks())).unwrap())
}

/// Shard 0, taken apart, with everything else that came with it.
pub fn apart() -> (by_hand::Head, Vec<EncodedShard>) {
    let shards = shards();
    (by_hand::Head::take_apart(&shards[0].head), shards)
}

/// As a shard of that vdisk.
pub fn parse_as(name: &str, head: impl Into<Bytes>) -> Result<ShardHead, ShardFault> {
    ShardHead::parse(&vdisk(name), &head.into())
}

pub fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}
