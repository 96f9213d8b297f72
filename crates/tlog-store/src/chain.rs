//! The second port: logs of stored format 1, as existing servers keep them.
//!
//! ```text
//! <id, 32 raw bytes>  -> shard i                                (on store i)
//! last_hash_<vdisk>   -> list of the last ids, newest first     (on every store)
//! ```
//! There are no numbers, epochs or identities: history is walked from the newest id back, and nothing fences a second writer.

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationId, VdiskId};

use crate::StoreError;

/// What a store has of logs of format 1.
#[async_trait]
pub trait ChainStore: Send + Sync + 'static {
    /// Stores a shard under its aggregation's id, puts the id in front of the vdisk's list and trims that to `keep`, in that order.
    /// Again with the id that is in front already: the list stays as it is.
    async fn append_link(
        &self,
        vdisk: &VdiskId,
        id: AggregationId,
        shard: Bytes,
        keep: usize,
    ) -> Result<(), StoreError>;

    /// The vdisk's list, newest first; empty where there is none. Entries that are no ids are left out.
    async fn last_links(&self, vdisk: &VdiskId) -> Result<Vec<AggregationId>, StoreError>;

    /// The shard under an id.
    async fn linked_shard(&self, id: AggregationId) -> Result<Option<Bytes>, StoreError>;

    /// The vdisks that the store has a list of, in order of name.
    async fn linked_vdisks(&self) -> Result<Vec<VdiskId>, StoreError>;

    /// Removes a vdisk's list.
    async fn delete_links(&self, vdisk: &VdiskId) -> Result<(), StoreError>;

    /// Removes shards.
    async fn delete_linked_shards(&self, ids: &[AggregationId]) -> Result<(), StoreError>;
}
