//! What stands in a log beside writes: parts of checkpoints, and records.

use tlog_codec::Record;
use tlog_proto::{AggregationId, AggregationNumber, Block, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::log::AppendError;

/// An aggregation that is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAggregation {
    /// Its number.
    pub number: AggregationNumber,
    /// Its id.
    pub id: AggregationId,
}

/// Something without writes was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtraError {
    /// The log has closed; whether it was stored is not known.
    #[error(transparent)]
    Closed(#[from] AppendError),
    /// There is nothing yet that it could be about.
    #[error("nothing was logged yet")]
    EmptyLog,
    /// It cannot be sealed.
    #[error("it cannot be stored: {0}")]
    Seal(String),
}

/// Whom to tell when it is committed.
pub(crate) type ToldExtra = oneshot::Sender<Result<StoredAggregation, ExtraError>>;

/// Something without writes that is to be stored.
pub(crate) struct Extra {
    pub(crate) content: ExtraContent,
    pub(crate) permit: OwnedSemaphorePermit,
    pub(crate) told: ToldExtra,
}

pub(crate) enum ExtraContent {
    Checkpoint { blocks: Vec<Block>, about: Timestamp },
    Record(Box<Record>),
}
