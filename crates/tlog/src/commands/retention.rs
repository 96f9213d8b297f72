//! What `tlog mark`, `tlog checkpoint` and `tlog prune` have in common: the server does it where one has the stores open, else the
//! command itself.

use std::io::{self, Write};
use std::sync::Arc;

use hyper::Method;
use hyper::body::Bytes;
use tlog_codec::VdiskKeys;
use tlog_player::LogReader;
use tlog_proto::VdiskId;

use super::progress;
use crate::documents::Described;
use crate::retention::limits::OfflineLimits;
use crate::retention::{self, Report, Request};
use crate::running::{self, OfflineFlag};
use crate::settings::{Settings, SettingsArgs};
use crate::storage::FlusherStorage;
use crate::stores::Stores;
use crate::{keys, logging, reading};

/// Does it, wherever the log is open. `doing` says what, such as "mark a moment of vdisk vda".
pub(super) async fn carry_out(
    settings: &SettingsArgs,
    vdisk: &VdiskId,
    offline: OfflineFlag,
    request: Request,
    doing: &str,
) -> anyhow::Result<Report> {
    let settings = Settings::load(settings)?;
    logging::init_for_tool(&settings.logging);
    let Described { settings, vdisk: described } = settings.described(vdisk).await?;
    if let Some(address) = running::server(&settings, offline).await? {
        let body = Bytes::from(serde_json::to_vec(&request)?);
        let path = format!("/vdisks/{vdisk}/retention");
        return running::ask_server(&address, Method::POST, &path, body, doing).await;
    }
    reading::some_store_is_there(&settings)?;
    let keys = keys::load(&settings)?;
    let stores = Stores::for_writing(&settings, "tlog").await?;
    let storage = FlusherStorage::new(&settings, stores.all, Some(Arc::new(keys.keyring)))?;
    let limits = OfflineLimits { configuration: described.map(|(_, configuration)| configuration) };
    let bar = progress::of_bytes("storing images");
    let mut tell = |written, total| {
        bar.set_length(total);
        bar.set_position(written);
    };
    let done = retention::run(&storage, vdisk, request, &limits, settings.repair_rate, &mut tell).await;
    bar.finish_and_clear();
    done
}

/// The log of a vdisk, for listing what it says about itself, and its keys.
pub(super) async fn open_to_list(
    settings: &SettingsArgs,
    vdisk: &VdiskId,
) -> anyhow::Result<(LogReader, VdiskKeys)> {
    let settings = Settings::load(settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(vdisk).await?;
    Ok((reading::open(&settings, vdisk).await?, reading::keys_of(&settings, vdisk)?))
}

/// Prints what became of it.
pub(super) fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match (json, report) {
        (false, report) => writeln!(out, "{report}")?,
        (true, Report::Mark(report)) => writeln!(out, "{}", serde_json::to_string(report)?)?,
        (true, Report::Checkpoint(report)) => writeln!(out, "{}", serde_json::to_string(report)?)?,
        (true, Report::Prune(report)) => writeln!(out, "{}", serde_json::to_string(report)?)?,
    }
    out.flush()
}
