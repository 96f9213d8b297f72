//! What an operator can set of a log's writer.

use std::time::Duration;

/// Policy and bounds of one log's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// An aggregation is flushed when it has so many blocks.
    pub max_blocks: usize,
    /// ... or when its oldest block has waited so long.
    pub max_age: Duration,
    /// ... or when its blocks have so many bytes.
    pub max_batch_bytes: usize,
    /// So many aggregations may be on their way to the stores at once.
    pub in_flight: usize,
    /// So many bytes may be not durable yet before `append` waits.
    pub max_unflushed_bytes: usize,
    /// A log closes when an aggregation could not be committed for so long.
    pub commit_timeout: Duration,
    /// Stores are told what is committed once nothing was written for so long.
    pub publish_after: Duration,
    /// First pause before a failed store is tried again; it doubles with every failure ...
    pub retry_after: Duration,
    /// ... up to this.
    pub retry_at_most: Duration,
    /// Bytes per second that backfill and refill read for this log, all stores together.
    pub fill_bytes_per_second: u64,
    /// A store that has said nothing for about so long is asked whether it is still the same one, so that a lost, wiped or
    /// replaced store is noticed while nothing is written.
    pub check_stores_every: Duration,
    /// When the log closes, everything is durable. A store that does not answer then is waited for at most so long; what it
    /// has not heard, the next opening tells it.
    pub close_patience: Duration,
}

/// Settings under which a writer cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} must be more than zero")]
pub struct InvalidSettings(pub &'static str);

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            max_blocks: 25,
            max_age: Duration::from_secs(25),
            max_batch_bytes: 32 << 20,
            in_flight: 8,
            max_unflushed_bytes: 64 << 20,
            commit_timeout: Duration::from_secs(30),
            publish_after: Duration::from_millis(200),
            retry_after: Duration::from_millis(100),
            retry_at_most: Duration::from_secs(10),
            fill_bytes_per_second: 64 << 20,
            check_stores_every: Duration::from_secs(5),
            close_patience: Duration::from_secs(1),
        }
    }
}

impl LogSettings {
    /// Refuses nonsense.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        let positive = |holds: bool, what| if holds { Ok(()) } else { Err(InvalidSettings(what)) };
        positive(self.max_blocks > 0, "flush-size")?;
        positive(!self.max_age.is_zero(), "flush-time")?;
        positive(self.max_batch_bytes > 0, "the bytes of an aggregation")?;
        positive(self.in_flight > 0, "in-flight")?;
        positive(self.max_unflushed_bytes > 0, "max-unflushed-bytes")?;
        positive(!self.commit_timeout.is_zero(), "commit-timeout")?;
        positive(!self.retry_after.is_zero(), "the pause before a retry")?;
        positive(self.fill_bytes_per_second > 0, "the rate of backfill")?;
        positive(!self.check_stores_every.is_zero(), "check-stores-every")
    }
}
