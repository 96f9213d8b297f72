//! Searches against reading everything, and how many reads they take.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_codec::{
    Content, Finding, Keyring, Mark, MarkName, MasterKey, PlaceInLog, Record, Redundancy, SealRequest,
    Sealer, TimeReaches, VdiskKeys, WithoutWrites,
};
use tlog_proto::{Block, BlockIndex, Epoch, SessionId, VdiskId};
use tlog_quorum::{Quorums, StoreSet};
use tlog_store::{
    FaultControl, FaultyStore, Members, MemoryStore, Operation, Shard, ShardStore, StartRecord,
};

use super::*;

/// What an aggregation is.
#[derive(Clone, Copy)]
enum What {
    /// One write, with this timestamp.
    Write(u64),
    /// A record, about this time.
    About(u64),
}

/// A log on one store, which counts what it is asked.
struct CountedLog {
    all: Vec<What>,
    reader: LogReader,
    opener: Opener,
    control: FaultControl,
}

/// What headers say of times.
#[derive(Clone, Copy, PartialEq)]
enum Headers {
    /// All that a writer knows which never stops.
    All,
    /// What is known by writers that are opened anew, here and there.
    OpenedAnew(u64),
    /// Nothing: they are older than the field.
    Old,
}

impl CountedLog {
    async fn new(all: Vec<What>, headers: Headers) -> Self {
        let vdisk = VdiskId::new("disk").unwrap();
        let keys = VdiskKeys::new(vdisk.clone(), Arc::new(Keyring::new(MasterKey::from_bytes([7; 32]))));
        let redundancy = Redundancy::new(1, 0).unwrap();
        let sealer = Sealer::new(keys.clone(), redundancy);
        let store = Arc::new(MemoryStore::new("memory:0"));
        let epoch = Epoch(1);
        let identity = store.promise(&vdisk, epoch).await.unwrap().identity;
        let members = Members { epoch, identities: vec![identity], ..Members::default() };
        let start = StartRecord { epoch, number: AggregationNumber(1) };
        store.start(&vdisk, start, &members).await.unwrap();
        let mut rng = SmallRng::seed_from_u64(5);
        let (mut reaches, mut prev) = (TimeReaches::default(), AggregationId::BEFORE_FIRST);
        let mut after = LogPosition::default();
        for (number, what) in (1..).map(AggregationNumber).zip(&all) {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&number.0.to_be_bytes());
            if let Headers::OpenedAnew(every) = headers
                && rng.random_range(0..every) == 0
            {
                reaches = TimeReaches::default();
            }
            let (What::Write(time) | What::About(time)) = *what;
            let time_reach = reaches.next(number, Timestamp(time), matches!(what, What::Write(_)));
            let time_reach = if headers == Headers::Old { TimeReach::UNKNOWN } else { time_reach };
            let finding = Finding { time_reach, record_before: None };
            let sealed_at = Timestamp(1 << 60);
            let (session, block_size) = (SessionId(1), 8);
            let sealed = match what {
                What::Write(time) => {
                    after = LogPosition { generation: Generation(1), sequence: after.sequence.next() };
                    let (index, data) = (BlockIndex::new(number.0).unwrap(), vec![1; 8].into());
                    let blocks = [Block::set(after.sequence, index, Timestamp(*time), data)];
                    let generation = after.generation;
                    let request = SealRequest {
                        number,
                        generation,
                        session,
                        sealed_at,
                        block_size,
                        nonce,
                        finding,
                        blocks: &blocks,
                    };
                    sealer.seal(request).unwrap()
                }
                What::About(_) => {
                    let record = mark();
                    let (about, content) = (Timestamp(time), Content::Record(&record));
                    let request = WithoutWrites {
                        number,
                        after,
                        session,
                        about,
                        sealed_at,
                        block_size,
                        nonce,
                        finding,
                        content,
                    };
                    sealer.seal_without_writes(request).unwrap()
                }
            };
            let encoded = sealed.link(prev);
            prev = encoded.id;
            let shard = encoded.shard(0, epoch).unwrap();
            let shard = Shard { epoch, id: prev, head: shard.head, payload: shard.payload };
            store.append(&vdisk, number, shard, number).await.unwrap();
        }
        let faulty = FaultyStore::new(store, 0);
        let control = faulty.control();
        let quorums = Quorums::default_for(redundancy);
        let set = StoreSet::new(vdisk, vec![Arc::new(faulty)], quorums, Duration::from_secs(60)).unwrap();
        Self { all, reader: LogReader::open(set).await.unwrap(), opener: Opener::new(keys), control }
    }

    /// Checks a time against reading everything, and answers how often heads were asked for.
    async fn check(&self, time: u64) -> u64 {
        let expected = self.all.iter().rposition(|what| matches!(what, What::Write(at) if *at <= time));
        let before = self.control.calls(Operation::Heads);
        let finder = Finder::new(&self.reader, &self.opener);
        let found = finder.find(Moment::At(Timestamp(time))).await.unwrap();
        assert_eq!(found.map(|found| found.number.0), expected.map(|at| at as u64 + 1), "time {time}");
        self.control.calls(Operation::Heads) - before
    }

    /// The most reads that a time took.
    async fn check_all(&self, times: impl IntoIterator<Item = u64>) -> u64 {
        let mut most = 0;
        for time in times {
            most = most.max(self.check(time).await);
        }
        most
    }
}

