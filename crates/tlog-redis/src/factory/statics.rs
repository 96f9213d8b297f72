//! Pools of servers that are known from the beginning.

use async_trait::async_trait;
use tlog_config::RedisServer;
use tlog_proto::VdiskId;

use super::servers::{fill_up, linked};
use super::{Pools, RedisPoolFactory, RedisPoolFactoryError};
use crate::{Links, RedisPool};

/// The same servers for every vdisk.
#[derive(Debug)]
pub struct StaticRedisPoolFactory {
    servers: Vec<RedisServer>,
    links: Links,
    pools: Pools,
}

impl StaticRedisPoolFactory {
    /// The first `needed` (k + m) of these servers, with those that are missing filled in where `auto_fill` is on: see [`fill_up`].
    pub fn new(
        servers: Vec<RedisServer>,
        needed: usize,
        auto_fill: bool,
        links: Links,
    ) -> Result<Self, RedisPoolFactoryError> {
        let servers = fill_up(servers, needed, auto_fill)?;
        // Files that cannot be used are found now, not when the first vdisk comes.
        linked(&links, &servers)?;
        Ok(Self { servers, links, pools: Pools::default() })
    }

    /// The servers, in order.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }
}

#[async_trait]
impl RedisPoolFactory for StaticRedisPoolFactory {
    async fn new_redis_pool(&self, _: &VdiskId) -> Result<RedisPool, RedisPoolFactoryError> {
        self.pools.add(RedisPool::of_links(linked(&self.links, &self.servers)?))
    }

    fn close(&self) {
        self.pools.close();
    }
}
