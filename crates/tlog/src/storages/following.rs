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
    task: JoinHandle<()>,
}

/// Where a vdisk's log is: on which cluster, with which write quorum where that has its own. None: on the stores of the settings.
pub(super) type VdiskPlace = Option<(String, Option<u8>)>;

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
        place: VdiskPlace,
        changes: Changes,
        place_now: impl Fn(Option<&VdiskConfig>) -> Result<VdiskPlace, PlacementError> + Send + 'static,
    ) {
        let mut vdisks = self.vdisks.lock().unwrap_or_else(PoisonError::into_inner);
        vdisks.retain(|_, followed| !followed.task.is_finished());
        let (server, id) = (Arc::clone(&self.server), vdisk.clone());
        let task = tokio::spawn(close_when_moved(id, place, changes, place_now, server));
        // The one before looked at an opening that is over. What it has had closed is closed all the same.
        vdisks.insert(vdisk.clone(), Followed { task });
    }
}

async fn close_when_moved(
    vdisk: VdiskId,
    place: VdiskPlace,
    mut changes: Changes,
    place_now: impl Fn(Option<&VdiskConfig>) -> Result<VdiskPlace, PlacementError>,
    server: Arc<OnceLock<Server>>,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        let reason = match place_now(config.as_deref()) {
            Ok(now) if now == place => continue,
            Ok(now) => {
                tracing::info!(%vdisk, from = ?place, to = ?now, "the log of this vdisk is to be elsewhere, or with another write quorum: closing it");
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

/// Closes a vdisk; the server says how it was left.
pub(super) async fn close(server: &Server, vdisk: &VdiskId) {
    let _told = server.close_vdisk(vdisk).await;
}
