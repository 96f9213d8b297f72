//! The stores of a cluster change: logs that are open, logs that are not, and servers that are restarted meanwhile.

use std::time::Duration;

use serde_json::Value;
use tlog_client::Start;
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{Documents, File, Source, is_whole_on, prepare, restored, status, until};
use crate::support::Place;
use crate::writer::{Content, Writer};

/// A log on some stores, with others to go to.
struct Site {
    place: Place,
    redis: RedisServers,
    file: File,
    documents: Documents,
}

impl Site {
    fn new(servers: usize, stores: usize, settings: &str) -> Self {
        let place = Place::new();
        let redis = RedisServers::start(servers, &RedisOptions::durable());
        let file = File::new(&place);
        prepare(&place, &file.setting(), &format!("flush-size = 5\n{settings}"));
        let mut site = Self { place, redis, file, documents: Documents::default() };
        site.documents.vdisk("a", "one");
        site.put(&(0..stores).collect::<Vec<_>>());
        site
    }

    fn addresses(&self, servers: &[usize]) -> Vec<String> {
        servers.iter().map(|at| self.redis[*at].address()).collect()
    }

    /// These servers are the cluster's stores.
    fn put(&mut self, servers: &[usize]) {
        self.documents.clusters.insert("one", self.addresses(servers));
        self.file.put(&self.place, &self.documents);
    }

    /// Whether everything can be read. A store that was slow when the log closed may lack its last shard until it is opened again.
    fn is_readable(&self, vdisk: &str) -> bool {
        let said = self.place.tlog(&["verify", vdisk, "--json"]);
        matches!(said.status.code(), Some(0 | 1))
    }
}

fn pending(status: &Value) -> Option<&str> {
    status["clusters"][0]["pending"].as_str()
}

