//! Random exploration of commit and recovery: the real writer, in virtual time, on stores that fail.
//!
//! Small logs, several writers at once (an older one may still be running), answers that get lost, calls that arrive long after
//! the writer gave them up or is gone, appends that are torn, openings that stop half-way, stores that come back empty (never
//! more at once than W - k) and are filled again, old disks that are put back, scrubs beside all that; now and then more stores
//! than that are lost for good, and an operator, who may be wrong, has them replaced. Records and parts of checkpoints stand among the
//! writes, and now and then somebody has the beginning of a log removed. After every opening:
//! nothing acknowledged is lost or replaced, what an earlier opening served is still there, and what it had ruled out never
//! comes back; gone is only what somebody had removed. At the end, when faults stop, every store holds a whole shard of everything, and
//! nothing that was removed. Each rule of
//! `docs/commit-and-recovery.md` is then broken on purpose, and the exploration must notice.
//!
//! `TLOG_EXPLORE_SEED=n cargo test -p tlog-flusher exploration -- --nocapture` runs one seed and tells its story;
//! `TLOG_EXPLORE_SEEDS=n` runs that many.

mod noticed;
mod tally;
mod unruly;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_proto::{AggregationId, AggregationNumber, Timestamp};
use tlog_quorum::{Quorums, ShardCondition, Standing, StoreSet};
use tlog_store::{FaultControl, FaultyStore, MemoryStore, RandomFaults, ShardStore, StoreIdentity};

use self::tally::Tally;
use self::unruly::Unruly;
use crate::broken::{Rule, any_broken, break_rule, is_broken};
use crate::testing::{Cluster, Stored, keys, mark, marked_block, part, settings, stored_up_to, vdisk};
use crate::{Log, LogSettings, LogStatus, OpenError, PruneError, Pruned};

/// A writer that may still be running.
struct Server {
    log: Log,
    controls: Vec<FaultControl>,
    /// Marks of what the log held when it was opened, then of what was appended, in order.
    content: Vec<u64>,
    /// How many of `content` were there at the opening; all of these are durable.
    opened_with: usize,
    sequence: u64,
}

struct World {
    rng: SmallRng,
    cluster: Cluster,
    /// So many stores at once.
    may_be_blank: usize,
    /// Disks that were taken out, by place.
    drawer: Vec<(usize, Arc<MemoryStore>)>,
    faults: RandomFaults,
    /// Whether what happens is printed.
    told: bool,
    first_identities: Vec<Arc<Mutex<Option<StoreIdentity>>>>,
    servers: Vec<Server>,
    generation: u64,
    next_mark: u64,
    /// What clients were told is durable.
    acknowledged: BTreeSet<u64>,
    /// What an opening served, and the first mark that was made after it.
    views: Vec<(Vec<u64>, u64)>,
    /// What has no writes and was answered as stored.
    extras: BTreeMap<AggregationNumber, AggregationId>,
    /// Below this somebody has had history removed, and the marks of it: whether it is gone anywhere is not known.
    removed_below: AggregationNumber,
    removed: BTreeSet<u64>,
    tally: Tally,
    /// More stores were lost than an acknowledgement promises to survive; then openings may be refused because data is lost.
    lost_beyond: bool,
    /// Servers are set to different write quorums.
    settings_change: bool,
}

impl World {
    fn new(seed: u64, told: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let data = [1, 1, 2, 3, 4][rng.random_range(0..5)];
        // A broken rule shows itself soonest where little else goes wrong.
        let calm = any_broken();
        let parity = [0, 1, 2, 2, 3][rng.random_range(if calm { 1..5 } else { 0..5 })];
        let write = rng.random_range(data + parity.min(1)..=data + parity);
        // A call that is given up and sent again must not be torn when it arrives: that would be rot of what was answered.
        let (late, torn) = if calm {
            (20, 0.0)
        } else {
            [(20, 0.0), (20, 0.0), (1500, 0.0), (20, 0.01)][rng.random_range(0..4)]
        };
        let faults = RandomFaults {
            delay: 0.5,
            longest_delay: Duration::from_millis(late),
            unavailable: 0.02,
            torn_append: torn,
            lost_answer: 0.05,
        };
        let cluster = Cluster::new(data, parity, Some(write));
        let quorums = cluster.quorums;
        let mut may_be_blank = quorums.losses_at_acknowledgement();
        if !calm && rng.random_bool(0.75) {
            // With more, nothing is lost, but nothing can be opened or filled either.
            may_be_blank = may_be_blank.min(quorums.total() - quorums.opening());
        }
        let first_identities = (0..data + parity).map(|_| Arc::default()).collect();
        Self {
            rng,
            cluster,
            may_be_blank,
            lost_beyond: false,
            settings_change: is_broken(Rule::EarlierWrite) || (!calm && seed.is_multiple_of(4)),
            drawer: Vec::new(),
            faults,
            told,
            first_identities,
            servers: Vec::new(),
            generation: 0,
            next_mark: 1,
            acknowledged: BTreeSet::new(),
            views: Vec::new(),
            extras: BTreeMap::new(),
            removed_below: AggregationNumber(1),
            removed: BTreeSet::new(),
            tally: Tally::default(),
        }
    }

