//! Every setting there is: the one place that flags, environment variables, the default file and the documentation are
//! made from.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file; the flag and the environment variable follow from it.
    pub key: &'static str,
    /// For a secret: the key that names a file which has it.
    pub file_key: &'static str,
    /// The one-letter flag.
    pub short: Option<char>,
    /// What a help text calls the value.
    pub value_name: &'static str,
    /// What it is when nobody says.
    pub preset: Preset,
    /// What a person writes.
    pub kind: Kind,
    /// What it does. Plain sentences.
    pub help: &'static str,
    /// Under which heading it is shown.
    pub group: Group,
    /// Whether `tlog COMMAND -h` shows it, or only `--help`.
    pub everyday: bool,
}

/// What a setting is when nobody says.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    /// This, as a TOML literal.
    Is(&'static str),
    /// It has no value then; what that means, and an example as a TOML literal.
    Unset {
        /// What happens without it.
        means: &'static str,
        /// What it could be.
        example: &'static str,
    },
}

/// What a person writes as the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    One,
    /// Several, with commas between them; in the file also an array.
    List,
    /// `true` or `false`; as a flag the name alone means true.
    Switch,
    /// One value that must not be shown, and can also be read from a file.
    Secret,
}

/// What belongs together in the default file and the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Where the server is reached.
    Server,
    /// How the server is spoken to.
    Client,
    /// Where the log is kept.
    Storage,
    /// Vdisks and clusters, from documents.
    Documents,
    /// When blocks become durable.
    Writing,
    /// Keys and format.
    Keys,
    /// What is held in memory, and for how long.
    Limits,
    /// What it says of itself.
    Logging,
}

impl Group {
    /// In the order in which they are shown.
    pub const ALL: [Group; 8] = [
        Group::Server,
        Group::Client,
        Group::Storage,
        Group::Documents,
        Group::Writing,
        Group::Keys,
        Group::Limits,
        Group::Logging,
    ];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Server => "Server",
            Group::Client => "Speaking to the server",
            Group::Storage => "Storage",
            Group::Documents => "Documents of vdisks and clusters",
            Group::Writing => "Writing",
            Group::Keys => "Keys and format",
            Group::Limits => "Limits",
            Group::Logging => "Logging",
        }
    }
}

impl Setting {
    /// The environment variable, such as `TLOG_FLUSH_SIZE`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key.replace('-', "_").to_uppercase())
    }

    /// The setting of that key.
    pub fn find(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// The default or the example, as a TOML literal.
    pub fn literal(&self) -> &'static str {
        match self.preset {
            Preset::Is(literal) => literal,
            Preset::Unset { example, .. } => example,
        }
    }
}

/// What the name of every environment variable starts with.
pub(super) const ENV_PREFIX: &str = "TLOG_";

/// File that is read when no other is named and it is there.
pub const DEFAULT_FILE: &str = "tlog.toml";

macro_rules! settings {
    ($($group:ident / $key:literal $([$short:literal])? $value_name:literal $kind:ident
        $(= $default:literal)? $(($means:literal, $example:literal))? $($everyday:ident)? : $help:literal;)*) => {
        &[$(Setting {
            key: $key,
            file_key: concat!($key, "-file"),
            short: settings!(@short $($short)?),
            value_name: $value_name,
            preset: settings!(@preset $($default)? $(($means, $example))?),
            kind: Kind::$kind,
            help: $help,
            group: Group::$group,
            everyday: settings!(@everyday $($everyday)?),
        }),*]
    };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
    (@preset $default:literal) => { Preset::Is($default) };
    (@preset ($means:literal, $example:literal)) => { Preset::Unset { means: $means, example: $example } };
    (@everyday) => { false };
    (@everyday everyday) => { true };
}

