//! From texts to settings that make sense together.

use std::net::IpAddr;
use std::path::PathBuf;

use tlog_config::{EtcdOptions, Secret, SourceAddress, StoreAddress, is_host_name};
use tlog_crypto::format1::AesDecrypter;
use tlog_server::{Permissions, TlsFiles};
use tracing_subscriber::EnvFilter;

use crate::retention::background::Retention;
use crate::retention::keep::Keep;

use super::contradiction::{BLOCK_ROOM, Contradiction, MAX_SHARDS};
use super::layers::{BY_DEFAULT, Merged};
use super::values::{self, ListenAddress, ValueFault};
use super::{
    ClientTlsSettings, DocumentSettings, Format, Format1KeySettings, LimitSettings, LogFormat, LogSettings,
    RedundancySettings, ServerTlsSettings, Settings, SettingsError, Storage, StoreTlsSettings,
};

/// Most blocks in one aggregation.
const MAX_FLUSH_SIZE: u64 = 1 << 20;

pub(super) fn settings(merged: &Merged) -> Result<Settings, SettingsError> {
    let redundancy = redundancy(merged)?;
    let require_durable_stores = of(merged, "require-durable-stores", values::switch)?;
    let data_dir = of(merged, "data-dir", |text| some_text(text).map(PathBuf::from))?;
    let documents = documents(merged)?;
    let storage = storage(merged, &redundancy, data_dir.clone(), documents.is_some())?;
    let slave_sync = of(merged, "slave-sync", values::switch)?;
    if slave_sync && documents.is_none() {
        let (setting, needs) = ("slave-sync", "config-source");
        return Err(Contradiction::SettingAlone { setting, needs }.into());
    }
    if require_durable_stores
        && matches!(&storage, Storage::Stores(stores) if stores.contains(&StoreAddress::Memory))
    {
        return Err(Contradiction::MemoryNotDurable.into());
    }
    let format = of(merged, "format", |text| match text.trim() {
        "1" => Ok(Format::One),
        "2" => Ok(Format::Two),
        _ => Err(ValueFault::OneOf("1 or 2")),
    })?;
    let format1_keys = format1_keys(merged)?;
    if format == Format::One {
        format1(&storage, redundancy.stores(), format1_keys.is_some())?;
    }
    let flush_size = of(merged, "flush-size", |text| count(text, 0, MAX_FLUSH_SIZE))?;
    if flush_size == 0 {
        return Err(Contradiction::FlushSizeZero.into());
    }
    let listen: ListenAddress = of(merged, "listen", str::parse)?;
    let admin_listen: Option<ListenAddress> = merged.parsed("admin-listen", str::parse)?;
    if admin_listen.as_ref() == Some(&listen) && listen.pair().1 != 0 {
        return Err(Contradiction::SameAddressTwice { address: listen.to_string() }.into());
    }
    let tls = server_tls(merged)?;
    if tls.is_none() && !listen.is_loopback() && !of(merged, "allow-unencrypted-network", values::switch)? {
        return Err(Contradiction::UnencryptedNetwork { address: listen.to_string() }.into());
    }
    Ok(Settings {
        listen,
        tls,
        client_tls: client_tls(merged)?,
        admin_listen,
        server_id: of(merged, "server-id", some_text)?,
        data_dir,
        storage,
        documents,
        slave_sync,
        redundancy,
        require_durable_stores,
        store_tls: store_tls(merged)?,
        format,
        format1_keys,
        flush_size,
        flush_time: of(merged, "flush-time", values::duration)?,
        commit_timeout: of(merged, "commit-timeout", values::duration)?,
        store_timeout: of(merged, "store-timeout", values::duration)?,
        repair_rate: of(merged, "repair-rate", values::size)?,
        scrub_interval: of(merged, "scrub-interval", values::duration_or_off)?,
        scrub_rate: of(merged, "scrub-rate", values::size)?,
        verify_restore_every: of(merged, "verify-restore-every", values::duration_or_off)?,
        verify_restore_rate: of(merged, "verify-restore-rate", values::size)?,
        retention: retention(merged)?,
        check_stores_every: of(merged, "check-stores-every", values::duration)?,
        in_flight: of(merged, "in-flight", |text| count(text, 1, 1024))?,
        key_file: merged.parsed("key-file", |text| some_text(text).map(PathBuf::from))?,
        limits: limits(merged)?,
        logging: logging(merged)?,
    })
}

fn retention(merged: &Merged) -> Result<Option<Retention>, SettingsError> {
    let within = of(merged, "keep-within", values::duration_or_off)?;
    let periods = |text: &str| values::number(text, 0, 1_000_000).map(|number| number as u32);
    let (hourly, daily) = (of(merged, "keep-hourly", periods)?, of(merged, "keep-daily", periods)?);
    let marks = of(merged, "keep-marks", values::switch)?;
    let every = of(merged, "prune-every", values::duration)?;
    let rate = of(merged, "prune-rate", values::size)?;
    Ok(within.map(|within| Retention { keep: Keep { within, hourly, daily, marks }, every, rate }))
}

