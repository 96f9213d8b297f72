//! The server's port to storage, on the log writer of `tlog-flusher`.

mod holding;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tlog_codec::format1::{self, Keys as Format1Keys};
use tlog_codec::{Redundancy, VdiskKeys};
use tlog_crypto::Keyring;
use tlog_flusher::format1::Format1Log;
use tlog_flusher::{Log, LogSettings, ScrubProgress, ScrubReport};
use tlog_proto::VdiskId;
use tlog_quorum::{Quorums, StoreSet, TooFewStores};
use tlog_server::{LogStorage, OpenError, VdiskLog};
use tlog_store::ShardStore;

use crate::filling::{FillError, wait_filled, wait_while_filling};
use crate::inventory::{Inventory, inventory};
use crate::open_log::{AnyLog, AnyStatus, OpenLog};
use crate::places::Places;
use crate::settings::{Format, RedundancySettings, Settings};

/// Settings that the log's own checks refuse; ours should have refused them before.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRedundancy(String);

/// k, m and W as the log's crates take them.
pub fn quorums(settings: RedundancySettings) -> Result<Quorums, InvalidRedundancy> {
    let RedundancySettings { data_shards, parity_shards, write_quorum } = settings;
    let redundancy = Redundancy::new(data_shards.into(), parity_shards.into())
        .map_err(|error| InvalidRedundancy(error.to_string()))?;
    Quorums::new(redundancy, write_quorum.into()).map_err(|error| InvalidRedundancy(error.to_string()))
}

/// The writer's part of the settings.
pub fn log_settings(settings: &Settings) -> LogSettings {
    let defaults = LogSettings::default();
    LogSettings {
        max_blocks: settings.flush_size,
        max_age: settings.flush_time,
        in_flight: settings.in_flight,
        max_unflushed_bytes: settings.limits.max_unflushed_bytes_per_vdisk,
        max_batch_bytes: defaults.max_batch_bytes.max(settings.limits.max_block_bytes),
        commit_timeout: settings.commit_timeout,
        fill_bytes_per_second: settings.repair_rate,
        check_stores_every: settings.check_stores_every,
        ..defaults
    }
}

/// The keys of stored format 1 as the log's crates take them.
pub fn format1_keys(settings: &Settings) -> Result<Option<Format1Keys>, format1::ConfigError> {
    let keys = settings.format1_keys.as_ref();
    keys.map(|keys| Format1Keys::new(keys.private_key.reveal().as_bytes(), keys.nonce.reveal())).transpose()
}

/// Opens the logs of vdisks on one set of stores, under one keyring.
pub struct FlusherStorage {
    places: Places,
    /// None where only format 1 is written and there is no key file.
    keyring: Option<Arc<Keyring>>,
    format1_keys: Option<Format1Keys>,
    format: Format,
    redundancy: RedundancySettings,
    quorums: Quorums,
    store_timeout: Duration,
    log: LogSettings,
    open: Mutex<BTreeMap<VdiskId, Weak<OpenLog>>>,
    /// Logs that a scrub has open, and no client's session.
    scrubbing: Mutex<BTreeMap<VdiskId, Arc<Log>>>,
    turns: Mutex<BTreeMap<VdiskId, Arc<tokio::sync::Mutex<()>>>>,
}

/// What a scrub did.
#[derive(Debug)]
pub struct Scrubbed {
    /// Stores that came back empty and were filled.
    pub filled: Vec<String>,
    /// What it found and put back besides.
    pub report: ScrubReport,
}

/// Why a log was not scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ScrubLogError {
    /// No store has it.
    #[error("no store has a log of vdisk {0}")]
    NoLog(VdiskId),
    /// All there is is of a format that is not scrubbed.
    #[error(
        "the history of vdisk {0} is one of format 1, which is not scrubbed; 'tlog verify {0}' says what is missing, and once the \
         vdisk has gone on in format 2 what is written from then on is scrubbed"
    )]
    OnlyFormat1(VdiskId),
    /// The settings changed under us.
    #[error("the number of stores is not that of the shards")]
    NumberOfStores,
    /// The log does not open.
    #[error(transparent)]
    Open(#[from] OpenLogError),
}

