//! Processes that die while they remove history, as by SIGKILL, at each failpoint of that: whatever was to be kept is there, and the
//! next one goes on.
//!
//! A child - this test's own program again - writes a log on six directories, gives moments names, and removes the history before its last
//! write, again and again. What it has done it says; what it has said is held against what its directories have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Signal, getpid, kill_process};
use tlog_ambient::{Point, watch_points};
use tlog_crypto::{Keyring, MasterKey};
use tlog_player::{Depth, Verdict};
use tlog_proto::{BlockIndex, SessionId};
use tlog_server::{LogStorage, OrderedBlock};
use tlog_store::{DirectoryOptions, DirectoryStore, ShardStore};

use super::limits::OfflineLimits;
use super::*;
use crate::settings::{Settings, SettingsArgs};

/// At each point so many processes die, one after the other, each where the one before has left off.
const SEEDS: u64 = 20;

/// Moments that are looked at, beside the first and the last that are kept, and marks.
const LOOKS: usize = 2;

/// Marks that are there at the same time, about.
const MARKS: usize = 3;

const DIRECTORY: &str = "TLOG_TEST_CRASH_DIRECTORY";
const POINT: &str = "TLOG_TEST_CRASH_POINT";
const HIT: &str = "TLOG_TEST_CRASH_HIT";

/// Six directories with one log. Its vdisk is named like their parent, as what is under way in a process is told by vdisk.
struct Site {
    storage: FlusherStorage,
    vdisk: VdiskId,
}

impl Site {
    fn open(root: &Path, read_only: bool) -> Self {
        let args = SettingsArgs::default().with("storage", ["memory:"; 6].join(",")).with("flush-size", "5");
        let store = |n: usize| {
            let directory = root.join(n.to_string());
            let store = match read_only {
                true => DirectoryStore::open_read_only(directory),
                false => DirectoryStore::open(directory, DirectoryOptions::default()),
            };
            Arc::new(store.unwrap()) as Arc<dyn ShardStore>
        };
        let keyring = Arc::new(Keyring::new(MasterKey::from_bytes([7; 32])));
        let settings = Settings::from_flags(&args).unwrap();
        let storage = FlusherStorage::new(&settings, (0..6).map(store).collect(), Some(keyring)).unwrap();
        let vdisk = VdiskId::new(root.file_name().unwrap().to_str().unwrap()).unwrap();
        Self { storage, vdisk }
    }

    async fn reader(&self) -> (LogReader, VdiskKeys) {
        let set = self.storage.store_set(&self.vdisk).unwrap();
        (LogReader::open(set).await.unwrap(), self.storage.keys(&self.vdisk).unwrap())
    }

    /// The sequence of the last write.
    async fn newest(&self) -> u64 {
        let (reader, keys) = self.reader().await;
        let newest = reader.disk_state(&keys, Moment::Newest, &Default::default()).await.unwrap();
        newest.reached().map_or(0, |reached| reached.position.sequence.0)
    }

    /// Names of moments, and the sequences that they are after.
    async fn marks(&self) -> BTreeMap<String, u64> {
        let (reader, keys) = self.reader().await;
        let marks = reader.marks(&keys).await.unwrap();
        marks.iter().map(|mark| (mark.name.to_string(), mark.place.position.sequence.0)).collect()
    }

    async fn ask(&self, request: Request) -> Report {
        let limits = OfflineLimits { configuration: None };
        run(&self.storage, &self.vdisk, request, &limits, 1 << 30, &mut |_, _| {}).await.unwrap()
    }

    async fn prune(&self) -> PruneReport {
        let keep = Keep { marks: true, ..Keep::default() };
        let request = Request::Prune { keep, how: How { anyway: true, ..How::default() }, rate: None };
        match self.ask(request).await {
            Report::Prune(report) => report,
            other => panic!("{other:?}"),
        }
    }
}

