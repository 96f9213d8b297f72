//! Proofs that vdisks can be restored, made by the server: when it is asked to, and by itself from time to time.
//!
//! ```text
//! every so often: which logs are there?  -> those whose proof is older than `every`, or failed a quarter of that ago
//!   one at a time, the oldest proof first:  pin history, open, prove the newest moment, write down what came of it
//! ```
//!
//! Everything is read anew each time (a shard that was there yesterday may have rotted), and all proofs together read no faster than one
//! bound. Nothing is opened for writing, so that a log stays with the server that writes it.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tlog_codec::VdiskKeys;
use tlog_crypto::{Keyring, MasterKey};
use tlog_player::{
    LogReader, Moment, OpenError, Proof, ProveError, ProveFault, ProveOptions, ReadOptions, prove,
};
use tlog_proto::{AggregationNumber, Timestamp, VdiskId};
use tlog_quorum::Pacer;
use tokio_util::sync::CancellationToken;

use crate::documents::PlacementError;
use crate::moment;
use crate::open_log::AnyStatus;
use crate::pins::{PinError, Pins};
use crate::proof_report::{ProofReport, in_words, name_of};
use crate::reading;
use crate::settings::Settings;
use crate::storage::{FlusherStorage, OpenLogError};
use crate::storages::{NoStorage, StorageInUse, Storages};

pub use self::records::{ProofFailure, ProofRecord, Records};

/// Bytes of memory for what a proof is reading, about: clients come first.
const MEMORY: u64 = 16 << 20;

/// At least so often it is looked which logs there are.
const LOOK: Duration = Duration::from_secs(60);

/// How long open logs may take to say how far they are.
const ASK: Duration = Duration::from_secs(5);

/// Proofs of a server's vdisks. Cheap to clone.
#[derive(Clone)]
pub struct Proofs {
    inner: Arc<Inner>,
}

struct Inner {
    storages: Storages,
    pins: Pins,
    records: Records,
    /// None: only when asked.
    every: Option<Duration>,
    pacer: Arc<Pacer>,
    /// Vdisks of which a proof is being made.
    running: Mutex<BTreeSet<VdiskId>>,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// The vdisk has no stores here.
    #[error(transparent)]
    NoStorage(#[from] NoStorage),
    /// There is nothing to open it with.
    #[error(transparent)]
    Keys(#[from] OpenLogError),
    /// The number of stores is not that of the shards.
    #[error("the number of stores is not that of the shards")]
    NumberOfStores,
    /// Another proof of it is being made.
    #[error("a proof of vdisk {0} is being made already; GET /status shows what came of it")]
    Running(VdiskId),
    /// It cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// It failed.
    #[error("{error}")]
    Failed {
        /// What that says.
        fault: ProveFault,
        /// Why, and what to do.
        error: String,
    },
    /// There is no such log.
    #[error(transparent)]
    Unknown(OpenError),
}

impl NotProven {
    /// What is written down of it; none where that says nothing of a log.
    fn verdict(&self) -> Option<&'static str> {
        match self {
            Self::Failed { fault, .. } => Some(name_of(*fault)),
            Self::Keys(_) | Self::NumberOfStores => Some("unknown"),
            Self::NoStorage(_) | Self::Running(_) | Self::Pin(_) | Self::Unknown(_) => None,
        }
    }
}

impl Proofs {
    /// Of the logs on these, as often and as fast as the settings say, remembered in the data directory.
    pub fn new(storages: Storages, pins: Pins, settings: &Settings) -> Self {
        let (records, every) = (Records::of(&settings.data_dir), settings.verify_restore_every);
        let pacer = Arc::new(Pacer::new(settings.verify_restore_rate));
        Self { inner: Arc::new(Inner { storages, pins, records, every, pacer, running: Mutex::default() }) }
    }

    /// Proves that the newest moment of a vdisk can be restored, and writes down what came of it.
    pub async fn prove(&self, vdisk: &VdiskId) -> Result<ProofReport, NotProven> {
        let _running = self.begin(vdisk)?;
        let began = moment::now();
        let proven = self.read(vdisk).await.map(|proof| ProofReport::new(&proof, began));
        match &proven {
            Ok(report) => self.proven(vdisk, report).await,
            Err(error) => self.failed(vdisk, error).await,
        }
        proven
    }

