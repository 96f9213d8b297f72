//! How quickly a log is read back: `cargo run --release -p tlog-player --example restore_speed -- [--disk 256MiB] [--directory DIR]
//! [--turns 3] [--only replay|restore] [--walk no] [--blocks 25] [--times 1,16]
//! [--writes in-order|shuffled|at-random]`.
//!
//! Everything is in directory stores, 4+2, in blocks of 4 KiB of random bytes; what is compared is run in turns. It says
//!
//! - whole histories, in aggregations of 25 and of 250 blocks: GB/s (10^9 bytes of block data) and CPU seconds for each GB, of a replay
//!   and of a *serial walk*, which is how the system that tlog replaces reads: from the newest aggregation back, each named by the one
//!   after it, one store after the other, and joined, decrypted, decompressed and hashed before the next is read. The walk has the
//!   same codec; only the way of reading differs. Both also with stores that take 1 ms for each answer, as on a network;
//! - the restore of a disk whose history is 1, 4 and 16 times its size, rewritten from one end to the other, in shuffled passes and at random places: to a
//!   sparse file, and to nothing; and both from a checkpoint that was made when 15/16 of that were written.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use tlog_codec::{
    CheckpointPart, CheckpointRecord, Content, Finding, Keyring, MasterKey, Opener, PlaceInLog, Record,
    Redundancy, SealRequest, Sealed, Sealer, ShardHead, VdiskKeys, WithoutWrites,
};
use tlog_player::{
    DiskState, FileOptions, LogReader, Moment, MomentReached, NoTarget, ReadOptions, ReplayOptions,
    RestoreOptions, restore_to_file,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Epoch, Generation, Sequence, SessionId, Timestamp,
    VdiskId,
};
use tlog_quorum::{Quorums, StoreSet};
use tlog_store::{
    DirectoryOptions, DirectoryStore, FaultyStore, Members, Shard, ShardSlot, ShardStore, StartRecord,
};

const BLOCK: usize = 4096;
/// Appends on their way while a log is written.
const IN_FLIGHT: usize = 64;
/// Blocks in a part of a checkpoint, about what a server makes: 4 MiB.
const BLOCKS_OF_A_PART: usize = 1024;
const LATENCY: Duration = Duration::from_millis(1);

#[tokio::main]
async fn main() {
    // As the binaries do it: `tlog::memory::keep_large_buffers`.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(31 << 20)));
    let options = Options::from_arguments();
    let Options { disk, .. } = options;
    println!("disk of {} MiB, {} turns, median (lowest-highest)", disk >> 20, options.turns);
    if options.only.as_deref() != Some("restore") {
        for in_aggregation in options.in_aggregation() {
            let mut log = Log::begin(&options.directory, in_aggregation).await;
            log.write(Writes::InOrder, disk, disk).await;
            whole_history(&log, &options).await;
        }
    }
    if options.only.as_deref() != Some("replay") {
        for in_aggregation in options.in_aggregation() {
            for writes in options.writes.map_or(Writes::ALL.to_vec(), |writes| vec![writes]) {
                restores(in_aggregation, writes, &options).await;
            }
        }
    }
}

struct Options {
    disk: u64,
    directory: PathBuf,
    turns: usize,
    only: Option<String>,
    /// Whether the serial walk is measured, too: with slow stores it takes minutes.
    walk: bool,
    /// Blocks in an aggregation, where only one size is looked at.
    blocks: Option<u64>,
    /// Lengths of history, in sizes of the disk.
    times: Vec<u64>,
    /// Where only one way of writing is looked at.
    writes: Option<Writes>,
}

impl Options {
    fn in_aggregation(&self) -> Vec<u64> {
        self.blocks.map_or_else(|| vec![25, 250], |blocks| vec![blocks])
    }