fn documents(merged: &Merged) -> Result<Option<DocumentSettings>, SettingsError> {
    let source = merged.parsed("config-source", |text| Ok(SourceAddress::parse(text)?))?;
    let user = merged.parsed("etcd-user", some_text)?;
    let password = merged.parsed("etcd-password", |text| Ok(Secret::new(text)))?;
    let ca_file = file(merged, "etcd-ca-file")?;
    let client = pair(merged, "etcd-certificate-file", "etcd-key-file")?;
    let (one, other) = ("etcd-user", "etcd-password");
    match (&user, &password) {
        (Some(_), None) => return Err(Contradiction::HalfSet { one, other }.into()),
        (None, Some(_)) => return Err(Contradiction::HalfSet { one: other, other: one }.into()),
        _ => {}
    }
    let set = [
        ("etcd-user", user.is_some()),
        ("etcd-ca-file", ca_file.is_some()),
        ("etcd-certificate-file", client.is_some()),
    ];
    let alone = set.into_iter().find(|(_, set)| *set).map(|(setting, _)| setting);
    match (source, alone) {
        (Some(SourceAddress::File(_)) | None, Some(setting)) => {
            Err(Contradiction::SettingAlone { setting, needs: "config-source (with the endpoints of etcd)" }
                .into())
        }
        (Some(source), _) => {
            let (certificate_file, key_file) = client.unzip();
            let etcd = EtcdOptions { user, password, ca_file, certificate_file, key_file };
            Ok(Some(DocumentSettings { source, etcd }))
        }
        (None, None) => Ok(None),
    }
}

fn redundancy(merged: &Merged) -> Result<RedundancySettings, SettingsError> {
    // Read wider than they can be, so that what is too much gets a sentence about both.
    let k = of(merged, "data-shards", |text| values::number(text, 0, 1 << 32))?;
    let m = of(merged, "parity-shards", |text| values::number(text, 0, 1 << 32))?;
    let w = merged.parsed("write-quorum", |text| values::number(text, 0, 1 << 32))?;
    Ok(redundancy_of(k, m, w)?)
}

/// k, m and W, where they make sense together; without W, that which follows from the others.
pub(crate) fn redundancy_of(k: u64, m: u64, w: Option<u64>) -> Result<RedundancySettings, Contradiction> {
    if k == 0 {
        return Err(Contradiction::NoDataShards);
    }
    let too_many = Contradiction::TooManyShards { k, m };
    if k + m > MAX_SHARDS {
        return Err(too_many);
    }
    let w = w.unwrap_or(k + m.div_ceil(2));
    let legal = if m == 0 { w == k } else { k < w && w <= k + m };
    if !legal {
        return Err(Contradiction::WriteQuorum { w, k, m });
    }
    match (u8::try_from(k), u8::try_from(m), u8::try_from(w)) {
        (Ok(data_shards), Ok(parity_shards), Ok(write_quorum)) => {
            Ok(RedundancySettings { data_shards, parity_shards, write_quorum })
        }
        _ => Err(too_many),
    }
}

fn storage(
    merged: &Merged,
    redundancy: &RedundancySettings,
    data_dir: PathBuf,
    documents: bool,
) -> Result<Storage, SettingsError> {
    let stores = merged.parsed("storage", |text| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let stores: Result<Vec<_>, _> = parts.map(StoreAddress::parse).collect();
        Ok(stores?)
    })?;
    let Some(mut stores) = stores else {
        return Ok(if documents { Storage::Documents } else { Storage::Embedded { data_dir } });
    };
    let (k, m) = (u64::from(redundancy.data_shards), u64::from(redundancy.parity_shards));
    let have = stores.len() as u64;
    if of(merged, "auto-fill", values::switch)? {
        while stores.len() < redundancy.stores() {
            let Some(StoreAddress::Redis(last)) = stores.last() else { break };
            let next = last.on_next_port().ok_or(Contradiction::NoPortsLeft { have, k, m })?;
            stores.push(StoreAddress::Redis(next));
        }
    }
    if (stores.len() as u64) < k + m {
        return Err(Contradiction::TooFewStores { have, k, m }.into());
    }
    if let Some(store) = store_twice(&stores) {
        return Err(Contradiction::SameStoreTwice { address: store.to_string() }.into());
    }
    Ok(Storage::Stores(stores))
}

/// The first store that is there twice, as far as can be told. Stores in memory are named alike, and are others.
pub(crate) fn store_twice(stores: &[StoreAddress]) -> Option<&StoreAddress> {
    let mut all = stores.iter().enumerate();
    let twice = |(at, store): &(usize, &StoreAddress)| {
        **store != StoreAddress::Memory && stores.iter().skip(at + 1).any(|other| same_store(store, other))
    };
    all.find(twice).map(|(_, store)| store)
}

