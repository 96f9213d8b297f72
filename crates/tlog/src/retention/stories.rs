//! Stories of what is done to logs while stores fail and servers take logs from each other. On memory stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tlog_crypto::{Keyring, MasterKey};
use tlog_player::{Checkpoint, DiskState};
use tlog_proto::{BlockIndex, SessionId};
use tlog_server::{LogStorage, OrderedBlock, VdiskLog};
use tlog_store::{FaultControl, FaultyStore, MemoryStore, ShardStore};
use tokio::sync::Notify;

use super::limits::OfflineLimits;
use super::*;
use crate::settings::{Settings, SettingsArgs};

const LIMITS: OfflineLimits = OfflineLimits { configuration: None };
const RATE: u64 = 1 << 30;
const HOUR: u64 = 3600 * 1_000_000_000;

/// Six stores, and the servers that have them.
struct Cluster {
    settings: Settings,
    stores: Vec<Arc<FaultyStore>>,
    keyring: Arc<Keyring>,
}

impl Cluster {
    fn new() -> Self {
        let args = SettingsArgs::default().with("storage", ["memory:"; 6].join(",")).with("flush-size", "5");
        let store = |n: u64| FaultyStore::new(Arc::new(MemoryStore::new(format!("memory:{n}"))), n);
        Self {
            settings: Settings::from_flags(&args).unwrap(),
            stores: (0..6).map(|n| Arc::new(store(n))).collect(),
            keyring: Arc::new(Keyring::new(MasterKey::generate().unwrap())),
        }
    }

    fn server(&self) -> FlusherStorage {
        let stores = self.stores.iter().map(|store| Arc::clone(store) as Arc<dyn ShardStore>).collect();
        FlusherStorage::new(&self.settings, stores, Some(Arc::clone(&self.keyring))).unwrap()
    }

    fn control(&self, store: usize) -> FaultControl {
        self.stores[store].control()
    }
}

/// Each test has its own, as what is under way is told by vdisk.
fn vda() -> VdiskId {
    static TESTS: AtomicU64 = AtomicU64::new(0);
    thread_local!(static TEST: u64 = TESTS.fetch_add(1, Ordering::Relaxed));
    VdiskId::new(&format!("vda-{}", TEST.with(|test| *test))).unwrap()
}

/// Writes of so many bytes each, at a time, and waits until they are durable.
async fn write(log: &Arc<dyn VdiskLog>, sequences: std::ops::RangeInclusive<u64>, bytes: usize, time: u64) {
    let last = *sequences.end();
    for sequence in sequences {
        let index = BlockIndex::new(sequence % 64).unwrap();
        let data = Bytes::from(vec![sequence as u8 | 1; bytes]);
        let block = Block::set(Sequence(sequence), index, Timestamp(time), data);
        let block = OrderedBlock { generation: Generation(1), session: SessionId(9), block };
        log.append(vec![block]).await.unwrap();
    }
    log.flush();
    let durable = |state: &tlog_server::Durability| state.durable.is_some_and(|at| at.sequence.0 >= last);
    log.durability().wait_for(durable).await.unwrap();
}

async fn reader(storage: &FlusherStorage) -> LogReader {
    LogReader::open(storage.store_set(&vda()).unwrap()).await.unwrap()
}

async fn checkpoints(storage: &FlusherStorage) -> Vec<Checkpoint> {
    reader(storage).await.checkpoints(&storage.keys(&vda()).unwrap()).await.unwrap()
}

async fn disk_after(storage: &FlusherStorage, sequence: u64) -> DiskState {
    let moment = Moment::Sequence { generation: None, sequence: Sequence(sequence) };
    let keys = storage.keys(&vda()).unwrap();
    reader(storage).await.disk_state(&keys, moment, &Default::default()).await.unwrap()
}

fn now() -> u64 {
    jiff::Timestamp::now().as_nanosecond() as u64
}

async fn mark(storage: &FlusherStorage, sequence: u64) {
    let at = At::Sequence { generation: None, sequence };
    let request = Request::Mark { name: format!("mark-{sequence}"), at };
    run(storage, &vda(), request, &LIMITS, RATE, &mut |_, _| {}).await.unwrap();
}

