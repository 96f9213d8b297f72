//! Removing the beginning of a log.

use tlog_proto::AggregationNumber;

use crate::log::AppendError;

/// What a prune did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Lowest number that the log keeps now.
    pub first: AggregationNumber,
    /// Addresses of stores that have not done it yet, because they are out. They do it when they are back.
    pub later: Vec<String>,
}

/// Nothing was removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PruneError {
    /// The log has closed; whether it was done is not known.
    #[error(transparent)]
    Closed(#[from] AppendError),
    /// What is not committed is never removed, nor the last that is: what comes next follows it.
    #[error(
        "the log cannot begin with aggregation {first}: {committed} is the last that is committed, and that one stays"
    )]
    NotCommitted {
        /// What was to be the lowest number.
        first: AggregationNumber,
        /// The last committed one.
        committed: AggregationNumber,
    },
    /// Another server may have the log.
    #[error(
        "too few stores answer to know that no other server has the log; nothing was removed, try again when they are back"
    )]
    NotConfirmed,
}
