//! Aggregations of stored format 2 that targets damage and forge.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use tlog_codec::{
    BlockEntry, CheckpointPart, CheckpointRecord, Content, EncodedAggregation, EncodedShard, Finding,
    Keyring, Mark, MarkName, MasterKey, Opener, PlaceInLog, Record, Redundancy, SealRequest, Sealer,
    ShardHead, TimeReach, VdiskKeys, WithoutWrites,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, LogPosition, Sequence, SessionId,
    Timestamp, VdiskId,
};

use by_hand::{Head, field};

/// The format written down a second time: what the tests of `tlog-codec` seal with what no honest writer would.
#[path = "../../crates/tlog-codec/tests/support/by_hand.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
pub(crate) mod by_hand;

/// The vdisk of all of them.
pub(crate) const VDISK: &str = "myimg";

/// Fields of a header that are numbers of at most 8 bytes.
pub(crate) const FIELDS: [std::ops::Range<usize>; 24] = [
    field::FORMAT,
    field::DATA,
    field::PARITY,
    field::KIND,
    field::MANIFEST_COMPRESSION,
    field::BODY_COMPRESSION,
    field::SUITE,
    field::TIME_REACH,
    field::BLOCK_COUNT,
    field::KEY_ID,
    field::NUMBER,
    field::GENERATION,
    field::SESSION,
    field::FIRST_SEQUENCE,
    field::LAST_SEQUENCE,
    field::OLDEST,
    field::NEWEST,
    field::SEALED_AT,
    field::BLOCK_SIZE,
    field::MANIFEST_PLAIN,
    field::MANIFEST_SEALED,
    field::PAYLOAD,
    field::BODY_PLAIN,
    field::BODY_SEALED,
];

/// An aggregation, and all that there is of it.
pub(crate) struct Base {
    pub(crate) head: Head,
    pub(crate) encoded: EncodedAggregation,
    pub(crate) shards: Vec<EncodedShard>,
    pub(crate) heads: Vec<ShardHead>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) entries: Vec<BlockEntry>,
    pub(crate) record: Option<Record>,
    /// Manifest and body before they were compressed and sealed.
    pub(crate) manifest: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// Blocks that compress, blocks that do not, a delete alone, a part of a checkpoint, and both kinds of records.
pub(crate) static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let index = |index| BlockIndex::new(index).expect("a low index");
    let set = |sequence: u64, data: &[u8]| {
        let (at, time) = (index(sequence % 10 * 7), Timestamp(1_500_000_000_000_000_000 + sequence % 3));
        Block::set(Sequence(sequence), at, time, Bytes::copy_from_slice(data))
    };
    let noise: Vec<u8> = (0..100_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let delete = Block::delete(Sequence(11), index(77), Timestamp(1_500_000_000_000_000_001));
    let text = b"some text, some text, some text, some text";
    let mark = Record::Mark(Mark { name: MarkName::new("before").expect("a name"), place: place() });
    let mut image = vec![set(20, &noise), set(5, text), delete.clone()];
    image.sort_by_key(|block| block.index);
    vec![
        Base::of_blocks(4, 2, vec![set(9, text), set(10, &noise), delete.clone()]),
        Base::of_blocks(2, 1, vec![set(9, &noise), set(10, &noise)]),
        Base::of_blocks(1, 0, vec![delete]),
        Base::without_writes(2, 1, Content::Checkpoint(&image), image.clone(), None),
        Base::without_writes(1, 1, Content::Record(&mark), Vec::new(), Some(mark.clone())),
        {
            let checkpoint = checkpoint();
            Base::without_writes(1, 1, Content::Record(&checkpoint), Vec::new(), Some(checkpoint.clone()))
        },
    ]
});

pub(crate) fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).expect("a legal id")
}

pub(crate) fn master() -> MasterKey {
    MasterKey::from_bytes([0x42; 32])
}

fn keys() -> VdiskKeys {
    VdiskKeys::new(vdisk(VDISK), Arc::new(Keyring::new(master())))
}

pub(crate) fn opener() -> Opener {
    Opener::new(keys())
}

fn sealer(data: usize, parity: usize) -> Sealer {
    Sealer::new(keys(), Redundancy::new(data, parity).expect("few shards"))
}

fn place() -> PlaceInLog {
    PlaceInLog {
        aggregation: AggregationNumber(6),
        id: AggregationId([6; 32]),
        blocks: 2,
        of: 5,
        position: LogPosition { generation: Generation(3), sequence: Sequence(1200) },
        timestamp: Timestamp(1_500_000_000_000_000_000),
    }
}

fn checkpoint() -> Record {
    let part = |number: u64, first, last| CheckpointPart {
        number: AggregationNumber(number),
        id: AggregationId([number as u8; 32]),
        blocks: 3,
        first: BlockIndex::new(first).expect("a low index"),
        last: BlockIndex::new(last).expect("a low index"),
    };
    Record::Checkpoint(CheckpointRecord {
        place: place(),
        block_size: 64,
        blocks: 6,
        bytes: 300,
        base: None,
        parts: vec![part(7, 0, 70), part(8, 71, 900)],
    })
}

impl Base {
    fn of_blocks(data: usize, parity: usize, blocks: Vec<Block>) -> Self {
        let request = SealRequest {
            number: AggregationNumber(9),
            generation: Generation(3),
            session: SessionId(0x5e55),
            sealed_at: Timestamp(1_500_000_000_000_000_009),
            block_size: 0,
            nonce: *b"\x01twelve byte",
            finding: Finding::default(),
            blocks: &blocks,
        };
        let sealed = sealer(data, parity).seal(request).expect("good blocks");
        Self::new(sealed.link(AggregationId::BEFORE_FIRST), blocks.clone(), None)
    }

    fn without_writes(
        data: usize,
        parity: usize,
        content: Content<'_>,
        blocks: Vec<Block>,
        record: Option<Record>,
    ) -> Self {
        let request = WithoutWrites {
            number: AggregationNumber(9),
            after: LogPosition { generation: Generation(3), sequence: Sequence(1200) },
            session: SessionId(0x5e55),
            about: Timestamp(1_500_000_000_000_000_000),
            sealed_at: Timestamp(1_500_000_000_000_000_009),
            block_size: 128,
            nonce: [8; 12],
            finding: Finding { time_reach: TimeReach::covering(1000), record_before: None },
            content,
        };
        let sealed = sealer(data, parity).seal_without_writes(request).expect("good content");
        Self::new(sealed.link(AggregationId::BEFORE_FIRST), blocks, record)
    }

    fn new(encoded: EncodedAggregation, blocks: Vec<Block>, record: Option<Record>) -> Self {
        let shards: Vec<EncodedShard> = (0..).map_while(|i| encoded.shard(i, Epoch(7))).collect();
        let vdisk = vdisk(VDISK);
        let heads =
            shards.iter().map(|shard| ShardHead::parse(&vdisk, &shard.head).expect("what was sealed"));
        let heads: Vec<ShardHead> = heads.collect();
        let entries =
            if record.is_some() { Vec::new() } else { blocks.iter().map(BlockEntry::from).collect() };
        let head = Head::take_apart(&shards[0].head);
        let manifest = record.as_ref().map_or_else(|| by_hand::manifest_of(&blocks), by_hand::record_of);
        let body = by_hand::body_of(VDISK, 1_500_000_000_000_000_009, &blocks);
        Self { head, encoded, shards, heads, blocks, entries, record, manifest, body }
    }

    pub(crate) fn payloads(&self) -> Vec<Option<Bytes>> {
        self.shards.iter().map(|shard| Some(shard.payload.clone())).collect()
    }
}
