//! What happened in a run, in order, with virtual time.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

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
