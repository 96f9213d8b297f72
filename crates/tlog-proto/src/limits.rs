//! What a reader of a stream accepts from a peer.

/// Bounds on a message, applied **before** memory is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest block, in bytes of data. Default 16 MiB.
    pub max_block_bytes: usize,
    /// Most segments in one message. Default 64; existing peers send 1 to a few. The parser has
    /// a bound of its own, 511.
    pub max_segments: usize,
}

impl Limits {
    /// Largest handshake, in bytes, whatever is accepted for blocks. Whoever connects can send one, so little memory
    /// is risked for it; it has room for a vdisk id and for all that later versions may append.
    pub const MAX_HANDSHAKE_BYTES: usize = 16 << 10;

    /// Room in a message for everything but block data: pointers, hash, alignment, far pointers.
    const MESSAGE_OVERHEAD: usize = 4096;

    /// Largest message, in bytes of all its segments.
    pub fn max_message_bytes(&self) -> usize {
        self.max_block_bytes.saturating_add(Self::MESSAGE_OVERHEAD)
    }

    /// The same limits, for a handshake.
    pub(crate) fn of_handshake(self) -> Self {
        let most = Self::MAX_HANDSHAKE_BYTES - Self::MESSAGE_OVERHEAD;
        Self { max_block_bytes: self.max_block_bytes.min(most), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_block_bytes: 16 << 20, max_segments: 64 }
    }
}
