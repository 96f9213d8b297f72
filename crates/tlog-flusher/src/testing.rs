//! Logs on memory stores, for tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::{Keyring, MasterKey, Opener, Redundancy, VdiskKeys};
use tlog_proto::{
    AggregationNumber, Block, BlockIndex, Generation, LogPosition, Sequence, SessionId, Timestamp, VdiskId,
};
use tlog_quorum::{Quorums, StoreSet};
use tlog_store::{FaultControl, FaultyStore, MemoryStore, ShardStore};

use crate::{Log, LogSettings, PositionedBlock};

pub(crate) fn vdisk() -> VdiskId {
    VdiskId::new("disk").unwrap()
}

pub(crate) fn keys() -> VdiskKeys {
    VdiskKeys::new(vdisk(), Arc::new(Keyring::new(MasterKey::from_bytes([7; 32]))))
}

/// The disks of a cluster: what survives servers.
pub(crate) struct Cluster {
    pub(crate) memories: Vec<Arc<MemoryStore>>,
    pub(crate) quorums: Quorums,
}

impl Cluster {
    pub(crate) fn new(data: usize, parity: usize, write: Option<usize>) -> Self {
        let redundancy = Redundancy::new(data, parity).unwrap();
        let quorums =
            write.map_or(Quorums::default_for(redundancy), |w| Quorums::new(redundancy, w).unwrap());
        let memories =
            (0..quorums.total()).map(|i| Arc::new(MemoryStore::new(format!("memory:{i}")))).collect();
        Self { memories, quorums }
    }

    /// How one server sees the stores: its own connections, each of which can fail.
    pub(crate) fn connect(&self, seed: u64) -> (StoreSet, Vec<FaultControl>) {
        let mut controls = Vec::new();
        let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
        for (i, memory) in self.memories.iter().enumerate() {
            let wiped = memory.clone();
            let faulty = FaultyStore::with_wipe(memory.clone(), seed * 31 + i as u64, move || wiped.wipe());
            controls.push(faulty.control());
            stores.push(Arc::new(faulty));
        }
        (StoreSet::new(vdisk(), stores, self.quorums, Duration::from_secs(2)).unwrap(), controls)
    }

    pub(crate) async fn open(&self) -> (Log, Vec<FaultControl>) {
        let (set, controls) = self.connect(1);
        (Log::open(set, keys(), settings()).await.unwrap(), controls)
    }
}

pub(crate) fn settings() -> LogSettings {
    LogSettings { max_blocks: 5, commit_timeout: Duration::from_secs(20), ..LogSettings::default() }
}

/// The block that a test writes under a sequence.
pub(crate) fn block(generation: u64, sequence: u64) -> PositionedBlock {
    marked_block(generation, sequence, sequence)
}

/// A block whose timestamp tells it from all others.
pub(crate) fn marked_block(generation: u64, sequence: u64, mark: u64) -> PositionedBlock {
    let data = Bytes::from(mark.to_le_bytes().repeat(8));
    PositionedBlock {
        generation: Generation(generation),
        session: SessionId(generation),
        block: Block::set(Sequence(sequence), BlockIndex::new(sequence % 7).unwrap(), Timestamp(mark), data),
    }
}

/// Appends blocks of one generation.
pub(crate) async fn append(log: &Log, generation: u64, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        log.append(block(generation, sequence)).await.unwrap();
    }
}

pub(crate) fn position(generation: u64, sequence: u64) -> LogPosition {
    LogPosition { generation: Generation(generation), sequence: Sequence(sequence) }
}

/// Waits until a position is durable; an error if the log closes before.
pub(crate) async fn durable(log: &Log, at: LogPosition) -> Result<(), String> {
    let mut durability = log.durability();
    let state = durability
        .wait_for(|state| state.durable >= Some(at) || state.closed.is_some())
        .await
        .map_err(|_| "the writer is gone".to_owned())?;
    match &state.closed {
        Some(reason) if state.durable < Some(at) => Err(reason.to_string()),
        _ => Ok(()),
    }
}

/// Timestamps of all blocks of the log, in order, as a reader with every store in reach sees what is known as committed.
pub(crate) async fn content(cluster: &Cluster) -> Vec<u64> {
    let (set, _) = cluster.connect(0);
    let committed = set.survey().await.committed();
    content_up_to(cluster, committed).await
}

/// The same up to an aggregation of which the writer knows that it is committed; the stores may not know it yet.
pub(crate) async fn content_up_to(cluster: &Cluster, last: AggregationNumber) -> Vec<u64> {
    let (set, _) = cluster.connect(0);
    let survey = set.survey().await;
    let opener = Opener::new(keys());
    let mut marks = Vec::new();
    for number in (survey.first().0..=last.0).map(AggregationNumber) {
        let (candidates, conditions) = set.all_shards(&survey, number).await;
        let candidate = candidates
            .iter()
            .find(|candidate| candidate.is_whole())
            .unwrap_or_else(|| panic!("{}", set.unreadable(number, &candidates, &conditions)));
        let blocks = opener.blocks(&candidate.head, &candidate.payloads).unwrap();
        marks.extend(blocks.iter().map(|block| block.timestamp.0));
    }
    marks
}
