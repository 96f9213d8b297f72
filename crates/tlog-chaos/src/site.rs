//! Everything that runs: stores, servers and the ways between them, clients, and the tool.
//!
//! ```text
//! client 0 --+-- relay -- server 0 -- relays --+-- stores 0 to 5 of the log: Redis, 4 + 2
//! client 1 --+-- relay -- server 1 -- relays --+-- stores 0 and 1 of the slave: Redis
//!                                              |
//!            tlog verify, restore, slave status (no relay)
//! ```
//! Each server has documents of its own, which name its relays; the tool's name the stores themselves.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use tlog_testbed::{RedisOptions, RedisProcess, ReservedPort};

use crate::fault::Shape;
use crate::journal::{Journal, JournalReader, JournalWriter};
use crate::model::Disk;
use crate::process::Program;
use crate::relay::Relay;
use crate::small_disk::SmallDisk;
use crate::tool::Tool;
use crate::writer::WriterArguments;
use crate::wrong::Wrong;

const SERVERS: usize = 2;
const STORES: usize = 6;
const SLAVE_STORES: usize = 2;

/// The stores that are on small disks, where these are possible.
const SMALL_DISKS: [usize; 2] = [1, 4];

/// Times are short, so that many things happen in a minute. k, m and W are the defaults.
const SETTINGS: &str = "flush-size = 8
flush-time = \"200ms\"
commit-timeout = \"3s\"
store-timeout = \"2s\"
check-stores-every = \"1s\"
shutdown-timeout = \"5s\"
open-timeout = \"10s\"
vdisk-idle-timeout = \"5s\"
slave-sync = true
";

/// A store, and the file system that it is on, where that can be filled.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) redis: RedisProcess,
    pub(crate) disk: Option<SmallDisk>,
    log: PathBuf,
}

impl Store {
    fn start(root: &Path, name: String, disk: Option<SmallDisk>) -> anyhow::Result<Self> {
        let parent = match &disk {
            Some(disk) => disk.path().to_owned(),
            None => {
                let parent = root.join(&name);
                fs::create_dir_all(&parent)?;
                parent
            }
        };
        let redis = RedisProcess::start(RedisOptions { parent: Some(parent), ..RedisOptions::durable() });
        let log = root.join(format!("{name}.log"));
        Ok(Self { redis, disk, log })
    }

    /// Appends what it has printed since it was started to its log.
    pub(crate) fn keep_log(&self) -> anyhow::Result<()> {
        let mut text = fs::read_to_string(&self.log).unwrap_or_default();
        text.push_str(&self.redis.printed());
        fs::write(&self.log, text).with_context(|| format!("cannot write {}", self.log.display()))
    }
}

/// A server, and the ways to it and from it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) program: tokio::sync::Mutex<Program>,
    _port: ReservedPort,
    pub(crate) front: Relay,
    pub(crate) stores: Vec<Relay>,
    pub(crate) slave: Vec<Relay>,
}

/// A client, its disk, and what it has noted.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) program: tokio::sync::Mutex<Program>,
    pub(crate) disk: Disk,
    journal: Mutex<JournalReader>,
}

impl Client {
    /// What its journal says by now.
    pub(crate) fn journal(&self) -> anyhow::Result<Journal> {
        self.look(Journal::clone)
    }

    /// Looks at what its journal says by now.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Journal) -> T) -> anyhow::Result<T> {
        let mut reader = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let journal = reader.catch_up()?;
        if let Some(wrong) = journal.wrong.first() {
            anyhow::bail!("the client of vdisk {}: {wrong}", self.disk.vdisk);
        }
        Ok(look(journal))
    }
}

/// How a site is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Where everything is.
    pub(crate) root: PathBuf,
    /// Where `tlog` and `tlog-server` are.
    pub(crate) binaries: PathBuf,
    pub(crate) seed: u64,
    /// Writes of the first client in a second; the second one, whose blocks are larger, makes half as many.
    pub(crate) rate: u32,
    /// Bytes of a small disk; none where there are none.
    pub(crate) small_disk: Option<u64>,
    /// What the clients do that they must not.
    pub(crate) wrong: Option<Wrong>,
}

/// Everything. What runs is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) servers: Vec<Server>,
    pub(crate) clients: Vec<Client>,
    pub(crate) stores: Vec<Store>,
    pub(crate) slave: Vec<Store>,
    pub(crate) tool: Tool,
}

impl Site {
    /// Starts everything but the clients. Blocks until the stores are there.
    pub(crate) fn start(plot: &Plot) -> anyhow::Result<Self> {
        let Plot { root, binaries, seed, rate, small_disk, wrong } = plot;
        let store = |number: usize| {
            let name = format!("store-{number}");
            let bytes = small_disk.filter(|_| SMALL_DISKS.contains(&number));
            let disk = bytes
                .map(|bytes| SmallDisk::mount(&root.join(format!("disk-of-{name}")), bytes))
                .transpose()?;
            Store::start(root, name, disk)
        };
        let stores = (0..STORES).map(store).collect::<anyhow::Result<Vec<_>>>()?;
        let slave = |number| Store::start(root, format!("slave-{number}"), None);
        let slave = (0..SLAVE_STORES).map(slave).collect::<anyhow::Result<Vec<_>>>()?;

        let disks = [("a", 512, *seed), ("b", 4096, seed.rotate_left(17))];
        let disks = disks.map(|(vdisk, block_size, seed)| Disk {
            vdisk: vdisk.to_owned(),
            block_size,
            blocks: 200,
            seed,
        });
        let addresses =
            |stores: &[Store]| stores.iter().map(|store| store.redis.address()).collect::<Vec<_>>();
        let key = root.join("tlog.key");
        let prepare = |name: &str, stores: &[String], slave: &[String]| {
            let directory = root.join(name);
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("vdisks.yaml"), documents(&disks, stores, slave))?;
            let settings = format!("config-source = \"vdisks.yaml\"\nkey-file = {key:?}\n{SETTINGS}");
            fs::write(directory.join("tlog.toml"), settings)?;
            anyhow::Ok(directory)
        };
        let tool =
            Tool::new(binaries.join("tlog"), prepare("tool", &addresses(&stores), &addresses(&slave))?);
        tool.make_key(&key)?;

