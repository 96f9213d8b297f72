//! How fast a log is applied to a slave: `cargo run --release -p tlog-player --example slave_speed [blocks]`.
//!
//! The log is in memory, aggregations of 25 random blocks of 4 KiB at random places; the slave is on real servers on this machine, without
//! persistence. Needs `redis-server`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[allow(dead_code)] // others use the rest
#[path = "../tests/reading/log.rs"]
mod log;

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tlog_config::{RedisServer, StorageCluster, StoreAddress};
use tlog_player::slave::{
    SlaveCluster, SlaveRestoreOptions, SlaveSyncOptions, SlaveSyncer, restore_to_slave,
};
use tlog_player::{Moment, ReadOptions};
use tlog_proto::{Generation, LogPosition, Sequence};
use tlog_redis::{Links, slave_servers};
use tlog_testbed::{RedisOptions, RedisServers};
use tokio::sync::watch;

const BLOCK: usize = 4096;
const IN_AGGREGATION: u64 = 25;
const DISK: u64 = 1 << 16;

#[tokio::main]
async fn main() {
    let blocks: u64 =
        std::env::args().nth(1).map_or(20_000, |text| text.parse().expect("a number of blocks"));
    let mut rng = SmallRng::seed_from_u64(1);
    let mut written = log::TestLog::new(4, 2).await;
    for aggregation in 0..blocks / IN_AGGREGATION {
        let block = |at| {
            let mut data = vec![0; BLOCK];
            rng.fill_bytes(&mut data);
            let sequence = aggregation * IN_AGGREGATION + at + 1;
            log::set_block(sequence, rng.random_range(0..DISK), sequence, data)
        };
        let writes: Vec<_> = (0..IN_AGGREGATION).map(block).collect();
        written.append(1, &writes).await;
    }
    written.publish().await;
    let end = blocks / IN_AGGREGATION * IN_AGGREGATION;

    println!("data stores | syncer, blocks/s | restore, blocks/s");
    for stores in [1, 2, 4] {
        let synced = {
            let servers = RedisServers::start(stores, &RedisOptions::default());
            let begun = Instant::now();
            let (log, keys, slave) = (written.set.clone(), written.keys.clone(), slave(&servers, &written));
            let nobody = watch::channel(()).1;
            let syncer = SlaveSyncer::start(log, keys, slave, nobody, SlaveSyncOptions::default()).unwrap();
            let position = LogPosition { generation: Generation(1), sequence: Sequence(end) };
            syncer.wait_until(position).await.unwrap();
            let took = begun.elapsed();
            syncer.stop().await;
            per_second(end, took)
        };
        let servers = RedisServers::start(stores, &RedisOptions::default());
        let begun = Instant::now();
        let reader = written.reader().await;
        let state = reader.disk_state(&written.keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
        let (slave, options) = (slave(&servers, &written), SlaveRestoreOptions::default());
        let summary =
            restore_to_slave(&reader, &written.keys, &state, &slave, &options, |_| {}).await.unwrap();
        let restored = per_second(summary.blocks, begun.elapsed());
        println!("{stores} | {synced} | {restored}");
    }
}

fn slave(servers: &RedisServers, written: &log::TestLog) -> SlaveCluster {
    let address = |server: &tlog_testbed::RedisProcess| {
        StoreAddress::Redis(RedisServer::new(server.host(), server.port()))
    };
    let cluster = StorageCluster {
        id: "slave".into(),
        data: servers.iter().map(address).collect(),
        metadata: None,
        shards: Default::default(),
    };
    let servers = slave_servers(&Links::default(), &cluster).unwrap();
    SlaveCluster::new(written.vdisk.clone(), servers.data, servers.metadata).unwrap()
}

fn per_second(count: u64, took: Duration) -> u64 {
    (count as f64 / took.as_secs_f64()) as u64
}
