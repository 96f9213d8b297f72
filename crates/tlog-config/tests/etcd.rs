//! Documents in a real etcd.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // tests want to fail, loudly
#![cfg(feature = "etcd")]

mod support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Running, vdisk};
use tlog_config::{
    ClusterSource, Configuration, ConfigurationError, DocumentSource, EtcdFault, EtcdOptions, ImportOptions,
    ImportReport, Secret, SourceAddress, SourceError, check, import, open_source,
};
use tlog_testbed::{Authority, EtcdOptions as Start, EtcdProcess, ReservedPort, Tls};

const CLUSTER: &str = "dataStorage: [{address: 'host:1'}]";

fn size(gib: u64) -> String {
    format!("{{type: db, blockSize: 4096, size: {gib}}}")
}

fn source(addresses: &str, options: &EtcdOptions) -> Arc<dyn DocumentSource> {
    open_source(&SourceAddress::parse(addresses).unwrap(), options).unwrap()
}

/// An etcd with `a` of one GiB.
fn etcd() -> EtcdProcess {
    let etcd = EtcdProcess::start(Start::default());
    put_vdisk(&etcd, "a", 1);
    etcd
}

fn put_vdisk(etcd: &EtcdProcess, name: &str, gib: u64) {
    etcd.cli(&["put", &format!("{name}:vdisk:conf:static"), &size(gib)]);
}

async fn open(etcd: &EtcdProcess) -> Running {
    Running::open(source(&etcd.url(), &EtcdOptions::default())).await
}

async fn import_text(etcd: &EtcdProcess, text: &str, options: ImportOptions) -> ImportReport {
    let SourceAddress::Etcd(endpoints) = SourceAddress::parse(&etcd.url()).unwrap() else { panic!() };
    import("vdisks.yaml", text, &endpoints, &EtcdOptions::default(), options).await.unwrap()
}