    /// Another server's own connections: late, failing, some stores out of its reach.
    fn connect(&mut self) -> (StoreSet, Vec<FaultControl>) {
        let mut controls = Vec::new();
        let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
        for (bay, first) in self.cluster.bays.iter().zip(&self.first_identities) {
            // Delays are on the way to the store: what is delayed arrives although nobody waits for it any more.
            let slow = FaultyStore::new(bay.clone(), self.rng.random());
            slow.control().set_random(RandomFaults {
                torn_append: self.faults.torn_append,
                delay: self.faults.delay,
                longest_delay: self.faults.longest_delay,
                ..RandomFaults::default()
            });
            let unruly = Unruly::new(Arc::new(slow), first.clone());
            let faulty = FaultyStore::new(Arc::new(unruly), self.rng.random());
            let RandomFaults { unavailable, lost_answer, .. } = self.faults;
            faulty.control().set_random(RandomFaults { unavailable, lost_answer, ..RandomFaults::default() });
            controls.push(faulty.control());
            stores.push(Arc::new(faulty));
        }
        // The cluster's W is the lowest that any server was set to.
        let lowest = self.cluster.quorums.write();
        let total = self.cluster.quorums.total();
        let write = if self.settings_change { self.rng.random_range(lowest..=total) } else { lowest };
        let quorums = Quorums::new(self.cluster.quorums.redundancy(), write).unwrap();
        let set = StoreSet::new(vdisk(), stores, quorums, Duration::from_secs(1)).unwrap();
        (set, controls)
    }

    fn set_reach(&mut self, controls: &[FaultControl]) {
        let out = [0, 0, 0, 1, 1, 2][self.rng.random_range(0..6)].min(controls.len() - 1);
        for control in controls {
            control.set_down(false);
        }
        for _ in 0..out {
            let store = self.rng.random_range(0..controls.len());
            controls[store].set_down(true);
        }
    }

    async fn open(&mut self, replacing: bool) {
        let (set, controls) = self.connect();
        if !replacing || self.rng.random_bool(0.2) || is_broken(Rule::AllLeft) {
            self.set_reach(&controls);
        }
        let opening = async {
            match replacing {
                true => Log::open_replacing(set, keys(), log_settings(), |_| {}).await,
                false => Log::open(set, keys(), log_settings()).await,
            }
        };
        // Some openings stop half-way.
        let patience = if self.rng.random_bool(0.25) { self.rng.random_range(1..80) } else { 60_000 };
        let opened = tokio::time::timeout(Duration::from_millis(patience), opening).await;
        self.note_durable();
        let log = match opened {
            Ok(Ok(log)) => log,
            Ok(Err(OpenError::DataLost { numbers, .. })) if !self.lost_beyond => {
                let (set, _) = self.cluster.connect(0);
                panic!(
                    "committed aggregations {numbers} lost: {:?} {:#?}",
                    self.cluster.quorums,
                    set.survey().await
                )
            }
            Ok(Err(error)) => {
                self.tell(|| format!("refused{}: {error}", if replacing { " to replace" } else { "" }));
                self.tally.refused += 1;
                return;
            }
            Err(_) => {
                self.tell(|| "an opening stopped half-way".to_owned());
                self.tally.refused += 1;
                return;
            }
        };
        // Whoever opened it knows that nothing acknowledged is missing.
        self.tally.replaced += usize::from(replacing && self.lost_beyond);
        self.lost_beyond = false;
        self.tally.openings += 1;
        let Some(status) = log.status().await else { return };
        let content = self.check_stored(status.committed).await;
        self.tell(|| format!("opened: {} of {:?}: {content:?}", status.epoch, self.cluster.quorums));
        self.tell_stores().await;
        self.views.push((content.clone(), self.next_mark));
        if self.views.len() > 3 {
            self.views.remove(0);
        }
        self.generation = self.generation.max(log.end().generation.0) + 1;
        let opened_with = content.len();
        self.servers.push(Server {
            log,
            controls,
            content,
            opened_with,
            sequence: self.generation * 1_000_000,
        });
        if self.servers.len() > 3 {
            self.servers.remove(0);
        }
    }

