//! Commands that reach the server long after their caller has given up: a network that was cut sends what it still has when it is
//! back. By then the log may be another's, pruned, or deleted and made anew.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tlog_config::RedisServer;
use tlog_proto::{AggregationId, Epoch, VdiskId};
use tlog_redis::{Link, LinkLimits, RedisStore};
use tlog_store::{ChainStore, LogState, Members, Shard, ShardStore};
use tlog_testbed::{RedisOptions, RedisProcess};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use store_support::*;

/// A network between a client and a server. While it is cut it keeps what the client sends, and delivers that when it is mended,
/// although the client has hung up.
struct Network {
    port: u16,
    cut: watch::Sender<bool>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Network {
    async fn before(server: &RedisProcess) -> Self {
        Self::cut_before(server, "\0\0nobody says this").await
    }

    /// One that is cut when the client says a word for the first time.
    async fn cut_before(server: &RedisProcess, word: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, server) = (listener.local_addr().unwrap().port(), server.address());
        let cut = watch::Sender::new(false);
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        tokio::spawn({
            let (cut, connections) = (cut.clone(), Arc::clone(&connections));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(&server).await.unwrap();
                    connections.lock().unwrap().spawn(carry(client, server, cut.clone(), word));
                }
            }
        });
        Self { port, cut, connections }
    }

    /// A store behind it, which gives up soon; not so soon that it does while the network is there and the machine is busy.
    fn store(&self) -> RedisStore {
        let limits = LinkLimits { response: Duration::from_millis(250), ..LinkLimits::default() };
        RedisStore::new(Link::new(RedisServer::new("127.0.0.1", self.port), limits))
    }

    fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Delivers everything, and answers when the server has done it.
    async fn mend(&self) {
        self.cut.send_replace(false);
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections.join_all().await;
    }
}

/// Ends when the client has hung up, and the server has done all that the client ever sent.
async fn carry(client: TcpStream, server: TcpStream, cut: watch::Sender<bool>, word: &'static str) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        let mut buffer = vec![0; 64 << 10];
        let mut said = false;
        loop {
            let length = from_client.read(&mut buffer).await.unwrap_or(0);
            let says = |said: &[u8]| said.windows(word.len()).any(|part| part == word.as_bytes());
            if !said && says(&buffer[..length]) {
                said = true;
                cut.send_replace(true);
            }
            cut.subscribe().wait_for(|cut| !cut).await.unwrap();
            if length == 0 {
                break;
            }
            to_server.write_all(&buffer[..length]).await.unwrap();
        }
        to_server.shutdown().await.unwrap();
    };
    let back = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            // Nobody may be there any more.
            let _ = to_client.write_all(&buffer[..length]).await;
        }
    };
    tokio::join!(there, back);
}

/// Whatever can be told of a log.
async fn all_of(store: &RedisStore, disk: &VdiskId) -> (LogState, Vec<(u64, Shard)>, Vec<VdiskId>) {
    let state = store.status(disk).await.unwrap();
    let mut shards = Vec::new();
    for number in state.held.iter().flat_map(|run| run.start().0..=run.end().0) {
        shards.push((number, whole(store, disk, number).await));
    }
    (state, shards, store.vdisks().await.unwrap())
}

/// An operation of a client of epoch 7 whose log has the numbers 1 to 9.
async fn operate(which: usize, late: &RedisStore, disk: &VdiskId) -> &'static str {
    let (name, failed) = match which {
        0 => ("append", late.append(disk, n(10), shard(7, 10), n(9)).await.is_err()),
        1 => ("append of a large shard", late.append(disk, n(10), usual_shard(7, 10), n(9)).await.is_err()),
        2 => ("append again", late.append(disk, n(3), shard(7, 3), n(9)).await.is_err()),
        3 => ("publish", late.publish(disk, Epoch(7), n(9)).await.is_err()),
        4 => ("fill", late.fill(disk, n(3), shard(7, 3)).await.is_err()),
        5 => ("prune", late.prune(disk, Epoch(7), n(5)).await.is_err()),
        6 => ("start", late.start(disk, start_at(7, 2), &Members::default()).await.is_err()),
        7 => ("promise", late.promise(disk, Epoch(8)).await.is_err()),
        _ => ("delete", late.delete(disk, Epoch(7)).await.is_err()),
    };
    assert!(failed, "{name}: the network is cut");
    name
}

const OPERATIONS: usize = 9;

async fn a_log_of_epoch_7(late: &RedisStore, disk: &VdiskId) {
    late.promise(disk, Epoch(7)).await.unwrap();
    late.start(disk, start_at(7, 1), &Members::default()).await.unwrap();
    append_all_as(late, disk, 7, 1..=8).await;
    // From then on the server knows the script for large ones.
    late.append(disk, n(9), usual_shard(7, 9), n(0)).await.unwrap();
    late.publish(disk, Epoch(7), n(8)).await.unwrap();
}

