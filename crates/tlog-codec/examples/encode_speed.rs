//! Microseconds per block of sealing and opening: `cargo run --release -p tlog-codec --example encode_speed`.
//!
//! Aggregations of 25 blocks of 4 KiB, 4 + 2 shards. For each step the median and the best of many rounds: on a shared
//! machine the best is what the code costs, and the median is what the neighbours make of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tlog_codec::{Opener, Redundancy, SealRequest, Sealer, ShardHead, VdiskKeys, rebuild};
use tlog_crypto::{Keyring, MasterKey};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
    VdiskId,
};

const BLOCKS: usize = 25;
const BLOCK_SIZE: usize = 4096;

fn main() {
    let vdisk = VdiskId::new("myimg").unwrap();
    let keyring = Arc::new(Keyring::new(MasterKey::generate().unwrap()));
    let keys = VdiskKeys::new(vdisk.clone(), keyring);
    let sealer = Sealer::new(keys.clone(), Redundancy::new(4, 2).unwrap());
    let opener = Opener::new(keys);

    for (name, data) in [("random", random as fn(&mut u64) -> Vec<u8>), ("text", text)] {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let blocks: Vec<Block> = (0..BLOCKS as u64)
            .map(|i| {
                let index = BlockIndex::new(next(&mut seed) % 1_000_000).unwrap();
                let timestamp = Timestamp(1_500_000_000_000_000_000 + i * 1000);
                Block::set(Sequence(i + 1), index, timestamp, data(&mut seed).into())
            })
            .collect();
        let mut nonces = 0u64;
        let mut request = || {
            nonces += 1;
            let mut nonce = [0; 12];
            nonce[1..9].copy_from_slice(&nonces.to_le_bytes());
            SealRequest {
                number: AggregationNumber(1),
                generation: Generation(0),
                session: SessionId(1),
                sealed_at: Timestamp(1_500_000_000_000_000_000),
                block_size: 0,
                nonce,
                finding: Default::default(),
                blocks: &blocks,
            }
        };
        let sealed = sealer.seal(request()).unwrap();
        let encoded = sealed.clone().link(AggregationId::BEFORE_FIRST);
        println!("{name}: {} bytes stored", encoded.stored_bytes());

        measure("seal", || drop(black_box(sealer.seal(request()).unwrap())));
        measure("link, and the six shards", || {
            let encoded = sealed.clone().link(AggregationId::BEFORE_FIRST);
            for index in 0..6 {
                black_box(encoded.shard(index, Epoch(1)).unwrap());
            }
        });

        let shards: Vec<_> = (0..6).map(|i| encoded.shard(i, Epoch(1)).unwrap()).collect();
        let head = ShardHead::parse(&vdisk, &shards[0].head).unwrap();
        let all: Vec<Option<Bytes>> = shards.iter().map(|shard| Some(shard.payload.clone())).collect();
        let mut two_lost = all.clone();
        two_lost[0] = None;
        two_lost[2] = None;
        measure("parse four heads and verify their payloads", || {
            for shard in &shards[..4] {
                let head = ShardHead::parse(&vdisk, &shard.head).unwrap();
                head.verify_payload(&shard.payload).unwrap();
            }
        });
        measure("open", || drop(black_box(opener.blocks(&head, &all).unwrap())));
        measure("open, two data shards lost", || drop(black_box(opener.blocks(&head, &two_lost).unwrap())));
        measure("manifest", || drop(black_box(opener.manifest(&head).unwrap())));
        measure("rebuild two lost shards", || drop(black_box(rebuild(&head, &two_lost).unwrap())));
    }
}

fn measure(name: &str, mut once: impl FnMut()) {
    const ROUND: usize = 50;
    let mut rounds = Vec::new();
    let end = Instant::now() + Duration::from_millis(700);
    while Instant::now() < end {
        let start = Instant::now();
        (0..ROUND).for_each(|_| once());
        rounds.push(start.elapsed().as_secs_f64() * 1e6 / (ROUND * BLOCKS) as f64);
    }
    rounds.sort_by(f64::total_cmp);
    println!("  {name:44} {:6.2} us per block (best {:.2})", rounds[rounds.len() / 2], rounds[0]);
}

/// Xorshift: fast, repeatable, nothing that snappy could shrink.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn random(seed: &mut u64) -> Vec<u8> {
    (0..BLOCK_SIZE / 8).flat_map(|_| next(seed).to_le_bytes()).collect()
}

fn text(seed: &mut u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "the", "log", "of", "a", "virtual", "disk", "keeps", "every", "write", "in", "order", "until", "it",
        "is", "restored", "again",
    ];
    let mut out = Vec::new();
    while out.len() < BLOCK_SIZE {
        out.extend_from_slice(WORDS[(next(seed) % 16) as usize].as_bytes());
        out.push(if next(seed).is_multiple_of(12) { b'\n' } else { b' ' });
    }
    out.truncate(BLOCK_SIZE);
    out
}