impl From<tlog_flusher::ScrubError> for ScrubLogError {
    fn from(error: tlog_flusher::ScrubError) -> Self {
        match error {
            tlog_flusher::ScrubError::TooFewStores(error) => Self::Open(OpenLogError::TooFewStores(error)),
        }
    }
}

/// Why a log does not open for writing.
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// Too few of the stores that the log knows are there. Only the operator's word goes past that.
    #[error(
        "{0}. With fewer, the log cannot be opened for writing, and not be scrubbed. If those are lost for good, put empty stores \
         in their place, at other addresses or the same: 'tlog store replace {vdisk} OLD NEW', all of them in one command",
        vdisk = .0.vdisk
    )]
    TooFewStores(TooFewStores),
    /// Only format 1 is written here, and there is no key file.
    #[error("this takes a key file: set key-file")]
    NoKey,
    /// The settings changed under us.
    #[error("the number of stores is not that of the shards")]
    NumberOfStores,
    /// It was open here, and another server has opened it since: that one is not to lose it again for what is done here beside
    /// writing.
    #[error(
        "another server has opened the log of vdisk {0} meanwhile, and what was under way here ends; nothing was removed. Ask that server \
         for it"
    )]
    TakenOver(VdiskId),
    /// Another reason.
    #[error(transparent)]
    Other(tlog_flusher::OpenError),
}

impl From<tlog_flusher::OpenError> for OpenLogError {
    fn from(error: tlog_flusher::OpenError) -> Self {
        match error {
            tlog_flusher::OpenError::TooFewStores(error) => Self::TooFewStores(error),
            error => Self::Other(error),
        }
    }
}

