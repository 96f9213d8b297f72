//! The server's port to storage, on the log writer of `tlog-flusher`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tlog_codec::{Redundancy, VdiskKeys};
use tlog_crypto::Keyring;
use tlog_flusher::{LaneState, Log, LogSettings, LogStatus, ScrubProgress, ScrubReport};
use tlog_proto::{LogPosition, VdiskId};
use tlog_quorum::{Quorums, StoreSet, TooFewStores};
use tlog_server::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, VdiskLog,
};
use tlog_store::ShardStore;
use tokio::sync::{Notify, watch};

use crate::settings::{RedundancySettings, Settings};

/// How long a scrub waits for the writer to notice that a store is back: more than the longest pause between its tries.
const BACK_AGAIN: Duration = Duration::from_secs(15);

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
        ..defaults
    }
}

/// Opens the logs of vdisks on one set of stores, under one keyring.
pub struct FlusherStorage {
    stores: Vec<Arc<dyn ShardStore>>,
    keyring: Arc<Keyring>,
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
    /// Too few of the stores that the log knows are there. No command goes past that.
    #[error(
        "{0}. With fewer, the log cannot be opened for writing, and not be scrubbed. If those are lost for good: what \
         'tlog verify {vdisk}' calls readable can be restored ('tlog restore {vdisk} -o FILE') and recorded into a new vdisk",
        vdisk = .0.vdisk
    )]
    TooFewStores(TooFewStores),
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
        keyring: Arc<Keyring>,
    ) -> Result<Self, InvalidRedundancy> {
        Ok(Self {
            stores,
            keyring,
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
        StoreSet::new(vdisk.clone(), self.stores.clone(), self.quorums, self.store_timeout)
    }

    /// The writer of a vdisk's log, while a client's session has it open.
    fn open_log(&self, vdisk: &VdiskId) -> Option<Arc<Log>> {
        guard(&self.open).get(vdisk).and_then(Weak::upgrade).map(|log| Arc::clone(&log.log))
    }

    /// What every open writer shows, by name of its vdisk.
    pub async fn logs(&self) -> Vec<LogStatus> {
        let logs: Vec<Arc<Log>> = {
            let open = guard(&self.open);
            open.values().filter_map(Weak::upgrade).map(|log| Arc::clone(&log.log)).collect()
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
            return Err(ScrubLogError::NoLog(vdisk.clone()));
        }
        let (log, ours) = match self.open_log(vdisk) {
            Some(log) => (log, false),
            None => {
                let turn = self.turn(vdisk);
                let _turn = turn.lock().await;
                match self.open_log(vdisk) {
                    Some(log) => (log, false),
                    None => {
                        let keys = VdiskKeys::new(vdisk.clone(), Arc::clone(&self.keyring));
                        let log = Log::open(set.clone(), keys, self.log.clone()).await;
                        let log = Arc::new(log.map_err(OpenLogError::from)?);
                        guard(&self.scrubbing).insert(vdisk.clone(), Arc::clone(&log));
                        (log, true)
                    }
                }
            }
        };
        let filled = wait_while_filling(&log, &set).await;
        let report = tlog_flusher::scrub(&set, rate, progress).await;
        if ours {
            guard(&self.scrubbing).retain(|_, other| !Arc::ptr_eq(other, &log));
            // A client that has taken it over closed it already.
            let _closed = log.close().await;
        }
        Ok(Scrubbed { filled, report: report? })
    }

    /// Whoever opens the log of a vdisk holds this meanwhile.
    fn turn(&self, vdisk: &VdiskId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = guard(&self.turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(vdisk.clone()).or_default())
    }

    /// The stores, in order.
    pub fn stores(&self) -> &[Arc<dyn ShardStore>] {
        &self.stores
    }
}

#[async_trait]
impl LogStorage for FlusherStorage {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let wrong_number = || OpenError::Failed("the number of stores is not that of the shards".into());
        let set = self.store_set(vdisk).ok_or_else(wrong_number)?;
        let keys = VdiskKeys::new(vdisk.clone(), Arc::clone(&self.keyring));
        let turn = self.turn(vdisk);
        let _turn = turn.lock().await;
        let scrubbing = guard(&self.scrubbing).remove(vdisk);
        if let Some(log) = scrubbing {
            // Nothing was appended to it.
            let _closed = log.close().await;
        }
        let opened = Log::open(set, keys, self.log.clone()).await;
        let log = Arc::new(OpenLog::new(
            opened.map_err(|error| OpenError::Failed(OpenLogError::from(error).into()))?,
        ));
        let mut open = guard(&self.open);
        open.retain(|_, log| log.strong_count() > 0);
        open.insert(vdisk.clone(), Arc::downgrade(&log));
        Ok(log)
    }
}

