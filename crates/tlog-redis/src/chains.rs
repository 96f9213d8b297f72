//! Logs of stored format 1, under the very keys that existing servers use: nothing tells them from other keys but their names.

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationId, AggregationNumber, VdiskId};
use tlog_store::{ChainStore, StoreError, StoreErrorKind};

use crate::scripts;
use crate::store::{ATTEMPTS, RedisStore, contended};

const LIST: &str = "last_hash_";
/// Existing servers keep five ids; nobody keeps more than this.
const MOST_LINKS: usize = 1000;
/// How many keys are looked at or deleted by one command.
const KEYS_AT_ONCE: usize = 512;

fn list(vdisk: &VdiskId) -> String {
    format!("{LIST}{vdisk}")
}

impl RedisStore {
    async fn read_last_links(&self, vdisk: &VdiskId) -> Result<Vec<AggregationId>, StoreErrorKind> {
        let list = list(vdisk);
        let ids: Vec<Vec<u8>> =
            self.run(redis::cmd("LRANGE").arg(&list).arg(0).arg(MOST_LINKS - 1), &list).await?;
        self.known.suggest_front(vdisk, ids.first());
        Ok(ids.into_iter().filter_map(|id| id.try_into().ok().map(AggregationId)).collect())
    }

    async fn link_appended(
        &self,
        vdisk: &VdiskId,
        id: AggregationId,
        shard: &[u8],
        keep: usize,
    ) -> Result<(), StoreErrorKind> {
        let list = list(vdisk);
        for _ in 0..ATTEMPTS {
            let call = scripts::LINK.call(&[&id.0[..], list.as_bytes()]).arg(shard).arg(keep);
            let call = call.arg(self.known.front(vdisk));
            let mut reply = self.call(call).await?.granted(AggregationNumber(0))?;
            if reply.word() != "moved" {
                self.known.set_front(vdisk, id.0.to_vec());
                return Ok(());
            }
            // Somebody else wrote, which nothing forbids in format 1. Only who is still there tries again.
            self.known.set_front(vdisk, reply.bytes()?);
        }
        Err(contended())
    }

    async fn list_linked_vdisks(&self) -> Result<Vec<VdiskId>, StoreErrorKind> {
        let pattern = format!("{LIST}*");
        let (mut vdisks, mut cursor) = (Vec::new(), 0u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(KEYS_AT_ONCE);
            let (next, keys): (u64, Vec<Vec<u8>>) = self.run(&scan, LIST).await?;
            let names = keys.iter().filter_map(|key| key.strip_prefix(LIST.as_bytes()));
            vdisks.extend(names.filter_map(|name| VdiskId::from_bytes(name).ok()));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // A scan can name a key twice.
        vdisks.sort_unstable();
        vdisks.dedup();
        Ok(vdisks)
    }
}

#[async_trait]
impl ChainStore for RedisStore {
    async fn append_link(
        &self,
        vdisk: &VdiskId,
        id: AggregationId,
        shard: Bytes,
        keep: usize,
    ) -> Result<(), StoreError> {
        self.answered("append_link", self.link_appended(vdisk, id, &shard, keep).await)
    }

    async fn last_links(&self, vdisk: &VdiskId) -> Result<Vec<AggregationId>, StoreError> {
        self.answered("last_links", self.read_last_links(vdisk).await)
    }

    async fn linked_shard(&self, id: AggregationId) -> Result<Option<Bytes>, StoreError> {
        let key = format!("shard of format 1, {id},");
        let shard: Result<Option<Vec<u8>>, _> = self.run(redis::cmd("GET").arg(&id.0[..]), &key).await;
        self.answered("linked_shard", shard.map(|shard| shard.map(Bytes::from)))
    }

    async fn linked_vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.answered("linked_vdisks", self.list_linked_vdisks().await)
    }

    async fn delete_links(&self, vdisk: &VdiskId) -> Result<(), StoreError> {
        let list = list(vdisk);
        self.answered("delete_links", self.run(redis::cmd("DEL").arg(&list), &list).await)
    }

    async fn delete_linked_shards(&self, ids: &[AggregationId]) -> Result<(), StoreError> {
        let mut result = Ok(());
        for some in ids.chunks(KEYS_AT_ONCE) {
            let keys: Vec<&[u8]> = some.iter().map(|id| &id.0[..]).collect();
            result = self.run(redis::cmd("DEL").arg(keys), "shards of format 1").await;
            if result.is_err() {
                break;
            }
        }
        self.answered("delete_linked_shards", result)
    }
}
