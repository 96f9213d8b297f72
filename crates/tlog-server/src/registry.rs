//! Which vdisks are open, and what all tasks of a server share.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tlog_proto::{Block, HandshakeResponse, LogPosition, Sequence, VdiskId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::{Budget, Permit};
use crate::metric::Metrics;
use crate::outbox::Outbox;
use crate::places::Places;
use crate::port::{LogStorage, SlaveSync};
use crate::seldom::{Seldom, warn_seldom};
use crate::session::{ConnectionId, Greeting};
use crate::settings::ServerSettings;
use crate::status::{ServerStatus, VdiskReport, VdiskStatus};
use crate::vdisk;

/// What a connection brings to the task of its vdisk.
pub(crate) struct Hello {
    pub(crate) greeting: Greeting,
    pub(crate) peer: SocketAddr,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) inbound: mpsc::Receiver<Vec<Incoming>>,
    pub(crate) verdict: oneshot::Sender<Verdict>,
}

/// What becomes of a handshake.
pub(crate) enum Verdict {
    /// The client may send. What it sends is counted in this budget too.
    Accepted {
        last_flushed: Option<Sequence>,
        end: LogPosition,
        budget: Arc<Budget>,
        /// Cancelled when nothing more is to be read from it.
        stop: CancellationToken,
    },
    /// It may not.
    Refused(HandshakeResponse),
    /// Another connection came before it was answered.
    Replaced,
}

/// What a client has sent, checked.
pub(crate) enum Incoming {
    Block(Block, Permit),
    ForceFlush(Sequence),
    WaitSlaveSync,
}

/// What all tasks of a server share.
pub(crate) struct Shared {
    pub(crate) settings: ServerSettings,
    pub(crate) storage: Arc<dyn LogStorage>,
    pub(crate) slave: Option<Arc<dyn SlaveSync>>,
    /// Bytes of blocks that are not durable.
    pub(crate) unflushed: Budget,
    /// Bytes of blocks that wait in windows.
    pub(crate) windows: Budget,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskTracker,
    /// Stop reading, make durable what is there.
    pub(crate) stop: CancellationToken,
    /// Give up at once.
    pub(crate) kill: CancellationToken,
    /// Bytes of large messages that are just arriving.
    pub(crate) messages: Budget,
    /// All of them.
    pub(crate) connections: AtomicUsize,
    pub(crate) places: Arc<Places>,
    pub(crate) seldom: Seldom,
    connection_ids: AtomicU64,
    vdisks: Mutex<HashMap<VdiskId, Entry>>,
    last_errors: Mutex<BTreeMap<VdiskId, String>>,
    reports: Mutex<BTreeMap<VdiskId, VdiskReport>>,
}

/// A vdisk whose task runs.
struct Entry {
    hellos: mpsc::Sender<Hello>,
    status: Arc<Mutex<VdiskStatus>>,
    stop: CancellationToken,
    /// How it was left; the sender goes when the task is gone.
    report: watch::Receiver<Option<VdiskReport>>,
}

impl Shared {
    /// Handshakes that may wait for the task of one vdisk.
    const MAX_HELLOS: usize = 64;
    /// Closed vdisks whose last error is remembered.
    const MAX_LAST_ERRORS: usize = 1024;

    pub(crate) fn new(
        settings: ServerSettings,
        storage: Arc<dyn LogStorage>,
        slave: Option<Arc<dyn SlaveSync>>,
    ) -> Self {
        Self {
            unflushed: Budget::new(settings.max_total_unflushed_bytes),
            windows: Budget::new(settings.max_total_window_bytes),
            messages: Budget::new(settings.max_total_message_bytes),
            places: Arc::new(Places::new(settings.max_newcomers, settings.max_connections)),
            settings,
            storage,
            slave,
            metrics: Metrics::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            connections: AtomicUsize::new(0),
            seldom: Seldom::default(),
            connection_ids: AtomicU64::new(0),
            vdisks: Mutex::default(),
            last_errors: Mutex::default(),
            reports: Mutex::default(),
        }
    }

    /// Counts a connection that got no further than the handshake.
    pub(crate) fn count_refused(&self, reason: &'static str) {
        metrics::counter!("tlog_server_handshakes_refused_total", "reason" => reason).increment(1);
    }

    /// Counts and logs a newcomer that had to go.
    pub(crate) fn tell_crowded_out(&self, peer: SocketAddr) {
        self.count_refused("crowded_out");
        let max = self.settings.max_newcomers;
        warn_seldom!(self.seldom, "crowded_out", %peer, max, "refused: the oldest of too many connections that do not say who they are");
    }

