//! A writer that does what the test says, right or wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_codec::{
    Content, EncodedAggregation, Finding, Keyring, Kind, MasterKey, Redundancy, SealRequest, Sealer,
    TimeReaches, VdiskKeys, WithoutWrites, format1,
};
use tlog_player::{
    DiskState, DiskStateError, LogReader, MemoryTarget, Moment, OpenError, ReadOptions, RestoreError,
    RestoreOptions,
};
use tlog_proto::{
    Aggregation, AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, LogPosition,
    Sequence, SessionId, Timestamp, VdiskId,
};
use tlog_quorum::{Quorums, StoreSet};
use tlog_store::{
    ChainStore, FaultControl, FaultyStore, Members, MemoryStore, Shard, ShardStore, StartRecord,
};

pub(crate) const BLOCK_SIZE: usize = 64;

pub(crate) struct TestLog {
    pub(crate) vdisk: VdiskId,
    pub(crate) memory: Vec<Arc<MemoryStore>>,
    pub(crate) controls: Vec<FaultControl>,
    pub(crate) set: StoreSet,
    pub(crate) keys: VdiskKeys,
    pub(crate) prev: AggregationId,
    pub(crate) next: AggregationNumber,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: u64,
    pub(crate) redundancy: Redundancy,
    pub(crate) session: u64,
    members: Members,
    nonces: u64,
    /// Longest block so far.
    block_size: u32,
    reaches: TimeReaches,
    /// Newest record.
    record: Option<AggregationNumber>,
    /// Last write.
    end: LogPosition,
}

pub(crate) fn number(n: u64) -> AggregationNumber {
    AggregationNumber(n)
}

pub(crate) fn keys_of(vdisk: &VdiskId, key: u8) -> VdiskKeys {
    VdiskKeys::new(vdisk.clone(), Arc::new(Keyring::new(MasterKey::from_bytes([key; 32]))))
}

/// Those of the recorded bytes of existing servers.
pub(crate) fn format1_keys() -> format1::Keys {
    format1::Keys::new(b"12345678901234567890123456789012", "37b8e8a308c354048d245f6d").unwrap()
}

pub(crate) fn set_block(sequence: u64, index: u64, timestamp: u64, data: Vec<u8>) -> Block {
    Block::set(Sequence(sequence), BlockIndex::new(index).unwrap(), Timestamp(timestamp), Bytes::from(data))
}

impl TestLog {
    /// Opened by epoch 1 on all stores, default write quorum.
    pub(crate) async fn new(data: usize, parity: usize) -> Self {
        let mut log = Self::unopened(data, parity);
        log.open(Epoch(1), &log.all()).await;
        log
    }

    /// On stores that know nothing of it yet.
    pub(crate) fn unopened(data: usize, parity: usize) -> Self {
        let redundancy = Redundancy::new(data, parity).unwrap();
        let vdisk = VdiskId::new("disk").unwrap();
        let total = redundancy.total();
        let memory: Vec<_> = (0..total).map(|i| Arc::new(MemoryStore::new(format!("memory:{i}")))).collect();
        let faulty: Vec<_> =
            memory.iter().map(|store| Arc::new(FaultyStore::new(store.clone(), 0))).collect();
        let controls = faulty.iter().map(|store| store.control()).collect();
        let stores = faulty.into_iter().map(|store| store as Arc<dyn ShardStore>).collect();
        let quorums = Quorums::default_for(redundancy);
        let set = StoreSet::new(vdisk.clone(), stores, quorums, Duration::from_secs(5)).unwrap();
        Self {
            keys: keys_of(&vdisk, 7),
            vdisk,
            memory,
            controls,
            set,
            prev: AggregationId::BEFORE_FIRST,
            next: number(1),
            epoch: Epoch(0),
            sequence: 1,
            redundancy,
            session: 77,
            members: Members::default(),
            nonces: 0,
            block_size: 0,
            reaches: TimeReaches::default(),
            record: None,
            end: LogPosition::default(),
        }
    }

