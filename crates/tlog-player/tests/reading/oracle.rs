//! Random histories, and a whole image of the disk after each of their blocks.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tlog_player::StoredFormat;
use tlog_proto::{AggregationId, Block, BlockIndex, Epoch, Sequence, Timestamp};

use crate::log::{BLOCK_SIZE, TestLog, set_block};

/// Blocks of the disk. The last one is short.
pub(crate) const BLOCKS: u64 = 9;
const LAST_LEN: usize = 24;

/// The disk after one block.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) format: StoredFormat,
    pub(crate) aggregation: u64,
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    pub(crate) timestamp: u64,
    pub(crate) image: Vec<u8>,
    /// The write itself, who made it, and which of its aggregation it is.
    pub(crate) block: Block,
    pub(crate) session: u64,
    pub(crate) nth: u32,
    pub(crate) id: AggregationId,
}

pub(crate) struct Story {
    pub(crate) log: TestLog,
    pub(crate) snapshots: Vec<Snapshot>,
}

/// Overwrites, deletes, new generations, timestamps that stand still and step back, blocks of zeros.
pub(crate) async fn random_story(seed: u64, data: usize, parity: usize, aggregations: u64) -> Story {
    random_story_of_both(seed, data, parity, 0, aggregations).await
}

/// The same, of which the first `links` aggregations are written in format 1. There a new generation is only a step back of the
/// sequences. The log of format 2 is opened when its first aggregation is written.
pub(crate) async fn random_story_of_both(
    seed: u64,
    data: usize,
    parity: usize,
    links: u64,
    aggregations: u64,
) -> Story {
    write_story(seed, (data, parity), links, aggregations, false).await
}

/// The same with blocks that are short anywhere: its moments take [`BLOCK_SIZE`] to be said.
pub(crate) async fn random_story_with_short_blocks(
    seed: u64,
    shards: (usize, usize),
    links: u64,
    aggregations: u64,
) -> Story {
    write_story(seed, shards, links, aggregations, true).await
}

async fn write_story(
    seed: u64,
    (data, parity): (usize, usize),
    links: u64,
    aggregations: u64,
    short_blocks: bool,
) -> Story {
    // What was added later is drawn from a source of its own, so that a seed still tells the same story.
    let mut later = StdRng::seed_from_u64(!seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut log = TestLog::unopened(data, parity);
    let mut content: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut snapshots = Vec::new();
    let (mut generation, mut sequence, mut time) = (1, rng.random_range(0..5u64), 5_000u64);
    let all = links + aggregations;
    for nth in 1..=all {
        let (format, aggregation) = match nth.checked_sub(links) {
            None | Some(0) => (StoredFormat::One, nth),
            Some(number) => (StoredFormat::Two, number),
        };
        if (format, aggregation) == (StoredFormat::Two, 1) {
            log.open(Epoch(1), &log.all()).await;
        }
        if rng.random_bool(0.2) {
            generation += u64::from(format == StoredFormat::Two);
            sequence = rng.random_range(0..5);
        }
        if later.random_bool(0.15) {
            log.session += 1;
        }
        let mut blocks = Vec::new();
        let first = snapshots.len();
        for _ in 0..rng.random_range(1..6) {
            time = match rng.random_range(0..10) {
                0..2 => time,
                2..4 => time - rng.random_range(1..60),
                _ => time + rng.random_range(1..40),
            };
            // The longest block comes at some time at least: from it the size of blocks is known.
            let index = if nth == all { 0 } else { rng.random_range(0..BLOCKS) };
            let mut len = if index == BLOCKS - 1 { LAST_LEN } else { BLOCK_SIZE };
            if short_blocks && nth < all && later.random_bool(0.2) {
                len = later.random_range(1..=len);
            }
            let block = match rng.random_range(0..8) {
                0 if nth < all => {
                    content.remove(&index);
                    Block::delete(Sequence(sequence), BlockIndex::new(index).unwrap(), Timestamp(time))
                }
                1 => {
                    content.insert(index, vec![0; len]);
                    set_block(sequence, index, time, vec![0; len])
                }
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
                    content.insert(index, bytes.clone());
                    set_block(sequence, index, time, bytes)
                }
            };
            blocks.push(block.clone());
            snapshots.push(Snapshot {
                format,
                aggregation,
                generation,
                sequence,
                timestamp: time,
                image: image(&content),
                block,
                session: if format == StoredFormat::Two { log.session } else { 0 },
                nth: blocks.len() as u32 - 1,
                id: AggregationId::BEFORE_FIRST,
            });
            sequence += 1;
        }
        let id = match format {
            StoredFormat::One => log.append_link(&blocks).await,
            StoredFormat::Two => log.append(generation, &blocks).await.id,
        };
        snapshots.iter_mut().skip(first).for_each(|snapshot: &mut Snapshot| snapshot.id = id);
    }
    if aggregations > 0 {
        log.publish().await;
    }
    Story { log, snapshots }
}

fn image(content: &BTreeMap<u64, Vec<u8>>) -> Vec<u8> {
    let mut image = Vec::new();
    for (index, data) in content {
        image.resize(*index as usize * BLOCK_SIZE, 0);
        image.extend_from_slice(data);
    }
    image
}

impl Story {
    pub(crate) fn newest(&self) -> &Snapshot {
        self.snapshots.last().unwrap()
    }

    /// The last one for which something holds.
    pub(crate) fn last_where(&self, holds: impl Fn(&Snapshot) -> bool) -> Option<&Snapshot> {
        self.snapshots.iter().rev().find(|snapshot| holds(snapshot))
    }
}
