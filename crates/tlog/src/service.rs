//! What `tlog-server` runs: settings to stores to log writers to the server, and the admin endpoint beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use async_trait::async_trait;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tlog_config::{Configuration, SourceHealth};
use tlog_crypto::Keyring;
use tlog_proto::{Limits, VdiskId};
use tlog_server::{RunReport, Server, ServerCertificate, ServerSettings, ServerTls, SlaveSync, TlsFiles};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Operations};
use crate::keys::KeysError;
use crate::pins::Pins;
use crate::proof_report::ProofReport;
use crate::proofs::Proofs;
use crate::replacing::{self, ReplaceReport, ReplaceRequest};
use crate::retention::limits::ServerLimits;
use crate::scrub_report::ScrubReport;
use crate::settings::{Format, LimitSettings, ListenAddress, ServerTlsSettings, Settings};
use crate::show_status::{show_stores, show_vdisk};
use crate::slaves::{Slaves, WithSlaves, show_slave};
use crate::storages::{StorageInUse, Storages};
use crate::stores::StoreOpener;
use crate::{background_scrub, documents, keys, metrics_table, open_files, retention, words};

/// A server that listens already, and serves once it is run.
pub struct Service {
    server: Server,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
    admin: Option<(TcpListener, SocketAddr, PrometheusHandle)>,
    operations: Arc<ServerOperations>,
    scrub: Option<(Duration, u64)>,
    retention: Option<retention::background::Retention>,
}

impl Service {
    /// Opens the stores, reads or makes the key, and begins to listen. After this, clients can connect; they are answered once
    /// [`Service::run`] is called.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        for warning in settings.warnings() {
            tracing::warn!("{warning}");
        }
        // First of all: it refuses where another server runs, before anything is changed.
        let admin = match &settings.admin_listen {
            Some(address) => {
                let listener = bind(address).await?;
                let bound = listener.local_addr()?;
                Some((listener, bound, install_metrics()?))
            }
            None => None,
        };
        let tls = settings.tls.as_ref().map(load_tls).transpose()?;
        let listener = bind(&settings.listen).await?;
        let address = listener.local_addr()?;
        let keys = keys_for_writing(settings)?;
        let note = lock_note(address, admin.as_ref().map(|(_, address, _)| *address));
        let opener = StoreOpener::new(settings, Some(note));
        let configuration = match &settings.documents {
            Some(documents) => Some(documents::open(documents).await?),
            None => None,
        };
        let storages = Storages::open(settings, configuration.clone(), opener.clone(), keys).await?;
        // Also where slaves are not kept: who waits for one is told so.
        let slaves = configuration.as_ref().map(|configuration| {
            let links = opener.links().clone();
            Slaves::start(storages.clone(), configuration.clone(), links, settings.slave_sync)
        });
        let storage = Arc::new(WithSlaves { storages: storages.clone(), slaves: slaves.clone() });
        let slave_sync = slaves.clone().map(|slaves| Arc::new(slaves) as Arc<dyn SlaveSync>);
        let allowed = open_files::raise_limit();
        let limits = open_files::fitting(server_settings(&settings.limits), allowed);
        let server = Server::new(limits, storage, slave_sync)?;
        let server = match &tls {
            Some(tls) => server.with_tls(tls.clone()),
            None => server,
        };
        storages.serve(&server);
        let pins = Pins::default();
        let proofs = Proofs::new(storages.clone(), pins.clone(), settings);
        let operations = Arc::new(ServerOperations {
            server_id: settings.server_id.clone(),
            started: Instant::now(),
            ready: AtomicBool::new(false),
            server: server.clone(),
            storages,
            slaves,
            proofs,
            pins,
            documents: settings.documents.as_ref().map(|documents| documents.source.to_string()),
            redundancy: settings.redundancy.to_string(),
            scrub_rate: settings.repair_rate,
            opener,
            stopping: CancellationToken::new(),
        });
        tracing::info!(
            %address,
            tls = tls.is_some(),
            server_id = settings.server_id,
            version = env!("CARGO_PKG_VERSION"),
            redundancy = %settings.redundancy,
            stores = ?settings.stores().iter().map(ToString::to_string).collect::<Vec<_>>(),
            documents = settings.documents.as_ref().map(|documents| tracing::field::display(&documents.source)),
            "serving"
        );
        let scrub = settings.scrub_interval.map(|every| (every, settings.scrub_rate));
        let retention = settings.retention;
        Ok(Self { server, listener, address, tls, admin, operations, scrub, retention })
    }

    /// What TLS is spoken with, to have its files read again; none where it is plain TCP.
    pub fn tls(&self) -> Option<&ServerTls> {
        self.tls.as_ref()
    }

    /// The documents of vdisks and clusters, to have a file read again; none where there are none.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.operations.storages.configuration()
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin endpoint is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address, _)| *address)
    }

    /// Serves until `shutdown` is cancelled, makes everything durable, and answers how that went.
    pub async fn run(self, shutdown: CancellationToken) -> RunReport {
        let Self { server, listener, admin, operations, scrub, retention, .. } = self;
        let storages = operations.storages.clone();
        if let Some(retention) = retention {
            let limits = ServerLimits { slaves: operations.slaves.clone(), pins: operations.pins.clone() };
            let removing = retention::background::run(storages.clone(), retention, limits);
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(removing));
        }
        let scrubbing = scrub.map(|(every, rate)| tokio::spawn(background_scrub::run(storages, every, rate)));
        tokio::spawn(operations.proofs.clone().run(shutdown.clone()));
        // The endpoint outlives the server's shutdown, so that it can be watched.
        let stop_admin = CancellationToken::new();
        let endpoint = admin.map(|(listener, _, handle)| {
            let (upkeep, measured) = (handle.clone(), Arc::clone(&operations));
            let (operations, stop) = (Arc::clone(&operations) as _, stop_admin.clone().cancelled_owned());
            let serving = tokio::spawn(admin::serve(listener, operations, handle, stop));
            let upkeep = tokio::spawn(async move {
                let (mut told, mut proven) = (BTreeMap::new(), BTreeSet::new());
                loop {
                    let slaves = measured.slaves.as_ref();
                    told = slaves.map_or_else(BTreeMap::new, |slaves| slaves.measure(told));
                    proven = measured.proofs.measure(proven).await;
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    upkeep.run_upkeep();
                }
            });
            (serving, upkeep)
        });
        operations.ready.store(true, Ordering::Relaxed);
        let unready = {
            let (operations, shutdown) = (Arc::clone(&operations), shutdown.clone());
            async move {
                shutdown.cancelled().await;
                operations.ready.store(false, Ordering::Relaxed);
                operations.stopping.cancel();
            }
        };
        let (report, ()) = tokio::join!(server.run(listener, shutdown.clone()), unready);
        if let Some(task) = scrubbing {
            task.abort();
        }
        if let Some(slaves) = &operations.slaves {
            slaves.stop().await;
        }
        stop_admin.cancel();
        if let Some((serving, upkeep)) = endpoint {
            upkeep.abort();
            // A scrub may be running; nobody waits for it.
            let _gone = tokio::time::timeout(Duration::from_secs(1), serving).await;
        }
        report
    }
}

