//! What one record of a segment file looks like.
//!
//! A segment is a row of records, each beginning at a multiple of 8 bytes, then zeros up to the preallocated length:
//!
//! ```text
//! | header, 120 bytes | head part | payload | zeros to a multiple of 8 |
//! ```
//!
//! The header, little endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `tls` and the format, 1 |
//! | 4 | 4 | kind: 1 state, 2 shard, 3 mark |
//! | 8 | 4 | bytes of the head part |
//! | 12 | 4 | bytes of the payload |
//! | 16 | 4 | *batch*: where the write began that this record was part of; all before it was durable by then |
//! | 20 | 4 | *link*: checksum of the header before; for the first record, one made of vdisk and segment number |
//! | 24 | 8 | shard: number, else 0 |
//! | 32 | 8 | shard: epoch that wrote it, else 0 |
//! | 40 | 8 | the log's epoch, this record included |
//! | 48 | 8 | the log's `committed`, this record included |
//! | 56 | 32 | shard: id of the aggregation, else zeros |
//! | 88 | 8 | number of the record before, where that is a shard, else 0 |
//! | 96 | 8 | its epoch |
//! | 104 | 4 | its length, header and padding included; 0 for the first record |
//! | 108 | 4 | crc32c of the head part |
//! | 112 | 4 | crc32c of the payload |
//! | 116 | 4 | crc32c of bytes 0 to 115 |
//!
//! A *state* record has the whole state of the log in its head part (below) and no payload. A *mark* has neither: it is
//! there for its epoch and `committed`, which also ride on every other record.
//!
//! *Link* makes the walk end where the log ends, whatever an abandoned write left behind it. *Batch* tells a torn tail
//! from rot: a record that cannot be read was acknowledged exactly if some later record's batch began above it. What a
//! header says of the record before it names the number that a rotten header hides.
//!
//! The state, little endian: identity 16, epoch 8, committed 8, first 8, count of starts 4, then for each start epoch 8, number
//! 8, segment 8, offset 4 (where the record of that start stands); members' epoch 8, change 8, count 4, then for each
//! store 1 (0 or 1) and identity 16.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};

use crate::log_state::LogMeta;
use crate::{Members, Shard, StartRecord, StoreIdentity};

/// Bytes of a header.
pub(super) const HEADER: usize = 120;
const CHECKED: usize = HEADER - 4;
/// What a record begins with.
pub(super) const MAGIC: [u8; 4] = *b"tls\x01";
/// Records begin at multiples of it.
pub(super) const ALIGN: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    State = 1,
    Shard = 2,
    Mark = 3,
}

/// Where a record begins. Ordered as records were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u32,
}

/// Where in a segment the next record goes, and what it says of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) offset: u32,
    pub(super) link: u32,
    /// Length of the record before, 0 for the first one.
    pub(super) previous_len: u32,
    pub(super) previous_number: AggregationNumber,
    pub(super) previous_epoch: Epoch,
}

impl Cursor {
    /// At the beginning of a segment.
    pub(super) fn first(vdisk: &VdiskId, segment: u64) -> Self {
        let link = crc32c::crc32c_append(crc32c::crc32c(vdisk.as_str().as_bytes()), &segment.to_le_bytes());
        Self {
            offset: 0,
            link,
            previous_len: 0,
            previous_number: AggregationNumber(0),
            previous_epoch: Epoch(0),
        }
    }

    /// Behind a record that begins at `offset`; none where that is beyond what a segment can be.
    pub(super) fn behind(offset: u32, header: &Header) -> Option<Self> {
        let length = header.record_len()?;
        Some(Self {
            offset: offset.checked_add(length)?,
            link: header.check,
            previous_len: length,
            previous_number: header.number,
            previous_epoch: header.epoch,
        })
    }
}

