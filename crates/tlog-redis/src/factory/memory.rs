//! Pools in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tlog_proto::VdiskId;
use tlog_store::{MemoryStore, ShardStore};

use super::{Pools, RedisPoolFactory, RedisPoolFactoryError};
use crate::RedisPool;

/// Stores in memory: for tests, and for trying things out. Every pool of one vdisk has the same stores, which last as long as the factory.
#[derive(Debug)]
pub struct InMemoryRedisPoolFactory {
    needed: usize,
    vdisks: Mutex<BTreeMap<VdiskId, Vec<Arc<MemoryStore>>>>,
    pools: Pools,
}

impl InMemoryRedisPoolFactory {
    /// `needed` (k + m) stores for each vdisk.
    pub fn new(needed: usize) -> Self {
        Self { needed, vdisks: Mutex::default(), pools: Pools::default() }
    }

    /// The stores of a vdisk.
    pub fn stores(&self, vdisk: &VdiskId) -> Vec<Arc<MemoryStore>> {
        let mut vdisks = self.vdisks.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || (0..self.needed).map(|i| Arc::new(MemoryStore::new(format!("memory:{i}")))).collect();
        vdisks.entry(vdisk.clone()).or_insert_with(make).clone()
    }
}

#[async_trait]
impl RedisPoolFactory for InMemoryRedisPoolFactory {
    async fn new_redis_pool(&self, vdisk: &VdiskId) -> Result<RedisPool, RedisPoolFactoryError> {
        let stores = self.stores(vdisk).into_iter().map(|store| store as Arc<dyn ShardStore>);
        self.pools.add(RedisPool::of_stores(stores))
    }

    fn close(&self) {
        self.pools.close();
    }
}
