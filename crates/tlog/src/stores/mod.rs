//! From the addresses of the settings to stores.

mod late_directory;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use tlog_config::{RedisServer, StoreAddress};
use tlog_redis::{ClientCertificate, LinkLimits, Links, RedisStore, TlsOptions};
use tlog_store::{MemoryStore, ShardStore, StoreError, StoreErrorKind};

use self::late_directory::LateDirectory;
use crate::settings::Settings;

/// Why there are no stores.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// Somebody else writes in a directory.
    #[error(transparent)]
    Locked(StoreError),
    /// A kind of store that cannot be opened here.
    #[error(
        "a store in memory is only in the process of its server; this command works with Redis servers, file: stores and the \
         embedded store"
    )]
    MemoryElsewhere,
    /// The certificates for rediss:// cannot be used.
    #[error("the certificates for {address}: {source}")]
    Tls {
        /// Which store needs them.
        address: String,
        /// What is wrong.
        #[source]
        source: tlog_redis::TlsError,
    },
    /// Stores that may forget, and `require-durable-stores`.
    #[error(
        "require-durable-stores is set, and these may lose what they acknowledged when they are restarted: {}",
        .0.join("; ")
    )]
    NotDurable(Vec<String>),
    /// Too few stores could be asked.
    #[error(
        "require-durable-stores is set, {needed} stores are needed to write and only {there} could be asked: {}",
        .silent.join("; ")
    )]
    TooFewAsked {
        /// Stores that are durable.
        there: usize,
        /// W.
        needed: usize,
        /// The others, and why.
        silent: Vec<String>,
    },
}

/// The stores, in order: number i holds shard i.
#[derive(Clone, Debug)]
pub struct Stores {
    /// As the log's writer and reader take them.
    pub all: Vec<Arc<dyn ShardStore>>,
    opener: StoreOpener,
    directories: Vec<Arc<LateDirectory>>,
}

type Directories = Vec<(PathBuf, Weak<LateDirectory>)>;

/// Makes stores of addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreOpener {
    /// One connection for each server, however many vdisks are on it.
    links: Arc<Links>,
    /// What other processes are told of this one, on one line; none: for reading.
    note: Option<String>,
    /// Those in use: a process opens a directory for writing once, however many clusters name it.
    directories: Arc<Mutex<Directories>>,
}

impl Stores {
    /// Opens them for writing. A directory that another process writes in is an error that names that process; a store that is
    /// away for another reason is warned of, and is tried again whenever it is asked for something.
    ///
    /// `note` is what other processes are told of this one: one line.
    pub async fn for_writing(settings: &Settings, note: &str) -> Result<Self, StoresError> {
        Self::open(settings, Some(note.to_owned())).await
    }

    /// Opens them for reading, also while a server writes there. A directory that is not there counts as away.
    pub async fn for_reading(settings: &Settings) -> Result<Self, StoresError> {
        Self::open(settings, None).await
    }

    async fn open(settings: &Settings, note: Option<String>) -> Result<Self, StoresError> {
        Self::with(StoreOpener::new(settings, note), settings).await
    }

    /// Those of the settings, by this opener.
    pub async fn with(opener: StoreOpener, settings: &Settings) -> Result<Self, StoresError> {
        let mut stores = Self { all: Vec::new(), opener, directories: Vec::new() };
        for address in settings.stores() {
            let (store, directory) = stores.opener.open(&address, stores.all.len()).await?;
            stores.all.push(store);
            stores.directories.extend(directory);
        }
        Ok(stores)
    }

    /// What makes more of the same kind.
    pub fn opener(&self) -> &StoreOpener {
        &self.opener
    }

    /// Changes what other processes are told of this one.
    pub fn set_note(&self, note: &str) {
        for directory in &self.directories {
            directory.set_note(note);
        }
    }

