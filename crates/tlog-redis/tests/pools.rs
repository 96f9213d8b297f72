//! Pools and factories on real servers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tlog_config::{
    ClusterSource, ClusterSourceError, FixedClusters, RedisServer, StorageCluster, StoreAddress,
};
use tlog_proto::{Epoch, VdiskId};
use tlog_redis::{
    AnyRedisPoolOptions, ConfigRedisPoolFactory, InMemoryRedisPoolFactory, LinkLimits, LinkState, Links,
    RedisPool, RedisPoolError, RedisPoolFactory, RedisPoolFactoryError, StaticRedisPoolFactory, TlsOptions,
    any_redis_pool, any_redis_pool_factory,
};
use tlog_testbed::{RedisOptions, RedisProcess, RedisServers};
use tokio::sync::watch;

fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

fn servers_of(processes: &[RedisProcess]) -> Vec<RedisServer> {
    processes.iter().map(|process| RedisServer::new(process.host(), process.port())).collect()
}

fn cluster(servers: &[RedisServer]) -> StorageCluster {
    let data = servers.iter().cloned().map(StoreAddress::Redis).collect();
    StorageCluster { id: "main".into(), data, metadata: None, shards: Default::default() }
}

/// How many of our connections a server has.
fn connections(process: &RedisProcess) -> usize {
    process.cli(&["CLIENT", "LIST"]).matches("name=tlog").count()
}

/// Lets other tasks run until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never {what}");
        tokio::task::yield_now().await;
    }
}

async fn knows_log(pool: &RedisPool, index: usize, vdisk: &VdiskId) -> bool {
    let store = pool.data_connection_at(index).unwrap();
    store.status(vdisk).await.unwrap().identity.is_some()
}