    fn from_arguments() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(at + 1).expect("a value").clone())
        };
        Self {
            disk: value("--disk").map_or(256 << 20, |text| bytes_of(&text)),
            directory: value("--directory").map_or_else(std::env::temp_dir, PathBuf::from),
            turns: value("--turns").map_or(3, |text| text.parse().expect("a number of turns")),
            only: value("--only"),
            walk: value("--walk").is_none_or(|walk| walk != "no"),
            times: value("--times").map_or(vec![1, 4, 16], |text| {
                text.split(',').map(|times| times.parse().expect("how many times the disk")).collect()
            }),
            writes: value("--writes").map(|text| {
                *Writes::ALL
                    .iter()
                    .find(|writes| writes.name() == text)
                    .expect("in-order, shuffled or at-random")
            }),
            blocks: value("--blocks").map(|text| text.parse().expect("a number of blocks")),
        }
    }
}

/// `256MiB`, `1GiB`.
fn bytes_of(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().expect("a size such as 256MiB");
    match unit {
        "MiB" => number << 20,
        "GiB" => number << 30,
        _ => panic!("a size such as 256MiB or 1GiB"),
    }
}

type Appends = futures::stream::FuturesUnordered<tokio::task::JoinHandle<()>>;

/// Where a history of a disk writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// From one end to the other, and again.
    InOrder,
    /// Every block once in any order, and again in another order: after each pass the disk is full.
    Shuffled,
    /// Anywhere: after as many writes as it has blocks, 37 % of the disk were never written to.
    AtRandom,
}

impl Writes {
    const ALL: [Self; 3] = [Self::InOrder, Self::Shuffled, Self::AtRandom];

    fn name(self) -> &'static str {
        match self {
            Self::InOrder => "in-order",
            Self::Shuffled => "shuffled",
            Self::AtRandom => "at-random",
        }
    }
}

/// A log on six directories, and what writes it.
struct Log {
    scratch: tempfile::TempDir,
    stores: Vec<Arc<dyn ShardStore>>,
    keys: VdiskKeys,
    quorums: Quorums,
    in_aggregation: u64,
    /// The last one.
    number: AggregationNumber,
    prev: AggregationId,
    /// The newest record.
    record: Option<AggregationNumber>,
    written: u64,
    /// Blocks that a shuffled pass has not written yet.
    pass: Vec<u64>,
    rng: SmallRng,
}

impl Log {
    async fn begin(directory: &Path, in_aggregation: u64) -> Self {
        let scratch = tempfile::tempdir_in(directory).unwrap();
        let vdisk = VdiskId::new("speed").unwrap();
        let redundancy = Redundancy::new(4, 2).unwrap();
        let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
        let mut identities = Vec::new();
        for i in 0..redundancy.total() {
            let path = scratch.path().join(format!("store-{i}"));
            let store = DirectoryStore::open(path, DirectoryOptions::default()).unwrap();
            identities.push(store.promise(&vdisk, Epoch(1)).await.unwrap().identity);
            stores.push(Arc::new(store));
        }
        let members = Members { epoch: Epoch(1), identities, ..Members::default() };
        let start = StartRecord { epoch: Epoch(1), number: AggregationNumber(1) };
        for store in &stores {
            store.start(&vdisk, start, &members).await.unwrap();
        }
        Self {
            scratch,
            stores,
            keys: VdiskKeys::new(vdisk, Arc::new(Keyring::new(MasterKey::from_bytes([7; 32])))),
            quorums: Quorums::default_for(redundancy),
            in_aggregation,
            number: AggregationNumber(0),
            prev: AggregationId::BEFORE_FIRST,
            record: None,
            written: 0,
            pass: Vec::new(),
            rng: SmallRng::seed_from_u64(1),
        }
    }

