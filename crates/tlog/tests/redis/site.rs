//! Six Redis servers, a tlog server on them, and a disk that is written to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tlog::admin_client::ask;
use tlog_client::Client;
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::{RedisOptions, RedisServers};

use crate::support::{Place, Server, of_one_connection};

pub const BLOCK: usize = 512;

/// Where everything is. Settings stand in the environment's place: a `tlog.toml` that server and tool both read.
pub struct Site {
    pub redis: RedisServers,
    pub place: Place,
}

impl Site {
    pub fn new() -> Self {
        Self::with(6, &RedisOptions::durable(), "")
    }

    /// `settings` are further lines of the settings file.
    pub fn with(stores: usize, options: &RedisOptions, settings: &str) -> Self {
        let redis = RedisServers::start(stores, options);
        let site = Self { redis, place: Place::new() };
        site.write_settings(&site.redis.addresses(), settings);
        site.place.tlog_ok(&["keygen", "-o", "tlog-data/tlog.key"]);
        site
    }

    pub fn write_settings(&self, stores: &[String], settings: &str) {
        let stores: Vec<String> = stores.iter().map(|store| format!("{store:?}")).collect();
        let text = format!("storage = [{}]\nstore-timeout = \"2s\"\n{settings}\n", stores.join(", "));
        std::fs::write(self.place.path().join("tlog.toml"), text).unwrap();
    }

    pub fn serve(&self) -> Server {
        self.place.server(&["--flush-size", "5"])
    }

    /// What `tlog verify` says, once every store has everything and knows so.
    pub fn wait_until_whole(&self, vdisk: &str, limit: Duration) -> Value {
        let began = Instant::now();
        loop {
            let said = self.place.tlog(&["verify", vdisk, "--json"]);
            let said: Value = serde_json::from_slice(&said.stdout).unwrap();
            if said["verdict"] == "whole" && said["committed"] == said["last"] {
                return said;
            }
            assert!(began.elapsed() < limit, "not whole after {:?}: {said}", began.elapsed());
        }
    }

    /// The content of the disk, restored.
    pub fn restored(&self, vdisk: &str) -> Vec<u8> {
        self.place.tlog_ok(&["restore", vdisk, "-o", "restored", "--force"]);
        std::fs::read(self.place.path().join("restored")).unwrap()
    }
}

/// What a server says of one vdisk's stores.
pub async fn stores_of(server: &Server, vdisk: &str) -> Vec<Value> {
    let text = ask(&server.admin(), Method::GET, "/status").await.unwrap();
    let status: Value = serde_json::from_str(&text).unwrap();
    let vdisks = status["vdisks"].as_array().unwrap();
    let vdisk = vdisks.iter().find(|known| known["vdisk"] == vdisk);
    vdisk.and_then(|vdisk| vdisk["log"]["stores"].as_array().cloned()).unwrap_or_default()
}

/// Waits until the server says of a store what `is` asks for.
pub async fn wait_for_store(
    server: &Server,
    vdisk: &str,
    store: usize,
    is: impl Fn(&Value) -> bool,
) -> Value {
    let began = Instant::now();
    loop {
        let stores = stores_of(server, vdisk).await;
        if let Some(found) = stores.get(store).filter(|store| is(store)) {
            return found.clone();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "store {store}: {stores:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A disk, and what was acknowledged of it.
pub struct Disk {
    client: Client,
    random: SmallRng,
    content: BTreeMap<u64, Bytes>,
    /// The longest that an acknowledgement took.
    pub slowest: Duration,
}

impl Disk {
    pub async fn connect(server: &Server, vdisk: &str) -> Self {
        let vdisk = VdiskId::new(vdisk).unwrap();
        let client = Client::connect(server.addr(), vdisk, of_one_connection()).await.unwrap();
        Self {
            client,
            random: SmallRng::seed_from_u64(11),
            content: BTreeMap::new(),
            slowest: Duration::ZERO,
        }
    }

    /// A disk that begins anew, as soon as the server takes it.
    pub async fn connect_again_empty(server: &Server, vdisk: &str) -> Self {
        let fresh = Self::when_taken(server, vdisk).await;
        Self {
            client: fresh,
            content: BTreeMap::new(),
            random: SmallRng::seed_from_u64(12),
            slowest: Duration::ZERO,
        }
    }

    /// Goes on with a disk on another connection.
    pub async fn connect_again(server: &Server, vdisk: &str, before: Self) -> Self {
        let Self { content, random, .. } = before;
        let client = Self::when_taken(server, vdisk).await;
        Self { client, content, random, slowest: Duration::ZERO }
    }

    async fn when_taken(server: &Server, vdisk: &str) -> Client {
        // The log may be closing, or a store be on its way back.
        let began = Instant::now();
        loop {
            let vdisk = VdiskId::new(vdisk).unwrap();
            match Client::connect(server.addr(), vdisk, of_one_connection()).await {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(60), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes blocks that may not become durable; answers whether they did. Where not, they may be on the disk all the same.
    pub async fn try_write(&mut self, blocks: u64) -> bool {
        let mut durable = Vec::new();
        for index in 0..blocks {
            // Zeros, where there is nothing else: whether they are there or not does not show.
            let index = BlockIndex::new(1000 + index).unwrap();
            match self.client.delete(index).await {
                Ok(handle) => durable.push(handle),
                Err(_) => return false,
            }
        }
        for durable in durable {
            if durable.await.is_err() {
                return false;
            }
        }
        true
    }

    /// Writes so many blocks, five at a time (an aggregation), each acknowledged as durable.
    pub async fn write(&mut self, blocks: u64) {
        for _ in 0..blocks.div_ceil(5) {
            let began = Instant::now();
            let mut durable = Vec::new();
            for _ in 0..5 {
                let index = self.random.random_range(0..200);
                let data = Bytes::from((0..BLOCK).map(|_| self.random.random()).collect::<Vec<u8>>());
                durable.push(self.client.set(BlockIndex::new(index).unwrap(), data.clone()).await.unwrap());
                self.content.insert(index, data);
            }
            for durable in durable {
                durable.await.unwrap();
            }
            self.slowest = self.slowest.max(began.elapsed());
        }
    }

    /// What the whole disk must be.
    pub fn expected(&self) -> Vec<u8> {
        let blocks = self.content.keys().next_back().map_or(0, |last| last + 1);
        let zeros = Bytes::from(vec![0; BLOCK]);
        (0..blocks).flat_map(|index| self.content.get(&index).unwrap_or(&zeros).to_vec()).collect()
    }
}
