//! Where stores are, and the documents that say which of them a vdisk gets.
//!
//! - [`StoreAddress`]: how a person writes down one store; [`RedisServer`]: one that is reached over the network;
//! - [`StorageCluster`]: the stores of a cluster, in order; a [`ClusterSource`] answers that of a vdisk, and how it changes;
//! - [`DocumentSource`]: where documents are: [`FileSource`], [`MemorySource`], and etcd with the feature `etcd`;
//! - [`SourceAddress`] and [`open_source`]: how a person says which of them;
//! - [`Configuration`]: what a source says, always the last valid state of it, and who is told when it changes;
//! - [`check`] and [`import`]: everything that is wrong with a source, and from a file to etcd.
//!
//! It deliberately does not connect to a store, and never shows a password, not even in what it says of a document that has one in the
//! wrong place.

mod address;
mod check;
mod cluster;
mod configuration;
mod document;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod import;
mod key;
mod memory;
mod overlap;
mod parts;
mod problem;
mod secret;
mod source;
mod source_address;
mod yaml;

pub use address::{RedisServer, StoreAddress, StoreAddressFault, is_host_name};
pub use check::{check, check_text};
pub use cluster::{ClusterShards, ClusterSource, ClusterSourceError, FixedClusters, StorageCluster};
pub use configuration::{
    Configuration, ConfigurationError, LogStorage, NbdStorage, SourceAway, SourceHealth, VdiskConfig,
};
pub use document::Document;
#[cfg(feature = "etcd")]
pub use etcd::EtcdSource;
pub use file::FileSource;
pub use import::{ImportError, ImportOptions, ImportReport, import};
pub use key::DocumentKey;
pub use memory::MemorySource;
pub use overlap::common_store;
pub use parts::{MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, VdiskType};
pub use problem::{ClusterKind, Fault, Place, Problem};
pub use secret::Secret;
pub use source::{
    DocumentChange, DocumentSource, DocumentWatch, EtcdFault, Snapshot, SourceError, SourceEvent,
};
pub use source_address::{
    EtcdEndpoint, EtcdOptions, OpenSourceError, SourceAddress, SourceAddressFault, open_source,
};
