//! Opening a vdisk's log for reading, as the settings say where it is.

use std::sync::Arc;

use anyhow::Context;
use tlog_codec::VdiskKeys;
use tlog_player::{DiskStateError, LogReader, MomentError, OpenError};
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;

use crate::settings::Settings;
use crate::storage::quorums;
use crate::stores::Stores;
use crate::{keys, moment};

/// The log of a vdisk, as it is now. Works beside a running server.
pub async fn open(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<LogReader> {
    Ok(LogReader::open(store_set(settings, vdisk)?).await?)
}

/// The same, with the error told apart.
pub async fn try_open(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<Result<LogReader, OpenError>> {
    Ok(LogReader::open(store_set(settings, vdisk)?).await)
}

fn store_set(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<StoreSet> {
    let stores = Stores::for_reading(settings)?;
    let set = StoreSet::new(vdisk.clone(), stores.all, quorums(settings.redundancy)?, settings.store_timeout);
    set.context("the number of stores is not that of the shards")
}

/// The keys of a vdisk. Warns on standard error of what a person should know about their file.
pub fn keys_of(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<VdiskKeys> {
    let keys = keys::load(settings)?;
    for warning in keys.warnings() {
        eprintln!("tlog: warning: {warning}");
    }
    Ok(VdiskKeys::new(vdisk.clone(), Arc::new(keys.keyring)))
}

/// The error with moments as a person writes them, where it has some.
pub fn tell(error: DiskStateError) -> anyhow::Error {
    match error {
        DiskStateError::Moment(MomentError::BeforeHistory { vdisk, asked, oldest, newest }) => {
            anyhow::anyhow!(
                "vdisk {vdisk}: {} is before its history, which goes from {} to {}; name a moment in it, or see 'tlog history {vdisk}'",
                moment::show(asked),
                moment::show(oldest),
                moment::show(newest),
            )
        }
        error => error.into(),
    }
}