    /// A name for a connection that no other one has.
    pub(crate) fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.connection_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Where to greet the task of a vdisk. Starts it if it does not run. If it drops the verdict unanswered, it was just
    /// ending; ask again.
    pub(crate) fn vdisk(self: &Arc<Self>, id: &VdiskId) -> mpsc::Sender<Hello> {
        let mut vdisks = lock(&self.vdisks);
        if let Some(entry) = vdisks.get(id) {
            return entry.hellos.clone();
        }
        let (hellos, receiver) = mpsc::channel(Self::MAX_HELLOS);
        let mut status = VdiskStatus::new(id.clone());
        status.last_error = lock(&self.last_errors).get(id).cloned();
        let status = Arc::new(Mutex::new(status));
        let (stop, (report, left)) = (self.stop.child_token(), watch::channel(None));
        let entry =
            Entry { hellos: hellos.clone(), status: Arc::clone(&status), stop: stop.clone(), report: left };
        vdisks.insert(id.clone(), entry);
        metrics::gauge!("tlog_server_vdisks_open").increment(1.0);
        let (shared, id) = (Arc::clone(self), id.clone());
        let registration = Registration { shared, id, status, hellos: receiver, stop, report };
        self.tasks.spawn(vdisk::run(registration));
        hellos
    }

    /// Has the task of a vdisk make durable what it has and end, and answers how it was left once it is gone; none where it did not
    /// run, or never opened the log.
    pub(crate) async fn close(&self, id: &VdiskId) -> Option<VdiskReport> {
        let mut report = {
            let vdisks = lock(&self.vdisks);
            let entry = vdisks.get(id)?;
            entry.stop.cancel();
            entry.report.clone()
        };
        // Changes once at most, and then the task goes.
        while report.changed().await.is_ok() {}
        report.borrow().clone()
    }

    /// Remembers what went wrong with a vdisk.
    pub(crate) fn set_last_error(&self, status: &Mutex<VdiskStatus>, error: String) {
        let id = {
            let mut status = lock(status);
            status.last_error = Some(error.clone());
            status.vdisk.clone()
        };
        let mut errors = lock(&self.last_errors);
        if errors.len() < Self::MAX_LAST_ERRORS || errors.contains_key(&id) {
            errors.insert(id, error);
        }
    }

    /// Says how a vdisk was left.
    pub(crate) fn report(&self, report: VdiskReport) {
        lock(&self.reports).insert(report.vdisk.clone(), report);
    }

    /// How the vdisks were left that were open when the server was told to stop.
    pub(crate) fn take_reports(&self) -> Vec<VdiskReport> {
        std::mem::take(&mut *lock(&self.reports)).into_values().collect()
    }

    /// Where everything stands.
    pub(crate) fn status(&self) -> ServerStatus {
        let mut vdisks: BTreeMap<_, _> = lock(&self.last_errors)
            .iter()
            .map(|(id, error)| {
                let last_error = Some(error.clone());
                (id.clone(), VdiskStatus { open: false, last_error, ..VdiskStatus::new(id.clone()) })
            })
            .collect();
        for (id, entry) in &*lock(&self.vdisks) {
            vdisks.insert(id.clone(), lock(&entry.status).clone());
        }
        ServerStatus {
            connections: self.connections.load(Ordering::Relaxed),
            newcomers: self.places.newcomers(),
            message_bytes: self.messages.taken(),
            unflushed_bytes: self.unflushed.taken(),
            window_bytes: self.windows.taken(),
            vdisks: vdisks.into_values().collect(),
        }
    }
}

/// The task of a vdisk is the only one, and known as that, for as long as it holds this.
pub(crate) struct Registration {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: VdiskId,
    pub(crate) status: Arc<Mutex<VdiskStatus>>,
    pub(crate) hellos: mpsc::Receiver<Hello>,
    /// Cancelled when the vdisk is to be closed, alone or with the server.
    pub(crate) stop: CancellationToken,
    pub(crate) report: watch::Sender<Option<VdiskReport>>,
}

impl Drop for Registration {
    /// First the entry goes, then the receiver: who finds it closed finds no entry and starts a new task.
    fn drop(&mut self) {
        lock(&self.shared.vdisks).remove(&self.id);
        metrics::gauge!("tlog_server_vdisks_open").decrement(1.0);
    }
}

/// What a panic elsewhere left behind is still a whole value: no lock is held over more than one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
