//! Thousands of moments against an oracle that only knows the list of writes: each restored byte for byte, on stores of every kind, of which
//! as many as may be lost are lost, different ones again and again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tlog_config::RedisServer;
use tlog_player::{
    DiskStateError, LogReader, MemoryTarget, Moment, ReadOptions, RestoreOptions, StoredFormat,
};
use tlog_proto::{AggregationId, AggregationNumber, Generation, Sequence, Timestamp};
use tlog_quorum::StoreSet;
use tlog_redis::{Link, LinkLimits, RedisStore};
use tlog_store::{DirectoryOptions, DirectoryStore, ShardStore};
use tlog_testbed::{RedisOptions, RedisProcess, RedisServers};

use crate::log::{BLOCK_SIZE, format1_keys, number};
use crate::oracle::{BLOCKS, Snapshot, Story, random_story_with_short_blocks};
use crate::{blame, diff};

/// How often other stores are lost, for each story.
const LOSSES: usize = 6;

/// How often, each time, two moments are compared and the writes of a block asked for.
const QUERIES: usize = 5;

/// Aggregations of a story. What a moment costs grows with them, and so it is rather more stories than longer ones.
const AGGREGATIONS: u64 = 16;

/// Since blocks are short anywhere, their size is said.
pub(crate) fn with_block_size() -> ReadOptions {
    ReadOptions { block_size: Some(BLOCK_SIZE as u32), ..ReadOptions::default() }
}

/// Every kind of moment that means something in a story, and the last write that is part of it; none where there is no such moment.
pub(crate) fn moments_of(story: &Story) -> Vec<(Moment, Option<&Snapshot>)> {
    let mut moments = vec![(Moment::Newest, Some(story.newest()))];
    let stamps: BTreeSet<u64> = story.snapshots.iter().map(|s| s.timestamp).collect();
    let between = stamps.iter().zip(stamps.iter().skip(1)).map(|(a, b)| a + (b - a) / 2);
    let times = stamps.iter().flat_map(|&t| t - 1..=t + 1).chain(between).chain([0, 1_000_000]);
    for time in times.collect::<BTreeSet<u64>>() {
        moments.push((Moment::At(Timestamp(time)), story.last_where(|s| s.timestamp <= time)));
    }
    let positions: BTreeSet<(u64, u64)> =
        story.snapshots.iter().map(|s| (s.generation, s.sequence)).collect();
    let last_generation = story.newest().generation;
    for &(generation, sequence) in &positions {
        for (generation, sequence) in
            [(generation, sequence), (generation, sequence + 1), (last_generation + 1, sequence)]
        {
            let moment =
                Moment::Sequence { generation: Some(Generation(generation)), sequence: Sequence(sequence) };
            moments
                .push((moment, story.last_where(|s| (s.generation, s.sequence) == (generation, sequence))));
        }
    }
    for sequence in 0..=positions.iter().map(|position| position.1).max().unwrap() + 1 {
        let moment = Moment::Sequence { generation: None, sequence: Sequence(sequence) };
        moments.push((moment, story.last_where(|s| s.sequence == sequence)));
    }
    for aggregation in 0..=story.log.last().0 + 1 {
        let holds = |s: &Snapshot| (s.format, s.aggregation) == (StoredFormat::Two, aggregation);
        moments.push((Moment::Aggregation(number(aggregation)), story.last_where(holds)));
    }
    let ids: BTreeSet<AggregationId> = story.snapshots.iter().map(|s| s.id).collect();
    for id in ids.into_iter().chain([AggregationId([5; 32])]) {
        moments.push((Moment::Id(id), story.last_where(|s| s.id == id)));
    }
    moments
}

/// Restores a moment, and compares.
async fn check(story: &Story, reader: &LogReader, moment: Moment, expected: Option<&Snapshot>, about: &str) {
    let state = reader.disk_state(&story.log.keys, moment, &with_block_size()).await;
    let Some(expected) = expected else {
        assert!(matches!(state, Err(DiskStateError::Moment(_))), "{about}, {moment:?}: {state:?}");
        return;
    };
    let state = state.unwrap();
    let reached = state.reached().unwrap();
    let actual = (reached.id, reached.blocks, reached.position.generation.0, reached.position.sequence.0);
    let wanted = (expected.id, expected.nth + 1, expected.generation, expected.sequence);
    assert_eq!(actual, wanted, "{about}, {moment:?}");
    let target = Arc::new(MemoryTarget::default());
    let options = RestoreOptions::default();
    reader.restore(&story.log.keys, &state, target.clone(), &options, |_| {}).await.unwrap();
    assert!(target.bytes() == expected.image, "{about}, {moment:?}: the restored disk differs");
}

/// Restores all moments of a story in random order, each time some of them with other stores lost. How many.
async fn check_all<L>(story: &Story, rng: &mut StdRng, about: &str, mut lose: L) -> usize
where
    L: AsyncFnMut(&[usize]) -> StoreSet,
{
    let mut moments = moments_of(story);
    moments.shuffle(rng);
    let parity = story.log.redundancy.parity();
    for some in moments.chunks(moments.len().div_ceil(LOSSES)) {
        let mut stores = story.log.all();
        stores.shuffle(rng);
        let lost = &stores[..rng.random_range(0..=parity)];
        let reader = LogReader::open_with(lose(lost).await, Some(format1_keys())).await.unwrap();
        let about = format!("{about}, without {lost:?}");
        for (moment, expected) in some {
            check(story, &reader, *moment, *expected, &about).await;
        }
        for pair in some.chunks_exact(2).take(QUERIES) {
            diff::check(story, &reader, pair[0], pair[1], &about).await;
            blame::check(story, &reader, rng.random_range(0..BLOCKS), pair[0], &about).await;
        }
    }
    moments.len()
}