    /// Checks all that the log keeps, and answers the marks of it.
    async fn check_stored(&self, last: AggregationNumber) -> Vec<u64> {
        let stored = stored_up_to(&self.cluster, last).await.unwrap_or_else(|error| panic!("{error}"));
        let content: Vec<u64> = stored.iter().flat_map(|stored| stored.marks.iter().copied()).collect();
        self.check(&content);
        let first = stored.first().map_or(AggregationNumber(1), |stored| stored.header.number);
        assert!(first <= self.removed_below, "{first}: nobody had that removed");
        let ids: BTreeMap<_, _> =
            stored.iter().map(|Stored { header, id, .. }| (header.number, *id)).collect();
        let lost: Vec<_> =
            self.extras.range(first..).filter(|(number, id)| ids.get(number) != Some(id)).collect();
        assert!(lost.is_empty(), "records or parts lost: {lost:?} of {ids:?}");
        content
    }

    fn check(&self, content: &[u64]) {
        let held: BTreeSet<u64> = content.iter().copied().collect();
        assert_eq!(held.len(), content.len(), "a block is there twice");
        let lost: Vec<_> =
            self.acknowledged.difference(&held).filter(|mark| !self.removed.contains(mark)).collect();
        assert!(lost.is_empty(), "acknowledged blocks lost: {lost:?} of {content:?}");
        let kept = |marks: &[u64]| -> Vec<u64> {
            marks.iter().copied().filter(|mark| !self.removed.contains(mark)).collect()
        };
        let content = kept(content);
        for (seen, first_new) in &self.views {
            let seen = &kept(seen);
            assert!(content.starts_with(seen), "served history lost: {seen:?} is not in {content:?}");
            let back: Vec<_> = content[seen.len()..].iter().filter(|mark| *mark < first_new).collect();
            assert!(back.is_empty(), "ruled-out blocks came back: {back:?}");
        }
    }

    /// Writes down what each server has told its clients.
    fn note_durable(&mut self) {
        for server in &self.servers {
            let Some(durable) = server.log.durability().borrow().durable else {
                continue;
            };
            // A sequence of its own range tells how many of its appends are durable.
            let base = server.sequence / 1_000_000 * 1_000_000;
            let appended = durable.sequence.0.saturating_sub(base) as usize;
            let known = (server.opened_with + appended).min(server.content.len());
            self.acknowledged.extend(&server.content[..known]);
        }
        self.tally.acknowledged = self.acknowledged.len();
    }

    async fn append(&mut self) {
        let Some(at) = self.servers.len().checked_sub(1).map(|last| self.rng.random_range(0..=last)) else {
            return;
        };
        let blocks = self.rng.random_range(1..6);
        for _ in 0..blocks {
            let mark = self.next_mark;
            self.next_mark += 1;
            let server = &mut self.servers[at];
            server.sequence += 1;
            let generation = server.sequence / 1_000_000;
            if server.log.append(marked_block(generation, server.sequence, mark)).await.is_err() {
                return;
            }
            server.content.push(mark);
        }
        if self.rng.random_bool(0.7) {
            let _ = self.servers[at].log.flush().await;
        }
    }

    /// A record, or a part of a checkpoint. Who asks does not always wait for the answer.
    async fn extra(&mut self) {
        let Some(at) = self.servers.len().checked_sub(1).map(|last| self.rng.random_range(0..=last)) else {
            return;
        };
        let log = &self.servers[at].log;
        let is_record = self.rng.random_bool(0.5);
        let length = self.rng.random_range(1..4);
        let nth = self.next_mark;
        let stored = async {
            match is_record {
                true => log.append_record(mark(nth)).await,
                false => log.append_checkpoint(part(0..length), Timestamp(nth)).await,
            }
        };
        let patience = Duration::from_millis(self.rng.random_range(1..200));
        if let Ok(Ok(stored)) = tokio::time::timeout(patience, stored).await {
            self.tell(|| format!("stored without writes: {}", stored.number));
            self.extras.insert(stored.number, stored.id);
            self.tally.extras += 1;
        }
    }

