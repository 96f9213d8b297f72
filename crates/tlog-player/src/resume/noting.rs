//! Noting what is done while the rest is being read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::journal::Journal;
use crate::file::SparseFile;
use crate::job::JobKey;
use crate::restore::{Written, blocking};

/// Aggregations that are done and not noted, at most, while a note is made: then reading waits.
pub(super) const AHEAD: usize = 256;
/// How long something is done before it is noted.
const EVERY: Duration = Duration::from_secs(1);

/// What was noted, and how it ended.
pub(super) struct Noted {
    pub(super) count: u64,
    pub(super) result: io::Result<()>,
}

/// Notes what is done after every so many bytes, or a second, until nothing more comes. A note is made only after the file was synced, with
/// what had been written before that.
pub(super) async fn note(
    journal: &mut Journal,
    file: &Arc<SparseFile>,
    mut finished: mpsc::Receiver<Written>,
    sync_bytes: u64,
) -> Noted {
    let mut noted = Noted { count: 0, result: Ok(()) };
    let mut pending: Vec<JobKey> = Vec::new();
    let mut bytes = 0;
    let mut due = Instant::now();
    loop {
        let next = tokio::select! {
            written = finished.recv() => Some(written),
            () = sleep_until(due), if !pending.is_empty() => None,
        };
        if let Some(Some(written)) = next {
            if pending.is_empty() {
                due = Instant::now() + EVERY;
            }
            pending.push(written.key);
            bytes += written.bytes;
            if bytes < sync_bytes {
                continue;
            }
        }
        if !pending.is_empty() {
            let synced = file.file();
            noted.result = match blocking(move || synced.sync_data()).await {
                Ok(()) => journal.done(&pending),
                error => error,
            };
            if noted.result.is_err() {
                return noted;
            }
            noted.count += pending.len() as u64;
            pending.clear();
            bytes = 0;
        }
        if let Some(None) = next {
            return noted;
        }
    }
}
