//! Stores of one vdisk, and what an existing reader would find there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::{Keyring, MasterKey, Redundancy, VdiskKeys, format1};
use tlog_flusher::format1::{Format1Log, Keys, OpenError};
use tlog_flusher::{Log, LogSettings, PositionedBlock};
use tlog_proto::{
    Aggregation, AggregationId, Block, BlockIndex, Generation, LogPosition, Sequence, SessionId, Timestamp,
    VdiskId,
};
use tlog_quorum::{LinkRead, Quorums, StoreSet};
use tlog_store::{ChainStore, FaultControl, FaultyStore, MemoryChains, MemoryStore, ShardStore};

pub(crate) struct Cluster {
    pub(crate) vdisk: VdiskId,
    pub(crate) memory: Vec<Arc<MemoryStore>>,
    pub(crate) controls: Vec<FaultControl>,
    pub(crate) set: StoreSet,
    pub(crate) redundancy: Redundancy,
}

/// Those of the recorded bytes of existing servers.
pub(crate) fn keys() -> Keys {
    Keys::new(b"12345678901234567890123456789012", "37b8e8a308c354048d245f6d").unwrap()
}

pub(crate) fn settings() -> LogSettings {
    LogSettings { max_blocks: 3, ..LogSettings::default() }
}

impl Cluster {
    pub(crate) fn new(data: usize, parity: usize) -> Self {
        let redundancy = Redundancy::new(data, parity).unwrap();
        let memory: Vec<Arc<MemoryStore>> =
            (0..redundancy.total()).map(|i| Arc::new(MemoryStore::new(format!("memory:{i}")))).collect();
        Self::of("disk", memory, redundancy)
    }

    pub(crate) fn of(vdisk: &str, memory: Vec<Arc<MemoryStore>>, redundancy: Redundancy) -> Self {
        let vdisk = VdiskId::new(vdisk).unwrap();
        let faulty: Vec<_> = memory.iter().map(|store| FaultyStore::new(store.clone(), 1)).collect();
        let controls = faulty.iter().map(FaultyStore::control).collect();
        let stores = faulty.into_iter().map(|store| Arc::new(store) as Arc<dyn ShardStore>).collect();
        let quorums = Quorums::default_for(redundancy);
        let set = StoreSet::new(vdisk.clone(), stores, quorums, Duration::from_secs(2)).unwrap();
        Self { vdisk, memory, controls, set, redundancy }
    }

    pub(crate) fn chains(&self, store: usize) -> &MemoryChains {
        self.memory[store].chain_store()
    }

    /// Out of reach for both formats.
    pub(crate) fn set_down(&self, store: usize, down: bool) {
        self.controls[store].set_down(down);
        self.chains(store).set_down(down);
    }

    pub(crate) async fn try_open(&self) -> Result<Format1Log, OpenError> {
        Format1Log::open(self.set.clone(), keys(), settings()).await
    }

    pub(crate) async fn open(&self) -> Format1Log {
        self.try_open().await.unwrap()
    }

    pub(crate) fn vdisk_keys(&self) -> VdiskKeys {
        VdiskKeys::new(self.vdisk.clone(), Arc::new(Keyring::new(MasterKey::from_bytes([7; 32]))))
    }

    pub(crate) async fn open_format2(&self) -> Result<Log, tlog_flusher::OpenError> {
        let keys = self.vdisk_keys().with_format1(Some(keys()));
        Log::open(self.set.clone(), keys, settings()).await
    }

    /// The id that all stores say is the newest.
    pub(crate) fn front(&self) -> AggregationId {
        let fronts: Vec<_> = (0..self.memory.len()).map(|i| self.chains(i).list(&self.vdisk)[0]).collect();
        assert!(fronts.iter().all(|front| *front == fronts[0]), "{fronts:?}");
        fronts[0]
    }

    /// All aggregations of the chain that ends with `newest`, oldest first.
    pub(crate) async fn aggregations(&self, newest: AggregationId) -> Vec<Aggregation> {
        let mut walk = self.set.chain_walk(newest, &keys(), LinkRead::Enough);
        let mut all = Vec::new();
        while let Some(link) = walk.next().await.unwrap() {
            all.insert(0, link.aggregation);
        }
        all
    }

    /// Sequence and mark of every block of the chain, oldest first.
    pub(crate) async fn content(&self) -> Vec<(u64, u64)> {
        let survey = self.set.chain_survey().await;
        let end = self.set.chain_end(&survey, &keys()).await.unwrap().certain().unwrap();
        let all = self.aggregations(end.unwrap_or(AggregationId::BEFORE_FIRST)).await;
        let blocks = all.iter().flat_map(|aggregation| &aggregation.blocks);
        blocks.map(|block| (block.sequence.0, block.timestamp.0)).collect()
    }

    /// What a server would store next, of one block.
    pub(crate) fn encode(&self, prev: AggregationId, sequence: u64, mark: u64) -> format1::Encoded {
        let aggregation = Aggregation {
            name: Aggregation::NAME.to_owned(),
            timestamp: Timestamp(mark),
            vdisk_id: self.vdisk.clone(),
            blocks: vec![block(1, sequence, mark).block],
            prev: Bytes::copy_from_slice(&prev.0),
        };
        format1::encode(&aggregation, keys().encrypter(), self.redundancy)
    }

    pub(crate) async fn store(&self, encoded: &format1::Encoded, on: &[usize]) {
        for &i in on {
            let shard = encoded.shards[i].clone();
            self.chains(i).append_link(&self.vdisk, encoded.id, shard, 5).await.unwrap();
        }
    }
}

/// A block whose timestamp tells it from all others.
pub(crate) fn block(generation: u64, sequence: u64, mark: u64) -> PositionedBlock {
    let data = Bytes::from(mark.to_le_bytes().repeat(4));
    PositionedBlock {
        generation: Generation(generation),
        session: SessionId(generation),
        block: Block::set(Sequence(sequence), BlockIndex::new(sequence % 7).unwrap(), Timestamp(mark), data),
    }
}

pub(crate) fn position(generation: u64, sequence: u64) -> LogPosition {
    LogPosition { generation: Generation(generation), sequence: Sequence(sequence) }
}

/// Appends blocks of generation 1 whose marks are their sequences.
pub(crate) async fn append(log: &Format1Log, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        log.append(block(1, sequence, sequence)).await.unwrap();
    }
}

/// Waits until a position is durable; why not, if the log closes before.
pub(crate) async fn durable(log: &Format1Log, at: LogPosition) -> Result<(), String> {
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
