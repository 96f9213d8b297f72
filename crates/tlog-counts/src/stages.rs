//! The stages, by name.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};

use anyhow::{Context, Result, bail, ensure};
use tlog_codec::{ShardHead, rebuild};
use tlog_proto::{AggregationId, BlockHash, Epoch, FrameReader, Limits, hash_many};

use crate::path::Path;
use crate::storage::Storage;
use crate::subject::{Data, SHARDS, Subject, request};

/// All stages, in the order in which a block goes through them. The number is that of blocks in an aggregation, or sent together.
pub const NAMES: [&str; 17] = [
    "read-frames-250",
    "hash-one-25",
    "hash-together-25",
    "seal-25-random",
    "seal-25-text",
    "seal-250-random",
    "seal-250-text",
    "link-25",
    "server-25",
    "path-25",
    "path-250",
    "read-verify-25",
    "open-25-random",
    "open-25-text",
    "open-250-random",
    "open-25-two-lost",
    "rebuild-25",
];

/// How much is done in all rounds together, in blocks: enough for what happens now and then to count for its share.
const BLOCKS: usize = 1000;

/// A stage that is ready to be done again and again.
pub struct Stage {
    blocks: usize,
    budget: Option<f64>,
    once: Box<dyn FnMut() -> Result<()>>,
}

impl Stage {
    /// That of a name of [`NAMES`].
    pub fn new(name: &str) -> Result<Self> {
        let (blocks, data) = match name {
            name if name.contains("250") => (250, data_of(name)),
            name => (25, data_of(name)),
        };
        let subject = Subject::new(blocks, data)?;
        Ok(Self { blocks, budget: budget(name), once: once(name, subject)? })
    }

    /// Does it once.
    pub fn round(&mut self) -> Result<()> {
        (self.once)()
    }

    /// Blocks of a round.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Rounds to be counted.
    pub fn rounds(&self) -> usize {
        BLOCKS.div_ceil(self.blocks)
    }

    /// What it may take, in microseconds per block; none where nobody has said.
    pub fn budget(&self) -> Option<f64> {
        self.budget
    }
}

fn data_of(name: &str) -> Data {
    if name.contains("text") { Data::Text } else { Data::Random }
}

/// The budget of a block of 4 KiB in aggregations of 25, of a processor with AVX-512 at about 3 GHz, with 4 + 2 shards: receive 0.57, parse
/// 0.16, hash 1.9 together and 3.1 alone, one message 0.13, snappy 0.09, AES 1.3, hashes of shards 3, Reed-Solomon 0.14.
fn budget(name: &str) -> Option<f64> {
    match name {
        "read-frames-250" => Some(0.16),
        "hash-one-25" => Some(3.1),
        "hash-together-25" => Some(1.9),
        "seal-25-random" | "seal-250-random" => Some(0.13 + 0.09 + 1.3 + 3.0 + 0.14),
        "path-25" | "path-250" => Some(0.57 + 0.16 + 1.9 + 0.13 + 0.09 + 1.3 + 3.0 + 0.14),
        _ => None,
    }
}

fn once(name: &str, subject: Subject) -> Result<Box<dyn FnMut() -> Result<()>>> {
    let flush_size = subject.blocks.len();
    Ok(match name {
        "read-frames-250" => Box::new(move || read_frames(&subject)),
        "hash-one-25" => Box::new(move || {
            for block in &subject.blocks {
                black_box(BlockHash::of(&block.data));
            }
            Ok(())
        }),
        "hash-together-25" => Box::new(move || {
            black_box(hash_many(subject.blocks.iter().map(|block| &block.data[..])));
            Ok(())
        }),
        name if name.starts_with("seal-") => Box::new(move || {
            black_box(subject.sealer.seal(request(&subject.blocks))?);
            Ok(())
        }),
        "link-25" => Box::new(move || {
            let linked = subject.sealed.clone().link(AggregationId::BEFORE_FIRST);
            (0..subject.shards.len()).for_each(|index| drop(black_box(linked.shard(index, Epoch(1)))));
            Ok(())
        }),
        "server-25" => along(Storage::Nothing { flush_size }, &subject)?,
        "path-25" | "path-250" => along(Storage::Memory { flush_size }, &subject)?,
        "read-verify-25" => Box::new(move || {
            let (data_shards, _) = SHARDS;
            for (head, payload) in subject.shards.iter().take(data_shards) {
                ShardHead::parse(&subject.vdisk, head)?.verify_payload(payload)?;
            }
            Ok(())
        }),
        "open-25-two-lost" => opening(subject, 2),
        name if name.starts_with("open-") => opening(subject, 0),
        "rebuild-25" => {
            let payloads = subject.payloads(2);
            Box::new(move || {
                black_box(rebuild(&subject.head, &payloads)?);
                Ok(())
            })
        }
        name => bail!("there is no stage {name}"),
    })
}

fn along(storage: Storage, subject: &Subject) -> Result<Box<dyn FnMut() -> Result<()>>> {
    let mut path = Path::new(storage, &subject.blocks)?;
    Ok(Box::new(move || path.round()))
}

fn opening(subject: Subject, lost: usize) -> Box<dyn FnMut() -> Result<()>> {
    let payloads = subject.payloads(lost);
    Box::new(move || {
        let blocks = subject.opener.blocks(&subject.head, &payloads)?;
        ensure!(black_box(blocks).len() == subject.blocks.len(), "blocks are missing");
        Ok(())
    })
}

/// Takes the messages of a client out of what has arrived, as a connection does.
fn read_frames(subject: &Subject) -> Result<()> {
    let reading = async {
        let mut frames = FrameReader::new(&subject.wire[..], Limits::default());
        let mut count = 0;
        while let Some(message) = frames.client_message().await? {
            black_box(message);
            count += 1;
        }
        Ok::<_, anyhow::Error>(count)
    };
    ensure!(at_once(reading)?? == subject.blocks.len(), "messages are missing");
    Ok(())
}

/// What a future answers that never waits.
fn at_once<T>(future: impl Future<Output = T>) -> Result<T> {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
    .context("it waits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_can_be_done_again_and_again() {
        for name in NAMES {
            let mut stage = Stage::new(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            for _ in 0..3 {
                stage.round().unwrap_or_else(|error| panic!("{name}: {error:#}"));
            }
            assert!(stage.rounds() * stage.blocks() >= BLOCKS);
        }
        assert!(Stage::new("seal-nothing").is_ok_and(|stage| stage.budget().is_none()));
        assert!(Stage::new("no-such-stage").is_err());
    }
}
