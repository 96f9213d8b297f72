//! What happened in a run, in order, with virtual time.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// Events in their order. Kept only where somebody wants to read them: a run can be made again, and is then the same.
#[derive(Debug)]
pub(crate) struct Story {
    told: bool,
    began: Instant,
    lines: Mutex<Vec<String>>,
}

impl Story {
    /// Begins now.
    pub(crate) fn new(told: bool) -> Self {
        Self { told, began: Instant::now(), lines: Mutex::default() }
    }

    /// Adds an event.
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            let line = format!("{:>9.3} s  {}", self.began.elapsed().as_secs_f64(), what());
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    /// All there is.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds what the product logs, from a level on, on this thread, as long as the answer is held.
pub(crate) fn log(story: &Arc<Story>, from: Level) -> DefaultGuard {
    let story = Arc::clone(story);
    let lines = tracing_subscriber::fmt()
        .with_max_level(from)
        .without_time()
        .with_ansi(false)
        .with_writer(move || Line(Arc::clone(&story)));
    tracing::subscriber::set_default(lines.finish())
}

/// Where a line of the log is written to, in one piece.
struct Line(Arc<Story>);

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.tell(|| format!("| {}", String::from_utf8_lossy(line).trim_end()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
