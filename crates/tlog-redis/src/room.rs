//! The bound on what is on the way to one server.

use std::sync::Arc;

use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::LinkLimits;
use crate::request::Request;

/// Room for commands on the way, in number and bytes.
#[derive(Debug)]
pub(crate) struct Room {
    commands: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all_bytes: u32,
    commands_gauge: Gauge,
    bytes_gauge: Gauge,
}

/// What one command takes up; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    weight: u32,
    commands_gauge: Gauge,
    bytes_gauge: Gauge,
}

impl Room {
    pub(crate) fn new(limits: &LinkLimits, store: &Arc<str>) -> Self {
        let all_bytes = u32::try_from(limits.bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX).max(1);
        Self {
            commands: Arc::new(Semaphore::new(limits.commands.clamp(1, Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(all_bytes as usize)),
            all_bytes,
            commands_gauge: metrics::gauge!("tlog_redis_commands_in_flight", "store" => Arc::clone(store)),
            bytes_gauge: metrics::gauge!("tlog_redis_bytes_in_flight", "store" => Arc::clone(store)),
        }
    }

    /// Waits until there is room for the request, which counts as one command. First come, first served.
    pub(crate) async fn take(&self, request: &Request) -> Place {
        let closed = "these semaphores are never closed";
        let weight = u32::try_from(request.bytes()).unwrap_or(u32::MAX).clamp(1, self.all_bytes);
        let command = Arc::clone(&self.commands).acquire_owned().await.expect(closed);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(weight).await.expect(closed);
        self.place(Some((command, bytes)), weight)
    }

    /// Room for a few bytes beyond the bound.
    pub(crate) fn spare(&self) -> Place {
        self.place(None, 0)
    }

    fn place(&self, permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>, weight: u32) -> Place {
        self.commands_gauge.increment(1);
        self.bytes_gauge.increment(weight);
        Place {
            _permits: permits,
            weight,
            commands_gauge: self.commands_gauge.clone(),
            bytes_gauge: self.bytes_gauge.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.commands_gauge.decrement(1);
        self.bytes_gauge.decrement(self.weight);
    }
}
