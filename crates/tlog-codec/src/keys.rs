//! The data keys of one vdisk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tlog_crypto::{DataKey, KeyId, Keyring};
use tlog_proto::{AggregationNumber, VdiskId};

use crate::{AGGREGATIONS_PER_DATA_KEY, format1};

/// The keyring, and the keys that were derived from it for one vdisk. Cheap to clone, shared by clones.
#[derive(Clone, Debug)]
pub struct VdiskKeys {
    vdisk: VdiskId,
    keyring: Arc<Keyring>,
    derived: Arc<Mutex<DataKeys>>,
    format1: Option<format1::Keys>,
}

/// By master key and window.
type DataKeys = HashMap<(KeyId, u64), Arc<DataKey>>;

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
        Self { vdisk, keyring, derived: Arc::default(), format1: None }
    }

    /// The same, with what opens history of format 1 that the log may go on from.
    #[must_use]
    pub fn with_format1(self, keys: Option<format1::Keys>) -> Self {
        Self { format1: keys, ..self }
    }

    /// What opens history of format 1; none where it was not given.
    pub fn format1(&self) -> Option<&format1::Keys> {
        self.format1.as_ref()
    }

    /// Whether what was sealed under a master key can be opened.
    pub fn has(&self, id: KeyId) -> bool {
        self.keyring.get(id).is_ok()
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// The key that seals aggregation `number`: of the keyring's active key. The same value as long as any clone lives, so
    /// that its count of seals holds.
    pub(crate) fn sealing_key(&self, number: AggregationNumber) -> Result<Arc<DataKey>, KeyError> {
        let key = self.opening_key(self.keyring.active().id(), number)?;
        Ok(self.keep(key))
    }

    /// The key that aggregation `number` was sealed with, if its header is to be believed.
    pub(crate) fn opening_key(&self, id: KeyId, number: AggregationNumber) -> Result<Arc<DataKey>, KeyError> {
        let window = number.0 / AGGREGATIONS_PER_DATA_KEY;
        if let Some(key) = self.kept().get(&(id, window)) {
            return Ok(key.clone());
        }
        let master = self.keyring.get(id).map_err(|_| KeyError { id })?;
        let vdisk = self.vdisk.as_str().as_bytes();
        Ok(Arc::new(DataKey::derive(master, vdisk, window)))
    }

    /// Keeps a key that fitted, and answers the one that is kept from now on. Not done with a key before it has opened
    /// something: a header can claim any number, and so any of 2^35 keys.
    pub(crate) fn keep(&self, key: Arc<DataKey>) -> Arc<DataKey> {
        let name = (key.master_id(), key.window());
        self.kept().entry(name).or_insert(key).clone()
    }

    fn kept(&self) -> MutexGuard<'_, DataKeys> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_crypto::MasterKey;

    #[test]
    fn keys_are_kept_once_they_fitted_and_claims_are_not() {
        let ring = Keyring::new(MasterKey::from_bytes([1; 32]));
        let id = ring.active().id();
        let keys = VdiskKeys::new(VdiskId::new("myimg").unwrap(), Arc::new(ring));
        for claimed in 0..1000 {
            keys.opening_key(id, AggregationNumber(claimed * AGGREGATIONS_PER_DATA_KEY)).unwrap();
        }
        assert!(keys.kept().is_empty());

        let first = keys.sealing_key(AggregationNumber(1)).unwrap();
        let of_a_clone = keys.clone().sealing_key(AggregationNumber(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &of_a_clone), "one count of seals");
        let opening = keys.opening_key(id, AggregationNumber(3)).unwrap();
        assert!(Arc::ptr_eq(&first, &opening));
        let late = Arc::new(DataKey::derive(keys.keyring.active(), b"myimg", 0));
        assert!(Arc::ptr_eq(&first, &keys.keep(late)), "the first one stays");
        assert_eq!(keys.kept().len(), 1);
    }

    #[test]
    fn a_data_key_is_for_so_many_numbers_and_no_more() {
        let ring = Arc::new(Keyring::new(MasterKey::from_bytes([1; 32])));
        let keys = VdiskKeys::new(VdiskId::new("myimg").unwrap(), ring);
        let window = |number| keys.sealing_key(AggregationNumber(number)).unwrap().window();
        assert_eq!(window(1), 0);
        assert_eq!(window(AGGREGATIONS_PER_DATA_KEY - 1), 0);
        assert_eq!(window(AGGREGATIONS_PER_DATA_KEY), 1);
        assert_eq!(window(2 * AGGREGATIONS_PER_DATA_KEY - 1), 1);
        assert_eq!(window(2 * AGGREGATIONS_PER_DATA_KEY), 2);
        assert_eq!(window(u64::MAX), u64::MAX / AGGREGATIONS_PER_DATA_KEY);
    }
}
