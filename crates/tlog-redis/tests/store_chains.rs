//! Logs of stored format 1, in the keys that existing servers use.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use bytes::Bytes;
use tlog_proto::{AggregationId, Epoch};
use tlog_redis::RedisStore;
use tlog_store::{ChainStore, ShardStore};
use tlog_testbed::{RedisOptions, RedisProcess};

use store_support::*;

fn id(salt: u8) -> AggregationId {
    // Every byte value occurs in an id, line breaks and zeros too.
    let mut id = [0; 32];
    id.iter_mut()
        .zip(0..)
        .for_each(|(byte, at): (&mut u8, u8)| *byte = at.wrapping_mul(17).wrapping_add(salt));
    id[0] = salt;
    AggregationId(id)
}

async fn list(store: &RedisStore, disk: &str) -> Vec<Vec<u8>> {
    store.link().run(redis::cmd("LRANGE").arg(format!("last_hash_{disk}")).arg(0).arg(-1)).await.unwrap()
}

async fn get(store: &RedisStore, id: AggregationId) -> Option<Vec<u8>> {
    store.link().run(redis::cmd("GET").arg(&id.0[..])).await.unwrap()
}

#[tokio::test]
async fn a_link_is_the_keys_and_bytes_of_existing_servers() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    for salt in 0..8 {
        let shard = Bytes::from(vec![salt, 0, 0xff, b'\r', b'\n']);
        store.append_link(&disk, id(salt), shard, 5).await.unwrap();
    }
    let newest: Vec<Vec<u8>> = (3..8).rev().map(|salt| id(salt).0.to_vec()).collect();
    assert_eq!(list(&store, "myimg").await, newest);
    for salt in 0..8 {
        assert_eq!(get(&store, id(salt)).await.unwrap(), [salt, 0, 0xff, b'\r', b'\n']);
    }
    // Nothing else is there: an id for each, and the list.
    assert_eq!(keys(&store).await, 9);
    assert_eq!(raw::<String>(&store, &["TYPE", "last_hash_myimg"]).await, "list");
}

#[tokio::test]
async fn the_same_link_again_changes_nothing() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    for salt in [1, 2, 2, 2] {
        store.append_link(&disk, id(salt), Bytes::from_static(b"shard"), 5).await.unwrap();
    }
    assert_eq!(store.last_links(&disk).await.unwrap(), [id(2), id(1)]);
}

#[tokio::test]
async fn what_an_existing_server_wrote_is_read() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    assert_eq!(store.last_links(&disk).await.unwrap(), []);
    assert_eq!(store.linked_shard(id(1)).await.unwrap(), None);
    for salt in 1..=3 {
        let link = store.link();
        link.run::<()>(redis::cmd("SET").arg(&id(salt).0[..]).arg(&[salt; 9][..])).await.unwrap();
        link.run::<()>(redis::cmd("LPUSH").arg("last_hash_myimg").arg(&id(salt).0[..])).await.unwrap();
    }
    raw::<()>(&store, &["LPUSH", "last_hash_myimg", "no id"]).await;
    assert_eq!(store.last_links(&disk).await.unwrap(), [id(3), id(2), id(1)]);
    assert_eq!(store.linked_shard(id(2)).await.unwrap(), Some(Bytes::from(vec![2; 9])));

    raw::<()>(&store, &["LPUSH", "last_hash_other", "x"]).await;
    raw::<()>(&store, &["SET", "last_hash_", "x"]).await;
    raw::<()>(&store, &["LPUSH", "last_hash_a/b", "x"]).await;
    // A log of format 2 is none of format 1.
    store.promise(&vdisk("newer"), Epoch(1)).await.unwrap();
    assert_eq!(store.linked_vdisks().await.unwrap(), [vdisk("myimg"), vdisk("other")]);
    assert_eq!(store.vdisks().await.unwrap(), [vdisk("newer")]);
}

#[tokio::test]
async fn vdisks_are_found_among_many_other_keys() {
    let server = RedisProcess::start(RedisOptions::default());
    let store = store(&server);
    let disks: Vec<_> = (10..40).map(|i| vdisk(&format!("disk-{i}"))).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (salt, disk) in (0..).zip(disks.clone()) {
        let store = store.clone();
        tasks.spawn(async move {
            for round in 0..100u8 {
                let mut id = id(salt);
                id.0[1] = round;
                store.append_link(&disk, id, Bytes::from_static(b"shard"), 5).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(keys(&store).await, 30 * 101);
    assert_eq!(store.linked_vdisks().await.unwrap(), disks);
}

#[tokio::test]
async fn a_list_or_shard_of_another_type_is_damage_and_nothing_is_written() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    raw::<()>(&store, &["SET", "last_hash_myimg", "text"]).await;
    let said = damaged_where(store.append_link(&disk, id(1), Bytes::from_static(b"shard"), 5).await);
    assert!(said.starts_with("last_hash_myimg"), "{said}");
    assert!(damaged_where(store.last_links(&disk).await).starts_with("last_hash_myimg"));
    assert_eq!(keys(&store).await, 1);
    store.link().run::<()>(redis::cmd("LPUSH").arg(&id(1).0[..]).arg("x")).await.unwrap();
    assert!(damaged_where(store.linked_shard(id(1)).await).contains(&id(1).to_string()));
}

#[tokio::test]
async fn a_full_server_takes_no_link_and_has_no_part_of_it() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    store.append_link(&disk, id(1), Bytes::from_static(b"shard"), 5).await.unwrap();
    raw::<()>(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(kind(store.append_link(&disk, id(2), Bytes::from_static(b"shard"), 5).await), "full");
    assert_eq!(store.last_links(&disk).await.unwrap(), [id(1)]);
    assert_eq!(keys(&store).await, 2);
    store.delete_links(&disk).await.unwrap();
    store.delete_linked_shards(&[id(1), id(2)]).await.unwrap();
    assert_eq!(keys(&store).await, 0);
}

#[tokio::test]
async fn the_store_of_a_server_has_its_chains() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("myimg"));
    let chains = store.chains().unwrap();
    chains.append_link(&disk, id(1), Bytes::from_static(b"shard"), 5).await.unwrap();
    assert_eq!(store.last_links(&disk).await.unwrap(), [id(1)]);
    let many: Vec<_> = (0..=255).map(id).collect();
    chains.delete_linked_shards(&[many.clone(), many.clone(), many].concat()).await.unwrap();
    chains.delete_linked_shards(&[]).await.unwrap();
    assert_eq!(store.linked_shard(id(1)).await.unwrap(), None);
}