    /// Writes to a disk of so many bytes until so many were written, in whole aggregations.
    async fn write(&mut self, writes: Writes, disk: u64, until: u64) {
        let blocks_of_disk = disk / BLOCK as u64;
        let sealer = Sealer::new(self.keys.clone(), self.quorums.redundancy());
        let mut appends = Appends::new();
        while self.written * (BLOCK as u64) < until {
            let first = self.written;
            let blocks: Vec<Block> = (first..first + self.in_aggregation)
                .map(|at| {
                    let mut data = vec![0; BLOCK];
                    self.rng.fill_bytes(&mut data);
                    let index = match writes {
                        Writes::InOrder => at % blocks_of_disk,
                        Writes::Shuffled => self.next_of_pass(blocks_of_disk),
                        Writes::AtRandom => self.rng.random_range(0..blocks_of_disk),
                    };
                    let (sequence, index) = (Sequence(at + 1), BlockIndex::new(index).unwrap());
                    Block::set(sequence, index, Timestamp(at + 1), Bytes::from(data))
                })
                .collect();
            self.written += self.in_aggregation;
            let (number, nonce, finding) = self.begin_next();
            let request = SealRequest {
                number,
                generation: Generation(1),
                session: SessionId(1),
                sealed_at: Timestamp(first),
                block_size: 0,
                nonce,
                finding,
                blocks: &blocks,
            };
            self.append(sealer.seal(request).unwrap(), &mut appends).await;
        }
        self.publish(appends).await;
    }

    /// Another block of the pass over the disk, or the first of another pass.
    fn next_of_pass(&mut self, blocks_of_disk: u64) -> u64 {
        if self.pass.is_empty() {
            self.pass.extend(0..blocks_of_disk);
            self.pass.shuffle(&mut self.rng);
        }
        self.pass.pop().unwrap()
    }

    /// Writes a checkpoint of the disk as it is.
    async fn checkpoint(&mut self) {
        let (reader, state) = state(self, false).await;
        let reached = *state.reached().unwrap();
        let mut read = reader.read_blocks(&self.keys, &state, 128 << 20);
        let mut image = Vec::new();
        while let Some(blocks) = read.next().await {
            image.extend(blocks.unwrap());
        }
        image.sort_by_key(|block| block.index);
        let mut appends = Appends::new();
        let mut parts = Vec::new();
        for blocks in image.chunks(BLOCKS_OF_A_PART) {
            self.append_without_writes(&reached, Content::Checkpoint(blocks), &mut appends).await;
            parts.push(CheckpointPart {
                number: self.number,
                id: self.prev,
                blocks: blocks.len() as u32,
                first: blocks[0].index,
                last: blocks[blocks.len() - 1].index,
            });
        }
        let MomentReached { aggregation, id, blocks, of, position, timestamp, .. } = reached;
        let record = Record::Checkpoint(CheckpointRecord {
            place: PlaceInLog { aggregation, id, blocks, of, position, timestamp },
            block_size: state.block_size(),
            blocks: state.block_count() as u64,
            bytes: state.content_bytes(),
            base: None,
            parts,
        });
        self.append_without_writes(&reached, Content::Record(&record), &mut appends).await;
        self.record = Some(self.number);
        self.publish(appends).await;
    }

    async fn append_without_writes(
        &mut self,
        reached: &MomentReached,
        content: Content<'_>,
        appends: &mut Appends,
    ) {
        let (number, nonce, finding) = self.begin_next();
        let request = WithoutWrites {
            number,
            after: reached.position,
            session: SessionId(1),
            about: reached.timestamp,
            sealed_at: Timestamp(self.written),
            block_size: BLOCK as u32,
            nonce,
            finding,
            content,
        };
        let sealer = Sealer::new(self.keys.clone(), self.quorums.redundancy());
        self.append(sealer.seal_without_writes(request).unwrap(), appends).await;
    }

