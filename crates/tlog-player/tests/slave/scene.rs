//! A log, a slave in memory, and what the slave must be after each write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_player::slave::{SlaveCluster, SlaveStatus, SlaveSyncOptions, SlaveSyncState, SlaveSyncer};
use tlog_proto::{Block, BlockIndex, Generation, LogPosition, Operation, Sequence, Timestamp};
use tlog_store::slave::{MemorySlave, SlaveGate, SlavePoint, SlaveStore};
use tokio::sync::watch;

use crate::log::{TestLog, format1_keys};

pub(crate) type Disk = BTreeMap<u64, Bytes>;

/// More than anything here takes on a machine that does ten other things.
const LIMIT: Duration = Duration::from_secs(60);

/// Stores of a slave in memory, behind one gate.
pub(crate) struct Stores {
    pub(crate) gate: Arc<SlaveGate>,
    pub(crate) data: Vec<Arc<MemorySlave>>,
    /// The first data store, or one of its own.
    pub(crate) metadata: Arc<MemorySlave>,
}

impl Stores {
    pub(crate) fn new(count: usize, own_metadata: bool) -> Self {
        let gate = Arc::new(SlaveGate::default());
        let store = |name: String| Arc::new(MemorySlave::new(name, gate.clone()));
        let data: Vec<_> = (0..count).map(|i| store(format!("memory:{i}"))).collect();
        let metadata = if own_metadata { store("memory:metadata".to_owned()) } else { data[0].clone() };
        Self { gate, data, metadata }
    }

    pub(crate) fn cluster(&self, log: &TestLog) -> SlaveCluster {
        let data = self.data.iter().map(|store| store.clone() as Arc<dyn SlaveStore>).collect();
        SlaveCluster::new(log.vdisk.clone(), data, self.metadata.clone()).unwrap()
    }

    /// The disk that the blocks make, each read from where it belongs.
    pub(crate) fn disk(&self, log: &TestLog) -> Disk {
        let mut disk = Disk::new();
        for (at, store) in self.data.iter().enumerate() {
            for (index, data) in store.blocks(&log.vdisk) {
                assert_eq!(index as usize % self.data.len(), at, "block {index} is on store {at}");
                disk.insert(index, data);
            }
        }
        disk
    }
}

/// A log, and what its disk was after each write.
pub(crate) struct Written {
    pub(crate) log: TestLog,
    /// Where the log is after each write, and the disk then; before the first as well.
    pub(crate) after: Vec<(SlavePoint, Disk)>,
    pub(crate) generation: u64,
    rng: SmallRng,
}

impl Written {
    /// An empty log.
    pub(crate) async fn new(seed: u64) -> Self {
        Self::on(TestLog::new(2, 1).await, seed)
    }

    pub(crate) fn on(log: TestLog, seed: u64) -> Self {
        let after = vec![(SlavePoint::START, Disk::new())];
        Self { log, after, generation: 1, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Appends aggregations of a few writes each, sets and deletes, to few enough blocks that they meet again.
    pub(crate) async fn append(&mut self, aggregations: u64) {
        for _ in 0..aggregations {
            let writes = self.rng.random_range(1..=6);
            let blocks = self.blocks(writes);
            self.append_blocks(&blocks).await;
        }
        self.log.publish().await;
    }

    pub(crate) fn blocks(&mut self, count: usize) -> Vec<Block> {
        (0..count).map(|_| self.block()).collect()
    }

    fn block(&mut self) -> Block {
        let sequence = Sequence(self.log.sequence);
        self.log.sequence += 1;
        let index = BlockIndex::new(self.rng.random_range(0..10)).unwrap();
        let timestamp = Timestamp(1000 + sequence.0);
        if self.rng.random_ratio(1, 4) {
            return Block::delete(sequence, index, timestamp);
        }
        let length = self.rng.random_range(1..=64);
        let data: Vec<u8> = (0..length).map(|_| self.rng.random()).collect();
        Block::set(sequence, index, timestamp, data.into())
    }

    pub(crate) async fn append_blocks(&mut self, blocks: &[Block]) {
        let encoded = self.log.append(self.generation, blocks).await;
        for (at, block) in (1..).zip(blocks) {
            let mut disk = self.after.last().unwrap().1.clone();
            match block.operation {
                Operation::Set => disk.insert(block.index.get(), block.data.clone()),
                Operation::Delete => disk.remove(&block.index.get()),
            };
            let point = SlavePoint { aggregation: encoded.header.number, blocks: at, id: encoded.id };
            self.after.push((point, disk));
        }
    }

    pub(crate) fn end(&self) -> LogPosition {
        LogPosition { generation: Generation(self.generation), sequence: Sequence(self.log.sequence - 1) }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.after.last().unwrap().1
    }

    /// Which write a point is after.
    pub(crate) fn write_of(&self, point: &SlavePoint) -> usize {
        self.after.iter().position(|(other, _)| other == point).unwrap_or_else(|| panic!("no write {point}"))
    }

    pub(crate) fn syncer(&self, slave: SlaveCluster) -> SlaveSyncer {
        self.syncer_told(slave, watch::channel(()).1)
    }

    pub(crate) fn syncer_told(&self, slave: SlaveCluster, more: watch::Receiver<()>) -> SlaveSyncer {
        SlaveSyncer::start(self.log.set.clone(), self.log.keys.clone(), slave, more, options()).unwrap()
    }

    /// Whether what the slave has is the disk after the very write that its stores name, and its record is not beyond that. Which.
    pub(crate) async fn assert_prefix(&self, stores: &Stores) -> usize {
        let state = stores.cluster(&self.log).state().await.unwrap();
        let applied = state.parts.iter().filter_map(|(_, part)| part.part.as_ref()?.applied);
        let latest = applied.max_by_key(SlavePoint::place).unwrap_or(SlavePoint::START);
        let write = self.write_of(&latest);
        assert_eq!(stores.disk(&self.log), self.after[write].1, "after write {write}");
        if let Some(position) = state.position() {
            assert!(self.write_of(&position.point) <= write, "the record is ahead");
        }
        write
    }
}

/// Everything soon.
pub(crate) fn options() -> SlaveSyncOptions {
    SlaveSyncOptions {
        format1: Some(format1_keys()),
        poll: Duration::from_millis(5),
        check: Duration::from_millis(10),
        recheck: Duration::from_millis(2),
        interrupted: Duration::from_millis(20),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        record_every: 2,
    }
}

/// Waits until the syncer is as it should be.
pub(crate) async fn until(
    syncer: &SlaveSyncer,
    mut is_so: impl FnMut(&SlaveSyncState) -> bool,
) -> SlaveStatus {
    until_status(syncer, |status| is_so(&status.state)).await
}

pub(crate) async fn until_status(
    syncer: &SlaveSyncer,
    is_so: impl FnMut(&SlaveStatus) -> bool,
) -> SlaveStatus {
    let mut status = syncer.status();
    let found = tokio::time::timeout(LIMIT, status.wait_for(is_so)).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("it is {:?}", syncer.status().borrow()),
    }
}

pub(crate) fn is_waiting(state: &SlaveSyncState) -> bool {
    matches!(state, SlaveSyncState::WaitingForSlave { .. })
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it takes too long")
}
