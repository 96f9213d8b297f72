//! History that stays while a command reads it: a pin on the server that prunes it, for as long as the command runs.

use std::time::Duration;

use anyhow::Context;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde_json::json;
use tlog_proto::VdiskId;

use crate::admin_client::{AdminError, ask_with};
use crate::admin_pins::{PinRequest, RenewRequest};
use crate::pins::{Granted, PinId};
use crate::running::{self, OfflineFlag};
use crate::settings::Settings;

/// How long a pin lives without being renewed: so long a command that was killed holds pruning up.
const LEASE: Duration = Duration::from_secs(60);

/// How long the server may take. A restore is most needed where it does not answer, and goes on without a pin then.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does `work`, which opens the log of a vdisk and reads it, with a pin on everything that its history has now. `who` is how the server names
/// the reader.
///
/// Where no server runs nobody prunes, and there is no pin. Where one runs that gives none, that is logged and the work is done all
/// the same: if history is removed meanwhile it says so, and can be begun again.
pub(crate) async fn while_reading<T>(
    settings: &Settings,
    vdisk: &VdiskId,
    who: &str,
    work: impl Future<Output = T>,
) -> T {
    let who = format!("{who}, process {}", std::process::id());
    let pinned = tokio::time::timeout(PATIENCE, Pinned::take(settings, vdisk, who)).await;
    let pinned = match pinned.context("the server does not answer").and_then(|pinned| pinned) {
        Ok(pinned) => pinned,
        Err(error) => {
            tracing::info!(%vdisk, error = crate::words::of_error(&error), "history is not pinned while it is read");
            None
        }
    };
    let Some(mut pinned) = pinned else { return work.await };
    let done = tokio::select! {
        done = work => done,
        never = pinned.keep() => match never {},
    };
    pinned.end().await;
    done
}

/// A pin on a server elsewhere.
struct Pinned {
    address: String,
    vdisk: VdiskId,
    who: String,
    id: PinId,
}

impl Pinned {
    async fn take(settings: &Settings, vdisk: &VdiskId, who: String) -> anyhow::Result<Option<Self>> {
        // Where nothing answers at admin-listen no server runs as far as can be told.
        let Some(address) = running::server(settings, OfflineFlag { offline: true }).await? else {
            return Ok(None);
        };
        let id = take(&address, vdisk, &who).await?;
        Ok(Some(Self { address, vdisk: vdisk.clone(), who, id }))
    }

    /// Renews it, for ever.
    async fn keep(&mut self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LEASE / 3).await;
            let body = json!(RenewRequest { seconds: LEASE.as_secs() }).to_string().into();
            let path = self.path();
            let renewed = ask_with(&self.address, Method::PUT, &path, body);
            let renewed = tokio::time::timeout(PATIENCE, renewed).await;
            let ended =
                matches!(&renewed, Ok(Err(AdminError::Refused { status: StatusCode::NOT_FOUND, .. })));
            if !ended {
                continue; // done, or tried again before the lease ends
            }
            // A server that was started again, or this process stood still for a while.
            let taken = tokio::time::timeout(PATIENCE, take(&self.address, &self.vdisk, &self.who)).await;
            if let Ok(Ok(id)) = taken {
                self.id = id;
            }
        }
    }

    async fn end(self) {
        let path = self.path();
        let ended = ask_with(&self.address, Method::DELETE, &path, Bytes::new());
        // Else it ends by itself.
        let _ended = tokio::time::timeout(PATIENCE, ended).await;
    }

    fn path(&self) -> String {
        format!("{}/{}", path_of_pins(&self.vdisk), self.id)
    }
}

fn path_of_pins(vdisk: &VdiskId) -> String {
    format!("/vdisks/{vdisk}/pins")
}

/// Pins everything that there is.
async fn take(address: &str, vdisk: &VdiskId, who: &str) -> anyhow::Result<PinId> {
    let request = PinRequest { from: 1, who: who.to_owned(), seconds: LEASE.as_secs() };
    let path = path_of_pins(vdisk);
    let body = json!(request).to_string().into();
    let granted: Granted =
        running::ask_server(address, Method::POST, &path, body, &format!("pin vdisk {vdisk}")).await?;
    Ok(granted.id)
}
