//! Writes in the log's order, put together into what is applied at once. Pure.
//!
//! Only writes that follow each other in the log and are on the same data store go together: that store takes them all or none, and
//! everything before them is applied already. So the blocks are those after some write of the log at every instant.

use std::collections::HashMap;

use bytes::Bytes;
use tlog_proto::{Block, BlockIndex, Operation};
use tlog_store::slave::{BlockChange, LastWrite, SlavePoint, SlavePosition};

/// Changes in one run: a script must not take long.
const MOST_CHANGES: usize = 512;
/// Bytes of content in one run. One block that is larger goes alone.
const MOST_BYTES: usize = 1 << 20;

/// What one data store is to take at once.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) store: usize,
    /// Each block once, as it is after the run.
    pub(crate) changes: Vec<BlockChange>,
    /// Where the log is then.
    pub(crate) to: SlavePosition,
    /// Writes of the log in it, and their bytes.
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    /// Where in `changes` a block is.
    places: HashMap<BlockIndex, usize>,
    /// Bytes of content in `changes`.
    size: usize,
}

impl Run {
    fn new(store: usize, to: SlavePosition) -> Self {
        Self { store, changes: Vec::new(), to, writes: 0, bytes: 0, places: HashMap::new(), size: 0 }
    }

    fn has_room_for(&self, block: &Block) -> bool {
        self.changes.len() < MOST_CHANGES && self.size + block.size() <= MOST_BYTES
    }

    fn add(&mut self, block: &Block, to: SlavePosition) {
        // Copied: blocks share the memory of their aggregation, and a run may have few blocks of each of many.
        let data = (block.operation == Operation::Set).then(|| Bytes::copy_from_slice(&block.data));
        let change = BlockChange { index: block.index, data };
        let size = |change: &BlockChange| change.data.as_ref().map_or(0, |data| data.len());
        self.size += size(&change);
        let at = *self.places.entry(block.index).or_insert(self.changes.len());
        match self.changes.get_mut(at) {
            Some(earlier) => {
                self.size -= size(earlier);
                *earlier = change;
            }
            None => self.changes.push(change),
        }
        self.to = to;
        self.writes += 1;
        self.bytes += block.size() as u64;
    }
}

/// Puts writes together.
#[derive(Debug)]
pub(crate) struct Runs {
    stores: u64,
    open: Option<Run>,
}

impl Runs {
    /// For a cluster of so many data stores, one at least.
    pub(crate) fn new(stores: usize) -> Self {
        Self { stores: stores.max(1) as u64, open: None }
    }

    /// Takes the next write of the log. Answers the run before it, if this one cannot be part of it.
    pub(crate) fn push(&mut self, block: &Block, point: SlavePoint, last: LastWrite) -> Option<Run> {
        let store = (block.index.get() % self.stores) as usize;
        let to = SlavePosition { point, last: Some(last) };
        let fits = self.open.as_ref().is_some_and(|run| run.store == store && run.has_room_for(block));
        let before = if fits { None } else { self.open.take() };
        self.open.get_or_insert_with(|| Run::new(store, to)).add(block, to);
        before
    }

    /// The run that is still open, if there is one.
    pub(crate) fn take(&mut self) -> Option<Run> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp};

    /// Store, blocks in it, writes, and how far.
    type Shown = (usize, Vec<(u64, usize)>, u64, u32);

    /// The runs of writes. A write is its index and how many bytes; 0 deletes.
    fn runs_of(stores: usize, writes: &[(u64, usize)]) -> Vec<Shown> {
        let mut runs = Runs::new(stores);
        let mut done = Vec::new();
        for (at, &(index, size)) in (1..).zip(writes) {
            let (index, sequence) = (BlockIndex::new(index).unwrap(), Sequence(u64::from(at)));
            let block = match size {
                0 => Block::delete(sequence, index, Timestamp(1)),
                size => Block::set(sequence, index, Timestamp(1), Bytes::from(vec![1; size])),
            };
            let id = AggregationId([1; 32]);
            let point = SlavePoint { aggregation: AggregationNumber(1), blocks: at, id };
            let position = LogPosition { generation: Generation(1), sequence };
            done.extend(runs.push(&block, point, LastWrite { position, timestamp: Timestamp(1) }));
        }
        done.extend(runs.take());
        assert!(runs.take().is_none());
        let size = |change: &BlockChange| change.data.as_ref().map_or(0, |data| data.len());
        let shown = |run: Run| {
            let changes = run.changes.iter().map(|change| (change.index.get(), size(change))).collect();
            (run.store, changes, run.writes, run.to.point.blocks)
        };
        done.into_iter().map(shown).collect()
    }

    #[test]
    fn writes_go_together_only_while_they_are_on_one_store() {
        let runs = runs_of(2, &[(0, 5), (2, 5), (1, 5), (4, 0), (6, 5)]);
        let expected =
            [(0, vec![(0, 5), (2, 5)], 2, 2), (1, vec![(1, 5)], 1, 3), (0, vec![(4, 0), (6, 5)], 2, 5)];
        assert_eq!(runs, expected);
    }

    #[test]
    fn of_writes_to_one_block_in_a_run_the_last_counts() {
        let runs = runs_of(1, &[(7, 5), (8, 1), (7, 0), (7, 9), (8, 0)]);
        assert_eq!(runs, [(0, vec![(7, 9), (8, 0)], 5, 5)]);
    }

    #[test]
    fn a_run_is_bounded_in_blocks_and_bytes() {
        let many: Vec<(u64, usize)> = (0..1200).map(|index| (index, 1)).collect();
        let lengths: Vec<usize> = runs_of(1, &many).iter().map(|run| run.1.len()).collect();
        assert_eq!(lengths, [512, 512, 176]);
        let large = [(1, 600 << 10), (2, 600 << 10), (3, 3 << 20), (4, 1)];
        let runs = runs_of(1, &large);
        assert_eq!(runs.iter().map(|run| run.3).collect::<Vec<_>>(), [1, 2, 3, 4]);
        // Of one block what counts is what is left of it.
        let same = vec![(1, 100 << 10); 30];
        assert_eq!(runs_of(1, &same), [(0, vec![(1, 100 << 10)], 30, 30)]);
    }
}
