//! What a log of format 2 goes on from.
//!
//! A vdisk may have history of format 1 on the same stores. The first aggregation of format 2 then names its newest aggregation,
//! and where there is none 32 zero bytes. That is decided before a new log is founded, from as many stores as founding
//! takes, and stands in the header of aggregation 1 from then on: nothing needs to find it out again.

use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, AggregationNumber, VdiskId};
use tlog_quorum::{ChainEndError, ChainSurvey, LinkError, StoreSet};

use super::tail::ChainTail;
use crate::open_error::OpenError;

/// A log cannot go on from its history of format 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoingOnError {
    /// It cannot be read without its keys, and must not be cut off.
    #[error(
        "vdisk {vdisk}: there is history of format 1 on these stores, which the log is to go on from; set private-key and nonce, those of the server that wrote it"
    )]
    KeysMissing {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// Where it ends cannot be told.
    #[error(transparent)]
    End(#[from] ChainEndError),
    /// Its last aggregation cannot be read.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// What comes before aggregation 1.
#[derive(Debug)]
pub(crate) struct Foundation {
    tail: ChainTail,
    /// Why that cannot be told. It matters only where the log has no aggregation yet.
    refused: Option<OpenError>,
}

impl Foundation {
    fn of(tail: ChainTail) -> Self {
        Self { tail, refused: None }
    }

    /// What the first aggregation names as the one before it.
    pub(crate) fn prev(&mut self) -> Result<AggregationId, OpenError> {
        match self.refused.take() {
            Some(error) => Err(error),
            None => Ok(self.tail.newest()),
        }
    }

    /// The end of what is before aggregation 1. Right only where that is not written yet: else it says itself what it follows.
    pub(crate) fn into_tail(self) -> ChainTail {
        self.tail
    }
}

/// Whether an aggregation may follow what is before it. Before the first anything may be: what it follows was decided when it was
/// written, and a reader checks that it is there.
pub(crate) fn follows(number: AggregationNumber, prev: AggregationId, expected: AggregationId) -> bool {
    number.0 == 1 || prev == expected
}

/// Finds what a log goes on from. Asks for one list per store, and nothing where no store can have format 1. An error is only what
/// must keep a log from being founded.
pub(crate) async fn foundation(set: &StoreSet, keys: Option<&Keys>) -> Result<Foundation, OpenError> {
    let nothing = Foundation::of(ChainTail::empty());
    if !set.may_have_chain() {
        return Ok(nothing);
    }
    let chain = set.chain_survey().await;
    let enough = chain.require(set.quorums().founding());
    if enough.is_ok() && !chain.exists() {
        return Ok(nothing);
    }
    let survey = set.survey().await;
    if survey.committed().0 > 0 {
        return Ok(nothing);
    }
    let found = match enough {
        Ok(()) => end_of(set, &chain, keys).await.map_err(OpenError::from),
        Err(too_few) => Err(too_few.into()),
    };
    match found {
        Ok(tail) => Ok(Foundation::of(tail)),
        Err(error) if survey.is_new() => Err(error),
        Err(error) => Ok(Foundation { refused: Some(error), ..nothing }),
    }
}

async fn end_of(set: &StoreSet, chain: &ChainSurvey, keys: Option<&Keys>) -> Result<ChainTail, GoingOnError> {
    let keys = keys.ok_or_else(|| GoingOnError::KeysMissing { vdisk: set.vdisk().clone() })?;
    let Some(newest) = set.chain_end(chain, keys).await?.certain()? else {
        return Ok(ChainTail::empty());
    };
    let tail = ChainTail::read(set, newest, keys).await?;
    tracing::info!(vdisk = %set.vdisk(), id = %newest, last = ?tail.end().last, "the log goes on from its history of format 1");
    Ok(tail)
}