    /// Writes the next aggregation of format 1 to all stores, as an existing server does.
    pub(crate) async fn append_link(&mut self, blocks: &[Block]) -> AggregationId {
        let encoded = self.encode_link(self.prev, blocks);
        self.store_link(&encoded, &self.all()).await;
        self.prev = encoded.id;
        encoded.id
    }

    pub(crate) fn encode_link(&self, prev: AggregationId, blocks: &[Block]) -> format1::Encoded {
        let aggregation = Aggregation {
            name: Aggregation::NAME.to_owned(),
            timestamp: Timestamp(2_000_000),
            vdisk_id: self.vdisk.clone(),
            blocks: blocks.to_vec(),
            prev: Bytes::copy_from_slice(&prev.0),
        };
        format1::encode(&aggregation, format1_keys().encrypter(), self.redundancy)
    }

    pub(crate) async fn store_link(&self, encoded: &format1::Encoded, on: &[usize]) {
        for &i in on {
            let shard = encoded.shards[i].clone();
            self.memory[i].chain_store().append_link(&self.vdisk, encoded.id, shard, 5).await.unwrap();
        }
    }

    /// A log with aggregations 1 to `count`, of one block each, all known as committed.
    pub(crate) async fn with(data: usize, parity: usize, count: u64) -> Self {
        let mut log = Self::new(data, parity).await;
        for _ in 0..count {
            log.append_one().await;
        }
        log.publish().await;
        log
    }

