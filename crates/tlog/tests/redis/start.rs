//! Starting on Redis servers: the example's script, auto-fill, durability, TLS, passwords.

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::Rng;
use tlog_testbed::{RedisOptions, RedisServers, Tls};

use crate::site::{Disk, Site};
use crate::support::Place;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The servers of `examples/redis/servers.sh`, on six ports in a row.
struct ExampleServers {
    data: tempfile::TempDir,
    first: u16,
}

impl ExampleServers {
    fn start() -> Self {
        loop {
            let data = tempfile::tempdir().unwrap();
            let servers = Self { data, first: rand::rng().random_range(20_000..30_000) };
            let started = servers.script("start");
            if started.status.success() {
                return servers;
            }
            // Somebody has one of the ports: it says so, and others are as good.
            let said = String::from_utf8_lossy(&started.stderr).into_owned();
            assert!(said.contains("is taken"), "{said}");
        }
    }

    fn script(&self, what: &str) -> std::process::Output {
        let mut command = Command::new(root().join("examples/redis/servers.sh"));
        command.args([what, &self.first.to_string()]).env("REDIS_DATA", self.data.path());
        command.output().unwrap()
    }
}

impl Drop for ExampleServers {
    fn drop(&mut self) {
        self.script("stop");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_enough_for_six_servers_in_a_row_and_the_example_starts_them() {
    let redis = ExampleServers::start();
    let place = Place::new();
    let address = format!("127.0.0.1:{}", redis.first);
    let said = place.server_fails(&["--storage", &address]);
    assert!(said.contains("tlog keygen -o tlog-data/tlog.key"), "{said}");
    place.tlog_ok(&["keygen", "-o", "tlog-data/tlog.key"]);
    let server = place.server(&["--storage", &address, "--require-durable-stores", "--flush-size", "5"]);
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(10).await;
    server.stop();
    place.tlog_ok(&["restore", "vda", "-o", "restored", "--storage", &address]);
    assert!(std::fs::read(place.path().join("restored")).unwrap() == disk.expected());
    place.tlog_ok(&["verify", "vda", "--storage", &address]);
    let listed = place.tlog_ok(&["vdisks", "--storage", &address]);
    assert!(listed.lines().any(|line| line.starts_with("vda ") && line.ends_with("6/6")), "{listed}");
}

#[test]
fn the_settings_file_of_the_example_is_the_same_six_servers() {
    let place = Place::new();
    let example = root().join("examples/redis/tlog.toml");
    let shown = place.tlog_ok(&["config", "--show", "-c", example.to_str().unwrap()]);
    for port in 6379..6385 {
        assert!(shown.contains(&format!("127.0.0.1:{port}")), "{shown}");
    }
}

#[test]
fn stores_that_forget_are_refused_where_durable_ones_are_required_and_warned_of_else() {
    let site = Site::with(6, &RedisOptions::default(), "");
    let said = site.place.server_fails(&["--require-durable-stores"]);
    for redis in site.redis.iter() {
        assert!(said.contains(&redis.address()), "{said}");
    }
    assert!(said.contains("appendonly"), "{said}");
    site.serve().stop();
    let durable = Site::new();
    durable.place.server(&["--require-durable-stores"]).stop();
    durable.redis[2].cli(&["CONFIG", "SET", "appendfsync", "everysec"]);
    let said = durable.place.server_fails(&["--require-durable-stores"]);
    let said = said.lines().last().unwrap();
    assert!(
        said.contains(&durable.redis[2].address()) && !said.contains(&durable.redis[1].address()),
        "{said}"
    );
    // One that is away cannot be asked, and does not stop the others.
    durable.redis[2].kill();
    durable.place.server(&["--require-durable-stores"]).stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_behind_tls_and_passwords_work_and_no_password_is_shown() {
    let options = RedisOptions {
        tls: Some(Tls { names: vec!["127.0.0.1".to_owned()], client_certificates: false }),
        password: Some("open sesame".to_owned()),
        ..RedisOptions::durable()
    };
    let redis = RedisServers::start(3, &options);
    let place = Place::new();
    place.tlog_ok(&["keygen", "-o", "tlog-data/tlog.key"]);
    let stores: Vec<String> =
        redis.addresses().iter().map(|address| format!("rediss://:open%20sesame@{address}")).collect();
    // Each server of the testbed has a CA of its own.
    let mut authorities = String::new();
    for redis in redis.iter() {
        authorities.push_str(&std::fs::read_to_string(&redis.tls().unwrap().ca).unwrap());
    }
    std::fs::write(place.path().join("ca.pem"), authorities).unwrap();
    let settings = format!("storage = {stores:?}\ndata-shards = 2\nparity-shards = 1\n");
    std::fs::write(place.path().join("tlog.toml"), format!("{settings}store-ca-file = \"ca.pem\"\n"))
        .unwrap();
    let server = place.server(&["--flush-size", "5"]);
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(20).await;
    server.stop();
    place.tlog_ok(&["restore", "vda", "-o", "restored"]);
    assert!(std::fs::read(place.path().join("restored")).unwrap() == disk.expected());
    let shown = place.tlog_ok(&["config", "--show"]);
    assert!(!shown.contains("sesame"), "{shown}");
    // Without the CA the servers are not trusted, and that is said.
    std::fs::write(place.path().join("tlog.toml"), settings).unwrap();
    let output = place.tlog(&["verify", "vda"]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("certificate") && !said.contains("sesame"), "{said}");
}
