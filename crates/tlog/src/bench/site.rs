//! Stores and a server of a measurement's own.

use std::path::Path;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;
use tlog_crypto::MasterKey;

use super::delay::{Delay, DelayedStore};
use super::process::{ChildProcess, cpu_seconds, peak_memory};
use super::redis::RedisServer;
use super::server_metrics::ServerMetrics;
use crate::admin_client;
use crate::settings::{Settings, SettingsArgs};

/// Settings that are the measurement's own business where it starts the server.
const OWN: [&str; 5] = ["listen", "admin-listen", "storage", "data-dir", "key-file"];

/// On what the log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    /// Redis servers that keep everything in memory: nothing is waited for but the network
    Redis,
    /// Redis servers that answer once it is on disk (appendonly yes, appendfsync always)
    RedisAof,
    /// Directories: answered once it is on disk
    Directory,
    /// Memory of the server itself; cannot be verified afterwards
    Memory,
}

impl StoreKind {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RedisAof => "redis-aof",
            Self::Directory => "directory",
            Self::Memory => "memory",
        }
    }
}

/// What there is to start.
#[derive(Debug, Clone)]
pub(crate) struct SiteOptions {
    pub(crate) stores: StoreKind,
    /// Settings of the server.
    pub(crate) settings: SettingsArgs,
    /// The store that the server reaches over a slow way; with no time at all it only passes on.
    pub(crate) delayed: Option<DelayedStore>,
}

/// Stores, and everything that is needed to put a server on them. All of it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Site {
    redis: Vec<RedisServer>,
    /// Before the server reaches a store.
    _delay: Option<Delay>,
    given: SettingsArgs,
    settings: Settings,
    /// Dropped last: what uses it has ended by then.
    directory: TempDir,
}

impl Site {
    /// Starts the stores, in a new directory within `scratch`. Call it on the main thread.
    pub(crate) async fn start(options: &SiteOptions, scratch: &Path) -> anyhow::Result<Self> {
        let own = |key: &&str| options.settings.has(key);
        if let Some(key) = OWN.iter().copied().find(|key| own(key)) {
            bail!(
                "--{key} is of the measurement's own where it starts the server; with --server it says where the log is"
            );
        }
        let redundancy = Settings::from_flags(&options.settings)?.redundancy;
        let directory = tempfile::Builder::new().prefix("tlog-bench-").tempdir_in(scratch);
        let directory = directory.with_context(|| {
            format!("no directory can be made in {}; name another with --scratch", scratch.display())
        })?;
        let mut redis = Vec::new();
        let mut addresses = Vec::new();
        for number in 0..redundancy.stores() {
            let path = directory.path().join(format!("store-{number}"));
            addresses.push(match options.stores {
                StoreKind::Memory => "memory:".to_owned(),
                StoreKind::Directory => format!("file:{}", path.display()),
                StoreKind::Redis | StoreKind::RedisAof => {
                    let server = RedisServer::start(&path, options.stores == StoreKind::RedisAof).await?;
                    let address = server.address();
                    redis.push(server);
                    address
                }
            });
        }
        let key_file = directory.path().join("tlog.key");
        std::fs::write(&key_file, MasterKey::generate()?.expose_hex().as_bytes())?;
        rustix::fs::chmod(&key_file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        let text =
            |path: &Path| path.to_str().map(str::to_owned).context("the scratch directory is not UTF-8");
        let delay = match options.delayed {
            Some(delayed) => Some(delay(delayed, options.stores, &addresses).await?),
            None => None,
        };
        let given = options
            .settings
            .clone()
            .with("key-file", text(&key_file)?)
            .with("data-dir", text(&directory.path().join("tlog-data"))?)
            .with("listen", "127.0.0.1:0")
            .with("admin-listen", "127.0.0.1:0");
        let settings = Settings::from_flags(&given.clone().with("storage", addresses.join(",")))?;
        if let (Some(delayed), Some(delay)) = (options.delayed, &delay)
            && let Some(address) = addresses.get_mut(delayed.number)
        {
            delay.address().clone_into(address);
        }
        let given = given.with("storage", addresses.join(","));
        Ok(Self { redis, _delay: delay, given, settings, directory })
    }

    /// Where the log is, for reading it: without the slow way to a store.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Addresses of the Redis servers, without anything in between.
    pub(crate) fn redis_addresses(&self) -> Vec<String> {
        self.redis.iter().map(RedisServer::address).collect()
    }

    /// Where there is room for files beside the stores.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// CPU seconds of all stores that are processes of their own; none where they are not.
    pub(crate) fn stores_cpu(&self) -> Option<f64> {
        let first = self.redis.first().and_then(|server| cpu_seconds(server.pid()))?;
        let others = self.redis.iter().skip(1).filter_map(|server| cpu_seconds(server.pid()));
        Some(first + others.sum::<f64>())
    }

    /// Starts the `tlog-server` that stands beside this program. Call it on the main thread.
    pub(crate) async fn start_server(&self) -> anyhow::Result<ServerProcess> {
        let program = std::env::current_exe()?.with_file_name("tlog-server");
        if !program.is_file() {
            bail!(
                "there is no tlog-server beside this program ({}): build both with 'cargo build --release -p tlog', or name a \
                 running one with --server",
                program.display()
            );
        }
        let mut arguments = self.given.command_line()?;
        if !self.given.has("log-level") {
            arguments.push("--log-level=warn".to_owned());
        }
        let mut process = ChildProcess::start("tlog-server", &program, &arguments, self.directory.path())?;
        let address = after("listening on ", &mut process).await?;
        let admin = after("admin endpoint on ", &mut process).await?;
        Ok(ServerProcess { process, address, admin })
    }
}

async fn delay(delayed: DelayedStore, stores: StoreKind, addresses: &[String]) -> anyhow::Result<Delay> {
    if !matches!(stores, StoreKind::Redis | StoreKind::RedisAof) {
        bail!("--delay-store works with Redis servers: --stores redis or redis-aof");
    }
    match addresses.get(delayed.number) {
        Some(address) => Delay::start(address.clone(), delayed.by).await,
        None => bail!(
            "--delay-store: there is no store {}, they are 0 to {}",
            delayed.number,
            addresses.len() - 1
        ),
    }
}

async fn after(words: &str, process: &mut ChildProcess) -> anyhow::Result<String> {
    let line = process.line_with(words).await?;
    Ok(line.trim().strip_prefix(words).unwrap_or_default().to_owned())
}

/// A `tlog-server` that was started here; killed where it is dropped.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    process: ChildProcess,
    /// Where clients connect to.
    pub(crate) address: String,
    /// Its admin endpoint.
    pub(crate) admin: String,
}