fn mark() -> Record {
    let place = PlaceInLog {
        aggregation: AggregationNumber(1),
        id: AggregationId([1; 32]),
        blocks: 1,
        of: 1,
        position: LogPosition::default(),
        timestamp: Timestamp(1),
    };
    Record::Mark(Mark { name: MarkName::new("m").unwrap(), place })
}

/// Times that rise by ten, and now and then step back by as much as five hundred.
fn stepping_back(count: usize, seed: u64) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut now = 100_000u64;
    (0..count)
        .map(|_| {
            now += 10;
            if rng.random_ratio(1, 20) { now - rng.random_range(0..500) } else { now }
        })
        .collect()
}

const MANY: usize = 5000;
/// Reads of heads that prove what was found, and what a search takes at most: four times the logarithm.
const PROVING: u64 = 4;
const SEARCHING: u64 = 4 * MANY.ilog2() as u64;

#[tokio::test]
async fn a_time_in_a_log_whose_times_rise_is_found_in_a_few_reads() {
    let log = CountedLog::new((1..=MANY as u64).map(|n| What::Write(n * 10)).collect(), Headers::All).await;
    let most = log.check_all((0..MANY as u64 * 10 + 100).step_by(477)).await;
    println!("most reads: {most}");
    assert!((5..=SEARCHING + PROVING).contains(&most), "{most}");
}

#[tokio::test]
async fn a_time_in_a_log_whose_times_step_back_is_found_in_a_few_reads() {
    let times = stepping_back(MANY, 1);
    let log = CountedLog::new(times.iter().map(|time| What::Write(*time)).collect(), Headers::All).await;
    let most = log.check_all(times.iter().step_by(101).flat_map(|time| [time - 1, *time, time + 3])).await;
    println!("most reads: {most}");
    assert!((5..=SEARCHING + PROVING).contains(&most), "{most}");
}

#[tokio::test]
async fn a_long_run_without_writes_is_passed_over_at_once() {
    let writes = |from: u64| (from..from + 500).map(|n| What::Write(n * 10));
    let parts = (0..4000).map(|_| What::About(2500));
    let log = CountedLog::new(writes(1).chain(parts).chain(writes(501)).collect(), Headers::All).await;
    let most = log.check_all((0..10_100).step_by(97)).await;
    println!("most reads: {most}");
    assert!(most <= SEARCHING + PROVING, "{most}");
}

#[tokio::test]
async fn every_time_is_found_whatever_headers_know() {
    for (seed, headers) in [
        (1, Headers::All),
        (2, Headers::OpenedAnew(2)),
        (3, Headers::OpenedAnew(20)),
        (4, Headers::OpenedAnew(200)),
        (5, Headers::Old),
    ] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let times = stepping_back(600, seed);
        let all = times.iter().map(|time| match rng.random_range(0..4) {
            0 => What::About(rng.random_range(0..*time)),
            1 => What::Write(rng.random_range(time / 2..time * 2)),
            _ => What::Write(*time),
        });
        let all = std::iter::once(What::Write(60_000)).chain(all).collect();
        let log = CountedLog::new(all, headers).await;
        log.check_all(times.iter().flat_map(|time| [time - 1, *time, time * 2]).chain([0, 59_999, u64::MAX]))
            .await;
    }
}

#[tokio::test]
async fn a_log_that_is_older_than_what_headers_know_is_read_many_heads_at_once() {
    let log = CountedLog::new((1..=1500).map(|n| What::Write(n * 10)).collect(), Headers::Old).await;
    let most = log.check_all([0, 5, 10, 7000]).await;
    assert!(most <= 1500 / 10, "{most}");
}
