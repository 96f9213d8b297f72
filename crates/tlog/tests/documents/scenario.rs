//! Two vdisks on two clusters: a store is replaced, a vdisk goes to the other cluster, a document makes no sense, the source is away, a
//! vdisk is removed. All the time both are written to, and the server is never restarted.

use std::time::{Duration, Instant};

use tlog_client::{Client, ClientOptions, EndCause, Event, Start};
use tlog_proto::VdiskId;
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{Documents, File, Source, is_whole_on, prepare, restored, until};
use crate::support::Place;
use crate::writer::Writer;

/// 2 + 2, three must hold what is acknowledged.
const SETTINGS: &str = "data-shards = 2\nparity-shards = 2\nflush-size = 5";
const AWAY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_changes_in_a_file_and_nothing_acknowledged_is_lost() {
    let place = Place::new();
    let file = File::new(&place);
    scenario(place, file).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_changes_in_etcd_and_nothing_acknowledged_is_lost() {
    scenario(Place::new(), crate::site::Etcd::new()).await;
}

async fn scenario(place: Place, mut source: impl Source) {
    let redis = RedisServers::start(9, &RedisOptions::durable());
    let addresses = redis.addresses();
    let (one, two, spare) = (addresses[..4].to_vec(), addresses[4..8].to_vec(), addresses[8].clone());
    let mut documents = Documents::default();
    documents.clusters.insert("one", one.clone());
    documents.clusters.insert("two", two.clone());
    documents.vdisk("a", "one");
    documents.vdisk("b", "one");
    prepare(&place, &source.setting(), SETTINGS);
    source.put(&place, &documents);
    let server = place.server(&[]);

    let unknown = VdiskId::new("c").unwrap();
    let refused = Client::connect(server.addr(), unknown, ClientOptions::default()).await.unwrap_err();
    assert!(refused.to_string().contains("does not know vdisk c"), "{refused}");

    let a = Writer::begin(server.addr(), "a", Start::Continue, 1).await;
    let b = Writer::begin(server.addr(), "b", Start::Continue, 2).await;
    a.acknowledges(100).await;
    b.acknowledges(100).await;

    // A store is replaced: filled, then counted; the old one may go for good.
    let mut replaced = one.clone();
    replaced[2] = spare;
    documents.clusters.insert("one", replaced.clone());
    source.put(&place, &documents);
    until(&server, "the new store counts", |status| {
        is_whole_on(status, "a", &replaced) && is_whole_on(status, "b", &replaced)
    })
    .await;
    redis[2].kill();
    a.acknowledges(100).await;
    b.acknowledges(100).await;

    // The log of b is to be on the other cluster: it is closed, and opened there. A new log is no place to go on in for a client that
    // knows what was durable; it says so, and its owner begins there with what is not acknowledged.
    documents.vdisk("b", "two");
    source.put(&place, &documents);
    let (ending, before, _ended) = b.ends().await;
    let EndCause::Gap { expected, last_flushed: None, .. } = ending.cause() else { panic!("{ending}") };
    let b = Writer::begin(server.addr(), "b", Start::At(*expected), 3).await;
    b.acknowledges(100).await;
    until(&server, "b is on the other cluster", |status| is_whole_on(status, "b", &two)).await;
    a.acknowledges(100).await;
    let old = replaced.join(",");
    before.check(&restored(&place, "b", &["--storage", &old]));

    // A document that makes no sense changes nothing.
    source.spoil(&place, &documents, "one");
    let told = until(&server, "the document is refused", |status| {
        !status["documents"]["problems"].as_array().unwrap().is_empty()
    });
    let told = told.await["documents"]["problems"][0].to_string();
    assert!(told.contains("dataStorage[0].address") && !told.contains("nowhere"), "{told}");
    a.acknowledges(100).await;
    b.acknowledges(100).await;
    source.put(&place, &documents);
    until(&server, "it makes sense again", |status| {
        status["documents"]["problems"].as_array().unwrap().is_empty()
    })
    .await;

    // The source being away changes nothing either.
    source.leave();
    let since = Instant::now();
    until(&server, "the source is away", |status| status["documents"]["away"].is_string()).await;
    while since.elapsed() < AWAY {
        a.acknowledges(10).await;
        b.acknowledges(10).await;
    }
    source.come_back();
    until(&server, "the source is back", |status| status["documents"]["away"].is_null()).await;
    a.acknowledges(100).await;

    // A vdisk is removed: what it had is durable, and nobody gets in any more.
    let mut events = a.client.events();
    documents.vdisks.remove("a");
    source.put(&place, &documents);
    loop {
        match events.next().await.unwrap() {
            Event::NotReconnected(error) if error.to_string().contains("does not know vdisk a") => break,
            _ => {}
        }
    }
    a.client.close().await;
    let (_, content, _) = a.ends().await;
    content.check(&restored(&place, "a", &["--storage", &old]));
    b.acknowledges(100).await;
    let content = b.stop().await;
    content.check(&restored(&place, "b", &[]));
    server.stop();
}