#[tokio::test]
async fn what_is_put_and_deleted_is_followed_and_other_keys_are_ignored() {
    let etcd = etcd();
    etcd.cli(&["put", "/registry/pods/x", "\u{1}binary"]);
    let mut running = open(&etcd).await;
    assert_eq!(running.sizes(), (1, 0));
    put_vdisk(&etcd, "b", 2);
    running.until_sizes(1, 2).await;
    etcd.cli(&["put", "c:cluster:conf:storage", CLUSTER]);
    etcd.cli(&["put", "a:vdisk:conf:storage:tlog", "storageClusterID: c"]);
    running.until("a log", |running| running.config("a").unwrap().tlog.is_some()).await;
    let clusters = running.configuration.tlog_cluster(&vdisk("a")).await.unwrap();
    assert_eq!(clusters.borrow().data[0].to_string(), "redis://host:1/0");
    etcd.cli(&["put", "a:vdisk:conf:static", "{type: db, blockSize: 4096, size: none}"]);
    let problems = running.until_problems(1).await;
    assert!(
        problems[0].starts_with("a:vdisk:conf:static:1:35: size: it must be a number of GiB"),
        "{problems:?}"
    );
    assert_eq!(running.sizes(), (1, 2));
    etcd.cli(&["del", "a:vdisk:conf:static"]);
    running.until_sizes(0, 2).await;
    assert_eq!(running.health().revision, etcd.revision());
    assert_eq!(check(&*source(&etcd.url(), &EtcdOptions::default())).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_next_server_is_asked_where_the_first_is_not_there() {
    let (etcd, nobody) = (etcd(), ReservedPort::new());
    let addresses = format!("127.0.0.1:{},{}", nobody.number(), etcd.address());
    let mut running = Running::open(source(&addresses, &EtcdOptions::default())).await;
    put_vdisk(&etcd, "b", 2);
    running.until_sizes(1, 2).await;
    let nobody = format!("http://127.0.0.1:{}", nobody.number());
    let error = source(&nobody, &EtcdOptions::default()).get().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("etcd at {nobody} cannot be reached: ")), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn an_etcd_that_is_away_changes_nothing_and_what_changed_meanwhile_is_found() {
    let etcd = etcd();
    let mut running = open(&etcd).await;
    etcd.kill();
    let why = running.until_away().await;
    assert!(why.contains("cannot be reached"), "{why}");
    assert_eq!(running.sizes(), (1, 0));
    etcd.restart();
    running.until_back().await;
    put_vdisk(&etcd, "b", 2);
    running.until_sizes(1, 2).await;
    // Set up anew, with revisions that begin again: that it has nothing removes nothing.
    etcd.kill();
    running.until_away().await;
    etcd.restart_empty();
    let problems = running.until_problems(1).await;
    assert!(problems[0].contains("as if it had been set up anew"), "{problems:?}");
    assert_eq!(running.sizes(), (1, 2));
    // What is put there counts, one by one; and all of it once it is read as a whole.
    put_vdisk(&etcd, "b", 3);
    running.until_sizes(1, 3).await;
    running.configuration.reload().await;
    assert_eq!((running.sizes(), running.configuration.problems()), ((0, 3), vec![]));
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed_and_a_compaction_meanwhile_loses_nothing() {
    let etcd = etcd();
    let mut running = open(&etcd).await;
    // It is followed, not only looked for, when it begins to hang.
    put_vdisk(&etcd, "b", 1);
    running.until_sizes(1, 1).await;
    etcd.stop();
    running.until_away().await;
    etcd.cont();
    running.until_back().await;
    // Killed, so that its connections are gone, and compacted before the watch is back.
    etcd.kill();
    running.until_away().await;
    etcd.restart();
    put_vdisk(&etcd, "a", 2);
    put_vdisk(&etcd, "b", 2);
    etcd.cli(&["del", "b:vdisk:conf:static"]);
    put_vdisk(&etcd, "a", 5);
    etcd.cli(&["compact", &etcd.revision().to_string()]);
    running.until_sizes(5, 0).await;
    put_vdisk(&etcd, "b", 3);
    running.until_sizes(5, 3).await;
}

#[tokio::test]
async fn a_watch_from_a_revision_that_was_compacted_reads_everything() {
    let etcd = etcd();
    let source = source(&etcd.url(), &EtcdOptions::default());
    let snapshot = source.get().await.unwrap();
    put_vdisk(&etcd, "b", 2);
    put_vdisk(&etcd, "b", 3);
    etcd.cli(&["compact", &etcd.revision().to_string()]);
    // As `Configuration` does when that happens between its two calls.
    let mut watch = source.watch(snapshot.revision);
    let tlog_config::SourceEvent::All(all) = watch.next().await else { panic!() };
    assert_eq!(all.documents.len(), 2);
    assert_eq!(all.revision, etcd.revision());
}

#[tokio::test]
async fn a_reload_is_in_force_when_it_is_answered() {
    let etcd = etcd();
    let running = open(&etcd).await;
    put_vdisk(&etcd, "b", 2);
    running.configuration.reload().await;
    assert_eq!(running.sizes(), (1, 2));
}

#[tokio::test]
async fn users_are_let_in_with_their_password_and_others_are_not() {
    let etcd = EtcdProcess::start(Start { root_password: Some("open sesame".into()), ..Start::default() });
    put_vdisk(&etcd, "a", 1);
    etcd.cli(&["role", "add", "reader"]);
    etcd.cli(&["role", "grant-permission", "reader", "read", "", "--from-key"]);
    etcd.cli(&["user", "add", "anna:secret"]);
    etcd.cli(&["user", "grant-role", "anna", "reader"]);
    etcd.cli(&["user", "add", "nobody:secret"]);
    let login = |user: &str, password: &str| EtcdOptions {
        user: Some(user.into()),
        password: Some(Secret::new(password)),
        ..EtcdOptions::default()
    };
    for options in [login("root", "open sesame"), login("anna", "secret")] {
        let mut running = Running::open(source(&etcd.url(), &options)).await;
        put_vdisk(&etcd, "b", 2);
        running.until_sizes(1, 2).await;
        etcd.cli(&["del", "b:vdisk:conf:static"]);
        running.until_sizes(1, 0).await;
        // Whoever is let in once is let in again.
        etcd.restart();
        put_vdisk(&etcd, "b", 3);
        running.until_sizes(1, 3).await;
        etcd.cli(&["del", "b:vdisk:conf:static"]);
    }
    let refused = async |options: &EtcdOptions, expected: &str| {
        let error = Configuration::open(source(&etcd.url(), options)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains("wrong") && !text.contains("secret"), "{text}");
        let ConfigurationError::Source(SourceError::Etcd { fault, .. }) = error else { panic!("{text}") };
        fault
    };
    let fault = refused(&login("root", "wrong"), "refuses user or password").await;
    assert!(matches!(fault, EtcdFault::Credentials(_)));
    refused(&EtcdOptions::default(), "refuses user or password").await;
    let fault = refused(&login("nobody", "secret"), "does not permit this user").await;
    assert!(matches!(fault, EtcdFault::NotPermitted(_)));
}

#[tokio::test]
async fn tls_is_spoken_with_certificates_of_both_sides() {
    let tls = Tls { client_certificates: true, ..Tls::default() };
    let etcd = EtcdProcess::start(Start { tls: Some(tls), ..Start::default() });
    put_vdisk(&etcd, "a", 1);
    let files = etcd.tls().unwrap();
    let options = EtcdOptions {
        ca_file: Some(files.ca.clone()),
        certificate_file: Some(files.client_certificate.clone()),
        key_file: Some(files.client_key.clone()),
        ..EtcdOptions::default()
    };
    // Without a scheme the certificates say that it is TLS.
    for address in [etcd.url(), etcd.address()] {
        let mut running = Running::open(source(&address, &options)).await;
        put_vdisk(&etcd, "b", 2);
        running.until_sizes(1, 2).await;
        etcd.cli(&["del", "b:vdisk:conf:static"]);
    }
    let refused = async |options: &EtcdOptions, address: &str, expected: &str| {
        let error = source(address, options).get().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let without = EtcdOptions { certificate_file: None, key_file: None, ..options.clone() };
    refused(&without, &etcd.url(), "cannot be reached").await;
    let other = tempfile::tempdir().unwrap();
    let other = Authority::make(other.path(), "other");
    let wrong = EtcdOptions { ca_file: Some(other.certificate().to_owned()), ..options.clone() };
    refused(&wrong, &etcd.url(), "invalid peer certificate").await;
    refused(&EtcdOptions::default(), &etcd.url(), "invalid peer certificate").await;
    let missing = EtcdOptions { ca_file: Some("no-such-file.pem".into()), ..options.clone() };
    refused(&missing, &etcd.url(), "no-such-file.pem cannot be read").await;
    // What makes no sense is told before anything is reached.
    let http = SourceAddress::parse(&format!("http://{}", etcd.address())).unwrap();
    assert!(open_source(&http, &options).unwrap_err().to_string().contains("write https://"));
    let half = EtcdOptions { key_file: None, ..options };
    assert!(open_source(&http, &half).unwrap_err().to_string().contains("go together"));
}

#[tokio::test]
async fn after_any_history_of_changes_and_faults_what_is_there_counts() {
    let seed = 7;
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let etcd = etcd();
    let mut running = open(&etcd).await;
    let mut sizes = [1, 0];
    for step in 0..80 {
        let which = random.random_range(0..2);
        let (name, gib) = (["a", "b"][which], random.random_range(0..1000));
        match gib {
            0..200 => drop(etcd.cli(&["del", &format!("{name}:vdisk:conf:static")])),
            _ => put_vdisk(&etcd, name, gib),
        }
        sizes[which] = if gib < 200 { 0 } else { gib };
        match random.random_range(0..20) {
            0 => etcd.restart(),
            1 => etcd.kill(),
            2 => drop(etcd.cli(&["compact", &etcd.revision().to_string()])),
            3 => running.configuration.reload().await,
            4 => {
                etcd.restart();
                let key = format!("{name}:vdisk:conf:static");
                etcd.cli(&["put", &key, "[nonsense"]);
                put_vdisk(&etcd, name, 1);
                sizes[which] = 1;
                etcd.cli(&["compact", &etcd.revision().to_string()]);
            }
            _ => {}
        }
        if etcd.pid().is_none() {
            etcd.restart();
        }
        if step % 10 == 0 {
            running.until_sizes(sizes[0], sizes[1]).await;
        }
    }
    running.until_sizes(sizes[0], sizes[1]).await;
    running.until_problems(0).await;
}

/// A file with so many vdisks, all on one cluster.
fn many(count: usize, gib: u64) -> String {
    let mut text = format!("storageClusters: {{c: {{{CLUSTER}}}}}\nvdisks:\n");
    for index in 0..count {
        text.push_str(&format!(
            "  v{index}: {{type: db, blockSize: 4096, size: {gib}, tlog: {{storageClusterID: c}}, nbd: {{storageClusterID: c}}}}\n"
        ));
    }
    text
}

#[tokio::test]
async fn a_thousand_vdisks_are_imported_and_read_quickly_and_one_change_is_one_change() {
    let etcd = etcd();
    let report = import_text(&etcd, &many(1000, 1), ImportOptions::default()).await;
    assert_eq!((report.put.len(), report.unchanged.len(), report.others.len()), (3001, 0, 1));
    // Others use this etcd too.
    for index in 0..20 {
        etcd.cli(&["put", &format!("/other/{index}"), &"x".repeat(100_000)]);
    }
    let begun = std::time::Instant::now();
    let mut running = open(&etcd).await;
    let opened = begun.elapsed();
    println!("opened 1,000 vdisks of etcd in {opened:?}");
    assert_eq!(running.health().vdisks, 1001);
    assert!(opened.as_secs() < 2, "{opened:?}");
    let receivers: Vec<_> =
        (0..1000).map(|index| running.configuration.vdisk(&vdisk(&format!("v{index}")))).collect();
    put_vdisk(&etcd, "v7", 7);
    running.until("v7 of 7 GiB", |running| running.config("v7").unwrap().size == 7 << 30).await;
    let changed = receivers.iter().filter(|receiver| receiver.has_changed().unwrap()).count();
    assert_eq!(changed, 1);
}

#[tokio::test]
async fn an_import_puts_what_differs_and_deletes_where_it_is_asked_to() {
    let etcd = etcd();
    etcd.cli(&["put", "/other", "x"]);
    let text = format!(
        "storageClusters: {{c: {{{CLUSTER}}}}}\nvdisks: {{b: {{type: db, blockSize: 512, size: 2, tlog: {{storageClusterID: c}}}}}}\n"
    );
    let keys = |keys: &[tlog_config::DocumentKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let dry = import_text(&etcd, &text, ImportOptions { dry_run: true, ..ImportOptions::default() }).await;
    let report = import_text(&etcd, &text, ImportOptions::default()).await;
    assert_eq!(dry, ImportReport { transactions: 0, ..report.clone() });
    assert_eq!(
        keys(&report.put),
        ["c:cluster:conf:storage", "b:vdisk:conf:storage:tlog", "b:vdisk:conf:static"]
    );
    assert_eq!((keys(&report.others), report.transactions), (vec!["a:vdisk:conf:static".into()], 1));
    let revision = etcd.revision();
    let again = import_text(&etcd, &text, ImportOptions::default()).await;
    assert_eq!((again.put.len(), again.unchanged.len(), again.transactions), (0, 3, 0));
    assert_eq!(etcd.revision(), revision);

    let mut running = open(&etcd).await;
    assert_eq!(running.sizes(), (1, 2));
    let pruned = import_text(&etcd, &text, ImportOptions { prune: true, ..ImportOptions::default() }).await;
    assert_eq!(keys(&pruned.deleted), ["a:vdisk:conf:static"]);
    running.until_sizes(0, 2).await;
    assert_eq!(etcd.cli(&["get", "--print-value-only", "/other"]), "x");
    // What is imported is read as what was in the file.
    assert_eq!(
        running.config("b").unwrap().tlog.as_ref().unwrap().cluster.data[0].to_string(),
        "redis://host:1/0"
    );

    let SourceAddress::Etcd(endpoints) = SourceAddress::parse(&etcd.url()).unwrap() else { panic!() };
    let wrong = "vdisks: {b: {type: db, blockSize: 512, size: 2, tlog: {storageClusterID: nothing}}}";
    let refused =
        import("f.yaml", wrong, &endpoints, &EtcdOptions::default(), ImportOptions::default()).await;
    let Err(tlog_config::ImportError::Problems(problems)) = refused else { panic!("{refused:?}") };
    assert!(problems[0].to_string().ends_with("there is no storage cluster nothing"), "{problems:?}");
}