/// Whether two addresses mean one store, as far as can be told.
fn same_store(one: &StoreAddress, other: &StoreAddress) -> bool {
    match (one, other) {
        (StoreAddress::Directory(one), StoreAddress::Directory(other)) => {
            let real = |path: &PathBuf| {
                let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.clone());
                path.canonicalize().unwrap_or_else(|_| absolute())
            };
            real(one).components().eq(real(other).components())
        }
        (StoreAddress::Redis(one), StoreAddress::Redis(other)) => one.place() == other.place(),
        _ => one == other,
    }
}

fn store_tls(merged: &Merged) -> Result<StoreTlsSettings, SettingsError> {
    let client = pair(merged, "store-certificate-file", "store-key-file")?;
    Ok(StoreTlsSettings { ca_file: file(merged, "store-ca-file")?, client })
}

/// The name of a file.
fn file(merged: &Merged, key: &'static str) -> Result<Option<PathBuf>, SettingsError> {
    merged.parsed(key, |text| some_text(text).map(PathBuf::from))
}

/// A certificate and its key, both or none.
fn pair(
    merged: &Merged,
    certificate: &'static str,
    key: &'static str,
) -> Result<Option<(PathBuf, PathBuf)>, SettingsError> {
    match (file(merged, certificate)?, file(merged, key)?) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Contradiction::HalfSet { one: certificate, other: key }.into()),
        (None, Some(_)) => Err(Contradiction::HalfSet { one: key, other: certificate }.into()),
    }
}

fn server_tls(merged: &Merged) -> Result<Option<ServerTlsSettings>, SettingsError> {
    let client_ca = file(merged, "tls-client-ca-file")?;
    let rules = merged.parsed("tls-permissions", |text| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let rules = parts.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        // No rules would permit everything, and who writes an empty list hardly means that.
        if rules.is_empty() { Err(ValueFault::Empty) } else { Ok(rules) }
    })?;
    if rules.is_some() && client_ca.is_none() {
        let (setting, needs) = ("tls-permissions", "tls-client-ca-file");
        return Err(Contradiction::SettingAlone { setting, needs }.into());
    }
    match pair(merged, "tls-certificate-file", "tls-key-file")? {
        Some((certificate, key)) => Ok(Some(ServerTlsSettings {
            files: TlsFiles { certificate, key, client_ca },
            permissions: Permissions::new(rules.unwrap_or_default()),
        })),
        None if client_ca.is_some() => {
            let (setting, needs) = ("tls-client-ca-file", "tls-certificate-file");
            Err(Contradiction::SettingAlone { setting, needs }.into())
        }
        None => Ok(None),
    }
}

fn client_tls(merged: &Merged) -> Result<Option<ClientTlsSettings>, SettingsError> {
    let client = pair(merged, "client-certificate-file", "client-key-file")?;
    let server_name = merged.parsed("server-name", |text| {
        let name = some_text(text)?;
        let is_host = is_host_name(&name) || name.parse::<IpAddr>().is_ok();
        if is_host { Ok(name) } else { Err(ValueFault::HostName) }
    })?;
    let alone = match (&client, &server_name) {
        (Some(_), _) => Some("client-certificate-file"),
        (None, Some(_)) => Some("server-name"),
        (None, None) => None,
    };
    match (file(merged, "server-ca-file")?, alone) {
        (Some(ca_file), _) => Ok(Some(ClientTlsSettings { ca_file, client, server_name })),
        // Silently speaking plain TCP would be the worst answer.
        (None, Some(setting)) => Err(Contradiction::SettingAlone { setting, needs: "server-ca-file" }.into()),
        (None, None) => Ok(None),
    }
}

fn format1_keys(merged: &Merged) -> Result<Option<Format1KeySettings>, SettingsError> {
    // Every byte of the key counts, spaces too.
    let secret = |key| merged.parsed(key, |text| Ok(Secret::new(text)));
    match (secret("private-key")?, secret("nonce")?) {
        (Some(private_key), Some(nonce)) => {
            let nonce = Secret::new(nonce.reveal().trim());
            AesDecrypter::new(private_key.reveal().as_bytes(), nonce.reveal())
                .map_err(Contradiction::Format1Keys)?;
            Ok(Some(Format1KeySettings { private_key, nonce }))
        }
        (None, None) => Ok(None),
        _ => Err(Contradiction::HalfOfFormat1Keys.into()),
    }
}

