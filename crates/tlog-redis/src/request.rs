//! What goes out on a connection in one piece.

use bytes::Bytes;
use redis::Cmd;

use crate::layout::Value;

/// Shorter ones are copied: a part of its own costs more.
const WORTH_A_PART: usize = 2 << 10;

/// One command, or several of which only the last one's answer is looked at, as they go out: parts of memory that are written behind each
/// other.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) parts: Vec<Bytes>,
    /// How many answers come.
    pub(crate) answers: usize,
}

impl Request {
    /// One command.
    pub(crate) fn of(command: &Cmd) -> Self {
        Self { parts: vec![command.get_packed_command().into()], answers: 1 }
    }

    /// `SET key value PX lifetime`, and behind it a command. The value is not copied.
    pub(crate) fn put(key: &str, value: &Value<'_>, lifetime_ms: u64, then: &Cmd) -> Self {
        let mut parts = Vec::with_capacity(4);
        let length = value.len();
        let mut text = format!("*5\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n", key.len()).into_bytes();
        for part in value.parts() {
            if part.len() < WORTH_A_PART {
                text.extend_from_slice(&part);
            } else {
                parts.push(std::mem::take(&mut text).into());
                parts.push(part);
            }
        }
        let lifetime = lifetime_ms.to_string();
        text.extend_from_slice(format!("\r\n$2\r\nPX\r\n${}\r\n{lifetime}\r\n", lifetime.len()).as_bytes());
        then.write_packed_command(&mut text);
        parts.push(text.into());
        Self { parts, answers: 2 }
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use tlog_proto::{AggregationId, Epoch};
    use tlog_store::Shard;

    use super::*;

    #[test]
    fn a_value_is_put_as_the_library_would() {
        let mut then = redis::cmd("EVALSHA");
        then.arg("digest").arg(1).arg("key");
        for (head, payload) in [(10, 100_000), (5000, 10), (3000, 3000), (0, 0)] {
            let (head, payload) = (Bytes::from(vec![1; head]), Bytes::from(vec![2; payload]));
            let shard = Shard { epoch: Epoch(1), id: AggregationId([1; 32]), head, payload };
            let value = Value::of(&shard, "key").unwrap();
            let request = Request::put("in:x", &value, 60_000, &then);
            let mut put = redis::cmd("SET");
            put.arg("in:x").arg(&value).arg("PX").arg(60_000);
            let expected = [put.get_packed_command(), then.get_packed_command()].concat();
            assert_eq!(request.parts.concat(), expected);
            assert_eq!((request.bytes(), request.answers), (expected.len(), 2));
        }
    }
}