/// One open log. Two tasks live as long as it: one passes the durable position on in the server's words, one asks for
/// flushes, so that the server need not wait for the writer's queue.
struct OpenLog {
    log: Arc<Log>,
    durability: watch::Receiver<Durability>,
    flush: Arc<Notify>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl OpenLog {
    fn new(log: Log) -> Self {
        let log = Arc::new(log);
        let mut theirs = log.durability();
        let (tell, durability) = watch::channel(in_server_words(&theirs.borrow_and_update()));
        let forward = tokio::spawn(async move {
            loop {
                let changed = theirs.changed().await;
                let mut now = in_server_words(&theirs.borrow_and_update());
                if changed.is_err() && now.closed.is_none() {
                    now.closed = Some(CloseReason::Failed("the writer stopped".to_owned()));
                }
                let closed = now.closed.is_some();
                if tell.send(now).is_err() || closed {
                    return;
                }
            }
        });
        let flush = Arc::new(Notify::new());
        let (asked, writer) = (Arc::clone(&flush), Arc::clone(&log));
        let flusher = tokio::spawn(async move {
            loop {
                asked.notified().await;
                if writer.flush().await.is_err() {
                    return;
                }
            }
        });
        Self { log, durability, flush, tasks: [forward, flusher] }
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[async_trait]
impl VdiskLog for OpenLog {
    fn end(&self) -> LogEnd {
        let tlog_flusher::LogEnd { generation, first, last, session } = self.log.end();
        LogEnd { generation, first, last, session }
    }

    async fn append(&self, block: OrderedBlock) -> Result<(), Closed> {
        let OrderedBlock { generation, session, block } = block;
        let block = tlog_flusher::PositionedBlock { generation, session, block };
        self.log.append(block).await.map_err(|error| Closed(reason(error.0)))
    }

    fn flush(&self) {
        // What was appended so far is in the writer's queue already, so a flush that is asked for now comes behind it.
        self.flush.notify_one();
    }

    fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.clone()
    }

    async fn find(&self, position: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        let entry = self.log.find(position).await.map_err(|error| {
            let why = format!("a block that came again could not be compared with the log: {error}");
            Closed(CloseReason::Failed(why))
        })?;
        Ok(entry.map(|entry| BlockDigest {
            index: entry.index,
            operation: entry.operation,
            timestamp: entry.timestamp,
            length: entry.length,
            hash_prefix: entry.hash_prefix,
        }))
    }

    async fn close(&self) -> Result<(), Closed> {
        let closed = self.log.close().await.map_err(|error| Closed(reason(error.0)));
        // The position that the server sees must not lag behind this answer.
        let mut durability = self.durability.clone();
        let _told = durability.wait_for(|state| state.closed.is_some()).await;
        closed
    }
}

/// Waits until no store is being filled, and answers which were. A store that is away and does not answer is not waited for.
async fn wait_while_filling(log: &Log, set: &StoreSet) -> Vec<String> {
    let began = Instant::now();
    let mut filled = Vec::new();
    while let Some(status) = log.status().await {
        let mut busy = false;
        for (store, port) in status.stores.into_iter().zip(set.stores()) {
            match store.state {
                LaneState::Filling => {
                    busy = true;
                    if !filled.contains(&store.address) {
                        filled.push(store.address);
                    }
                }
                LaneState::Active => busy |= store.missing > 0,
                // It may be back, and the writer has not tried it again yet.
                LaneState::Away if began.elapsed() < BACK_AGAIN => {
                    busy |= set.within_limit(port, port.status(set.vdisk())).await.is_ok();
                }
                LaneState::Away => {}
            }
        }
        if !busy {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    filled
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_server_words(state: &tlog_flusher::Durability) -> Durability {
    Durability { durable: state.durable, closed: state.closed.clone().map(reason) }
}

fn reason(reason: tlog_flusher::CloseReason) -> CloseReason {
    match reason {
        tlog_flusher::CloseReason::Requested => CloseReason::Requested,
        tlog_flusher::CloseReason::Fenced => CloseReason::Fenced,
        tlog_flusher::CloseReason::Failed(why) => CloseReason::Failed(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tlog_crypto::MasterKey;
    use tlog_proto::{Block, BlockIndex, Generation, Sequence, SessionId, Timestamp};

    use crate::settings::SettingsArgs;
    use crate::stores::Stores;

    async fn storage(flush_size: &str) -> FlusherStorage {
        let args =
            SettingsArgs::default().with("storage", ["memory:"; 6].join(",")).with("flush-size", flush_size);
        let settings = Settings::from_flags(&args).unwrap();
        let stores = Stores::for_writing(&settings, "").await.unwrap().all;
        let keyring = Arc::new(Keyring::new(MasterKey::generate().unwrap()));
        FlusherStorage::new(&settings, stores, keyring).unwrap()
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
            log.append(block(sequence)).await.unwrap();
        }
        log.flush();
        let last = LogPosition { generation: Generation(1), sequence: Sequence(30) };
        let mut durability = log.durability();
        durability.wait_for(|state| state.durable == Some(last)).await.unwrap();
        let found = log.find(block(7).position()).await.unwrap().unwrap();
        assert_eq!(found, BlockDigest::from(&block(7).block));
        assert_eq!(log.find(block(31).position()).await.unwrap(), None);
        assert_eq!(storage.logs().await.len(), 1);

        log.append(block(31)).await.unwrap();
        log.close().await.unwrap();
        let last = LogPosition { sequence: Sequence(31), ..last };
        let expected = Durability { durable: Some(last), closed: Some(CloseReason::Requested) };
        assert_eq!(*log.durability().borrow(), expected);
        assert_eq!(log.append(block(32)).await, Err(Closed(CloseReason::Requested)));
        drop(log);
        assert_eq!(storage.logs().await, []);

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
        log.append(block(1)).await.unwrap();
        let while_open = storage.scrub(&vdisk, 1 << 30, |_| {}).await.unwrap();
        assert!(while_open.report.is_whole());
        log.close().await.unwrap();
        drop(log);
        let scrubbed = storage.scrub(&vdisk, 1 << 30, |_| {}).await.unwrap();
        assert!(
            scrubbed.report.is_whole() && scrubbed.report.aggregations == 1 && scrubbed.filled.is_empty()
        );
        let log = storage.open(&vdisk).await.unwrap();
        log.append(block(2)).await.unwrap();
        log.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_second_writer_fences_the_first() {
        let storage = storage("1").await;
        let vdisk = VdiskId::new("vda").unwrap();
        let first = storage.open(&vdisk).await.unwrap();
        let second = storage.open(&vdisk).await.unwrap();
        let _ = first.append(block(1)).await;
        let mut durability = first.durability();
        durability.wait_for(|state| state.closed == Some(CloseReason::Fenced)).await.unwrap();
        second.append(block(1)).await.unwrap();
        second.close().await.unwrap();
    }
}
