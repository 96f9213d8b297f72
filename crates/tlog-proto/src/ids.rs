//! Names and positions. Each is its own type, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of a virtual disk.
///
/// 1 to 128 bytes: ASCII letters, digits and `-`, `_`, `.`, `:`, `@`, `+`; the first is a letter or a digit. Such a name
/// is safe as a file name, as a part of a store key and in a log line. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VdiskId(Arc<str>);

/// A name that no vdisk can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalVdiskId {
    /// Nothing was given.
    #[error("a vdisk id cannot be empty")]
    Empty,
    /// More than [`VdiskId::MAX_LEN`] bytes.
    #[error("a vdisk id has at most {max} bytes, this one has {len}", max = VdiskId::MAX_LEN)]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// Not UTF-8, or a character outside the allowed set.
    #[error(
        "a vdisk id is made of ASCII letters, digits and -_.:@+ and begins with a letter or digit; byte {at} of this one is not allowed"
    )]
    Character {
        /// Offset of the first byte that is not allowed.
        at: usize,
    },
}

impl VdiskId {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Checks a name and takes it.
    pub fn new(name: &str) -> Result<Self, IllegalVdiskId> {
        Self::from_bytes(name.as_bytes())
    }

    /// Checks a name as it came from a peer and takes it.
    pub fn from_bytes(name: &[u8]) -> Result<Self, IllegalVdiskId> {
        if name.is_empty() {
            return Err(IllegalVdiskId::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(IllegalVdiskId::TooLong { len: name.len() });
        }
        let allowed = |(at, byte): (usize, &u8)| {
            byte.is_ascii_alphanumeric()
                || (at > 0 && matches!(byte, b'-' | b'_' | b'.' | b':' | b'@' | b'+'))
        };
        match name.iter().enumerate().position(|at_byte| !allowed(at_byte)) {
            Some(at) => Err(IllegalVdiskId::Character { at }),
            None => std::str::from_utf8(name)
                .map(|name| Self(name.into()))
                .map_err(|error| IllegalVdiskId::Character { at: error.valid_up_to() }),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VdiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VdiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VdiskId({})", self.0)
    }
}

impl FromStr for VdiskId {
    type Err = IllegalVdiskId;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after it. Stays at the highest value that there is.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The one before it, none before zero.
            #[must_use]
            pub fn previous(self) -> Option<Self> {
                self.0.checked_sub(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Number that the client gives to a write; the next write gets the next number.
    Sequence
}
counter! {
    /// Counts how often the sequences of a vdisk started over. (generation, sequence) names a block for ever.
    Generation
}
counter! {
    /// Number of an aggregation in its vdisk's log: 1, 2, 3, ... without gaps. 0 stands for "before the first".
    AggregationNumber
}
counter! {
    /// Which opening of a vdisk's log wrote something. A higher one fences all lower ones.
    Epoch
}
counter! {
    /// Nanoseconds since the Unix epoch, as the client set them. May step back between blocks.
    Timestamp
}
counter! {
    /// Random number of one client instance. 0 means unknown: clients of 1.1.0-alpha send none.
    SessionId
}

impl SessionId {
    /// What clients have that do not tell.
    pub const UNKNOWN: SessionId = SessionId(0);

    /// Whether the client told.
    pub fn is_known(self) -> bool {
        self != Self::UNKNOWN
    }
}

/// Names one block of a log: a sequence within a generation. Ordered as the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogPosition {
    /// Generation first, so that the derived order is the log's.
    pub generation: Generation,
    /// Sequence within it.
    pub sequence: Sequence,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.generation, self.sequence)
    }
}

/// Index of a block on its vdisk: byte offset divided by block size. On the wire a signed number, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIndex(u64);

impl BlockIndex {
    /// None where it does not fit the wire's signed 64 bits.
    pub fn new(index: u64) -> Option<Self> {
        i64::try_from(index).ok().map(|_| Self(index))
    }

    /// None where negative.
    pub fn from_wire(index: i64) -> Option<Self> {
        u64::try_from(index).ok().map(Self)
    }

    /// As it stands in messages.
    pub fn to_wire(self) -> i64 {
        // Both constructors keep it within i64.
        self.0 as i64
    }

    /// The index.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Byte offset on a vdisk with blocks of `block_size` bytes, none where it does not fit 64 bits.
    pub fn offset(self, block_size: u32) -> Option<u64> {
        self.0.checked_mul(u64::from(block_size))
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hash that names an aggregation and, through it, everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AggregationId(pub [u8; 32]);

impl AggregationId {
    /// What the first aggregation of a log refers to. The original calls it `FirstAggregateHash`.
    pub const BEFORE_FIRST: AggregationId = AggregationId([0; 32]);

    /// What its text, 64 hexadecimal digits, stands for; none where it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).ok().map(|()| Self(id))
    }
}

impl fmt::Display for AggregationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AggregationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AggregationId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregation_id_is_read_back_from_its_text_and_from_nothing_else() {
        let id = AggregationId([0x5a; 32]);
        let text = id.to_string();
        assert_eq!(AggregationId::parse(&text), Some(id));
        for bad in ["", &text[1..], &format!("{text}00"), &text.replace('a', "g")] {
            assert_eq!(AggregationId::parse(bad), None);
        }
    }

    #[test]
    fn vdisk_ids_that_could_harm_a_path_or_a_log_line_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a\nb", "a\0", "-x", "ä", "{x}", &"x".repeat(129)] {
            assert!(VdiskId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["myimg", "a", "7", "vm-1_root.img", "tenant:disk@1+x", &"x".repeat(128)] {
            assert_eq!(VdiskId::new(good).unwrap().as_str(), good);
        }
        assert!(VdiskId::from_bytes(&[b'a', 0xff]).is_err());
    }

    #[test]
    fn block_indices_stay_within_what_the_wire_can_carry() {
        assert_eq!(BlockIndex::from_wire(-1), None);
        assert_eq!(BlockIndex::new(u64::MAX), None);
        let last = BlockIndex::new(i64::MAX as u64).unwrap();
        assert_eq!(last.to_wire(), i64::MAX);
        assert_eq!(last.offset(4096), None);
        assert_eq!(BlockIndex::new(3).unwrap().offset(4096), Some(12288));
    }
}
