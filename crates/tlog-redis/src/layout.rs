//! What the store keeps on a server: the names of keys, and the bytes and texts in them.
//!
//! ```text
//! tlog:{V}:log      hash         what is known of the log of vdisk V, and the last run of numbers held
//! tlog:{V}:held     sorted set   the earlier runs: member "first-last", score first
//! tlog:{V}:s:N      string       the shard of number N
//! tlog:{V}:deleted  sorted set   the runs of a deleted log whose shards are still to be taken away
//! tlog:{V}:in:X     string       a value on its way to a shard's key, for a minute at most
//! tlog:vdisks       set          names of vdisks; one of them may have no log
//! ```
//! The value of a shard, numbers little endian, checksums crc32c:
//!
//! ```text
//! at  bytes
//!  0    4  "tlr1"
//!  4   16  epoch, in decimal digits: the scripts read it
//! 20    4  length of the head part
//! 24    4  length of the payload
//! 28    4  checksum of the head part
//! 32    4  checksum of the payload
//! 36   32  id of the aggregation
//! 68    4  checksum of the 68 bytes above and of the key, so that a value under another key is none
//! 72       head part, payload
//! ```

use std::io::Write as _;

use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs};
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{Head, Members, Shard, StartRecord, StoreIdentity};

/// The highest number and epoch that a script, whose numbers are doubles, can tell from its neighbours.
pub(crate) const HIGHEST: u64 = (1 << 53) - 1;

/// The `layout` of a log that is as this page says; the scripts know it too.
pub(crate) const LAYOUT: &str = "1";

/// The names of all vdisks that were ever promised here and not deleted since.
pub(crate) const VDISKS: &str = "tlog:vdisks";

/// Bytes before the head part.
pub(crate) const PREFIX: usize = 72;
const MAGIC: &[u8; 4] = b"tlr1";

/// The keys of one vdisk. They share a hash tag, which a vdisk id cannot break: no brace is allowed in one.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) log: String,
    pub(crate) held: String,
    pub(crate) deleted: String,
    shard: String,
    staged: String,
}

impl Keys {
    pub(crate) fn of(vdisk: &VdiskId) -> Self {
        let vdisk = vdisk.as_str();
        let key = |name: &str| ["tlog:{", vdisk, "}:", name].concat();
        Self {
            log: key("log"),
            held: key("held"),
            deleted: key("deleted"),
            shard: key("s:"),
            staged: key("in:"),
        }
    }

    pub(crate) fn shard(&self, number: AggregationNumber) -> String {
        format!("{}{number}", self.shard)
    }

    pub(crate) fn staged(&self, (writer, value): (u64, u64)) -> String {
        format!("{}{writer:016x}-{value:x}", self.staged)
    }
}

/// A shard as the value of a key.
pub(crate) struct Value<'a> {
    prefix: [u8; PREFIX],
    shard: &'a Shard,
}

impl<'a> Value<'a> {
    /// None where a part is longer than any server's string.
    pub(crate) fn of(shard: &'a Shard, key: &str) -> Option<Self> {
        let head = u32::try_from(shard.head.len()).ok()?;
        let payload = u32::try_from(shard.payload.len()).ok()?;
        let mut bytes = Vec::with_capacity(PREFIX);
        bytes.extend_from_slice(MAGIC);
        write!(bytes, "{:016}", shard.epoch.0).ok()?;
        for field in [head, payload, crc32c::crc32c(&shard.head), crc32c::crc32c(&shard.payload)] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&shard.id.0);
        bytes.extend_from_slice(&check(&bytes, key).to_le_bytes());
        Some(Self { prefix: bytes.try_into().ok()?, shard })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        PREFIX + self.shard.head.len() + self.shard.payload.len()
    }

    /// What it consists of, head part and payload as they are in memory.
    pub(crate) fn parts(&self) -> [Bytes; 3] {
        [Bytes::copy_from_slice(&self.prefix), self.shard.head.clone(), self.shard.payload.clone()]
    }
}

impl ToRedisArgs for Value<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let parts = [self.prefix.as_slice(), &self.shard.head, &self.shard.payload];
        out.reserve_space_for_args([self.len()]);
        let mut writer = out.writer_for_next_arg();
        for part in parts {
            // It writes to memory. A value that were cut short would be found out by its lengths.
            let _ = writer.write_all(part);
        }
    }
}