    /// Somebody has the beginning removed, of a server that may have been overtaken.
    async fn prune(&mut self) {
        let Some(at) = self.servers.len().checked_sub(1).map(|last| self.rng.random_range(0..=last)) else {
            return;
        };
        let Some(status) = self.servers[at].log.status().await else { return };
        self.note_durable();
        let most = status.committed.0;
        let mut first = AggregationNumber(self.rng.random_range(most / 2..=most).max(1));
        if self.rng.random_bool(0.1) {
            first.0 += 1000; // no writer here gets that far
        }
        if is_broken(Rule::LastStays) {
            first = status.committed.next();
        }
        // What may go from now on. Where it cannot be read right now, nobody knows.
        let last = first.previous().unwrap_or_default().min(status.committed);
        let Ok(stored) = stored_up_to(&self.cluster, last).await else { return };
        self.removed.extend(stored.iter().flat_map(|stored| stored.marks.iter().copied()));
        self.removed_below = self.removed_below.max(first.min(status.committed));
        let patience = Duration::from_millis(self.rng.random_range(1..3000));
        let answer = tokio::time::timeout(patience, self.servers[at].log.prune(first)).await;
        self.tell(|| format!("history below {first} is removed: {answer:?}"));
        match answer {
            Ok(Ok(Pruned { first: kept, .. })) => {
                assert!(kept >= first, "it keeps more than it was told to");
                self.tally.pruned += 1;
            }
            Ok(Err(PruneError::NotCommitted { committed, .. })) => assert!(first > committed),
            Ok(Err(PruneError::Closed(_) | PruneError::NotConfirmed)) | Err(_) => {}
        }
    }

    /// More stores go than an acknowledgement promises to survive; or an operator thinks so, and their disks are fine. So many are
    /// left that the log may be opened without them, and fewer than that takes otherwise.
    async fn lose(&mut self) {
        let (set, _) = self.cluster.connect(0);
        let survey = set.survey().await;
        let quorums = self.cluster.quorums;
        let mut members: Vec<usize> = survey.counted().map(|(store, _)| store).collect();
        let enough = quorums.data().max(quorums.total() - quorums.opening().min(quorums.write()) + 1);
        let least = if is_broken(Rule::Traces) { quorums.data() } else { enough };
        if survey.is_new()
            || self.lost_beyond
            || least >= quorums.opening()
            || members.len() < quorums.opening()
        {
            return;
        }
        self.note_durable();
        let left = self.rng.random_range(least..quorums.opening());
        while members.len() > left {
            let store = members.swap_remove(self.rng.random_range(0..members.len()));
            let out = self.cluster.bays[store].pull();
            self.tell(|| format!("store {store} is lost for good, {left} are left"));
            self.drawer.push((store, out));
            self.tally.lost += 1;
        }
        self.lost_beyond = true;
    }

    /// Another disk comes into a place: an empty one, or one that was there before.
    async fn change_disk(&mut self, put_back: bool) {
        let (set, _) = self.cluster.connect(0);
        let survey = set.survey().await;
        let (store, disk) = if put_back {
            if self.drawer.is_empty() {
                return;
            }
            let (store, disk) = &self.drawer[self.rng.random_range(0..self.drawer.len())];
            (*store, Some(disk.clone()))
        } else {
            (self.rng.random_range(0..self.cluster.bays.len()), None)
        };
        let blank = |view: &tlog_quorum::StoreView| view.standing == Standing::Blank;
        let others = survey.views.iter().enumerate().filter(|(i, view)| *i != store && blank(view)).count();
        // An old disk in the place of an empty one takes nothing away.
        let harmless = put_back && blank(&survey.views[store]);
        if survey.is_new() || others >= self.may_be_blank && !harmless {
            return;
        }
        // Without identities nobody could tell which stores are blank: at most one is wiped then.
        if is_broken(Rule::Identity) && (put_back || self.tally.wiped > 0)
            || blank(&survey.views[store]) && !put_back
        {
            return;
        }
        // What was told to clients before this moment must survive it.
        self.note_durable();
        self.tell(|| format!("store {store}: {}", if put_back { "an old disk" } else { "an empty disk" }));
        match disk {
            Some(disk) => {
                self.drawer.retain(|(_, kept)| !Arc::ptr_eq(kept, &disk));
                let out = self.cluster.bays[store].insert(disk);
                self.drawer.push((store, out));
                self.tally.put_back += 1;
            }
            None => {
                let out = self.cluster.bays[store].pull();
                self.drawer.push((store, out));
                self.tally.wiped += 1;
            }
        }
    }

