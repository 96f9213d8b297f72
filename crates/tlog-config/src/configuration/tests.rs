//! What becomes of each change.

use super::*;
use crate::{Document, MemorySource, Snapshot};

const CLUSTER: &str = "dataStorage: [{address: host:1}, {address: host:2, db: 3}]";
const STATIC: &str = "{type: db, blockSize: 4096, size: 1}";

fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

/// A source with two clusters, tlog servers, and the vdisk `a` on the first of them.
fn source() -> MemorySource {
    let source = MemorySource::default();
    source.put("c1:cluster:conf:storage", CLUSTER);
    source.put("c2:cluster:conf:storage", "dataStorage: [{address: other:1}]");
    source.put("main:cluster:conf:tlog", "servers: [tlog-1:11211, tlog-2:11211]");
    source.put("a:vdisk:conf:static", STATIC);
    source.put("a:vdisk:conf:storage:tlog", "storageClusterID: c1");
    source.put("a:vdisk:conf:storage:nbd", "{storageClusterID: c2, tlogServerClusterID: main}");
    source
}

/// A configuration, and what it has applied.
struct Running {
    source: MemorySource,
    configuration: Configuration,
}

impl Running {
    async fn open(source: MemorySource) -> Self {
        let configuration = Configuration::open(Arc::new(source.clone())).await.unwrap();
        Self { source, configuration }
    }

    /// Puts documents, those with text, and removes the others, one after the other; answers when it has all come.
    async fn set(&self, documents: &[(&str, Option<&str>)]) {
        for (key, text) in documents {
            match text {
                Some(text) => self.source.put(key, text),
                None => self.source.remove(key),
            }
        }
        self.configuration.reload().await;
    }

    fn config(&self, name: &str) -> Option<Arc<VdiskConfig>> {
        self.configuration.vdisk(&vdisk(name)).borrow().clone()
    }

    /// The clusters of a vdisk's log.
    fn log(&self, name: &str) -> Option<(String, Option<String>)> {
        let config = self.config(name).unwrap();
        config
            .tlog
            .as_ref()
            .map(|log| (log.cluster.id.clone(), log.slave.as_ref().map(|slave| slave.id.clone())))
    }

    fn problems(&self) -> Vec<String> {
        self.configuration.problems().iter().map(ToString::to_string).collect()
    }
}

#[tokio::test]
async fn a_vdisk_gets_what_its_documents_say() {
    let running = Running::open(source()).await;
    let config = running.config("a").unwrap();
    assert_eq!((config.vdisk_type, config.block_size, config.size), (VdiskType::Db, 4096, 1 << 30));
    assert!(!config.read_only);
    let stores: Vec<_> = config.tlog.as_ref().unwrap().cluster.data.iter().map(ToString::to_string).collect();
    assert_eq!(stores, ["redis://host:1/0", "redis://host:2/3"]);
    let nbd = config.nbd.as_ref().unwrap();
    assert_eq!(nbd.storage_cluster_id, "c2");
    assert_eq!(**nbd.tlog_servers.as_ref().unwrap(), ["tlog-1:11211", "tlog-2:11211"]);
    assert_eq!(**running.configuration.vdisks().borrow(), BTreeSet::from([vdisk("a")]));
    assert!(running.problems().is_empty());
    assert!(running.configuration.vdisk(&vdisk("b")).borrow().is_none());
}

#[tokio::test]
async fn an_invalid_document_never_replaces_a_valid_one() {
    let running = Running::open(source()).await;
    let before = running.config("a").unwrap();
    let receiver = running.configuration.vdisk(&vdisk("a"));
    running
        .set(&[
            ("a:vdisk:conf:static", Some("{type: db, blockSize: 4097, size: 1}")),
            ("a:vdisk:conf:storage:tlog", Some("storageClusterId: c2")),
            ("c1:cluster:conf:storage", Some("dataStorage: []")),
            ("main:cluster:conf:tlog", Some("[")),
            ("b:vdisk:conf:static", Some("{}")),
            ("../b:vdisk:conf:static", Some(STATIC)),
        ])
        .await;
    assert_eq!(running.config("a").unwrap(), before);
    assert!(!receiver.has_changed().unwrap());
    assert!(running.config("b").is_none());
    let problems = running.problems();
    let expected = [
        "c1:cluster:conf:storage:1:14: dataStorage: it must be a list of at least one store",
        "main:cluster:conf:tlog:2:1: this is not YAML",
        "a:vdisk:conf:storage:tlog:1:1: there is no such field, did you mean storageClusterID?",
        "a:vdisk:conf:storage:tlog:1:1: the field storageClusterID is missing",
        "a:vdisk:conf:static:1:23: blockSize: a block size is a power of two",
        "b:vdisk:conf:static:1:1: the field type is missing",
        "b:vdisk:conf:static:1:1: the field blockSize is missing",
        "b:vdisk:conf:static:1:1: the field size is missing",
        "../b:vdisk:conf:static:1:1: no vdisk, cluster or server can have this name",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem} is not {expected}");
    }
    // And the next valid one counts.
    running.set(&[("a:vdisk:conf:static", Some("{type: boot, blockSize: 512, size: 0.5}"))]).await;
    assert_eq!(running.config("a").unwrap().size, 1 << 29);
    assert!(receiver.has_changed().unwrap());
}

