//! Records: what the log says about itself. They stand in its chain, are as durable as any write, and are read from a head alone.
//!
//! ```text
//! u8 what   1 mark | 2 mark removed | 3 checkpoint
//!
//! mark           place | name
//! mark removed   name
//! checkpoint     place | u32 block size | u64 blocks | u64 bytes | u64 number of the base, 0 none | u32 parts | part ...
//!
//! place  u64 aggregation | id | u32 blocks | u32 of | u64 generation | u64 sequence | u64 timestamp
//! name   u8 length | UTF-8
//! part   u64 aggregation | id | u32 blocks | u64 first index | u64 last index
//! ```
//! Numbers are little endian, ids 32 bytes. Nothing stands behind it.

use bytes::{BufMut, BytesMut};
use tlog_proto::{
    AggregationId, AggregationNumber, BlockIndex, Generation, LogPosition, Sequence, Timestamp,
};

/// Something that the log says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A moment that somebody has named. Of several with one name the newest counts.
    Mark(Mark),
    /// A name that does not count any more.
    MarkRemoved(MarkName),
    /// The image of a moment, complete.
    Checkpoint(CheckpointRecord),
}

/// A named moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its name.
    pub name: MarkName,
    /// The moment.
    pub place: PlaceInLog,
}

/// The name of a mark: 1 to 128 bytes, of letters, digits, `-`, `_` and `.`, and beginning with a letter, so that it is no other
/// way to say a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkName(String);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a mark's name has 1 to 128 characters: letters, digits, '-', '_' and '.', and begins with a letter; 'now' and 'newest' are none"
)]
pub struct InvalidMarkName;

impl MarkName {
    /// Takes a text that can be one.
    pub fn new(name: &str) -> Result<Self, InvalidMarkName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let valid = begins_well
            && name.len() <= 128
            && name.chars().all(allowed)
            && !matches!(name, "now" | "newest");
        if valid { Ok(Self(name.to_owned())) } else { Err(InvalidMarkName) }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for MarkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The state after some write of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceInLog {
    /// Aggregation of the write; 0 where that is in format 1, which has no numbers.
    pub aggregation: AggregationNumber,
    /// Its id.
    pub id: AggregationId,
    /// How many of its blocks are part of the state.
    pub blocks: u32,
    /// How many it has.
    pub of: u32,
    /// Generation and sequence of the write.
    pub position: LogPosition,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// The image of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// The moment.
    pub place: PlaceInLog,
    /// Longest block of the log up to the moment.
    pub block_size: u32,
    /// Blocks that have content.
    pub blocks: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// What its parts do not have is as in the image of this other checkpoint's record; none where they have everything.
    pub base: Option<AggregationNumber>,
    /// Its parts, by rising number. No block is in two of them.
    pub parts: Vec<CheckpointPart>,
}

/// An aggregation that has some of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPart {
    /// Its number.
    pub number: AggregationNumber,
    /// Its id.
    pub id: AggregationId,
    /// Blocks in it.
    pub blocks: u32,
    /// Lowest index of a block in it.
    pub first: BlockIndex,
    /// Highest index of a block in it.
    pub last: BlockIndex,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too few bytes, or too many.
    #[error("the record has another length than it says")]
    Length,
    /// A later version wrote it, or it is damaged.
    #[error("a record of kind {0} is not known to this version")]
    Unknown(u8),
    /// A field that cannot be.
    #[error("the record's {0} cannot be")]
    Field(&'static str),
}

const MARK: u8 = 1;
const MARK_REMOVED: u8 = 2;
const CHECKPOINT: u8 = 3;

impl Record {
    /// Its bytes.
    pub(crate) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        match self {
            Record::Mark(Mark { name, place }) => {
                out.put_u8(MARK);
                put_place(&mut out, place);
                put_name(&mut out, name);
            }
            Record::MarkRemoved(name) => {
                out.put_u8(MARK_REMOVED);
                put_name(&mut out, name);
            }
            Record::Checkpoint(checkpoint) => {
                let CheckpointRecord { place, block_size, blocks, bytes, base, parts } = checkpoint;
                out.put_u8(CHECKPOINT);
                put_place(&mut out, place);
                out.put_u32_le(*block_size);
                out.put_u64_le(*blocks);
                out.put_u64_le(*bytes);
                out.put_u64_le(base.unwrap_or_default().0);
                // A record of that many parts would be larger than what is sealed.
                out.put_u32_le(u32::try_from(parts.len()).unwrap_or(u32::MAX));
                for CheckpointPart { number, id, blocks, first, last } in parts {
                    out.put_u64_le(number.0);
                    out.put_slice(&id.0);
                    out.put_u32_le(*blocks);
                    out.put_u64_le(first.get());
                    out.put_u64_le(last.get());
                }
            }
        }
        out
    }

    /// Reads one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut from = Reader { rest: bytes };
        let [what] = from.take()?;
        let record = match what {
            MARK => {
                let place = from.place()?;
                Record::Mark(Mark { place, name: from.name()? })
            }
            MARK_REMOVED => Record::MarkRemoved(from.name()?),
            CHECKPOINT => Record::Checkpoint(from.checkpoint()?),
            other => return Err(RecordError::Unknown(other)),
        };
        if from.rest.is_empty() { Ok(record) } else { Err(RecordError::Length) }
    }
}

