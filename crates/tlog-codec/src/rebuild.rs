//! From any k shards back to all n, without a key.

use bytes::Bytes;

use crate::erasure::{ErasureCode, ErasureError};
use crate::seal::{EncodedAggregation, hash_payloads};
use crate::shard::ShardHead;

/// Why an aggregation cannot be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// Not enough shards, or shards that do not fit together.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// The shards have the right hashes and yet do not belong together: who wrote them made a mistake.
    #[error("the shards are whole, but do not make up one aggregation")]
    Mismatch,
}

/// All shards of the aggregation that `head` is of, from the payloads that are there, by shard index. Each must have been
/// verified against a head with the same id; what is computed from them is verified here.
pub fn rebuild(head: &ShardHead, payloads: &[Option<Bytes>]) -> Result<EncodedAggregation, RebuildError> {
    head.header.check_payloads(payloads)?;
    let payloads = ErasureCode::new(head.header.redundancy).complete(payloads)?;
    if hash_payloads(head.header.suite, &payloads) != head.payload_hashes() {
        return Err(RebuildError::Mismatch);
    }
    Ok(EncodedAggregation { id: head.id, header: head.header, common: head.common.clone(), payloads })
}