    /// Number, nonce and finding of the next aggregation.
    fn begin_next(&mut self) -> (AggregationNumber, [u8; 12], Finding) {
        self.number = self.number.next();
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.number.0.to_be_bytes());
        (self.number, nonce, Finding { record_before: self.record, ..Finding::default() })
    }

    async fn append(&mut self, sealed: Sealed, appends: &mut Appends) {
        let (encoded, number) = (sealed.link(self.prev), self.number);
        self.prev = encoded.id;
        for (i, store) in self.stores.iter().enumerate() {
            let shard = encoded.shard(i, Epoch(1)).unwrap();
            let shard = Shard { epoch: Epoch(1), id: encoded.id, head: shard.head, payload: shard.payload };
            let (store, vdisk) = (Arc::clone(store), self.keys.vdisk().clone());
            appends.push(tokio::spawn(async move {
                store.append(&vdisk, number, shard, AggregationNumber(0)).await.unwrap();
            }));
        }
        while appends.len() > IN_FLIGHT * self.stores.len() {
            appends.next().await.unwrap().unwrap();
        }
    }

    async fn publish(&self, mut appends: Appends) {
        while let Some(appended) = appends.next().await {
            appended.unwrap();
        }
        for store in &self.stores {
            store.publish(self.keys.vdisk(), Epoch(1), self.number).await.unwrap();
        }
    }

    /// The stores, each of which takes so long for an answer.
    fn stores(&self, latency: Duration) -> Vec<Arc<dyn ShardStore>> {
        let slow = |store: &Arc<dyn ShardStore>| {
            let slow = FaultyStore::new(Arc::clone(store), 1);
            slow.control().set_delay(latency);
            Arc::new(slow) as Arc<dyn ShardStore>
        };
        if latency.is_zero() { self.stores.clone() } else { self.stores.iter().map(slow).collect() }
    }

    async fn reader(&self, latency: Duration) -> LogReader {
        let limit = Duration::from_secs(10);
        let set = StoreSet::new(self.keys.vdisk().clone(), self.stores(latency), self.quorums, limit);
        LogReader::open(set.unwrap()).await.unwrap()
    }
}

async fn whole_history(log: &Log, options: &Options) {
    let bytes = log.written * BLOCK as u64;
    for latency in [Duration::ZERO, LATENCY] {
        let (mut serial, mut parallel, mut ratios) = (Samples::default(), Samples::default(), Vec::new());
        for _ in 0..options.turns {
            let replayed = measured(replay(log, latency)).await;
            if options.walk {
                let walked = measured(serial_walk(log, latency)).await;
                ratios.push(walked.seconds / replayed.seconds);
                serial.add(walked);
            }
            parallel.add(replayed);
        }
        println!("aggregations of {} blocks, stores that take {latency:?}:", log.in_aggregation);
        println!("  replay      {}", parallel.speed(bytes));
        if options.walk {
            println!("  serial walk {}\n  ratio {:.1}", serial.speed(bytes), median(&ratios));
        }
    }
}

/// Reads everything as the system did that tlog replaces.
async fn serial_walk(log: &Log, latency: Duration) {
    let (vdisk, stores, opener) = (log.keys.vdisk(), log.stores(latency), Opener::new(log.keys.clone()));
    let (mut id, mut blocks) = (log.prev, 0);
    for number in (1..=log.number.0).rev().map(AggregationNumber) {
        let mut payloads = vec![None; stores.len()];
        let mut of = None;
        for (i, store) in stores.iter().enumerate().take(log.quorums.data()) {
            let ShardSlot::Held(shard) = store.shard(vdisk, number).await.unwrap() else {
                panic!("{number}: a shard is missing")
            };
            let head = ShardHead::parse(vdisk, &shard.head).unwrap();
            head.verify_payload(&shard.payload).unwrap();
            assert_eq!(head.id, id);
            payloads[i] = Some(shard.payload);
            of = Some(head);
        }
        let head = of.unwrap();
        blocks += opener.blocks(&head, &payloads).unwrap().len() as u64;
        id = head.header.prev;
    }
    assert_eq!((id, blocks), (AggregationId::BEFORE_FIRST, log.written));
}

async fn replay(log: &Log, latency: Duration) {
    let reader = log.reader(latency).await;
    let (first, last) = (reader.extent().first, reader.extent().last);
    let mut replay = reader.replay(first..=last, &log.keys, ReplayOptions::default());
    let mut blocks = 0;
    while let Some(replayed) = replay.next().await.unwrap() {
        blocks += replayed.blocks.len() as u64;
    }
    assert_eq!(blocks, log.written);
}

