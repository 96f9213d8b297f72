//! A slave that is kept up to date by real servers, killed at any moment, and switched to.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tlog_client::{Client, ClientOptions, Start};
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::{RedisOptions, RedisProcess, RedisServers};

use crate::site::{Documents, File, Source, Vdisk, prepare, restored, status, until};
use crate::support::{Place, Server};
use crate::writer::{BLOCK, Writer};

const SETTINGS: &str = "data-shards = 1\nparity-shards = 1\nflush-size = 5\nslave-sync = true";

/// A log on two stores, and a slave on some more.
pub struct Site {
    pub place: Place,
    pub log: RedisServers,
    pub slave: RedisServers,
    file: File,
    pub documents: Documents,
}

impl Site {
    pub fn new(slaves: usize) -> Self {
        let place = Place::new();
        let log = RedisServers::start(2, &RedisOptions::durable());
        let slave = RedisServers::start(slaves, &RedisOptions::durable());
        let mut file = File::new(&place);
        let mut documents = Documents::default();
        documents.clusters.insert("log", log.addresses());
        documents.clusters.insert("slave", slave.addresses());
        documents.vdisks.insert("a".to_owned(), Vdisk { cluster: "log", slave: Some("slave") });
        prepare(&place, &file.setting(), SETTINGS);
        file.put(&place, &documents);
        Self { place, log, slave, file, documents }
    }

    /// Makes the documents those that the server follows.
    pub fn put(&mut self) {
        self.file.put(&self.place, &self.documents);
    }

    /// Every block on the slave, by the documented layout, with a client that is not ours.
    pub fn blocks(&self) -> BTreeMap<u64, Vec<u8>> {
        self.slave
            .iter()
            .enumerate()
            .flat_map(|(number, store)| blocks_of(store, number, self.slave.len()))
            .collect()
    }

    /// The whole disk.
    fn disk(&self) -> Vec<u8> {
        let blocks = self.blocks();
        let len = blocks.keys().next_back().map_or(0, |last| (*last as usize + 1) * BLOCK);
        let mut disk = vec![0; len];
        for (index, data) in blocks {
            let at = index as usize * BLOCK;
            disk[at..at + data.len()].copy_from_slice(&data);
        }
        disk
    }

