//! The log has closed, because we asked or by itself: who waits hears of it, and what is told of the vdisk's end.

use tracing::error;

use super::Vdisk;
use crate::outbox::{Ended, Reason};
use crate::port::{CloseReason, Closed, Durability};
use crate::status::VdiskReport;

impl Vdisk<'_> {
    /// The log has closed because we asked.
    pub(super) fn closed(mut self, closed: Result<(), Closed>) -> VdiskReport {
        let Durability { durable, .. } = self.durability.borrow().clone();
        let error = match closed {
            Ok(()) => {
                self.handle_durable(durable);
                None
            }
            Err(Closed(reason)) => Some(self.give_up(reason)),
        };
        self.settle();
        self.publish();
        if let Some(live) = &self.live {
            let reason = match &error {
                Some(_) => Reason::LogClosed,
                None if self.registration.shared.stop.is_cancelled() => Reason::Shutdown,
                None => Reason::VdiskClosed,
            };
            live.hello.outbox.end(Ended::Finished(reason));
        }
        self.report(error)
    }

    /// The log has closed by itself.
    pub(super) async fn fail(mut self, reason: CloseReason) -> VdiskReport {
        let error = self.give_up(reason);
        self.settle();
        self.publish();
        if let Some(live) = self.live.take() {
            live.hello.outbox.end(Ended::Finished(Reason::LogClosed));
        }
        let _ = self.log.close().await; // answers at once; why it closed is known
        self.report(Some(error))
    }

    pub(super) fn give_up(&mut self, reason: CloseReason) -> String {
        error!(vdisk = %self.id, %reason, durable = ?self.session.durable(), "the log has closed; clients come back");
        metrics::counter!("tlog_server_logs_failed_total", "reason" => kind(&reason)).increment(1);
        if let CloseReason::Failed(_) = reason {
            // What became durable before that is durable. Once fenced, nothing is said any more.
            let durable = self.durability.borrow().durable;
            self.handle_durable(durable);
        }
        if let Some(live) = &mut self.live {
            live.arrived.clear();
        }
        self.steps.clear();
        self.appending = None;
        self.session.handle_log_closed();
        let text = Closed(reason).to_string();
        self.registration.shared.set_last_error(&self.registration.status, text.clone());
        text
    }

    pub(super) fn report(&self, error: Option<String>) -> VdiskReport {
        let (durable, ordered) = (self.session.durable(), self.session.ordered());
        // A log that ends when all of it is durable, as where somebody has taken it over or deleted it, takes nothing along.
        let error = error.filter(|_| durable != ordered);
        VdiskReport { vdisk: self.id.clone(), durable, ordered, error }
    }
}

fn kind(reason: &CloseReason) -> &'static str {
    match reason {
        CloseReason::Requested => "requested",
        CloseReason::Fenced => "fenced",
        CloseReason::Failed(_) => "failed",
    }
}
