//! Many vdisks in one source.

use std::time::{Duration, Instant};

use hyper::Method;
use tlog::admin_client::ask;
use tlog_client::{Client, ClientOptions};
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{Documents, File, Source, Vdisk, prepare, until};
use crate::support::{Place, Server};

const VDISKS: usize = 1000;

async fn counter(server: &Server, name: &str) -> f64 {
    let text = ask(&server.admin(), Method::GET, "/metrics").await.unwrap();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.map_or(0.0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// How long the server takes to be there is printed; that it is not too long is for people to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_among_a_thousand_vdisks_is_work_for_one() {
    let place = Place::new();
    let redis = RedisServers::start(4, &RedisOptions::durable());
    let mut file = File::new(&place);
    prepare(&place, &file.setting(), "data-shards = 1\nparity-shards = 1\nslave-sync = true");
    let mut documents = Documents::default();
    documents.clusters.insert("one", redis.addresses()[..2].to_vec());
    documents.clusters.insert("two", redis.addresses()[2..].to_vec());
    documents.clusters.insert("slave", vec![format!("{}@1", redis.addresses()[0])]);
    for number in 0..VDISKS {
        let vdisk = Vdisk { cluster: "one", slave: Some("slave") };
        documents.vdisks.insert(format!("vd-{number}"), vdisk);
    }
    file.put(&place, &documents);
    let began = Instant::now();
    let server = place.server(&[]);
    println!("{VDISKS} vdisks: listening after {:?}", began.elapsed());
    let vdisk = VdiskId::new("vd-999").unwrap();
    let client = Client::connect(server.addr(), vdisk, ClientOptions::default()).await.unwrap();
    client.set(BlockIndex::new(1).unwrap(), vec![1; 512]).await.unwrap();
    client.flush().await.unwrap();
    println!("{VDISKS} vdisks: first block durable after {:?}", began.elapsed());
    let before = counter(&server, "tlog_config_vdisks_changed_total").await;
    documents.vdisk("vd-7", "two");
    file.put(&place, &documents);
    until(&server, "the change was seen", |status| status["documents"]["vdisks"] == VDISKS).await;
    let changed = async {
        while counter(&server, "tlog_config_vdisks_changed_total").await == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), changed).await.unwrap();
    assert_eq!(counter(&server, "tlog_config_vdisks_changed_total").await, before + 1.0);
    client.set(BlockIndex::new(2).unwrap(), vec![2; 512]).await.unwrap();
    client.wait_nbd_slave_sync(Duration::from_secs(60)).await.unwrap();
    client.close_after_flush().await.unwrap();
    server.stop();
}