#[tokio::test]
async fn a_reference_that_leads_nowhere_does_not_count_until_it_leads_somewhere() {
    let running = Running::open(source()).await;
    let check = |log: (&str, Option<&str>), problems: &[&str]| {
        assert_eq!(running.log("a"), Some((log.0.into(), log.1.map(Into::into))));
        let found = running.problems();
        assert_eq!(found.len(), problems.len(), "{found:?}");
        assert!(found.iter().zip(problems).all(|(found, expected)| found.ends_with(expected)), "{found:?}");
    };
    let tlog = "a:vdisk:conf:storage:tlog";
    running.set(&[(tlog, Some("storageClusterID: c9"))]).await;
    check(("c1", None), &["storageClusterID: there is no storage cluster c9"]);
    // All of a document or nothing.
    running.set(&[(tlog, Some("{storageClusterID: c2, slaveStorageClusterID: c9}"))]).await;
    check(("c1", None), &["slaveStorageClusterID: there is no storage cluster c9"]);
    // What is in force is still followed.
    running.set(&[("c1:cluster:conf:storage", Some("dataStorage: [{address: moved:1}]"))]).await;
    let config = running.config("a").unwrap();
    assert_eq!(config.tlog.as_ref().unwrap().cluster.data[0].to_string(), "redis://moved:1/0");
    running.set(&[("c9:cluster:conf:storage", Some(CLUSTER))]).await;
    check(("c2", Some("c9")), &[]);
}

#[tokio::test]
async fn a_cluster_that_goes_away_stays_for_those_who_use_it() {
    let running = Running::open(source()).await;
    let before = running.config("a").unwrap();
    let receiver = running.configuration.vdisk(&vdisk("a"));
    running.set(&[("c1:cluster:conf:storage", None), ("main:cluster:conf:tlog", None)]).await;
    assert!(running.configuration.storage_cluster("c1").borrow().is_none());
    assert!(running.configuration.tlog_servers("main").borrow().is_none());
    assert_eq!(running.config("a").unwrap(), before);
    assert!(!receiver.has_changed().unwrap());
    assert_eq!(running.problems().len(), 2);
    // A change of something else does not lose it either.
    running.set(&[("a:vdisk:conf:static", Some("{type: db, blockSize: 512, size: 1}"))]).await;
    let config = running.config("a").unwrap();
    assert_eq!((config.block_size, &config.tlog, &config.nbd), (512, &before.tlog, &before.nbd));
    // When it is back it is followed again.
    running.set(&[("c1:cluster:conf:storage", Some("dataStorage: [{address: new:1}]"))]).await;
    let config = running.config("a").unwrap();
    assert_eq!(config.tlog.as_ref().unwrap().cluster.data[0].to_string(), "redis://new:1/0");
}

#[tokio::test]
async fn a_vdisk_is_there_as_long_as_its_static_document_is() {
    let running = Running::open(source()).await;
    let (mut receiver, names) = (running.configuration.vdisk(&vdisk("a")), running.configuration.vdisks());
    running.set(&[("a:vdisk:conf:storage:tlog", None)]).await;
    assert_eq!(running.log("a"), None);
    assert!(!names.has_changed().unwrap());
    receiver.borrow_and_update();
    running.set(&[("a:vdisk:conf:static", None)]).await;
    assert!(receiver.borrow_and_update().is_none());
    assert!(names.borrow().is_empty());
    let problems = running.problems();
    assert_eq!(
        problems,
        [
            "a:vdisk:conf:storage:nbd: there is no vdisk a: its static document (type, blockSize, size) is missing"
        ]
    );
    // It comes back without anything of what it was before.
    running.set(&[("a:vdisk:conf:static", Some(STATIC))]).await;
    assert_eq!(running.log("a"), None);
    assert!(running.config("a").unwrap().nbd.is_some());
}

