//! The client waits until the slave has what is durable.

use tlog_proto::LogPosition;
use tracing::{error, info, warn};

use super::Vdisk;
use crate::outbox::{Ended, Reason};
use crate::port::{SlaveSyncError, SlaveSyncOutcome};

impl Vdisk<'_> {
    pub(super) fn handle_slave(&mut self, synced: Result<SlaveSyncOutcome, SlaveSyncError>) {
        let Some(live) = &mut self.live else { return };
        let (id, peer) = (&self.id, live.hello.peer);
        match synced {
            Ok(SlaveSyncOutcome::Synced) => {
                info!(vdisk = %id, %peer, "the slave holds everything; its syncer has stopped")
            }
            Ok(SlaveSyncOutcome::NoSlave) => {
                warn!(vdisk = %id, %peer, "asked to wait for a slave, and there is none")
            }
            Err(error) => {
                // The protocol has no answer for this. A client that waits for ever would be worse off.
                error!(vdisk = %id, %peer, %error, "closing the connection that waits for the slave");
                let text = error.to_string();
                live.hello.outbox.end(Ended::Finished(Reason::SlaveSyncFailed));
                return self.registration.shared.set_last_error(&self.registration.status, text);
            }
        }
        self.session.handle_slave_synced();
        if let Some(position) = live.more_slave_waits.pop() {
            self.wait_for_slave(position);
        }
    }

    pub(super) fn wait_for_slave(&mut self, position: Option<LogPosition>) {
        let Some(live) = &mut self.live else { return };
        if live.slave.is_some() {
            live.more_slave_waits.push(position);
            return;
        }
        let (slave, id) = (self.registration.shared.slave.clone(), self.id.clone());
        live.slave = Some(Box::pin(async move {
            match slave {
                Some(slave) => slave.wait_and_stop(&id, position).await,
                None => Ok(SlaveSyncOutcome::NoSlave),
            }
        }));
    }
}
