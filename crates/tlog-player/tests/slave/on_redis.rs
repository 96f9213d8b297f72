//! Slaves on real servers, read with a client that knows nothing but the documented layout.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_config::{RedisServer, StorageCluster, StoreAddress};
use tlog_player::slave::{SlaveCluster, SlaveRestoreOptions, SlaveSyncState, restore_to_slave, resync_slave};
use tlog_player::{Moment, ReadOptions};
use tlog_redis::{LinkLimits, Links, TlsOptions, slave_servers};
use tlog_store::slave::{SlavePoint, SlaveStore};
use tlog_testbed::{RedisOptions, RedisProcess, RedisServers};
use tokio::sync::Semaphore;

use crate::fencing::HeldUp;
use crate::log::TestLog;
use crate::scene::{Disk, Written, is_waiting, until, until_status, within};

/// The servers of a slave: data stores, and one for metadata if it has its own.
struct Servers {
    data: RedisServers,
    metadata: Option<RedisProcess>,
}

impl Servers {
    fn start(count: usize, own_metadata: bool, options: RedisOptions) -> Self {
        let data = RedisServers::start(count, &options);
        Self { data, metadata: own_metadata.then(|| RedisProcess::start(options)) }
    }

    /// With links of its own, as another process has them.
    fn cluster(&self, log: &TestLog) -> SlaveCluster {
        let address =
            |server: &RedisProcess| StoreAddress::Redis(RedisServer::new(server.host(), server.port()));
        let cluster = StorageCluster {
            id: "slave".into(),
            data: self.data.iter().map(address).collect(),
            metadata: self.metadata.as_ref().map(address),
            shards: Default::default(),
        };
        let limits = LinkLimits {
            response: Duration::from_millis(500),
            connect: Duration::from_millis(500),
            idle: Duration::from_millis(50),
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(50),
            ..LinkLimits::default()
        };
        let servers = slave_servers(&Links::new(limits, TlsOptions::default()), &cluster).unwrap();
        SlaveCluster::new(log.vdisk.clone(), servers.data, servers.metadata).unwrap()
    }

    /// Block i is in the hash `nondedup:V`, field i, on data store i mod count.
    async fn disk(&self, log: &TestLog) -> Disk {
        let mut disk = Disk::new();
        for (at, server) in self.data.iter().enumerate() {
            let blocks: Vec<(u64, Vec<u8>)> =
                ask(server, redis::cmd("HGETALL").arg(format!("nondedup:{}", log.vdisk))).await;
            for (index, data) in blocks {
                assert_eq!(index as usize % self.data.len(), at, "block {index}");
                disk.insert(index, data.into());
            }
        }
        disk
    }

    async fn legacy_sequence(&self, log: &TestLog) -> Option<u64> {
        let server = self.metadata.as_ref().unwrap_or(&self.data[0]);
        ask(server, redis::cmd("GET").arg(format!("tlog:last_slave_sync_seq:{}", log.vdisk))).await
    }

    /// Whether what is there is the disk after the last write that any store names. Which.
    async fn assert_prefix(&self, written: &Written) -> usize {
        let mut latest = SlavePoint::START;
        for server in self.data.iter() {
            let key = format!("tlog:slave_part:{}", written.log.vdisk);
            let applied: Option<String> = ask(server, redis::cmd("HGET").arg(key).arg("applied")).await;
            let applied = applied.map_or(SlavePoint::START, |text| text.parse().unwrap());
            if applied.place() > latest.place() {
                latest = applied;
            }
        }
        let write = written.write_of(&latest);
        assert_eq!(self.disk(&written.log).await, written.after[write].1, "after write {write}");
        // Sequences begin at 1 here, so that one is also how many writes there were.
        assert!(self.legacy_sequence(&written.log).await.unwrap_or_default() <= write as u64);
        write
    }
}

