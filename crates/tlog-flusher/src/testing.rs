//! Logs on memory stores, for tests.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tlog_codec::{
    Header, Keyring, Kind, Mark, MarkName, MasterKey, Opener, PlaceInLog, Record, Redundancy, VdiskKeys,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, LogPosition, Sequence, SessionId,
    Timestamp, VdiskId,
};
use tlog_quorum::{Quorums, ReadError, StoreSet};
use tlog_store::{
    FaultControl, FaultyStore, FillOutcome, HeadSlot, LogState, Members, MemoryStore, Shard, ShardSlot,
    ShardStore, StartRecord, StoreDurability, StoreError, StoreIdentity,
};

use crate::{Log, LogSettings, PositionedBlock};

pub(crate) fn vdisk() -> VdiskId {
    VdiskId::new("disk").unwrap()
}

pub(crate) fn keys() -> VdiskKeys {
    VdiskKeys::new(vdisk(), Arc::new(Keyring::new(MasterKey::from_bytes([7; 32]))))
}

/// A place for a disk: the store is whatever disk is in it.
#[derive(Debug)]
pub(crate) struct Bay {
    address: String,
    disk: Mutex<Arc<MemoryStore>>,
}

impl Bay {
    fn new(address: String) -> Self {
        Self { disk: Mutex::new(Arc::new(MemoryStore::new(address.clone()))), address }
    }

    pub(crate) fn disk(&self) -> Arc<MemoryStore> {
        self.disk.lock().unwrap().clone()
    }

    /// Puts another disk in; answers the one that was there.
    pub(crate) fn insert(&self, disk: Arc<MemoryStore>) -> Arc<MemoryStore> {
        std::mem::replace(&mut *self.disk.lock().unwrap(), disk)
    }

    /// Puts an empty disk in; answers the one that was there.
    pub(crate) fn pull(&self) -> Arc<MemoryStore> {
        self.insert(Arc::new(MemoryStore::new(self.address.clone())))
    }
}

#[async_trait]
impl ShardStore for Bay {
    fn address(&self) -> Arc<str> {
        self.address.as_str().into()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.disk().promise(vdisk, epoch).await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.disk().start(vdisk, record, members).await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.disk().append(vdisk, number, shard, committed).await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.disk().publish(vdisk, epoch, committed).await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.disk().fill(vdisk, number, shard).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.disk().prune(vdisk, epoch, first).await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.disk().delete(vdisk, epoch).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.disk().heads(vdisk, range, max_bytes).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.disk().shard(vdisk, number).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.disk().status(vdisk).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.disk().vdisks().await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.disk().durability().await
    }
}

/// The disks of a cluster: what survives servers.
pub(crate) struct Cluster {
    pub(crate) bays: Vec<Arc<Bay>>,
    pub(crate) quorums: Quorums,
}

impl Cluster {
    pub(crate) fn new(data: usize, parity: usize, write: Option<usize>) -> Self {
        let redundancy = Redundancy::new(data, parity).unwrap();
        let quorums =
            write.map_or(Quorums::default_for(redundancy), |w| Quorums::new(redundancy, w).unwrap());
        let bays = (0..quorums.total()).map(|i| Arc::new(Bay::new(format!("memory:{i}")))).collect();
        Self { bays, quorums }
    }

    /// How one server sees the stores: its own connections, each of which can fail.
    pub(crate) fn connect(&self, seed: u64) -> (StoreSet, Vec<FaultControl>) {
        let mut controls = Vec::new();
        let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
        for (i, bay) in self.bays.iter().enumerate() {
            let wiped = bay.clone();
            let faulty =
                FaultyStore::with_wipe(bay.clone(), seed * 31 + i as u64, move || drop(wiped.pull()));
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
    let stored = stored_up_to(cluster, last).await.unwrap_or_else(|error| panic!("{error}"));
    stored.into_iter().flat_map(|stored| stored.marks).collect()
}

/// An aggregation that the log keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) header: Header,
    pub(crate) id: AggregationId,
    /// Timestamps of its writes.
    pub(crate) marks: Vec<u64>,
}

/// All that the log keeps, up to an aggregation.
pub(crate) async fn stored_up_to(
    cluster: &Cluster,
    last: AggregationNumber,
) -> Result<Vec<Stored>, ReadError> {
    let (set, _) = cluster.connect(0);
    let survey = set.survey().await;
    let opener = Opener::new(keys());
    let mut all = Vec::new();
    for number in (survey.first().0..=last.0).map(AggregationNumber) {
        let (candidates, conditions) = set.all_shards(&survey, number).await;
        let whole = candidates.iter().find(|candidate| candidate.is_whole());
        let candidate = whole.ok_or_else(|| set.unreadable(number, &candidates, &conditions))?;
        let head = &candidate.head;
        let mut blocks = opener.blocks(head, &candidate.payloads).unwrap();
        blocks.retain(|_| head.header.kind == Kind::Blocks);
        let marks = blocks.iter().map(|block| block.timestamp.0).collect();
        all.push(Stored { header: head.header, id: head.id, marks });
    }
    Ok(all)
}

/// A mark with a name that tells it from all others.
pub(crate) fn mark(nth: u64) -> Record {
    let place = PlaceInLog {
        aggregation: AggregationNumber(1),
        id: AggregationId([1; 32]),
        blocks: 1,
        of: 1,
        position: position(1, 1),
        timestamp: Timestamp(nth),
    };
    Record::Mark(Mark { name: MarkName::new(&format!("mark-{nth}")).unwrap(), place })
}

/// Blocks of an image.
pub(crate) fn part(indexes: std::ops::Range<u64>) -> Vec<Block> {
    indexes
        .map(|index| {
            let data = Bytes::from(vec![index as u8; 64]);
            Block::set(Sequence(1), BlockIndex::new(index).unwrap(), Timestamp(1), data)
        })
        .collect()
}
