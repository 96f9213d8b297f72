//! The data keys of one vdisk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tlog_crypto::{DataKey, KeyId, Keyring};
use tlog_proto::{AggregationNumber, VdiskId};

use crate::AGGREGATIONS_PER_DATA_KEY;

/// The keyring, and the keys that were derived from it for one vdisk. Cheap to clone, shared by clones.
#[derive(Clone, Debug)]
pub struct VdiskKeys {
    vdisk: VdiskId,
    keyring: Arc<Keyring>,
    derived: Arc<Mutex<HashMap<(KeyId, u64), Arc<DataKey>>>>,
}

/// The master key of an aggregation is not in the keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key {id} is not in the keyring; add it to the key file to read what was sealed under it")]
pub struct KeyError {
    /// The key that the header names.
    pub id: KeyId,
}

impl VdiskKeys {
    /// Keys for one vdisk, from these master keys.
    pub fn new(vdisk: VdiskId, keyring: Arc<Keyring>) -> Self {
        Self {
            vdisk,
            keyring,
            derived: Arc::default(),
        }
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// Id of the key that new aggregations are sealed under.
    pub(crate) fn active_id(&self) -> KeyId {
        self.keyring.active().id()
    }

    /// The data key for an aggregation.
    pub(crate) fn data_key(&self, id: KeyId, number: AggregationNumber) -> Result<Arc<DataKey>, KeyError> {
        let window = number.0 / AGGREGATIONS_PER_DATA_KEY;
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = derived.get(&(id, window)) {
            return Ok(key.clone());
        }
        let master = self.keyring.get(id).map_err(|_| KeyError { id })?;
        let key = Arc::new(DataKey::derive(master, self.vdisk.as_str().as_bytes(), window));
        derived.insert((id, window), key.clone());
        Ok(key)
    }
}