    /// For stores that were wiped: the log is begun anew on them.
    #[allow(dead_code)] // not every test does that
    pub(crate) fn forget_members(&mut self) {
        self.members = Members::default();
    }

    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.memory.len()).collect()
    }

    /// The last aggregation that was linked.
    pub(crate) fn last(&self) -> AggregationNumber {
        self.next.previous().unwrap()
    }

    pub(crate) async fn open(&mut self, epoch: Epoch, on: &[usize]) {
        self.epoch = epoch;
        for &i in on {
            let state = self.memory[i].promise(&self.vdisk, epoch).await.unwrap();
            if self.members.identities.len() < self.memory.len() {
                self.members.identities.push(state.identity);
            }
        }
        self.members.epoch = epoch;
        let record = StartRecord { epoch, number: self.next };
        for &i in on {
            self.memory[i].start(&self.vdisk, record, &self.members).await.unwrap();
        }
    }

    /// What would be the next aggregation.
    pub(crate) fn encode(&mut self, generation: u64, blocks: &[Block]) -> EncodedAggregation {
        self.encode_as(self.next, self.prev, generation, blocks)
    }

    pub(crate) fn encode_as(
        &mut self,
        number: AggregationNumber,
        prev: AggregationId,
        generation: u64,
        blocks: &[Block],
    ) -> EncodedAggregation {
        let oldest = blocks.iter().map(|block| block.timestamp).min().unwrap();
        let request = SealRequest {
            number,
            generation: Generation(generation),
            session: SessionId(self.session),
            sealed_at: Timestamp(1_000_000 + number.0),
            block_size: self.block_size,
            nonce: self.nonce(),
            finding: self.finding(number, oldest, true),
            blocks,
        };
        Sealer::new(self.keys.clone(), self.redundancy).seal(request).unwrap().link(prev)
    }

    fn nonce(&mut self) -> [u8; 12] {
        self.nonces += 1;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.nonces.to_be_bytes());
        nonce
    }

    fn finding(&self, number: AggregationNumber, oldest: Timestamp, has_writes: bool) -> Finding {
        // Most of those that are encoded are appended, and some are not.
        let time_reach = self.reaches.clone().next(number, oldest, has_writes);
        Finding { time_reach, record_before: self.record }
    }

    /// Appends something without writes, that is about a time, to all stores.
    pub(crate) async fn append_without_writes(
        &mut self,
        content: Content<'_>,
        about: Timestamp,
    ) -> EncodedAggregation {
        let request = WithoutWrites {
            number: self.next,
            after: self.end,
            session: SessionId(77),
            about,
            sealed_at: Timestamp(1_000_000 + self.next.0),
            block_size: self.block_size,
            nonce: self.nonce(),
            finding: self.finding(self.next, about, false),
            content,
        };
        let sealed = Sealer::new(self.keys.clone(), self.redundancy).seal_without_writes(request);
        let encoded = sealed.unwrap().link(self.prev);
        let (committed, epoch) = (self.next.0, self.epoch);
        self.store(&encoded, epoch, &self.all(), committed).await;
        self.advance(&encoded);
        encoded
    }

    /// Puts it on some stores, as written under `epoch`.
    pub(crate) async fn store(
        &self,
        encoded: &EncodedAggregation,
        epoch: Epoch,
        on: &[usize],
        committed: u64,
    ) {
        for &i in on {
            let shard = encoded.shard(i, epoch).unwrap();
            let shard = Shard { epoch, id: encoded.id, head: shard.head, payload: shard.payload };
            let at = encoded.header.number;
            self.memory[i].append(&self.vdisk, at, shard, number(committed)).await.unwrap();
        }
    }

    /// Puts it over whatever is there, past all rules.
    pub(crate) fn plant(&self, encoded: &EncodedAggregation, epoch: Epoch, on: &[usize]) {
        for &i in on {
            let planted = encoded.shard(i, epoch).unwrap();
            let planted = Shard { epoch, id: encoded.id, head: planted.head, payload: planted.payload };
            assert!(self.memory[i].damage(&self.vdisk, encoded.header.number, |shard| *shard = planted));
        }
    }

    pub(crate) fn advance(&mut self, encoded: &EncodedAggregation) {
        let header = &encoded.header;
        self.prev = encoded.id;
        self.next = header.number.next();
        self.block_size = header.block_size;
        self.reaches.next(header.number, header.oldest_timestamp, header.kind == Kind::Blocks);
        self.end = LogPosition { generation: header.generation, sequence: header.last_sequence };
        if header.kind == Kind::Record {
            self.record = Some(header.number);
        }
    }

    /// Writes the next aggregation to all stores. They then know the one before as committed.
    pub(crate) async fn append(&mut self, generation: u64, blocks: &[Block]) -> EncodedAggregation {
        let encoded = self.encode(generation, blocks);
        self.store(&encoded, self.epoch, &self.all(), self.next.0 - 1).await;
        self.advance(&encoded);
        encoded
    }

    /// One block of the next sequence, which says so in its content.
    pub(crate) fn one_block(&mut self) -> Block {
        let sequence = self.sequence;
        self.sequence += 1;
        set_block(sequence, sequence % 8, 1000 + sequence, vec![sequence as u8; BLOCK_SIZE])
    }

    pub(crate) async fn append_one(&mut self) -> EncodedAggregation {
        let block = self.one_block();
        self.append(1, &[block]).await
    }

    pub(crate) async fn publish(&self) {
        for store in &self.memory {
            store.publish(&self.vdisk, self.epoch, self.last()).await.unwrap();
        }
    }

    pub(crate) async fn reader(&self) -> LogReader {
        self.open_reader().await.unwrap()
    }

    pub(crate) async fn open_reader(&self) -> Result<LogReader, OpenError> {
        LogReader::open_with(self.set.clone(), Some(format1_keys())).await
    }

    pub(crate) async fn state(&self, moment: Moment) -> Result<DiskState, DiskStateError> {
        self.reader().await.disk_state(&self.keys, moment, &ReadOptions::default()).await
    }

    pub(crate) async fn restore(&self, moment: Moment) -> Result<Vec<u8>, RestoreError> {
        let state = self.state(moment).await.unwrap();
        let target = Arc::new(MemoryTarget::default());
        let options = RestoreOptions::default();
        self.reader().await.restore(&self.keys, &state, target.clone(), &options, |_| {}).await?;
        Ok(target.bytes())
    }
}

/// Every way to choose `count` of `total`.
pub(crate) fn choices(total: usize, count: usize) -> Vec<Vec<usize>> {
    let all = (0..1u32 << total).filter(|bits| bits.count_ones() as usize == count);
    all.map(|bits| (0..total).filter(|i| bits >> i & 1 == 1).collect()).collect()
}
