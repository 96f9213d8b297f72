//! Golden files: what an aggregation is made of, as text, and its stored shards. `tests/golden/v2/README.md` has the layout.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use tlog_codec::{EncodedShard, Redundancy, SealRequest};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Operation, Sequence, SessionId,
    Timestamp, VdiskId,
};

/// The folder of all golden aggregations of format 2; each folder in it is one.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2")
}

/// What an aggregation is made of, and what comes out of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Golden {
    pub vdisk: VdiskId,
    pub number: AggregationNumber,
    pub generation: Generation,
    pub session: SessionId,
    pub sealed_at: Timestamp,
    /// The longest block before it.
    pub block_size: u32,
    pub nonce: [u8; 12],
    pub redundancy: Redundancy,
    pub epoch: Epoch,
    pub prev: AggregationId,
    pub id: AggregationId,
    pub blocks: Vec<Block>,
}

impl Golden {
    pub fn request(&self) -> SealRequest<'_> {
        SealRequest {
            number: self.number,
            generation: self.generation,
            session: self.session,
            sealed_at: self.sealed_at,
            block_size: self.block_size,
            nonce: self.nonce,
            finding: Default::default(),
            blocks: &self.blocks,
        }
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| writeln!(text, "{name} {value}").unwrap();
        line("vdisk", &self.vdisk);
        line("number", &self.number);
        line("generation", &self.generation);
        line("session", &self.session);
        line("sealed-at", &self.sealed_at);
        line("block-size", &self.block_size);
        line("nonce", &hex::encode(self.nonce));
        line("data-shards", &self.redundancy.data());
        line("parity-shards", &self.redundancy.parity());
        line("epoch", &self.epoch);
        line("prev", &self.prev);
        line("id", &self.id);
        for block in &self.blocks {
            let at = format!("{} {} {}", block.sequence, block.index, block.timestamp);
            match block.operation {
                Operation::Set => line("set", &format!("{at} {}", hex::encode(&block.data))),
                Operation::Delete => line("delete", &at),
            }
        }
        text
    }

    pub fn from_text(text: &str) -> Self {
        let lines: Vec<(&str, &str)> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        let field = |name: &str| lines.iter().find(|line| line.0 == name).expect(name).1;
        fn number<T: FromStr>(text: &str) -> T {
            text.parse().ok().expect("a number")
        }
        fn bytes<const N: usize>(text: &str) -> [u8; N] {
            hex::decode(text).unwrap().try_into().unwrap()
        }
        let block = |rest: &str| {
            let mut words = rest.split(' ');
            let mut next = || words.next().unwrap();
            let sequence = Sequence(number(next()));
            let index = BlockIndex::new(number(next())).unwrap();
            let timestamp = Timestamp(number(next()));
            (sequence, index, timestamp, words.next().map(str::to_owned))
        };
        let blocks = lines.iter().filter_map(|(name, rest)| match *name {
            "set" => {
                let (sequence, index, timestamp, data) = block(rest);
                let data = hex::decode(data.unwrap()).unwrap();
                Some(Block::set(sequence, index, timestamp, data.into()))
            }
            "delete" => {
                let (sequence, index, timestamp, _) = block(rest);
                Some(Block::delete(sequence, index, timestamp))
            }
            _ => None,
        });
        Self {
            vdisk: VdiskId::new(field("vdisk")).unwrap(),
            number: AggregationNumber(number(field("number"))),
            generation: Generation(number(field("generation"))),
            session: SessionId(number(field("session"))),
            sealed_at: Timestamp(number(field("sealed-at"))),
            block_size: number(field("block-size")),
            nonce: bytes(field("nonce")),
            redundancy: Redundancy::new(number(field("data-shards")), number(field("parity-shards")))
                .unwrap(),
            epoch: Epoch(number(field("epoch"))),
            prev: AggregationId(bytes(field("prev"))),
            id: AggregationId(bytes(field("id"))),
            blocks: blocks.collect(),
        }
    }

    /// Reads the text and all stored shards of one folder.
    pub fn load(folder: &Path) -> (Self, Vec<EncodedShard>) {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let golden = Self::from_text(std::str::from_utf8(&read("aggregation.txt")).unwrap());
        let shards = (0..golden.redundancy.total()).map(|i| EncodedShard {
            head: Bytes::from(read(&format!("shard-{i}.head"))),
            payload: Bytes::from(read(&format!("shard-{i}.payload"))),
        });
        let shards = shards.collect();
        (golden, shards)
    }
}

/// The folders of all golden aggregations, in the order of their numbers.
pub fn all() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    assert!(!folders.is_empty(), "no golden aggregations in {}", folder().display());
    folders
}
