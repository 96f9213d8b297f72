//! Logs of stored format 1 in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationId, VdiskId};

use crate::observe::answered;
use crate::{ChainStore, StoreError, StoreErrorKind};

/// A [`ChainStore`] in memory, with ways to damage what it holds and to fail. [`MemoryStore`](crate::MemoryStore) has one.
#[derive(Debug)]
pub struct MemoryChains {
    address: Arc<str>,
    state: Mutex<State>,
}

/// How far an append comes that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkStep {
    /// Nothing happens.
    Nothing,
    /// The shard is stored.
    Shard,
    /// The id is in front of the list too, which is longer than it should be.
    List,
    /// Everything is done, and the answer is lost.
    Trim,
}

#[derive(Debug, Default)]
struct State {
    shards: BTreeMap<AggregationId, Bytes>,
    lists: BTreeMap<VdiskId, Vec<AggregationId>>,
    down: bool,
    shards_unreadable: bool,
    /// How many of the next appends fail, and how far they come.
    failing: u64,
    fail_after: Option<LinkStep>,
    appends: u64,
    lists_read: u64,
    shards_read: u64,
}

impl MemoryChains {
    pub(crate) fn new(address: Arc<str>) -> Self {
        Self { address, state: Mutex::default() }
    }

    /// Forgets everything.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.shards.clear();
        state.lists.clear();
    }

    /// Out of reach: every call fails, and nothing happens.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Every read of a shard fails; lists are answered.
    pub fn set_shards_unreadable(&self, unreadable: bool) {
        self.state().shards_unreadable = unreadable;
    }

    /// The next `appends` stop after a step and are answered as out of reach.
    pub fn fail_appends(&self, appends: u64, after: LinkStep) {
        let mut state = self.state();
        (state.failing, state.fail_after) = (appends, Some(after));
    }

    /// How many appends were asked for, however they ended.
    pub fn appends(&self) -> u64 {
        self.state().appends
    }

    /// How many lists and how many shards were asked for.
    pub fn reads(&self) -> (u64, u64) {
        let state = self.state();
        (state.lists_read, state.shards_read)
    }

    /// Changes a shard. Answers whether it is there.
    pub fn damage_shard(&self, id: AggregationId, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        let Some(shard) = state.shards.get_mut(&id) else { return false };
        let mut bytes = shard.to_vec();
        change(&mut bytes);
        *shard = bytes.into();
        true
    }

    /// Loses a shard. Answers whether it was there.
    pub fn remove_shard(&self, id: AggregationId) -> bool {
        self.state().shards.remove(&id).is_some()
    }

    /// Stores a shard and nothing else, as a writer does that dies then.
    pub fn put_shard(&self, id: AggregationId, shard: Bytes) {
        self.state().shards.insert(id, shard);
    }

    /// A shard as it is.
    pub fn shard(&self, id: AggregationId) -> Option<Bytes> {
        self.state().shards.get(&id).cloned()
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        self.state().shards.len()
    }

    /// A vdisk's list as it is, newest first.
    pub fn list(&self, vdisk: &VdiskId) -> Vec<AggregationId> {
        self.state().lists.get(vdisk).cloned().unwrap_or_default()
    }

    /// Puts another list in its place; an empty one removes it.
    pub fn set_list(&self, vdisk: &VdiskId, list: Vec<AggregationId>) {
        let lists = &mut self.state().lists;
        match list.is_empty() {
            true => drop(lists.remove(vdisk)),
            false => drop(lists.insert(vdisk.clone(), list)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, operation: &'static str, act: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.state();
        let fails = state.down || (state.shards_unreadable && operation == "linked_shard");
        let result = if fails { Err(unavailable("out of reach")) } else { Ok(act(&mut state)) };
        answered(&self.address, operation, result)
    }
}

fn unavailable(what: &'static str) -> StoreErrorKind {
    StoreErrorKind::Unavailable { source: std::io::Error::other(what) }
}

impl State {
    fn append(
        &mut self,
        vdisk: &VdiskId,
        id: AggregationId,
        shard: Bytes,
        keep: usize,
    ) -> Result<(), StoreErrorKind> {
        let fails = self.failing > 0;
        self.failing = self.failing.saturating_sub(1);
        let last = self.fail_after.filter(|_| fails);
        let stops = |step| if last == Some(step) { Err(unavailable("the answer was lost")) } else { Ok(()) };
        stops(LinkStep::Nothing)?;
        self.shards.insert(id, shard);
        stops(LinkStep::Shard)?;
        let list = self.lists.entry(vdisk.clone()).or_default();
        if list.first() != Some(&id) {
            list.insert(0, id);
        }
        stops(LinkStep::List)?;
        list.truncate(keep);
        stops(LinkStep::Trim)
    }
}

#[async_trait]
impl ChainStore for MemoryChains {
    async fn append_link(
        &self,
        vdisk: &VdiskId,
        id: AggregationId,
        shard: Bytes,
        keep: usize,
    ) -> Result<(), StoreError> {
        let result = {
            let mut state = self.state();
            state.appends += 1;
            match state.down {
                true => Err(unavailable("out of reach")),
                false => state.append(vdisk, id, shard, keep),
            }
        };
        answered(&self.address, "append_link", result)
    }

    async fn last_links(&self, vdisk: &VdiskId) -> Result<Vec<AggregationId>, StoreError> {
        self.call("last_links", |state| {
            state.lists_read += 1;
            state.lists.get(vdisk).cloned().unwrap_or_default()
        })
    }

    async fn linked_shard(&self, id: AggregationId) -> Result<Option<Bytes>, StoreError> {
        self.call("linked_shard", |state| {
            state.shards_read += 1;
            state.shards.get(&id).cloned()
        })
    }

    async fn linked_vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.call("linked_vdisks", |state| state.lists.keys().cloned().collect())
    }

    async fn delete_links(&self, vdisk: &VdiskId) -> Result<(), StoreError> {
        self.call("delete_links", |state| drop(state.lists.remove(vdisk)))
    }

    async fn delete_linked_shards(&self, ids: &[AggregationId]) -> Result<(), StoreError> {
        self.call("delete_linked_shards", |state| ids.iter().for_each(|id| drop(state.shards.remove(id))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, ShardStore};

    fn id(of: u8) -> AggregationId {
        AggregationId([of; 32])
    }

    #[tokio::test]
    async fn the_list_keeps_the_newest_and_the_same_id_again_changes_nothing() {
        let (store, vdisk) = (MemoryStore::new("memory:"), VdiskId::new("disk").unwrap());
        let chains = ShardStore::chains(&store).unwrap();
        for of in [1, 2, 3, 3, 4, 5, 6, 7, 7] {
            chains.append_link(&vdisk, id(of), Bytes::from(vec![of]), 5).await.unwrap();
        }
        assert_eq!(chains.last_links(&vdisk).await.unwrap(), [7, 6, 5, 4, 3].map(id));
        assert_eq!(chains.linked_shard(id(1)).await.unwrap().unwrap()[..], [1], "shards stay");
        assert_eq!(chains.linked_vdisks().await.unwrap(), std::slice::from_ref(&vdisk));
        chains.delete_linked_shards(&[id(1), id(9)]).await.unwrap();
        assert_eq!(chains.linked_shard(id(1)).await.unwrap(), None);
        chains.delete_links(&vdisk).await.unwrap();
        assert_eq!(chains.linked_vdisks().await.unwrap(), []);
    }

    #[tokio::test]
    async fn appends_fail_after_the_step_that_was_said() {
        let (store, vdisk) = (MemoryStore::new("memory:"), VdiskId::new("disk").unwrap());
        let chains = store.chain_store();
        for (after, shard, listed) in [
            (LinkStep::Nothing, false, false),
            (LinkStep::Shard, true, false),
            (LinkStep::List, true, true),
            (LinkStep::Trim, true, true),
        ] {
            chains.wipe();
            chains.fail_appends(1, after);
            chains.append_link(&vdisk, id(1), Bytes::from_static(b"s"), 5).await.unwrap_err();
            assert_eq!((chains.shard(id(1)).is_some(), !chains.list(&vdisk).is_empty()), (shard, listed));
            chains.append_link(&vdisk, id(1), Bytes::from_static(b"s"), 5).await.unwrap();
            assert_eq!(chains.list(&vdisk), [id(1)]);
        }
    }
}
