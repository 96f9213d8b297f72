//! How the server and the tool are set up.
//!
//! ```text
//! defaults  <  tlog.toml (or -c FILE)  <  TLOG_* variables  <  flags      each wins over those before it
//! ```
//!
//! Every setting exists in every layer under one name: `flush-size` in the file, `TLOG_FLUSH_SIZE` in the environment,
//! `--flush-size` on the command line. [`SETTINGS`] is the table that all of this, the default file and
//! `docs/settings.md` are made from. `tlog-server` and `tlog` take the same settings, so the tool run beside a server finds
//! the same log.

mod check;
mod contradiction;
mod document;
mod error;
mod flags;
mod layers;
mod table;
mod values;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use check::{redundancy_of, store_twice};
pub use contradiction::Contradiction;
pub use document::{default_file, markdown};
pub use error::SettingsError;
pub use flags::SettingsArgs;
pub use table::{DEFAULT_FILE, Group, Kind, Preset, SETTINGS, Setting};
pub use values::{ListenAddress, Size, TimeSpan, ValueFault, show_size};

use crate::retention::background::Retention;
use layers::{Merged, Sources};
use tlog_config::{EtcdOptions, Secret, SourceAddress, StoreAddress};
use tlog_server::{Permissions, TlsFiles};

/// Settings that make sense together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the server listens.
    pub listen: ListenAddress,
    /// How the server speaks TLS; none: plain TCP.
    pub tls: Option<ServerTlsSettings>,
    /// How clients of the server speak TLS to it; none: plain TCP.
    pub client_tls: Option<ClientTlsSettings>,
    /// Where metrics, health and status are served; none: nowhere.
    pub admin_listen: Option<ListenAddress>,
    /// What the server calls itself.
    pub server_id: String,
    /// The embedded store, and a key that is not named.
    pub data_dir: PathBuf,
    /// Where the log is kept.
    pub storage: Storage,
    /// Where the documents of vdisks and clusters come from; none: every vdisk is served.
    pub documents: Option<DocumentSettings>,
    /// Whether slave clusters are kept up to date.
    pub slave_sync: bool,
    /// k, m and W.
    pub redundancy: RedundancySettings,
    /// Whether a store that forgets is refused.
    pub require_durable_stores: bool,
    /// How rediss:// stores are trusted.
    pub store_tls: StoreTlsSettings,
    /// What is written.
    pub format: Format,
    /// Keys of stored format 1; none where such history is not read.
    pub format1_keys: Option<Format1KeySettings>,
    /// Blocks in an aggregation; at least 1.
    pub flush_size: usize,
    /// How long a block waits for others; more than zero.
    pub flush_time: Duration,
    /// Aggregations of one vdisk being stored at once; at least 1.
    pub in_flight: usize,
    /// How long an aggregation may take to be held by W stores.
    pub commit_timeout: Duration,
    /// How long one operation may take on one store.
    pub store_timeout: Duration,
    /// Bytes per second and vdisk that repair reads.
    pub repair_rate: u64,
    /// How often every log is scrubbed; none: only when asked.
    pub scrub_interval: Option<Duration>,
    /// Bytes per second that these scrubs read.
    pub scrub_rate: u64,
    /// How often it is proven of every vdisk that it can be restored; none: only when asked.
    pub verify_restore_every: Option<Duration>,
    /// Bytes per second that these proofs read.
    pub verify_restore_rate: u64,
    /// Which history the server keeps; none: all of it.
    pub retention: Option<Retention>,
    /// How often an idle log asks its stores whether they are still there.
    pub check_stores_every: Duration,
    /// File with the master key or keys; none: that of the embedded store.
    pub key_file: Option<PathBuf>,
    /// Bounds on memory and time.
    pub limits: LimitSettings,
    /// What is logged, and how.
    pub logging: LogSettings,
}

/// Where the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// k + m directories in one data directory, with a key that is made at first start.
    Embedded {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// These, k + m of them or more: entry i holds shard i, what is beyond the shards is not used.
    Stores(Vec<StoreAddress>),
    /// Each vdisk's in the cluster that the documents say.
    Documents,
}

/// Where the documents of vdisks and clusters come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentSettings {
    /// A file, or etcd.
    pub source: SourceAddress,
    /// How etcd lets us in.
    pub etcd: EtcdOptions,
}

/// Into how many shards an aggregation is split, and how many stores must have it before it is acknowledged.
///
/// `k >= 1`, `k + m <= 255`, `k < w <= k + m` (`w = k` where m = 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedundancySettings {
    /// k: any so many shards rebuild the aggregation.
    pub data_shards: u8,
    /// m: so many more are stored.
    pub parity_shards: u8,
    /// W: stores that must hold an aggregation before it is acknowledged.
    pub write_quorum: u8,
}

impl RedundancySettings {
    /// n = k + m.
    pub fn stores(&self) -> usize {
        usize::from(self.data_shards) + usize::from(self.parity_shards)
    }
}

/// How the server speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// What it shows, and whom it lets in.
    pub files: TlsFiles,
    /// Who may write what. Empty where there is no client CA.
    pub permissions: Permissions,
}

/// How clients of the server, such as `tlog record`, speak TLS to it. All files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsSettings {
    /// Certificates that the server's own must come from.
    pub ca_file: PathBuf,
    /// Certificate that the server is shown, and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Name or IP address that the server's certificate must have; none: the host that is connected to.
    pub server_name: Option<String>,
}

/// How rediss:// stores are trusted, and what they are shown. All of it PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreTlsSettings {
    /// Certificates that a server's own must come from; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The format in which aggregations are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// That of older servers.
    One,
    /// Ours.
    Two,
}