async fn restores(in_aggregation: u64, writes: Writes, options: &Options) {
    let (disk, mut log) = (options.disk, Log::begin(&options.directory, in_aggregation).await);
    let mut first: Option<[f64; 4]> = None;
    println!("restore, written {}, aggregations of {in_aggregation} blocks:", writes.name());
    for times in options.times.clone() {
        log.write(writes, disk, times * disk / 16 * 15).await;
        log.checkpoint().await;
        log.write(writes, disk, times * disk).await;
        let mut samples: [[Samples; 3]; 2] = Default::default();
        for _ in 0..options.turns {
            for (samples, with_checkpoint) in samples.iter_mut().zip([false, true]) {
                samples[0].add(measured(async { drop(state(&log, with_checkpoint).await) }).await);
                samples[1].add(
                    measured(async {
                        let (reader, state) = state(&log, with_checkpoint).await;
                        let options = RestoreOptions::default();
                        reader
                            .restore(&log.keys, &state, Arc::new(NoTarget), &options, |_| {})
                            .await
                            .unwrap();
                    })
                    .await,
                );
                let image = log.scratch.path().join("image");
                samples[2].add(
                    measured(async {
                        let (reader, state) = state(&log, with_checkpoint).await;
                        let options = FileOptions::default();
                        restore_to_file(&reader, &log.keys, &state, &image, &options, |_| {}).await.unwrap();
                    })
                    .await,
                );
                std::fs::remove_file(&image).unwrap();
            }
        }
        let content = state(&log, false).await.1.content_bytes();
        let medians = |samples: &[Samples; 3]| [samples[1].median(), samples[2].median()];
        let now: [f64; 4] = [medians(&samples[0]), medians(&samples[1])].concat().try_into().unwrap();
        let before = *first.get_or_insert(now);
        for (at, (samples, from)) in samples.iter().zip(["all writes", "checkpoint"]).enumerate() {
            let [nothing, file] = [at * 2, at * 2 + 1].map(|i| (now[i], now[i] / before[i]));
            println!(
                "  history {times:>2}x, from {from}: state {:.3} s; to nothing {:.3} s ({:.2}x), {}; to a file {:.3} s \
                 ({:.2}x), {}",
                samples[0].median(),
                nothing.0,
                nothing.1,
                samples[1].speed(content),
                file.0,
                file.1,
                samples[2].speed(content)
            );
        }
    }
}

async fn state(log: &Log, with_checkpoint: bool) -> (LogReader, DiskState) {
    let reader = log.reader(Duration::ZERO).await;
    let options = ReadOptions { ignore_checkpoints: !with_checkpoint, ..ReadOptions::default() };
    let state = reader.disk_state(&log.keys, Moment::Newest, &options).await.unwrap();
    (reader, state)
}

/// How long something took, and how long all cores together worked for it.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    cpu: f64,
}

async fn measured(work: impl Future<Output = ()>) -> Sample {
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    work.await;
    Sample { seconds: begun.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu }
}

/// User and system time of this process, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = |at: usize| fields.split_whitespace().nth(at).unwrap().parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

#[derive(Default)]
struct Samples(Vec<Sample>);

impl Samples {
    fn add(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    fn median(&self) -> f64 {
        median(&self.0.iter().map(|sample| sample.seconds).collect::<Vec<_>>())
    }

    fn speed(&self, bytes: u64) -> String {
        let gigabytes = bytes as f64 / 1e9;
        let speeds: Vec<f64> = self.0.iter().map(|sample| gigabytes / sample.seconds).collect();
        let cpu = median(&self.0.iter().map(|sample| sample.cpu / gigabytes).collect::<Vec<_>>());
        let (lowest, highest) =
            speeds.iter().fold((f64::MAX, 0f64), |(low, high), speed| (low.min(*speed), high.max(*speed)));
        format!("{:.2} GB/s ({lowest:.2}-{highest:.2}), {cpu:.2} CPU s/GB", median(&speeds))
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
