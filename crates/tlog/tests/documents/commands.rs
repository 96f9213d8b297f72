//! The tool, where vdisks and clusters are in documents.

use std::time::Duration;

use serde_json::Value;
use tlog_testbed::{RedisOptions, RedisServers};

use crate::site::{Documents, File, Source, prepare, write};
use crate::support::Place;

const SETTINGS: &str = "data-shards = 1\nparity-shards = 1\nflush-size = 5";

#[test]
fn a_check_says_everything_that_is_wrong_and_no_password() {
    let place = Place::new();
    let text = "storageClusters:\n  one:\n    dataStorage:\n      - address: redis://:hush@h:1\n      - address: 'redis://:hush@'\n\
                vdisks:\n  a: { type: bd, blockSize: 100, size: 1, tlog: { storageClusterID: tow } }\n";
    write(&place, "vdisks.yaml", text);
    let output = place.tlog(&["config", "check", "vdisks.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "vdisks.yaml:5:18: storageClusters.one.dataStorage[1].address",
        "boot, db, cache or tmp",
        "a block size is a power of two",
        "there is no storage cluster tow",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("hush"));

    let text = "storageClusters: { one: { dataStorage: [{ address: 'h:1' }] } }\n\
                vdisks: { a: { type: db, blockSize: 512, size: 1, tlog: { storageClusterID: one } } }\n";
    write(&place, "vdisks.yaml", text);
    let output = place.tlog(&["config", "check", "vdisks.yaml", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problem = said["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("storage cluster one has 1 data stores") && problem.contains("add 5"),
        "{problem}"
    );
    let said = place.tlog_ok(&["config", "check", "vdisks.yaml", "-k", "1", "-m", "0"]);
    assert!(
        said.contains(
            "vdisks.yaml is right: 1 vdisks; storage clusters with logs: one (1+0, write quorum 1)"
        ),
        "{said}"
    );
    assert!(place.tlog_fails(&["config", "check", "none.yaml"]).contains("none.yaml cannot be read"));
}

#[cfg(feature = "etcd")]
#[test]
fn documents_are_imported_into_etcd_and_checked_there() {
    let place = Place::new();
    let etcd = tlog_testbed::EtcdProcess::start(tlog_testbed::EtcdOptions::default());
    let url = etcd.url();
    let mut documents = Documents::default();
    documents.clusters.insert("one", vec!["h:1".to_owned(), "h:2".to_owned()]);
    documents.vdisk("a", "one");
    documents.vdisk("b", "one");
    write(&place, "vdisks.yaml", &documents.yaml());
    let said = place.tlog_ok(&["config", "import", "vdisks.yaml", "--etcd", &url, "--dry-run"]);
    assert!(
        said.contains("would be put: one:cluster:conf:storage") && said.contains("nothing was done"),
        "{said}"
    );
    let said = place.tlog_ok(&["config", "import", "vdisks.yaml", "--etcd", &url]);
    assert!(said.contains("5 put, 0 as they were, 0 deleted"), "{said}");
    let said = place.tlog_ok(&["config", "check", &url, "-k", "1", "-m", "1"]);
    assert!(said.contains("is right: 2 vdisks"), "{said}");
    documents.vdisks.remove("b");
    write(&place, "vdisks.yaml", &documents.yaml());
    let said = place.tlog_ok(&["config", "import", "vdisks.yaml", "--etcd", &url]);
    assert!(
        said.contains("0 put, 3 as they were")
            && said.contains("2 documents are in etcd and not in the file"),
        "{said}"
    );
    let said = place.tlog_ok(&["config", "import", "vdisks.yaml", "--etcd", &url, "--prune", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["deleted"].as_array().unwrap().len(), 2);
    write(&place, "vdisks.yaml", "vdisks: { a: {} }");
    let said = place.tlog_fails(&["config", "import", "vdisks.yaml", "--etcd", &url]);
    assert!(said.contains("nothing was written") && said.contains("blockSize"), "{said}");
    etcd.kill();
    let said = place.tlog_fails(&["config", "check", &url]);
    assert!(said.contains("etcd at") && said.contains("cannot be reached"), "{said}");
}

#[test]
fn every_command_finds_a_vdisk_by_its_documents_and_a_disk_is_replayed_into_another_cluster() {
    let place = Place::new();
    let redis = RedisServers::start(7, &RedisOptions::durable());
    let addresses = redis.addresses();
    let mut file = File::new(&place);
    prepare(&place, &file.setting(), SETTINGS);
    let mut documents = Documents::default();
    documents.clusters.insert("one", addresses[..2].to_vec());
    documents.clusters.insert("two", addresses[2..4].to_vec());
    documents.clusters.insert("spare", addresses[4..].to_vec());
    documents.vdisk("a", "one");
    documents.vdisk("b", "two");
    file.put(&place, &documents);
    let server = place.server(&[]);
    documents.servers.insert("main", vec![server.addr()]);
    file.put(&place, &documents);
    let image: Vec<u8> = (0..64 * 512u32).map(|at| (at / 512 + at % 7 + 1) as u8).collect();
    let image_file = write(&place, "disk.img", "");
    std::fs::write(&image_file, &image).unwrap();
    for vdisk in ["a", "b"] {
        // Neither server nor block size is said: the documents have them.
        let said: Value =
            serde_json::from_str(&place.tlog_ok(&["record", vdisk, "disk.img", "--json"])).unwrap();
        assert_eq!(said["block_size"], 512);
    }
    let said = place.tlog_ok(&["vdisks"]);
    assert!(said.contains("storage cluster one") && said.contains("storage cluster two"), "{said}");
    place.tlog_ok(&["verify", "b"]);
    assert!(place.tlog_ok(&["history", "a"]).contains("64"));
    assert!(place.tlog_fails(&["history", "c"]).contains("vdisk c is not in the configuration"));
    assert!(place.tlog_fails(&["slave", "status", "a"]).contains("tlog.slaveStorageClusterID"));

    // Into three servers, from a log on two stores.
    let said = place.tlog_ok(&["replay", "a", "--to-cluster", "spare", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["blocks"], &said["resumed"]), (&64.into(), &false.into()));
    let stored = |index: usize| {
        let client = redis::Client::open(format!("redis://{}/", addresses[4 + index % 3])).unwrap();
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(10)).unwrap();
        let data: Vec<u8> =
            redis::cmd("HGET").arg("nondedup:a").arg(index.to_string()).query(&mut connection).unwrap();
        data
    };
    (0..64)
        .for_each(|index| assert_eq!(stored(index), image[index * 512..(index + 1) * 512], "block {index}"));
    let said = place.tlog_ok(&["replay", "a", "--to-cluster", "spare"]);
    assert!(said.contains("held it already"), "{said}");
    let said = place.tlog_fails(&["replay", "a", "--to-cluster", "spare", "--sequence", "10"]);
    assert!(said.contains("already") && said.contains("--overwrite"), "{said}");
    let said =
        place.tlog_ok(&["replay", "a", "--to", &addresses[4..].join(","), "--sequence", "10", "--overwrite"]);
    assert!(said.contains("sequence 10") && said.contains("10 blocks"), "{said}");
    assert!(place.tlog_fails(&["replay", "a", "--to-cluster", "none"]).contains("no storage cluster none"));
    let said = place.tlog_fails(&["replay", "a", "--to", "file:/tmp/x"]);
    assert!(said.contains("Redis"), "{said}");
    place.tlog_ok(&["delete", "b", "--yes"]);
    server.stop();
}
