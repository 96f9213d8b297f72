//! The removal of history that a server does by itself, from time to time.

use std::collections::BTreeMap;
use std::time::Duration;

use tlog_proto::VdiskId;

use super::limits::ServerLimits;
use super::{How, Keep, Report, Request, run as carry_out};
use crate::storages::{StorageInUse, Storages};
use crate::words;

/// What a server keeps by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Which moments.
    pub keep: Keep,
    /// How often it looks whether there is something to remove.
    pub every: Duration,
    /// Bytes per second that it writes at most.
    pub rate: u64,
}

/// Removes what is not to be kept of every vdisk that is open here, one after the other, again and again. A log that no client has
/// open it leaves alone: another server may have it.
///
/// Why nothing was removed is said once, and again when it is another reason.
pub async fn run(storages: Storages, retention: Retention, limits: ServerLimits) {
    let mut told: BTreeMap<VdiskId, String> = BTreeMap::new();
    loop {
        tokio::time::sleep(retention.every).await;
        for StorageInUse { storage, .. } in storages.all().await {
            for vdisk in storage.open_vdisks() {
                let request =
                    Request::Prune { keep: retention.keep, how: How::default(), rate: Some(retention.rate) };
                let done =
                    carry_out(&storage, &vdisk, request, &limits, retention.rate, &mut |_, _| {}).await;
                let (why, failed) = match done {
                    Ok(Report::Prune(report)) if !report.pruned => {
                        (report.why_not.unwrap_or_default(), false)
                    }
                    Ok(Report::Prune(report)) => {
                        tracing::info!(%vdisk, first = report.first, removed_bytes = report.removed_bytes,
                            written_bytes = report.written_bytes, seconds = report.seconds, "history that is not to be kept was removed");
                        told.remove(&vdisk);
                        continue;
                    }
                    Ok(_) => continue, // nothing else was asked for
                    Err(error) => {
                        metrics::counter!("tlog_retention_failures_total").increment(1);
                        (words::of_error(&error), true)
                    }
                };
                match (told.get(&vdisk) != Some(&why), failed) {
                    (true, true) => {
                        tracing::warn!(%vdisk, error = why, "history that is not to be kept could not be removed");
                    }
                    (true, false) => tracing::info!(%vdisk, because = why, "no history was removed"),
                    (false, _) => {}
                }
                told.insert(vdisk, why);
            }
        }
        let open: Vec<VdiskId> =
            storages.in_use().iter().flat_map(|used| used.storage.open_vdisks()).collect();
        told.retain(|vdisk, _| open.contains(vdisk));
    }
}
