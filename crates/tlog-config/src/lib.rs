//! Where stores are, and the documents that say which of them a vdisk gets.
//!
//! - [`StoreAddress`]: how a person writes down one store; [`RedisServer`]: one that is reached over the network;
//! - [`StorageCluster`]: the stores of a cluster, in order; a [`ClusterSource`] answers that of a vdisk, and how it changes.
//!
//! It deliberately does not connect to anything, and never shows a password.

mod address;
mod cluster;
mod secret;

pub use address::{RedisServer, StoreAddress, StoreAddressFault, is_host_name};
pub use cluster::{ClusterSource, ClusterSourceError, FixedClusters, StorageCluster};
pub use secret::Secret;