async fn make_logs(pool: &RedisPool, vdisk: &VdiskId) {
    for store in pool.stores() {
        store.promise(vdisk, Epoch(1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_has_a_store_on_each_server_in_order() {
    let processes = RedisServers::start(3, &RedisOptions::default());
    let factory = StaticRedisPoolFactory::new(servers_of(&processes), 2, false, Links::default()).unwrap();
    let (data, other) = (vdisk("data"), vdisk("other"));
    let pool = factory.new_redis_pool(&data).await.unwrap();
    assert_eq!(pool.data_connection_count(), 2);
    make_logs(&pool, &data).await;
    for index in 0..2 {
        assert!(knows_log(&pool, index, &data).await);
        assert!(!knows_log(&pool, index, &other).await);
        let link = pool.link_at(index).unwrap();
        assert_eq!(link.server().port, processes[index].port());
        link.run::<()>(&redis::cmd("PING")).await.unwrap();
        assert_eq!(pool.data_connection_at(index).unwrap().address(), link.address());
    }
    let none = RedisPoolError::NoSuchConnection { index: 2, count: 2 };
    assert_eq!(pool.data_connection_at(2).unwrap_err(), none);
    assert_eq!(pool.link_at(2).unwrap_err(), none);
    // The third is not needed.
    assert_eq!(connections(&processes[2]), 0);
}

#[tokio::test]
async fn pools_of_all_vdisks_share_one_connection_to_each_server() {
    let processes = RedisServers::start(2, &RedisOptions::default());
    let servers = servers_of(&processes);
    let links = Links::default();
    let one = StaticRedisPoolFactory::new(servers.clone(), 2, false, links.clone()).unwrap();
    let source = FixedClusters::default();
    source.set(&vdisk("b"), cluster(&servers));
    let two = ConfigRedisPoolFactory::new(Arc::new(source), 2, links);
    let (a, b) =
        (one.new_redis_pool(&vdisk("a")).await.unwrap(), two.new_redis_pool(&vdisk("b")).await.unwrap());
    make_logs(&a, &vdisk("a")).await;
    make_logs(&b, &vdisk("b")).await;
    assert_eq!(processes.iter().map(connections).collect::<Vec<_>>(), [1, 1]);

    a.close();
    assert!(knows_log(&b, 0, &vdisk("b")).await);
    assert_eq!(connections(&processes[0]), 1);
    b.close();
    until("closed", || connections(&processes[0]) == 0).await;
}

#[tokio::test]
async fn closing_a_pool_waits_for_nothing_and_all_that_it_gave_out_says_that_it_is_closed() {
    let processes = RedisServers::start(2, &RedisOptions::default());
    let limits = LinkLimits { response: Duration::from_millis(200), ..LinkLimits::default() };
    let links = Links::new(limits, TlsOptions::default());
    let factory = StaticRedisPoolFactory::new(servers_of(&processes), 2, false, links).unwrap();
    let data = vdisk("data");
    let pool = factory.new_redis_pool(&data).await.unwrap();
    make_logs(&pool, &data).await;

    let store = pool.data_connection_at(0).unwrap();
    processes[0].stop();
    let mut under_way = Box::pin(store.status(&data));
    let begun = poll_fn(|context| Poll::Ready(under_way.as_mut().poll(context).is_pending())).await;
    assert!(begun);
    pool.close();
    pool.close();

    let error = store.status(&data).await.unwrap_err();
    assert_eq!(*error.address, *store.address());
    assert!(error.to_string().contains("the pool that it belongs to is closed"), "{error}");
    assert_eq!(pool.data_connection_at(0).unwrap_err(), RedisPoolError::Closed);
    assert_eq!(pool.link_at(0).unwrap_err(), RedisPoolError::Closed);
    // What was under way ends with the time limit.
    under_way.await.unwrap_err();
}

#[tokio::test]
async fn a_closed_factory_closes_its_pools_and_makes_no_more() {
    let processes = RedisServers::start(1, &RedisOptions::default());
    let servers = servers_of(&processes);
    let source = FixedClusters::default();
    source.set(&vdisk("data"), cluster(&servers));
    let factories: [Arc<dyn RedisPoolFactory>; 3] = [
        Arc::new(StaticRedisPoolFactory::new(servers, 1, false, Links::default()).unwrap()),
        Arc::new(ConfigRedisPoolFactory::new(Arc::new(source), 1, Links::default())),
        Arc::new(InMemoryRedisPoolFactory::new(1)),
    ];
    for factory in factories {
        let pool = factory.new_redis_pool(&vdisk("data")).await.unwrap();
        assert!(!knows_log(&pool, 0, &vdisk("data")).await);
        factory.close();
        factory.close();
        assert_eq!(pool.data_connection_at(0).unwrap_err(), RedisPoolError::Closed);
        let error = factory.new_redis_pool(&vdisk("data")).await.unwrap_err();
        assert!(matches!(error, RedisPoolFactoryError::Closed), "{error}");
    }
}

#[tokio::test]
async fn a_changed_address_replaces_that_store_in_use_and_leaves_the_others_alone() {
    let processes = RedisServers::start(3, &RedisOptions::default());
    let servers = servers_of(&processes);
    let (data, source) = (vdisk("data"), Arc::new(FixedClusters::default()));
    source.set(&data, cluster(&servers[..2]));
    let factory = ConfigRedisPoolFactory::new(Arc::clone(&source) as _, 2, Links::default());
    let pool = factory.new_redis_pool(&data).await.unwrap();
    make_logs(&pool, &data).await;
    let store = pool.data_connection_at(1).unwrap();
    let untouched = pool.link_at(0).unwrap();
    let id = |link| async move { tlog_redis::Link::run::<u64>(&link, redis::cmd("CLIENT").arg("ID")).await };
    let connection = id(untouched.clone()).await.unwrap();

    source.set(&data, cluster(&[servers[0].clone(), servers[2].clone()]));
    until("replaced", || *pool.link_at(1).unwrap().server() == servers[2]).await;
    // What was given out before goes on with the new one, which knows nothing yet.
    assert_eq!(*store.address(), format!("redis://127.0.0.1:{}/0", servers[2].port));
    assert!(store.status(&data).await.unwrap().identity.is_none());
    store.promise(&data, Epoch(2)).await.unwrap();
    assert!(pool.link_at(0).unwrap().is_same(&untouched));
    assert_eq!(id(untouched).await.unwrap(), connection);
    // Nobody uses the old one any more.
    until("closed", || connections(&processes[1]) == 0).await;

    // With its database changed it is another store on the same server.
    let elsewhere = RedisServer { database: 5, ..servers[2].clone() };
    source.set(&data, cluster(&[servers[0].clone(), elsewhere.clone()]));
    until("replaced", || *pool.link_at(1).unwrap().server() == elsewhere).await;
    assert!(store.status(&data).await.unwrap().identity.is_none());
}

#[tokio::test]
async fn a_change_that_cannot_be_used_leaves_everything_as_it_was() {
    let processes = RedisServers::start(3, &RedisOptions::default());
    let servers = servers_of(&processes);
    let (data, source) = (vdisk("data"), Arc::new(FixedClusters::default()));
    source.set(&data, cluster(&servers[..2]));
    let factory = ConfigRedisPoolFactory::new(Arc::clone(&source) as _, 2, Links::default());
    let pool = factory.new_redis_pool(&data).await.unwrap();
    make_logs(&pool, &data).await;

    let with = |address: &str| {
        let mut changed = cluster(&servers[2..]);
        changed.data.push(StoreAddress::parse(address).unwrap());
        changed
    };
    let same = with(&format!("127.0.0.1:{}", servers[2].port));
    for invalid in [cluster(&[]), cluster(&servers[2..]), with("file:/srv"), with("memory:"), same] {
        source.set(&data, invalid);
        // On one thread: what follows the source has its turn.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(knows_log(&pool, 0, &data).await && knows_log(&pool, 1, &data).await);
    }
    // The next valid one counts.
    source.set(&data, cluster(&servers[1..]));
    until("replaced", || *pool.link_at(1).unwrap().server() == servers[2]).await;
    assert_eq!(*pool.link_at(0).unwrap().server(), servers[1]);
}

#[tokio::test]
async fn a_vdisk_without_enough_stores_gets_no_pool_and_is_told_how_many_there_are() {
    let (data, source) = (vdisk("data"), Arc::new(FixedClusters::default()));
    let servers = [RedisServer::new("127.0.0.1", 1), RedisServer::new("127.0.0.1", 2)];
    source.set(&data, cluster(&servers));
    let factory = ConfigRedisPoolFactory::new(Arc::clone(&source) as _, 6, Links::default());
    let error = factory.new_redis_pool(&data).await.unwrap_err().to_string();
    assert!(error.contains("storage cluster main has 2 data stores, and 6 are needed"), "{error}");
    let error = factory.new_redis_pool(&vdisk("unknown")).await.unwrap_err();
    assert!(matches!(error, RedisPoolFactoryError::Source(ClusterSourceError::UnknownVdisk(_))), "{error}");
    let error = StaticRedisPoolFactory::new(servers.to_vec(), 6, false, Links::default()).unwrap_err();
    assert!(error.to_string().contains("has 2 data stores, and 6 are needed"), "{error}");
}

#[tokio::test]
async fn a_pool_of_servers_that_are_down_is_a_pool() {
    let process = RedisProcess::start(RedisOptions::default());
    process.kill();
    let servers = servers_of(std::slice::from_ref(&process));
    let factory = StaticRedisPoolFactory::new(servers, 1, false, Links::default()).unwrap();
    let data = vdisk("data");
    let pool = factory.new_redis_pool(&data).await.unwrap();
    let error = pool.data_connection_at(0).unwrap().status(&data).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("nothing listens there"), "{error}");
    assert!(matches!(pool.link_at(0).unwrap().state(), LinkState::Down { .. }));
    process.restart();
    pool.link_at(0).unwrap().until_up().await;
    make_logs(&pool, &data).await;
}

/// A source of one cluster, which shows whether anybody follows it.
#[derive(Debug)]
struct OneCluster(watch::Sender<Arc<StorageCluster>>);

#[async_trait]
impl ClusterSource for OneCluster {
    async fn tlog_cluster(
        &self,
        _: &VdiskId,
    ) -> Result<watch::Receiver<Arc<StorageCluster>>, ClusterSourceError> {
        Ok(self.0.subscribe())
    }
}

#[tokio::test]
async fn a_pool_that_is_closed_or_dropped_follows_nothing_any_more() {
    let servers = [RedisServer::new("127.0.0.1", 1)];
    let source = Arc::new(OneCluster(watch::Sender::new(Arc::new(cluster(&servers)))));
    let factory = ConfigRedisPoolFactory::new(Arc::clone(&source) as _, 1, Links::default());
    let closed = factory.new_redis_pool(&vdisk("closed")).await.unwrap();
    let dropped = factory.new_redis_pool(&vdisk("dropped")).await.unwrap();
    assert_eq!(source.0.receiver_count(), 2);
    drop(dropped);
    until("one left", || source.0.receiver_count() == 1).await;
    closed.close();
    source.0.closed().await;
}

#[tokio::test]
async fn stores_in_memory_are_those_of_the_vdisk() {
    let factory = InMemoryRedisPoolFactory::new(2);
    let (a, again, b) = (
        factory.new_redis_pool(&vdisk("a")).await.unwrap(),
        factory.new_redis_pool(&vdisk("a")).await.unwrap(),
        factory.new_redis_pool(&vdisk("b")).await.unwrap(),
    );
    make_logs(&a, &vdisk("a")).await;
    assert!(knows_log(&again, 1, &vdisk("a")).await);
    assert!(!knows_log(&b, 1, &vdisk("a")).await);
    assert_eq!(a.link_at(0).unwrap_err(), RedisPoolError::NotRedis(0));
    // They last longer than a pool.
    a.close();
    assert!(knows_log(&again, 1, &vdisk("a")).await);
    assert_eq!(factory.stores(&vdisk("a")).len(), 2);
}

#[tokio::test]
async fn any_stores_are_the_given_servers_or_the_configured_ones_or_the_rest_in_that_order() {
    let given = RedisServer::new("127.0.0.1", 10);
    let configured = RedisServer::new("127.0.0.1", 20);
    let data = vdisk("data");
    let source = FixedClusters::default();
    source.set(&data, cluster(&[configured.clone(), RedisServer::new("127.0.0.1", 21)]));
    let mut options = AnyRedisPoolOptions {
        needed: 2,
        servers: vec![given],
        auto_fill: true,
        source: Some(Arc::new(source)),
        otherwise: Some(Arc::new(InMemoryRedisPoolFactory::new(2))),
        ..AnyRedisPoolOptions::default()
    };
    let address = async |options: &AnyRedisPoolOptions| {
        let pool = any_redis_pool(options.clone(), &data).await.unwrap();
        pool.data_connection_at(1).unwrap().address().to_string()
    };
    assert_eq!(address(&options).await, "redis://127.0.0.1:11/0");
    options.servers.clear();
    assert_eq!(address(&options).await, "redis://127.0.0.1:21/0");
    options.source = None;
    assert_eq!(address(&options).await, "memory:1");
    options.otherwise = None;
    assert!(matches!(any_redis_pool_factory(options.clone()), Err(RedisPoolFactoryError::NoStores)));
    options.in_memory = true;
    assert_eq!(address(&options).await, "memory:1");
}
