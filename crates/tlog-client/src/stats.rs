//! Numbers of one client.

/// What one client has done so far. All numbers count from the first connect and never fall, but for the two `unflushed_*`.
///
/// A block counts as durable here before its handle resolves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Blocks handed over that are not durable yet.
    pub unflushed_blocks: u64,
    /// Bytes of data in them.
    pub unflushed_bytes: u64,
    /// Blocks given to the connection for the first time.
    pub sent_blocks: u64,
    /// Bytes of data in them.
    pub sent_bytes: u64,
    /// Blocks given to the connection again.
    pub resent_blocks: u64,
    /// Blocks that a server said it holds in memory; each server that a block is sent to counts.
    pub received_blocks: u64,
    /// Blocks that the server said are durable.
    pub durable_blocks: u64,
    /// Bytes of data in them.
    pub durable_bytes: u64,
    /// How often a server refused a block; it is sent again.
    pub refused_blocks: u64,
    /// What the server said of blocks that was said before.
    pub repeated_responses: u64,
    /// What the server said of blocks that were never sent, or in answer to commands never given. Ignored. Not 0: one of
    /// the two has a bug.
    pub unexpected_responses: u64,
    /// How often a server accepted after a connection was lost.
    pub reconnects: u64,
    /// How often a server was tried for that and did not accept.
    pub failed_reconnects: u64,
}
