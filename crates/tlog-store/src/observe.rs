//! Counting what stores are asked and what they answer, also for the stores of other crates.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::{StoreError, StoreErrorKind};

/// Counts an answer, and puts the store's address to an error.
pub fn answered<T>(
    address: &Arc<str>,
    operation: &'static str,
    result: Result<T, StoreErrorKind>,
) -> Result<T, StoreError> {
    let outcome = result.as_ref().map_or_else(StoreErrorKind::name, |_| "ok");
    metrics::counter!(
        "tlog_store_operations_total",
        "store" => Arc::clone(address),
        "operation" => operation,
        "outcome" => outcome
    )
    .increment(1);
    result.map_err(|kind| StoreError::new(&**address, kind))
}

/// Counts the appends of one store, as [`answered`] would, and how long each took. What is done thousands of times a second is looked up once.
#[derive(Default)]
pub struct Appends(OnceLock<(Counter, Histogram)>);

impl Appends {
    /// Counts an answer, and puts the store's address to an error.
    pub fn answered<T>(
        &self,
        address: &Arc<str>,
        took: Duration,
        result: Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        let (stored, seconds) = self.0.get_or_init(|| {
            let store = || Arc::clone(address);
            let stored = metrics::counter!(
                "tlog_store_operations_total", "store" => store(), "operation" => "append", "outcome" => "ok"
            );
            (stored, metrics::histogram!("tlog_store_append_seconds", "store" => store()))
        });
        seconds.record(took);
        match result {
            Ok(answer) => {
                stored.increment(1);
                Ok(answer)
            }
            failed => answered(address, "append", failed),
        }
    }
}

impl std::fmt::Debug for Appends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Appends").finish_non_exhaustive()
    }
}
