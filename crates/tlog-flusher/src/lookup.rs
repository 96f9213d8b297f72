//! Finding a block in the log by its position, through head parts: O(log n) reads.

use tlog_codec::{BlockEntry, Header, OpenError, Opener, ShardHead};
use tlog_proto::{AggregationNumber, LogPosition, Sequence};
use tlog_quorum::{StoreSet, Survey, TooFewStores};

use crate::recovery::opening_quorum;

/// Why a block could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The log has closed.
    #[error("the log is closed")]
    Closed,
    /// Too few stores answer to tell what counts.
    #[error(transparent)]
    TooFewStores(#[from] TooFewStores),
    /// No store that answers holds the head part of an aggregation.
    #[error("no store in reach holds aggregation {0}")]
    Unreadable(AggregationNumber),
    /// Its manifest does not open.
    #[error("aggregation {number}: {source}")]
    Open {
        /// Which aggregation.
        number: AggregationNumber,
        /// Why.
        #[source]
        source: OpenError,
    },
}

/// Looks blocks up in one log, and keeps the manifest that it read last: lookups come in order.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    last: Option<(Header, Vec<BlockEntry>)>,
}

impl Lookup {
    /// What the log holds at a position, up to and including aggregation `last`.
    pub(crate) async fn find(
        &mut self,
        set: &StoreSet,
        opener: &Opener,
        last: AggregationNumber,
        position: LogPosition,
    ) -> Result<Option<BlockEntry>, LookupError> {
        if !self.last.as_ref().is_some_and(|(header, _)| covers(header, position)) {
            let mut survey = set.survey().await;
            let found = loop {
                // With fewer in reach, what a later opening ruled out might be taken for what the log holds.
                survey.require(opening_quorum(set))?;
                match first_where(set, &survey, last, |header| end_of(header) >= position).await {
                    // What was asked for may have been removed since.
                    Err(LookupError::Unreadable(number)) if survey.first() <= number => {
                        let first = survey.first();
                        survey = set.survey().await;
                        if survey.first() == first {
                            return Err(LookupError::Unreadable(number));
                        }
                    }
                    found => break found?,
                }
            };
            let Some(head) = found else { return Ok(None) };
            if !covers(&head.header, position) {
                return Ok(None);
            }
            let number = head.header.number;
            let manifest = opener.manifest(&head).map_err(|source| LookupError::Open { number, source })?;
            self.last = Some((head.header, manifest));
        }
        let entries = self.last.as_ref().map(|(_, entries)| entries.as_slice()).unwrap_or_default();
        Ok(entries.iter().find(|entry| entry.sequence == position.sequence).copied())
    }
}

/// First sequence of the generation to which the last aggregation belongs.
pub(crate) async fn first_of_generation(
    set: &StoreSet,
    survey: &Survey,
    last: &Header,
) -> Result<Sequence, LookupError> {
    let generation = last.generation;
    let first = first_where(set, survey, last.number, |header| header.generation >= generation).await?;
    Ok(first.map_or(last.first_sequence, |head| head.header.first_sequence))
}

fn end_of(header: &Header) -> LogPosition {
    LogPosition { generation: header.generation, sequence: header.last_sequence }
}

fn covers(header: &Header, position: LogPosition) -> bool {
    header.generation == position.generation
        && (header.first_sequence..=header.last_sequence).contains(&position.sequence)
}

/// The first aggregation for which `reached` holds; it must hold for all behind it.
async fn first_where(
    set: &StoreSet,
    survey: &Survey,
    last: AggregationNumber,
    reached: impl Fn(&Header) -> bool,
) -> Result<Option<ShardHead>, LookupError> {
    let (mut low, mut high) = (survey.first().0, last.0.saturating_add(1));
    let mut found = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let head = head_at(set, survey, AggregationNumber(middle)).await?;
        if reached(&head.header) {
            high = middle;
            found = Some(head);
        } else {
            low = middle + 1;
        }
    }
    Ok(found)
}

async fn head_at(
    set: &StoreSet,
    survey: &Survey,
    number: AggregationNumber,
) -> Result<ShardHead, LookupError> {
    let located = set.heads(survey, number..=number).await.into_iter().next();
    let best = located.and_then(|located| located.candidates.into_iter().next());
    best.map(|candidate| candidate.head).ok_or(LookupError::Unreadable(number))
}
