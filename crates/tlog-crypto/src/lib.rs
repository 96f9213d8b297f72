//! Keys, hashes and sealing: everything in tlog that a cryptographer would want to read, and nothing else.
//!
//! - [`MasterKey`] and [`Keyring`]: what an operator keeps. Every key has a [`KeyId`] that may be shown.
//! - [`DataKey`]: what seals the aggregations of one vdisk, derived from a master key; AES-256-GCM.
//! - [`blake2b_256`], [`blake2b_256_many`]: the hash of blocks and chains; [`blake3_256`]: that of shards.
//! - [`format1`]: the pair that reads and writes what existing servers stored. Unsafe by design; it says why.
//!
//! What it deliberately does not do: read files, choose nonces, know what an aggregation is, or depend on any other
//! crate of this workspace. It has no default key, and no function that prints a secret unless its name says so.
//!
//! ```
//! use tlog_crypto::{DataKey, Keyring, MasterKey};
//!
//! let keyring = Keyring::new(MasterKey::generate()?);
//! let key = DataKey::derive(keyring.active(), b"myimg", 0);
//!
//! let mut body = b"content of a block".to_vec();
//! let nonce = [7; tlog_crypto::NONCE_SIZE]; // random, and never used twice, in earnest
//! let tag = key.seal_in_place(&mut body, nonce, b"header")?;
//! key.open_in_place(&mut body, nonce, b"header", &tag)?;
//! assert_eq!(body, b"content of a block");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data_key;
pub mod format1;
mod hash;
mod keyring;
mod master_key;

pub use data_key::{BeyondSeal, DataKey, MAX_SEALS_PER_KEY, OpenError, SealError};
pub use hash::{blake2b_256, blake2b_256_many, blake3_256};
pub use keyring::{Keyring, KeyringError, MissingKey};
pub use master_key::{KeyId, KeyTextError, MasterKey, RandomSourceError};

/// Bytes of a master key and of an AES-256 key.
pub const KEY_SIZE: usize = 32;

/// Bytes of a nonce of AES-GCM.
pub const NONCE_SIZE: usize = 12;

/// Bytes of a tag of AES-GCM: what a seal adds.
pub const TAG_SIZE: usize = 16;