/// A header as read from a file, its own checksum verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) head_len: u32,
    pub(super) payload_len: u32,
    pub(super) batch: u32,
    pub(super) link: u32,
    pub(super) number: AggregationNumber,
    pub(super) epoch: Epoch,
    pub(super) log_epoch: Epoch,
    pub(super) committed: AggregationNumber,
    pub(super) id: AggregationId,
    pub(super) previous_number: AggregationNumber,
    pub(super) previous_epoch: Epoch,
    pub(super) previous_len: u32,
    pub(super) head_check: u32,
    pub(super) payload_check: u32,
    pub(super) check: u32,
}

/// Bytes that a record takes in its segment; none where that does not fit one.
pub(super) fn record_len(head: usize, payload: usize) -> Option<u32> {
    let length = HEADER.checked_add(head)?.checked_add(payload)?.checked_next_multiple_of(ALIGN as usize)?;
    u32::try_from(length).ok()
}

impl Header {
    /// None where the bytes are not a header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        let (checked, check) = bytes.split_at(CHECKED);
        let check = u32::from_le_bytes(check.try_into().ok()?);
        if !checked.starts_with(&MAGIC) || crc32c::crc32c(checked) != check {
            return None;
        }
        // `checked` has 116 bytes, which is what is read here.
        let mut fields = checked;
        fields.advance(MAGIC.len());
        let kind = match fields.get_u32_le() {
            1 => Kind::State,
            2 => Kind::Shard,
            3 => Kind::Mark,
            _ => return None,
        };
        let (head_len, payload_len) = (fields.get_u32_le(), fields.get_u32_le());
        let (batch, link) = (fields.get_u32_le(), fields.get_u32_le());
        let (number, epoch) = (AggregationNumber(fields.get_u64_le()), Epoch(fields.get_u64_le()));
        let (log_epoch, committed) = (Epoch(fields.get_u64_le()), AggregationNumber(fields.get_u64_le()));
        let mut id = AggregationId([0; 32]);
        fields.copy_to_slice(&mut id.0);
        let previous_number = AggregationNumber(fields.get_u64_le());
        let previous_epoch = Epoch(fields.get_u64_le());
        let previous_len = fields.get_u32_le();
        let (head_check, payload_check) = (fields.get_u32_le(), fields.get_u32_le());
        let header = Self {
            kind,
            head_len,
            payload_len,
            batch,
            link,
            number,
            epoch,
            log_epoch,
            committed,
            id,
            previous_number,
            previous_epoch,
            previous_len,
            head_check,
            payload_check,
            check,
        };
        header.record_len().map(|_| header)
    }

    fn encode(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER);
        out.put_slice(&MAGIC);
        out.put_u32_le(self.kind as u32);
        out.put_u32_le(self.head_len);
        out.put_u32_le(self.payload_len);
        out.put_u32_le(self.batch);
        out.put_u32_le(self.link);
        out.put_u64_le(self.number.0);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.log_epoch.0);
        out.put_u64_le(self.committed.0);
        out.put_slice(&self.id.0);
        out.put_u64_le(self.previous_number.0);
        out.put_u64_le(self.previous_epoch.0);
        out.put_u32_le(self.previous_len);
        out.put_u32_le(self.head_check);
        out.put_u32_le(self.payload_check);
        self.check = crc32c::crc32c(&out);
        out.put_u32_le(self.check);
        out.freeze()
    }

    pub(super) fn record_len(&self) -> Option<u32> {
        record_len(self.head_len as usize, self.payload_len as usize)
    }
}

/// What a record is made of, but its place and its neighbours.
pub(super) enum Body {
    State(State),
    Shard(AggregationNumber, Shard),
    Mark,
}

/// Puts records behind each other that are written at once.
#[derive(Debug)]
pub(super) struct Batch {
    /// Where it begins.
    pub(super) at: u32,
    /// Where the next record would go.
    pub(super) cursor: Cursor,
    /// What is written at `at`, in this order.
    pub(super) parts: Vec<Bytes>,
}