#[tokio::test]
async fn documents_that_come_in_any_order_settle_on_the_same() {
    let documents = [
        ("a:vdisk:conf:static", STATIC),
        ("a:vdisk:conf:storage:tlog", "storageClusterID: c1"),
        ("c1:cluster:conf:storage", CLUSTER),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let running = Running::open(MemorySource::default()).await;
        for index in order {
            let (key, text) = documents[index];
            running.set(&[(key, Some(text))]).await;
            // Until everything is there, there is no log, and never half of one.
            if let Some(config) = running.config("a") {
                assert!(config.tlog.is_none() || index == order[2]);
            }
        }
        assert_eq!(running.log("a"), Some(("c1".into(), None)), "{order:?}");
        assert!(running.problems().is_empty());
    }
}

#[tokio::test]
async fn the_servers_of_a_vdisk_and_of_a_cluster_are_followed() {
    let running = Running::open(source()).await;
    let (of_vdisk, of_cluster) =
        (running.configuration.vdisk(&vdisk("a")), running.configuration.tlog_servers("main"));
    let storage = running.configuration.storage_cluster("c2");
    running.set(&[("main:cluster:conf:tlog", Some("servers: ['[::1]:7']"))]).await;
    let servers = of_vdisk.borrow().as_ref().unwrap().nbd.as_ref().unwrap().tlog_servers.clone().unwrap();
    assert_eq!(*servers, ["[::1]:7"]);
    assert_eq!(*of_cluster.borrow(), Some(servers));
    assert!(!storage.has_changed().unwrap());
    // Written otherwise and saying the same, it is no change.
    let receiver = running.configuration.tlog_servers("main");
    running.set(&[("main:cluster:conf:tlog", Some("# moved\nservers:\n - \"[::1]:7\"\n"))]).await;
    assert!(!receiver.has_changed().unwrap());
}

#[tokio::test]
async fn a_source_that_is_away_changes_nothing() {
    let running = Running::open(source()).await;
    let before = running.config("a").unwrap();
    running.source.set_away();
    running.configuration.reload().await;
    let health = running.configuration.health();
    assert_eq!(health.away.as_ref().unwrap().why, "it is away");
    assert_eq!((health.vdisks, health.problems.len()), (1, 0));
    running.source.remove("a:vdisk:conf:static");
    running.configuration.reload().await;
    assert_eq!(running.config("a").unwrap(), before);
    assert_eq!(running.configuration.health().away.unwrap().since, health.away.unwrap().since);
    running.source.set_back();
    running.configuration.reload().await;
    assert!(running.configuration.health().away.is_none());
    assert!(running.config("a").is_none());
    // From the start it is an error.
    running.source.set_away();
    let error = Configuration::open(Arc::new(running.source.clone())).await.unwrap_err();
    assert_eq!(error.to_string(), "the configuration cannot be read: it is away");
}

#[tokio::test]
async fn changes_come_without_being_asked_for_and_end_with_the_configuration() {
    let Running { source, configuration } = Running::open(source()).await;
    let mut receiver = configuration.vdisk(&vdisk("a"));
    source.remove("a:vdisk:conf:static");
    receiver.changed().await.unwrap();
    assert!(receiver.borrow_and_update().is_none());
    drop((configuration.clone(), configuration));
    receiver.changed().await.unwrap_err();
}

#[tokio::test]
async fn pools_of_stores_get_the_cluster_of_a_log_and_keep_the_last_one() {
    let running = Running::open(source()).await;
    let mut clusters = running.configuration.tlog_cluster(&vdisk("a")).await.unwrap();
    assert_eq!(clusters.borrow_and_update().id, "c1");
    running.set(&[("a:vdisk:conf:storage:tlog", Some("storageClusterID: c2"))]).await;
    assert_eq!(clusters.borrow_and_update().id, "c2");
    // What its pool does not use does not disturb it.
    running.set(&[("a:vdisk:conf:static", Some("{type: tmp, blockSize: 4096, size: 1}"))]).await;
    running.set(&[("a:vdisk:conf:storage:tlog", None)]).await;
    assert!(!clusters.has_changed().unwrap());
    let error = running.configuration.tlog_cluster(&vdisk("a")).await.unwrap_err();
    assert_eq!(error, ClusterSourceError::NoCluster(vdisk("a")));
    running.set(&[("a:vdisk:conf:static", None)]).await;
    assert!(!clusters.has_changed().unwrap());
    let error = running.configuration.tlog_cluster(&vdisk("a")).await.unwrap_err();
    assert_eq!(error, ClusterSourceError::UnknownVdisk(vdisk("a")));
}

