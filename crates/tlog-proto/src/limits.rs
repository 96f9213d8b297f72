//! What a reader of a stream accepts from a peer.

/// Bounds on a message, applied **before** memory is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest block, in bytes of data. Default 16 MiB.
    pub max_block_bytes: usize,
    /// Most segments in one message. Default 64; existing peers send 1 to a few.
    pub max_segments: usize,
}

impl Limits {
    /// Room in a message for everything but block data: pointers, hash, alignment, far pointers.
    const MESSAGE_OVERHEAD: usize = 4096;

    /// Largest message, in bytes of all its segments.
    pub fn max_message_bytes(&self) -> usize {
        self.max_block_bytes.saturating_add(Self::MESSAGE_OVERHEAD)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_block_bytes: 16 << 20,
            max_segments: 64,
        }
    }
}
