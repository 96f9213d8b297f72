//! Ending a restore on a signal so that it can be gone on with.

use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell says of a program that SIGINT ended.
const STOPPED_AT_ONCE: i32 = 130;

/// Cancelled at the first SIGINT or SIGTERM. The second one ends the process: what was written since the last note is done again then.
pub(super) fn on_signals(bar: &ProgressBar) -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let (stopping, bar) = (stop.clone(), bar.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stopping.is_cancelled() {
                std::process::exit(STOPPED_AT_ONCE);
            }
            bar.suspend(|| eprintln!("tlog: making durable what is done; once more to end at once"));
            stopping.cancel();
        }
    });
    Ok(stop)
}