/// 1,000 vdisks on 50 clusters, `v0` to `v19` on the first.
fn many() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut put = |key: String, text: &str| {
        snapshot.documents.insert(DocumentKey::parse(&key).unwrap(), Document::parse(&key, text));
    };
    for cluster in 0..50 {
        put(format!("c{cluster}:cluster:conf:storage"), CLUSTER);
    }
    for index in 0..1000 {
        put(format!("v{index}:vdisk:conf:static"), STATIC);
        let tlog = format!("storageClusterID: c{}", index / 20);
        put(format!("v{index}:vdisk:conf:storage:tlog"), &tlog);
        put(format!("v{index}:vdisk:conf:storage:nbd"), "storageClusterID: c49");
    }
    snapshot
}

#[test]
fn a_change_costs_no_work_for_vdisks_that_it_does_not_touch() {
    let mut state = State::default();
    state.handle_all(many());
    let mut check = |documents: &[(&str, &str)], touched: usize| {
        let before = state.recomposed();
        let mut snapshot = many();
        for (key, text) in documents {
            snapshot.documents.insert(DocumentKey::parse(key).unwrap(), Document::parse(key, text));
        }
        // As a part of everything, as a file brings it, and alone, as etcd does.
        let effects = state.handle_all(snapshot);
        assert_eq!((effects.vdisks.len(), state.recomposed() - before), (touched, touched as u64));
        let change = |(key, text): &(&str, &str)| {
            (DocumentKey::parse(key).unwrap(), Some(Document::parse(key, &text.replace("4096", "8192"))))
        };
        let _ = state.handle_all(many());
        let before = state.recomposed();
        let effects = state.handle_changes(documents.iter().map(change));
        assert_eq!((effects.vdisks.len(), state.recomposed() - before), (touched, touched as u64));
        let _ = state.handle_all(many());
    };
    check(&[], 0);
    check(&[("v7:vdisk:conf:static", "{type: tmp, blockSize: 4096, size: 2}")], 1);
    check(&[("c0:cluster:conf:storage", "dataStorage: [{address: new:1}]")], 20);
    check(&[("new:cluster:conf:storage", CLUSTER)], 0);
    check(&[("v7:vdisk:conf:storage:tlog", "storageClusterID: c1"), ("v7:vdisk:conf:static", STATIC)], 1);
}

#[tokio::test]
async fn a_slave_that_is_where_the_disk_or_its_log_is_is_a_problem() {
    let running = Running::open(source()).await;
    let (tlog, nbd) = ("a:vdisk:conf:storage:tlog", "a:vdisk:conf:storage:nbd");
    let check = async |slave: &str, nbd_cluster: &str, problem: Option<&str>| {
        let text = format!("{{storageClusterID: c1, slaveStorageClusterID: {slave}}}");
        running
            .set(&[(tlog, Some(&text)), (nbd, Some(&format!("{{storageClusterID: {nbd_cluster}}}")))])
            .await;
        let found = running.problems();
        assert_eq!(found.len(), usize::from(problem.is_some()), "{found:?}");
        assert!(
            found.iter().all(|found| problem.is_some_and(|problem| found.contains(problem))),
            "{found:?}"
        );
        // The log is served all the same.
        assert_eq!(running.log("a"), Some(("c1".into(), Some(slave.into()))));
    };
    running.set(&[("c3:cluster:conf:storage", Some("dataStorage: [{address: third:1}]"))]).await;
    check("c3", "c2", None).await;
    check("c2", "c2", Some("another cluster than nbd.storageClusterID: it is the same one")).await;
    check("c1", "c2", Some("another cluster than tlog.storageClusterID: it is the same one")).await;
    // The same servers by another name, and another database on one of them.
    let same = "{dataStorage: [{address: third:1}], metadataStorage: {address: OTHER:1}}";
    running.set(&[("c3:cluster:conf:storage", Some(same))]).await;
    check("c3", "c2", Some("both have redis://OTHER:1/0")).await;
    running.set(&[("c3:cluster:conf:storage", Some("dataStorage: [{address: host:2, db: 4}]"))]).await;
    check("c3", "c2", None).await;
}
