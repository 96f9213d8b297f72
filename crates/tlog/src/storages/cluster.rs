//! The logs on one storage cluster, whose stores change while they are in use.
//!
//! One store at a time takes another's place. It counts as there when every log on the cluster, open or not, has it as a member: only then
//! is the next change looked at. What cannot be done, or is not done yet, is told ([`Cluster::note`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tlog_config::{Configuration, StorageCluster, StoreAddress};
use tlog_crypto::Keyring;
use tlog_proto::VdiskId;
use tlog_server::Server;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::remembered::Remembered;
use super::replacement::Replacement;
use super::{NoStorage, on_stores};
use crate::documents::placement;
use crate::settings::{RedundancySettings, Settings};
use crate::storage::FlusherStorage;
use crate::stores::StoreOpener;

type Documents = watch::Receiver<Option<Arc<StorageCluster>>>;

/// A storage cluster in use. Follows its document until it is dropped, or until its write quorum is another one.
pub(super) struct Cluster {
    storage: Arc<FlusherStorage>,
    redundancy: RedundancySettings,
    over: Arc<AtomicBool>,
    note: Note,
    /// True while a store takes the place of one that the logs cannot be opened without.
    busy: watch::Receiver<bool>,
    follower: JoinHandle<()>,
}

/// What is not as the documents say, for a person; none where everything is.
#[derive(Clone)]
struct Note {
    cluster: String,
    what: Arc<Mutex<Option<String>>>,
}

impl Note {
    fn of(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), what: Arc::default() }
    }

    /// Answers whether that is news.
    fn set(&self, what: Option<String>) -> bool {
        let pending = if what.is_some() { 1.0 } else { 0.0 };
        metrics::gauge!("tlog_config_cluster_pending", "cluster" => self.cluster.clone()).set(pending);
        let mut note = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *note != what;
        *note = what;
        news
    }

    fn get(&self) -> Option<String> {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a cluster is opened with, beside its document.
#[derive(Clone)]
pub(super) struct Common {
    /// Without the cluster's stores.
    pub(super) settings: Settings,
    pub(super) configuration: Configuration,
    pub(super) opener: StoreOpener,
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) server: Arc<OnceLock<Server>>,
}

impl Cluster {
    /// Opens the stores. `settings` are those on the cluster.
    pub(super) async fn open(id: &str, settings: &Settings, common: &Common) -> Result<Self, NoStorage> {
        let places = settings.stores();
        let remembered = Remembered::of(&settings.data_dir, id);
        let (known, new) = new_places(&places, &remembered);
        let storage = on_stores(settings, common.opener.clone(), common.keyring.clone()).await?;
        let pending = match new[..] {
            [] => None,
            [one] => Some(one),
            _ => {
                let missing = vdisks_without_log(id, &storage, common).await;
                if !missing.is_empty() {
                    let (cluster, file) = (id.to_owned(), remembered.file().to_owned());
                    return Err(NoStorage::OtherStores { cluster, known, places: new, missing, file });
                }
                tracing::info!(cluster = id, before = ?known, "the stores of this cluster are others than they were, and have the logs of all its vdisks");
                None
            }
        };
        tracing::info!(
            cluster = id,
            redundancy = %settings.redundancy,
            stores = ?storage.places().addresses(None),
            new = pending,
            "logs on this storage cluster"
        );
        if pending.is_none() {
            remembered.write(&places);
        }
        let (over, note) = (Arc::new(AtomicBool::new(false)), Note::of(id));
        let replacement = Replacement::new(id, Arc::clone(&storage), common.clone(), pending.is_some());
        let busy = replacement.busy();
        let follower = Follower {
            id: id.to_owned(),
            redundancy: settings.redundancy,
            over: Arc::clone(&over),
            note: note.clone(),
            places,
            pending,
            remembered,
            replacement,
        };
        let follower = tokio::spawn(follower.run(common.configuration.storage_cluster(id)));
        Ok(Self { storage, redundancy: settings.redundancy, over, note, busy, follower })
    }

    pub(super) fn storage(&self) -> Arc<FlusherStorage> {
        Arc::clone(&self.storage)
    }