/// Whether format 1 can be written.
fn format1(storage: &Storage, stores: usize, keys: bool) -> Result<(), Contradiction> {
    let all: &[StoreAddress] = match storage {
        Storage::Embedded { .. } => return Err(Contradiction::Format1Embedded),
        Storage::Stores(all) => all,
        Storage::Documents => &[], // each cluster is looked at when it is used
    };
    let other = all.iter().take(stores).find(|store| matches!(store, StoreAddress::Directory(_)));
    match (other, keys) {
        (Some(other), _) => Err(Contradiction::Format1Store { address: other.to_string() }),
        (None, false) => Err(Contradiction::Format1WithoutKeys),
        (None, true) => Ok(()),
    }
}

fn limits(merged: &Merged) -> Result<LimitSettings, SettingsError> {
    let size = |text: &str| {
        let bytes = values::size(text)?;
        usize::try_from(bytes).map_err(|_| ValueFault::Size)
    };
    let limits = LimitSettings {
        // A message's length is 32 bits in places, and far less than that is already no block of a disk.
        max_block_bytes: of(merged, "max-block-size", |text| {
            size(text).and_then(|bytes| {
                if bytes <= 1 << 28 { Ok(bytes) } else { Err(ValueFault::OneOf("at most 256MiB")) }
            })
        })?,
        max_unflushed_bytes: of(merged, "max-unflushed-bytes", size)?,
        max_unflushed_bytes_per_vdisk: of(merged, "max-unflushed-bytes-per-vdisk", size)?,
        max_window_bytes: of(merged, "max-window-bytes", size)?,
        max_window_bytes_per_vdisk: of(merged, "max-window-bytes-per-vdisk", size)?,
        max_connections: of(merged, "max-connections", |text| count(text, 1, 1 << 20))?,
        max_newcomers: of(merged, "max-newcomers", |text| count(text, 1, 1 << 20))?,
        max_message_bytes: of(merged, "max-message-bytes", size)?,
        handshake_timeout: of(merged, "handshake-timeout", values::duration)?,
        open_timeout: of(merged, "open-timeout", values::duration)?,
        message_timeout: of(merged, "message-timeout", values::duration)?,
        write_timeout: of(merged, "write-timeout", values::duration)?,
        idle_timeout: of(merged, "idle-timeout", values::duration_or_off)?,
        keepalive: of(merged, "keepalive", values::duration_or_off)?,
        vdisk_idle_timeout: of(merged, "vdisk-idle-timeout", values::duration)?,
        shutdown_timeout: of(merged, "shutdown-timeout", values::duration)?,
    };
    let sizes = [
        (
            "max-unflushed-bytes-per-vdisk",
            limits.max_unflushed_bytes_per_vdisk,
            "max-unflushed-bytes",
            limits.max_unflushed_bytes,
        ),
        (
            "max-window-bytes-per-vdisk",
            limits.max_window_bytes_per_vdisk,
            "max-window-bytes",
            limits.max_window_bytes,
        ),
    ];
    for (one, of_one, all, of_all) in sizes {
        if of_one < limits.max_block_bytes.saturating_add(BLOCK_ROOM) {
            return Err(Contradiction::NoRoomForABlock { setting: one, block: limits.max_block_bytes }.into());
        }
        if of_one > of_all {
            return Err(Contradiction::VdiskAboveAll { one, all }.into());
        }
    }
    Ok(limits)
}

fn logging(merged: &Merged) -> Result<LogSettings, SettingsError> {
    let filter = of(merged, "log-level", |text| {
        let text = some_text(text)?;
        // A lone word that is no level would be taken for the name of a part, and everything else be silent.
        let words = ["error", "warn", "info", "debug", "trace", "off"];
        let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let level = words.iter().any(|word| text.eq_ignore_ascii_case(word));
        if word && !level || EnvFilter::builder().parse(&text).is_err() {
            return Err(ValueFault::LogFilter);
        }
        Ok(text)
    })?;
    let format = of(merged, "log-format", |text| match text.trim() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(ValueFault::OneOf("text or json")),
    })?;
    let filter_is_set = merged.given("log-level")?.is_some_and(|given| given.place != BY_DEFAULT);
    Ok(LogSettings { filter, filter_is_set, format })
}

/// A setting that has a default, so that it is always there.
fn of<T>(
    merged: &Merged,
    key: &'static str,
    parse: impl FnOnce(&str) -> Result<T, ValueFault>,
) -> Result<T, SettingsError> {
    let value = merged.parsed(key, parse)?;
    value.ok_or_else(|| SettingsError::value(key, None, BY_DEFAULT, ValueFault::Empty))
}

fn count(text: &str, min: u64, max: u64) -> Result<usize, ValueFault> {
    let number = values::number(text, min, max)?;
    usize::try_from(number).map_err(|_| ValueFault::Number { min, max })
}

fn some_text(text: &str) -> Result<String, ValueFault> {
    match text.trim() {
        "" => Err(ValueFault::Empty),
        text => Ok(text.to_owned()),
    }
}
