//! BLAKE2b-256 of block data.

use std::fmt;

use blake2b_simd::many::{HashManyJob, hash_many as hash_jobs};
use blake2b_simd::{Hash, Params};

/// BLAKE2b-256 of a block's data (RFC 7693, 32-byte digest, no key).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// Hashes one block.
    pub fn of(data: &[u8]) -> Self {
        Self::from_digest(&params().hash(data))
    }

    fn from_digest(digest: &Hash) -> Self {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest.as_bytes()) {
            *to = *from;
        }
        Self(hash)
    }
}

/// Blocks that are handed to the hash function together: a multiple of how many any processor does side by side.
const TOGETHER: usize = 16;

/// Hashes several blocks at once; faster than one by one where the processor has wide registers. In order.
pub fn hash_many<'a>(blocks: impl IntoIterator<Item = &'a [u8]>) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    hash_many_into(blocks, &mut hashes);
    hashes
}

/// The same, behind what is in `hashes`. Takes no other memory.
pub fn hash_many_into<'a>(blocks: impl IntoIterator<Item = &'a [u8]>, hashes: &mut Vec<BlockHash>) {
    let mut blocks = blocks.into_iter();
    loop {
        let mut some = [&[][..]; TOGETHER];
        let mut count = 0;
        for (place, block) in some.iter_mut().zip(&mut blocks) {
            *place = block;
            count += 1;
        }
        hash_some(some.get(..count).unwrap_or_default(), hashes);
        if count < TOGETHER {
            return;
        }
    }
}

fn hash_some(blocks: &[&[u8]], hashes: &mut Vec<BlockHash>) {
    let params = params();
    let mut all = blocks.iter().chain(filling(blocks)).copied();
    let count = all.clone().count();
    let mut jobs: [_; TOGETHER] =
        std::array::from_fn(|_| HashManyJob::new(&params, all.next().unwrap_or_default()));
    hash_jobs(jobs.iter_mut().take(count));
    hashes.extend(jobs.iter().take(blocks.len()).map(|job| BlockHash::from_digest(&job.to_hash())));
}

/// Blocks to hash once more for nothing. Four side by side take less time than two, where the processor can do four: of 15 equal ones the
/// last three go with one that was there already.
fn filling<'a, 'b>(blocks: &'a [&'b [u8]]) -> &'a [&'b [u8]] {
    let equal = blocks.windows(2).all(|pair| matches!(pair, [a, b] if a.len() == b.len()));
    match blocks.len() % 4 {
        missing @ (2 | 3) if equal => blocks.get(..4 - missing).unwrap_or_default(),
        _ => &[],
    }
}

fn params() -> Params {
    let mut params = Params::new();
    params.hash_length(32);
    params
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake2::digest::consts::U32;
    use blake2::{Blake2b, Digest};

    #[test]
    fn one_and_many_equal_another_implementation() {
        let blocks: Vec<Vec<u8>> = (0..9).map(|i| vec![i as u8; i * 700]).collect();
        let many = hash_many(blocks.iter().map(Vec::as_slice));
        assert_eq!(many.len(), blocks.len());
        for (block, hash) in blocks.iter().zip(many) {
            assert_eq!(hash, BlockHash::of(block));
            assert_eq!(hash.0[..], Blake2b::<U32>::digest(block)[..]);
        }
        for count in 0..40 {
            let equal: Vec<[u8; 300]> = (0..count).map(|i| [i; 300]).collect();
            let expected: Vec<BlockHash> = equal.iter().map(|block| BlockHash::of(block)).collect();
            assert_eq!(hash_many(equal.iter().map(|block| &block[..])), expected);
        }
    }
}
