//! What each vdisk gets, put together from its documents and those of its clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tlog_proto::VdiskId;

use super::valid::{Outcome, Valid};
use crate::parts::{Reference, VdiskNbd, VdiskTlog};
use crate::{
    ClusterKind, Document, DocumentKey, Fault, LogStorage, NbdStorage, Place, Problem, Snapshot,
    StorageCluster, VdiskConfig, common_store,
};

/// Everything that is known, and what each vdisk gets of it.
///
/// `vdisks` has exactly the vdisks with a static part in force. `users` has, for each cluster, those that it must be looked at for when the
/// cluster changes: those that use it, and those that would if it were there.
#[derive(Debug, Default)]
pub(crate) struct State {
    valid: Valid,
    vdisks: BTreeMap<VdiskId, Composed>,
    users: BTreeMap<(ClusterKind, String), BTreeSet<VdiskId>>,
    dangling: usize,
    #[cfg(test)]
    recomposed: u64,
}

#[derive(Debug)]
struct Composed {
    config: Arc<VdiskConfig>,
    /// The parts in force: what the source says, or what it said when every cluster in it was there.
    nbd: Option<VdiskNbd>,
    tlog: Option<VdiskTlog>,
    uses: BTreeSet<(ClusterKind, String)>,
    /// References of what the source says to clusters that are not there.
    dangling: Vec<Problem>,
}

/// What changed, for those who wait for it and for the log.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Vdisks that are others now, and what they are; none where they are gone.
    pub(crate) vdisks: BTreeMap<VdiskId, Option<Arc<VdiskConfig>>>,
    /// Whether there are other vdisks than before.
    pub(crate) names: bool,
    pub(crate) storage_clusters: BTreeSet<String>,
    pub(crate) tlog_clusters: BTreeSet<String>,
    /// Documents that changed, whatever that means for vdisks.
    pub(crate) changed: u64,
    /// Documents that are not valid, and were not told of yet.
    pub(crate) refused: Vec<(DocumentKey, Vec<Problem>)>,
    /// References that now lead nowhere.
    pub(crate) dangling: Vec<(VdiskId, Problem)>,
}

impl State {
    /// Everything as it is now.
    pub(crate) fn handle_all(&mut self, snapshot: Snapshot) -> Effects {
        let gone: Vec<_> =
            self.valid.keys().filter(|key| !snapshot.documents.contains_key(key)).cloned().collect();
        let gone = gone.into_iter().map(|key| (key, None));
        let there = snapshot.documents.into_iter().map(|(key, document)| (key, Some(document)));
        self.handle_changes(gone.chain(there))
    }

    /// Some documents as they are now.
    pub(crate) fn handle_changes(
        &mut self,
        changes: impl IntoIterator<Item = (DocumentKey, Option<Document>)>,
    ) -> Effects {
        let mut effects = Effects::default();
        let mut touched = BTreeSet::new();
        for (key, document) in changes {
            match self.valid.handle_document(&key, document) {
                Outcome::Same => {}
                Outcome::Changed => {
                    effects.changed += 1;
                    self.touch(key, &mut touched, &mut effects);
                }
                Outcome::Refused => {
                    let problems = self.valid.problems.get(&key).cloned().unwrap_or_default();
                    effects.refused.push((key, problems));
                }
            }
        }
        // After all of them, so that what came together is seen together.
        for vdisk in touched {
            self.compose(&vdisk, &mut effects);
        }
        effects
    }

    /// Notes who has to be looked at because of a document.
    fn touch(&self, key: DocumentKey, touched: &mut BTreeSet<VdiskId>, effects: &mut Effects) {
        match key {
            DocumentKey::VdiskStatic(vdisk)
            | DocumentKey::VdiskNbd(vdisk)
            | DocumentKey::VdiskTlog(vdisk) => {
                touched.insert(vdisk);
            }
            DocumentKey::ClusterStorage(id) => {
                effects.storage_clusters.insert(id.clone());
                touched.extend(self.users.get(&(ClusterKind::Storage, id)).into_iter().flatten().cloned());
            }
            DocumentKey::ClusterTlog(id) => {
                effects.tlog_clusters.insert(id.clone());
                touched.extend(self.users.get(&(ClusterKind::Tlog, id)).into_iter().flatten().cloned());
            }
            DocumentKey::NbdServerVdisks(_) | DocumentKey::Misnamed(_) => {}
        }
    }

