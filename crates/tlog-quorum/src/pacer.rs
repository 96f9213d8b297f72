//! A bound on how fast stores are read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bounds a rate of reading, on average; for all who share it together.
#[derive(Debug)]
pub struct Pacer {
    rate: u64,
    free_at: Mutex<Instant>,
}

impl Pacer {
    /// At most so many bytes per second.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// So many bytes were read: waits as long as that may take. Many small waits are made as one.
    pub async fn read(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let now = Instant::now();
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(now) + takes;
            *free_at
        };
        if until >= now + Duration::from_millis(10) {
            tokio::time::sleep_until(until).await;
        }
    }
}
