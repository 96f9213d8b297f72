//! The stages of making an aggregation of blocks and of reading it back, each by itself on one thread, from nothing but memory.
//!
//! Compressing and splitting cannot be called by themselves: they are inside `Sealer::seal`. What is told as theirs is what sealing
//! takes beyond the parts of it that can.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tlog_codec::{
    Finding, Keyring, MasterKey, Opener, Redundancy, SealRequest, Sealer, ShardHead, VdiskKeys, rebuild,
};
use tlog_crypto::{DataKey, blake3_256};
use tlog_proto::{
    Aggregation, AggregationId, AggregationNumber, Block, BlockHash, ClientMessage, Epoch, Generation,
    Limits, Sequence, SessionId, Timestamp, VdiskId, hash_many,
};

use super::data::Content;
use super::figures::Figures;

/// How long each stage is measured.
const EACH: Duration = Duration::from_millis(200);

/// Aggregations of so many blocks, split like this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) blocks: usize,
    pub(crate) redundancy: Redundancy,
}

/// One aggregation, in each form that it goes through.
struct Subject {
    vdisk: VdiskId,
    blocks: Vec<Block>,
    /// As they come from a client.
    wire: Vec<Bytes>,
    sealer: Sealer,
    opener: Opener,
    head: ShardHead,
    /// Head part and payload of every shard.
    shards: Vec<(Bytes, Bytes)>,
}

impl Shape {
    fn subject(self, content: &Content) -> anyhow::Result<Subject> {
        let vdisk = VdiskId::new("bench")?;
        let blocks: Vec<Block> = (0..self.blocks as u64)
            .map(|number| {
                let (index, data) = content.write(0, number);
                Block::set(
                    Sequence(number + 1),
                    index,
                    Timestamp(1_500_000_000_000_000_000 + number * 1000),
                    data,
                )
            })
            .collect();
        let wire = blocks.iter().map(|block| {
            let mut wire = BytesMut::new();
            block.encode_into(&mut wire);
            wire.freeze()
        });
        let wire = wire.collect();
        let keys = VdiskKeys::new(vdisk.clone(), Arc::new(Keyring::new(MasterKey::generate()?)));
        let sealer = Sealer::new(keys.clone(), self.redundancy);
        let sealed = sealer.seal(request(&blocks, 0))?.link(AggregationId::BEFORE_FIRST);
        let shards = (0..self.redundancy.total()).map(|index| {
            let shard = sealed.shard(index, Epoch(1)).context("no such shard")?;
            Ok((shard.head, shard.payload))
        });
        let shards = shards.collect::<anyhow::Result<Vec<_>>>()?;
        let (head, _) = shards.first().context("no shards")?;
        let head = ShardHead::parse(&vdisk, head)?;
        Ok(Subject { vdisk, blocks, wire, sealer, opener: Opener::new(keys), head, shards })
    }

    /// Bytes of the largest shard, head part and payload.
    pub(crate) fn shard_bytes(self, content: &Content) -> anyhow::Result<(usize, usize)> {
        let subject = self.subject(content)?;
        let (head, payload) = subject.shards.first().context("no shards")?;
        Ok((head.len(), payload.len()))
    }

    /// Measures every stage. Others get their turn between two stages.
    pub(crate) async fn measure(self, content: &Content) -> anyhow::Result<Figures> {
        let subject = self.subject(content)?;
        let mut stages =
            Stages { blocks: self.blocks, block_size: content.block_size(), figures: Figures::default() };
        subject.writing(&mut stages).await?;
        subject.reading(&mut stages, self.redundancy).await?;
        Ok(stages.figures)
    }
}

fn request(blocks: &[Block], nonce: u64) -> SealRequest<'_> {
    let mut bytes = [0; 12];
    for (to, from) in bytes.iter_mut().skip(1).zip(nonce.to_le_bytes()) {
        *to = from;
    }
    SealRequest {
        number: AggregationNumber(1),
        generation: Generation(0),
        session: SessionId(1),
        sealed_at: Timestamp(1_500_000_000_000_000_000),
        block_size: 0,
        nonce: bytes,
        finding: Finding::default(),
        blocks,
    }
}

