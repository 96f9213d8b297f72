//! Slaves that are none: where the disk itself is, or its log.

use tlog_config::{StorageCluster, StoreAddress, common_store};

/// A slave is where the disk itself or its log is: what is applied there is written over it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "storage cluster {cluster} cannot be the slave: {}. Applying the log there would write older blocks over it; after a switch take \
     tlog.slaveStorageClusterID away, or name another cluster",
    self.why()
)]
pub struct InPlace {
    cluster: String,
    of: &'static str,
    store: Option<String>,
}

impl InPlace {
    /// Compares a slave with where the disk is, as far as the documents say that, and with the stores of its log, as they are shown.
    pub fn check(
        slave: &StorageCluster,
        primary: Option<&StorageCluster>,
        log_stores: impl IntoIterator<Item = String>,
    ) -> Result<(), Self> {
        let in_place = |of: &'static str, store: Option<String>| {
            let cluster = slave.id.clone();
            Err(Self { cluster, of, store })
        };
        if let Some(primary) = primary {
            if primary.id == slave.id {
                return in_place("the disk", None);
            }
            if let Some(store) = common_store(slave, primary) {
                return in_place("the disk", Some(store));
            }
        }
        let place = |store: &StoreAddress| match store {
            StoreAddress::Redis(server) => Some(server.place()),
            StoreAddress::Directory(_) | StoreAddress::Memory => None,
        };
        let own: Vec<_> = slave.data.iter().chain(&slave.metadata).filter_map(place).collect();
        let is_own = |store: &String| {
            StoreAddress::parse(store).ok().as_ref().and_then(place).is_some_and(|place| own.contains(&place))
        };
        match log_stores.into_iter().find(is_own) {
            Some(store) => in_place("the disk's log", Some(store)),
            None => Ok(()),
        }
    }

    fn why(&self) -> String {
        match &self.store {
            None => format!("it is where {} is", self.of),
            Some(store) => format!("{store} is a store of {} as well", self.of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str, data: &[&str], metadata: Option<&str>) -> StorageCluster {
        let address = |text: &&str| StoreAddress::parse(text).unwrap();
        StorageCluster {
            id: id.to_owned(),
            data: data.iter().map(address).collect(),
            metadata: metadata.as_ref().map(address),
            shards: Default::default(),
        }
    }

    #[test]
    fn a_slave_must_have_servers_or_databases_of_its_own() {
        let primary = cluster("primary", &["a:1", "b:1@2"], None);
        let log = || ["redis://c:1/0".to_owned(), "file:/srv/log".to_owned()];
        let check = |slave: &StorageCluster| InPlace::check(slave, Some(&primary), log());
        assert_eq!(check(&cluster("slave", &["a:2", "b:1@3", "c:1@1"], Some("d:1"))), Ok(()));
        assert!(check(&primary).unwrap_err().to_string().contains("it is where the disk is"));
        let same = check(&cluster("slave", &["d:1", "redis://:secret@B:1/2"], None)).unwrap_err().to_string();
        assert!(same.contains("redis://B:1/2 is a store of the disk as well"), "{same}");
        let same = check(&cluster("slave", &["d:1"], Some("C:1"))).unwrap_err().to_string();
        assert!(same.contains("redis://c:1/0 is a store of the disk's log as well"), "{same}");
        assert_eq!(InPlace::check(&primary, None, log()), Ok(()));
        let here = cluster("slave", &["localhost:6379"], None);
        assert!(InPlace::check(&here, None, ["redis://127.0.0.1:6379/0".to_owned()]).is_err());
    }
}
