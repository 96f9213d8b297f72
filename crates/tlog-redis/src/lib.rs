//! Stores on Redis or compatible servers.
//!
//! - [`RedisStore`]: the port of the stores, on one server (`docs/redis-store.md`);
//! - [`Link`]: the way to one server, one held connection for everybody; within [`LinkLimits`], over TLS with [`TlsOptions`];
//!   [`Links`] hands them out, one for each server;
//! - [`RedisPool`]: the k + m stores of one vdisk; a [`RedisPoolFactory`] makes them, of addresses
//!   ([`StaticRedisPoolFactory`]), as a configuration says and changes it ([`ConfigRedisPoolFactory`]), in memory
//!   ([`InMemoryRedisPoolFactory`]), or of whatever there is ([`any_redis_pool_factory`]);
//! - [`RedisSlave`]: the port of slaves, on one server (`docs/slave-sync.md`); [`slave_servers`] has those of a cluster;
//! - [`durability()`]: whether what a server answers survives its restart, as far as it tells.
//!
//! What it deliberately does not do: send a command twice, decide which stores are enough, repair, or speak to clusters and sentinels of
//! Redis. Every store is a server by itself.

mod chains;
mod closed;
mod conversation;
mod dial;
mod durability;
mod factory;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod held;
mod layout;
mod limits;
mod link;
mod links;
mod pool;
mod request;
mod room;
mod scripts;
mod slave;
mod slave_text;
mod store;
mod tls;

pub use durability::durability;
pub use factory::{
    AnyRedisPoolOptions, ConfigRedisPoolFactory, InMemoryRedisPoolFactory, RedisPoolFactory,
    RedisPoolFactoryError, StaticRedisPoolFactory, any_redis_pool, any_redis_pool_factory, fill_up,
};
pub use failure::kind_of;
pub use limits::LinkLimits;
pub use link::{Link, LinkState};
pub use links::Links;
pub use pool::{RedisPool, RedisPoolError};
pub use slave::{RedisSlave, SlaveServers, SlaveServersError, slave_servers};
pub use store::RedisStore;
pub use tls::{ClientCertificate, TlsError, TlsOptions};
