//! The documents in force: the last valid state of each, and what is wrong with later ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use tlog_proto::VdiskId;

use crate::parts::{
    NbdServerVdisks, VdiskNbd, VdiskStatic, VdiskTlog, read_cluster_storage, read_cluster_tlog,
    read_nbd_server_vdisks, read_vdisk_nbd, read_vdisk_static, read_vdisk_tlog,
};
use crate::{Document, DocumentKey, Fault, Problem, StorageCluster};

/// The last valid state of every document that is there.
///
/// `latest` has every document as the source has it now, the others what is in force of those, which is nothing for one that was never
/// valid. `problems` has each document in `latest` that is not the one in force.
#[derive(Debug, Default)]
pub(crate) struct Valid {
    latest: BTreeMap<DocumentKey, Document>,
    pub(crate) statics: BTreeMap<VdiskId, VdiskStatic>,
    pub(crate) nbds: BTreeMap<VdiskId, VdiskNbd>,
    pub(crate) tlogs: BTreeMap<VdiskId, VdiskTlog>,
    pub(crate) storage_clusters: BTreeMap<String, Arc<StorageCluster>>,
    pub(crate) tlog_clusters: BTreeMap<String, Arc<Vec<String>>>,
    pub(crate) nbd_servers: BTreeMap<String, NbdServerVdisks>,
    pub(crate) problems: BTreeMap<DocumentKey, Vec<Problem>>,
}

/// What became of a document that changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It says what it said.
    Same,
    /// What is in force is another now.
    Changed,
    /// It is not valid, and what was in force still is.
    Refused,
}

impl Valid {
    /// Keys of documents that are there.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &DocumentKey> {
        self.latest.keys()
    }

    /// Whether there is such a document, valid or not.
    pub(crate) fn has(&self, key: &DocumentKey) -> bool {
        self.latest.contains_key(key)
    }

    /// A document as it is now, or that it is gone.
    pub(crate) fn handle_document(&mut self, key: &DocumentKey, document: Option<Document>) -> Outcome {
        let Some(document) = document else { return self.remove(key) };
        // One that says what it said is read all the same: it may stand elsewhere now.
        let known = self.latest.get(key) == Some(&document);
        let outcome = self.read(key, &document);
        self.latest.insert(key.clone(), document);
        if known { Outcome::Same } else { outcome }
    }

    fn read(&mut self, key: &DocumentKey, document: &Document) -> Outcome {
        let changed = match key {
            DocumentKey::VdiskStatic(vdisk) => {
                read_vdisk_static(document).map(|new| put(&mut self.statics, vdisk, new))
            }
            DocumentKey::VdiskNbd(vdisk) => {
                read_vdisk_nbd(document).map(|new| put(&mut self.nbds, vdisk, new))
            }
            DocumentKey::VdiskTlog(vdisk) => {
                read_vdisk_tlog(document).map(|new| put(&mut self.tlogs, vdisk, new))
            }
            DocumentKey::ClusterStorage(id) => read_cluster_storage(id, document)
                .map(|new| put(&mut self.storage_clusters, id, Arc::new(new))),
            DocumentKey::ClusterTlog(id) => {
                read_cluster_tlog(document).map(|new| put(&mut self.tlog_clusters, id, Arc::new(new)))
            }
            DocumentKey::NbdServerVdisks(id) => {
                read_nbd_server_vdisks(document).map(|new| put(&mut self.nbd_servers, id, new))
            }
            DocumentKey::Misnamed(_) => Err(vec![document.problem(Fault::KeyName)]),
        };
        match changed {
            Ok(changed) => {
                self.problems.remove(key);
                if changed { Outcome::Changed } else { Outcome::Same }
            }
            Err(problems) => {
                self.problems.insert(key.clone(), problems);
                Outcome::Refused
            }
        }
    }

    fn remove(&mut self, key: &DocumentKey) -> Outcome {
        self.latest.remove(key);
        self.problems.remove(key);
        let removed = match key {
            DocumentKey::VdiskStatic(vdisk) => self.statics.remove(vdisk).is_some(),
            DocumentKey::VdiskNbd(vdisk) => self.nbds.remove(vdisk).is_some(),
            DocumentKey::VdiskTlog(vdisk) => self.tlogs.remove(vdisk).is_some(),
            DocumentKey::ClusterStorage(id) => self.storage_clusters.remove(id).is_some(),
            DocumentKey::ClusterTlog(id) => self.tlog_clusters.remove(id).is_some(),
            DocumentKey::NbdServerVdisks(id) => self.nbd_servers.remove(id).is_some(),
            DocumentKey::Misnamed(_) => false,
        };
        if removed { Outcome::Changed } else { Outcome::Same }
    }
}

/// Whether it is another than the one before. The new one is kept either way: it knows where it stands now.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, new: V) -> bool {
    match map.get_mut(key) {
        Some(old) => {
            let changed = *old != new;
            *old = new;
            changed
        }
        None => map.insert(key.clone(), new).is_none(),
    }
}
