//! Which stores each vdisk has, and changing them while they are in use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tlog_proto::VdiskId;
use tlog_store::{ReplaceableStore, ShardStore};

/// The stores of every vdisk: those of the settings, but for what was replaced since.
#[derive(Debug)]
pub struct Places {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// For vdisks that are not in `of`.
    all: Vec<Arc<dyn ShardStore>>,
    of: BTreeMap<VdiskId, PlacesOfOne>,
    /// At so many vdisks those that nobody uses are forgotten.
    sweep_at: usize,
}

/// The places of one vdisk.
#[derive(Debug)]
struct PlacesOfOne {
    stores: Vec<Arc<ReplaceableStore>>,
    /// Whether one of them is not as in `all`.
    own: bool,
}

/// Fewest vdisks that are remembered before unused ones are forgotten.
const SWEEP_AT: usize = 64;

impl Places {
    /// Begins with these for every vdisk.
    pub fn new(stores: Vec<Arc<dyn ShardStore>>) -> Self {
        Self { inner: Mutex::new(Inner { all: stores, of: BTreeMap::new(), sweep_at: SWEEP_AT }) }
    }

    /// The stores of the settings, as they are now.
    pub fn all(&self) -> Vec<Arc<dyn ShardStore>> {
        self.lock().all.clone()
    }

    /// The stores of one vdisk, in order. They stay the same objects while somebody holds them, whatever is replaced.
    pub fn of(&self, vdisk: &VdiskId) -> Vec<Arc<dyn ShardStore>> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.of.contains_key(vdisk) {
            if inner.of.len() >= inner.sweep_at {
                inner.of.retain(|_, places| {
                    places.own || places.stores.iter().any(|store| Arc::strong_count(store) > 1)
                });
                inner.sweep_at = SWEEP_AT.max(inner.of.len() * 2);
            }
            let stores = inner.all.iter().map(|store| Arc::new(ReplaceableStore::new(Arc::clone(store))));
            inner.of.insert(vdisk.clone(), PlacesOfOne { stores: stores.collect(), own: false });
        }
        let places = inner.of.get(vdisk).into_iter().flat_map(|places| &places.stores);
        places.map(|store| Arc::clone(store) as Arc<dyn ShardStore>).collect()
    }

    /// The number of the place in which a store of that address is, for a vdisk or, where none is named, in general.
    pub fn position(&self, vdisk: Option<&VdiskId>, address: &str) -> Option<usize> {
        let inner = self.lock();
        match vdisk.and_then(|vdisk| inner.of.get(vdisk)) {
            Some(places) => places.stores.iter().position(|store| &*store.address() == address),
            None => inner.all.iter().position(|store| &*store.address() == address),
        }
    }

    /// What the stores of a vdisk, or of all, are called, in order.
    pub fn addresses(&self, vdisk: Option<&VdiskId>) -> Vec<String> {
        let inner = self.lock();
        match vdisk.and_then(|vdisk| inner.of.get(vdisk)) {
            Some(places) => places.stores.iter().map(|store| store.address().to_string()).collect(),
            None => inner.all.iter().map(|store| store.address().to_string()).collect(),
        }
    }

    /// Puts a store into a place: of one vdisk, or of all. Writers that are open find another identity there, and fill it.
    pub fn replace(&self, vdisk: Option<&VdiskId>, position: usize, store: &Arc<dyn ShardStore>) {
        if let Some(vdisk) = vdisk {
            // It may not be known yet.
            drop(self.of(vdisk));
            if let Some(places) = self.lock().of.get_mut(vdisk) {
                places.own = true;
                if let Some(place) = places.stores.get(position) {
                    place.replace(Arc::clone(store));
                }
            }
            return;
        }
        let mut inner = self.lock();
        let Some(place) = inner.all.get_mut(position) else { return };
        let before = std::mem::replace(place, Arc::clone(store)).address();
        // Where another one was put for one vdisk, that stays.
        let places = inner.of.values().filter_map(|places| places.stores.get(position));
        for place in places.filter(|place| place.address() == before) {
            place.replace(Arc::clone(store));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tlog_store::MemoryStore;

    use super::*;

    fn store(name: &str) -> Arc<dyn ShardStore> {
        Arc::new(MemoryStore::new(name))
    }

    fn names(stores: &[Arc<dyn ShardStore>]) -> Vec<String> {
        stores.iter().map(|store| store.address().to_string()).collect()
    }

    #[test]
    fn a_store_is_replaced_for_one_vdisk_or_for_all_and_whoever_holds_them_sees_it() {
        let places = Places::new(vec![store("a"), store("b")]);
        let (one, other) = (VdiskId::new("one").unwrap(), VdiskId::new("other").unwrap());
        let held = places.of(&one);
        places.replace(Some(&one), 1, &store("c"));
        assert_eq!(names(&held), ["a", "c"]);
        assert_eq!(names(&places.of(&other)), ["a", "b"]);
        assert_eq!(places.position(Some(&one), "b"), None);
        assert_eq!(places.position(None, "b"), Some(1));
        places.replace(None, 0, &store("d"));
        places.replace(None, 1, &store("b2"));
        assert_eq!(
            (names(&held), names(&places.of(&other))),
            (vec!["d".into(), "c".into()], vec!["d".into(), "b2".into()])
        );
        assert_eq!(names(&places.of(&VdiskId::new("third").unwrap())), ["d", "b2"]);
    }

    #[test]
    fn vdisks_that_nobody_uses_are_forgotten_and_what_was_replaced_for_one_is_not() {
        let places = Places::new(vec![store("a")]);
        let (kept, held) = (VdiskId::new("kept").unwrap(), VdiskId::new("held").unwrap());
        places.replace(Some(&kept), 0, &store("b"));
        let in_use = places.of(&held);
        for vdisk in 0..10 * SWEEP_AT {
            drop(places.of(&VdiskId::new(&format!("v{vdisk}")).unwrap()));
        }
        assert!(places.lock().of.len() <= 2 * SWEEP_AT);
        assert_eq!(names(&places.of(&kept)), ["b"]);
        places.replace(None, 0, &store("c"));
        assert_eq!(names(&in_use), ["c"]);
    }
}