    pub fn told(&self) -> Value {
        let output = self.place.tlog(&["slave", "status", "a", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }
}

fn blocks_of(store: &RedisProcess, number: usize, stores: usize) -> BTreeMap<u64, Vec<u8>> {
    let client = redis::Client::open(format!("redis://{}/", store.address())).unwrap();
    let mut connection = client.get_connection().unwrap();
    let all: BTreeMap<u64, Vec<u8>> = redis::cmd("HGETALL").arg("nondedup:a").query(&mut connection).unwrap();
    assert!(all.keys().all(|index| *index as usize % stores == number), "a block is on another store");
    all
}

/// What a server says of the slave.
pub fn slave_of(status: &Value) -> &Value {
    &status["slaves"][0]
}

pub async fn up_to_date(server: &Server) {
    until(server, "the slave is up to date", |status| {
        let slave = slave_of(status);
        slave["state"] == "up_to_date" && slave["lag"]["aggregations"] == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_switches_to_its_slave_and_everything_is_there() {
    let mut site = Site::new(3);
    let server = site.place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(300).await;
    // Deleted blocks have no field.
    let client = writer.client.clone();
    let content = writer.stop_writing().await;
    let gone = *content.indices().next().unwrap();
    client.delete(BlockIndex::new(gone).unwrap()).await.unwrap().await.unwrap();
    client.wait_nbd_slave_sync(Duration::from_secs(60)).await.unwrap();
    let blocks = site.blocks();
    assert!(!blocks.contains_key(&gone));
    assert_eq!(site.disk(), restored(&site.place, "a", &[])[..site.disk().len()]);
    let expected = content.without(gone);
    expected.check(&site.disk());
    assert!(expected.indices().all(|index| blocks.contains_key(index)));

    // It is somebody's primary now: nothing is applied any more, whatever comes, also after a restart.
    client.set(BlockIndex::new(gone).unwrap(), vec![7; BLOCK]).await.unwrap();
    client.flush().await.unwrap();
    client.close().await;
    until(&server, "the syncer has stopped", |status| slave_of(status)["state"] == "stopped").await;
    server.stop();
    let server = site.place.server(&[]);
    until(&server, "the syncer stays stopped", |status| slave_of(status)["state"] == "stopped").await;
    assert_eq!(site.blocks(), blocks);
    assert_eq!(site.told()["state"], "stopped");

    // Asked again it answers, as long as nothing was written since.
    // Taken back, it is filled anew.
    let said = site.place.tlog_fails(&["slave", "resync", "a"]);
    assert!(said.contains("tlog slave start a"), "{said}");
    site.place.tlog_ok(&["slave", "start", "a"]);
    assert_eq!(site.told()["state"], "needs_resync");
    site.place.tlog_ok(&["slave", "resync", "a"]);
    up_to_date(&server).await;
    assert_eq!(site.disk(), restored(&site.place, "a", &[])[..site.disk().len()]);

    // Without its entry there is no slave, and who asks is answered at once.
    site.documents.vdisks.insert("a".to_owned(), Vdisk { cluster: "log", slave: None });
    site.put();
    until(&server, "there is no slave", |status| status["slaves"].as_array().unwrap().is_empty()).await;
    let client =
        Client::connect(server.addr(), VdiskId::new("a").unwrap(), ClientOptions::default()).await.unwrap();
    client.wait_nbd_slave_sync(Duration::from_secs(60)).await.unwrap();
    server.stop();
}

/// What the disk was after each write of its log, as far as that goes: for each block its contents, oldest first, and after which write.
async fn is_a_prefix(site: &Site, written: &[(u64, Vec<u8>)], at_least: usize) -> usize {
    let disk = site.blocks();
    let mut state: BTreeMap<u64, &Vec<u8>> = BTreeMap::new();
    let mut wrong = disk.keys().count();
    let is = |state: &BTreeMap<u64, &Vec<u8>>, index: u64| state.get(&index).copied() == disk.get(&index);
    if wrong == 0 && at_least == 0 {
        return 0;
    }
    for (count, (index, data)) in written.iter().enumerate() {
        let before = is(&state, *index);
        state.insert(*index, data);
        match (before, is(&state, *index)) {
            (true, false) => wrong += 1,
            (false, true) => wrong -= 1,
            _ => {}
        }
        if wrong == 0 && count + 1 >= at_least {
            return count + 1;
        }
    }
    panic!("{} blocks are those of no moment at or after write {at_least} of {}", wrong, written.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slave_is_a_prefix_of_the_log_whatever_is_killed() {
    kills(100).await;
}

async fn kills(rounds: usize) {
    let site = Site::new(2);
    let mut random = SmallRng::seed_from_u64(5);
    let mut server = Some(site.place.server(&[]));
    // Every write, in the order of the log: one client, which begins anew with each server and writes again what was not acknowledged.
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    for round in 0..rounds {
        let running = server.take().unwrap();
        let client = connect(&running).await;
        // What was sent and not acknowledged may be in the log all the same: the log says how much of it.
        written.truncate(client.first_sequence().0 as usize - 1);
        let victim = random.random_range(0..3);
        let blocks = random.random_range(5..60);
        let kill_at = random.random_range(0..blocks);
        for count in 0..blocks {
            let index = random.random_range(0..40);
            let data: Vec<u8> = (0..BLOCK).map(|_| random.random()).collect();
            written.push((index, data.clone()));
            client.set(BlockIndex::new(index).unwrap(), data).await.unwrap();
            if count == kill_at && victim > 0 {
                site.slave[victim - 1].kill();
            }
        }
        match victim {
            0 => running.kill(),
            store => {
                client.flush().await.unwrap();
                assert_eq!(written.len() as u64, client.next_sequence().0 - 1);
                site.slave[store - 1].restart();
                server = Some(running);
            }
        }
        client.close().await;
        // Its stores are read one after the other: a syncer that went on meanwhile would make another disk of the two halves. What is
        // under way is one step, of one store.
        if let Some(running) = &server {
            running.pause();
        }
        let told = site.told();
        let position = told["position"]["sequence"].as_u64().unwrap_or(0);
        is_a_prefix(&site, &written, position as usize).await;
        if let Some(running) = &server {
            running.signal("-CONT");
        }
        assert!(round > 0 || position <= written.len() as u64);
        server = server.or_else(|| Some(site.place.server(&[])));
    }
    // And the whole log in the end, with a lag that says so.
    let server = server.unwrap();
    let client = connect(&server).await;
    written.truncate(client.first_sequence().0 as usize - 1);
    client.close().await;
    up_to_date(&server).await;
    let told = site.told();
    assert_eq!((&told["lag"]["aggregations"], &told["state"]), (&0.into(), &"filled".into()));
    assert_eq!(told["position"]["sequence"].as_u64().unwrap(), written.len() as u64);
    assert_eq!(is_a_prefix(&site, &written, written.len()).await, written.len());
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_slave_is_behind_is_told_exactly() {
    let site = Site::new(2);
    let server = site.place.server(&[]);
    let client = connect(&server).await;
    let write = async |aggregations: u64| {
        for _ in 0..aggregations {
            for index in 0..5 {
                client.set(BlockIndex::new(index).unwrap(), vec![7; BLOCK]).await.unwrap();
            }
            client.flush().await.unwrap();
        }
    };
    write(3).await;
    up_to_date(&server).await;
    let lag_is = async |server: &Server, aggregations: u64, blocks: u64| {
        until(server, "the lag is exact", |status| {
            let lag = &slave_of(status)["lag"];
            lag["aggregations"] == aggregations && lag["blocks"] == blocks
        })
        .await;
    };
    // The store of the first block is away: nothing is applied from there on.
    site.slave[0].kill();
    write(7).await;
    until(&server, "it waits", |status| slave_of(status)["state"] == "waiting_for_slave").await;
    lag_is(&server, 7, 35).await;
    assert!(slave_of(&status(&server).await)["lag"]["since"].is_string());
    let told = site.place.tlog(&["slave", "status", "a"]);
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("stores do not answer") && told.contains("behind     not known"), "{told}");
    site.slave[0].restart();
    up_to_date(&server).await;
    lag_is(&server, 0, 0).await;
    // Another moment would not stay there.
    let said =
        site.place.tlog_fails(&["replay", "a", "--to-cluster", "slave", "--sequence", "8", "--overwrite"]);
    assert!(said.contains("storage cluster slave is its slave"), "{said}");
    // The tool tells it without a syncer.
    client.close().await;
    server.stop();
    let server = site.place.server(&["--slave-sync=false"]);
    let client = connect(&server).await;
    client.set(BlockIndex::new(1).unwrap(), vec![8; BLOCK]).await.unwrap();
    client.close_after_flush().await.unwrap();
    let told = site.told();
    assert_eq!((&told["lag"]["aggregations"], &told["lag"]["blocks"]), (&1.into(), &1.into()), "{told}");
    assert!(site.place.tlog_ok(&["slave", "status", "a"]).contains("behind     1 aggregations, 1 writes"));
    server.stop();
}

pub async fn connect(server: &Server) -> Client {
    connect_to(server, "a").await
}

/// A client that does not come back.
pub async fn connect_to(server: &Server, vdisk: &str) -> Client {
    let options = ClientOptions {
        connect_deadline: Duration::from_secs(60),
        reconnect_deadline: Some(Duration::ZERO),
        ..ClientOptions::default()
    };
    Client::connect(server.addr(), VdiskId::new(vdisk).unwrap(), options).await.unwrap()
}