    /// Asks every store whether it keeps what it acknowledges. What a Redis server answers is logged by its link, which asks again
    /// on every new connection; one that is away is warned of here.
    pub async fn ask_durability(&self, limit: Duration) -> Vec<AskedDurability> {
        let asked = self.all.iter().map(|store| async move {
            let answer = tokio::time::timeout(limit, store.durability()).await;
            let (durable, why) = match answer {
                Ok(Ok(durability)) => {
                    (Some(durability.reason().is_none()), durability.reason().map(str::to_owned))
                }
                Ok(Err(error)) => (None, Some(error.kind.to_string())),
                Err(_) => (None, Some(format!("no answer within {limit:?}"))),
            };
            AskedDurability { address: store.address().to_string(), durable, why: why.unwrap_or_default() }
        });
        let asked = join_all(asked).await;
        for AskedDurability { address, why, .. } in asked.iter().filter(|asked| asked.durable.is_none()) {
            tracing::warn!(
                store = address,
                error = why,
                "the store is away, so it cannot be asked whether it is durable"
            );
        }
        asked
    }

    /// The same, and an error where a store answers anything but yes, or where fewer than `needed` answer.
    pub async fn require_durability(&self, limit: Duration, needed: usize) -> Result<(), StoresError> {
        let asked = self.ask_durability(limit).await;
        let told = |asked: &AskedDurability| format!("{}: {}", asked.address, asked.why);
        let refused: Vec<String> =
            asked.iter().filter(|asked| asked.durable == Some(false)).map(told).collect();
        if !refused.is_empty() {
            return Err(StoresError::NotDurable(refused));
        }
        let silent: Vec<String> = asked.iter().filter(|asked| asked.durable.is_none()).map(told).collect();
        let there = asked.len() - silent.len();
        if there >= needed { Ok(()) } else { Err(StoresError::TooFewAsked { there, needed, silent }) }
    }
}

/// What came of asking a store whether it is durable.
#[derive(Debug)]
pub struct AskedDurability {
    address: String,
    /// None where it did not answer.
    durable: Option<bool>,
    /// Why it is not known to be.
    why: String,
}

impl StoreOpener {
    /// Opens as the settings say: for writing, with what other processes are told of this one, one line; or for reading.
    pub fn new(settings: &Settings, note: Option<String>) -> Self {
        let limits = LinkLimits { response: settings.store_timeout, ..LinkLimits::default() };
        let client = settings.store_tls.client.clone();
        let client = client.map(|(certificate, key)| ClientCertificate { certificate, key });
        let tls = TlsOptions { ca_file: settings.store_tls.ca_file.clone(), client };
        Self { links: Arc::new(Links::new(limits, tls)), note, directories: Arc::default() }
    }

    /// The links to servers, shared with whoever else speaks to them.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The store at an address, as store `number` of a log.
    pub async fn store(
        &self,
        address: &StoreAddress,
        number: usize,
    ) -> Result<Arc<dyn ShardStore>, StoresError> {
        Ok(self.open(address, number).await?.0)
    }

    async fn open(
        &self,
        address: &StoreAddress,
        number: usize,
    ) -> Result<(Arc<dyn ShardStore>, Option<Arc<LateDirectory>>), StoresError> {
        match address {
            StoreAddress::Memory if self.note.is_none() => Err(StoresError::MemoryElsewhere),
            StoreAddress::Memory => Ok((Arc::new(MemoryStore::new(format!("memory:{number}"))), None)),
            StoreAddress::Directory(directory) => {
                let store = self.directory(directory);
                if self.note.is_some() {
                    match store.get().await {
                        Ok(_) => {}
                        Err(error) if matches!(error.kind, StoreErrorKind::Locked { .. }) => {
                            return Err(StoresError::Locked(error));
                        }
                        Err(error) => tracing::warn!(store = %store.address(), %error, "a store is away"),
                    }
                }
                Ok((Arc::clone(&store) as _, Some(store)))
            }
            StoreAddress::Redis(server) => Ok((self.redis(server)?, None)),
        }
    }