/// All of them, in the order in which they are shown.
pub static SETTINGS: &[Setting] = settings! {
    Server / "listen" "ADDR" One = r#""127.0.0.1:11211""#:
        "Address and port that the server listens on; port 0 takes a free one. Anything but this machine's own addresses needs \
         TLS (tls-certificate-file), or allow-unencrypted-network.";
    Server / "tls-certificate-file" "FILE" One ("plain TCP", r#""/etc/tlog/server.pem""#):
        "PEM file with the server's certificate, followed by those that lead to its authority: with it the server speaks TLS, and \
         nothing else. Goes with tls-key-file. It is read again on SIGHUP.";
    Server / "tls-key-file" "FILE" One ("plain TCP", r#""/etc/tlog/server.key""#):
        "PEM file with the private key of tls-certificate-file, without a password.";
    Server / "tls-client-ca-file" "FILE" One ("clients need no certificate", r#""/etc/tlog/clients-ca.pem""#):
        "PEM file with the certificates of the authorities that clients' certificates must come from. Without it whoever reaches \
         the server can write to every vdisk, over TLS too.";
    Server / "tls-permissions" "NAME=VDISK,..." List ("every certificate of tls-client-ca-file may write every vdisk",
        r#"["backup.example.org=*", "hypervisor-1.example.org=vm-1-*"]"#):
        "Who may write what: NAME is a DNS name in the subjectAltName of the client's certificate, VDISK a vdisk id, with * for any \
         characters. What no rule permits is refused. Needs tls-client-ca-file.";
    Server / "allow-unencrypted-network" "BOOL" Switch = "false":
        "Lets the server listen on the network without TLS. Whoever reaches it can read and change what is sent, and write to every \
         vdisk: only for a network that is closed to others.";
    Server / "admin-listen" "ADDR" One ("no admin endpoint", r#""127.0.0.1:11212""#):
        "Address for /metrics, /healthz, /readyz, /status, scrubs, proofs and pins of a running server. Plain HTTP without \
         passwords.";
    Server / "server-id" "ID" One = r#""default""#:
        "What the server calls itself in the log and in /status.";

    Client / "server-ca-file" "FILE" One ("plain TCP", r#""/etc/tlog/ca.pem""#):
        "PEM file with the certificates of the authorities that the server's certificate must come from: with it tlog speaks TLS to \
         the server.";
    Client / "client-certificate-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.pem""#):
        "PEM file with the certificate that the server is shown. Goes with client-key-file.";
    Client / "client-key-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.key""#):
        "PEM file with the private key of client-certificate-file.";
    Client / "server-name" "NAME" One ("the host that is connected to", r#""tlog.example.org""#):
        "Name that the server's certificate must have.";

    Storage / "data-dir" "DIR" One = r#""tlog-data""# everyday:
        "Directory of the embedded store; store i is its subdirectory store-i. A key that key-file does not name is here too.";
    Storage / "storage" "ADDR,..." List ("the embedded store in data-dir",
        r#"["file:/disk-a/tlog", "file:/disk-b/tlog", "file:/disk-c/tlog", "file:/disk-d/tlog", "file:/disk-e/tlog", "file:/disk-f/tlog"]"#)
        everyday:
        "The stores, data-shards + parity-shards of them or more: entry i holds shard i, so the order matters. A Redis or \
         compatible server is host:port[@db], redis://[user:password@]host:port[/db] or rediss://... (TLS); others are \
         file:DIRECTORY and memory: (gone when the server stops). Put each on its own disk.";
    Storage / "auto-fill" "BOOL" Switch = "true":
        "Where storage names fewer stores than are needed and the last one is a Redis server, the missing ones are on its \
         host at the next ports: 127.0.0.1:6379 alone means ports 6379 to 6384. The server lists them at start.";
    Storage / "store-ca-file" "FILE" One ("the certificates of the system", r#""/etc/tlog/ca.pem""#):
        "PEM file with the certificates that a rediss:// server's own must come from.";
    Storage / "store-certificate-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.pem""#):
        "PEM file with the certificate that rediss:// servers are shown. Goes with store-key-file.";
    Storage / "store-key-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.key""#):
        "PEM file with the private key of store-certificate-file.";
    Storage / "data-shards" ['k'] "K" One = "4":
        "Into how many parts an aggregation is split; any so many stores are enough to read it.";
    Storage / "parity-shards" ['m'] "M" One = "2":
        "How many more parts are stored: so many stores may be lost.";
    Storage / "write-quorum" ['w'] "W" One ("data-shards + half of parity-shards, rounded up", "5"):
        "How many stores must hold an aggregation before it is acknowledged: above data-shards, at most all (with no \
         parity: all). At the moment of the acknowledgement W - K stores may be lost for good, and M as soon as the \
         others have caught up.";
    Storage / "require-durable-stores" "BOOL" Switch = "false":
        "Refuses to start with a store that may forget when it is restarted, or that does not tell: memory:, or a Redis without \
         appendonly yes and appendfsync always, or one that evicts. Without it they are warned of.";

    Documents / "config-source" "FILE or ENDPOINT,..." List ("every vdisk id is served, from the stores set here",
        r#"["/etc/tlog/vdisks.yaml"]"#):
        "Where the documents of vdisks and clusters come from: a YAML file, or etcd endpoints (http://host:2379, https://...). The \
         vdisks that they know are served, each from the storage cluster that they say, unless storage is set. They are followed \
         as they change; a file also on SIGHUP.";
    Documents / "etcd-user" "NAME" One ("no user", r#""tlog""#):
        "User that etcd lets in. Goes with etcd-password.";
    Documents / "etcd-password" "PASSWORD" Secret ("no user", r#""...""#):
        "The user's password. Also: etcd-password-file (TLOG_ETCD_PASSWORD_FILE, --etcd-password-file), a file that has it.";
    Documents / "etcd-ca-file" "FILE" One ("the certificates of the system", r#""/etc/tlog/ca.pem""#):
        "PEM file with the certificates that an https:// endpoint's own must come from.";
    Documents / "etcd-certificate-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.pem""#):
        "PEM file with the certificate that https:// endpoints are shown. Goes with etcd-key-file.";
    Documents / "etcd-key-file" "FILE" One ("no client certificate", r#""/etc/tlog/client.key""#):
        "PEM file with the private key of etcd-certificate-file.";
    Documents / "slave-sync" "BOOL" Switch = "false":
        "Keeps the slave storage cluster of every vdisk that has one up to date with its log. Needs config-source.";

    Writing / "flush-size" "N" One = "25":
        "Blocks in an aggregation; that many are flushed at once.";
    Writing / "flush-time" "DURATION" One = r#""25s""#:
        "How long a block waits for others before it is flushed anyway.";
    Writing / "commit-timeout" "DURATION" One = r#""30s""#:
        "How long an aggregation may take to be held by write-quorum stores. After that the vdisk is closed and its clients \
         are told (FlushFailed), so that they can go elsewhere or come back.";
    Writing / "store-timeout" "DURATION" One = r#""10s""#:
        "How long one store may take for one operation before it counts as away.";
    Writing / "repair-rate" "SIZE" One = r#""64MiB""#:
        "Bytes per second and vdisk that are read to fill in what a store missed, and by a scrub.";
    Writing / "scrub-interval" "DURATION" One = r#""off""#:
        "How often the server scrubs the log of every vdisk that it has open or finds on its stores; 'off' for only when asked.";
    Writing / "scrub-rate" "SIZE" One = r#""16MiB""#:
        "Bytes per second that the server's own scrubs read, of all vdisks together.";
    Writing / "verify-restore-every" "DURATION" One = r#""off""#:
        "How often the server proves of every vdisk that its newest moment can be restored: it reads and checks everything that a restore \
         would read, such as once in 24h, and tells in /status and metrics; 'off' for only when asked.";
    Writing / "verify-restore-rate" "SIZE" One = r#""16MiB""#:
        "Bytes per second that the server's proofs of restores read, of all vdisks together.";
    Writing / "keep-within" "DURATION" One = r#""off""#:
        "How far back every moment of every vdisk can be restored, such as 30d; older history is removed from the stores, but for what \
         keep-hourly, keep-daily and keep-marks name, as 'tlog prune' does it. 'off' keeps everything.";
    Writing / "keep-hourly" "N" One = "0":
        "With keep-within: of so many hours before, the last moment is kept.";
    Writing / "keep-daily" "N" One = "0":
        "With keep-within: of so many days before, by UTC, the last moment is kept.";
    Writing / "keep-marks" "BOOL" Switch = "true":
        "With keep-within: moments that have a mark are kept.";
    Writing / "prune-every" "DURATION" One = r#""1h""#:
        "With keep-within: how often the server looks whether there is history to remove, of the vdisks that clients have open.";
    Writing / "prune-rate" "SIZE" One = r#""16MiB""#:
        "With keep-within: bytes per second and vdisk that are written as images of what is kept in place of history.";
    Writing / "check-stores-every" "DURATION" One = r#""5s""#:
        "How often an open log that is not written to asks its stores whether they are still there.";
    Writing / "in-flight" "N" One = "8":
        "Aggregations of one vdisk that are being stored at the same time.";

    Keys / "key-file" "FILE" One ("tlog.key in data-dir; the embedded store makes it at its first start", r#""/etc/tlog/tlog.key""#)
        everyday:
        "File with the master key, 64 hex digits (made by 'tlog keygen'), or with several, one on each line: the first \
         seals what is new, the others open what is old. Without it the log can't be read: keep a copy elsewhere.";
    Keys / "format" "1|2" One = "2":
        "Format that aggregations are stored in. Format 1 is for living beside older servers, on Redis alone: one nonce for \
         everything makes its encryption weak, every store must answer each write, and nothing fences a second server. Old \
         history is read, and gone on from, with 2.";
    Keys / "private-key" "KEY" Secret ("none", r#""32 characters, as they were given ""#):
        "Private key of format 1, 32 bytes: to read history in that format, or write it. Also: private-key-file (TLOG_PRIVATE_KEY_FILE, --private-key-file), a file that has it.";
    Keys / "nonce" "HEX" Secret ("none", r#""000000000000000000000000""#):
        "Nonce of format 1, 24 hex digits. Also: nonce-file (TLOG_NONCE_FILE, --nonce-file), a file that has it.";

    Limits / "max-block-size" "SIZE" One = r#""16MiB""#:
        "Largest block that is accepted. A larger one closes the connection before memory is taken for it.";
    Limits / "max-unflushed-bytes" "SIZE" One = r#""512MiB""#:
        "Bytes of blocks, of all vdisks together, that may wait to become durable. At the bound the server stops reading, \
         so clients wait.";
    Limits / "max-unflushed-bytes-per-vdisk" "SIZE" One = r#""64MiB""#:
        "The same for one vdisk.";
    Limits / "max-window-bytes" "SIZE" One = r#""256MiB""#:
        "Bytes of blocks, of all vdisks together, that came out of order and wait for an earlier one.";
    Limits / "max-window-bytes-per-vdisk" "SIZE" One = r#""32MiB""#:
        "The same for one vdisk.";
    Limits / "max-message-bytes" "SIZE" One = r#""256MiB""#:
        "Memory of messages of more than 64 KiB, of all connections together, that are just arriving; each takes twice its \
         length. Those for which there is no room wait.";
    Limits / "max-connections" "N" One = "1024":
        "Connections at the same time that have said who they are; one more is refused.";
    Limits / "max-newcomers" "N" One = "1024":
        "Connections at the same time that have not said yet who they are. One more takes the place of the oldest of them, once \
         that has had a second.";
    Limits / "handshake-timeout" "DURATION" One = r#""10s""#:
        "How long a new connection may take to say who it is.";
    Limits / "open-timeout" "DURATION" One = r#""60s""#:
        "How long a client waits for the log of its vdisk to open, recovery included.";
    Limits / "message-timeout" "DURATION" One = r#""20s""#:
        "How long a message may take from its first byte to its last, and a second more for each 64 KiB of it that have come: \
         slow is fine, hardly moving is not.";
    Limits / "write-timeout" "DURATION" One = r#""20s""#:
        "How long a client may leave answers untaken before it is disconnected.";
    Limits / "idle-timeout" "DURATION" One = r#""off""#:
        "How long a connection may be silent before it is closed; 'off' for as long as it likes. A client whose disk \
         is not written to is silent too.";
    Limits / "keepalive" "DURATION" One = r#""30s""#:
        "Silence after which TCP asks whether the client still lives; 'off' leaves that to the system.";
    Limits / "vdisk-idle-timeout" "DURATION" One = r#""60s""#:
        "How long the log of a vdisk without a connection stays open.";
    Limits / "shutdown-timeout" "DURATION" One = r#""30s""#:
        "How long a stopping server tries to make durable what it holds.";

    Logging / "log-level" "FILTER" One = r#""info""# everyday:
        "error, warn, info, debug or trace; or parts with levels of their own, such as 'info,tlog_server=debug'.";
    Logging / "log-format" "text|json" One = r#""text""#:
        "Lines for people, or one JSON object on each line.";
};