/// Keys of stored format 1, checked: 32 bytes, and 24 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format1KeySettings {
    /// The private key.
    pub private_key: Secret,
    /// The nonce.
    pub nonce: Secret,
}

/// Bounds on memory and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitSettings {
    /// Bytes of data of one block.
    pub max_block_bytes: usize,
    /// Bytes that are not durable yet, of all vdisks.
    pub max_unflushed_bytes: usize,
    /// The same of one vdisk; not above that of all.
    pub max_unflushed_bytes_per_vdisk: usize,
    /// Bytes that wait for an earlier block, of all vdisks.
    pub max_window_bytes: usize,
    /// The same of one vdisk; not above that of all.
    pub max_window_bytes_per_vdisk: usize,
    /// Memory of large messages that are just arriving.
    pub max_message_bytes: usize,
    /// Connections at once that have said who they are.
    pub max_connections: usize,
    /// And those that have not.
    pub max_newcomers: usize,
    /// For the handshake to arrive.
    pub handshake_timeout: Duration,
    /// For a log to open.
    pub open_timeout: Duration,
    /// For a message that has begun to arrive whole.
    pub message_timeout: Duration,
    /// For a client to take an answer.
    pub write_timeout: Duration,
    /// For a connection to be silent; none: for ever.
    pub idle_timeout: Option<Duration>,
    /// Silence after which TCP asks; none: the system's setting.
    pub keepalive: Option<Duration>,
    /// For a log without connection to stay open.
    pub vdisk_idle_timeout: Duration,
    /// For a stopping server to make durable what it holds.
    pub shutdown_timeout: Duration,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A legal filter: levels, by part where wanted.
    pub filter: String,
    /// Whether somebody set it. A person's tool says less than a server where nobody did.
    pub filter_is_set: bool,
    /// As what.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

impl Settings {
    /// From the defaults, the file, the environment of this process, and these flags.
    pub fn load(args: &SettingsArgs) -> Result<Self, SettingsError> {
        Self::from_merged(&Sources::of_process(args).merge()?)
    }

    /// From the defaults and these flags alone: for the demo and for tests.
    pub fn from_flags(args: &SettingsArgs) -> Result<Self, SettingsError> {
        Self::from_merged(&Sources { args, env: Vec::new(), default_file: None }.merge()?)
    }

    /// From the defaults and this file alone: what `tlog config --check` looks at.
    pub fn from_file(path: &Path) -> Result<Self, SettingsError> {
        Self::from_merged(&Sources::only_file(path)?)
    }

    fn from_merged(merged: &Merged) -> Result<Self, SettingsError> {
        check::settings(merged)
    }

    /// The k + m stores: number i holds shard i. None where each vdisk has its own.
    pub fn stores(&self) -> Vec<StoreAddress> {
        let n = self.redundancy.stores();
        match &self.storage {
            Storage::Embedded { data_dir } => {
                (0..n).map(|i| StoreAddress::Directory(data_dir.join(format!("store-{i}")))).collect()
            }
            Storage::Stores(stores) => stores.iter().take(n).cloned().collect(),
            Storage::Documents => Vec::new(),
        }
    }

    /// What a person should hear at start, though it is allowed.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match &self.tls {
            _ if self.listen.is_loopback() => {}
            None => warnings.push(format!(
                "listening on {}: plain TCP without passwords or encryption, whoever reaches this address can write to every \
                 vdisk; keep it on a network that you trust, or set tls-certificate-file",
                self.listen
            )),
            Some(tls) if tls.files.client_ca.is_none() => warnings.push(format!(
                "listening on {}: clients need no certificate, whoever reaches this address can write to every vdisk; set \
                 tls-client-ca-file",
                self.listen
            )),
            Some(_) => {}
        }
        if let Some(admin) = self.admin_listen.as_ref().filter(|admin| !admin.is_loopback()) {
            warnings.push(format!("the admin endpoint on {admin} is plain HTTP without passwords"));
        }
        if self.stores().contains(&StoreAddress::Memory) {
            warnings.push("a store in memory forgets everything when the server stops".to_owned());
        }
        if self.format == Format::One {
            warnings.push(
                "writing format 1: its encryption has one nonce for everything, so that two aggregations give each other away \
                 and can be forged; nothing fences a second server, and every store must answer each write. Only for living \
                 beside older readers"
                    .to_owned(),
            );
        }
        if let Storage::Stores(stores) = &self.storage
            && stores.len() > self.redundancy.stores()
        {
            warnings.push(format!(
                "storage names {} stores; only the first {} are used (data-shards + parity-shards)",
                stores.len(),
                self.redundancy.stores()
            ));
        }
        if self.redundancy.parity_shards == 0 {
            warnings.push("parity-shards is 0: the loss of any one store loses everything".to_owned());
        }
        warnings
    }
}

/// The effective settings as TOML, and where each came from, as a comment. Secrets are not shown.
pub fn effective(args: &SettingsArgs) -> Result<String, SettingsError> {
    let merged = Sources::of_process(args).merge()?;
    check::settings(&merged)?;
    document::effective(&merged)
}

impl fmt::Display for RedundancySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}, write quorum {}", self.data_shards, self.parity_shards, self.write_quorum)
    }
}

#[cfg(test)]
mod tests;

/// Compares a generated part of a document with what it should be; with `UPDATE_DOCS` set, writes it.
#[cfg(test)]
pub(crate) fn check_documented(document: &str, part: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(document);
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- begin: {part} -->\n"), format!("<!-- end: {part} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    let expected = format!("\n{expected}\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
    } else {
        assert_eq!(
            found, expected,
            "docs/{document} is stale; run: UPDATE_DOCS=1 cargo test -p tlog documentation"
        );
    }
}