    async fn read(&self, vdisk: &VdiskId) -> Result<Proof, NotProven> {
        let storage = self.inner.storages.of(vdisk).await?;
        let set = storage.store_set(vdisk).ok_or(NotProven::NumberOfStores)?;
        let keys = match storage.keys(vdisk) {
            // All there is may be in format 1, which has keys of its own. What is not names the key that it lacks.
            Err(OpenLogError::NoKey) if storage.format1_keys().is_some() => {
                let nobodys = MasterKey::generate().map_err(|_| OpenLogError::NoKey)?;
                let keys = VdiskKeys::new(vdisk.clone(), Arc::new(Keyring::new(nobodys)));
                keys.with_format1(storage.format1_keys().cloned())
            }
            keys => keys?,
        };
        let failed = |error: ProveError| NotProven::Failed {
            fault: error.fault(),
            error: in_words(vdisk.as_str(), error, reading::tell),
        };
        // Before the log is opened, so that nothing of what is found then goes.
        let _pin = self.inner.pins.hold(vdisk, AggregationNumber(1), "the server's proof of a restore")?;
        let reader = match LogReader::open_with(set, storage.format1_keys().cloned()).await {
            Err(error @ OpenError::UnknownVdisk { .. }) => return Err(NotProven::Unknown(error)),
            reader => reader.map_err(|error| failed(error.into()))?,
        };
        let reader = reader.paced(Arc::clone(&self.inner.pacer));
        // A store that is away while a client writes leaves the last moments open; what is certain is proven.
        let read = ReadOptions { accept_uncertain_end: true, ..ReadOptions::default() };
        let options = ProveOptions { read, memory: MEMORY };
        prove(&reader, &keys, Moment::Newest, &options, |_| {}).await.map_err(failed)
    }

    async fn proven(&self, vdisk: &VdiskId, report: &ProofReport) {
        let ProofReport { verdict, last_aggregation, aggregations_read, seconds, absent_stores, .. } = report;
        tracing::info!(
            %vdisk, verdict, last_aggregation, aggregations_read, seconds, ?absent_stores,
            moment = report.moment.as_ref().map(|moment| &moment.time),
            "proven that the vdisk can be restored"
        );
        if self.inner.records.get(vdisk).is_some_and(|before| before.failure.is_some()) {
            tracing::info!(%vdisk, "it can be restored again, as far as that could not be proven before");
        }
        metrics::counter!("tlog_restore_proofs_total", "vdisk" => vdisk.to_string()).increment(1);
        self.write_down(vdisk, ProofRecord { proof: Some(report.clone()), failure: None }).await;
    }

    async fn failed(&self, vdisk: &VdiskId, error: &NotProven) {
        let Some(verdict) = error.verdict() else {
            tracing::warn!(%vdisk, %error, "whether the vdisk can be restored was not tried");
            return;
        };
        tracing::error!(%vdisk, verdict, %error, "NOT PROVEN that the vdisk can be restored");
        let labels = [("vdisk", vdisk.to_string()), ("verdict", verdict.to_owned())];
        metrics::counter!("tlog_restore_proof_failures_total", &labels).increment(1);
        let record = self.inner.records.get(vdisk).unwrap_or_default();
        self.write_down(vdisk, record.failed(moment::now().0, verdict, error.to_string())).await;
    }

    /// On a thread for what waits for a disk: clients are not to wait for it.
    async fn write_down(&self, vdisk: &VdiskId, record: ProofRecord) {
        let (proofs, id) = (self.clone(), vdisk.clone());
        // It fails only where the runtime is shutting down.
        let _written = tokio::task::spawn_blocking(move || proofs.inner.records.put(&id, record)).await;
        self.measure_one(vdisk, None);
    }

    fn begin(&self, vdisk: &VdiskId) -> Result<Running, NotProven> {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.insert(vdisk.clone()) {
            true => Ok(Running { proofs: self.clone(), vdisk: vdisk.clone() }),
            false => Err(NotProven::Running(vdisk.clone())),
        }
    }