    fn compose(&mut self, vdisk: &VdiskId, effects: &mut Effects) {
        #[cfg(test)]
        {
            self.recomposed += 1;
        }
        let before = self.vdisks.remove(vdisk);
        if let Some(before) = &before {
            self.dangling -= before.dangling.len();
            for cluster in &before.uses {
                if let Some(users) = self.users.get_mut(cluster) {
                    users.remove(vdisk);
                    if users.is_empty() {
                        self.users.remove(cluster);
                    }
                }
            }
        }
        let Some(after) = self.composed(vdisk, before.as_ref()) else {
            if before.is_some() {
                effects.names = true;
                effects.vdisks.insert(vdisk.clone(), None);
            }
            return;
        };
        for cluster in &after.uses {
            self.users.entry(cluster.clone()).or_default().insert(vdisk.clone());
        }
        self.dangling += after.dangling.len();
        let known = before.as_ref().map_or(&[][..], |before| &before.dangling);
        let new = after.dangling.iter().filter(|problem| !known.contains(problem));
        effects.dangling.extend(new.map(|problem| (vdisk.clone(), problem.clone())));
        effects.names |= before.is_none();
        if before.is_none_or(|before| before.config != after.config) {
            effects.vdisks.insert(vdisk.clone(), Some(Arc::clone(&after.config)));
        }
        self.vdisks.insert(vdisk.clone(), after);
    }

    /// None where there is no such vdisk.
    fn composed(&self, vdisk: &VdiskId, before: Option<&Composed>) -> Option<Composed> {
        let says = self.valid.statics.get(vdisk)?;
        let (wanted_nbd, wanted_tlog) = (self.valid.nbds.get(vdisk), self.valid.tlogs.get(vdisk));
        let mut dangling = self.dangling_of(wanted_nbd.map(nbd_references).unwrap_or_default());
        let nbd = match wanted_nbd {
            Some(_) if !dangling.is_empty() => before.and_then(|before| before.nbd.clone()),
            wanted => wanted.cloned(),
        };
        let dangling_tlog = self.dangling_of(wanted_tlog.map(tlog_references).unwrap_or_default());
        let tlog = match wanted_tlog {
            Some(_) if !dangling_tlog.is_empty() => before.and_then(|before| before.tlog.clone()),
            wanted => wanted.cloned(),
        };
        dangling.extend(dangling_tlog);

        let parts = [wanted_nbd, nbd.as_ref()].into_iter().flatten().flat_map(nbd_references);
        let parts = parts.chain([wanted_tlog, tlog.as_ref()].into_iter().flatten().flat_map(tlog_references));
        let uses = parts.map(|(kind, reference)| (kind, reference.name.clone())).collect();

        let config = VdiskConfig {
            vdisk: vdisk.clone(),
            vdisk_type: says.vdisk_type,
            block_size: says.block_size,
            size: says.size,
            read_only: says.read_only,
            tlog: tlog.as_ref().and_then(|tlog| self.log_storage(tlog, before)),
            nbd: nbd.as_ref().map(|nbd| self.nbd_storage(nbd, before)),
        };
        // The same object as before where it says the same.
        let config = match before {
            Some(before) if *before.config == config => Arc::clone(&before.config),
            _ => Arc::new(config),
        };
        Some(Composed { config, nbd, tlog, uses, dangling })
    }