/// The write of a sequence.
fn block(sequence: u64) -> Block {
    let (index, at) = (BlockIndex::new(sequence * 13 % 24).unwrap(), Timestamp(1_000_000_000 + sequence));
    match sequence % 7 {
        0 => Block::delete(Sequence(sequence), index, at),
        _ => {
            let data = sequence.to_le_bytes().repeat(64);
            Block::set(Sequence(sequence), index, at, Bytes::from(data))
        }
    }
}

/// The disk after a write.
fn model(sequence: u64) -> BTreeMap<BlockIndex, Bytes> {
    let mut disk = BTreeMap::new();
    for Block { index, data, .. } in (1..=sequence).map(block) {
        match data.is_empty() {
            true => disk.remove(&index),
            false => disk.insert(index, data),
        };
    }
    disk
}

/// Tells the one who listens, whatever the test's harness has printed on the line.
fn say(text: &str) {
    std::io::stdout().write_all(format!("\n{text}\n").as_bytes()).unwrap();
}

/// What the child does until it dies.
async fn work(root: &Path, point: Point, hit: u64) {
    let left = AtomicU64::new(hit);
    let _watched = watch_points(move |reached| {
        if reached == point && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            kill_process(getpid(), Signal::KILL).unwrap();
            std::thread::park(); // until the signal is there
        }
    });
    let site = Site::open(root, false);
    let log = site.storage.open(&site.vdisk).await.unwrap();
    let mut next = log.end().last.map_or(1, |last| last.0 + 1);
    let mut marks = match next {
        1 => BTreeSet::new(),
        _ => site.marks().await.into_values().collect(),
    };
    loop {
        let last = next + 8;
        say(&format!("writing {last}"));
        for sequence in next..=last {
            let (generation, session) = (Generation(1), SessionId(9));
            log.append(vec![OrderedBlock { generation, session, block: block(sequence) }]).await.unwrap();
        }
        log.flush();
        let durable = |state: &tlog_server::Durability| state.durable.is_some_and(|at| at.sequence.0 >= last);
        log.durability().wait_for(durable).await.unwrap();
        say(&format!("acknowledged {last}"));
        // In the middle of an aggregation, or after all of one.
        let marked = last - next % 4;
        let at = At::Sequence { generation: None, sequence: marked };
        site.ask(Request::Mark { name: format!("mark-{marked}"), at }).await;
        say(&format!("marked {marked}"));
        marks.insert(marked);
        while marks.len() > MARKS
            && let Some(oldest) = marks.pop_first()
        {
            say(&format!("unmarking {oldest}"));
            site.ask(Request::Unmark { name: format!("mark-{oldest}") }).await;
        }
        say(&format!("pruning {last}"));
        let report = site.prune().await;
        assert!(report.pruned, "{report:?}");
        next = last + 1;
    }
}

/// What processes that died have said.
#[derive(Default)]
struct Heard {
    handed_over: u64,
    acknowledged: u64,
    /// From here on every moment was to be kept.
    kept_from: u64,
    marks: BTreeSet<u64>,
}

impl Heard {
    /// Lets a process work until it dies.
    fn listen(&mut self, test: &str, root: &Path, point: Point, hit: u64) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("retention::crash::{test}"), "--nocapture"])
            .env(DIRECTORY, root)
            .env(POINT, point.name())
            .env(HIT, hit.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some((word, number)) = line.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "writing" => self.handed_over = number,
                "acknowledged" => self.acknowledged = number,
                "pruning" => self.kept_from = number,
                "marked" => _ = self.marks.insert(number),
                "unmarking" => _ = self.marks.remove(&number),
                _ => {}
            }
        }
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{}, hit {hit}: it did not die there: {status}", point.name());
    }

    /// Moments that were to be kept are there, and are what was written. Answers whether history is gone.
    async fn check(&self, site: &Site, random: &mut SmallRng, what: &str) -> bool {
        let ((reader, keys), newest) = (site.reader().await, site.newest().await);
        assert!((self.acknowledged..=self.handed_over).contains(&newest), "{what}: it ends with {newest}");
        let marks = site.marks().await;
        for mark in &self.marks {
            assert_eq!(marks.get(&format!("mark-{mark}")), Some(mark), "{what}");
        }
        let first = self.kept_from.max(1);
        let between = (0..LOOKS).map(|_| random.random_range(first..=newest));
        for sequence in [first, newest].into_iter().chain(between).chain(self.marks.iter().copied()) {
            let moment = Moment::Sequence { generation: None, sequence: Sequence(sequence) };
            let state = reader.disk_state(&keys, moment, &Default::default()).await;
            let state = state.unwrap_or_else(|error| panic!("{what}: after write {sequence}: {error}"));
            let mut disk = BTreeMap::new();
            let mut blocks = reader.read_blocks(&keys, &state, 1 << 20);
            while let Some(read) = blocks.next().await {
                disk.extend(read.unwrap().into_iter().map(|block| (block.index, block.data)));
            }
            assert!(disk == model(sequence), "{what}: after write {sequence}");
        }
        let report = reader.verify(Depth::Deep(&keys), |_| {}).await.unwrap();
        assert!(matches!(report.verdict, Verdict::Whole | Verdict::Degraded), "{what}: {report:?}");
        reader.extent().first.0 > 1
    }
}

