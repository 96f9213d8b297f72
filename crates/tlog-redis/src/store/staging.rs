//! How the value of an append gets to the server without going through the script.
//!
//! A script's arguments are copied into its language and out of it again: for a shard of 25 KB that takes longer than all else that the
//! append does. So the value is put under a name of its own first, in the same breath, and the script gives it the shard's name, or
//! not. What is left where a script refuses or a client dies expires; nobody looks at it.

use std::sync::atomic::{AtomicU64, Ordering};

use redis::Cmd;

use crate::layout::Value;

/// From this many bytes on it is worth a second command.
const WORTH_IT: usize = 4 << 10;
/// Longer than any append takes. One whose value has expired sends it again.
const LIFETIME_MS: u64 = 60_000;

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

/// The command that puts a value there.
pub(super) fn put(key: &str, value: &Value<'_>) -> Cmd {
    // All at once: one that grows after the value is in it copies that once more.
    let mut command = Cmd::with_capacity(5, "SET".len() + key.len() + value.len() + "PX".len() + 20);
    command.arg("SET").arg(key).arg(value).arg("PX").arg(LIFETIME_MS);
    command
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tlog_proto::{AggregationId, Epoch};
    use tlog_store::Shard;

    use super::*;

    #[test]
    fn a_value_is_put_with_its_lifetime() {
        let (head, payload) = (Bytes::from_static(b"head"), Bytes::from(vec![7; WORTH_IT]));
        let shard = Shard { epoch: Epoch(1), id: AggregationId([1; 32]), head, payload };
        let value = Value::of(&shard, "key").unwrap();
        let command = put("in:x", &value);
        let arguments: Vec<usize> = command
            .args_iter()
            .map(|argument| match argument {
                redis::Arg::Simple(bytes) => bytes.len(),
                _ => panic!("another kind of argument"),
            })
            .collect();
        assert_eq!(arguments, [3, 4, value.len(), 2, 5]);
    }
}
