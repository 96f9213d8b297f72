//! Single changes of documents that the scenario does not have.

use std::sync::Arc;

use tlog::documents::server_lists;
use tlog_client::Start;
use tlog_config::{Configuration, FileSource};
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{Documents, File, Source, Vdisk, is_whole_on, prepare, restored, until, write};
use crate::support::Place;
use crate::writer::Writer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_has_shards_of_its_own_and_its_vdisks_are_opened_anew_when_they_change() {
    let place = Place::new();
    let redis = RedisServers::start(4, &RedisOptions::durable());
    let file = File::new(&place);
    prepare(&place, &file.setting(), "flush-size = 5"); // 4 + 2, which these stores are too few for
    let stores: Vec<String> =
        redis.addresses().iter().map(|store| format!("{{ address: {store} }}")).collect();
    let text = |shards: &str| {
        format!(
            "storageClusters: {{ one: {{ dataStorage: [{}], {shards} }} }}\n\
             vdisks: {{ a: {{ type: db, blockSize: 512, size: 1, tlog: {{ storageClusterID: one }} }} }}\n",
            stores.join(", ")
        )
    };
    write(&place, "vdisks.yaml", &text("dataShards: 2, parityShards: 2"));
    let server = place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(50).await;
    until(&server, "it is on all four", |status| is_whole_on(status, "a", &redis.addresses())).await;

    // W is 3 by itself; with 4 nothing is acknowledged while one is away.
    write(&place, "vdisks.yaml", &text("dataShards: 2, parityShards: 2, writeQuorum: 4"));
    until(&server, "the write quorum is four", |status| {
        status["clusters"][0]["redundancy"] == "2+2, write quorum 4"
    })
    .await;
    writer.acknowledges(50).await;
    // Too few for such shards: nothing changes.
    write(&place, "vdisks.yaml", &text("dataShards: 3, parityShards: 2"));
    let said = place.tlog_fails(&["config", "check", "vdisks.yaml"]);
    assert!(said.is_empty());
    writer.acknowledges(50).await;
    write(&place, "vdisks.yaml", &text("dataShards: 2, parityShards: 2"));
    let content = writer.stop().await;
    content.check(&restored(&place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_change_their_places_are_refused_and_the_log_goes_on_where_it_was() {
    let place = Place::new();
    let redis = RedisServers::start(3, &RedisOptions::durable());
    let mut file = File::new(&place);
    prepare(&place, &file.setting(), "data-shards = 2\nparity-shards = 1\nflush-size = 5");
    let mut documents = Documents::default();
    let addresses = redis.addresses();
    documents.clusters.insert("one", addresses.clone());
    documents.vdisk("a", "one");
    file.put(&place, &documents);
    let mut server = place.server_with_log(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(50).await;
    documents.clusters.insert("one", [1, 0, 2].map(|at: usize| addresses[at].clone()).to_vec());
    file.put(&place, &documents);
    let said = server.waits_for_log("the changed storage cluster cannot be used");
    assert!(said.contains("a store keeps its place"), "{said}");
    writer.acknowledges(50).await;
    until(&server, "it is where it was", |status| is_whole_on(status, "a", &addresses)).await;
    documents.clusters.insert("one", addresses);
    file.put(&place, &documents);
    let content = writer.stop().await;
    content.check(&restored(&place, "a", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_stores_in_the_settings_the_documents_say_which_vdisks_there_are() {
    let place = Place::new();
    let redis = RedisServers::start(2, &RedisOptions::durable());
    let mut file = File::new(&place);
    let settings =
        format!("data-shards = 1\nparity-shards = 1\nflush-size = 5\nstorage = {:?}", redis.addresses());
    prepare(&place, &file.setting(), &settings);
    let mut documents = Documents::default();
    documents.clusters.insert("elsewhere", vec!["127.0.0.1:1".to_owned()]);
    documents.vdisk("a", "elsewhere");
    file.put(&place, &documents);
    let server = place.server(&[]);
    let writer = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    writer.acknowledges(50).await;
    // Where its log would be is of no account.
    documents.clusters.insert("other", vec!["127.0.0.1:2".to_owned()]);
    documents.vdisk("a", "other");
    file.put(&place, &documents);
    documents.vdisk("b", "other");
    file.put(&place, &documents);
    until(&server, "b is known", |status| status["documents"]["vdisks"] == 2).await;
    let other = Writer::begin(server.addr(), "b", Start::Continue, 2).await;
    other.acknowledges(50).await;
    writer.acknowledges(50).await;
    writer.stop().await.check(&restored(&place, "a", &[]));
    other.stop().await.check(&restored(&place, "b", &[]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_the_servers_that_the_documents_name_and_its_slave_follows_it() {
    let place = Place::new();
    let redis = RedisServers::start(3, &RedisOptions::durable());
    let mut file = File::new(&place);
    prepare(&place, &file.setting(), "data-shards = 1\nparity-shards = 1\nflush-size = 5\nslave-sync = true");
    let mut documents = Documents::default();
    documents.clusters.insert("one", redis.addresses()[..2].to_vec());
    documents.clusters.insert("slave", redis.addresses()[2..].to_vec());
    documents.vdisks.insert("a".to_owned(), Vdisk { cluster: "one", slave: Some("slave") });
    file.put(&place, &documents);
    let (first, second) = (place.server(&[]), place.server(&[]));
    documents.servers.insert("main", vec![first.addr()]);
    file.put(&place, &documents);
    let configuration = Configuration::open(Arc::new(FileSource::new(file.setting()))).await.unwrap();
    let lists = configuration.tlog_servers("main");
    let writer = Writer::begin(first.addr(), "a", Start::Continue, 1).await;
    writer.client.follow_servers(server_lists(lists));
    writer.acknowledges(50).await;
    let is_synced = |status: &serde_json::Value| {
        ["up_to_date", "syncing"].iter().any(|state| status["slaves"][0]["state"] == *state)
    };
    until(&first, "the first server keeps the slave", is_synced).await;

    documents.servers.insert("main", vec![second.addr()]);
    file.put(&place, &documents);
    until(&second, "the client is there", |status| status["vdisks"][0]["peer"].is_string()).await;
    assert_eq!(writer.client.server().as_deref(), Some(&*second.addr()));
    writer.acknowledges(50).await;
    let content = writer.stop().await;
    until(&second, "the second server keeps the slave", is_synced).await;
    content.check(&restored(&place, "a", &[]));
    // What the client had sent it last, it could not make durable any more: the log is the second one's.
    first.signal("-TERM");
    let _not_all_durable = first.wait();
    second.stop();
}
