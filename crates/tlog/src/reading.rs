//! Opening a vdisk's log for reading, as the settings say where it is.

use std::sync::Arc;

use anyhow::{Context, bail};
use tlog_codec::VdiskKeys;
use tlog_config::StoreAddress;
use tlog_crypto::{Keyring, MasterKey};
use tlog_player::{DiskStateError, LogReader, MomentError, OpenError};
use tlog_proto::VdiskId;
use tlog_quorum::StoreSet;

use crate::keys::KeysError;
use crate::settings::Settings;
use crate::storage::{format1_keys, quorums};
use crate::stores::Stores;
use crate::{keys, moment};

/// The log of a vdisk, as it is now. Works beside a running server.
pub async fn open(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<LogReader> {
    Ok(try_open(settings, vdisk).await??)
}

/// The same, with the error told apart.
pub async fn try_open(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<Result<LogReader, OpenError>> {
    let format1 = format1_keys(settings)?;
    Ok(LogReader::open_with(store_set(settings, vdisk).await?, format1).await)
}

/// The stores of a vdisk's log, for reading.
pub async fn store_set(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<StoreSet> {
    some_store_is_there(settings)?;
    let stores = Stores::for_reading(settings).await?;
    let set = StoreSet::new(vdisk.clone(), stores.all, quorums(settings.redundancy)?, settings.store_timeout);
    set.context("the number of stores is not that of the shards")
}

/// Where not one directory is there, the settings are what is wrong, more likely than all disks at once.
pub fn some_store_is_there(settings: &Settings) -> anyhow::Result<()> {
    let stores = settings.stores();
    let gone = |store: &StoreAddress| match store {
        StoreAddress::Directory(directory) => matches!(directory.try_exists(), Ok(false)),
        _ => false,
    };
    if !stores.iter().all(gone) {
        return Ok(());
    }
    let looked: Vec<_> = stores.iter().map(ToString::to_string).collect();
    bail!(
        "none of the stores is there: looked for {}; name them as the server does (--data-dir, --storage, -c FILE), see 'tlog \
         config --show'; a server makes them at its first start",
        looked.join(", ")
    )
}

/// The keys of a vdisk. Warns on standard error of what a person should know about their file.
pub fn keys_of(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<VdiskKeys> {
    some_store_is_there(settings)?;
    let format1 = format1_keys(settings)?;
    let keyring = match keys::load(settings) {
        // All there is may be in format 1, which has keys of its own. What is not names the key that it lacks.
        Err(KeysError::NotSet { .. }) if format1.is_some() => Keyring::new(MasterKey::generate()?),
        keys => {
            let keys = keys?;
            for warning in keys.warnings() {
                eprintln!("tlog: warning: {warning}");
            }
            keys.keyring
        }
    };
    Ok(VdiskKeys::new(vdisk.clone(), Arc::new(keyring)).with_format1(format1))
}

/// Says on standard error that there may be more than was shown, where that is so.
pub fn tell_uncertain_end(reader: &LogReader) {
    if let Some(end) = &reader.extent().uncertain {
        eprintln!(
            "tlog: aggregation {} and what follows may belong to the history too: stores that would know are not in reach: {}",
            end.beyond,
            end.missing.join(", ")
        );
    }
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
