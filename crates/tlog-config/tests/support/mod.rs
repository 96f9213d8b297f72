//! A configuration, and waiting for what becomes of it.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // not every test uses everything, and tests want to fail

use std::sync::Arc;
use std::time::Duration;

use tlog_config::{Configuration, DocumentSource, SourceHealth, VdiskConfig};
use tlog_proto::VdiskId;
use tokio::sync::watch;
use tokio::time::timeout;

/// More than anything takes on a machine that does ten other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Running {
    pub(crate) configuration: Configuration,
    events: watch::Receiver<u64>,
}

pub(crate) fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

impl Running {
    pub(crate) async fn open(source: Arc<dyn DocumentSource>) -> Self {
        let configuration = Configuration::open(source).await.unwrap();
        let events = configuration.events();
        Self { configuration, events }
    }

    pub(crate) fn config(&self, name: &str) -> Option<Arc<VdiskConfig>> {
        self.configuration.vdisk(&vdisk(name)).borrow().clone()
    }

    /// The sizes in GiB of the vdisks `a` and `b`; 0 for one that is not there.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        let size = |name| self.config(name).map_or(0, |config| config.size >> 30);
        (size("a"), size("b"))
    }

    /// Waits until it is so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + LIMIT;
        while !is_so(self) {
            let changed = tokio::time::timeout_at(end, self.events.changed()).await;
            changed
                .unwrap_or_else(|_| panic!("not {what}: {:?}, {:?}", self.sizes(), self.health()))
                .unwrap();
        }
    }

    pub(crate) async fn until_sizes(&mut self, a: u64, b: u64) {
        self.until(&format!("a of {a} and b of {b} GiB"), |running| running.sizes() == (a, b)).await;
    }

    pub(crate) async fn until_away(&mut self) -> String {
        self.until("away", |running| running.health().away.is_some()).await;
        self.health().away.unwrap().why
    }

    pub(crate) async fn until_back(&mut self) {
        self.until("back", |running| running.health().away.is_none()).await;
    }

    pub(crate) async fn until_problems(&mut self, count: usize) -> Vec<String> {
        self.until(&format!("{count} problems"), |running| running.configuration.problems().len() == count)
            .await;
        self.configuration.problems().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn health(&self) -> SourceHealth {
        self.configuration.health()
    }
}

/// Ends a test that hangs.
pub(crate) async fn within_limit<T>(work: impl Future<Output = T>) -> T {
    timeout(2 * LIMIT, work).await.expect("it hangs")
}