    fn directory(&self, directory: &Path) -> Arc<LateDirectory> {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.retain(|(_, store)| store.strong_count() > 0);
        let known = directories.iter().find(|(known, _)| known == directory);
        if let Some(store) = known.and_then(|(_, store)| store.upgrade()) {
            return store;
        }
        let store = Arc::new(LateDirectory::new(directory.to_owned(), self.note.clone()));
        directories.push((directory.to_owned(), Arc::downgrade(&store)));
        store
    }

    fn redis(&self, server: &RedisServer) -> Result<Arc<dyn ShardStore>, StoresError> {
        let address = || server.to_string();
        let link =
            self.links.link(server).map_err(|source| StoresError::Tls { address: address(), source })?;
        Ok(Arc::new(RedisStore::new(link)))
    }
}

#[cfg(test)]
mod tests {
    use tlog_proto::{Epoch, VdiskId};

    use super::*;
    use crate::settings::SettingsArgs;

    fn settings(storage: &str) -> Settings {
        let args = SettingsArgs::default().with("data-shards", "1").with("parity-shards", "1");
        Settings::from_flags(&args.with("storage", storage)).unwrap()
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_opened_is_away_and_is_found_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let (good, blocked) = (directory.path().join("good"), directory.path().join("blocked"));
        std::fs::write(&blocked, "a file where the directory should be").unwrap();
        let addresses = format!("file:{},file:{}", good.display(), blocked.display());
        let stores = Stores::for_writing(&settings(&addresses), "test").await.unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        assert!(stores.all[0].promise(&vdisk, Epoch(1)).await.is_ok());
        let error = stores.all[1].promise(&vdisk, Epoch(1)).await.unwrap_err();
        assert!(error.is_retryable() && error.address.ends_with("blocked"), "{error}");
        std::fs::remove_file(&blocked).unwrap();
        assert!(stores.all[1].promise(&vdisk, Epoch(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_directory_that_was_removed_while_it_was_in_use_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let stores = Stores::for_writing(&settings(&addresses), "test").await.unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        let before = stores.all[0].promise(&vdisk, Epoch(1)).await.unwrap();
        std::fs::remove_dir_all(directory.path().join("a")).unwrap();
        // The first write may find out, the next ones find a new store.
        let mut answers = Vec::new();
        for epoch in 2..5 {
            answers.push(stores.all[0].promise(&vdisk, Epoch(epoch)).await);
        }
        let after = answers.pop().unwrap().unwrap();
        assert!(after.identity.is_some() && after.identity != before.identity, "{answers:?}");
    }

    #[tokio::test]
    async fn a_directory_that_another_writes_in_is_refused_and_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let first = Stores::for_writing(&settings(&addresses), "first").await.unwrap();
        first.set_note("admin 127.0.0.1:1234");
        let error = Stores::for_writing(&settings(&addresses), "second").await.unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid) && error.to_string().contains("127.0.0.1:1234"), "{error}");
        let readers = Stores::for_reading(&settings(&addresses)).await.unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        first.all[0].promise(&vdisk, Epoch(7)).await.unwrap();
        assert_eq!(readers.all[0].status(&vdisk).await.unwrap().epoch, Epoch(7));
        assert!(readers.all[0].promise(&vdisk, Epoch(8)).await.is_err());
    }

    #[tokio::test]
    async fn reading_makes_no_directory_and_a_missing_one_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = format!("file:{0}/a,file:{0}/b", directory.path().display());
        let readers = Stores::for_reading(&settings(&addresses)).await.unwrap();
        assert!(readers.all[0].status(&VdiskId::new("vda").unwrap()).await.is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(matches!(
            Stores::for_reading(&settings("memory:,memory:")).await,
            Err(StoresError::MemoryElsewhere)
        ));
    }
}