    /// Proves every log again and again, as often as it is set, and after a quarter of that again where it failed. Until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        if let Some(every) = self.inner.every {
            shutdown.run_until_cancelled(self.again_and_again(every)).await;
        }
    }

    async fn again_and_again(&self, every: Duration) {
        loop {
            tokio::time::sleep((every / 4).min(LOOK)).await;
            let logs = self.logs().await;
            for vdisk in due(&logs, &self.inner.records.all(), every, moment::now()) {
                // What came of it is logged and written down.
                let _said = self.prove(&vdisk).await;
            }
        }
    }

    /// Every log that is there. What was written down of others that certainly are not is removed.
    async fn logs(&self) -> BTreeSet<VdiskId> {
        let storages = &self.inner.storages;
        let mut logs = BTreeSet::new();
        let mut complete: Vec<Arc<FlusherStorage>> = Vec::new();
        for StorageInUse { cluster, storage, .. } in storages.all().await {
            let found = storage.inventory().await;
            let is_readable = |known: &crate::inventory::Known| {
                known.logs > 0 || (known.chains > 0 && storage.format1_keys().is_some())
            };
            let here =
                found.vdisks.into_iter().filter(|(_, known)| is_readable(known)).map(|(vdisk, _)| vdisk);
            logs.extend(here.filter(|vdisk| storages.is_on(vdisk, cluster.as_deref())));
            if found.silent.is_empty() {
                complete.push(storage);
            }
        }
        for vdisk in self.inner.records.all().into_keys().filter(|vdisk| !logs.contains(vdisk)) {
            let is_gone = match storages.of(&vdisk).await {
                Ok(storage) => complete.iter().any(|other| Arc::ptr_eq(other, &storage)),
                Err(NoStorage::Placement(PlacementError::UnknownVdisk(_))) => true,
                Err(_) => false,
            };
            if is_gone && let Err(error) = self.inner.records.remove(&vdisk) {
                tracing::warn!(%vdisk, %error, "what was proven of a vdisk that is gone cannot be removed");
            }
        }
        logs
    }

    /// What is known of each vdisk's restore; `logs` are those that are open, which tell how far their proofs are behind.
    pub fn show(&self, logs: &[AnyStatus]) -> Vec<Value> {
        let committed = committed(logs);
        let mut records = self.inner.records.all();
        for vdisk in committed.keys() {
            records.entry(vdisk.clone()).or_default();
        }
        let now = moment::now();
        records
            .iter()
            .map(|(vdisk, record)| show(vdisk, record, committed.get(vdisk).copied(), now))
            .collect()
    }

    /// Sets the gauges of all vdisks, and those of vdisks in `told` that are gone to 0. Answers which ones there are.
    pub async fn measure(&self, told: BTreeSet<VdiskId>) -> BTreeSet<VdiskId> {
        // Nothing else waits for a log that does not answer.
        let logs = tokio::time::timeout(ASK, self.inner.storages.logs()).await;
        let committed = committed(&logs.unwrap_or_default());
        let there: BTreeSet<VdiskId> = self.inner.records.all().into_keys().collect();
        for vdisk in told.union(&there) {
            self.measure_one(vdisk, committed.get(vdisk).copied());
        }
        there
    }

    fn measure_one(&self, vdisk: &VdiskId, committed: Option<AggregationNumber>) {
        let label = || vdisk.to_string();
        let ProofRecord { proof, failure } = self.inner.records.get(vdisk).unwrap_or_default();
        let failing = if failure.is_some() { 1.0 } else { 0.0 };
        metrics::gauge!("tlog_restore_proof_failing", "vdisk" => label()).set(failing);
        let age = proof.as_ref().map_or(0.0, |proof| seconds_since(proof.began_ns, moment::now()));
        metrics::gauge!("tlog_restore_proof_age_seconds", "vdisk" => label()).set(age);
        let proven = proof.as_ref().and_then(|proof| proof.moment.as_ref());
        let proven = proven.map_or(0.0, |moment| moment.timestamp_ns as f64 / 1e9);
        metrics::gauge!("tlog_restore_proven_timestamp_seconds", "vdisk" => label()).set(proven);
        if let Some(committed) = committed {
            let behind = committed.0.saturating_sub(proof.map_or(0, |proof| proof.last_aggregation));
            metrics::gauge!("tlog_restore_behind_aggregations", "vdisk" => label()).set(behind as f64);
        }
    }
}

/// A proof that is being made.
struct Running {
    proofs: Proofs,
    vdisk: VdiskId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.proofs.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.vdisk);
    }
}

/// Which of the logs are to be proven now, the oldest proof first.
fn due(
    logs: &BTreeSet<VdiskId>,
    records: &BTreeMap<VdiskId, ProofRecord>,
    every: Duration,
    now: Timestamp,
) -> Vec<VdiskId> {
    let is_over = |since_ns: u64, span: Duration| {
        // A clock that was put back must not put proofs off.
        since_ns > now.0 || u128::from(now.0 - since_ns) >= span.as_nanos()
    };
    let mut due: Vec<(u64, &VdiskId)> = Vec::new();
    for vdisk in logs {
        let (proof, failure) =
            records.get(vdisk).map_or((None, None), |r| (r.proof.as_ref(), r.failure.as_ref()));
        let proven_ns = proof.map_or(0, |proof| proof.began_ns);
        let is_due = match failure {
            Some(failure) => is_over(failure.at_ns, every / 4),
            None => is_over(proven_ns, every),
        };
        if is_due {
            due.push((proven_ns, vdisk));
        }
    }
    due.sort_unstable();
    due.into_iter().map(|(_, vdisk)| vdisk.clone()).collect()
}

