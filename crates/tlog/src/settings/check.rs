//! From texts to settings that make sense together.

use std::path::PathBuf;

use tlog_config::{Secret, StoreAddress};
use tlog_crypto::format1::AesDecrypter;
use tracing_subscriber::EnvFilter;

use super::layers::{BY_DEFAULT, Merged};
use super::values::{self, ListenAddress, ValueFault};
use super::{
    Format, Format1KeySettings, LimitSettings, LogFormat, LogSettings, RedundancySettings, Settings,
    SettingsError, Storage, StoreTlsSettings,
};

/// Shards that one aggregation can have at most: the erasure code counts in bytes.
const MAX_SHARDS: u64 = 255;

/// Most blocks in one aggregation.
const MAX_FLUSH_SIZE: u64 = 1 << 20;

/// Room that a block takes beside its data, generously.
const BLOCK_ROOM: usize = 64 << 10;

/// Settings that make no sense together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// k = 0.
    #[error("data-shards is 0; it must be at least 1 (4 is usual)")]
    NoDataShards,
    /// k + m > 255.
    #[error(
        "data-shards {k} and parity-shards {m} are {} stores; at most {MAX_SHARDS} are possible, lower one of them",
        k + m
    )]
    TooManyShards {
        /// Data shards.
        k: u64,
        /// Parity shards.
        m: u64,
    },
    /// W out of its bounds.
    #[error(
        "write-quorum is {w}; with data-shards {k} and parity-shards {m} it must be {}: fewer would lose acknowledged data \
         with the first store, more stores than there are can't answer",
        quorum_range(*k, *m)
    )]
    WriteQuorum {
        /// Stores that must hold an aggregation.
        w: u64,
        /// Data shards.
        k: u64,
        /// Parity shards.
        m: u64,
    },
    /// flush-size = 0.
    #[error("flush-size is 0, so nothing would ever be flushed; set it to 1 or more (25 is usual)")]
    FlushSizeZero,
    /// Fewer stores than shards.
    #[error(
        "storage names {have} stores, and data-shards {k} + parity-shards {m} need {}; add {} or lower data-shards or \
         parity-shards",
        k + m,
        k + m - have
    )]
    TooFewStores {
        /// Stores named.
        have: u64,
        /// Data shards.
        k: u64,
        /// Parity shards.
        m: u64,
    },
    /// No ports are left for the stores that auto-fill adds.
    #[error(
        "storage names {have} stores, and data-shards {k} + parity-shards {m} need {}; auto-fill would go past port 65535, name \
         them all",
        k + m
    )]
    NoPortsLeft {
        /// Stores named.
        have: u64,
        /// Data shards.
        k: u64,
        /// Parity shards.
        m: u64,
    },
    /// Half of a client certificate.
    #[error("store-certificate-file and store-key-file go together; set both or none")]
    HalfACertificate,
    /// Half of the keys of format 1.
    #[error("private-key and nonce are both needed for format 1; set the other one too, or none")]
    HalfOfFormat1Keys,
    /// Format 1 without its keys.
    #[error("format 1 needs private-key and nonce, those that the other servers and readers have")]
    Format1WithoutKeys,
    /// Keys of format 1 that are none.
    #[error("{0}")]
    Format1Keys(#[source] tlog_crypto::format1::ConfigError),
    /// Format 1 where it cannot be.
    #[error(
        "format 1 is on Redis servers alone, and storage has {address}; name Redis servers, or use format 2"
    )]
    Format1Store {
        /// Another kind of store.
        address: String,
    },
    /// Format 1 on the embedded store.
    #[error("format 1 is on Redis servers alone; set storage to some, or use format 2")]
    Format1Embedded,
    /// One store twice: its loss would take two shards.
    #[error("storage names {address} twice; each shard needs a store of its own")]
    SameStoreTwice {
        /// Which one.
        address: String,
    },
    /// A store in memory where stores must be durable.
    #[error(
        "require-durable-stores is set, and a store in memory forgets everything; use file:DIRECTORY or a Redis server with appendfsync always"
    )]
    MemoryNotDurable,
    /// One port for two.
    #[error(
        "admin-listen and listen are both {address}; give admin-listen a port of its own, such as 127.0.0.1:11212"
    )]
    SameAddressTwice {
        /// Which one.
        address: String,
    },
    /// One vdisk may hold more than all.
    #[error("{one} is above {all}, which bounds all vdisks together; lower the first or raise the second")]
    VdiskAboveAll {
        /// The setting for one vdisk.
        one: &'static str,
        /// The setting for all.
        all: &'static str,
    },
    /// A block would never fit.
    #[error(
        "{setting} has no room for the largest block (max-block-size is {block} bytes) and would stop its client for ever; \
         raise it to at least {}, or lower max-block-size",
        block + BLOCK_ROOM
    )]
    NoRoomForABlock {
        /// Which bound.
        setting: &'static str,
        /// The largest block.
        block: usize,
    },
}

