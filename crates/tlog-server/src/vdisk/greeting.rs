//! Clients that come: asked about, accepted, refused.

use std::collections::VecDeque;
use std::sync::Arc;

use tlog_proto::{HandshakeResponse, HandshakeStatus, LogPosition, Sequence};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{Closing, Vdisk};
use crate::live::{Live, SlaveWaits};
use crate::registry::{Hello, Verdict};
use crate::session::{Greeting, Refusal};

impl Vdisk<'_> {
    /// A log that stayed open while nothing was written may have been taken over by another server meanwhile. It is asked each
    /// time that somebody comes: where the log ends decides what becomes of the client's blocks.
    pub(super) fn handle_hello(&mut self, hello: Hello) {
        // Only whoever came first came before the log was opened: opening may take long, and another server may have been quicker.
        let fresh = std::mem::take(&mut self.fresh);
        if hello.verdict.is_closed() {
            return;
        }
        if fresh {
            return self.greet(hello);
        }
        self.unconfirmed.push(hello);
        self.confirm();
    }

    fn confirm(&mut self) {
        if self.confirming.is_none() && !self.unconfirmed.is_empty() {
            self.being_confirmed = std::mem::take(&mut self.unconfirmed);
            let log = Arc::clone(&self.log);
            self.confirming = Some(Box::pin(async move { log.confirm().await }));
        }
    }

    pub(super) fn greet_confirmed(&mut self, certain: bool) {
        let confirmed = std::mem::take(&mut self.being_confirmed);
        if !matches!(self.closing, Closing::No) {
            return; // not answered, they come to the task that opens the log next
        }
        // Who gave up meanwhile takes nothing over.
        for mut hello in confirmed.into_iter().filter(|hello| !hello.verdict.is_closed()) {
            hello.greeting.certain = certain;
            self.greet(hello);
        }
        self.confirm();
    }

    fn greet(&mut self, hello: Hello) {
        let greeting = hello.greeting;
        debug!(vdisk = %self.id, peer = %hello.peer, ?greeting, next = ?self.session.ordered(), "handshake");
        self.greeted.insert(greeting.connection, hello);
        self.session.handle_greeting(greeting);
    }

    pub(super) fn accept(&mut self, mut hello: Hello, last_flushed: Option<Sequence>, end: LogPosition) {
        let id = hello.greeting.connection;
        info!(vdisk = %self.id, peer = %hello.peer, first = %hello.greeting.first, ?last_flushed, "connected");
        let (unused, _) = oneshot::channel();
        let verdict = std::mem::replace(&mut hello.verdict, unused);
        let (budget, stop) = (Arc::clone(&self.budget), self.registration.stop.clone());
        if verdict.send(Verdict::Accepted { last_flushed, end, budget, stop }).is_err() {
            return self.session.handle_unheard(id);
        }
        self.live = Some(Live {
            id,
            hello,
            arrived: VecDeque::new(),
            at_end: false,
            slave: None,
            more_slave_waits: SlaveWaits::default(),
        });
    }

    pub(super) fn refuse(&mut self, hello: Hello, why: Refusal, last_flushed: Option<Sequence>) {
        let (vdisk, peer) = (&self.id, hello.peer);
        let count = |reason: &'static str| {
            metrics::counter!("tlog_server_handshakes_refused_total", "reason" => reason).increment(1);
        };
        let refusal = match why {
            Refusal::Gap { first: Greeting::QUESTION, next } => {
                info!(%vdisk, %peer, ?next, "told a client where the log ends");
                tlog_proto::Refusal::Gap
            }
            Refusal::Gap { first, next: Some(next) } => {
                count("gap");
                warn!(%vdisk, %peer, %first, %next, "refused: the client begins at {first}, and the log goes on at {next}");
                tlog_proto::Refusal::Gap
            }
            Refusal::Gap { first, next: None } => {
                count("gap");
                warn!(%vdisk, %peer, %first, "refused: the client goes on at {first} with what is durable, and the log is empty");
                tlog_proto::Refusal::Gap
            }
            Refusal::TakenOver { by } => {
                count("taken_over");
                let session = hello.greeting.session;
                warn!(%vdisk, %peer, %session, %by, "refused: another client has the vdisk since this one was there");
                tlog_proto::Refusal::TakenOver
            }
            Refusal::Uncertain => {
                count("uncertain");
                warn!(%vdisk, %peer, "refused: too few stores tell whether the log is ours still");
                tlog_proto::Refusal::LogUnavailable
            }
            Refusal::LogClosed => {
                warn!(%vdisk, %peer, "refused: the log has closed");
                tlog_proto::Refusal::LogUnavailable
            }
        };
        let answer = HandshakeResponse::refused(HandshakeStatus::InternalServerError, refusal);
        let _ = hello.verdict.send(Verdict::Refused(HandshakeResponse { last_flushed, ..answer }));
    }
}