    /// Somebody else looks for what is missing or damaged, while writing goes on.
    fn scrub(&mut self) {
        let (set, controls) = self.connect();
        self.set_reach(&controls);
        self.tally.scrubs += 1;
        tokio::spawn(async move { crate::scrub(&set, u64::MAX, |_| {}).await.map(drop) });
    }

    /// Once faults stop, the log opens, and everything is on all stores before long.
    async fn end(&mut self) {
        self.servers.clear();
        tokio::time::sleep(Duration::from_secs(10)).await; // what is on its way arrives
        let (set, _) = self.cluster.connect(0);
        let few = set.survey().await.counted_len() < self.cluster.quorums.opening();
        self.tell(|| format!("the end{}", if few { ", with lost stores" } else { "" }));
        let opened = match few {
            true => {
                let began = tokio::time::Instant::now();
                let cluster = &self.cluster;
                let in_time = |status: &LogStatus| {
                    empty_what_must_be(cluster, status);
                    assert!(
                        began.elapsed() < Duration::from_secs(600),
                        "lost stores are not replaced: {status:#?}"
                    );
                };
                Log::open_replacing(set.clone(), keys(), log_settings(), in_time).await
            }
            false => Log::open(set.clone(), keys(), log_settings()).await,
        };
        let log = match opened {
            Ok(log) => log,
            Err(OpenError::Replace(_) | OpenError::UncertainEnd(_) | OpenError::DataLost { .. })
                if few || self.lost_beyond =>
            {
                return;
            }
            Err(OpenError::TooFewStores(_)) if set.survey().await.is_new() => return,
            Err(OpenError::UncertainEnd(_) | OpenError::NotRewritten { .. })
                if self.faults.torn_append > 0.0 =>
            {
                return;
            }
            Err(error) => panic!("without faults the log does not open: {error}"),
        };
        let mut whole = log.wait_until_complete(Duration::from_secs(300)).await;
        if !whole && empty_what_must_be(&self.cluster, &log.status().await.unwrap()) {
            whole = log.wait_until_complete(Duration::from_secs(300)).await;
        }
        let status = log.status().await.unwrap();
        self.check_stored(status.committed).await;
        // A refill needs as many members as an opening; and what is torn is not whole.
        let counted = set.survey().await.counted_len();
        if self.faults.torn_append > 0.0 || counted < self.cluster.quorums.opening() {
            return;
        }
        assert!(whole, "not complete after five minutes: {status:?}");
        let kept = set.survey().await.first();
        assert_eq!(log.prune(kept).await.unwrap(), Pruned { first: kept, later: Vec::new() });
        let survey = set.survey().await;
        for (_, state) in survey.counted() {
            let lowest = state.held.first();
            assert!(
                state.first == kept && lowest.is_none_or(|lowest| lowest >= kept),
                "not removed: {state:?}"
            );
        }
        for number in (kept.0..=status.committed.0).map(AggregationNumber) {
            let (_, conditions) = set.all_shards(&survey, number).await;
            let held = |condition: &ShardCondition| matches!(condition, ShardCondition::Held(_));
            assert!(conditions.iter().all(held), "complete, and aggregation {number} is not: {conditions:?}");
        }
        self.tally.complete += 1;
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{}", what());
        }
    }

    /// What every store has, one a line.
    async fn tell_stores(&self) {
        let (set, _) = self.cluster.connect(0);
        for view in set.survey().await.views {
            let Ok(state) = view.answer else { continue };
            let starts: Vec<_> = state.starts.iter().map(|r| (r.epoch.0, r.number.0)).collect();
            self.tell(|| {
                format!(
                    "  {} {:?}: epoch {}, members {:?}, starts {starts:?}, committed {}, holds {:?}",
                    view.address,
                    view.standing,
                    state.epoch,
                    state.members.version(),
                    state.committed,
                    state.held
                )
            });
        }
    }

    async fn run(&mut self) {
        let steps = [40, 80, 200][self.rng.random_range(0..3)];
        let calm = any_broken();
        let operator = is_broken(Rule::Traces) || is_broken(Rule::AllLeft);
        for _ in 0..steps {
            match self.rng.random_range(0..100) {
                0..9 => self.open(false).await,
                9..12 => {
                    // Also where nothing was lost.
                    let replacing = self.lost_beyond || self.rng.random_bool(0.1);
                    self.open(replacing).await;
                }
                98.. if !calm || operator => self.lose().await,
                12..16 => self.change_disk(false).await,
                // These show themselves where stores come back empty all the time.
                16..32 if is_broken(Rule::Forget) || is_broken(Rule::Adopted) => {
                    self.change_disk(false).await
                }
                16..18 if !calm || operator => self.change_disk(true).await,
                18..20 if !calm => self.scrub(),
                20..24 if !self.servers.is_empty() => {
                    let at = self.rng.random_range(0..self.servers.len());
                    self.note_durable();
                    drop(self.servers.remove(at)); // the process is killed
                }
                24..32 if !self.servers.is_empty() => {
                    let at = self.rng.random_range(0..self.servers.len());
                    let controls = self.servers[at].controls.clone();
                    self.set_reach(&controls);
                }
                32..65 => self.append().await,
                65..74 if !calm || is_broken(Rule::LastStays) => self.extra().await,
                74..77 if !calm || is_broken(Rule::LastStays) => self.prune().await,
                _ => tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..60))).await,
            }
            self.note_durable();
        }
        if calm {
            self.open(self.lost_beyond).await;
        } else {
            self.end().await;
        }
    }
}