fn load_tls(settings: &ServerTlsSettings) -> anyhow::Result<ServerTls> {
    let (tls, certificate) = ServerTls::load(settings.files.clone(), settings.permissions.clone())?;
    tell_certificate(&tls, &certificate, "TLS is on");
    Ok(tls)
}

/// Reads the files of TLS again, and says how that went. The server goes on in any case.
pub fn reload_tls(tls: &ServerTls) {
    match tls.reload() {
        Ok(certificate) => {
            tell_certificate(tls, &certificate, "the files of TLS were read again, for new connections")
        }
        Err(error) => {
            tracing::error!("the files of TLS cannot be taken, the old certificate stays in force: {error}")
        }
    }
}

fn tell_certificate(tls: &ServerTls, certificate: &ServerCertificate, what: &str) {
    let TlsFiles { certificate: file, client_ca, .. } = tls.files();
    let not_after = certificate.not_after.and_then(|at| jiff::Timestamp::try_from(at).ok());
    tracing::info!(
        certificate = %file.display(),
        names = ?certificate.names,
        not_after = not_after.map(tracing::field::display),
        client_ca = client_ca.as_ref().map(|file| tracing::field::display(file.display())),
        "{what}"
    );
    if let Some(fault) = certificate.fault {
        tracing::warn!("no client will take the server's certificate in {}: {fault}", file.display());
    }
}