impl ServerProcess {
    /// Stops it, which must leave everything durable.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let status = self.process.stop().await?;
        if !status.success() {
            bail!(
                "tlog-server stopped with {status}, and not everything is durable: {}",
                self.process.said()
            );
        }
        Ok(())
    }

    /// As a server whose cost can be told.
    pub(crate) fn watched(&self) -> WatchedServer {
        let (address, admin) = (self.address.clone(), Some(self.admin.clone()));
        WatchedServer { address, admin, pid: Some(self.process.pid()) }
    }
}

/// A server, and where it is asked what it costs.
#[derive(Debug, Clone)]
pub(crate) struct WatchedServer {
    /// Where clients connect to.
    pub(crate) address: String,
    /// Its admin endpoint, where that is known.
    pub(crate) admin: Option<String>,
    /// Its process, where it is one of this machine and known.
    pub(crate) pid: Option<u32>,
}

impl WatchedServer {
    /// CPU seconds so far.
    pub(crate) fn cpu(&self) -> Option<f64> {
        self.pid.and_then(cpu_seconds)
    }

    /// Most memory that it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        self.pid.and_then(peak_memory)
    }

    /// Committed aggregations that some store lacks now, of all open logs; none without an admin endpoint. The metric of that is set only when
    /// something happens to a store, and would be an old one.
    pub(crate) async fn behind(&self) -> anyhow::Result<Option<u64>> {
        let Some(admin) = &self.admin else { return Ok(None) };
        let status: Value = serde_json::from_str(&admin_client::ask(admin, Method::GET, "/status").await?)?;
        let vdisks = status.get("vdisks").and_then(Value::as_array).into_iter().flatten();
        Ok(Some(vdisks.filter_map(|vdisk| vdisk.pointer("/log/behind")?.as_u64()).sum()))
    }

    /// Its metrics now; none without an admin endpoint.
    pub(crate) async fn metrics(&self) -> anyhow::Result<Option<ServerMetrics>> {
        match &self.admin {
            Some(admin) => Ok(Some(ServerMetrics::ask(admin).await?)),
            None => Ok(None),
        }
    }
}