impl FlusherStorage {
    /// Takes as many stores as the settings have shards.
    pub fn new(
        settings: &Settings,
        stores: Vec<Arc<dyn ShardStore>>,
        keyring: Option<Arc<Keyring>>,
    ) -> Result<Self, InvalidRedundancy> {
        Ok(Self {
            places: Places::new(stores),
            keyring,
            format1_keys: format1_keys(settings).map_err(|error| InvalidRedundancy(error.to_string()))?,
            format: settings.format,
            redundancy: settings.redundancy,
            quorums: quorums(settings.redundancy)?,
            store_timeout: settings.store_timeout,
            log: log_settings(settings),
            open: Mutex::default(),
            scrubbing: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// The stores of one vdisk's log.
    pub fn store_set(&self, vdisk: &VdiskId) -> Option<StoreSet> {
        StoreSet::new(vdisk.clone(), self.places.of(vdisk), self.quorums, self.store_timeout)
    }

    /// The writer of a vdisk's log, while a client's session has it open.
    fn open_log(&self, vdisk: &VdiskId) -> Option<Arc<Log>> {
        let open = guard(&self.open).get(vdisk).and_then(Weak::upgrade)?;
        match &*open.log() {
            AnyLog::Two(log) => Some(Arc::clone(log)),
            AnyLog::One(_) => None,
        }
    }

    /// What opens and seals the log of a vdisk.
    pub fn keys(&self, vdisk: &VdiskId) -> Result<VdiskKeys, OpenLogError> {
        let keyring = self.keyring.as_ref().ok_or(OpenLogError::NoKey)?;
        let keys = VdiskKeys::new(vdisk.clone(), Arc::clone(keyring));
        Ok(keys.with_format1(self.format1_keys.clone()))
    }

    /// What every open writer shows, by name of its vdisk.
    pub async fn logs(&self) -> Vec<AnyStatus> {
        let logs: Vec<Arc<AnyLog>> = {
            let open = guard(&self.open);
            open.values().filter_map(Weak::upgrade).map(|log| log.log()).collect()
        };
        let mut statuses = Vec::new();
        for log in logs {
            statuses.extend(log.status().await);
        }
        statuses
    }

    /// Fills stores that came back empty, and puts back what is missing or damaged in a vdisk's log, reading at most `rate` bytes
    /// per second. Opens the log where it is not open; a client that comes meanwhile takes it over, and the scrub goes on beside it.
    pub async fn scrub(
        &self,
        vdisk: &VdiskId,
        rate: u64,
        progress: impl FnMut(ScrubProgress) + Send,
    ) -> Result<Scrubbed, ScrubLogError> {
        let set = self.store_set(vdisk).ok_or(ScrubLogError::NumberOfStores)?;
        if set
            .survey()
            .await
            .views
            .iter()
            .all(|view| matches!(&view.answer, Ok(state) if state.identity.is_none()))
        {
            if set.may_have_chain() && set.chain_survey().await.exists() {
                return Err(ScrubLogError::OnlyFormat1(vdisk.clone()));
            }
            return Err(ScrubLogError::NoLog(vdisk.clone()));
        }
        let (log, ours) = self.hold(vdisk, false).await?;
        let filled = wait_while_filling(&log, &set).await;
        let report = tlog_flusher::scrub(&set, rate, progress).await;
        self.let_go(&log, ours).await;
        Ok(Scrubbed { filled, report: report? })
    }

    /// Has a vdisk's log filled into the stores that were put into these places, and answers once they count in it. With
    /// `operators_word` the stores that were there before are gone for good, and a log that does not open without them is opened as far as
    /// nothing acknowledged can be missing. `progress` is told how many shards are missing there, from time to time.
    pub async fn fill_replaced(
        &self,
        vdisk: &VdiskId,
        positions: &[usize],
        operators_word: bool,
        progress: impl FnMut(u64) + Send,
    ) -> Result<(), FillError> {
        let set = self.store_set(vdisk).ok_or(OpenLogError::NumberOfStores)?;
        let (log, ours) = self.hold(vdisk, operators_word).await?;
        let filled = wait_filled(&log, &set, positions, progress).await;
        self.let_go(&log, ours).await;
        filled
    }

    /// Waits until stores that were put into a log's places count in it. The log's writer fills them; where none has it open here there
    /// is nothing to wait for.
    pub async fn wait_filled(&self, vdisk: &VdiskId, positions: &[usize]) -> Result<(), FillError> {
        let set = self.store_set(vdisk).ok_or(OpenLogError::NumberOfStores)?;
        match self.open_log(vdisk) {
            Some(log) => wait_filled(&log, &set, positions, |_| {}).await,
            None => Ok(()),
        }
    }

    /// The vdisks that clients' sessions have open.
    pub fn open_vdisks(&self) -> Vec<VdiskId> {
        let open = guard(&self.open);
        open.iter().filter(|(_, log)| log.strong_count() > 0).map(|(vdisk, _)| vdisk.clone()).collect()
    }

    /// Whoever opens the log of a vdisk holds this meanwhile.
    fn turn(&self, vdisk: &VdiskId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = guard(&self.turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(vdisk.clone()).or_default())
    }

    /// The stores that vdisks have, but for those of one vdisk that were replaced.
    pub fn stores(&self) -> Vec<Arc<dyn ShardStore>> {
        self.places.all()
    }

    /// Which stores each vdisk has.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// How the settings name k, m and W.
    pub fn redundancy(&self) -> RedundancySettings {
        self.redundancy
    }

    /// k, m and W as set.
    pub fn quorums(&self) -> Quorums {
        self.quorums
    }

    /// What opens history of format 1, where that can be.
    pub fn format1_keys(&self) -> Option<&Format1Keys> {
        self.format1_keys.as_ref()
    }

    /// The vdisks that the stores know.
    pub async fn inventory(&self) -> Inventory {
        inventory(&self.stores(), self.store_timeout).await
    }

    /// Puts back what is missing or damaged on stores that are members of a vdisk's log, reading at most `rate` bytes per second.
    /// Does not open the log for writing, so that stores that came back empty stay as they are.
    pub async fn look_over(&self, vdisk: &VdiskId, rate: u64) -> Result<ScrubReport, ScrubLogError> {
        let set = self.store_set(vdisk).ok_or(ScrubLogError::NumberOfStores)?;
        Ok(tlog_flusher::scrub(&set, rate, |_| {}).await?)
    }
}

#[async_trait]
impl LogStorage for FlusherStorage {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let wrong_number = || OpenError::Failed("the number of stores is not that of the shards".into());
        let set = self.store_set(vdisk).ok_or_else(wrong_number)?;
        let turn = self.turn(vdisk);
        let _turn = turn.lock().await;
        let scrubbing = guard(&self.scrubbing).remove(vdisk);
        if let Some(log) = scrubbing {
            // Nothing was appended to it.
            let _closed = log.close().await;
        }
        let log = match (self.format, &self.format1_keys) {
            (Format::One, Some(keys)) => {
                let opened = Format1Log::open(set, keys.clone(), self.log.clone()).await;
                AnyLog::One(Box::new(opened.map_err(|error| OpenError::Failed(error.into()))?))
            }
            _ => {
                let failed = |error: OpenLogError| OpenError::Failed(error.into());
                let opened = Log::open(set, self.keys(vdisk).map_err(failed)?, self.log.clone()).await;
                AnyLog::Two(Arc::new(opened.map_err(|error| failed(error.into()))?))
            }
        };
        let log = Arc::new(OpenLog::new(log));
        let mut open = guard(&self.open);
        open.retain(|_, log| log.strong_count() > 0);
        open.insert(vdisk.clone(), Arc::downgrade(&log));
        Ok(log)
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tlog_crypto::MasterKey;
    use tlog_proto::{Block, BlockIndex, Generation, LogPosition, Sequence, SessionId, Timestamp};
    use tlog_server::{BlockDigest, CloseReason, Closed, Durability, LogEnd, OrderedBlock};

    use crate::settings::SettingsArgs;
    use crate::stores::Stores;

    async fn storage(flush_size: &str) -> FlusherStorage {
        let args =
            SettingsArgs::default().with("storage", ["memory:"; 6].join(",")).with("flush-size", flush_size);
        let settings = Settings::from_flags(&args).unwrap();
        let stores = Stores::for_writing(&settings, "").await.unwrap().all;
        let keyring = Arc::new(Keyring::new(MasterKey::generate().unwrap()));
        FlusherStorage::new(&settings, stores, Some(keyring)).unwrap()
    }

    fn block(sequence: u64) -> OrderedBlock {
        let index = BlockIndex::new(sequence).unwrap();
        let data = Bytes::from(vec![sequence as u8; 4096]);
        let block = Block::set(Sequence(sequence), index, Timestamp(sequence), data);
        OrderedBlock { generation: Generation(1), session: SessionId(9), block }
    }

    #[tokio::test]
    async fn what_is_appended_and_flushed_is_durable_found_and_still_there_when_opened_again() {
        let storage = storage("25").await;
        let vdisk = VdiskId::new("vda").unwrap();
        let log = storage.open(&vdisk).await.unwrap();
        assert_eq!(log.end(), LogEnd::default());
        for sequence in 1..=30 {
            log.append(vec![block(sequence)]).await.unwrap();
        }
        log.flush();
        let last = LogPosition { generation: Generation(1), sequence: Sequence(30) };
        let mut durability = log.durability();
        durability.wait_for(|state| state.durable == Some(last)).await.unwrap();
        let found = log.find(block(7).position()).await.unwrap().unwrap();
        assert_eq!(found, BlockDigest::from(&block(7).block));
        assert_eq!(log.find(block(31).position()).await.unwrap(), None);
        assert_eq!(storage.logs().await.len(), 1);

        log.append(vec![block(31)]).await.unwrap();
        log.close().await.unwrap();
        let last = LogPosition { sequence: Sequence(31), ..last };
        let expected = Durability { durable: Some(last), closed: Some(CloseReason::Requested) };
        assert_eq!(*log.durability().borrow(), expected);
        assert_eq!(log.append(vec![block(32)]).await, Err(Closed(CloseReason::Requested)));
        drop(log);
        assert!(storage.logs().await.is_empty());

        let end = storage.open(&vdisk).await.unwrap().end();
        let expected = LogEnd {
            generation: Generation(1),
            first: Sequence(1),
            last: Some(Sequence(31)),
            session: SessionId(9),
        };
        assert_eq!(end, expected);
    }

    #[tokio::test]
    async fn a_scrub_opens_a_log_that_is_not_open_and_a_client_can_open_it_afterwards() {
        let storage = storage("1").await;
        let vdisk = VdiskId::new("vda").unwrap();
        let nothing = storage.scrub(&vdisk, 1 << 30, |_| {}).await;
        assert!(matches!(nothing, Err(ScrubLogError::NoLog(_))));
        let log = storage.open(&vdisk).await.unwrap();
        log.append(vec![block(1)]).await.unwrap();
        let while_open = storage.scrub(&vdisk, 1 << 30, |_| {}).await.unwrap();
        assert!(while_open.report.is_whole());
        log.close().await.unwrap();
        drop(log);
        let scrubbed = storage.scrub(&vdisk, 1 << 30, |_| {}).await.unwrap();
        assert!(
            scrubbed.report.is_whole() && scrubbed.report.aggregations == 1 && scrubbed.filled.is_empty()
        );
        let log = storage.open(&vdisk).await.unwrap();
        log.append(vec![block(2)]).await.unwrap();
        log.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_log_under_another_key_is_refused_and_one_under_an_older_key_is_not() {
        let args = SettingsArgs::default().with("storage", ["memory:"; 6].join(","));
        let settings = Settings::from_flags(&args).unwrap();
        let stores = Stores::for_writing(&settings, "").await.unwrap().all;
        let (one, other) = (MasterKey::from_bytes([1; 32]), MasterKey::from_bytes([2; 32]));
        let storage = |keyring: &str| {
            let keyring = Arc::new(Keyring::parse(keyring).unwrap());
            FlusherStorage::new(&settings, stores.clone(), Some(keyring)).unwrap()
        };
        let [line, other_line] = [1, 2].map(|byte: u8| hex(byte));
        let vdisk = VdiskId::new("vda").unwrap();
        let log = storage(&line).open(&vdisk).await.unwrap();
        log.append(vec![block(1)]).await.unwrap();
        log.close().await.unwrap();
        let error = storage(&other_line).open(&vdisk).await.err().unwrap().to_string();
        assert!(error.contains(&one.id().to_string()) && error.contains("not in the key file"), "{error}");
        assert!(!error.contains(&other.id().to_string()));
        let rotated = format!("{other_line}\n{line}\n");
        let log = storage(&rotated).open(&vdisk).await.unwrap();
        log.append(vec![block(2)]).await.unwrap();
        log.close().await.unwrap();
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    #[tokio::test]
    async fn a_second_writer_fences_the_first() {
        let storage = storage("1").await;
        let vdisk = VdiskId::new("vda").unwrap();
        let first = storage.open(&vdisk).await.unwrap();
        let second = storage.open(&vdisk).await.unwrap();
        let _ = first.append(vec![block(1)]).await;
        let mut durability = first.durability();
        durability.wait_for(|state| state.closed == Some(CloseReason::Fenced)).await.unwrap();
        second.append(vec![block(1)]).await.unwrap();
        second.close().await.unwrap();
    }
}