        let mut servers = Vec::new();
        for number in 0..SERVERS {
            let relays = |stores: &[Store]| {
                stores.iter().map(|store| relay_to(store.redis.port())).collect::<Vec<_>>()
            };
            let (to_stores, to_slave, port) = (relays(&stores), relays(&slave), ReservedPort::new());
            let addresses = |relays: &[Relay]| relays.iter().map(Relay::address).collect::<Vec<_>>();
            let name = format!("server-{number}");
            let directory = prepare(&name, &addresses(&to_stores), &addresses(&to_slave))?;
            let arguments = vec!["--listen".to_owned(), format!("127.0.0.1:{}", port.number())];
            let binary = binaries.join("tlog-server");
            let mut program = Program { name, binary, arguments, directory, child: None };
            program.start()?;
            let front = relay_to(port.number());
            let program = tokio::sync::Mutex::new(program);
            servers.push(Server { program, _port: port, front, stores: to_stores, slave: to_slave });
        }
        let fronts: Vec<String> = servers.iter().map(|server| server.front.address()).collect();
        let mut clients = Vec::new();
        for (number, disk) in disks.into_iter().enumerate() {
            // Each has another server that it likes best.
            let mut fronts = fronts.clone();
            fronts.rotate_left(number % SERVERS);
            let rate = (rate >> number).max(1);
            let path = root.join(format!("client-{number}.journal"));
            let arguments = WriterArguments::of(&disk, rate, &fronts, &path, *wrong);
            clients.push(client(root, number, disk, path, arguments)?);
        }
        Ok(Self { servers, clients, stores, slave, tool })
    }

    pub(crate) fn shape(&self) -> Shape {
        let small = |(number, store): (usize, &Store)| store.disk.as_ref().map(|_| number);
        Shape {
            servers: self.servers.len(),
            clients: self.clients.len(),
            stores: self.stores.len(),
            slave_stores: self.slave.len(),
            small_disks: self.stores.iter().enumerate().filter_map(small).collect(),
        }
    }

    /// Fails where something has ended by itself.
    pub(crate) async fn check_runs(&self) -> anyhow::Result<()> {
        for server in &self.servers {
            [&server.front]
                .into_iter()
                .chain(&server.stores)
                .chain(&server.slave)
                .try_for_each(Relay::check)?;
        }
        for program in self.programs() {
            program.lock().await.check_runs()?;
        }
        Ok(())
    }

    /// Fails where something has panicked, be it in a task alone.
    pub(crate) async fn check_logs(&self) -> anyhow::Result<()> {
        for program in self.programs() {
            let program = program.lock().await;
            let log = fs::read_to_string(program.log()).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
                anyhow::bail!("{}: {line}", program.name);
            }
        }
        Ok(())
    }

    fn programs(&self) -> impl Iterator<Item = &tokio::sync::Mutex<Program>> {
        let servers = self.servers.iter().map(|server| &server.program);
        servers.chain(self.clients.iter().map(|client| &client.program))
    }

    /// Appends what stores have printed to their logs.
    pub(crate) fn keep_logs(&self) -> anyhow::Result<()> {
        self.stores.iter().chain(&self.slave).try_for_each(Store::keep_log)
    }
}

fn relay_to(port: u16) -> Relay {
    Relay::to(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn client(
    root: &Path,
    number: usize,
    disk: Disk,
    path: PathBuf,
    arguments: Vec<String>,
) -> anyhow::Result<Client> {
    let name = format!("client-{number}");
    // There from the beginning, to be read.
    JournalWriter::open(&path)?;
    let binary = std::env::current_exe()?;
    let program = Program { name, binary, arguments, directory: root.to_owned(), child: None };
    let journal = Mutex::new(JournalReader::open(&path)?);
    Ok(Client { program: tokio::sync::Mutex::new(program), disk, journal })
}

fn documents(disks: &[Disk], stores: &[String], slave: &[String]) -> String {
    let mut text = String::from("storageClusters:\n");
    for (cluster, stores) in [("log", stores), ("slave", slave)] {
        let _ = writeln!(text, "  {cluster}:\n    dataStorage:");
        for store in stores {
            let _ = writeln!(text, "      - address: {store}");
        }
    }
    text.push_str("vdisks:\n");
    for disk in disks {
        let Disk { vdisk, block_size, .. } = disk;
        let _ = writeln!(text, "  {vdisk}:\n    {{ type: db, blockSize: {block_size}, size: 1,");
        let _ = writeln!(text, "      tlog: {{ storageClusterID: log, slaveStorageClusterID: slave }} }}");
    }
    text
}
