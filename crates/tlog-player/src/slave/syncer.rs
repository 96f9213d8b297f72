//! The task that keeps a slave as its log is.
//!
//! ```text
//!              .---------------------- a store or the log is away: again, after a pause -----------------------.
//!              v                                                                                               |
//! Starting -> take the slave, find where it is -> Syncing <-> UpToDate ------------- stop asked -> Ended       |
//!              |                                     '--------------------------------------------------------'
//!              |-> Stopped | Restoring | NeedsResync: look again now and then, until that is over
//!              '-> Fenced: another syncer has it
//! ```

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_codec::VdiskKeys;
use tlog_codec::format1::Keys as Format1Keys;
use tlog_proto::LogPosition;
use tlog_quorum::StoreSet;
use tlog_store::slave::SlaveOwner;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cluster::{COMMAND, SlaveCluster, SlaveError};
use super::cursor::Cursor;
use super::follow::FollowError;
use super::needs_resync::NeedsResync;
use super::runs::{Run, Runs};
use super::session::{Parted, Session};
use super::status::{SlaveLag, SlaveStatus, SlaveSyncState};
use crate::history::AggregationInfo;
use crate::metric;
use crate::reader::LogReader;

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
    #[error("the slave needs a resync: {0}; run tlog slave resync")]
    NeedsResync(#[from] NeedsResync),
    /// It is somebody's primary, and did not hold it when it became that.
    #[error("the slave is stopped: it is somebody's primary")]
    Stopped,
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
struct Request {
    /// None: for nothing, which the slave holds always.
    position: Option<LogPosition>,
    hand_over: bool,
    answer: oneshot::Sender<Result<(), SlaveWaitError>>,
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
        let engine = Engine {
            log,
            keys,
            slave,
            options,
            more,
            requests: received,
            pending: Vec::new(),
            status: tell,
            owner,
            // So that several that lost the same server do not come back at once.
            jitter: SmallRng::seed_from_u64(
                owner.0.iter().fold(0, |seed, byte| seed << 4 ^ u64::from(*byte)),
            ),
            had: false,
            reader: None,
            session: None,
            known: None,
        };
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
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
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

/// What is known of the log, to tell how far the slave is behind.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Its last aggregation; none where it is empty.
    last: Option<AggregationInfo>,
    /// The first aggregation of which the slave lacks something.
    oldest: Option<AggregationInfo>,
}

/// The task's state. `session` is there while the slave is held.
struct Engine<T> {
    log: StoreSet,
    keys: VdiskKeys,
    slave: SlaveCluster,
    options: SlaveSyncOptions,
    more: watch::Receiver<T>,
    requests: mpsc::Receiver<Request>,
    pending: Vec<Request>,
    status: watch::Sender<SlaveStatus>,
    owner: SlaveOwner,
    jitter: SmallRng,
    /// Whether this owner has had the slave: then it does not take it from whoever has it now.
    had: bool,
    reader: Option<LogReader>,
    session: Option<Session>,
    known: Option<Known>,
}

impl<T: Send + Sync + 'static> Engine<T> {
    async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let parted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                parted = self.sync() => parted,
            };
            // After a time that went well it is as if nothing had failed before.
            if begun.elapsed() > self.options.longest_pause {
                failures = 0;
            }
            failures += 1;
            let Some(state) = self.judge(parted).await else {
                if failures > 1 {
                    self.rest(self.options.first_pause).await;
                }
                continue;
            };
            let pause = match &state {
                SlaveSyncState::Fenced => {
                    self.end(SlaveSyncState::Fenced, &SlaveWaitError::Fenced);
                    return;
                }
                SlaveSyncState::Stopped | SlaveSyncState::Restoring(_) | SlaveSyncState::NeedsResync(_) => {
                    failures = 0;
                    self.options.recheck
                }
                _ => self.pause(failures),
            };
            self.set_state(state);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.rest(pause) => {}
            }
        }
        if let Some(session) = &mut self.session {
            // Not recording it costs the next one nothing but a look at a few aggregations.
            let recorded = tokio::time::timeout(Duration::from_secs(2), session.record()).await;
            tracing::debug!(vdisk = %self.slave.vdisk(), recorded = matches!(recorded, Ok(Ok(()))), "slave syncer stopped");
        }
        self.end(SlaveSyncState::Ended, &SlaveWaitError::Ended);
    }

    /// Takes the slave and applies what comes, until that is not possible any more.
    async fn sync(&mut self) -> Parted {
        match self.try_sync().await {
            Ok(never) => match never {},
            Err(parted) => parted,
        }
    }

    async fn try_sync(&mut self) -> Result<std::convert::Infallible, Parted> {
        self.session = None;
        let reader = self.open_log().await?;
        let slave = self.slave.clone();
        let begun = Session::begin(slave, self.owner, &mut self.had, reader, self.keys.clone()).await;
        let (session, mut cursor) = begun?;
        self.note_position(&session);
        self.session = Some(session);
        self.measure(cursor.follower.reader()).await?;
        let mut checked = Instant::now();
        loop {
            self.set_state(SlaveSyncState::Syncing);
            self.apply_all(&mut cursor).await?;
            let before = cursor.follower.extent().last;
            self.refresh(&mut cursor).await?;
            if cursor.follower.extent().last != before {
                self.measure(cursor.follower.reader()).await?;
                continue;
            }
            self.record().await?;
            self.note_up_to_date();
            self.answer().await?;
            loop {
                let check_at = checked + self.options.check;
                let woken = self.idle(check_at).await;
                self.answer().await?;
                if Instant::now() >= check_at {
                    self.check().await?;
                    checked = Instant::now();
                }
                if woken {
                    self.refresh(&mut cursor).await?;
                    if cursor.follower.extent().last != before {
                        self.measure(cursor.follower.reader()).await?;
                        break;
                    }
                }
            }
        }
    }

    async fn open_log(&mut self) -> Result<LogReader, Parted> {
        let reader = match self.reader.take() {
            Some(reader) => reader.refreshed().await,
            None => LogReader::open_with(self.log.clone(), self.options.format1.clone()).await,
        };
        let reader = reader.map_err(|error| Parted::Log(error.into()))?;
        self.reader = Some(reader.clone());
        // Also while the slave is away it is told how far it is behind.
        if self.status.borrow().position.is_some() {
            self.measure(&reader).await?;
        }
        Ok(reader)
    }

    async fn refresh(&mut self, cursor: &mut Cursor) -> Result<(), Parted> {
        cursor.follower.refresh().await?;
        self.reader = Some(cursor.follower.reader().clone());
        Ok(())
    }

    /// Applies what the log has, as it was looked at last.
    async fn apply_all(&mut self, cursor: &mut Cursor) -> Result<(), Parted> {
        let mut runs = Runs::new(self.slave.data().len());
        loop {
            if !cursor.is_ready()
                && let Some(run) = runs.take()
            {
                // It does not wait for what may take long to come.
                self.apply(&run, cursor).await?;
                continue;
            }
            if !cursor.advance().await? {
                break;
            }
            let Some((block, point, last)) = cursor.peek() else { continue };
            let complete = runs.push(block, point, last);
            cursor.pass();
            if let Some(run) = complete {
                self.apply(&run, cursor).await?;
            }
        }
        match runs.take() {
            Some(run) => self.apply(&run, cursor).await,
            None => Ok(()),
        }
    }

    async fn apply(&mut self, run: &Run, cursor: &Cursor) -> Result<(), Parted> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.apply(run).await?;
        let unrecorded = session.unrecorded();
        metric::slave_applied(self.slave.vdisk(), run.writes, run.bytes);
        if let (Some(known), Some((info, _))) = (&mut self.known, cursor.at()) {
            known.oldest = Some(*info);
        }
        self.status.send_modify(|status| {
            status.position = Some(run.to);
            status.blocks += run.writes;
            status.bytes += run.bytes;
            // Where the log is not known to reach it yet, what was known before stands.
            status.lag = self.known.as_ref().and_then(|known| lag(known, run.to)).or(status.lag);
        });
        if unrecorded >= self.options.record_every {
            self.record().await?;
        }
        while let Ok(request) = self.requests.try_recv() {
            self.pending.push(request);
        }
        self.answer().await
    }

    async fn record(&mut self) -> Result<(), Parted> {
        let Some(session) = &mut self.session else { return Ok(()) };
        Ok(session.record().await?)
    }

    async fn check(&mut self) -> Result<(), Parted> {
        let Some(session) = &self.session else { return Ok(()) };
        Ok(session.check().await?)
    }

    /// Answers those who wait for what the slave holds.
    async fn answer(&mut self) -> Result<(), Parted> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let at = session.at().last.map(|last| last.position);
        if !self.pending.iter().any(|request| request.position <= at) {
            return Ok(());
        }
        // What a store has answered it may have forgotten since.
        session.record().await?;
        session.check().await?;
        let hands_over = |request: &&Request| request.hand_over && request.position <= at;
        if self.pending.iter().any(|request| hands_over(&request)) {
            session.hand_over().await?;
            // The mark is there: nothing is applied any more.
            self.answer_held(at);
            return Err(Parted::Stopped);
        }
        self.answer_held(at);
        Ok(())
    }

    fn answer_held(&mut self, at: Option<LogPosition>) {
        for request in self.pending.extract_if(.., |request| request.position <= at) {
            // Who does not wait any more does not need to know.
            let _ = request.answer.send(Ok(()));
        }
    }

    /// Waits until there may be something to do, but not beyond a point in time. Whether the log may have grown.
    async fn idle(&mut self, until: Instant) -> bool {
        let poll = Instant::now() + self.options.poll;
        let growth = async {
            if self.more.changed().await.is_err() {
                // Nobody is left who would say so.
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            Some(request) = self.requests.recv() => {
                self.pending.push(request);
                false
            }
            () = growth => true,
            () = sleep_until(poll) => true,
            () = sleep_until(until) => false,
        }
    }

    /// Waits before the next try. Somebody who comes to wait for the slave is worth one at once: things may have changed.
    async fn rest(&mut self, pause: Duration) {
        self.answer_in_vain().await;
        tokio::select! {
            Some(request) = self.requests.recv() => self.pending.push(request),
            () = sleep(pause) => {}
        }
    }

    /// Answers those who wait for what will not come, as things are.
    async fn answer_in_vain(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let error = match &self.status.borrow().state {
            SlaveSyncState::NeedsResync(reason) => SlaveWaitError::NeedsResync(reason.clone()),
            SlaveSyncState::Stopped => SlaveWaitError::Stopped,
            _ => return,
        };
        if error == SlaveWaitError::Stopped {
            // Handed over already, and the answer was lost: asking again is no error.
            let state = self.slave.state().await.ok();
            let held = state.and_then(|state| state.position()?.last).map(|last| last.position);
            self.answer_held(held);
        }
        for request in self.pending.drain(..) {
            let _ = request.answer.send(Err(error.clone()));
        }
    }

    /// What to do about having lost the slave; none: take it again at once.
    async fn judge(&mut self, parted: Parted) -> Option<SlaveSyncState> {
        self.session = None;
        let vdisk = self.slave.vdisk();
        let since = match &self.status.borrow().state {
            SlaveSyncState::WaitingForSlave { since, .. } | SlaveSyncState::WaitingForLog { since, .. } => {
                *since
            }
            _ => SystemTime::now(),
        };
        Some(match parted {
            Parted::Slave(error) if error.is_fenced() => match self.who_fenced().await {
                Ok(true) => {
                    tracing::warn!(%vdisk, %error, "another syncer has taken the slave over; this one ends");
                    SlaveSyncState::Fenced
                }
                Ok(false) => {
                    // A command, which is done: look what it left.
                    self.had = false;
                    return None;
                }
                Err(error) => SlaveSyncState::WaitingForSlave { since, because: error.to_string() },
            },
            Parted::Slave(error) => {
                tracing::debug!(%vdisk, %error, "the slave is away");
                SlaveSyncState::WaitingForSlave { since, because: error.to_string() }
            }
            Parted::Log(error) => {
                tracing::debug!(%vdisk, %error, "the log cannot be read for the slave");
                SlaveSyncState::WaitingForLog { since, because: error.to_string() }
            }
            // Nobody holds the slave then: whoever comes first may.
            Parted::Stopped => self.let_go(SlaveSyncState::Stopped),
            Parted::Restoring(restoring) => self.let_go(SlaveSyncState::Restoring(restoring)),
            Parted::NeedsResync(reason) => self.let_go(SlaveSyncState::NeedsResync(reason)),
        })
    }

    fn let_go(&mut self, state: SlaveSyncState) -> SlaveSyncState {
        self.had = false;
        state
    }

    /// Whether it was another syncer; else a command.
    async fn who_fenced(&self) -> Result<bool, SlaveError> {
        let state = self.slave.state().await?;
        Ok(state.record.owner.is_some_and(|owner| owner != COMMAND && owner != self.owner))
    }

    fn pause(&mut self, failures: u32) -> Duration {
        let doubled = 2_u32
            .checked_pow(failures.saturating_sub(1))
            .and_then(|n| self.options.first_pause.checked_mul(n));
        let pause = doubled.unwrap_or(self.options.longest_pause).min(self.options.longest_pause);
        pause.mul_f64(self.jitter.random_range(0.5..=1.0))
    }

    fn note_position(&mut self, session: &Session) {
        let at = *session.at();
        self.status.send_modify(|status| status.position = Some(at));
    }

    /// Finds out how far the log goes beyond the slave.
    async fn measure(&mut self, reader: &LogReader) -> Result<(), Parted> {
        let Some(position) = self.status.borrow().position else { return Ok(()) };
        let (first, last) = (reader.extent().first, reader.extent().last);
        let info = async |number| {
            let infos = reader.history_of(number..=number).collect().await;
            infos.map(|infos| infos.last().copied()).map_err(|error| Parted::Log(FollowError::from(error)))
        };
        let newest = if reader.extent().is_empty() { None } else { info(last).await? };
        // The aggregation that it is in, unless it has all of that.
        let mut oldest = None;
        for number in [position.point.aggregation, position.point.aggregation.next()] {
            if oldest.is_none() && number >= first && number <= last {
                oldest = info(number).await?.filter(|info| !holds_all(position.point, info));
            }
        }
        let known = Known { last: newest, oldest };
        self.known = Some(known);
        self.status.send_modify(|status| status.lag = lag(&known, position));
        metric::slave_lag(self.slave.vdisk(), self.status.borrow().lag.map_or(0, |lag| lag.aggregations));
        Ok(())
    }

    fn note_up_to_date(&mut self) {
        metric::slave_lag(self.slave.vdisk(), 0);
        if let Some(known) = &mut self.known {
            known.oldest = None;
        }
        let lag = SlaveLag { aggregations: 0, blocks: Some(0), since: None };
        self.status.send_modify(|status| status.lag = Some(lag));
        self.set_state(SlaveSyncState::UpToDate);
    }

    fn set_state(&self, state: SlaveSyncState) {
        let kind = |state: &SlaveSyncState| state.kind();
        self.status.send_if_modified(|status| {
            if status.state == state {
                return false;
            }
            if kind(&status.state) != kind(&state) {
                log_change(&self.slave, &state);
            }
            status.state = state;
            true
        });
    }

    fn end(&mut self, state: SlaveSyncState, error: &SlaveWaitError) {
        self.set_state(state);
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            self.pending.push(request);
        }
        for request in self.pending.drain(..) {
            let _ = request.answer.send(Err(error.clone()));
        }
    }
}