async fn ask<T: redis::FromRedisValue>(server: &RedisProcess, command: &redis::Cmd) -> T {
    let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    command.query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_disk_is_read_back_from_its_slave_by_the_documented_layout() {
    for (count, own_metadata) in [(1, false), (2, true), (3, false)] {
        let servers = Servers::start(count, own_metadata, RedisOptions::default());
        let mut written = Written::new(81).await;
        written.append(30).await;
        let syncer = written.syncer(servers.cluster(&written.log));
        within(syncer.wait_until(written.end())).await.unwrap();
        assert_eq!(servers.disk(&written.log).await, *written.disk());
        written.append(30).await;
        within(syncer.hand_over(Some(written.end()))).await.unwrap();
        assert_eq!(servers.disk(&written.log).await, *written.disk());
        assert_eq!(servers.legacy_sequence(&written.log).await, Some(written.end().sequence.0));
        assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
    }
}

#[tokio::test]
async fn kills_of_durable_servers_and_of_the_syncer_leave_the_disk_after_some_write() {
    let mut rng = SmallRng::seed_from_u64(82);
    let servers = Servers::start(3, true, RedisOptions::durable());
    let mut written = Written::new(82).await;
    let mut before = 0;
    for round in 0..30 {
        written.append(8).await;
        let syncer = written.syncer(servers.cluster(&written.log));
        let writes = rng.random_range(0..25);
        until_status(&syncer, |status| status.blocks >= writes || status.state == SlaveSyncState::UpToDate)
            .await;
        let victim = rng.random_range(0..4);
        let victim = servers.data.get(victim).unwrap_or(servers.metadata.as_ref().unwrap());
        victim.kill();
        if round % 3 == 0 {
            // The syncer lives on.
            victim.restart();
            within(syncer.wait_until(written.end())).await.unwrap();
        }
        // As if it were killed too: what it has on the way, if anything, may still arrive or not.
        drop(syncer);
        if !victim.is_running() {
            victim.restart();
        }
        // Nobody else is to write while this looks.
        let cluster = servers.cluster(&written.log);
        within(async {
            while cluster.stop().await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let now = servers.assert_prefix(&written).await;
        assert!(now >= before, "it stepped back from {before} to {now}");
        before = now;
        cluster.start(true).await.unwrap();
    }
    let syncer = written.syncer(servers.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
}

#[tokio::test]
async fn a_server_that_hangs_is_waited_for() {
    let servers = Servers::start(2, false, RedisOptions::default());
    let mut written = Written::new(83).await;
    written.append(5).await;
    let syncer = written.syncer(servers.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    servers.data[1].stop();
    written.append(10).await;
    until(&syncer, is_waiting).await;
    servers.data[1].cont();
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
}

#[tokio::test]
async fn a_paused_syncer_is_fenced_by_the_servers() {
    let servers = Servers::start(2, false, RedisOptions::default());
    let mut written = Written::new(84).await;
    written.append(20).await;
    let passing = Arc::new(Semaphore::new(11));
    let direct = servers.cluster(&written.log);
    let held_up = |store: &Arc<dyn SlaveStore>| -> Arc<dyn SlaveStore> {
        Arc::new(HeldUp { store: Arc::clone(store), writes: passing.clone(), promises: None })
    };
    let data: Vec<_> = direct.data().iter().map(held_up).collect();
    let metadata = data[0].clone();
    let of_paused = SlaveCluster::new(written.log.vdisk.clone(), data, metadata).unwrap();
    let paused = written.syncer(of_paused);
    within(async {
        while passing.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let next = written.syncer(servers.cluster(&written.log));
    written.append(3).await;
    within(next.wait_until(written.end())).await.unwrap();
    passing.add_permits(1000);
    until(&paused, |state| *state == SlaveSyncState::Fenced).await;
    assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
    written.append(3).await;
    within(next.wait_until(written.end())).await.unwrap();
    assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_needs_a_resync_which_fills_the_slave_anew() {
    let servers = Servers::start(3, true, RedisOptions::default());
    let mut written = Written::new(85).await;
    written.append(15).await;
    let syncer = written.syncer(servers.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    servers.data[2].restart_empty();
    until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
    written.append(2).await;
    let reader = written.log.reader().await;
    let (read, options) = (ReadOptions::default(), SlaveRestoreOptions::default());
    let cluster = servers.cluster(&written.log);
    let summary = resync_slave(&reader, &written.log.keys, &cluster, &read, &options, |_| {}).await.unwrap();
    assert_eq!(summary.blocks, written.disk().len() as u64);
    written.append(2).await;
    within(syncer.wait_until(written.end())).await.unwrap();
    assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
}

#[tokio::test]
async fn blocks_that_a_server_evicts_or_somebody_else_changes_are_missed() {
    for harm in [&["DEL", "nondedup:disk"][..], &["HSET", "nondedup:disk", "1000", "x"]] {
        for while_running in [true, false] {
            let servers = Servers::start(2, false, RedisOptions::default());
            let mut written = Written::new(87).await;
            written.append(15).await;
            let mut syncer = written.syncer(servers.cluster(&written.log));
            within(syncer.wait_until(written.end())).await.unwrap();
            if !while_running {
                syncer.stop().await;
            }
            servers.data[0].cli(harm);
            if !while_running {
                syncer = written.syncer(servers.cluster(&written.log));
            }
            let status = until(&syncer, |state| matches!(state, SlaveSyncState::NeedsResync(_))).await;
            let SlaveSyncState::NeedsResync(reason) = status.state else { unreachable!() };
            assert_eq!(reason.kind(), "blocks_changed", "{reason}");
        }
    }
}

#[tokio::test]
async fn a_disk_is_restored_into_clusters_of_other_sizes_though_servers_are_killed_meanwhile() {
    let mut written = Written::new(86).await;
    written.append(60).await;
    for count in [1, 2, 5] {
        let servers = Servers::start(count, false, RedisOptions::durable());
        let cluster = servers.cluster(&written.log);
        let reader = written.log.reader().await;
        let keys = &written.log.keys;
        let state = reader.disk_state(keys, Moment::Newest, &ReadOptions::default()).await.unwrap();
        let options = SlaveRestoreOptions::default();
        let killed = restore_to_slave(&reader, keys, &state, &cluster, &options, |progress| {
            if progress.aggregations == 1 {
                servers.data[count - 1].kill();
            }
        })
        .await;
        assert!(killed.is_err(), "{killed:?}");
        servers.data[count - 1].restart();
        let cluster = servers.cluster(&written.log);
        let summary = restore_to_slave(&reader, keys, &state, &cluster, &options, |_| {}).await.unwrap();
        assert!(summary.resumed);
        assert_eq!(servers.assert_prefix(&written).await, written.after.len() - 1);
        assert_eq!(servers.legacy_sequence(&written.log).await, Some(written.end().sequence.0));
    }
}
