//! Closing vdisks that are removed from the documents, or whose log is to be on another cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tlog_config::VdiskConfig;
use tlog_proto::VdiskId;
use tlog_server::Server;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::documents::PlacementError;

/// One task for each vdisk that was opened, until its place changes.
pub(super) struct Following {
    server: Arc<OnceLock<Server>>,
    vdisks: Mutex<BTreeMap<VdiskId, Followed>>,
}

struct Followed {
    /// The cluster that its log is on; none where all are on the stores of the settings.
    place: Option<String>,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Changes = watch::Receiver<Option<Arc<VdiskConfig>>>;

impl Following {
    pub(super) fn new(server: Arc<OnceLock<Server>>) -> Self {
        Self { server, vdisks: Mutex::default() }
    }

    /// Closes a vdisk that is being opened in this place as soon as `place_now` says another one.
    pub(super) fn follow(
        &self,
        vdisk: &VdiskId,
        place: Option<String>,
        changes: Changes,
        place_now: impl Fn(Option<&VdiskConfig>) -> Result<Option<String>, PlacementError> + Send + 'static,
    ) {
        let mut vdisks = self.vdisks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = vdisks.get(vdisk)
            && known.place == place
            && !known.task.is_finished()
        {
            return;
        }
        let (server, id, was) = (Arc::clone(&self.server), vdisk.clone(), place.clone());
        let task = tokio::spawn(close_when_moved(id, was, changes, place_now, server));
        vdisks.insert(vdisk.clone(), Followed { place, task });
    }
}

async fn close_when_moved(
    vdisk: VdiskId,
    place: Option<String>,
    mut changes: Changes,
    place_now: impl Fn(Option<&VdiskConfig>) -> Result<Option<String>, PlacementError>,
    server: Arc<OnceLock<Server>>,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        let reason = match place_now(config.as_deref()) {
            Ok(now) if now == place => continue,
            Ok(now) => {
                tracing::info!(%vdisk, from = place, to = now, "the log of this vdisk is to be on another cluster: closing it");
                "moved"
            }
            Err(why) => {
                tracing::info!(%vdisk, %why, "closing the vdisk");
                "removed"
            }
        };
        metrics::counter!("tlog_config_vdisks_closed_total", "reason" => reason).increment(1);
        if let Some(server) = server.get() {
            close(server, &vdisk).await;
        }
        return;
    }
}

/// Closes a vdisk, and says how it was left.
pub(super) async fn close(server: &Server, vdisk: &VdiskId) {
    match server.close_vdisk(vdisk).await {
        None => {}
        Some(report) => match report.error {
            None => tracing::info!(%vdisk, durable = ?report.durable, "closed, everything is durable"),
            Some(error) => tracing::error!(%vdisk, error, "closed, not everything is durable"),
        },
    }
}