fn check(prefix: &[u8], key: &str) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(prefix), key.as_bytes())
}

/// The prefix of a stored value, found to be right.
#[derive(Debug, PartialEq, Eq)]
struct Prefix {
    epoch: Epoch,
    id: AggregationId,
    head: usize,
    payload: usize,
    head_check: u32,
    payload_check: u32,
}

impl Prefix {
    fn parse(value: &[u8], key: &str) -> Option<Self> {
        let bytes = value.get(..PREFIX)?;
        let u32_at = |at: usize| {
            let four = bytes.get(at..at + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
            four.map(u32::from_le_bytes)
        };
        let digits = std::str::from_utf8(bytes.get(4..20)?).ok()?;
        if bytes.get(..4)? != MAGIC || u32_at(68)? != check(bytes.get(..68)?, key) {
            return None;
        }
        Some(Self {
            epoch: Epoch(parse_number(digits)?),
            id: AggregationId(bytes.get(36..68)?.try_into().ok()?),
            head: u32_at(20)? as usize,
            payload: u32_at(24)? as usize,
            head_check: u32_at(28)?,
            payload_check: u32_at(32)?,
        })
    }
}

/// The epoch in the prefix of a value; none where the prefix is not what was written.
pub(crate) fn epoch_of(value: &[u8], key: &str) -> Option<Epoch> {
    Prefix::parse(value, key).map(|prefix| prefix.epoch)
}

/// The shard in a value, without copying; none where a bit of it is not what was written under this key.
pub(crate) fn shard_in(value: Vec<u8>, key: &str) -> Option<Shard> {
    let prefix = Prefix::parse(&value, key)?;
    let payload_at = PREFIX.checked_add(prefix.head)?;
    if payload_at.checked_add(prefix.payload)? != value.len() {
        return None;
    }
    let value = Bytes::from(value);
    let (head, payload) = (value.slice(PREFIX..payload_at), value.slice(payload_at..));
    let whole =
        crc32c::crc32c(&head) == prefix.head_check && crc32c::crc32c(&payload) == prefix.payload_check;
    whole.then_some(Shard { epoch: prefix.epoch, id: prefix.id, head, payload })
}

/// The same of a value's prefix and head part alone.
pub(crate) fn head_in(value: Vec<u8>, key: &str) -> Option<Head> {
    let prefix = Prefix::parse(&value, key)?;
    if PREFIX.checked_add(prefix.head)? != value.len() {
        return None;
    }
    let head = Bytes::from(value).slice(PREFIX..);
    let whole = crc32c::crc32c(&head) == prefix.head_check;
    whole.then_some(Head { epoch: prefix.epoch, id: prefix.id, head })
}

/// A number as the scripts write it: decimal digits, at most [`HIGHEST`].
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 16 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&number| number <= HIGHEST)
}

/// `first-last`, as a run of held numbers is kept.
pub(crate) fn parse_run(text: &str) -> Option<(AggregationNumber, AggregationNumber)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    (1 <= first && first <= last).then_some((AggregationNumber(first), AggregationNumber(last)))
}

/// `epoch:number`, separated by spaces.
pub(crate) fn parse_starts(text: &str) -> Option<Vec<StartRecord>> {
    let start = |entry: &str| {
        let (epoch, number) = entry.split_once(':')?;
        Some(StartRecord {
            epoch: Epoch(parse_number(epoch)?),
            number: AggregationNumber(parse_number(number)?),
        })
    };
    if text.is_empty() { Some(Vec::new()) } else { text.split(' ').map(start).collect() }
}

/// Epoch, change, data shards, write quorum, and of each store its identity or `-`; none where a number is too high.
pub(crate) fn members_text(members: &Members) -> Option<String> {
    if members.epoch.0 > HIGHEST || members.change > HIGHEST {
        return None;
    }
    let Members { epoch, change, data_shards, write_quorum, .. } = members;
    let mut text = format!("{epoch} {change} {data_shards} {write_quorum}");
    for identity in &members.identities {
        text.push(' ');
        match identity {
            Some(identity) => text.push_str(&identity.to_string()),
            None => text.push('-'),
        }
    }
    Some(text)
}

