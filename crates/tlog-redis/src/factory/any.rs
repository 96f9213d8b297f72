//! Whichever stores there are.

use std::sync::Arc;

use tlog_config::{ClusterSource, RedisServer};
use tlog_proto::VdiskId;

use super::{
    ConfigRedisPoolFactory, InMemoryRedisPoolFactory, RedisPoolFactory, RedisPoolFactoryError,
    StaticRedisPoolFactory,
};
use crate::{Links, RedisPool};

/// Where stores can come from. The first of these that is there is used: [`Self::servers`], [`Self::source`], [`Self::otherwise`],
/// [`Self::in_memory`].
#[derive(Clone, Debug, Default)]
pub struct AnyRedisPoolOptions {
    /// How many stores a vdisk needs: k + m.
    pub needed: usize,
    /// Servers for every vdisk.
    pub servers: Vec<RedisServer>,
    /// Whether missing servers are filled in: see [`fill_up`](crate::fill_up).
    pub auto_fill: bool,
    /// A configuration that says which servers each vdisk gets.
    pub source: Option<Arc<dyn ClusterSource>>,
    /// What to use where there is neither, such as the embedded store.
    pub otherwise: Option<Arc<dyn RedisPoolFactory>>,
    /// Whether stores in memory will do, where there is nothing else.
    pub in_memory: bool,
    /// Where links to servers come from.
    pub links: Links,
}

/// The factory for what `options` have.
pub fn any_redis_pool_factory(
    options: AnyRedisPoolOptions,
) -> Result<Arc<dyn RedisPoolFactory>, RedisPoolFactoryError> {
    let AnyRedisPoolOptions { needed, servers, auto_fill, source, otherwise, in_memory, links } = options;
    if !servers.is_empty() {
        return Ok(Arc::new(StaticRedisPoolFactory::new(servers, needed, auto_fill, links)?));
    }
    if let Some(source) = source {
        return Ok(Arc::new(ConfigRedisPoolFactory::new(source, needed, links)));
    }
    match otherwise {
        Some(factory) => Ok(factory),
        None if in_memory => Ok(Arc::new(InMemoryRedisPoolFactory::new(needed))),
        None => Err(RedisPoolFactoryError::NoStores),
    }
}

/// One pool of that factory, for who needs no more: a tool that looks at one vdisk.
pub async fn any_redis_pool(
    options: AnyRedisPoolOptions,
    vdisk: &VdiskId,
) -> Result<RedisPool, RedisPoolFactoryError> {
    any_redis_pool_factory(options)?.new_redis_pool(vdisk).await
}