impl Batch {
    pub(super) fn new(cursor: Cursor) -> Self {
        Self { at: cursor.offset, cursor, parts: Vec::new() }
    }

    pub(super) fn bytes(&self) -> u32 {
        self.cursor.offset - self.at
    }

    /// Adds a record. `epoch` and `committed` are the log's, this record included. None, and nothing added, where it does not
    /// fit a segment; else its offset and header.
    pub(super) fn push(
        &mut self,
        body: Body,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Option<(u32, Header)> {
        const NONE: (AggregationNumber, Epoch, AggregationId) =
            (AggregationNumber(0), Epoch(0), AggregationId::BEFORE_FIRST);
        let (kind, (number, shard_epoch, id), head, payload) = match body {
            Body::State(state) => (Kind::State, NONE, state.encode(), Bytes::new()),
            Body::Shard(number, Shard { epoch, id, head, payload }) => {
                (Kind::Shard, (number, epoch, id), head, payload)
            }
            Body::Mark => (Kind::Mark, NONE, Bytes::new(), Bytes::new()),
        };
        let mut header = Header {
            kind,
            head_len: u32::try_from(head.len()).ok()?,
            payload_len: u32::try_from(payload.len()).ok()?,
            batch: self.at,
            link: self.cursor.link,
            number,
            epoch: shard_epoch,
            log_epoch: epoch,
            committed,
            id,
            previous_number: self.cursor.previous_number,
            previous_epoch: self.cursor.previous_epoch,
            previous_len: self.cursor.previous_len,
            head_check: crc32c::crc32c(&head),
            payload_check: crc32c::crc32c(&payload),
            check: 0,
        };
        let encoded = header.encode();
        let offset = self.cursor.offset;
        let cursor = Cursor::behind(offset, &header)?;
        let padding = (cursor.offset - offset) as usize - HEADER - head.len() - payload.len();
        let padding = Bytes::from_static(&[0; ALIGN as usize]).split_to(padding);
        self.parts.extend([encoded, head, payload, padding].into_iter().filter(|part| !part.is_empty()));
        self.cursor = cursor;
        Some((offset, header))
    }
}

/// The body of a state record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) meta: LogMeta,
    /// Where the record of `meta.starts[i]` stands: it drops only what was written before it.
    pub(super) cuts: Vec<Position>,
}

impl State {
    const START: usize = 28;
    const MEMBER: usize = 17;

    pub(super) fn encoded_len(&self) -> usize {
        40 + 4 + self.meta.starts.len() * Self::START + 22 + self.meta.members.identities.len() * Self::MEMBER
    }

    fn encode(&self) -> Bytes {
        let LogMeta { identity, epoch, starts, members, committed, first } = &self.meta;
        let mut out = BytesMut::with_capacity(self.encoded_len());
        out.put_slice(&identity.0);
        out.put_u64_le(epoch.0);
        out.put_u64_le(committed.0);
        out.put_u64_le(first.0);
        // A list of 2^32 does not fit memory.
        out.put_u32_le(starts.len() as u32);
        for (start, cut) in starts.iter().zip(&self.cuts) {
            out.put_u64_le(start.epoch.0);
            out.put_u64_le(start.number.0);
            out.put_u64_le(cut.segment);
            out.put_u32_le(cut.offset);
        }
        out.put_u64_le(members.epoch.0);
        out.put_u64_le(members.change);
        out.put_slice(&[members.data_shards, members.write_quorum]);
        out.put_u32_le(members.identities.len() as u32);
        for member in &members.identities {
            out.put_u8(member.is_some().into());
            out.put_slice(&member.map_or([0; 16], |identity| identity.0));
        }
        out.freeze()
    }