fn put_place(out: &mut BytesMut, place: &PlaceInLog) {
    let PlaceInLog { aggregation, id, blocks, of, position, timestamp } = place;
    out.put_u64_le(aggregation.0);
    out.put_slice(&id.0);
    out.put_u32_le(*blocks);
    out.put_u32_le(*of);
    out.put_u64_le(position.generation.0);
    out.put_u64_le(position.sequence.0);
    out.put_u64_le(timestamp.0);
}

fn put_name(out: &mut BytesMut, MarkName(name): &MarkName) {
    out.put_u8(name.len() as u8); // at most 128
    out.put_slice(name.as_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const L: usize>(&mut self) -> Result<[u8; L], RecordError> {
        let (field, rest) = self.rest.split_first_chunk::<L>().ok_or(RecordError::Length)?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.take().map(u64::from_le_bytes)
    }

    fn index(&mut self) -> Result<BlockIndex, RecordError> {
        BlockIndex::new(self.u64()?).ok_or(RecordError::Field("block index"))
    }

    fn name(&mut self) -> Result<MarkName, RecordError> {
        let [length] = self.take()?;
        let (name, rest) = self.rest.split_at_checked(length.into()).ok_or(RecordError::Length)?;
        self.rest = rest;
        let name = std::str::from_utf8(name).ok().and_then(|name| MarkName::new(name).ok());
        name.ok_or(RecordError::Field("name"))
    }

    fn place(&mut self) -> Result<PlaceInLog, RecordError> {
        let place = PlaceInLog {
            aggregation: AggregationNumber(self.u64()?),
            id: AggregationId(self.take()?),
            blocks: self.u32()?,
            of: self.u32()?,
            position: LogPosition { generation: Generation(self.u64()?), sequence: Sequence(self.u64()?) },
            timestamp: Timestamp(self.u64()?),
        };
        let possible = (1..=place.of).contains(&place.blocks);
        if possible { Ok(place) } else { Err(RecordError::Field("number of blocks")) }
    }

    fn checkpoint(&mut self) -> Result<CheckpointRecord, RecordError> {
        const PART: usize = 8 + 32 + 4 + 8 + 8;
        let place = self.place()?;
        let (block_size, blocks, bytes) = (self.u32()?, self.u64()?, self.u64()?);
        let base = Some(AggregationNumber(self.u64()?)).filter(|base| base.0 > 0);
        let count = self.u32()? as usize;
        if self.rest.len() / PART != count {
            return Err(RecordError::Length); // before memory is taken for what it claims
        }
        let mut parts: Vec<CheckpointPart> = Vec::with_capacity(count);
        for _ in 0..count {
            let part = CheckpointPart {
                number: AggregationNumber(self.u64()?),
                id: AggregationId(self.take()?),
                blocks: self.u32()?,
                first: self.index()?,
                last: self.index()?,
            };
            let rises =
                parts.last().is_none_or(|before| before.number < part.number) && part.first <= part.last;
            if !rises {
                return Err(RecordError::Field("order of parts"));
            }
            parts.push(part);
        }
        Ok(CheckpointRecord { place, block_size, blocks, bytes, base, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = PlaceInLog> {
        (any::<(u64, [u8; 32], u32, u64, u64, u64)>(), 1..=u32::MAX).prop_map(
            |((aggregation, id, blocks, generation, sequence, timestamp), of)| PlaceInLog {
                aggregation: AggregationNumber(aggregation),
                id: AggregationId(id),
                blocks: blocks % of + 1,
                of,
                position: LogPosition { generation: Generation(generation), sequence: Sequence(sequence) },
                timestamp: Timestamp(timestamp),
            },
        )
    }

    fn name() -> impl Strategy<Value = MarkName> {
        "[A-Za-z][A-Za-z0-9._-]{0,127}".prop_map(|name| MarkName::new(&name).unwrap())
    }

    fn checkpoint() -> impl Strategy<Value = CheckpointRecord> {
        let part = any::<(u64, [u8; 32], u32)>();
        (place(), any::<(u32, u64, u64, Option<u32>)>(), prop::collection::vec(part, 0..5)).prop_map(
            |(place, (block_size, blocks, bytes, base), parts)| CheckpointRecord {
                place,
                block_size,
                blocks,
                bytes,
                base: base.map(|base| AggregationNumber(u64::from(base) + 1)),
                parts: parts
                    .into_iter()
                    .zip(0u64..)
                    .map(|((number, id, blocks), at)| CheckpointPart {
                        number: AggregationNumber((at << 32) + number % (1 << 32)),
                        id: AggregationId(id),
                        blocks,
                        first: BlockIndex::new(at * 10).unwrap(),
                        last: BlockIndex::new(at * 10 + at).unwrap(),
                    })
                    .collect(),
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (name(), place()).prop_map(|(name, place)| Record::Mark(Mark { name, place })),
            name().prop_map(Record::MarkRemoved),
            checkpoint().prop_map(Record::Checkpoint),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_and_cut_short_or_longer_it_is_none(record in record(), cut in any::<prop::sample::Index>()) {
            let bytes = record.encode();
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
            prop_assert!(Record::decode(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(Record::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let name = MarkName::new("before-upgrade").unwrap();
        let bytes = Record::MarkRemoved(name).encode();
        assert_eq!(Record::decode(&[9]), Err(RecordError::Unknown(9)));
        let mut odd = bytes.to_vec();
        odd[2] = b' ';
        assert_eq!(Record::decode(&odd), Err(RecordError::Field("name")));
        for bad in ["", "now", "newest", "5m", "a b", "-a", "ä", &"a".repeat(129)] {
            assert_eq!(MarkName::new(bad), Err(InvalidMarkName), "{bad:?}");
        }
    }
}
