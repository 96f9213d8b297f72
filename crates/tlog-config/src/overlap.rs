//! Clusters that are the same place under two names.

use crate::{StorageCluster, StoreAddress};

/// A store that two clusters have in common, the same database on the same server, as the first of them shows it.
pub fn common_store(one: &StorageCluster, other: &StorageCluster) -> Option<String> {
    let places: Vec<_> = stores(other).filter_map(place).collect();
    let common = stores(one).find(|store| place(store).is_some_and(|place| places.contains(&place)));
    common.map(ToString::to_string)
}

fn stores(cluster: &StorageCluster) -> impl Iterator<Item = &StoreAddress> {
    cluster.data.iter().chain(&cluster.metadata)
}

fn place(store: &StoreAddress) -> Option<(String, u16, u32)> {
    match store {
        StoreAddress::Redis(server) => Some(server.place()),
        StoreAddress::Directory(_) | StoreAddress::Memory => None,
    }
}
