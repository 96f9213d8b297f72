//! The stored message that holds the blocks of an aggregation.

use bytes::{Bytes, BytesMut};

use crate::flat::Flat;
use crate::generated::tlog_capnp::tlog_aggregation;
use crate::message::{BlockFields, part_of, read_block};
use crate::wire;
use crate::{Block, BlockFault, DecodeError, Sequence, Timestamp, VdiskId, hash_many};

/// A run of ordered blocks: the Cap'n Proto message `TlogAggregation`, before compression and sealing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregation {
    /// Free text; existing servers write [`Aggregation::NAME`].
    pub name: String,
    /// When it was put together.
    pub timestamp: Timestamp,
    /// The vdisk that it belongs to.
    pub vdisk_id: VdiskId,
    /// The blocks, in order.
    pub blocks: Vec<Block>,
    /// Id of the aggregation before it, in format 1; empty in format 2.
    pub prev: Bytes,
}

/// The same, of parts that stay where they are.
#[derive(Clone, Copy, Debug)]
pub struct AggregationParts<'a> {
    /// See [`Aggregation::name`].
    pub name: &'a str,
    /// See [`Aggregation::timestamp`].
    pub timestamp: Timestamp,
    /// See [`Aggregation::vdisk_id`].
    pub vdisk_id: &'a VdiskId,
    /// See [`Aggregation::blocks`].
    pub blocks: &'a [Block],
    /// See [`Aggregation::prev`].
    pub prev: &'a [u8],
}

/// Why bytes are not an aggregation.
#[derive(Debug, thiserror::Error)]
pub enum AggregationError {
    /// Not the message, or one with an illegal vdisk id.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// `size` and the list of blocks disagree.
    #[error("the aggregation says it has {claimed} blocks and has {actual}")]
    BlockCount {
        /// The message's `size`.
        claimed: u64,
        /// Blocks in its list.
        actual: u64,
    },
    /// A block in it is not whole.
    #[error("block {sequence}: {fault}")]
    Block {
        /// Which one.
        sequence: Sequence,
        /// What is wrong with it.
        #[source]
        fault: BlockFault,
    },
}

/// Blocks that are hashed together, as that is quicker. Few, as what a list claims is not believed before it was looked at.
const HASHED_TOGETHER: usize = 32;

impl From<capnp::Error> for AggregationError {
    fn from(error: capnp::Error) -> Self {
        DecodeError::from(error).into()
    }
}

impl Aggregation {
    /// The name that existing servers write.
    pub const NAME: &str = "The Go Tlog";

    /// Appends the message to `out`: stream framing, one segment.
    pub fn encode_into(&self, out: &mut BytesMut) {
        self.parts().encode_into(out);
    }

    /// Its parts.
    pub fn parts(&self) -> AggregationParts<'_> {
        let Self { name, timestamp, vdisk_id, blocks, prev } = self;
        AggregationParts { name, timestamp: *timestamp, vdisk_id, blocks, prev }
    }

    /// Where the data of each block stands in a message that [`Aggregation::encode_into`] made for a vdisk, with no `prev` and so
    /// many bytes of data in each block. A message from elsewhere may have it in another place: what is read there must prove itself.
    pub fn data_places(vdisk_id: &VdiskId, lengths: &[u32]) -> Vec<u64> {
        /// Segment table, root pointer and the struct.
        const BEFORE_TEXTS: usize = 1 + 1 + 2 + 4;
        let text = |text: &str| wire::words(text.len() + 1);
        // The tag of the list, and the structs in it.
        let structs = 1 + lengths.len() * BlockFields::STRUCT;
        let mut words = BEFORE_TEXTS + text(Self::NAME) + text(vdisk_id.as_str()) + structs;
        let place = |length: &u32| {
            let data = words + BlockFields::HASH;
            words = data + wire::words(*length as usize);
            data as u64 * 8
        };
        lengths.iter().map(place).collect()
    }

    /// Parses one whole message and checks every block in it, hashes included.
    pub fn decode(message: &[u8]) -> Result<Self, AggregationError> {
        Self::decode_with(message, Bytes::copy_from_slice, |_| true)
    }

    /// The same without copying: each block's data is a part of the message, and keeps all of it in memory.
    pub fn decode_shared(message: &Bytes) -> Result<Self, AggregationError> {
        Self::decode_hashing(message, |_| true)
    }

    /// The same, but only the hashes of the blocks at some positions, counted from 0, are checked. Those of the others are what the message
    /// says: not to be handed on.
    pub fn decode_hashing(
        message: &Bytes,
        is_hashed: impl Fn(usize) -> bool,
    ) -> Result<Self, AggregationError> {
        Self::decode_with(message, |data| part_of(message, data), is_hashed)
    }

    fn decode_with(
        message: &[u8],
        share: impl Fn(&[u8]) -> Bytes,
        is_hashed: impl Fn(usize) -> bool,
    ) -> Result<Self, AggregationError> {
        let reader = wire::open(message)?;
        let root = reader.get_root::<tlog_aggregation::Reader<'_>>()?;
        let list = root.get_blocks()?;
        let (claimed, actual) = (root.get_size(), u64::from(list.len()));
        if claimed != actual {
            return Err(AggregationError::BlockCount { claimed, actual });
        }
        // No room is reserved from `actual`: a list of empty structs can claim any length.
        let mut blocks = Vec::new();
        let mut unverified = Vec::with_capacity(HASHED_TOGETHER);
        let mut list = list.iter();
        loop {
            for block in list.by_ref().take(HASHED_TOGETHER) {
                unverified.push(read_block(block, &share)?);
            }
            if unverified.is_empty() {
                break;
            }
            let at = blocks.len();
            let hashed = unverified.iter().enumerate().filter(|(i, _)| is_hashed(at + i));
            let mut hashes = hash_many(hashed.map(|(_, block)| &block.data[..])).into_iter();
            for (i, block) in unverified.drain(..).enumerate() {
                let sequence = block.sequence;
                let fault = |fault| AggregationError::Block { sequence, fault };
                let computed = if is_hashed(at + i) { hashes.next() } else { block.hash };
                let whole = block.verify_with(computed.ok_or(fault(BlockFault::NoHash))?);
                blocks.push(whole.map_err(fault)?);
            }
        }
        Ok(Self {
            name: String::from_utf8_lossy(root.get_name()?.as_bytes()).into_owned(),
            timestamp: Timestamp(root.get_timestamp()),
            vdisk_id: VdiskId::from_bytes(root.get_vdisk_i_d()?.as_bytes()).map_err(DecodeError::from)?,
            blocks,
            prev: Bytes::copy_from_slice(root.get_prev()?),
        })
    }
}

