//! Settings that are fine one by one, and make no sense together.

/// Shards that one aggregation can have at most: the erasure code counts in bytes.
pub(super) const MAX_SHARDS: u64 = 255;

/// Room that a block takes beside its data, generously.
pub(super) const BLOCK_ROOM: usize = 64 << 10;

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
    /// One of two settings that make sense together alone.
    #[error("{one} and {other} go together; set both or none")]
    HalfSet {
        /// The one that is set.
        one: &'static str,
        /// The one that is not.
        other: &'static str,
    },
    /// A setting that has no effect, and was surely meant to have one.
    #[error("{setting} does nothing without {needs}; set that too, or leave {setting} out")]
    SettingAlone {
        /// The one that is set.
        setting: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// Plain TCP on a network.
    #[error(
        "listening on {address} without TLS, whoever reaches it could read what is sent and write to every vdisk; set \
         tls-certificate-file and tls-key-file (and tls-client-ca-file, for clients with certificates alone), or listen on \
         127.0.0.1, or set allow-unencrypted-network if others cannot reach that network"
    )]
    UnencryptedNetwork {
        /// Where.
        address: String,
    },
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

fn quorum_range(k: u64, m: u64) -> String {
    match (k + 1, k + m) {
        (_, all) if m == 0 => format!("{all}, all of them"),
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("from {least} to {most}"),
    }
}
