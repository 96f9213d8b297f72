//! Stores of a slave on servers that are full, forget scripts, or have nonsense in their keys; and which clusters can be a slave.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use bytes::Bytes;
use tlog_config::{RedisServer, StorageCluster, StoreAddress};
use tlog_proto::{BlockIndex, Epoch};
use tlog_redis::{Link, LinkLimits, Links, RedisSlave, slave_servers};
use tlog_store::conformance::{point, vdisk};
use tlog_store::slave::{
    BlockChange, Claim, FillId, PartState, SlaveOutcome, SlaveOwner, SlavePart, SlavePoint, SlaveStep,
    SlaveStore,
};
use tlog_store::{StoreError, StoreErrorKind};
use tlog_testbed::{RedisOptions, RedisProcess};

const FILL: FillId = FillId([7; 16]);

fn slave(server: &RedisProcess) -> RedisSlave {
    RedisSlave::new(Link::new(RedisServer::new(server.host(), server.port()), LinkLimits::default()))
}

/// A data store that is to be applied to from the start.
async fn begun(server: &RedisProcess) -> RedisSlave {
    let store = slave(server);
    store.raise(&vdisk("v"), Epoch(1)).await.unwrap();
    let part = SlavePart { fill: FILL, index: 0, stores: 1, applied: Some(SlavePoint::START) };
    assert_eq!(store.begin(&vdisk("v"), Epoch(1), &part).await.unwrap(), SlaveOutcome::Done);
    store
}

async fn apply(
    store: &RedisSlave,
    from: SlavePoint,
    to: SlavePoint,
    index: u64,
    bytes: usize,
) -> Result<SlaveOutcome, StoreError> {
    let step = SlaveStep { fill: FILL, from: Some(from), to: Some(to) };
    let data = (bytes > 0).then(|| Bytes::from(vec![1; bytes]));
    let change = BlockChange { index: BlockIndex::new(index).unwrap(), data };
    store.apply(&vdisk("v"), Epoch(1), &step, &[change]).await
}

#[tokio::test]
async fn a_full_server_takes_no_block_says_so_and_can_still_be_fenced_and_emptied() {
    let server = RedisProcess::start(RedisOptions { max_memory: Some(4 << 20), ..RedisOptions::default() });
    let store = begun(&server).await;
    let mut at = SlavePoint::START;
    let mut next = 1;
    let full = loop {
        match apply(&store, at, point(next, 1), next, 256 << 10).await {
            Ok(outcome) => assert_eq!(outcome, SlaveOutcome::Done),
            Err(error) => break error,
        }
        (at, next) = (point(next, 1), next + 1);
    };
    assert!(matches!(full.kind, StoreErrorKind::Full { .. }), "{full}");
    let state = store.part(&vdisk("v")).await.unwrap();
    assert_eq!((state.part.unwrap().applied, state.blocks, state.counted), (Some(at), next - 1, next - 1));
    store.raise(&vdisk("v"), Epoch(2)).await.unwrap();
    store.promise(&vdisk("v"), Epoch(2), SlaveOwner([1; 16]), Claim::Over).await.unwrap();
    assert_eq!(store.clear(&vdisk("v"), Epoch(2)).await.unwrap(), SlaveOutcome::Done);
    let expected = PartState { epoch: Epoch(2), ..PartState::default() };
    assert_eq!(store.part(&vdisk("v")).await.unwrap(), expected);
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_told_them_again() {
    let server = RedisProcess::start(RedisOptions::default());
    let store = begun(&server).await;
    server.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(apply(&store, SlavePoint::START, point(1, 1), 3, 10).await.unwrap(), SlaveOutcome::Done);
    server.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(store.part(&vdisk("v")).await.unwrap().blocks, 1);
}

#[tokio::test]
async fn nonsense_in_a_key_is_named_and_nothing_is_done() {
    let check = async |harm: &[&str], named: &str| {
        let server = RedisProcess::start(RedisOptions::default());
        let store = begun(&server).await;
        store.promise(&vdisk("v"), Epoch(1), SlaveOwner([1; 16]), Claim::Over).await.unwrap();
        server.cli(harm);
        let part = store.part(&vdisk("v")).await.map(drop);
        let record = store.record(&vdisk("v")).await.map(drop);
        let error = part.and(record).unwrap_err();
        match error.kind {
            StoreErrorKind::Damaged { what } => assert!(what.contains(named), "{harm:?}: {what}"),
            other => panic!("{harm:?}: {other}"),
        }
    };
    check(&["HSET", "tlog:slave_part:v", "epoch", "many"], "tlog:slave_part:v epoch").await;
    check(&["HSET", "tlog:slave_part:v", "epoch", "99999999999999999999"], "tlog:slave_part:v epoch").await;
    check(&["HDEL", "tlog:slave_part:v", "epoch"], "tlog:slave_part:v epoch").await;
    check(&["HSET", "tlog:slave_part:v", "layout", "2"], "tlog:slave_part:v layout").await;
    check(&["HSET", "tlog:slave_part:v", "fill", "x"], "tlog:slave_part:v fill").await;
    check(&["HSET", "tlog:slave_part:v", "applied", "1:2:3"], "tlog:slave_part:v applied").await;
    check(&["HSET", "tlog:slave_part:v", "blocks", "-1"], "tlog:slave_part:v blocks").await;
    check(&["SET", "nondedup:v", "x"], "nondedup:v (it is a string)").await;
    check(&["SET", "tlog:slave:v", "x"], "tlog:slave:v (it is a string)").await;
    check(&["HSET", "tlog:slave:v", "mark", "paused"], "tlog:slave:v restoring").await;
    check(&["HSET", "tlog:slave:v", "last", "now"], "tlog:slave:v last").await;
    check(&["SET", "tlog:last_slave_sync_seq:v", "x"], "tlog:last_slave_sync_seq:v").await;
    check(&["LPUSH", "tlog:last_slave_sync_seq:v", "x"], "tlog:last_slave_sync_seq:v (it is a list)").await;
}

#[test]
fn a_cluster_that_cannot_be_a_slave_is_refused_with_the_reason() {
    let check = |data: &[&str], metadata: Option<&str>, expected: Result<(usize, &str), &str>| {
        let address = |text: &&str| StoreAddress::parse(text).unwrap();
        let cluster = StorageCluster {
            id: "s".into(),
            data: data.iter().map(address).collect(),
            metadata: metadata.as_ref().map(address),
            shards: Default::default(),
        };
        match (slave_servers(&Links::default(), &cluster), expected) {
            (Ok(servers), Ok((count, metadata))) => {
                assert_eq!((servers.data.len(), &*servers.metadata.address()), (count, metadata));
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
    };
    check(&["a:1", "b:1"], None, Ok((2, "redis://a:1/0")));
    check(&["a:1", "a:1@2"], Some("m:7"), Ok((2, "redis://m:7/0")));
    check(&["a:1"], Some("a:1"), Ok((1, "redis://a:1/0")));
    check(&[], Some("m:7"), Err("has no data stores"));
    check(&["a:1", "b:1", "A:1"], None, Err("data stores 0 and 2 of storage cluster s are the same"));
    check(&["a:1", "file:/x"], None, Err("a slave is on Redis servers only"));
    check(&["a:1"], Some("memory:"), Err("a slave is on Redis servers only"));
}
