//! Real servers for tests: Redis and etcd processes on free loopback ports, in directories that go away.
//!
//! - [`RedisProcess`]: one `redis-server`, which can be killed, stopped, continued and restarted with or without its files;
//! - [`RedisServers`]: several of them;
//! - [`RedisOptions`]: with or without durability, password, users, TLS, a bound on memory;
//! - [`EtcdProcess`]: one `etcd`, likewise; [`EtcdOptions`]: with or without TLS and users;
//! - [`spawn`]: any other program, which does not outlive this process either;
//! - [`Authority`]: signs certificates, of whatever names, valid or expired, for any server and its clients.
//!
//! For tests, and for chaos, which is one: it panics where something does not work. Nothing else depends on it. It deliberately has no client: tests
//! talk to the servers with what they test, and with [`RedisProcess::cli`] and [`EtcdProcess::cli`] to look behind its back.

#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)] // tests want to fail, loudly

mod certificates;
mod etcd;
mod options;
mod port;
mod redis;
mod running;
mod spawn;

pub use certificates::{Authority, IdentityFiles, TlsFiles};
pub use etcd::{EtcdOptions, EtcdProcess};
pub use options::{RedisOptions, Tls};
pub use port::ReservedPort;
pub use redis::{RedisProcess, RedisServers};
pub use spawn::spawn;