fn committed(logs: &[AnyStatus]) -> BTreeMap<VdiskId, AggregationNumber> {
    let of = |log: &AnyStatus| match log {
        AnyStatus::Two(log) => Some((log.vdisk.clone(), log.committed)),
        AnyStatus::One(_) => None,
    };
    logs.iter().filter_map(of).collect()
}

fn seconds_since(ns: u64, now: Timestamp) -> f64 {
    now.0.saturating_sub(ns) as f64 / 1e9
}

fn show(
    vdisk: &VdiskId,
    record: &ProofRecord,
    committed: Option<AggregationNumber>,
    now: Timestamp,
) -> Value {
    let ProofRecord { proof, failure } = record;
    let age = proof.as_ref().map(|proof| seconds_since(proof.began_ns, now));
    let behind = committed.map(|committed| {
        committed.0.saturating_sub(proof.as_ref().map_or(0, |proof| proof.last_aggregation))
    });
    // What was written after the proof began is not proven.
    let behind_seconds = match behind {
        Some(0) => Some(0.0),
        Some(_) => age,
        None => None,
    };
    json!({
        "vdisk": vdisk.as_str(),
        "proof": proof,
        "proof_age_seconds": age,
        "behind_aggregations": behind,
        "behind_seconds": behind_seconds,
        "failure": failure.as_ref().map(show_failure),
    })
}

fn show_failure(failure: &ProofFailure) -> Value {
    json!({
        "since": moment::show(Timestamp(failure.since_ns)),
        "at": moment::show(Timestamp(failure.at_ns)),
        "attempts": failure.attempts,
        "verdict": failure.verdict,
        "error": failure.error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proven(began_ns: u64) -> ProofRecord {
        let proof = ProofReport {
            vdisk: String::new(),
            verdict: "proven".to_owned(),
            began_ns,
            seconds: 0.1,
            moment: None,
            last_aggregation: 5,
            uncertain_beyond: None,
            block_size: 0,
            length: 0,
            blocks: 0,
            bytes: 0,
            aggregations_read: 0,
            digest: String::new(),
            absent_stores: Vec::new(),
        };
        ProofRecord { proof: Some(proof), failure: None }
    }

    #[test]
    fn the_oldest_proof_comes_first_and_what_failed_comes_earlier() {
        let second = |s: u64| s * 1_000_000_000;
        let vdisk = |name: &str| VdiskId::new(name).unwrap();
        let records = BTreeMap::from([
            (vdisk("old"), proven(second(100))),
            (vdisk("older"), proven(second(50))),
            (vdisk("recent"), proven(second(190))),
            (vdisk("in-the-future"), proven(second(1000))),
            (vdisk("failed"), proven(second(10)).failed(second(174), "lost", String::new())),
            (vdisk("failed-now"), proven(second(10)).failed(second(180), "lost", String::new())),
            (vdisk("gone"), proven(second(1))),
        ]);
        let mut logs: BTreeSet<VdiskId> = records.keys().cloned().collect();
        logs.remove(&vdisk("gone"));
        logs.insert(vdisk("never"));
        let found = due(&logs, &records, Duration::from_secs(100), Timestamp(second(200)));
        let expected = ["never", "failed", "older", "old", "in-the-future"].map(vdisk);
        assert_eq!(found, expected);
    }

    #[test]
    fn how_far_a_proof_is_behind_is_told_where_the_log_is_open() {
        let now = Timestamp(3_000_000_000);
        let shown = |committed: Option<u64>| {
            show(&VdiskId::new("vda").unwrap(), &proven(1_000_000_000), committed.map(AggregationNumber), now)
        };
        assert_eq!(shown(Some(5))["behind_seconds"], json!(0.0));
        assert_eq!(shown(Some(9))["behind_aggregations"], json!(4));
        assert_eq!(shown(Some(9))["behind_seconds"], json!(2.0));
        assert_eq!(shown(None)["behind_seconds"], Value::Null);
        assert_eq!(shown(None)["proof_age_seconds"], json!(2.0));
    }
}
