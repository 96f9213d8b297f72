//! Finding the server that has the stores open: what changes a log goes through it, or it is told that somebody else has
//! taken the log over.

use std::time::Duration;

use anyhow::{Context, bail};
use hyper::Method;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tlog_config::StoreAddress;
use tlog_store::lock_holder;

use crate::admin_client::{AdminError, ask, ask_with};
use crate::service;
use crate::settings::Settings;

/// How long finding out whether a server is there may take.
const LOOK: Duration = Duration::from_secs(5);

/// The flag of a command that changes logs.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct OfflineFlag {
    /// Says that no server is running on these stores. Needed where that cannot be told: stores on the network, and none that
    /// answers at admin-listen
    #[arg(long)]
    pub offline: bool,
}

/// The admin endpoint of the server that has the stores open; none where no server runs.
///
/// The lock of a directory store tells. Stores on the network have none; there the server is looked for at `admin-listen`, and
/// where none answers, the person has to say that no server runs (`--offline`): a tool that opens a log takes it away from
/// the server.
pub async fn server(settings: &Settings, flag: OfflineFlag) -> anyhow::Result<Option<String>> {
    let mut network = false;
    for store in settings.stores() {
        let directory = match &store {
            StoreAddress::Directory(directory) => directory,
            StoreAddress::Redis(_) => {
                network = true;
                continue;
            }
            StoreAddress::Memory => continue,
        };
        let holder = match lock_holder(directory) {
            Ok(Some(holder)) => holder,
            Ok(None) => continue,
            Err(error) => {
                eprintln!("tlog: warning: {store}: who holds it cannot be told: {error}");
                continue;
            }
        };
        return match service::admin_in_note(&holder.note) {
            Some(address) => Ok(Some(address.to_owned())),
            None => bail!(
                "{store} is in use by process {} ({}), which has no admin endpoint; start the server with --admin-listen \
                 127.0.0.1:11212 to do this while it runs, or stop it first",
                holder.pid,
                if holder.note.is_empty() { "it says no more" } else { &holder.note },
            ),
        };
    }
    if !network {
        return Ok(None);
    }
    let Some(admin) = &settings.admin_listen else {
        if flag.offline {
            return Ok(None);
        }
        bail!(
            "whether a server has these stores open cannot be told; set admin-listen as that server has it (--admin-listen \
             127.0.0.1:11212), or say --offline where no server is running"
        );
    };
    let address = admin.to_connect().to_string();
    match tokio::time::timeout(LOOK, ask(&address, Method::GET, "/healthz")).await {
        Ok(Ok(_)) => Ok(Some(address)),
        // Whoever says that no server runs is believed where none answers, and only there.
        _ if flag.offline => Ok(None),
        Ok(Err(error)) => {
            Err(error).context("whether a server is running cannot be told; where none is, say --offline")
        }
        Err(_) => bail!(
            "the admin endpoint {address} does not answer, so whether a server is running cannot be told; where none is, \
             say --offline"
        ),
    }
}

/// Asks the server, and answers what it says; `doing` says what it could not do where it refuses, such as "scrub vdisk vda".
pub async fn ask_server<T: DeserializeOwned>(
    address: &str,
    method: Method,
    path: &str,
    body: Bytes,
    doing: &str,
) -> anyhow::Result<T> {
    let body = match ask_with(address, method, path, body).await {
        Err(AdminError::Refused { body, .. }) => {
            let told: Value = serde_json::from_str(&body).unwrap_or_default();
            let error = told.get("error").and_then(Value::as_str).unwrap_or(&body);
            bail!("the server at {address} could not {doing}: {error}");
        }
        other => other?,
    };
    serde_json::from_str(&body)
        .with_context(|| format!("the server at {address} answered something else than a report"))
}
