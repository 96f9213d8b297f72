//! The way to one server.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use tlog_config::RedisServer;
use tlog_store::StoreDurability;
use tlog_store::observe::Appends;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::dial::Dialler;
use crate::failure::DialFailure;
use crate::held::Held;
use crate::request::Request;
use crate::room::Room;
use crate::{LinkLimits, TlsError, TlsOptions};

/// The way to one server: one connection, on which the commands of all clones go out as they come (pipelined) and are answered in order.
///
/// It is dialled when the first command wants it, held until it breaks, and dialled anew by the next command after that. While a
/// server does not let itself be dialled, pauses between tries grow from [`LinkLimits::first_pause`] to
/// [`LinkLimits::longest_pause`], and commands fail at once instead of waiting. A server that answers nothing for [`LinkLimits::response`]
/// while commands wait counts as failed: its connection is closed, and everything on the way on it fails.
///
/// A command that failed for want of an answer may have been carried out all the same. It is never sent a second time.
///
/// A clone is the same link. The connection is closed when the last one is dropped. Needs a Tokio runtime.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    server: RedisServer,
    address: Arc<str>,
    appends: Appends,
    limits: LinkLimits,
    dialler: Dialler,
    room: Room,
    state: watch::Sender<State>,
    /// One command at a time asks whether a connection that was idle is still there.
    asking: tokio::sync::Mutex<()>,
    durability: Mutex<Option<StoreDurability>>,
    runs: Mutex<Runs>,
}

/// How often the server was started, as far as this link knows.
#[derive(Debug, Default)]
struct Runs {
    count: u64,
    /// What the server called its last start.
    id: Option<String>,
}

#[derive(Clone, Debug)]
enum State {
    /// To be dialled by whoever needs it.
    Closed,
    /// Being dialled, with how it was before.
    Dialling(Option<Outage>),
    Up(Arc<Held>),
    /// Not to be dialled before a point in time.
    Down(Outage),
}

#[derive(Clone, Debug)]
struct Outage {
    since: Instant,
    next_dial: Instant,
    failures: u32,
    reason: Arc<str>,
}

/// How a link is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Nothing was asked of it yet, or its connection was closed and nothing was asked since, or it is being dialled for the first time.
    Idle,
    /// Its connection is there.
    Up,
    /// Its server does not let itself be dialled, or its connection broke a moment ago.
    Down {
        /// For how long.
        since: Duration,
        /// How long until a command dials it again.
        next_dial: Duration,
        /// What went wrong last, for a person.
        reason: Arc<str>,
    },
}

impl Link {
    /// A link to `server`; does not dial. For `rediss://` whom this system trusts is trusted.
    pub fn new(server: RedisServer, limits: LinkLimits) -> Self {
        // The default names no files, so that nothing can be wrong with them.
        let tls = server.tls.then(|| TlsOptions::default().read().ok()).flatten();
        let dialler = Dialler::new(&server, &limits, tls);
        Self::with_dialler(server, limits, dialler)
    }

    /// A link to `server`; does not dial. The files of `tls` are read if the server's address asks for TLS.
    pub fn with_tls(server: RedisServer, limits: LinkLimits, tls: &TlsOptions) -> Result<Self, TlsError> {
        if !server.tls {
            return Ok(Self::new(server, limits));
        }
        let dialler = Dialler::new(&server, &limits, Some(tls.read()?));
        Ok(Self::with_dialler(server, limits, dialler))
    }