/// What a later version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Documents of vdisks and clusters.
    #[error("this version has no config-source yet; leave it out, and set storage for all vdisks")]
    ConfigSource,
    /// Slave clusters.
    #[error("this version has no slave-sync yet; leave it off")]
    SlaveSync,
}

fn quorum_range(k: u64, m: u64) -> String {
    match (k + 1, k + m) {
        (_, all) if m == 0 => format!("{all}, all of them"),
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("from {least} to {most}"),
    }
}

pub(super) fn settings(merged: &Merged) -> Result<Settings, SettingsError> {
    not_yet(merged)?;
    let redundancy = redundancy(merged)?;
    let require_durable_stores = of(merged, "require-durable-stores", values::switch)?;
    let data_dir = of(merged, "data-dir", |text| some_text(text).map(PathBuf::from))?;
    let storage = storage(merged, &redundancy, data_dir.clone())?;
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
    Ok(Settings {
        listen,
        admin_listen,
        server_id: of(merged, "server-id", some_text)?,
        data_dir,
        storage,
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
        check_stores_every: of(merged, "check-stores-every", values::duration)?,
        in_flight: of(merged, "in-flight", |text| count(text, 1, 1024))?,
        key_file: merged.parsed("key-file", |text| some_text(text).map(PathBuf::from))?,
        limits: limits(merged)?,
        logging: logging(merged)?,
    })
}

fn not_yet(merged: &Merged) -> Result<(), SettingsError> {
    if merged.given("config-source")?.is_some() {
        return Err(NotYet::ConfigSource.into());
    }
    if of(merged, "slave-sync", values::switch)? {
        return Err(NotYet::SlaveSync.into());
    }
    Ok(())
}

fn redundancy(merged: &Merged) -> Result<RedundancySettings, SettingsError> {
    // Read wider than they can be, so that what is too much gets a sentence about both.
    let k = of(merged, "data-shards", |text| values::number(text, 0, 1 << 32))?;
    let m = of(merged, "parity-shards", |text| values::number(text, 0, 1 << 32))?;
    let w = merged.parsed("write-quorum", |text| values::number(text, 0, 1 << 32))?;
    if k == 0 {
        return Err(Contradiction::NoDataShards.into());
    }
    let too_many = Contradiction::TooManyShards { k, m };
    if k + m > MAX_SHARDS {
        return Err(too_many.into());
    }
    let w = w.unwrap_or(k + m.div_ceil(2));
    let legal = if m == 0 { w == k } else { k < w && w <= k + m };
    if !legal {
        return Err(Contradiction::WriteQuorum { w, k, m }.into());
    }
    match (u8::try_from(k), u8::try_from(m), u8::try_from(w)) {
        (Ok(data_shards), Ok(parity_shards), Ok(write_quorum)) => {
            Ok(RedundancySettings { data_shards, parity_shards, write_quorum })
        }
        _ => Err(too_many.into()),
    }
}

fn storage(
    merged: &Merged,
    redundancy: &RedundancySettings,
    data_dir: PathBuf,
) -> Result<Storage, SettingsError> {
    let stores = merged.parsed("storage", |text| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let stores: Result<Vec<_>, _> = parts.map(StoreAddress::parse).collect();
        Ok(stores?)
    })?;
    let Some(mut stores) = stores else {
        return Ok(Storage::Embedded { data_dir });
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
    for (at, store) in stores.iter().enumerate() {
        if *store != StoreAddress::Memory && stores.iter().skip(at + 1).any(|other| same(store, other)) {
            return Err(Contradiction::SameStoreTwice { address: store.to_string() }.into());
        }
    }
    Ok(Storage::Stores(stores))
}

/// Whether two addresses mean one store, as far as can be told.
fn same(one: &StoreAddress, other: &StoreAddress) -> bool {
    match (one, other) {
        (StoreAddress::Directory(one), StoreAddress::Directory(other)) => {
            let real = |path: &PathBuf| {
                let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.clone());
                path.canonicalize().unwrap_or_else(|_| absolute())
            };
            real(one).components().eq(real(other).components())
        }
        // Another user or password does not make it another store.
        (StoreAddress::Redis(one), StoreAddress::Redis(other)) => {
            let host = |host: &str| host.to_lowercase().replace("localhost", "127.0.0.1");
            host(&one.host) == host(&other.host) && (one.port, one.database) == (other.port, other.database)
        }
        _ => one == other,
    }
}

fn store_tls(merged: &Merged) -> Result<StoreTlsSettings, SettingsError> {
    let file = |key| merged.parsed(key, |text| some_text(text).map(PathBuf::from));
    let client = match (file("store-certificate-file")?, file("store-key-file")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(Contradiction::HalfACertificate.into()),
    };
    Ok(StoreTlsSettings { ca_file: file("store-ca-file")?, client })
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
    let Storage::Stores(all) = storage else { return Err(Contradiction::Format1Embedded) };
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