    /// The clusters of a part in force. One that is gone is as it was last.
    fn log_storage(&self, tlog: &VdiskTlog, before: Option<&Composed>) -> Option<LogStorage> {
        let kept = before.and_then(|before| before.config.tlog.as_ref());
        let kept: Vec<&Arc<StorageCluster>> =
            kept.into_iter().flat_map(|kept| [Some(&kept.cluster), kept.slave.as_ref()]).flatten().collect();
        let cluster = |reference: &Reference| {
            let there = self.valid.storage_clusters.get(&reference.name);
            there.or_else(|| kept.iter().find(|kept| kept.id == reference.name).copied()).cloned()
        };
        Some(LogStorage { cluster: cluster(&tlog.storage)?, slave: tlog.slave.as_ref().and_then(cluster) })
    }

    fn nbd_storage(&self, nbd: &VdiskNbd, before: Option<&Composed>) -> NbdStorage {
        let name = |reference: &Option<Reference>| reference.as_ref().map(|reference| reference.name.clone());
        let kept = before.and_then(|before| before.config.nbd.as_ref());
        let servers = |reference: &Reference| {
            let kept = kept.filter(|kept| kept.tlog_server_cluster_id.as_ref() == Some(&reference.name));
            let there = self.valid.tlog_clusters.get(&reference.name);
            there.cloned().or_else(|| kept.and_then(|kept| kept.tlog_servers.clone()))
        };
        NbdStorage {
            storage_cluster_id: nbd.storage.name.clone(),
            template_storage_cluster_id: name(&nbd.template),
            slave_storage_cluster_id: name(&nbd.slave),
            tlog_server_cluster_id: name(&nbd.tlog),
            tlog_servers: nbd.tlog.as_ref().and_then(servers),
        }
    }

    fn dangling_of(&self, references: Vec<(ClusterKind, &Reference)>) -> Vec<Problem> {
        let dangling = references.into_iter().filter(|(kind, reference)| !self.is_in_force(*kind, reference));
        dangling.map(|(kind, reference)| no_such_cluster(kind, reference)).collect()
    }

    fn is_in_force(&self, kind: ClusterKind, reference: &Reference) -> bool {
        match kind {
            ClusterKind::Storage => self.valid.storage_clusters.contains_key(&reference.name),
            ClusterKind::Tlog => self.valid.tlog_clusters.contains_key(&reference.name),
        }
    }

    /// Whether the source has such a cluster, valid or not.
    fn is_there(&self, kind: ClusterKind, reference: &Reference) -> bool {
        let name = reference.name.clone();
        self.valid.has(&match kind {
            ClusterKind::Storage => DocumentKey::ClusterStorage(name),
            ClusterKind::Tlog => DocumentKey::ClusterTlog(name),
        })
    }

    /// Whether a vdisk's slave is where the disk or its log is. What is in force does not change with it: whoever would keep the slave
    /// up to date has to look as well.
    fn slave_in_place(&self, vdisk: &VdiskId, tlog: &VdiskTlog) -> Option<Problem> {
        let slave = tlog.slave.as_ref()?;
        let nbd = self.valid.nbds.get(vdisk).map(|nbd| ("nbd.storageClusterID", &nbd.storage));
        let places = nbd.into_iter().chain([("tlog.storageClusterID", &tlog.storage)]);
        let cluster = |reference: &Reference| self.valid.storage_clusters.get(&reference.name);
        let mut faults = places.filter_map(|(of, other)| {
            if other.name == slave.name {
                return Some(Fault::SlaveInPlace { of, store: None });
            }
            let store = common_store(cluster(slave)?, cluster(other)?)?;
            Some(Fault::SlaveInPlace { of, store: Some(store) })
        });
        faults.next().map(|fault| Problem { place: slave.place.clone(), fault })
    }