impl Subject {
    async fn writing(&self, stages: &mut Stages) -> anyhow::Result<()> {
        let limits = Limits::default();
        stages
            .measure("parse", "parse a block that came", || {
                for wire in &self.wire {
                    let _block = black_box(ClientMessage::decode_from_slice(wire, &limits));
                }
            })
            .await;
        stages
            .measure("hash_one", "hash blocks, one by one", || {
                for block in &self.blocks {
                    let _hash = black_box(BlockHash::of(&block.data));
                }
            })
            .await;
        stages
            .measure("hash_many", "hash blocks, side by side", || {
                drop(black_box(hash_many(self.blocks.iter().map(|block| &block.data[..]))));
            })
            .await;
        let aggregation = Aggregation {
            name: String::new(),
            timestamp: Timestamp(1),
            vdisk_id: self.vdisk.clone(),
            blocks: self.blocks.clone(),
            prev: Bytes::new(),
        };
        let aggregate = stages
            .measure("aggregate", "put into one message", || {
                let mut body = BytesMut::new();
                aggregation.encode_into(&mut body);
                black_box(body);
            })
            .await;
        let key = DataKey::derive(&MasterKey::generate()?, b"bench", 0);
        let mut body = vec![7; usize::try_from(self.head.header.body_sealed).unwrap_or_default()];
        let mut nonce = 0u64;
        let encrypt = stages
            .measure("encrypt", "encrypt (AES-256-GCM)", || {
                nonce += 1;
                let mut bytes = [0; 12];
                bytes.iter_mut().zip(nonce.to_le_bytes()).for_each(|(to, from)| *to = from);
                let _tag = black_box(key.seal_in_place(&mut body, bytes, b"bench"));
            })
            .await;
        let payloads: Vec<&[u8]> = self.shards.iter().map(|(_, payload)| &payload[..]).collect();
        let hash = stages
            .measure("hash_shards", "hash the shards (BLAKE3)", || {
                for payload in &payloads {
                    let _hash = black_box(blake3_256(payload));
                }
            })
            .await;
        let mut seals = 0;
        let seal = stages
            .measure("seal", "seal: all of it", || {
                seals += 1;
                let _sealed = black_box(self.sealer.seal(request(&self.blocks, seals)));
            })
            .await;
        let rest = (seal - aggregate - encrypt - hash).max(0.0);
        stages.tell("compress_and_split", "of it compress, split, manifest (the rest)", rest);
        let sealed = self.sealer.seal(request(&self.blocks, u64::MAX))?;
        stages
            .measure("link", "link to the chain, make the shards", || {
                let linked = sealed.clone().link(AggregationId::BEFORE_FIRST);
                for index in 0..self.shards.len() {
                    drop(black_box(linked.shard(index, Epoch(1))));
                }
            })
            .await;
        Ok(())
    }

    async fn reading(&self, stages: &mut Stages, redundancy: Redundancy) -> anyhow::Result<()> {
        let all: Vec<Option<Bytes>> = self.shards.iter().map(|(_, payload)| Some(payload.clone())).collect();
        let lost = redundancy.parity().min(redundancy.data());
        let some: Vec<Option<Bytes>> =
            all.iter().enumerate().map(|(at, payload)| payload.clone().filter(|_| at >= lost)).collect();
        stages
            .measure("read_verify", "reading: heads and hashes of k shards", || {
                for (head, payload) in self.shards.iter().take(redundancy.data()) {
                    if let Ok(head) = ShardHead::parse(&self.vdisk, head) {
                        let _whole = black_box(head.verify_payload(payload));
                    }
                }
            })
            .await;
        stages
            .measure("read_open", "reading: open, blocks and their hashes", || {
                let _blocks = black_box(self.opener.blocks(&self.head, &all));
            })
            .await;
        if lost > 0 {
            stages
                .measure("read_open_lost", "reading: the same with m shards lost", || {
                    let _blocks = black_box(self.opener.blocks(&self.head, &some));
                })
                .await;
            stages
                .measure("rebuild", "rebuild the lost shards", || {
                    let _rebuilt = black_box(rebuild(&self.head, &some));
                })
                .await;
        }
        // What does not work must not be taken for fast.
        let blocks = self.opener.blocks(&self.head, &some)?;
        anyhow::ensure!(blocks == self.blocks, "what was sealed does not open to what it was");
        Ok(())
    }
}

/// What was measured so far.
struct Stages {
    blocks: usize,
    block_size: usize,
    figures: Figures,
}

impl Stages {
    /// Does something to all blocks again and again. Answers the median of it for one block, in microseconds.
    async fn measure(&mut self, key: &str, label: &str, mut once: impl FnMut()) -> f64 {
        once();
        let mut rounds = Vec::new();
        let end = Instant::now() + EACH;
        while Instant::now() < end {
            let begun = Instant::now();
            once();
            rounds.push(begun.elapsed().as_secs_f64() * 1e6 / self.blocks as f64);
        }
        rounds.sort_by(f64::total_cmp);
        let median = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
        self.tell(key, label, median);
        tokio::task::yield_now().await;
        median
    }

    fn tell(&mut self, key: &str, label: &str, micros: f64) {
        self.figures.add(format!("{key}_us_per_block"), format!("{label}, us/block"), micros);
        if micros > 0.0 {
            let speed = self.block_size as f64 / micros / 1000.0;
            self.figures.add(format!("{key}_gb_per_s"), format!("{label}, GB/s"), speed);
        }
    }
}