    /// What is not as the documents say.
    pub(super) fn note(&self) -> Option<String> {
        self.note.get()
    }

    /// True while its logs cannot be opened for a moment, since a store takes another's place.
    pub(super) fn busy(&self) -> watch::Receiver<bool> {
        self.busy.clone()
    }

    /// Whether logs with this redundancy are opened here. With other shards they are too: those that are there keep theirs.
    pub(super) fn serves(&self, redundancy: &RedundancySettings) -> bool {
        let same_shards = (self.redundancy.data_shards, self.redundancy.parity_shards)
            == (redundancy.data_shards, redundancy.parity_shards);
        !self.over.load(Ordering::Acquire) && (!same_shards || self.redundancy == *redundancy)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The stores when all logs were last known to be there, and the places that have other ones now.
fn new_places(places: &[StoreAddress], remembered: &Remembered) -> (Vec<String>, Vec<usize>) {
    let known = remembered.read().unwrap_or_else(|error| {
        tracing::warn!(file = %remembered.file().display(), %error, "which stores were in use cannot be read");
        None
    });
    let Some(known) = known.filter(|known| known.len() == places.len()) else { return Default::default() };
    let new: Vec<usize> = (0..places.len())
        .filter(|&at| places.get(at).map(ToString::to_string).as_ref() != known.get(at))
        .collect();
    (known, new)
}

/// Vdisks that the documents place on a cluster and of which no log can be opened there: never written to, or left behind.
async fn vdisks_without_log(cluster: &str, storage: &FlusherStorage, common: &Common) -> Vec<VdiskId> {
    let mut missing = Vec::new();
    let vdisks = Arc::clone(&common.configuration.vdisks().borrow());
    for vdisk in vdisks.iter() {
        let config = common.configuration.vdisk(vdisk).borrow().clone();
        if !placement(config.as_deref(), vdisk).is_ok_and(|placed| placed.id == cluster) {
            continue;
        }
        let has_log = match storage.store_set(vdisk) {
            Some(set) => {
                let survey = set.survey().await;
                !survey.is_new() && survey.require_members(set.quorums().opening()).is_ok()
            }
            None => false,
        };
        if !has_log {
            missing.push(vdisk.clone());
        }
    }
    missing
}

/// Brings changes of a cluster's document to its stores.
struct Follower {
    id: String,
    redundancy: RedundancySettings,
    over: Arc<AtomicBool>,
    note: Note,
    /// The stores in use.
    places: Vec<StoreAddress>,
    /// The place whose store does not count in every log yet.
    pending: Option<usize>,
    remembered: Remembered,
    replacement: Replacement,
}

/// What is to be done next.
enum Step {
    /// All is as the document says.
    Nothing,
    /// The document cannot be followed.
    Refused(String),
    /// The write quorum is another one: logs are opened anew elsewhere.
    Over,
    /// The same store, with another user or password.
    Credentials(usize, StoreAddress),
    /// Another store in that place.
    Replace(usize, StoreAddress),
    /// Have every log have the store in that place.
    Fill(usize),
}

impl Follower {
    async fn run(mut self, mut documents: Documents) {
        loop {
            let document = documents.borrow_and_update().clone();
            let step = match &document {
                // What is in use stays where the document is gone.
                None => Step::Nothing,
                Some(document) => self.next(document).await,
            };
            match step {
                Step::Nothing => drop(self.note.set(None)),
                Step::Refused(why) => self.refused(why),
                Step::Over => {
                    tracing::info!(
                        cluster = self.id,
                        "the write quorum of this cluster is another one now: its vdisks are opened anew"
                    );
                    return self.over.store(true, Ordering::Release);
                }
                Step::Credentials(place, address) => match self.replacement.open(place, &address).await {
                    Ok(store) => {
                        tracing::info!(cluster = self.id, place, store = %address, "other credentials for a store");
                        self.replacement.storage.places().replace(None, place, &store);
                        self.put(place, address);
                        continue;
                    }
                    Err(error) => self.refused(error.to_string()),
                },
                Step::Replace(place, address) => {
                    let reached = tokio::select! {
                        changed = documents.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                        reached = self.replacement.reach(place, &address, |why| self.waits(why)) => reached,
                    };
                    match reached {
                        Ok(store) => {
                            // From here on until all logs have it nothing else is changed, whatever newer documents say.
                            self.pending = Some(place);
                            self.replacement.put(place, &store).await;
                            self.put(place, address);
                            continue;
                        }
                        Err(why) => self.refused(why),
                    }
                }
                Step::Fill(place) => {
                    tokio::select! {
                        // It may be about that very place. The logs that are being filled go on with it.
                        changed = documents.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                        () = self.replacement.fill_all(place, |why| self.waits(why)) => {}
                    }
                    tracing::info!(
                        cluster = self.id,
                        place,
                        store = self.places.get(place).map(tracing::field::display),
                        "every log has the new store"
                    );
                    self.pending = None;
                    self.remembered.write(&self.places);
                    continue;
                }
            }
            if documents.changed().await.is_err() {
                return;
            }
        }
    }

    async fn next(&self, document: &StorageCluster) -> Step {
        let settings = match self.replacement.common.settings.on_cluster(document) {
            Ok(settings) => settings,
            Err(error) => return Step::Refused(error.to_string()),
        };
        let (was, is) = (self.redundancy, settings.redundancy);
        if (was.data_shards, was.parity_shards) != (is.data_shards, is.parity_shards) {
            return match self.replacement.logs().await {
                Ok(logs) if logs.is_empty() => Step::Over,
                Ok(logs) => Step::Refused(format!(
                    "there are logs of {} vdisks on it with {was}, and {is} is asked for: a log keeps its shards. Take another cluster for new vdisks",
                    logs.len()
                )),
                Err(why) => Step::Refused(why),
            };
        }
        if was != is {
            return Step::Over;
        }
        let wanted = settings.stores();
        let have: Vec<String> = self.places.iter().map(ToString::to_string).collect();
        let mut changed = Vec::new();
        for (place, (now, wanted)) in self.places.iter().zip(wanted).enumerate() {
            if *now == wanted {
                continue;
            }
            if now.to_string() == wanted.to_string() {
                return Step::Credentials(place, wanted);
            }
            changed.push((place, wanted));
        }
        let moved = changed.iter().find(|(_, address)| have.contains(&address.to_string()));
        if let Some((place, address)) = moved.filter(|(_, address)| *address != StoreAddress::Memory) {
            return Step::Refused(format!(
                "{address} would be data store {place} and has another place now: a store keeps its place, since it holds that \
                 place's shards; put the order back"
            ));
        }
        if was.parity_shards == 0 && !changed.is_empty() {
            return Step::Refused(
                "without parity shards nothing is left to fill another store from".to_owned(),
            );
        }
        let ours = changed.iter().position(|(place, _)| Some(*place) == self.pending);
        match (self.pending, ours, changed.len()) {
            (_, Some(at), _) => {
                let (place, address) = changed.swap_remove(at);
                Step::Replace(place, address)
            }
            (Some(place), None, _) => Step::Fill(place),
            (None, None, 0) => Step::Nothing,
            (None, None, 1) => {
                let (place, address) = changed.swap_remove(0);
                Step::Replace(place, address)
            }
            (None, None, _) => {
                let places: Vec<String> = changed.iter().map(|(place, _)| place.to_string()).collect();
                Step::Refused(format!(
                    "data stores {} are others than those in use. Change one at a time, and the next when every log has it: /status says so",
                    places.join(", ")
                ))
            }
        }
    }

    fn put(&mut self, place: usize, address: StoreAddress) {
        if let Some(at) = self.places.get_mut(place) {
            *at = address;
        }
    }

    /// Says what is waited for, once.
    fn waits(&self, why: String) {
        if self.note.set(Some(why.clone())) {
            tracing::warn!(cluster = self.id, why, "a changed store does not count yet");
        }
    }

    /// Says why the document is not followed, once.
    fn refused(&self, why: String) {
        if self.note.set(Some(why.clone())) {
            metrics::counter!("tlog_config_changes_refused_total").increment(1);
            tracing::warn!(
                cluster = self.id,
                error = why,
                "the changed storage cluster cannot be used; the stores stay as they are"
            );
        }
    }
}