#[tokio::test]
async fn what_was_meant_for_a_deleted_log_does_nothing_to_the_one_made_after_it() {
    let server = RedisProcess::start(RedisOptions::default());
    for which in 0..OPERATIONS {
        let network = Network::before(&server).await;
        let (owner, late, disk) = (store(&server), network.store(), vdisk(&format!("disk-{which}")));
        a_log_of_epoch_7(&late, &disk).await;
        network.cut();
        let name = operate(which, &late, &disk).await;
        owner.promise(&disk, Epoch(8)).await.unwrap();
        owner.delete(&disk, Epoch(8)).await.unwrap();
        open(&owner, &disk).await;
        append_all(&owner, &disk, 1..=6, 6).await;
        let before = all_of(&owner, &disk).await;
        drop(late);
        network.mend().await;
        assert_eq!(all_of(&owner, &disk).await, before, "{name}");
    }
}

#[tokio::test]
async fn what_comes_after_a_newer_writers_start_changes_nothing() {
    let server = RedisProcess::start(RedisOptions::default());
    for which in 0..OPERATIONS {
        let network = Network::before(&server).await;
        let (owner, late, disk) = (store(&server), network.store(), vdisk(&format!("disk-{which}")));
        a_log_of_epoch_7(&late, &disk).await;
        network.cut();
        let name = operate(which, &late, &disk).await;
        owner.promise(&disk, Epoch(8)).await.unwrap();
        owner.start(&disk, start_at(8, 9), &Members::default()).await.unwrap();
        append_all_as(&owner, &disk, 8, 9..=12).await;
        owner.publish(&disk, Epoch(8), n(12)).await.unwrap();
        owner.prune(&disk, Epoch(8), n(4)).await.unwrap();
        let before = all_of(&owner, &disk).await;
        drop(late);
        network.mend().await;
        assert_eq!(all_of(&owner, &disk).await, before, "{name}");
    }
}

#[tokio::test]
async fn what_comes_after_the_log_was_deleted_brings_nothing_back() {
    let server = RedisProcess::start(RedisOptions::default());
    for which in 0..OPERATIONS {
        let network = Network::before(&server).await;
        let (owner, late, disk) = (store(&server), network.store(), vdisk(&format!("disk-{which}")));
        a_log_of_epoch_7(&late, &disk).await;
        network.cut();
        let name = operate(which, &late, &disk).await;
        owner.promise(&disk, Epoch(8)).await.unwrap();
        owner.delete(&disk, Epoch(8)).await.unwrap();
        drop(late);
        network.mend().await;
        assert_eq!(keys(&owner).await, 0, "{name}");
    }
}

/// The last command of a delete takes the name out of the list.
#[tokio::test]
async fn a_delete_that_ends_late_leaves_a_new_log_in_the_list() {
    let server = RedisProcess::start(RedisOptions::default());
    let (owner, disk) = (store(&server), vdisk("disk"));
    open(&owner, &disk).await;
    let network = Network::cut_before(&server, "SREM").await;
    let late = network.store();
    late.delete(&disk, Epoch(1)).await.unwrap_err();
    assert_eq!(owner.status(&disk).await.unwrap().identity, None);
    open(&owner, &disk).await;
    drop(late);
    network.mend().await;
    assert_eq!(owner.vdisks().await.unwrap(), [disk]);
}

/// Format 1 has no epochs: what is in front of the list is the end of the log for everybody.
#[tokio::test]
async fn a_link_of_format_1_that_comes_late_does_not_come_in_front_of_newer_ones() {
    let server = RedisProcess::start(RedisOptions::default());
    let id = |salt| AggregationId([salt; 32]);
    for before in 0..3 {
        let network = Network::before(&server).await;
        let (retry, late, disk) = (store(&server), network.store(), vdisk(&format!("disk-{before}")));
        let links = |last: u8| (1..=last).rev().map(id).collect::<Vec<_>>();
        for salt in 1..=before {
            retry.append_link(&disk, id(salt), Bytes::from_static(b"shard"), 5).await.unwrap();
        }
        // Every writer looks first.
        assert_eq!(late.last_links(&disk).await.unwrap(), links(before));
        network.cut();
        late.append_link(&disk, id(before + 1), Bytes::from_static(b"shard"), 5).await.unwrap_err();
        for salt in before + 1..=before + 2 {
            retry.append_link(&disk, id(salt), Bytes::from_static(b"shard"), 5).await.unwrap();
        }
        drop(late);
        network.mend().await;
        assert_eq!(retry.last_links(&disk).await.unwrap(), links(before + 2), "{before} before");
        // One who is there and tries is not refused: nothing fences in format 1.
        let (one, two) = (store(&server), store(&server));
        assert_eq!(one.last_links(&disk).await.unwrap(), links(before + 2));
        two.append_link(&disk, id(before + 3), Bytes::from_static(b"shard"), 5).await.unwrap();
        one.append_link(&disk, id(before + 4), Bytes::from_static(b"shard"), 5).await.unwrap();
        assert_eq!(two.last_links(&disk).await.unwrap()[..2], links(before + 4)[..2]);
        // Nor does one come back when the list is gone.
        let network = Network::before(&server).await;
        let late = network.store();
        late.last_links(&disk).await.unwrap();
        network.cut();
        late.append_link(&disk, id(99), Bytes::from_static(b"shard"), 5).await.unwrap_err();
        retry.delete_links(&disk).await.unwrap();
        drop(late);
        network.mend().await;
        assert_eq!(retry.last_links(&disk).await.unwrap(), [], "{before} before");
    }
}
