//! A server over a log in memory, and a client that does as it is told.
#![allow(dead_code, missing_docs, unreachable_pub, unused_imports)]

pub mod certificates;
pub mod client;
pub mod counters;
pub mod log;
pub mod said;
pub mod scene;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tlog_server::{RunReport, Server, ServerSettings, ServerTls, SlaveSync};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use client::{Client, back, block, handshake};
pub use counters::Counters;
pub use log::MemoryLogs;
pub use said::Said;

/// Longer than anything takes; only a test that fails waits for it.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for something that must happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it happens soon")
}

/// A server that runs, and what it stores into.
pub struct Running {
    pub addr: SocketAddr,
    pub server: Server,
    pub logs: Arc<MemoryLogs>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<RunReport>,
}

impl Running {
    pub async fn start() -> Self {
        Self::with(ServerSettings::default()).await
    }

    pub async fn with(settings: ServerSettings) -> Self {
        Self::with_all(settings, Arc::new(MemoryLogs::default()), None).await
    }

    pub async fn with_all(
        settings: ServerSettings,
        logs: Arc<MemoryLogs>,
        slave: Option<Arc<dyn SlaveSync>>,
    ) -> Self {
        let server = Server::new(settings, logs.clone(), slave).unwrap();
        Self::run(server, logs).await
    }

    pub async fn with_tls(settings: ServerSettings, tls: ServerTls) -> Self {
        let logs = Arc::new(MemoryLogs::default());
        let server = Server::new(settings, logs.clone(), None).unwrap().with_tls(tls);
        Self::run(server, logs).await
    }

    async fn run(server: Server, logs: Arc<MemoryLogs>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move { server.run(listener, shutdown).await }
        });
        Self { addr, server, logs, shutdown, task }
    }

    pub async fn stop(self) -> RunReport {
        self.shutdown.cancel();
        soon(self.task).await.unwrap()
    }

    /// Waits until the status of a vdisk is so.
    pub async fn until(&self, mut so: impl FnMut(&tlog_server::ServerStatus) -> bool) {
        soon(async {
            while !so(&self.server.status()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Small bounds, so that tests reach them.
pub fn small() -> ServerSettings {
    let mut settings = ServerSettings::default();
    settings.limits.max_block_bytes = 16 << 10;
    settings.max_window_span = 64;
    settings.max_window_bytes = 32 << 10;
    settings.max_total_window_bytes = 64 << 10;
    settings.max_unflushed_bytes = 64 << 10;
    settings.max_total_unflushed_bytes = 256 << 10;
    settings
}
