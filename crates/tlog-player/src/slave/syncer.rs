//! Starting and asking what keeps a slave as its log is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tlog_codec::VdiskKeys;
use tlog_codec::format1::Keys as Format1Keys;
use tlog_proto::{LogPosition, VdiskId};
use tlog_quorum::StoreSet;
use tlog_store::slave::SlaveOwner;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cluster::{SlaveCluster, SlaveError};
use super::engine::Engine;
use super::needs_resync::NeedsResync;
use super::status::{SlaveStatus, SlaveSyncState};

/// How a syncer works.
#[derive(Clone, Debug)]
pub struct SlaveSyncOptions {
    /// Opens history of format 1, should there be any: to go on where an existing syncer has stopped.
    pub format1: Option<Format1Keys>,
    /// How often it looks whether the log has grown where nobody says so.
    pub poll: Duration,
    /// How often it looks, while it has nothing to do, whether the slave still has what it has answered for.
    pub check: Duration,
    /// How often it looks whether a slave that was stopped, is restored or needs a resync can be gone on with.
    pub recheck: Duration,
    /// After so long without progress a restore counts as interrupted, for those who wait.
    pub interrupted: Duration,
    /// Pause after the first failure. It doubles with each that follows, up to the longest one; each time somewhere between a half and
    /// the whole of it is waited.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// The position is recorded at least every so many aggregations, and whenever the slave is up to date.
    pub record_every: u64,
}

impl Default for SlaveSyncOptions {
    fn default() -> Self {
        Self {
            format1: None,
            poll: Duration::from_secs(2),
            check: Duration::from_secs(10),
            recheck: Duration::from_secs(5),
            interrupted: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            record_every: 8,
        }
    }
}

/// A slave will not hold what was waited for, or not by this syncer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlaveWaitError {
    /// It has to be filled anew.
    #[error("the slave needs a resync: {0}; {remedy}", remedy = .0.remedy())]
    NeedsResync(#[from] NeedsResync),
    /// It is somebody's primary, and did not hold it when it became that.
    #[error(
        "vdisk {vdisk}: the slave is stopped, as somebody's primary, and held {} then; if no disk uses it: tlog slave start {vdisk} --unchanged",
        held.map_or_else(|| "nothing of this log".to_owned(), |held| format!("everything up to {held}"))
    )]
    Stopped {
        /// The vdisk.
        vdisk: VdiskId,
        /// Up to where it held this log then.
        held: Option<LogPosition>,
    },
    /// A restore fills it, and has not come on for a while.
    #[error(
        "half of a restore is in the slave, and it does not go on: run the command again that was interrupted (tlog slave resync, tlog replay)"
    )]
    Restoring,
    /// Another syncer has taken the slave over.
    #[error("another syncer has taken the slave over")]
    Fenced,
    /// The syncer has ended.
    #[error("the slave's syncer has ended")]
    Ended,
}

/// Applies every write of a log to a slave, in the log's order and only once it certainly belongs to the log, until it is stopped or
/// another syncer takes the slave over. Needs a Tokio runtime.
#[derive(Debug)]
pub struct SlaveSyncer {
    status: watch::Receiver<SlaveStatus>,
    requests: mpsc::Sender<Request>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Somebody waits for a position.
#[derive(Debug)]
pub(crate) struct Request {
    /// None: for nothing, which the slave holds always.
    pub(crate) position: Option<LogPosition>,
    pub(crate) hand_over: bool,
    pub(crate) answer: oneshot::Sender<Result<(), SlaveWaitError>>,
}

impl SlaveSyncer {
    /// Starts one. It takes the slave over from whatever syncer has it. `more` says when the log may have grown, whatever it carries;
    /// without a writer in this process, pass one of which the sender is gone.
    pub fn start<T: Send + Sync + 'static>(
        log: StoreSet,
        keys: VdiskKeys,
        slave: SlaveCluster,
        more: watch::Receiver<T>,
        options: SlaveSyncOptions,
    ) -> Result<Self, SlaveError> {
        let status =
            SlaveStatus { state: SlaveSyncState::Starting, position: None, blocks: 0, bytes: 0, lag: None };
        let (tell, status) = watch::channel(status);
        let (requests, received) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let owner = SlaveOwner::random().map_err(|error| SlaveError::Random(error.to_string()))?;
        let engine = Engine::new(log, keys, slave, options, more, received, tell, owner);
        let task = tokio::spawn(engine.run(stop.clone()));
        Ok(Self { status, requests, stop, task: Mutex::new(Some(task)) })
    }

    /// How it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<SlaveStatus> {
        self.status.clone()
    }

    /// Answers when the slave holds every write up to a position, on all its stores, and has recorded that it does. Waits while stores
    /// are away; an error says that waiting is of no use.
    pub async fn wait_until(&self, position: LogPosition) -> Result<(), SlaveWaitError> {
        self.request(Some(position), false).await
    }

    /// The same, and then the slave is stopped, for good: it is somebody's primary from then on. Nothing more is applied, by this syncer
    /// or any other, until [`SlaveCluster::start`]. Without a position: as it is.
    pub async fn hand_over(&self, position: Option<LogPosition>) -> Result<(), SlaveWaitError> {
        self.request(position, true).await
    }

    async fn request(&self, position: Option<LogPosition>, hand_over: bool) -> Result<(), SlaveWaitError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { position, hand_over, answer };
        self.requests.send(request).await.map_err(|_| self.why_over())?;
        answered.await.unwrap_or_else(|_| Err(self.why_over()))
    }

    /// Has it end, and waits until it has. What was applied is recorded first, if the slave is there. Does nothing the second time. Also
    /// where it is dropped it ends, without waiting.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    fn why_over(&self) -> SlaveWaitError {
        match self.status.borrow().state {
            SlaveSyncState::Fenced => SlaveWaitError::Fenced,
            _ => SlaveWaitError::Ended,
        }
    }
}

impl Drop for SlaveSyncer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