impl AggregationParts<'_> {
    /// Words of the root with its pointer.
    const ROOT: usize = 1 + 2 + 4;

    /// Bytes of the message.
    pub fn encoded_len(&self) -> usize {
        8 + (Self::ROOT + self.content_words()) * 8
    }

    /// Appends the message to `out`: stream framing, one segment.
    pub fn encode_into(&self, out: &mut BytesMut) {
        let words = Self::ROOT + self.content_words();
        let structs = self.blocks.len() * BlockFields::STRUCT;
        let longest = self.blocks.iter().map(Block::size).max().unwrap_or_default().max(structs);
        let Some(mut flat) = Flat::begin(out, words, Self::ROOT, longest) else {
            return self.build(out, words);
        };
        // The order in which parts are allocated is that of existing servers, so that the bytes are the same.
        flat.struct_pointer(2, 4);
        flat.word(self.blocks.len() as u64);
        flat.word(self.timestamp.0);
        flat.bytes_pointer(self.name.len() + 1);
        // Its pointer comes last.
        let prev = flat.leave_room(wire::words(self.prev.len()));
        flat.bytes_pointer(self.vdisk_id.as_str().len() + 1);
        flat.structs_pointer(structs);
        match self.prev.len() {
            0 => flat.null(),
            length => flat.bytes_pointer_to(prev, length),
        }
        flat.text(self.name);
        flat.bytes(self.prev);
        flat.text(self.vdisk_id.as_str());
        flat.structs_tag(self.blocks.len(), 4, 2);
        for block in self.blocks {
            block.fields().write_struct(&mut flat);
        }
        for block in self.blocks {
            block.fields().write_content(&mut flat);
        }
    }

    /// The same with the builder, for what needs more than one segment.
    fn build(&self, out: &mut BytesMut, words: usize) {
        let count = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        wire::build(out, words, |message| {
            let mut root = message.init_root::<tlog_aggregation::Builder<'_>>();
            root.set_name(self.name);
            root.set_size(u64::from(count));
            root.set_timestamp(self.timestamp.0);
            if !self.prev.is_empty() {
                root.set_prev(self.prev);
            }
            root.set_vdisk_i_d(self.vdisk_id.as_str());
            let mut list = root.init_blocks(count);
            for (at, block) in (0..count).zip(self.blocks) {
                block.fields().build(list.reborrow().get(at));
            }
        });
    }

    fn content_words(&self) -> usize {
        let texts = wire::words(self.name.len() + 1) + wire::words(self.vdisk_id.as_str().len() + 1);
        let block = |block: &Block| BlockFields::STRUCT + block.fields().content_words();
        texts + wire::words(self.prev.len()) + 1 + self.blocks.iter().map(block).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BlockIndex;

    proptest! {
        #[test]
        fn what_is_written_flat_is_what_the_builder_makes(
            name in "[a-z ]{0,20}",
            vdisk in "[a-z]{1,20}",
            prev in prop::collection::vec(any::<u8>(), 0..40),
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            timestamp: u64,
        ) {
            let block = |(sequence, data): (u64, Vec<u8>)| {
                let (index, timestamp) = (BlockIndex::new(sequence * 7).unwrap(), Timestamp(timestamp));
                match data.is_empty() {
                    true => Block::delete(Sequence(sequence), index, timestamp),
                    false => Block::set(Sequence(sequence), index, timestamp, data.into()),
                }
            };
            let blocks: Vec<Block> = (1..).zip(blocks).map(block).collect();
            let vdisk_id = VdiskId::new(&vdisk).unwrap();
            let (name, prev, timestamp) = (&*name, &*prev, Timestamp(timestamp));
            let parts = AggregationParts { name, timestamp, vdisk_id: &vdisk_id, blocks: &blocks, prev };
            let (mut flat, mut built) = (BytesMut::new(), BytesMut::new());
            parts.encode_into(&mut flat);
            parts.build(&mut built, 1000);
            prop_assert_eq!(flat.len(), parts.encoded_len());
            prop_assert_eq!(flat, built);
        }
    }
}