/// The same log on other stores.
async fn copy(story: &Story, to: &[Arc<dyn ShardStore>]) {
    let log = &story.log;
    let mut members = tlog_store::Members { epoch: log.epoch, ..Default::default() };
    for store in to {
        members.identities.push(store.promise(&log.vdisk, log.epoch).await.unwrap().identity);
    }
    for (from, store) in log.memory.iter().zip(to) {
        let record = tlog_store::StartRecord { epoch: log.epoch, number: number(1) };
        store.start(&log.vdisk, record, &members).await.unwrap();
        for at in (1..=log.last().0).map(AggregationNumber) {
            let tlog_store::ShardSlot::Held(shard) = from.shard(&log.vdisk, at).await.unwrap() else {
                panic!()
            };
            store.append(&log.vdisk, at, shard, at.previous().unwrap()).await.unwrap();
        }
        store.publish(&log.vdisk, log.epoch, log.last()).await.unwrap();
    }
}

fn set_of(story: &Story, stores: Vec<Arc<dyn ShardStore>>) -> StoreSet {
    let quorums = story.log.set.quorums();
    StoreSet::new(story.log.vdisk.clone(), stores, quorums, Duration::from_secs(20)).unwrap()
}

#[tokio::test]
async fn five_thousand_moments_of_logs_in_memory_are_those_of_the_list_of_writes() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut moments = 0;
    let shapes = [(4, 2), (2, 1), (3, 2), (5, 3), (2, 2), (1, 0)];
    for seed in 0..15 {
        let shards = shapes[seed as usize % shapes.len()];
        // Some began in format 1.
        let links = if seed % 5 == 4 { 6 } else { 0 };
        let story = random_story_with_short_blocks(seed, shards, links, AGGREGATIONS - links).await;
        let about = format!("seed {seed}");
        moments += check_all(&story, &mut rng, &about, async |lost| {
            for (i, control) in story.log.controls.iter().enumerate() {
                control.set_down(lost.contains(&i));
                story.log.memory[i].chain_store().set_down(lost.contains(&i));
            }
            story.log.set.clone()
        })
        .await;
    }
    assert!(moments >= 5_000, "only {moments}");
}

#[tokio::test]
async fn three_thousand_moments_of_logs_in_directories_are_those_of_the_list_of_writes() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut moments = 0;
    for (seed, shards) in (20..30).zip([(4, 2), (2, 1), (2, 2), (3, 1)].into_iter().cycle()) {
        let story = random_story_with_short_blocks(seed, shards, 0, AGGREGATIONS).await;
        let place = tempfile::tempdir().unwrap();
        let directory = |i: usize| place.path().join(format!("store-{i}"));
        let open = |at: std::path::PathBuf| -> Arc<dyn ShardStore> {
            Arc::new(DirectoryStore::open(at, DirectoryOptions::default()).unwrap())
        };
        copy(&story, &story.log.all().into_iter().map(|i| open(directory(i))).collect::<Vec<_>>()).await;
        moments += check_all(&story, &mut rng, &format!("seed {seed}"), async |lost| {
            // A lost disk was replaced by an empty one.
            let store = |i: usize| -> Arc<dyn ShardStore> {
                match lost.contains(&i) {
                    true => open(tempfile::tempdir_in(place.path()).unwrap().keep()),
                    false => Arc::new(DirectoryStore::open_read_only(directory(i)).unwrap()),
                }
            };
            set_of(&story, story.log.all().into_iter().map(store).collect())
        })
        .await;
    }
    assert!(moments >= 3_000, "only {moments}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_moments_of_logs_on_servers_that_are_killed_are_those_of_the_list_of_writes() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut moments = 0;
    for (seed, shards) in (40..46).zip([(4, 2), (2, 1), (2, 2), (3, 1)].into_iter().cycle()) {
        let story = random_story_with_short_blocks(seed, shards, 0, AGGREGATIONS).await;
        let servers = RedisServers::start(shards.0 + shards.1, &RedisOptions::durable());
        let store = |server: &RedisProcess| -> Arc<dyn ShardStore> {
            let server = RedisServer::new(server.host(), server.port());
            Arc::new(RedisStore::new(Link::new(server, LinkLimits::default())))
        };
        copy(&story, &servers.iter().map(store).collect::<Vec<_>>()).await;
        moments += check_all(&story, &mut rng, &format!("seed {seed}"), async |lost| {
            servers.iter().filter(|server| !server.is_running()).for_each(|server| server.restart());
            lost.iter().for_each(|&i| servers[i].kill());
            // New links: those to a server that was killed would pause before they try again.
            set_of(&story, servers.iter().map(store).collect())
        })
        .await;
    }
    assert!(moments >= 2_000, "only {moments}");
}
