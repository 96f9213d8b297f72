//! One connection, what is on the way on it, and how it is given up.
//!
//! A command on the way is either *awaited*, or *abandoned*: whoever asked no longer waits, but its bytes may still be in a buffer or at
//! the server. An abandoned one keeps its [`Place`] until a command that began after it is answered, for a server
//! answers in order. Else a hung server would take up more and more memory under callers that give up early.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use redis::{RedisError, RedisResult, Value};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::conversation::Conversation;
use crate::failure::deadline_passed;
use crate::request::Request;
use crate::room::Place;

/// A connection that is held until it breaks.
pub(crate) struct Held {
    conversation: Conversation,
    traffic: Mutex<Traffic>,
    /// There is something on the way where there was nothing, or nothing of it is awaited any more.
    changed: Notify,
    given_up: CancellationToken,
    reason: OnceLock<RedisError>,
    born: Instant,
    /// How many dials and connections had failed in a row before this one.
    pub(crate) failures_before: u32,
    /// Which start of the server it is to, counted from 1.
    pub(crate) run: u64,
}

/// What is on the way.
struct Traffic {
    /// How many commands have begun.
    begun: u64,
    awaited: usize,
    /// Each with how many commands had begun when it was abandoned.
    abandoned: Vec<(u64, Place)>,
    /// When something was last answered, or came on the way where there was nothing.
    last_sign: Instant,
    /// Somebody asks whether the connection is still there; others wait for the answer.
    being_asked: bool,
}

impl Held {
    pub(crate) fn new(conversation: Conversation, failures_before: u32, run: u64) -> Self {
        let now = Instant::now();
        Self {
            conversation,
            traffic: Mutex::new(Traffic {
                begun: 0,
                awaited: 0,
                abandoned: Vec::new(),
                last_sign: now,
                being_asked: false,
            }),
            changed: Notify::new(),
            given_up: CancellationToken::new(),
            reason: OnceLock::new(),
            born: now,
            failures_before,
            run,
        }
    }

    /// Sends a command and waits for its answer, or for the connection to be given up. An error is one of the connection:
    /// what the server answers, errors too, is a value. May be dropped at any time.
    pub(crate) async fn answer(self: &Arc<Self>, request: Request, place: Place) -> RedisResult<Value> {
        let flight = Flight::begin(self, place);
        // Giving up closes the conversation, which ends this.
        let answer = self.conversation.ask(request).await;
        flight.end(answer.is_ok());
        // Where it was closed by us, that is not why.
        answer.map_err(|error| self.reason.get().cloned().unwrap_or(error))
    }

    /// Whether it is to be asked, or being asked, if it is still there: nothing is on the way, and nothing was for this long.
    pub(crate) fn must_show_itself(&self, idle: Duration) -> bool {
        let traffic = self.traffic();
        traffic.being_asked || traffic.is_idle(idle)
    }

    /// Asks it if it is still there, if it was idle. One caller at a time.
    pub(crate) async fn show_itself(self: &Arc<Self>, idle: Duration, place: Place) -> RedisResult<()> {
        struct Asking<'a>(&'a Held);
        impl Drop for Asking<'_> {
            fn drop(&mut self) {
                self.0.traffic().being_asked = false;
            }
        }

        {
            let mut traffic = self.traffic();
            if !traffic.is_idle(idle) {
                return Ok(());
            }
            traffic.being_asked = true;
        }
        let _asking = Asking(self);
        self.answer(Request::of(&redis::cmd("PING")), place).await.map(drop)
    }

    /// Ends when nothing was answered for `limit` while something was on the way, with the error for that, or when it was given up.
    pub(crate) async fn watch(self: &Arc<Self>, limit: Duration) -> Option<RedisError> {
        loop {
            let (awaited, abandoned, last_sign) = {
                let traffic = self.traffic();
                (traffic.awaited, traffic.abandoned.len(), traffic.last_sign)
            };
            let deadline = last_sign + limit;
            if awaited + abandoned == 0 {
                tokio::select! {
                    () = self.changed.notified() => continue,
                    () = self.given_up.cancelled() => return None,
                }
            }
            if Instant::now() >= deadline {
                return Some(deadline_passed(limit));
            }
            // The answer to an abandoned command reaches nobody. Where only such are left, one that is awaited shows that they are done.
            let probe = async {
                if awaited == 0 {
                    let tag = self.traffic().begun;
                    if self.conversation.ask(Request::of(&redis::cmd("PING"))).await.is_ok() {
                        self.traffic().seen_answer(tag + 1);
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = probe => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.given_up.cancelled() => return None,
            }
        }
    }

    /// Everything on the way fails with `reason` at once, and the connection is closed. Answers whether it was not done yet.
    pub(crate) fn give_up(&self, reason: RedisError) -> bool {
        if self.reason.set(reason).is_err() {
            return false;
        }
        self.given_up.cancel();
        self.conversation.close();
        self.traffic().abandoned.clear();
        true
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic {
    fn is_idle(&self, limit: Duration) -> bool {
        self.awaited == 0 && self.abandoned.is_empty() && self.last_sign.elapsed() >= limit
    }

    /// The command that began as number `begun` was answered, and with it all that were abandoned before it began.
    fn seen_answer(&mut self, begun: u64) {
        self.last_sign = Instant::now();
        self.abandoned.retain(|(tag, _)| *tag >= begun);
    }
}

/// A command on the way.
struct Flight<'a> {
    held: &'a Arc<Held>,
    number: u64,
    place: Option<Place>,
}

impl<'a> Flight<'a> {
    fn begin(held: &'a Arc<Held>, place: Place) -> Self {
        let mut traffic = held.traffic();
        traffic.begun += 1;
        traffic.awaited += 1;
        let number = traffic.begun;
        if traffic.awaited == 1 && traffic.abandoned.is_empty() {
            traffic.last_sign = Instant::now();
            held.changed.notify_one();
        }
        drop(traffic);
        Self { held, number, place: Some(place) }
    }

    /// It has its answer, or will never have one.
    fn end(mut self, answered: bool) {
        self.place = None;
        if answered {
            self.held.traffic().seen_answer(self.number);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut traffic = self.held.traffic();
        traffic.awaited -= 1;
        if let Some(place) = self.place.take()
            && !self.held.is_given_up()
        {
            let tag = traffic.begun;
            traffic.abandoned.push((tag, place));
            if traffic.awaited == 0 {
                self.held.changed.notify_one();
            }
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("age", &self.age()).field("given_up", &self.is_given_up()).finish()
    }
}
