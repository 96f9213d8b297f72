//! What was last proven of each vdisk, kept in the data directory so that it outlives the server.
//!
//! One file for each vdisk, `proofs/VDISK.json`, replaced as a whole. The files are what counts: one that somebody removes is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tlog_proto::VdiskId;

use crate::proof_report::ProofReport;

/// What is known of a vdisk's restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProofRecord {
    /// The last proof; none where there never was one.
    pub proof: Option<ProofReport>,
    /// Why it could not be proven since; none where the last attempt was a proof.
    pub failure: Option<ProofFailure>,
}

/// Attempts that failed, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofFailure {
    /// When the first of them failed, in nanoseconds since 1970.
    pub since_ns: u64,
    /// When the last one did.
    pub at_ns: u64,
    /// How many there were.
    pub attempts: u64,
    /// "lost": it cannot be restored from the stores in reach; "pruned" or "unknown": it could not be told.
    pub verdict: String,
    /// Why, and what to do.
    pub error: String,
}

impl ProofRecord {
    /// The same after another attempt failed.
    pub(super) fn failed(self, at_ns: u64, verdict: &str, error: String) -> Self {
        let (since_ns, before) = self.failure.map_or((at_ns, 0), |before| (before.since_ns, before.attempts));
        let failure =
            ProofFailure { since_ns, at_ns, attempts: before + 1, verdict: verdict.to_owned(), error };
        Self { failure: Some(failure), ..self }
    }
}

/// The records of a data directory.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
    /// As they were last read or written here.
    known: Mutex<BTreeMap<VdiskId, ProofRecord>>,
}

const SUFFIX: &str = ".json";

impl Records {
    /// Those of a data directory. One that cannot be read is warned of, and is as if it had never been: the next proof writes it anew.
    pub fn of(data_dir: &Path) -> Self {
        let records = Self { directory: data_dir.join("proofs"), known: Mutex::default() };
        for vdisk in records.names() {
            let file = records.file(&vdisk);
            let read = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice(&text)?));
            match read {
                Ok(record) => drop(records.known().insert(vdisk, record)),
                Err(error) => {
                    tracing::warn!(%vdisk, file = %file.display(), %error, "what was proven of a restore cannot be read")
                }
            }
        }
        records
    }

    /// All of them that are still there.
    pub fn all(&self) -> BTreeMap<VdiskId, ProofRecord> {
        let there = self.names();
        let mut known = self.known();
        known.retain(|vdisk, _| there.contains(vdisk));
        known.clone()
    }

    /// That of one vdisk.
    pub fn get(&self, vdisk: &VdiskId) -> Option<ProofRecord> {
        self.known().get(vdisk).cloned().filter(|_| self.file(vdisk).exists())
    }

    /// Keeps it, also when the machine fails. Where that does not go it is warned of, and known until the server ends.
    pub(super) fn put(&self, vdisk: &VdiskId, record: ProofRecord) {
        if let Err(error) = self.write(vdisk, &record) {
            tracing::warn!(%vdisk, directory = %self.directory.display(), %error, "what was proven of a restore cannot be written down");
        }
        self.known().insert(vdisk.clone(), record);
    }

    /// Forgets it: the vdisk is gone.
    pub fn remove(&self, vdisk: &VdiskId) -> io::Result<()> {
        self.known().remove(vdisk);
        match std::fs::remove_file(self.file(vdisk)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, vdisk: &VdiskId, record: &ProofRecord) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let mut beside = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer_pretty(&mut beside, record)?;
        beside.as_file().sync_all()?;
        beside.persist(self.file(vdisk))?;
        std::fs::File::open(&self.directory)?.sync_all()
    }

    /// The name of a vdisk is safe as that of a file.
    fn file(&self, vdisk: &VdiskId) -> PathBuf {
        self.directory.join(format!("{vdisk}{SUFFIX}"))
    }

    fn names(&self) -> BTreeSet<VdiskId> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let name =
            |entry: std::fs::DirEntry| VdiskId::new(entry.file_name().to_str()?.strip_suffix(SUFFIX)?).ok();
        entries.filter_map(name).collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<VdiskId, ProofRecord>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_their_process_and_one_that_is_damaged_or_gone_is_as_if_it_had_never_been() {
        let directory = tempfile::tempdir().unwrap();
        let [vda, vdb, vdc] = ["vda", "vdb", "vm:1@host"].map(|name| VdiskId::new(name).unwrap());
        let records = Records::of(directory.path());
        assert!(records.all().is_empty() && std::fs::read_dir(directory.path()).unwrap().next().is_none());
        let first = ProofRecord::default().failed(7, "unknown", "no key".to_owned());
        let record = first.failed(9, "lost", "gone".to_owned());
        let failure = record.failure.clone().unwrap();
        assert_eq!((failure.since_ns, failure.at_ns, failure.attempts), (7, 9, 2));
        for vdisk in [&vda, &vdb, &vdc] {
            records.put(vdisk, record.clone());
        }
        assert_eq!(std::fs::read_dir(directory.path().join("proofs")).unwrap().count(), 3);

        std::fs::write(directory.path().join("proofs/vdb.json"), "{").unwrap();
        let again = Records::of(directory.path());
        assert_eq!(again.all().into_keys().collect::<Vec<_>>(), [vda.clone(), vdc.clone()]);
        assert_eq!(again.get(&vdc), Some(record));
        records.remove(&vdc).unwrap();
        records.remove(&vdc).unwrap();
        assert_eq!((again.get(&vdc), again.all().len()), (None, 1));
    }
}
