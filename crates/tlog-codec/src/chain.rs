//! Checking a chain without a key.

use tlog_proto::{AggregationId, AggregationNumber};

use crate::shard::ShardHead;

/// Walks a log from old to new and proves that nothing in it was changed, removed, reordered or brought in from elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct ChainVerifier {
    next: AggregationNumber,
    /// None where the walk begins in the middle: the first `prev` is taken on trust.
    prev: Option<AggregationId>,
}

/// Where a chain is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainBreak {
    /// An aggregation stands where another one belongs.
    #[error("aggregation {found} stands where {expected} belongs")]
    Number {
        /// What comes next in the chain.
        expected: AggregationNumber,
        /// What the header says.
        found: AggregationNumber,
    },
    /// It follows another aggregation than the one before it.
    #[error("aggregation {number} follows {found}, not {expected}, which is the one before it")]
    Prev {
        /// Which aggregation.
        number: AggregationNumber,
        /// Id of the one before it.
        expected: AggregationId,
        /// What its header says.
        found: AggregationId,
    },
}

impl ChainVerifier {
    /// From the first aggregation of a log on.
    pub fn from_start() -> Self {
        Self { next: AggregationNumber(1), prev: Some(AggregationId::BEFORE_FIRST) }
    }

    /// From aggregation `next` on, where the id of the one before it is known.
    pub fn after(next: AggregationNumber, prev: AggregationId) -> Self {
        Self { next, prev: Some(prev) }
    }

    /// From aggregation `next` on, where what was before it is gone, as after pruning. Nothing is before the first, so that
    /// from there it is the same as [`Self::from_start`].
    pub fn from_pruned(next: AggregationNumber) -> Self {
        if next.0 <= 1 {
            return Self::from_start();
        }
        Self { next, prev: None }
    }

    /// The number that it expects next.
    pub fn next(&self) -> AggregationNumber {
        self.next
    }

    /// Checks the next aggregation. After an error the verifier still expects that number.
    pub fn handle(&mut self, head: &ShardHead) -> Result<(), ChainBreak> {
        let header = &head.header;
        if header.number != self.next {
            return Err(ChainBreak::Number { expected: self.next, found: header.number });
        }
        match self.prev {
            Some(expected) if expected != header.prev => {
                Err(ChainBreak::Prev { number: header.number, expected, found: header.prev })
            }
            _ => {
                self.prev = Some(head.id);
                self.next = header.number.next();
                Ok(())
            }
        }
    }
}