/// Lets processes die at these points; `test` is the test that calls this. On one thread, as points are watched on that.
async fn die_at(test: &str, points: &[(Point, u64)]) {
    let variable = |name| std::env::var(name).unwrap();
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let point = Point::all().find(|point| point.name() == variable(POINT)).unwrap();
        return work(directory.as_ref(), point, variable(HIT).parse().unwrap()).await;
    }
    for &(point, last_hit) in points {
        let named = |directory| tempfile::Builder::new().prefix("tlog-crash-").tempdir_in(directory);
        let directory = named("/dev/shm".into()).or_else(|_| named(std::env::temp_dir())).unwrap();
        let (mut heard, mut removed) = (Heard::default(), 0);
        for seed in 1..=SEEDS {
            let mut random = SmallRng::seed_from_u64(seed);
            let hit = random.random_range(1..=last_hit);
            heard.listen(test, directory.path(), point, hit);
            let what = format!("{}, seed {seed}, hit {hit}", point.name());
            let is_removed = heard.check(&Site::open(directory.path(), true), &mut random, &what).await;
            removed += u64::from(is_removed);
            if seed % 2 == 0 {
                // Somebody else goes on with it.
                let site = Site::open(directory.path(), false);
                let what = format!("{what}, and pruned again");
                // Where one died before it began to prune, more is removed now than it had asked for.
                heard.kept_from = site.newest().await;
                let report = site.prune().await;
                let is_done = |why: &String| why.contains("everything that the log has is within");
                assert!(report.why_not.as_ref().is_none_or(is_done), "{what}: {report:?}");
                heard.check(&site, &mut random, &what).await;
            }
        }
        assert!(removed >= SEEDS / 2, "{}: hardly anything was removed", point.name());
    }
}

#[tokio::test]
async fn what_is_kept_survives_wherever_its_images_are_stored() {
    let points = [(Point::BeforeImage, 4), (Point::AfterImagePart, 4), (Point::AfterImage, 4)];
    die_at("what_is_kept_survives_wherever_its_images_are_stored", &points).await;
}

#[tokio::test]
async fn what_is_kept_survives_wherever_marks_are_stored_again_or_history_is_about_to_go() {
    let points = [(Point::AfterMark, 4), (Point::BeforeRemoval, 3), (Point::AfterRemoval, 3)];
    die_at("what_is_kept_survives_wherever_marks_are_stored_again_or_history_is_about_to_go", &points).await;
}

#[tokio::test]
async fn what_is_kept_survives_wherever_stores_remove_history() {
    let points = [(Point::BeforeStoreRemoval, 18), (Point::AfterStoreRemoval, 18)];
    die_at("what_is_kept_survives_wherever_stores_remove_history", &points).await;
}

#[test]
fn every_point_of_a_prune_is_in_one_of_these_tests() {
    let text = include_str!("crash.rs");
    let missing = |point: &Point| !text.contains(&format!("(Point::{point:?}, "));
    assert_eq!(Point::all().filter(Point::is_of_prune).find(missing), None);
}