/// What [`members_text`] wrote.
pub(crate) fn parse_members(text: &str) -> Option<Members> {
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(parse_number);
    let (epoch, change, k, w) = (number()?, number()?, number()?, number()?);
    let identity = |word: &str| match word {
        "-" => Some(None),
        word => parse_identity(word).map(Some),
    };
    Some(Members {
        epoch: Epoch(epoch),
        change,
        data_shards: u8::try_from(k).ok()?,
        write_quorum: u8::try_from(w).ok()?,
        identities: words.map(identity).collect::<Option<_>>()?,
    })
}

/// 32 hexadecimal digits.
pub(crate) fn parse_identity(text: &str) -> Option<StoreIdentity> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(|identity| StoreIdentity(identity.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "tlog:{v}:s:7";

    fn shard() -> Shard {
        Shard {
            epoch: Epoch(HIGHEST),
            id: AggregationId([9; 32]),
            head: Bytes::from_static(b"head part"),
            payload: Bytes::from_static(b"payload"),
        }
    }

    fn stored() -> Vec<u8> {
        let shard = shard();
        Value::of(&shard, KEY).unwrap().to_redis_args().remove(0)
    }

    #[test]
    fn a_stored_shard_comes_back_and_its_parts_are_where_the_page_says() {
        let value = stored();
        assert_eq!(value[..20], *b"tlr19007199254740991");
        assert_eq!(value[72..], *b"head partpayload");
        assert_eq!(shard_in(value.clone(), KEY), Some(shard()));
        assert_eq!(epoch_of(&value, KEY), Some(Epoch(HIGHEST)));
        let head = head_in(value[..72 + 9].to_vec(), KEY).unwrap();
        assert_eq!((head.epoch, head.id, &head.head[..]), (Epoch(HIGHEST), shard().id, &b"head part"[..]));
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_noticed() {
        let value = stored();
        for at in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(shard_in(flipped.clone(), KEY), None, "bit {at}");
            if at / 8 < 72 + 9 {
                assert_eq!(head_in(flipped[..72 + 9].to_vec(), KEY), None, "bit {at}");
            }
        }
        for length in 0..value.len() {
            assert_eq!(shard_in(value[..length].to_vec(), KEY), None, "{length} bytes");
        }
        let longer = [value.as_slice(), b"x"].concat();
        assert_eq!(shard_in(longer, KEY), None);
    }

    #[test]
    fn a_value_under_another_key_is_none() {
        assert_eq!(shard_in(stored(), "tlog:{v}:s:8"), None);
        assert_eq!(shard_in(stored(), "tlog:{w}:s:7"), None);
    }

    #[test]
    fn texts_come_back_and_what_is_none_is_refused() {
        let identity = StoreIdentity([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        let members = Members {
            epoch: Epoch(3),
            change: 4,
            identities: vec![Some(identity), None],
            data_shards: 4,
            write_quorum: 5,
        };
        let text = members_text(&members).unwrap();
        assert_eq!(text, "3 4 4 5 000102030405060708090a0b0c0d0eff -");
        assert_eq!(parse_members(&text), Some(members));
        assert_eq!(parse_members("0 0 0 0"), Some(Members::default()));
        for bad in ["", "0 0 0", "0 0 0 256", "0 0 0 0 ", "0 0 0 0 xyz", "-1 0 0 0", "0 0 0 0  -"] {
            assert_eq!(parse_members(bad), None, "{bad:?}");
        }
        assert_eq!(parse_starts("").map(|starts| starts.len()), Some(0));
        let starts = parse_starts("1:1 5:17").unwrap();
        assert_eq!(starts[1], StartRecord { epoch: Epoch(5), number: AggregationNumber(17) });
        for bad in [" ", "1", "1:", "1:1 ", "1:1,2:2", "1:9007199254740992", "x:1"] {
            assert_eq!(parse_starts(bad), None, "{bad:?}");
        }
        assert_eq!(parse_run("2-9"), Some((AggregationNumber(2), AggregationNumber(9))));
        for bad in ["", "-", "0-1", "3-2", "1-9007199254740992", "1-2-3", "1"] {
            assert_eq!(parse_run(bad), None, "{bad:?}");
        }
        for bad in ["", "+1", " 1", "1 ", "9007199254740992", "0x1", "12345678901234567"] {
            assert_eq!(parse_number(bad), None, "{bad:?}");
        }
    }
}
