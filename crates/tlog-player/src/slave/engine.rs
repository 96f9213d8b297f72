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

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_codec::VdiskKeys;
use tlog_proto::LogPosition;
use tlog_quorum::StoreSet;
use tlog_store::slave::{SlaveMark, SlaveOwner};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cluster::{COMMAND, SlaveCluster, SlaveError};
use super::cursor::Cursor;
use super::lag::{Known, known_of, lag};
use super::needs_resync::NeedsResync;
use super::runs::{Run, Runs};
use super::session::{Look, Parted, Session};
use super::status::{SlaveLag, SlaveStatus, SlaveSyncState, log_change};
use super::syncer::{Request, SlaveSyncOptions, SlaveWaitError};
use crate::metric;
use crate::reader::LogReader;

/// The task's state. `session` is there while the slave is held.
pub(crate) struct Engine<T> {
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
    /// Whether it was said that the slave is as its log, and nothing else since.
    told: bool,
    /// Since when the state is what it is, how far a restore has come included.
    state_since: Instant,
    reader: Option<LogReader>,
    session: Option<Session>,
    known: Option<Known>,
    /// When that was found out.
    measured: Instant,
}

impl<T: Send + Sync + 'static> Engine<T> {
    #[allow(clippy::too_many_arguments)] // each goes where its name says
    pub(crate) fn new(
        log: StoreSet,
        keys: VdiskKeys,
        slave: SlaveCluster,
        options: SlaveSyncOptions,
        more: watch::Receiver<T>,
        requests: mpsc::Receiver<Request>,
        status: watch::Sender<SlaveStatus>,
        owner: SlaveOwner,
    ) -> Self {
        // So that several that lost the same server do not come back at once.
        let seed = owner.0.iter().fold(0, |seed, byte| seed << 4 ^ u64::from(*byte));
        Self {
            log,
            keys,
            slave,
            options,
            more,
            requests,
            pending: Vec::new(),
            status,
            owner,
            jitter: SmallRng::seed_from_u64(seed),
            had: false,
            told: false,
            state_since: Instant::now(),
            reader: None,
            session: None,
            known: None,
            measured: Instant::now(),
        }
    }

    /// Until it is stopped, or fenced.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
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

    async fn try_sync(&mut self) -> Result<Infallible, Parted> {
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
            if self.measured.elapsed() >= self.options.check {
                // The log grows while the slave catches up, which may take hours.
                self.refresh(cursor).await?;
                self.measure(cursor.follower.reader()).await?;
            }
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
        // Who is gone does not switch any more.
        self.pending.retain(|request| !request.answer.is_closed());
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
        let pause = if self.answer_in_vain().await { pause } else { pause.min(self.options.first_pause) };
        tokio::select! {
            biased;
            Some(request) = self.requests.recv() => self.pending.push(request),
            () = sleep(pause) => {}
        }
    }

    /// Answers those who wait for what will not come, as things are. False where that cannot be told, and is to be looked at soon.
    async fn answer_in_vain(&mut self) -> bool {
        if self.pending.is_empty() {
            return true;
        }
        let error = match &self.status.borrow().state {
            SlaveSyncState::NeedsResync(reason) => Err(SlaveWaitError::NeedsResync(reason.clone())),
            SlaveSyncState::Stopped => Ok(()),
            SlaveSyncState::Restoring(_) if self.state_since.elapsed() >= self.options.interrupted => {
                Err(SlaveWaitError::Restoring)
            }
            _ => return true,
        };
        let error = match error {
            Err(error) => error,
            // Handed over already, and the answer was lost: asking again is no error.
            Ok(()) => match self.held_when_stopped().await {
                Ok(Some(held)) => {
                    self.answer_held(held);
                    SlaveWaitError::Stopped { vdisk: self.slave.vdisk().clone(), held }
                }
                Err(Parted::NeedsResync(reason)) => SlaveWaitError::NeedsResync(reason),
                // Started again, or not every store has promised: the next look mends that.
                Ok(None) => return false,
                Err(parted) => {
                    if let Some(state) = self.judge(parted).await {
                        self.set_state(state);
                    }
                    return false;
                }
            },
        };
        for request in self.pending.drain(..) {
            // Who does not wait any more does not need to know.
            let _ = request.answer.send(Err(error.clone()));
        }
        true
    }

    /// Up to where the slave held this log when it was stopped. None where it is not stopped any more, or could be forgotten to be.
    async fn held_when_stopped(&mut self) -> Result<Option<Option<LogPosition>>, Parted> {
        let reader = self.open_log().await?;
        let state = self.slave.state().await?;
        if state.metadata_is_set_back() {
            return Err(NeedsResync::MetadataLost { address: state.metadata }.into());
        }
        if *state.mark() != SlaveMark::Stopped || !state.is_promised_by_all() {
            return Ok(None);
        }
        Look { reader, keys: self.keys.clone() }.held_when_stopped(&state).await.map(Some)
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
            Parted::Restoring(restoring) => self.let_go(SlaveSyncState::Restoring(*restoring)),
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
        let known = known_of(reader, &position).await.map_err(|error| Parted::Log(error.into()))?;
        (self.known, self.measured) = (Some(known), Instant::now());
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

    fn set_state(&mut self, state: SlaveSyncState) {
        match state {
            SlaveSyncState::UpToDate if !std::mem::replace(&mut self.told, true) => {
                tracing::info!(vdisk = %self.slave.vdisk(), "the slave is as its log, and is kept so");
            }
            SlaveSyncState::UpToDate | SlaveSyncState::Starting | SlaveSyncState::Syncing => {}
            _ => self.told = false,
        }
        if let SlaveSyncState::Stopped | SlaveSyncState::Fenced | SlaveSyncState::Ended = state {
            metric::slave_lag(self.slave.vdisk(), 0);
        }
        if self.status.borrow().state != state {
            self.state_since = Instant::now();
        }
        let kind = |state: &SlaveSyncState| state.kind();
        self.status.send_if_modified(|status| {
            if status.state == state {
                return false;
            }
            if kind(&status.state) != kind(&state) {
                log_change(&self.slave, &state);
            }
            if let SlaveSyncState::Stopped | SlaveSyncState::Fenced | SlaveSyncState::Ended = state {
                // What is not this syncer's slave is not behind, however long ago it was.
                status.lag = None;
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