fn log_change(slave: &SlaveCluster, state: &SlaveSyncState) {
    let (vdisk, kind) = (slave.vdisk(), state.kind());
    match state {
        SlaveSyncState::WaitingForSlave { because, .. } | SlaveSyncState::WaitingForLog { because, .. } => {
            tracing::warn!(%vdisk, state = kind, because, "the slave is not synced; trying again and again");
        }
        SlaveSyncState::NeedsResync(reason) => {
            tracing::error!(%vdisk, %reason, "the slave needs a resync; run tlog slave resync");
        }
        SlaveSyncState::Stopped | SlaveSyncState::Restoring(_) => {
            tracing::warn!(%vdisk, state = kind, "nothing is applied to the slave");
        }
        _ => tracing::debug!(%vdisk, state = kind, "slave syncer"),
    }
}

fn holds_all(point: tlog_store::slave::SlavePoint, info: &AggregationInfo) -> bool {
    (info.number, info.blocks) <= point.place()
}

/// How far a position is behind; none where the log is not known to reach it.
fn lag(known: &Known, position: tlog_store::slave::SlavePosition) -> Option<SlaveLag> {
    let Some(last) = known.last else { return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() }) };
    if holds_all(position.point, &last) {
        return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() });
    }
    let oldest = known.oldest.filter(|oldest| !holds_all(position.point, oldest))?;
    let end = (last.generation, last.last_sequence.0);
    let blocks = match position.last.map(|last| last.position) {
        Some(at) if at.generation == end.0 => Some(end.1.saturating_sub(at.sequence.0)),
        _ if oldest.generation == end.0 => Some((end.1 + 1).saturating_sub(oldest.first_sequence.0)),
        _ => None,
    };
    let aggregations = (last.number.0 + 1).saturating_sub(oldest.number.0);
    Some(SlaveLag { aggregations, blocks, since: Some(oldest.sealed_at) })
}