    /// None where the bytes are not a state. Never reads past them, whatever the counts claim.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let identity = read_identity(bytes)?;
        let (epoch, committed) = (Epoch(long(bytes)?), AggregationNumber(long(bytes)?));
        let first = AggregationNumber(long(bytes)?);
        let (mut starts, mut cuts) = (Vec::new(), Vec::new());
        for _ in 0..word(bytes)? {
            starts.push(StartRecord { epoch: Epoch(long(bytes)?), number: AggregationNumber(long(bytes)?) });
            cuts.push(Position { segment: long(bytes)?, offset: word(bytes)? });
        }
        let mut members = Members {
            epoch: Epoch(long(bytes)?),
            change: long(bytes)?,
            data_shards: bytes.try_get_u8().ok()?,
            write_quorum: bytes.try_get_u8().ok()?,
            identities: Vec::new(),
        };
        for _ in 0..word(bytes)? {
            let seen = bytes.try_get_u8().ok()?;
            let member = read_identity(bytes)?;
            members.identities.push((seen != 0).then_some(member));
        }
        let meta = LogMeta { identity, epoch, starts, members, committed, first };
        bytes.is_empty().then_some(Self { meta, cuts })
    }
}

fn word(bytes: &mut &[u8]) -> Option<u32> {
    bytes.try_get_u32_le().ok()
}

fn long(bytes: &mut &[u8]) -> Option<u64> {
    bytes.try_get_u64_le().ok()
}

fn read_identity(bytes: &mut &[u8]) -> Option<StoreIdentity> {
    let mut identity = [0; 16];
    bytes.try_copy_to_slice(&mut identity).ok()?;
    Some(StoreIdentity(identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursor() -> Cursor {
        Cursor::first(&VdiskId::new("disk").unwrap(), 7)
    }

    proptest! {
        #[test]
        fn a_state_survives_its_record_and_no_part_of_one_is_taken_for_a_whole(
            starts in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>()), 0..5),
            members in prop::collection::vec(prop::option::of(any::<[u8; 16]>()), 0..7),
            numbers in any::<[u64; 5]>(),
        ) {
            let [epoch, committed, first, members_epoch, change] = numbers;
            let state = State {
                meta: LogMeta {
                    identity: StoreIdentity([9; 16]),
                    epoch: Epoch(epoch),
                    starts: starts
                        .iter()
                        .map(|s| StartRecord { epoch: Epoch(s.0), number: AggregationNumber(s.1) })
                        .collect(),
                    members: Members {
                        epoch: Epoch(members_epoch),
                        change,
                        identities: members.iter().map(|m| m.map(StoreIdentity)).collect(),
                        data_shards: members.len() as u8,
                        write_quorum: change as u8,
                    },
                    committed: AggregationNumber(committed),
                    first: AggregationNumber(first),
                },
                cuts: starts.iter().map(|s| Position { segment: s.2, offset: s.3 }).collect(),
            };
            let bytes = state.encode();
            prop_assert_eq!(bytes.len(), state.encoded_len());
            prop_assert_eq!(State::parse(&bytes), Some(state));
            for length in 0..bytes.len() {
                prop_assert_eq!(State::parse(&bytes[..length]), None);
            }
        }

        #[test]
        fn a_header_with_a_flipped_bit_is_no_header(at in 0..HEADER, bit in 0..8u32, number in any::<u64>()) {
            let mut batch = Batch::new(cursor());
            let shard = Shard {
                epoch: Epoch(3),
                id: AggregationId([5; 32]),
                head: Bytes::from_static(b"head"),
                payload: Bytes::from_static(b"payload"),
            };
            let (epoch, committed) = (Epoch(3), AggregationNumber(1));
            batch.push(Body::Mark, epoch, committed).unwrap();
            let (_, header) =
                batch.push(Body::Shard(AggregationNumber(number), shard), epoch, committed).unwrap();
            let mut bytes = batch.parts[1].to_vec();
            prop_assert_eq!(Header::parse(&bytes), Some(header));
            prop_assert_eq!(batch.parts.iter().map(Bytes::len).sum::<usize>(), batch.bytes() as usize);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Header::parse(&bytes), None);
            prop_assert_eq!(Header::parse(&bytes[..at]), None);
        }
    }
}
