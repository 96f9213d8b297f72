//! A log that is written shard by shard, so that a test says what each store holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::{EncodedAggregation, Keyring, MasterKey, Redundancy, SealRequest, Sealer, VdiskKeys};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
    VdiskId,
};
use tlog_quorum::{Quorums, StoreSet, Survey};
use tlog_store::{
    FaultControl, FaultyStore, LogState, Members, MemoryStore, Shard, ShardStore, StartRecord, StoreIdentity,
};

pub(crate) fn vdisk() -> VdiskId {
    VdiskId::new("disk").unwrap()
}

pub(crate) struct TestLog {
    pub(crate) memories: Vec<Arc<MemoryStore>>,
    pub(crate) controls: Vec<FaultControl>,
    pub(crate) set: StoreSet,
    sealer: Sealer,
}

impl TestLog {
    /// Stores that have never heard of the log.
    pub(crate) fn unknown(data: usize, parity: usize) -> Self {
        let quorums = Quorums::default_for(Redundancy::new(data, parity).unwrap());
        let memories: Vec<_> =
            (0..quorums.total()).map(|i| Arc::new(MemoryStore::new(format!("memory:{i}")))).collect();
        let faulty: Vec<_> = memories.iter().map(|memory| FaultyStore::new(memory.clone(), 1)).collect();
        let controls = faulty.iter().map(FaultyStore::control).collect();
        let stores = faulty.into_iter().map(|store| Arc::new(store) as Arc<dyn ShardStore>).collect();
        let set = StoreSet::new(vdisk(), stores, quorums, Duration::from_secs(1)).unwrap();
        let keys = VdiskKeys::new(vdisk(), Arc::new(Keyring::new(MasterKey::from_bytes([7; 32]))));
        Self { memories, controls, set, sealer: Sealer::new(keys, quorums.redundancy()) }
    }

    /// A log that epoch 1 began, with all stores as members.
    pub(crate) async fn begun(data: usize, parity: usize) -> Self {
        let log = Self::unknown(data, parity);
        for memory in &log.memories {
            memory.promise(&vdisk(), Epoch(1)).await.unwrap();
        }
        let all: Vec<usize> = (0..log.memories.len()).collect();
        log.start(1, 1, &all).await;
        log
    }

    pub(crate) async fn state(&self, store: usize) -> LogState {
        self.memories[store].status(&vdisk()).await.unwrap()
    }

    pub(crate) async fn identities(&self) -> Vec<Option<StoreIdentity>> {
        let mut identities = Vec::new();
        for store in 0..self.memories.len() {
            identities.push(self.state(store).await.identity);
        }
        identities
    }

    /// Tells some stores that an epoch began at a number.
    pub(crate) async fn start(&self, epoch: u64, number: u64, on: &[usize]) {
        let members = Members {
            epoch: Epoch(epoch),
            change: 0,
            identities: self.identities().await,
            ..Members::default()
        };
        let record = StartRecord { epoch: Epoch(epoch), number: AggregationNumber(number) };
        for &store in on {
            self.memories[store].start(&vdisk(), record, &members).await.unwrap();
        }
    }

    /// An aggregation of one block; `mark` tells it from others of the same number.
    pub(crate) fn aggregation(&self, number: u64, prev: AggregationId, mark: u64) -> EncodedAggregation {
        let data = Bytes::from(mark.to_le_bytes().repeat(64));
        let block = Block::set(Sequence(number), BlockIndex::new(mark).unwrap(), Timestamp(mark), data);
        let request = SealRequest {
            number: AggregationNumber(number),
            generation: Generation(1),
            session: SessionId(1),
            sealed_at: Timestamp(1),
            block_size: 0,
            nonce: [mark as u8; 12],
            finding: Default::default(),
            blocks: &[block],
        };
        self.sealer.seal(request).unwrap().link(prev)
    }

    /// Puts shards of an aggregation onto some stores, as the writer of an epoch does.
    pub(crate) async fn append(&self, aggregation: &EncodedAggregation, epoch: u64, on: &[usize]) {
        for &store in on {
            let shard = aggregation.shard(store, Epoch(epoch)).unwrap();
            let (epoch, id) = (Epoch(epoch), aggregation.id);
            let shard = Shard { epoch, id, head: shard.head, payload: shard.payload };
            let number = aggregation.header.number;
            self.memories[store].append(&vdisk(), number, shard, AggregationNumber(0)).await.unwrap();
        }
    }

    pub(crate) async fn survey(&self) -> Survey {
        self.set.survey().await
    }
}