async fn prune(storage: &FlusherStorage, keep: Keep) -> PruneReport {
    let request = Request::Prune { keep, how: How { anyway: true, ..How::default() }, rate: None };
    match run(storage, &vda(), request, &LIMITS, RATE, &mut |_, _| {}).await.unwrap() {
        Report::Prune(report) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_lost_the_log_in_the_middle_of_a_checkpoint_leaves_it_to_the_other_one() {
    let cluster = Cluster::new();
    let (older, newer) = (cluster.server(), cluster.server());
    for client_is_there in [true, false] {
        let log = older.open(&vda()).await.unwrap();
        let from = log.end().last.map_or(1, |last| last.0 + 1);
        write(&log, from..=from + 63, 256 << 10, now()).await;
        if !client_is_there {
            log.close().await.unwrap();
            drop(log);
        }
        // Four parts, one a second from the second on.
        let (began, rate) = (Notify::new(), Some(4 << 20));
        let mut tell = |written, _| {
            if written > 0 {
                began.notify_one();
            }
        };
        let request = Request::Checkpoint { at: At::Newest, rate };
        let take_over = async {
            began.notified().await;
            newer.open(&vda()).await.unwrap()
        };
        let vdisk = vda();
        let (checkpoint, log) =
            tokio::join!(run(&older, &vdisk, request, &LIMITS, RATE, &mut tell), take_over);
        let why = checkpoint.unwrap_err().to_string();
        assert!(why.contains("another server"), "{why}");
        write(&log, from + 64..=from + 68, 100, now()).await;
        assert!(log.confirm().await.unwrap(), "it was not taken away again");
        log.close().await.unwrap();
        assert!(checkpoints(&newer).await.is_empty());
        assert!(under_way::show().iter().all(|work| work.vdisk != vdisk.to_string()));
    }
}

#[tokio::test]
async fn while_a_store_is_away_no_image_is_stored_again_and_again() {
    let (cluster, keep) = (Cluster::new(), Keep { marks: true, ..Keep::default() });
    let storage = cluster.server();
    let log = storage.open(&vda()).await.unwrap();
    write(&log, 1..=60, 100, 1).await;
    write(&log, 61..=100, 100, now()).await;
    mark(&storage, 20).await;
    cluster.control(2).set_down(true);
    write(&log, 101..=105, 100, now()).await;
    let last = reader(&storage).await.extent().last;
    for _ in 0..2 {
        let report = prune(&storage, keep).await;
        assert!(report.why_not.unwrap().contains("bring them back"));
    }
    assert_eq!(reader(&storage).await.extent().last, last, "nothing was stored");
    cluster.control(2).set_down(false);
    assert!(prune(&storage, keep).await.pruned);
    assert_eq!(disk_after(&storage, 20).await.block_count(), 20);
}

#[tokio::test]
async fn an_image_that_stays_is_not_stored_again_and_one_that_would_go_is() {
    let (cluster, keep) = (Cluster::new(), Keep { marks: true, ..Keep::default() });
    let storage = cluster.server();
    let log = storage.open(&vda()).await.unwrap();
    write(&log, 1..=60, 100, now() - 2 * HOUR).await;
    mark(&storage, 20).await;
    let images = async || {
        let all = checkpoints(&storage).await;
        let of = all.iter().filter(|image| image.record.place.position.sequence.0 == 20);
        of.map(|image| image.number).collect::<Vec<_>>()
    };
    write(&log, 61..=70, 100, now()).await;
    let hour = Keep { within: Duration::from_secs(3600), ..keep };
    assert!(prune(&storage, hour).await.pruned);
    let first = images().await;
    assert_eq!(first.len(), 1);
    let again = prune(&storage, hour).await;
    assert_eq!((again.pruned, images().await), (false, first.clone()), "{again:?}");
    // What is in the window now is still before them.
    let mut report = prune(&storage, keep).await;
    assert!(report.pruned && report.points.len() == 1, "{report:?}");
    assert_eq!(images().await, first);
    write(&log, 71..=90, 100, now()).await;
    report = prune(&storage, keep).await;
    assert!(report.pruned && report.points.len() == 1, "{report:?}");
    let second = images().await;
    assert!(second.len() == 1 && second > first, "{second:?} {first:?}");
    assert_eq!(disk_after(&storage, 20).await.block_count(), 20);
}

#[tokio::test]
async fn many_single_moments_are_kept_and_no_image_is_laid_over_too_many() {
    let (cluster, keep) = (Cluster::new(), Keep { marks: true, ..Keep::default() });
    let storage = cluster.server();
    let log = storage.open(&vda()).await.unwrap();
    const MANY: u64 = 20;
    write(&log, 1..=MANY + 20, 100, now()).await;
    let mut before = Vec::new();
    for sequence in 1..=MANY {
        mark(&storage, sequence).await;
        before.push(disk_after(&storage, sequence).await);
    }
    write(&log, MANY + 21..=MANY + 30, 100, now()).await;
    let report = prune(&storage, keep).await;
    assert!(report.pruned && report.points.len() == MANY as usize, "{report:?}");
    let all = checkpoints(&storage).await;
    let base_of =
        |number| all.iter().find(|image| image.number == number).and_then(|image| image.record.base);
    for image in &all {
        let layers = std::iter::successors(Some(image.number), |number| base_of(*number)).count();
        assert!(layers <= 8, "{layers}");
    }
    for (sequence, before) in (1..=MANY).zip(before) {
        let after = disk_after(&storage, sequence).await;
        let (apart, gone) = after.apart_from(&before);
        assert_eq!((apart.block_count(), gone.len()), (0, 0), "{sequence}");
    }
}
