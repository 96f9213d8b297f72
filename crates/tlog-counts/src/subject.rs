//! Blocks, and one aggregation of them in each form that it goes through. The same ones each time.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use tlog_codec::{
    Finding, Keyring, MasterKey, Opener, Redundancy, SealRequest, Sealed, Sealer, ShardHead, VdiskKeys,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
    VdiskId,
};

/// Bytes of a block.
pub(crate) const BLOCK_SIZE: usize = 4096;

/// Data and parity shards.
pub(crate) const SHARDS: (usize, usize) = (4, 2);

/// What is in the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nothing that could be compressed.
    Random,
    /// Words.
    Text,
}

/// An aggregation.
pub(crate) struct Subject {
    pub(crate) vdisk: VdiskId,
    pub(crate) blocks: Vec<Block>,
    /// All of them as a client sends them, one after the other.
    pub(crate) wire: Vec<u8>,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) sealed: Sealed,
    pub(crate) head: ShardHead,
    /// Head part and payload of every shard.
    pub(crate) shards: Vec<(Bytes, Bytes)>,
}

impl Subject {
    pub(crate) fn new(count: usize, data: Data) -> Result<Self> {
        let blocks = blocks(count, data)?;
        let mut wire = BytesMut::new();
        blocks.iter().for_each(|block| block.encode_into(&mut wire));
        let vdisk = vdisk()?;
        let redundancy = Redundancy::new(SHARDS.0, SHARDS.1)?;
        let sealer = Sealer::new(keys()?, redundancy);
        let sealed = sealer.seal(request(&blocks))?;
        let linked = sealed.clone().link(AggregationId::BEFORE_FIRST);
        let shard = |index| linked.shard(index, Epoch(1)).map(|shard| (shard.head, shard.payload));
        let shards: Vec<_> = (0..redundancy.total()).filter_map(shard).collect();
        let (head, _) = shards.first().context("no shards")?;
        let head = ShardHead::parse(&vdisk, head)?;
        let opener = Opener::new(keys()?);
        Ok(Self { vdisk, blocks, wire: wire.to_vec(), sealer, opener, sealed, head, shards })
    }

    /// All payloads, but for the first few, which are lost.
    pub(crate) fn payloads(&self, lost: usize) -> Vec<Option<Bytes>> {
        let payloads = self.shards.iter().enumerate();
        payloads.map(|(index, (_, payload))| (index >= lost).then(|| payload.clone())).collect()
    }
}

/// The vdisk of all stages.
pub(crate) fn vdisk() -> Result<VdiskId> {
    Ok(VdiskId::new("counts")?)
}

/// Its keys.
pub(crate) fn keys() -> Result<VdiskKeys> {
    Ok(VdiskKeys::new(vdisk()?, Arc::new(Keyring::new(MasterKey::from_bytes([7; 32])))))
}

/// What is to be sealed: always under the same nonce, as nothing of it is kept.
pub(crate) fn request(blocks: &[Block]) -> SealRequest<'_> {
    SealRequest {
        number: AggregationNumber(1),
        generation: Generation(0),
        session: SessionId(1),
        sealed_at: Timestamp(1_500_000_000_000_000_000),
        block_size: 0,
        nonce: [6; 12],
        finding: Finding::default(),
        blocks,
    }
}

/// Blocks from sequence 1 on, scattered over a disk.
pub(crate) fn blocks(count: usize, data: Data) -> Result<Vec<Block>> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    (1..=count as u64)
        .map(|number| {
            let index = BlockIndex::new(random.next() % 262_144).context("no such index")?;
            let bytes = match data {
                Data::Random => random.bytes(),
                Data::Text => random.words(),
            };
            let timestamp = Timestamp(1_500_000_000_000_000_000 + number * 1000);
            Ok(Block::set(Sequence(number), index, timestamp, bytes.into()))
        })
        .collect()
}

/// SplitMix64: the same numbers on every machine and with every version of every crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..BLOCK_SIZE / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    fn words(&mut self) -> Vec<u8> {
        const WORDS: [&str; 8] = ["write", "of", "the", "virtual", "disk", "log", "until", "restored"];
        let mut text = Vec::with_capacity(BLOCK_SIZE + 32);
        while text.len() < BLOCK_SIZE {
            let number = self.next();
            let word = WORDS.get(number as usize % WORDS.len()).copied().unwrap_or_default();
            text.extend_from_slice(word.as_bytes());
            text.push(if number >> 32 & 7 == 0 { b'\n' } else { b' ' });
        }
        text.truncate(BLOCK_SIZE);
        text
    }
}