async fn written(server: &crate::support::Server, vdisk: &str, seed: u64) -> Content {
    let writer = Writer::begin(server.addr(), vdisk, Start::Continue, seed).await;
    writer.acknowledges(50).await;
    writer.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_open_has_the_new_store_too_before_the_next_change_counts() {
    let mut site = Site::new(6, 4, "data-shards = 2\nparity-shards = 2\nvdisk-idle-timeout = '100ms'");
    let server = site.place.server(&[]);
    let content = written(&server, "a", 1).await;
    until(&server, "it is closed", |status| status["vdisks"].as_array().unwrap().is_empty()).await;

    // Several at once are not followed, and nothing is lost by that.
    site.put(&[4, 5, 2, 3]);
    let told = until(&server, "it is refused", |status| pending(status).is_some()).await;
    assert!(pending(&told).unwrap().contains("data stores 0, 1 are others"), "{told}");
    // One is; the log is opened for it.
    site.put(&[4, 1, 2, 3]);
    until(&server, "the new store has the log", |status| {
        pending(status).is_none()
            && status["clusters"][0]["stores"][0] == format!("redis://{}/0", site.redis[4].address())
    })
    .await;
    assert!(site.is_readable("a"));
    site.redis[0].kill();
    site.put(&[4, 5, 2, 3]);
    until(&server, "the other one too", |status| {
        pending(status).is_none()
            && status["clusters"][0]["stores"][1] == format!("redis://{}/0", site.redis[5].address())
    })
    .await;
    site.redis[1].kill();
    assert!(site.is_readable("a"));
    content.check(&restored(&site.place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_changed_while_no_server_ran_are_not_taken_for_a_new_log() {
    let mut site = Site::new(8, 4, "data-shards = 2\nparity-shards = 2");
    let server = site.place.server(&[]);
    let content = written(&server, "a", 1).await;
    server.stop();
    // All of them: whoever comes is refused, and the log is where it was.
    site.put(&[4, 5, 6, 7]);
    let mut server = site.place.server_with_log(&[]);
    let client = tlog_client::Client::connect(
        server.addr(),
        tlog_proto::VdiskId::new("a").unwrap(),
        tlog_client::ClientOptions::default(),
    );
    assert!(client.await.is_err());
    let said = server.waits_for_log("cannot open the log");
    assert!(said.contains("other data stores") && said.contains("clusters/one.stores"), "{said}");
    // One of them: it is filled.
    site.put(&[4, 1, 2, 3]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 2).await;
    writer.acknowledges(10).await;
    let stores = site.addresses(&[4, 1, 2, 3]);
    until(&server, "it is filled", |status| pending(status).is_none() && is_whole_on(status, "a", &stores))
        .await;
    let more = writer.stop().await;
    content.followed_by(&more).check(&restored(&site.place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_two_is_replaced_as_well() {
    let mut site = Site::new(3, 2, "data-shards = 1\nparity-shards = 1");
    let server = site.place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(50).await;
    site.put(&[2, 1]);
    let stores = site.addresses(&[2, 1]);
    until(&server, "it is filled", |status| pending(status).is_none() && is_whole_on(status, "a", &stores))
        .await;
    site.redis[0].kill();
    writer.acknowledges(50).await;
    let content = writer.stop().await;
    content.check(&restored(&site.place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_not_there_yet_is_waited_for_and_can_be_taken_back() {
    let mut site = Site::new(5, 4, "data-shards = 2\nparity-shards = 2");
    let server = site.place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(50).await;
    site.redis[4].kill();
    site.put(&[4, 1, 2, 3]);
    let told = until(&server, "it is waited for", |status| pending(status).is_some()).await;
    assert!(pending(&told).unwrap().contains("stays in data store 0's place"), "{told}");
    writer.acknowledges(50).await;
    site.put(&[0, 1, 2, 3]);
    until(&server, "nothing is left to do", |status| pending(status).is_none()).await;
    site.put(&[4, 1, 2, 3]);
    until(&server, "it is waited for", |status| pending(status).is_some()).await;
    site.redis[4].restart();
    let stores = site.addresses(&[4, 1, 2, 3]);
    until(&server, "it is filled", |status| pending(status).is_none() && is_whole_on(status, "a", &stores))
        .await;
    writer.stop().await.check(&restored(&site.place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_write_quorum_counts_for_every_vdisk_and_changed_shards_for_no_log_that_is_there() {
    const VDISKS: u64 = 12;
    let mut site = Site::new(4, 4, "data-shards = 2\nparity-shards = 2");
    for number in 0..VDISKS {
        site.documents.vdisk(&format!("v{number}"), "one");
    }
    site.put(&[0, 1, 2, 3]);
    let server = site.place.server(&[]);
    let mut writers = Vec::new();
    for number in 0..VDISKS {
        let writer = Writer::begin(server.addr(), &format!("v{number}"), Start::Continue, number).await;
        writer.acknowledges(5).await;
        writers.push(writer);
    }
    let yaml = site.documents.yaml();
    let with = |shards: &str| yaml.replace("  one:\n", &format!("  one:\n    {shards}\n"));
    crate::site::write(&site.place, "vdisks.yaml", &with("writeQuorum: 4"));
    until(&server, "all have the new quorum", |status| {
        let clusters = status["clusters"].as_array().unwrap();
        clusters.len() == 1
            && clusters[0]["redundancy"] == "2+2, write quorum 4"
            && clusters[0]["open_vdisks"] == VDISKS
    })
    .await;
    for writer in &writers {
        writer.acknowledges(5).await;
    }
    crate::site::write(
        &site.place,
        "vdisks.yaml",
        &with("dataShards: 3\n    parityShards: 1\n    writeQuorum: 4"),
    );
    let told = until(&server, "it is refused", |status| pending(status).is_some()).await;
    assert!(pending(&told).unwrap().contains("a log keeps its shards"), "{told}");
    for writer in writers {
        writer.acknowledges(5).await;
        writer.stop().await;
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vdisk_that_is_moved_and_moved_back_while_it_closes_is_followed_still() {
    let mut site = Site::new(4, 2, "data-shards = 1\nparity-shards = 1");
    site.documents.clusters.insert("two", site.addresses(&[2, 3]));
    site.put(&[0, 1]);
    let server = site.place.server(&[]);
    let content = written(&server, "a", 1).await;
    for _ in 0..10 {
        site.documents.vdisk("a", "two");
        site.file.put(&site.place, &site.documents);
        site.documents.vdisk("a", "one");
        site.file.put(&site.place, &site.documents);
        let _ = tokio::time::timeout(Duration::from_millis(30), status(&server)).await;
    }
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 2).await;
    writer.acknowledges(20).await;
    let client = writer.client.clone();
    site.documents.vdisks.clear();
    site.documents.vdisk("other", "one");
    site.file.put(&site.place, &site.documents);
    until(&server, "it is closed", |status| {
        status["vdisks"].as_array().unwrap().iter().all(|vdisk| vdisk["open"] == false)
    })
    .await;
    client.close().await;
    let (_, more, _) = writer.ends().await;
    let old = site.addresses(&[0, 1]).join(",");
    content.followed_by(&more).check(&restored(&site.place, "a", &["--storage", &old]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_password_of_a_store_counts_at_once() {
    let place = Place::new();
    let redis = RedisServers::start(2, &RedisOptions::durable());
    let file = File::new(&place);
    prepare(&place, &file.setting(), "flush-size = 5\ndata-shards = 1\nparity-shards = 1");
    let text = |credentials: &str| {
        let stores: Vec<String> = redis
            .addresses()
            .iter()
            .map(|address| format!("{{ address: 'redis://{credentials}{address}' }}"))
            .collect();
        format!(
            "storageClusters: {{ one: {{ dataStorage: [{}] }} }}\n\
             vdisks: {{ a: {{ type: db, blockSize: 512, size: 1, tlog: {{ storageClusterID: one }} }} }}\n",
            stores.join(", ")
        )
    };
    crate::site::write(&place, "vdisks.yaml", &text(""));
    let server = place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(20).await;
    for store in redis.iter() {
        store.cli(&["CONFIG", "SET", "requirepass", "hush"]);
    }
    crate::site::write(&place, "vdisks.yaml", &text(":hush@"));
    // What is connected already stays so: a new connection has to be let in.
    until(&server, "it is in force", |status| {
        status["documents"]["problems"].as_array().unwrap().is_empty() && pending(status).is_none()
    })
    .await;
    for store in redis.iter() {
        let _ = std::process::Command::new("redis-cli")
            .args([
                "-p",
                &store.port().to_string(),
                "-a",
                "hush",
                "--no-auth-warning",
                "CLIENT",
                "KILL",
                "TYPE",
                "normal",
            ])
            .output()
            .unwrap();
    }
    writer.acknowledges(50).await;
    let said = serde_json::to_string(&status(&server).await).unwrap();
    assert!(!said.contains("hush"));
    writer.stop().await.check(&restored(&place, "a", &[]));
    server.stop();
}
