//! What is written: which block, and with what in it. Made anew from a number, so that nothing has to be remembered to know
//! afterwards what should be in the log.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tlog_proto::BlockIndex;

/// Bytes that random and text blocks are cut out of: more than fits the caches of small processors, so that what is sent comes from
/// memory, as the writes of a disk do.
const POOL: usize = 32 << 20;

/// Most bytes of a block.
const MOST_OF_A_BLOCK: usize = 64 << 20;

/// Most bytes of an image that are kept in memory.
const MOST_OF_AN_IMAGE: u64 = 512 << 20;

/// What is in the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DataKind {
    /// Nothing that could be compressed.
    Random,
    /// English words.
    Text,
    /// Zeros.
    Zero,
    /// The blocks of a disk image, in order, from the beginning again when it is over.
    Image(PathBuf),
}

impl FromStr for DataKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "random" => Ok(Self::Random),
            None if text == "text" => Ok(Self::Text),
            None if text == "zero" => Ok(Self::Zero),
            Some(("image", file)) if !file.is_empty() => Ok(Self::Image(file.into())),
            _ => Err("it must be random, text, zero or image:FILE".to_owned()),
        }
    }
}

impl DataKind {
    /// In one word.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Text => "text",
            Self::Zero => "zero",
            Self::Image(_) => "image",
        }
    }
}

/// The writes of a measurement.
///
/// Blocks share the memory of a pool, so that making one costs nothing: block after block of it, and 8 bytes further on in each
/// round. So no two of millions of random or text blocks are alike, those that are near each other have nothing in common, and the server
/// has as much to do as for any others.
#[derive(Debug)]
pub(crate) struct Content {
    pool: Bytes,
    kind: DataKind,
    block_size: usize,
    disk_blocks: u64,
    seed: u64,
}

impl Content {
    /// Blocks of `block_size` bytes on a disk of so many of them.
    pub(crate) fn new(
        kind: DataKind,
        block_size: usize,
        disk_blocks: u64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        if block_size > MOST_OF_A_BLOCK {
            bail!(
                "{block_size} bytes are more than is measured: blocks and values of at most {MOST_OF_A_BLOCK}"
            );
        }
        let mut rng = SmallRng::seed_from_u64(seed);
        let pool_bytes = POOL.max(4 * block_size);
        let pool = match &kind {
            DataKind::Random => {
                let mut pool = vec![0; pool_bytes];
                rng.fill_bytes(&mut pool);
                pool
            }
            DataKind::Text => text(pool_bytes, &mut rng),
            DataKind::Zero => vec![0; block_size],
            DataKind::Image(path) => image(path, block_size)?,
        };
        Ok(Self { pool: pool.into(), kind, block_size, disk_blocks: disk_blocks.max(1), seed })
    }

    /// Bytes of a block.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// What blocks are cut out of.
    pub(crate) fn pool(&self) -> &Bytes {
        &self.pool
    }

    /// The `number`th write of a vdisk, from 0.
    pub(crate) fn write(&self, vdisk: u32, number: u64) -> (BlockIndex, Bytes) {
        let size = self.block_size as u64;
        let in_pool = self.pool.len() as u64 / size;
        let (index, offset) = match self.kind {
            DataKind::Image(_) | DataKind::Zero => {
                let at = number % in_pool.max(1);
                let index = if self.kind == DataKind::Zero { self.index(vdisk, number) } else { at };
                (index, at * size)
            }
            // The last block of the pool is left for what the others are moved by.
            DataKind::Random | DataKind::Text => {
                let at = number.wrapping_add(u64::from(vdisk) * 7919);
                let in_round = in_pool - 1;
                let moved = (at / in_round * 8) % size;
                (self.index(vdisk, number), at % in_round * size + moved)
            }
        };
        let begin = usize::try_from(offset).unwrap_or_default();
        let data = self.pool.slice(begin..begin + self.block_size);
        (BlockIndex::new(index).unwrap_or_default(), data)
    }

    /// Anywhere on the disk (SplitMix64 of the number).
    fn index(&self, vdisk: u32, number: u64) -> u64 {
        let mut z = self.seed ^ (u64::from(vdisk) << 40) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % self.disk_blocks
    }
}

fn text(bytes: usize, rng: &mut SmallRng) -> Vec<u8> {
    const WORDS: [&str; 24] = [
        "the",
        "log",
        "of",
        "a",
        "virtual",
        "disk",
        "keeps",
        "every",
        "write",
        "in",
        "order",
        "until",
        "it",
        "is",
        "restored",
        "again",
        "server",
        "client",
        "error",
        "warning",
        "request",
        "from",
        "connection",
        "to",
    ];
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        let word = WORDS.get(rng.random_range(0..WORDS.len())).copied().unwrap_or_default();
        out.extend_from_slice(word.as_bytes());
        match rng.random_range(0..12) {
            0 => out.push(b'\n'),
            1 => out.extend_from_slice(rng.random_range(0..10_000u32).to_string().as_bytes()),
            _ => out.push(b' '),
        }
    }
    out.truncate(bytes);
    out
}

fn image(path: &Path, block_size: usize) -> anyhow::Result<Vec<u8>> {
    let told = || format!("the image {}", path.display());
    let mut image = Vec::new();
    File::open(path).with_context(told)?.take(MOST_OF_AN_IMAGE).read_to_end(&mut image).with_context(told)?;
    if image.len() < block_size {
        bail!("{} has less than one block of {block_size} bytes", told());
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_random_and_text_block_is_another_one_and_can_be_made_again() {
        let check = |kind: DataKind, block_size: usize| {
            let content = Content::new(kind.clone(), block_size, 1000, 7).unwrap();
            let again = Content::new(kind, block_size, 1000, 7).unwrap();
            let mut seen = HashSet::new();
            for number in (0..20_000).chain(1_000_000..1_010_000) {
                let (index, data) = content.write(1, number);
                assert_eq!((index, &data), (again.write(1, number).0, &again.write(1, number).1));
                assert_eq!(data.len(), block_size);
                assert!(index.get() < 1000);
                assert!(seen.insert(tlog_proto::BlockHash::of(&data)), "block {number} is there twice");
            }
        };
        check(DataKind::Random, 4096);
        check(DataKind::Text, 4096);
        check(DataKind::Random, 512);
    }

    #[test]
    fn an_image_is_written_in_order_and_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [[1; 512], [2; 512], [3; 512]].concat()).unwrap();
        let content = Content::new(DataKind::Image(file.path().into()), 512, 1, 7).unwrap();
        for (number, filled) in [(0, 1), (1, 2), (2, 3), (3, 1)] {
            let (index, data) = content.write(0, number);
            assert_eq!((index.get(), &data[..]), (number % 3, &[filled; 512][..]));
        }
        assert!(Content::new(DataKind::Image(file.path().into()), 4096, 1, 7).is_err());
        assert!(Content::new(DataKind::Image("/is/not/there".into()), 512, 1, 7).is_err());
    }

    #[test]
    fn kinds_are_named_on_the_command_line() {
        assert_eq!("random".parse(), Ok(DataKind::Random));
        assert_eq!("image:a:b".parse(), Ok(DataKind::Image("a:b".into())));
        assert!("image:".parse::<DataKind>().is_err() && "noise".parse::<DataKind>().is_err());
    }
}
