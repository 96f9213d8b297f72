//! Accepting connections, and stopping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tlog_proto::VdiskId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::connection;
use crate::places::Place;
use crate::port::{LogStorage, SlaveSync};
use crate::registry::Shared;
use crate::settings::{ServerSettings, SettingsError};
use crate::status::{RunReport, ServerStatus, VdiskReport};
use crate::tls::ServerTls;

/// A tlog server. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    tls: Option<ServerTls>,
}

impl Server {
    /// A server over plain TCP that keeps what it receives in `storage`. Without `slave`, a client that asks to wait for the slave is
    /// answered at once, with a warning in the log. What it counts goes to the recorder of metrics that is installed by now.
    pub fn new(
        settings: ServerSettings,
        storage: Arc<dyn LogStorage>,
        slave: Option<Arc<dyn SlaveSync>>,
    ) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self { shared: Arc::new(Shared::new(settings, storage, slave)), tls: None })
    }

    /// The same over TLS, and nothing but TLS.
    pub fn with_tls(self, tls: ServerTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Serves until `shutdown` is cancelled, then
    ///
    /// 1. stops accepting and reading,
    /// 2. makes everything durable that was ordered, and tells the clients,
    /// 3. closes the logs and the connections, and
    /// 4. answers when every task is gone, at the latest a moment after [`ServerSettings::shutdown_grace`].
    ///
    /// To be called once: a server that has stopped stays stopped.
    pub async fn run(&self, listener: TcpListener, shutdown: CancellationToken) -> RunReport {
        let shared = &self.shared;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = shared.stop.cancelled() => {}
            () = self.accept(&listener) => {}
        }
        drop(listener);
        self.stop().await
    }

    /// Steps 2 to 4 of [`Server::run`]: for whoever serves streams that it accepts itself ([`Server::serve_stream`]), and does not any
    /// more.
    pub async fn stop(&self) -> RunReport {
        let shared = &self.shared;
        info!("stopping: making everything durable");
        shared.stop.cancel();
        shared.tasks.close();
        if timeout(shared.settings.shutdown_grace, shared.tasks.wait()).await.is_err() {
            error!(grace = ?shared.settings.shutdown_grace, "not everything could be made durable in time, giving up");
            shared.kill.cancel();
            shared.tasks.wait().await;
        }
        let report = RunReport { vdisks: shared.take_reports() };
        if report.all_durable() {
            info!(vdisks = report.vdisks.len(), "stopped, everything is durable");
        } else {
            error!(vdisks = report.vdisks.len(), "stopped, not everything is durable");
        }
        report
    }

    /// Closes one vdisk: stops reading from its client, makes durable what was ordered, tells the client, and closes the log and the
    /// connection. Answers how it was left, once all of that is done; none where the vdisk was not open.
    ///
    /// A client that comes afterwards, the same one too, opens the log again; to keep it out, have the storage refuse the vdisk
    /// ([`OpenError::UnknownVdisk`](crate::OpenError::UnknownVdisk)) before this is called.
    pub async fn close_vdisk(&self, vdisk: &VdiskId) -> Option<VdiskReport> {
        self.shared.close(vdisk).await
    }

    /// Where everything stands, at any time.
    pub fn status(&self) -> ServerStatus {
        self.shared.status()
    }

    /// Accepts for ever.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            self.shared.places.room().await;
            match listener.accept().await {
                Ok((stream, peer)) => self.serve(stream, peer),
                Err(error) => {
                    // Mostly too many open files: existing connections must get the time to end.
                    warn!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
        self.serve_with(peer, |place| connection::serve(stream, peer, shared, tls, place));
    }

    /// Serves a stream that was accepted elsewhere, as if it were a connection without TLS that [`Server::run`] accepted: one of another
    /// kind, or a simulated one. Does not wait for its end. `peer` is shown in logs and status.
    pub fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
        peer: SocketAddr,
    ) {
        let shared = Arc::clone(&self.shared);
        self.serve_with(peer, |place| connection::serve_stream(stream, peer, shared, place));
    }

    /// Everything of the server is gone at once, as where its process is killed: nothing is flushed, and nobody is told.
    #[cfg(feature = "simulation")]
    pub fn kill(&self) {
        self.shared.kill.cancel();
        self.shared.stop.cancel();
        self.shared.tasks.close();
    }

    fn serve_with<F>(&self, peer: SocketAddr, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        metrics::counter!("tlog_server_connections_total").increment(1);
        let counted = Counted::new(&self.shared);
        let (place, mut crowded) = self.shared.places.enter();
        debug!(%peer, "accepted");
        let serving = serve(place);
        self.shared.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = serving => {}
                () = crowded.out() => counted.0.tell_crowded_out(peer),
            }
        });
    }
}

/// One of the connections that are open.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("tlog_server_connections").increment(1.0);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("tlog_server_connections").decrement(1.0);
    }
}