/// None where only format 1 is written, and there is no key file.
fn keys_for_writing(settings: &Settings) -> Result<Option<Arc<Keyring>>, KeysError> {
    let keys = match keys::load_or_make(settings) {
        Err(KeysError::NotSet { .. }) if settings.format == Format::One => return Ok(None),
        keys => keys?,
    };
    for warning in keys.warnings() {
        tracing::warn!("{warning}");
    }
    tracing::info!(key_file = %keys.path.display(), "the log is sealed under the first key of this file");
    Ok(Some(Arc::new(keys.keyring)))
}

/// Connections that may wait to be accepted: all clients of a server come back at once when it has been started again. With the 128 of the
/// standard library the system drops some, and resets them when they speak. It takes no more than `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

async fn bind(address: &ListenAddress) -> anyhow::Result<TcpListener> {
    listen(address.pair()).await.with_context(|| {
        format!(
            "cannot listen on {address}; if another tlog-server runs there, stop it or choose another port"
        )
    })
}

/// On the first of the addresses of a name that can be had.
async fn listen(address: (&str, u16)) -> std::io::Result<TcpListener> {
    let mut failed = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        let listening = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // As a server that was stopped a moment ago leaves connections behind.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        match listening() {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What other processes find beside the lock of a directory store.
fn lock_note(address: SocketAddr, admin: Option<SocketAddr>) -> String {
    match admin {
        Some(admin) => format!("tlog-server on {address}, {ADMIN_MARK}{}", reachable(admin)),
        None => format!("tlog-server on {address}"),
    }
}

const ADMIN_MARK: &str = "admin http://";

/// The admin endpoint that a lock note names.
pub fn admin_in_note(note: &str) -> Option<&str> {
    note.split_once(ADMIN_MARK).map(|(_, address)| address.trim())
}

/// Where a process on the same machine reaches what listens on this address.
fn reachable(address: SocketAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn server_settings(limits: &LimitSettings) -> ServerSettings {
    ServerSettings {
        max_connections: limits.max_connections,
        max_newcomers: limits.max_newcomers,
        max_total_message_bytes: limits.max_message_bytes,
        handshake_timeout: limits.handshake_timeout,
        open_timeout: limits.open_timeout,
        message_timeout: limits.message_timeout,
        idle_timeout: limits.idle_timeout,
        keepalive: limits.keepalive,
        write_timeout: limits.write_timeout,
        limits: Limits { max_block_bytes: limits.max_block_bytes, ..Limits::default() },
        max_window_bytes: limits.max_window_bytes_per_vdisk,
        max_total_window_bytes: limits.max_window_bytes,
        max_unflushed_bytes: limits.max_unflushed_bytes_per_vdisk,
        max_total_unflushed_bytes: limits.max_unflushed_bytes,
        vdisk_idle: limits.vdisk_idle_timeout,
        shutdown_grace: limits.shutdown_timeout,
        ..ServerSettings::default()
    }
}

/// Begins to count. Once in a process.
fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    const SECONDS: [f64; 14] =
        [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
    let recorder = builder.context("the buckets of the metrics")?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok().context("metrics are being recorded already")?;
    metrics_table::describe();
    metrics::gauge!("tlog_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let now = jiff::Timestamp::now();
    metrics::gauge!("tlog_start_time_seconds").set(now.as_millisecond() as f64 / 1000.0);
    Ok(handle)
}

struct ServerOperations {
    server_id: String,
    started: Instant,
    ready: AtomicBool,
    server: Server,
    storages: Storages,
    /// None where they are not kept.
    slaves: Option<Slaves>,
    proofs: Proofs,
    pins: Pins,
    /// Where the documents come from.
    documents: Option<String>,
    redundancy: String,
    scrub_rate: u64,
    opener: StoreOpener,
    /// Cancelled when the server begins to stop.
    stopping: CancellationToken,
}

#[async_trait]
impl Operations for ServerOperations {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    async fn status(&self) -> Value {
        let status = self.server.status();
        let logs = self.storages.logs().await;
        let vdisks: Vec<Value> = status
            .vdisks
            .iter()
            .map(|vdisk| show_vdisk(vdisk, logs.iter().find(|log| *log.vdisk() == vdisk.vdisk)))
            .collect();
        json!({
            "server_id": self.server_id,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.is_ready(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "redundancy": self.redundancy,
            "clusters": self.show_clusters(),
            "stores": show_stores(&self.storages.stores()).await,
            "documents": self.storages.configuration().map(|documents| self.show_documents(documents)),
            "slaves": self.slaves.as_ref().map(|slaves| slaves.show().iter().map(show_slave).collect::<Vec<_>>()),
            "connections": status.connections,
            "newcomers": status.newcomers,
            "message_bytes": status.message_bytes,
            "unflushed_bytes": status.unflushed_bytes,
            "window_bytes": status.window_bytes,
            "vdisks": vdisks,
            "restore": self.proofs.show(&logs),
            "pins": self.pins.show(),
            "under_way": retention::under_way::show(),
        })
    }

    async fn scrub(&self, vdisk: &VdiskId, rate: Option<u64>) -> Result<ScrubReport, String> {
        let rate = rate.unwrap_or(self.scrub_rate).max(1);
        let storage = self.storages.of(vdisk).await.map_err(|error| error.to_string())?;
        let done = storage.scrub(vdisk, rate, |_| {}).await.map_err(|error| error.to_string())?;
        tracing::info!(%vdisk, aggregations = done.report.aggregations, whole = done.report.is_whole(), "scrub done");
        Ok(ScrubReport::new(vdisk, &done))
    }

    async fn retention(
        &self,
        vdisk: &VdiskId,
        request: retention::Request,
    ) -> Result<retention::Report, String> {
        let storage = self.storages.of(vdisk).await.map_err(|error| error.to_string())?;
        let limits = ServerLimits { slaves: self.slaves.clone(), pins: self.pins.clone() };
        let mut untold = |_, _| {};
        let done = retention::run(&storage, vdisk, request, &limits, self.scrub_rate, &mut untold);
        // A log that closes because the server stops must not be opened here again: its client goes on elsewhere.
        let stopping = self.stopping.cancelled();
        let done = tokio::select! {
            done = done => done,
            () = stopping => return Err(format!("the server is stopping, and what was under way for vdisk {vdisk} ends; begin again")),
        };
        // Single moments that are kept stand on lines of their own.
        let tell = |done: &retention::Report| {
            tracing::info!(%vdisk, "{}", done.to_string().lines().next().unwrap_or_default());
        };
        done.inspect(tell).map_err(|error| words::of_error(&error))
    }

    async fn prove(&self, vdisk: &VdiskId) -> Result<ProofReport, String> {
        self.proofs.prove(vdisk).await.map_err(|error| error.to_string())
    }

    fn pins(&self) -> &Pins {
        &self.pins
    }

    async fn replace_stores(&self, request: ReplaceRequest) -> Result<ReplaceReport, String> {
        let storage = self.storages.for_replacing(&request).await?;
        let replaced = replacing::replace(&storage, &self.opener, &request, |_, _| {}).await;
        replaced.map_err(|error| error.to_string())
    }
}

impl ServerOperations {
    /// The storage clusters in use, where the documents say which those are.
    fn show_clusters(&self) -> Vec<Value> {
        let clusters =
            self.storages.in_use().into_iter().filter_map(|StorageInUse { cluster, storage, note }| {
                Some(json!({
                    "cluster": cluster?,
                    "redundancy": storage.redundancy().to_string(),
                    "stores": storage.places().addresses(None),
                    "pending": note,
                    "open_vdisks": storage.open_vdisks().len(),
                }))
            });
        clusters.collect()
    }

    fn show_documents(&self, documents: &Configuration) -> Value {
        let time = |at: SystemTime| jiff::Timestamp::try_from(at).ok().map(|at| at.to_string());
        let SourceHealth { away, revision, last_change, vdisks, problems } = documents.health();
        json!({
            "source": self.documents,
            "away": away.as_ref().map(|away| &away.why),
            "away_since": away.as_ref().and_then(|away| time(away.since)),
            "revision": revision,
            "last_change": time(last_change),
            "vdisks": vdisks,
            "problems": problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hundreds_of_clients_may_come_before_the_first_is_accepted() {
        const CLIENTS: u32 = 500;
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
        if most.and_then(|most| most.trim().parse::<u32>().ok()).is_some_and(|most| most < CLIENTS) {
            println!("skipped: this system lets fewer than {CLIENTS} connections wait (net.core.somaxconn)");
            return;
        }
        let listener = listen(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let connecting = tokio::net::TcpStream::connect(address);
            let connected = tokio::time::timeout(Duration::from_secs(10), connecting).await;
            clients.push(connected.unwrap_or_else(|_| panic!("client {number} is not let in")).unwrap());
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error() {
        let listener = listen(("127.0.0.1", 0)).await.unwrap();
        let taken = listener.local_addr().unwrap();
        let error = listen(("127.0.0.1", taken.port())).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
}
