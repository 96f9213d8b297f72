//! Which blocks were met, in few bytes.

use std::collections::HashMap;

use tlog_proto::BlockIndex;

/// Blocks of one page: a bit for each, in one line of the processor's cache.
const PAGE: u64 = 512;

/// A set of blocks: one bit each where whole parts of a disk are written, and about a hundred bytes for one that is far from all others.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    pages: HashMap<u64, [u64; PAGE as usize / 64]>,
}

impl BlockSet {
    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, index: BlockIndex) -> bool {
        let (page, at) = (index.get() / PAGE, index.get() % PAGE);
        let words = self.pages.entry(page).or_default();
        let Some(word) = words.get_mut(at as usize / 64) else { return false };
        let bit = 1 << (at % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::collections::HashSet;

    #[test]
    fn it_is_what_a_set_of_indexes_is() {
        let mut rng = SmallRng::seed_from_u64(7);
        let (mut set, mut oracle) = (BlockSet::default(), HashSet::new());
        for nth in 0..20_000 {
            let index = match nth % 4 {
                0 => rng.random_range(0..=i64::MAX as u64),
                _ => rng.random_range(0..3000),
            };
            assert_eq!(set.insert(BlockIndex::new(index).unwrap()), oracle.insert(index), "{index}");
        }
    }
}
