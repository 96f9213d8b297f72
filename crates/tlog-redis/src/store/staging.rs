//! How the value of an append gets to the server without going through the script.
//!
//! A script's arguments are copied into its language and out of it again: for a shard of 25 KB that takes longer than all else that the
//! append does. So the value is put under a name of its own first, in the same breath, and the script gives it the shard's name, or
//! not. What is left where a script refuses or a client dies expires; nobody looks at it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::Value;

/// From this many bytes on it is worth a second command.
const WORTH_IT: usize = 4 << 10;
/// Longer than any append takes. One whose value has expired sends it again.
pub(super) const LIFETIME_MS: u64 = 60_000;

/// Names for values, which no other client uses.
#[derive(Debug)]
pub(super) struct Staging {
    /// Random; none where the system has no random numbers.
    writer: Option<u64>,
    next: AtomicU64,
}

impl Staging {
    pub(super) fn new() -> Self {
        let mut random = [0; 8];
        let writer = getrandom::fill(&mut random).ok().map(|()| u64::from_le_bytes(random));
        Self { writer, next: AtomicU64::new(0) }
    }

    /// A name for a value; none for one that goes through the script.
    pub(super) fn name(&self, value: &Value<'_>) -> Option<(u64, u64)> {
        let writer = self.writer.filter(|_| value.len() >= WORTH_IT)?;
        Some((writer, self.next.fetch_add(1, Ordering::Relaxed)))
    }
}