/// Does what the log asks for: a disk that was put back and has removed what the log still keeps is to be emptied. Whether there was one.
fn empty_what_must_be(cluster: &Cluster, status: &LogStatus) -> bool {
    let asks = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("still keeps"));
    let mut any = false;
    for (bay, _) in cluster.bays.iter().zip(&status.stores).filter(|(_, store)| asks(&store.error)) {
        drop(bay.pull());
        any = true;
    }
    any
}

/// Seeds of a usual run.
const SEEDS: u64 = 300;

fn log_settings() -> LogSettings {
    LogSettings { max_blocks: 3, in_flight: 4, commit_timeout: Duration::from_secs(5), ..settings() }
}

/// One seed, in virtual time. The error is what was found.
fn explore(seed: u64, broken: Option<Rule>, told: bool) -> Result<Tally, String> {
    break_rule(broken);
    // What a run finds, it finds by a panic; a thousand printed backtraces would hide the one that counts.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ended = runtime.block_on(async {
        let mut world = World::new(seed, told);
        AssertUnwindSafe(world.run()).catch_unwind().await.map(|()| world.tally)
    });
    break_rule(None);
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_ruled_out_comes_back() {
    let one = from_environment("TLOG_EXPLORE_SEED");
    let many = from_environment("TLOG_EXPLORE_SEEDS").unwrap_or(SEEDS);
    let seeds: RangeInclusive<u64> = one.map_or(1..=many, |seed| seed..=seed);
    let mut sum = Tally::default();
    for seed in seeds {
        let tally = explore(seed, None, one.is_some()).unwrap_or_else(|found| panic!("seed {seed}: {found}"));
        sum.openings += tally.openings;
        sum.refused += tally.refused;
        sum.acknowledged += tally.acknowledged;
        sum.wiped += tally.wiped;
        sum.lost += tally.lost;
        sum.replaced += tally.replaced;
        sum.put_back += tally.put_back;
        sum.scrubs += tally.scrubs;
        sum.extras += tally.extras;
        sum.pruned += tally.pruned;
        sum.complete += tally.complete;
    }
    println!("{sum}");
    let explored = sum.openings > 400 && sum.acknowledged > 1000 && sum.put_back > 50 && sum.complete > 100;
    let explored = explored && sum.replaced > 10 && sum.extras > 100 && sum.pruned > 100;
    assert!(explored || one.is_some() || many < SEEDS, "hardly explored: {sum}");
}
