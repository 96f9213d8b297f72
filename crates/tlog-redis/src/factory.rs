//! Where pools come from.

mod any;
mod config;
mod memory;
mod servers;
mod statics;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tlog_config::ClusterSourceError;
use tlog_proto::VdiskId;

pub use self::any::{AnyRedisPoolOptions, any_redis_pool, any_redis_pool_factory};
pub use self::config::ConfigRedisPoolFactory;
pub use self::memory::InMemoryRedisPoolFactory;
pub use self::servers::fill_up;
pub(crate) use self::servers::twice;
pub use self::statics::StaticRedisPoolFactory;
use crate::pool::WeakPool;
use crate::{RedisPool, TlsError};

/// Makes the pool of a vdisk.
#[async_trait]
pub trait RedisPoolFactory: fmt::Debug + Send + Sync + 'static {
    /// The stores of a vdisk's log. Does not wait for them: a pool of servers that are down is a pool.
    async fn new_redis_pool(&self, vdisk: &VdiskId) -> Result<RedisPool, RedisPoolFactoryError>;

    /// Closes all the pools that it made, at once; it makes no more.
    fn close(&self);
}

/// Why a vdisk gets no pool.
#[derive(Debug, thiserror::Error)]
pub enum RedisPoolFactoryError {
    /// Fewer stores than shards.
    #[error("{of} has {there} data {stores}, and {needed} are needed, one for each shard (k + m)", stores = stores(*there))]
    TooFew {
        /// Who has them: `storage cluster tlogcluster`.
        of: String,
        /// How many.
        there: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A store that is not reached over the network, where only such can be.
    #[error("data store {index} of {of} is {address}: in a cluster every store is a Redis server")]
    NotRedis {
        /// Who has it.
        of: String,
        /// Which one.
        index: usize,
        /// Its address.
        address: String,
    },
    /// Two shards would lie on one store, and be lost together.
    #[error(
        "data stores {first} and {second} of {of} are the same, {address}: each shard needs a store of its own"
    )]
    Twice {
        /// Who has them.
        of: String,
        /// The one.
        first: usize,
        /// The other.
        second: usize,
        /// Their address.
        address: String,
    },
    /// The missing ones do not fit behind the last port.
    #[error("{missing} more are needed on the ports after {last}, and the last port there is is 65535")]
    NoMorePorts {
        /// Address of the last one that was given.
        last: String,
        /// How many would have to follow.
        missing: usize,
    },
    /// The configuration does not say which stores the vdisk has.
    #[error(transparent)]
    Source(#[from] ClusterSourceError),
    /// The files for TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There are neither addresses nor a configuration, and nothing to use instead.
    #[error("no stores are configured")]
    NoStores,
    /// The factory was closed.
    #[error("the pool factory is closed")]
    Closed,
}

fn stores(count: usize) -> &'static str {
    if count == 1 { "store" } else { "stores" }
}

/// The pools that a factory has made and that are still there; none once it is closed.
#[derive(Debug)]
struct Pools(Mutex<Option<Vec<WeakPool>>>);

impl Default for Pools {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Pools {
    /// Remembers a pool, so that it is closed with the factory.
    fn add(&self, pool: RedisPool) -> Result<RedisPool, RedisPoolFactoryError> {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pools) = pools.as_mut() else {
            pool.close();
            return Err(RedisPoolFactoryError::Closed);
        };
        pools.retain(|pool| !pool.is_gone());
        pools.push(pool.downgrade());
        Ok(pool)
    }

    fn close(&self) {
        let pools = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        pools.iter().flatten().for_each(WeakPool::close);
    }
}
