//! Counting what stores are asked and what they answer, also for the stores of other crates.

use std::sync::Arc;

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