    /// Everything that is wrong: documents that are not valid, then references that lead nowhere, and slaves that are none.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.valid.problems.values().flatten().cloned().collect();
        let nbds = self.valid.nbds.iter().map(|(vdisk, nbd)| (vdisk, nbd_references(nbd)));
        let tlogs = self.valid.tlogs.iter().map(|(vdisk, tlog)| (vdisk, tlog_references(tlog)));
        for (vdisk, references) in nbds.chain(tlogs) {
            if !self.valid.has(&DocumentKey::VdiskStatic(vdisk.clone())) {
                let origin = references.first().map(|(_, reference)| Arc::clone(&reference.place.origin));
                let place = Place { origin: origin.unwrap_or_default(), path: String::new(), at: None };
                problems.push(Problem { place, fault: Fault::NoStaticPart(vdisk.clone()) });
            }
            // One that is there and not valid has a problem of its own.
            let dangling =
                references.into_iter().filter(|(kind, reference)| !self.is_there(*kind, reference));
            problems.extend(dangling.map(|(kind, reference)| no_such_cluster(kind, reference)));
        }
        problems.extend(self.valid.tlogs.iter().flat_map(|(vdisk, tlog)| self.slave_in_place(vdisk, tlog)));
        for (vdisk, place) in self.valid.nbd_servers.values().flat_map(|server| &server.vdisks) {
            if !self.valid.has(&DocumentKey::VdiskStatic(vdisk.clone())) {
                problems.push(Problem { place: place.clone(), fault: Fault::NoSuchVdisk(vdisk.clone()) });
            }
        }
        problems
    }

    /// Documents that are not valid, and references that lead nowhere.
    pub(crate) fn problem_count(&self) -> usize {
        self.valid.problems.len() + self.dangling
    }

    /// How often a vdisk was put together, to prove that the others were not.
    #[cfg(test)]
    pub(crate) fn recomposed(&self) -> u64 {
        self.recomposed
    }

    /// Fails where what stands on [`State`] does not hold.
    #[cfg(test)]
    pub(crate) fn check_index(&self) {
        assert!(self.vdisks.keys().eq(self.valid.statics.keys()));
        let mut users: BTreeMap<(ClusterKind, String), BTreeSet<VdiskId>> = BTreeMap::new();
        for (vdisk, composed) in &self.vdisks {
            for cluster in &composed.uses {
                users.entry(cluster.clone()).or_default().insert(vdisk.clone());
            }
        }
        assert_eq!(self.users, users);
        let dangling = self.vdisks.values().map(|composed| composed.dangling.len()).sum::<usize>();
        assert_eq!(self.dangling, dangling);
    }

    pub(crate) fn vdisk(&self, vdisk: &VdiskId) -> Option<Arc<VdiskConfig>> {
        self.vdisks.get(vdisk).map(|composed| Arc::clone(&composed.config))
    }

    pub(crate) fn vdisk_names(&self) -> BTreeSet<VdiskId> {
        self.vdisks.keys().cloned().collect()
    }

    pub(crate) fn storage_cluster(&self, id: &str) -> Option<Arc<StorageCluster>> {
        self.valid.storage_clusters.get(id).cloned()
    }

    pub(crate) fn tlog_servers(&self, id: &str) -> Option<Arc<Vec<String>>> {
        self.valid.tlog_clusters.get(id).cloned()
    }
}

fn no_such_cluster(kind: ClusterKind, reference: &Reference) -> Problem {
    let name = Some(reference.name.clone()).filter(|name| !name.contains('@'));
    Problem { place: reference.place.clone(), fault: Fault::NoSuchCluster { kind, name } }
}

fn nbd_references(nbd: &VdiskNbd) -> Vec<(ClusterKind, &Reference)> {
    let storage = [Some(&nbd.storage), nbd.template.as_ref(), nbd.slave.as_ref()];
    let storage = storage.into_iter().flatten().map(|reference| (ClusterKind::Storage, reference));
    storage.chain(nbd.tlog.as_ref().map(|reference| (ClusterKind::Tlog, reference))).collect()
}

fn tlog_references(tlog: &VdiskTlog) -> Vec<(ClusterKind, &Reference)> {
    let storage = [Some(&tlog.storage), tlog.slave.as_ref()];
    storage.into_iter().flatten().map(|reference| (ClusterKind::Storage, reference)).collect()
}