    fn with_dialler(server: RedisServer, limits: LinkLimits, dialler: Dialler) -> Self {
        let address: Arc<str> = server.to_string().into();
        let room = Room::new(&limits, &address);
        let state = watch::Sender::new(State::Closed);
        let (asking, durability, runs) = (tokio::sync::Mutex::default(), Mutex::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                server,
                address,
                appends: Appends::default(),
                limits,
                dialler,
                room,
                state,
                asking,
                durability,
                runs,
            }),
        }
    }

    /// The server's address as it is shown; no user or password in it.
    pub fn address(&self) -> Arc<str> {
        Arc::clone(&self.inner.address)
    }

    /// Counts what is appended over it.
    pub(crate) fn appends(&self) -> &Appends {
        &self.inner.appends
    }

    /// The server.
    pub fn server(&self) -> &RedisServer {
        &self.inner.server
    }

    /// Sends one command and waits for its answer.
    ///
    /// Waits while there are as many commands on the way as the limits allow. Can be dropped at any time; the server may carry the
    /// command out all the same. Not for commands that change the connection, which is everybody's (`SELECT`, `MULTI`,
    /// `SUBSCRIBE`), nor for those that wait on the server for longer than [`LinkLimits::response`].
    ///
    /// # Errors
    ///
    /// Those of the connection ([`RedisError::is_io_error`]), those that the server answered, and an answer that is no `T`.
    /// [`kind_of`](crate::kind_of) says what each means to a store.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let value = self.inner.answer(Request::of(command), None).await?.extract_error()?;
        Ok(T::from_redis_value(value)?)
    }

    /// The same for a caller that trusts what it was told before: fails once, and sends nothing, where the server was started anew since.
    /// `run` is such a caller's memory: 0 at first, and where it need not be told.
    pub(crate) async fn run_on_same(&self, request: Request, run: &AtomicU64) -> RedisResult<Value> {
        self.inner.answer(request, Some(run)).await?.extract_error()
    }

    /// Waits until there is a connection, dialling as often as the limits allow.
    pub async fn until_up(&self) {
        let mut states = self.inner.state.subscribe();
        while self.inner.connection().await.is_err() {
            let next_dial = match &*states.borrow_and_update() {
                State::Down(outage) => outage.next_dial,
                // Somebody else dials.
                State::Dialling(_) => Instant::now() + self.inner.limits.connect,
                State::Closed | State::Up(_) => continue,
            };
            tokio::select! {
                // Cannot fail: the sender is in `self`.
                _ = states.changed() => {}
                () = tokio::time::sleep_until(next_dial) => {}
            }
        }
    }

    /// How it is doing.
    pub fn state(&self) -> LinkState {
        match &*self.inner.state.borrow() {
            State::Closed | State::Dialling(None) => LinkState::Idle,
            State::Up(_) => LinkState::Up,
            State::Down(outage) | State::Dialling(Some(outage)) => LinkState::Down {
                since: outage.since.elapsed(),
                next_dial: outage.next_dial.saturating_duration_since(Instant::now()),
                reason: Arc::clone(&outage.reason),
            },
        }
    }

    /// How durable the server said it was when it was dialled last; none before the first time.
    pub fn last_durability(&self) -> Option<StoreDurability> {
        self.inner.durability.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is a clone of `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// For a registry that does not keep links open.
    pub(crate) fn downgrade(&self) -> WeakLink {
        WeakLink(Arc::downgrade(&self.inner))
    }
}

/// A link that is there as long as somebody has it.
#[derive(Clone, Debug)]
pub(crate) struct WeakLink(std::sync::Weak<Inner>);

impl WeakLink {
    pub(crate) fn upgrade(&self) -> Option<Link> {
        Some(Link { inner: self.0.upgrade()? })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Inner {
    async fn answer(self: &Arc<Self>, request: Request, run: Option<&AtomicU64>) -> RedisResult<Value> {
        let place = self.room.take(&request).await;
        let held = self.usable_connection().await?;
        if let Some(run) = run {
            let before = run.swap(held.run, Ordering::Relaxed);
            if before != 0 && before != held.run {
                return Err(restarted());
            }
        }
        held.answer(request, place).await.inspect_err(|error| self.give_up(&held, error, "closed"))
    }

    /// The connection; one that was idle has shown that it is still there.
    async fn usable_connection(self: &Arc<Self>) -> RedisResult<Arc<Held>> {
        let held = self.connection().await?;
        if !held.must_show_itself(self.limits.idle) {
            return Ok(held);
        }
        let _one_at_a_time = self.asking.lock().await;
        // Small, and one at a time: it needs no room of the others'.
        if let Err(error) = held.show_itself(self.limits.idle, self.room.spare()).await {
            self.give_up(&held, &error, "idle");
        }
        if held.is_given_up() { self.connection().await } else { Ok(held) }
    }

    /// The connection that is there, or is being dialled now.
    async fn connection(self: &Arc<Self>) -> RedisResult<Arc<Held>> {
        if let State::Up(held) = &*self.state.borrow() {
            return Ok(Arc::clone(held));
        }
        let mut states = self.state.subscribe();
        let mut began = false;
        loop {
            let (wait, error) = match &*states.borrow_and_update() {
                State::Up(held) => return Ok(Arc::clone(held)),
                // A connection that broke once is soon there again. After a failed dial nobody waits but who began this one.
                State::Dialling(outage) => {
                    match outage.as_ref().filter(|outage| !began && outage.failures > 1) {
                        None => (true, None),
                        Some(outage) => (false, Some(outage.error())),
                    }
                }
                State::Down(outage) if began || Instant::now() < outage.next_dial => {
                    (false, Some(outage.error()))
                }
                State::Closed | State::Down(_) => (false, None),
            };
            if let Some(error) = error {
                return Err(error);
            }
            if wait {
                // Cannot fail: the sender is in `self`.
                let _ = states.changed().await;
            } else {
                began = self.begin_dial() || began;
            }
        }
    }

    /// Begins to dial, unless another has; answers whether it did. The dial goes on if the caller is dropped.
    fn begin_dial(self: &Arc<Self>) -> bool {
        let mut failures = 0;
        let began = self.state.send_if_modified(|state| {
            let outage = match state {
                State::Closed => None,
                State::Down(outage) if Instant::now() >= outage.next_dial => Some(outage.clone()),
                _ => return false,
            };
            failures = outage.as_ref().map_or(0, |outage| outage.failures);
            *state = State::Dialling(outage);
            true
        });
        if began {
            let link = Arc::clone(self);
            tokio::spawn(async move { link.dial(failures).await });
        }
        began
    }

    async fn dial(self: Arc<Self>, failures: u32) {
        let unfinished = Unfinished { link: &self, failures };
        let dialled = self.dialler.dial().await;
        std::mem::forget(unfinished);
        match dialled {
            Ok((connection, told)) => {
                metrics::counter!("tlog_redis_connections_total", "store" => self.address()).increment(1);
                debug!(store = %self.address, "connected");
                self.note_durability(told.durability());
                let held = Arc::new(Held::new(connection, failures, self.note_run(told.run_id())));
                self.state.send_replace(State::Up(Arc::clone(&held)));
                let (link, limit) = (Arc::downgrade(&self), self.limits.response);
                // Whoever dials must not keep the link alive beyond this.
                drop(self);
                if let Some(hung) = held.watch(limit).await
                    && let Some(link) = link.upgrade()
                {
                    link.give_up(&held, &hung, "hung");
                }
            }
            Err(failure) => self.note_failure(failures + 1, &failure),
        }
    }

    fn note_failure(&self, failures: u32, failure: &DialFailure) {
        metrics::counter!("tlog_redis_dial_failures_total", "store" => self.address(), "kind" => failure.kind)
            .increment(1);
        let reason: Arc<str> = failure.to_string().into();
        let known = matches!(&*self.state.borrow(), State::Dialling(Some(outage)) if outage.reason == reason);
        if known {
            debug!(store = %self.address, failures, %reason, "still cannot be reached");
        } else {
            warn!(store = %self.address, %reason, "cannot be reached");
        }
        self.go_down(failures, reason);
    }

    /// Closes a connection that broke or hangs.
    fn give_up(&self, held: &Arc<Held>, error: &RedisError, why: &'static str) {
        if !held.give_up(error.clone()) {
            return;
        }
        metrics::counter!("tlog_redis_connections_broken_total", "store" => self.address(), "why" => why)
            .increment(1);
        if why == "idle" {
            // Nothing was lost with it, and nothing is known against its server.
            debug!(store = %self.address, %error, "the idle connection was closed");
            self.state.send_replace(State::Closed);
            return;
        }
        warn!(store = %self.address, %error, why, "lost the connection");
        // A server that breaks each connection right after it was made is not dialled in a circle.
        let failures = if held.age() < self.limits.longest_pause { held.failures_before + 1 } else { 1 };
        self.go_down(failures, error.to_string().into());
    }

    fn go_down(&self, failures: u32, reason: Arc<str>) {
        let pause = jittered(self.limits.pause(failures));
        self.state.send_modify(|state| {
            let now = Instant::now();
            let since = match state {
                State::Dialling(Some(outage)) | State::Down(outage) => outage.since,
                _ => now,
            };
            *state = State::Down(Outage { since, next_dial: now + pause, failures, reason });
        });
    }

    /// Which start of the server this is. One that does not tell counts as the same.
    fn note_run(&self, id: Option<&str>) -> u64 {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = runs.id.as_deref();
        if runs.count == 0 || (id.is_some() && known.is_some() && id != known) {
            runs.count += 1;
            if runs.count > 1 {
                metrics::counter!("tlog_redis_restarts_total", "store" => self.address()).increment(1);
                info!(store = %self.address, "the server was started anew");
            }
        }
        if id.is_some() {
            runs.id = id.map(str::to_owned);
        }
        runs.count
    }

    fn note_durability(&self, durability: StoreDurability) {
        for state in ["durable", "volatile", "unknown"] {
            let is = if durability.name() == state { 1 } else { 0 };
            metrics::gauge!("tlog_store_durability", "store" => self.address(), "state" => state).set(is);
        }
        let mut last = self.durability.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&durability) {
            match &durability {
                StoreDurability::Durable => info!(store = %self.address, "the store is durable"),
                StoreDurability::Volatile(why) => {
                    warn!(store = %self.address, why, "what the store holds may not survive its restart");
                }
                StoreDurability::Unknown(why) => {
                    warn!(store = %self.address, why, "whether the store is durable is not known");
                }
            }
            *last = Some(durability);
        }
    }

    fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let State::Up(held) = &*self.state.borrow() {
            held.give_up(io::Error::other("the link was closed").into());
        }
    }
}

/// A dial that ends without having said how, by a panic, must not leave everybody waiting for it.
struct Unfinished<'a> {
    link: &'a Inner,
    failures: u32,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.link.go_down(self.failures + 1, "the dial was broken off".into());
    }
}

fn restarted() -> RedisError {
    let why = "the server was started anew, and may have lost what it had answered last";
    io::Error::new(io::ErrorKind::ConnectionReset, why).into()
}

/// Between a half and the whole of a pause, so that not everybody comes back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

impl Outage {
    fn error(&self) -> RedisError {
        // The same text as long as nothing changes: whoever logs it once can tell.
        let text = self.reason.to_string();
        io::Error::new(io::ErrorKind::NotConnected, text).into()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({}, {:?})", self.inner.address, self.state())
    }
}
