//! Redis servers, documents that say what they are for, and a server that follows them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tlog::admin_client::ask;

use crate::support::{Place, Server};

/// Everything that the documents say.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// Data stores by cluster.
    pub clusters: BTreeMap<&'static str, Vec<String>>,
    /// By vdisk.
    pub vdisks: BTreeMap<String, Vdisk>,
    /// By tlog cluster.
    pub servers: BTreeMap<&'static str, Vec<String>>,
}

/// Where a vdisk's log is, and its slave.
#[derive(Clone, Debug)]
pub struct Vdisk {
    pub cluster: &'static str,
    pub slave: Option<&'static str>,
}

impl Documents {
    pub fn vdisk(&mut self, name: &str, cluster: &'static str) {
        self.vdisks.insert(name.to_owned(), Vdisk { cluster, slave: None });
    }

    /// As one file.
    pub fn yaml(&self) -> String {
        let mut text = String::from("storageClusters:\n");
        for (cluster, stores) in &self.clusters {
            writeln!(text, "  {cluster}:\n    dataStorage:").unwrap();
            stores.iter().for_each(|store| writeln!(text, "      - address: {store}").unwrap());
        }
        if !self.servers.is_empty() {
            text.push_str("tlogClusters:\n");
        }
        for (cluster, servers) in &self.servers {
            writeln!(text, "  {cluster}: {{ servers: [{}] }}", servers.join(", ")).unwrap();
        }
        text.push_str("vdisks:\n");
        for (name, Vdisk { cluster, slave }) in &self.vdisks {
            writeln!(text, "  {name}:\n    {{ type: db, blockSize: 512, size: 1,").unwrap();
            let slave = slave.map(|slave| format!(", slaveStorageClusterID: {slave}")).unwrap_or_default();
            let nbd = match self.servers.keys().next() {
                Some(servers) => {
                    format!("nbd: {{ storageClusterID: {cluster}, tlogServerClusterID: {servers} }}, ")
                }
                None => String::new(),
            };
            writeln!(text, "      {nbd}tlog: {{ storageClusterID: {cluster}{slave} }} }}").unwrap();
        }
        text
    }
}

/// A place where documents are.
pub trait Source {
    /// What the setting `config-source` is.
    fn setting(&self) -> String;
    /// Makes these the documents.
    fn put(&mut self, place: &Place, documents: &Documents);
    /// Puts something there that makes no sense, instead of the document of a storage cluster.
    fn spoil(&mut self, place: &Place, documents: &Documents, cluster: &str);
    /// Nobody can read it any more.
    fn leave(&mut self);
    /// Everybody can read it again.
    fn come_back(&mut self);
}

/// A YAML file.
pub struct File {
    path: PathBuf,
}

impl File {
    pub fn new(place: &Place) -> Self {
        Self { path: place.path().join("vdisks.yaml") }
    }

    /// As an editor does.
    fn write(&self, text: &str) {
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, &self.path).unwrap();
    }

    fn away(&self) -> PathBuf {
        self.path.with_extension("away")
    }
}

impl Source for File {
    fn setting(&self) -> String {
        self.path.display().to_string()
    }

    fn put(&mut self, _place: &Place, documents: &Documents) {
        self.write(&documents.yaml());
    }

    fn spoil(&mut self, _place: &Place, documents: &Documents, cluster: &str) {
        let mut documents = documents.clone();
        *documents.clusters.get_mut(cluster).unwrap() = vec!["nowhere".to_owned()];
        self.write(&documents.yaml());
    }

    fn leave(&mut self) {
        std::fs::rename(&self.path, self.away()).unwrap();
    }

    fn come_back(&mut self) {
        std::fs::rename(self.away(), &self.path).unwrap();
    }
}

/// An etcd. What is put there goes through `tlog config import`.
#[cfg(feature = "etcd")]
pub struct Etcd {
    etcd: tlog_testbed::EtcdProcess,
}

#[cfg(feature = "etcd")]
impl Etcd {
    pub fn new() -> Self {
        Self { etcd: tlog_testbed::EtcdProcess::start(tlog_testbed::EtcdOptions::default()) }
    }
}

#[cfg(feature = "etcd")]
impl Source for Etcd {
    fn setting(&self) -> String {
        self.etcd.url()
    }

    fn put(&mut self, place: &Place, documents: &Documents) {
        let file = write(place, "to-import.yaml", &documents.yaml());
        place.tlog_ok(&["config", "import", &shown(&file), "--etcd", &self.etcd.url(), "--prune"]);
    }

    fn spoil(&mut self, _place: &Place, _documents: &Documents, cluster: &str) {
        self.etcd.cli(&[
            "put",
            &format!("{cluster}:cluster:conf:storage"),
            "dataStorage: [{ address: nowhere }]",
        ]);
    }

    fn leave(&mut self) {
        self.etcd.kill();
    }

    fn come_back(&mut self) {
        self.etcd.restart();
    }
}

/// What the server says of itself.
pub async fn status(server: &Server) -> Value {
    serde_json::from_str(&ask(&server.admin(), Method::GET, "/status").await.unwrap()).unwrap()
}

/// Waits until the server says what `is` asks for.
pub async fn until(server: &Server, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
    let waiting = async {
        loop {
            let now = status(server).await;
            if is(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), waiting).await {
        Ok(status) => status,
        Err(_) => panic!("never {what}: {:#}", status(server).await),
    }
}

/// The stores of a vdisk's open log, as the server shows them.
pub fn stores<'a>(status: &'a Value, vdisk: &str) -> &'a [Value] {
    let vdisks = status["vdisks"].as_array().unwrap();
    let found = vdisks.iter().find(|known| known["vdisk"] == vdisk);
    found.and_then(|vdisk| vdisk["log"]["stores"].as_array()).map_or(&[], Vec::as_slice)
}

/// Whether an open log is on these stores, all of them counted and with nothing missing.
pub fn is_whole_on(status: &Value, vdisk: &str, addresses: &[String]) -> bool {
    let stores = stores(status, vdisk);
    stores.len() == addresses.len()
        && stores.iter().zip(addresses).all(|(store, address)| {
            store["address"] == format!("redis://{address}/0")
                && store["state"] == "active"
                && store["missing"] == 0
        })
}

/// What `tlog restore` gives, with these further arguments.
pub fn restored(place: &Place, vdisk: &str, arguments: &[&str]) -> Vec<u8> {
    let file = format!("{vdisk}.img");
    place.tlog_ok(&[&["restore", vdisk, "-o", &file, "--force"], arguments].concat());
    std::fs::read(place.path().join(file)).unwrap()
}

/// A settings file for server and tool, and a key.
pub fn prepare(place: &Place, source: &str, settings: &str) {
    let text = format!("config-source = {source:?}\nstore-timeout = \"2s\"\n{settings}\n");
    std::fs::write(place.path().join("tlog.toml"), text).unwrap();
    place.tlog_ok(&["keygen", "-o", "tlog-data/tlog.key"]);
}

/// The text of a file in a place.
pub fn write(place: &Place, file: &str, text: &str) -> PathBuf {
    let path = place.path().join(file);
    std::fs::write(&path, text).unwrap();
    path
}

/// How a path is written on a command line.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}
