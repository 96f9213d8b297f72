//! Random exploration of commit and recovery: the real writer, in virtual time, on stores that fail.
//!
//! Small logs, several writers at once (an older one may still be running), answers that get lost or are late, openings that
//! stop half-way, stores that come back empty (never more at once than W - k) and are filled again. After every opening:
//! nothing acknowledged is lost or replaced, what an earlier opening served is still there, and what it had ruled out never
//! comes back. Each rule of `docs/commit-and-recovery.md` is then broken on purpose, and the exploration must notice.
//!
//! `TLOG_EXPLORE_SEED=n cargo test -p tlog-flusher exploration` runs one seed; `TLOG_EXPLORE_SEEDS=n` runs that many.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_quorum::{Quorums, Standing, StoreSet};
use tlog_store::{
    FaultControl, FaultyStore, FillOutcome, HeadSlot, LogState, Members, RandomFaults, Shard, ShardSlot,
    ShardStore, StartRecord, StoreError, StoreIdentity,
};

use crate::testing::{Cluster, content_up_to, keys, marked_block, settings, vdisk};
use crate::{Log, LogSettings, OpenError};

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Start records rule out what a later opening did not adopt.
    StartRecords,
    /// An opening needs a majority, so that any two share a store.
    Majority,
    /// A store that came back empty is told by its identity.
    Identity,
    /// What the old identity had answered for aggregations in flight is forgotten.
    Forget,
    /// W stores, not fewer, hold an aggregation before it is acknowledged.
    WriteQuorum,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

pub(crate) fn is_broken(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

pub(crate) fn broken_opening_quorum(quorums: Quorums) -> Option<usize> {
    is_broken(Rule::Majority).then(|| quorums.total() - quorums.write() + quorums.data())
}

pub(crate) fn broken_write_quorum(quorums: Quorums) -> usize {
    if is_broken(Rule::WriteQuorum) { quorums.data() } else { quorums.write() }
}

/// A store as a writer sees it that does not know one of the rules.
#[derive(Debug)]
struct Unruly {
    inner: Arc<dyn ShardStore>,
    /// The identity that it had first, where identities are not told apart.
    first: Arc<Mutex<Option<StoreIdentity>>>,
}

impl Unruly {
    fn state(&self, mut state: LogState) -> LogState {
        if is_broken(Rule::StartRecords) {
            state.starts.clear();
        }
        if is_broken(Rule::Identity) {
            let mut first = self.first.lock().unwrap();
            *first = first.or(state.identity);
            state.identity = *first;
        }
        state
    }

    fn identity(&self, identity: StoreIdentity) -> StoreIdentity {
        if is_broken(Rule::Identity) { *self.first.lock().unwrap().get_or_insert(identity) } else { identity }
    }

    /// Where identities are not told apart, an empty store is written to as if nothing had happened.
    async fn revive(&self, vdisk: &VdiskId, epoch: Epoch) {
        if is_broken(Rule::Identity)
            && self.inner.status(vdisk).await.is_ok_and(|state| state.identity.is_none())
        {
            let _ = self.inner.promise(vdisk, epoch).await;
        }
    }
}

#[async_trait]
impl ShardStore for Unruly {
    fn address(&self) -> &str {
        self.inner.address()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.inner.promise(vdisk, epoch).await.map(|state| self.state(state))
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.revive(vdisk, record.epoch).await;
        if is_broken(Rule::StartRecords) {
            // Members are kept, nothing is dropped and nothing recorded: a start far above everything.
            let nowhere = StartRecord { epoch: record.epoch, number: AggregationNumber(u64::MAX) };
            return self.inner.start(vdisk, nowhere, members).await;
        }
        self.inner.start(vdisk, record, members).await.map(|identity| self.identity(identity))
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.revive(vdisk, shard.epoch).await;
        self.inner.append(vdisk, number, shard, committed).await.map(|identity| self.identity(identity))
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.revive(vdisk, epoch).await;
        self.inner.publish(vdisk, epoch, committed).await.map(|identity| self.identity(identity))
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.inner.fill(vdisk, number, shard).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.inner.prune(vdisk, epoch, first).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.inner.heads(vdisk, range, max_bytes).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.inner.shard(vdisk, number).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.inner.status(vdisk).await.map(|state| self.state(state))
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.inner.vdisks().await
    }
}

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

/// Sum of what a run did, to see that it explored something.
#[derive(Default)]
struct Tally {
    openings: usize,
    refused: usize,
    acknowledged: usize,
    wiped: usize,
}

struct World {
    rng: SmallRng,
    cluster: Cluster,
    first_identities: Vec<Arc<Mutex<Option<StoreIdentity>>>>,
    servers: Vec<Server>,
    generation: u64,
    next_mark: u64,
    /// What clients were told is durable.
    acknowledged: BTreeSet<u64>,
    /// What an opening served, and the first mark that was made after it.
    views: Vec<(Vec<u64>, u64)>,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let data = [1, 1, 2, 3, 4][rng.random_range(0..5)];
        let parity = [1, 2, 2, 3][rng.random_range(0..4)];
        let write = rng.random_range(data + 1..=data + parity);
        let cluster = Cluster::new(data, parity, Some(write));
        let first_identities = (0..data + parity).map(|_| Arc::default()).collect();
        Self {
            rng,
            cluster,
            first_identities,
            servers: Vec::new(),
            generation: 0,
            next_mark: 1,
            acknowledged: BTreeSet::new(),
            views: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Another server's own connections: late, failing, some stores out of its reach.
    fn connect(&mut self) -> (StoreSet, Vec<FaultControl>) {
        let mut controls = Vec::new();
        let mut stores: Vec<Arc<dyn ShardStore>> = Vec::new();
        for (memory, first) in self.cluster.memories.iter().zip(&self.first_identities) {
            let unruly = Unruly { inner: memory.clone(), first: first.clone() };
            let faulty = FaultyStore::new(Arc::new(unruly), self.rng.random());
            faulty.control().set_random(RandomFaults {
                delay: 0.5,
                longest_delay: Duration::from_millis(20),
                unavailable: 0.02,
                torn_append: 0.0,
                lost_answer: 0.05,
            });
            controls.push(faulty.control());
            stores.push(Arc::new(faulty));
        }
        let set = StoreSet::new(vdisk(), stores, self.cluster.quorums, Duration::from_secs(1)).unwrap();
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

    async fn open(&mut self) {
        let (set, controls) = self.connect();
        self.set_reach(&controls);
        let opening = Log::open(set, keys(), log_settings());
        // Some openings stop half-way.
        let patience = if self.rng.random_bool(0.25) { self.rng.random_range(1..80) } else { 60_000 };
        let opened = tokio::time::timeout(Duration::from_millis(patience), opening).await;
        self.note_durable();
        let log = match opened {
            Ok(Ok(log)) => log,
            Ok(Err(OpenError::DataLost { numbers, .. })) => {
                let (set, _) = self.cluster.connect(0);
                panic!(
                    "committed aggregations {numbers} lost: {:?} {:#?}",
                    self.cluster.quorums,
                    set.survey().await
                )
            }
            Ok(Err(_)) | Err(_) => {
                self.tally.refused += 1;
                return;
            }
        };
        self.tally.openings += 1;
        let Some(status) = log.status().await else { return };
        let content = content_up_to(&self.cluster, status.committed).await;
        if std::env::var_os("TLOG_EXPLORE_SEED").is_some() {
            let (set, _) = self.cluster.connect(0);
            eprintln!("{:?} opened: {status:?} content {content:?}", self.cluster.quorums);
            for view in set.survey().await.views {
                let Ok(s) = view.answer else { continue };
                eprintln!(
                    "  {} {:?} e{} starts {:?} members {:?} committed {} held {:?}",
                    view.address,
                    view.standing,
                    s.epoch,
                    s.starts.iter().map(|r| (r.epoch.0, r.number.0)).collect::<Vec<_>>(),
                    s.members.version(),
                    s.committed,
                    s.held
                );
            }
        }
        self.check(&content);
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

    fn check(&self, content: &[u64]) {
        let held: BTreeSet<u64> = content.iter().copied().collect();
        assert_eq!(held.len(), content.len(), "a block is there twice");
        let lost: Vec<_> = self.acknowledged.difference(&held).collect();
        assert!(lost.is_empty(), "acknowledged blocks lost: {lost:?} of {content:?}");
        for (seen, first_new) in &self.views {
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

    async fn wipe(&mut self) {
        let (set, _) = self.cluster.connect(0);
        let survey = set.survey().await;
        let blank = survey.views.iter().filter(|view| view.standing == Standing::Blank).count();
        if survey.is_new() || blank >= self.cluster.quorums.losses_at_acknowledgement() {
            return;
        }
        let store = self.rng.random_range(0..self.cluster.memories.len());
        // What was told to clients before this moment must survive it.
        self.note_durable();
        // Without identities nobody could tell which stores are blank: at most one is wiped then.
        if std::env::var_os("TLOG_EXPLORE_SEED").is_some() {
            eprintln!("wipe {store}");
        }
        if survey.views[store].standing == Standing::Member
            && !(is_broken(Rule::Identity) && self.tally.wiped > 0)
        {
            self.cluster.memories[store].wipe();
            self.tally.wiped += 1;
        }
    }

    async fn run(&mut self) {
        let steps = [40, 80, 200][self.rng.random_range(0..3)];
        for _ in 0..steps {
            match self.rng.random_range(0..100) {
                0..12 => self.open().await,
                12..16 => self.wipe().await,
                16..20 if !self.servers.is_empty() => {
                    let at = self.rng.random_range(0..self.servers.len());
                    self.note_durable();
                    drop(self.servers.remove(at)); // the process is killed
                }
                20..30 if !self.servers.is_empty() => {
                    let at = self.rng.random_range(0..self.servers.len());
                    let controls = self.servers[at].controls.clone();
                    self.set_reach(&controls);
                }
                30..65 => self.append().await,
                _ => tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..60))).await,
            }
            self.note_durable();
        }
        // Once faults stop, the log opens and takes blocks.
        let (set, _) = self.cluster.connect(0);
        let survey = set.survey().await;
        if survey.counted_len() >= self.cluster.quorums.opening() {
            self.open().await;
        }
    }
}

fn log_settings() -> LogSettings {
    LogSettings { max_blocks: 3, in_flight: 4, commit_timeout: Duration::from_secs(5), ..settings() }
}

/// One seed, in virtual time. The error is what was found.
fn explore(seed: u64, broken: Option<Rule>) -> Result<Tally, String> {
    BROKEN.set(broken);
    // What a run finds, it finds by a panic; a thousand printed backtraces would hide the one that counts.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ended = runtime.block_on(async {
        let mut world = World::new(seed);
        AssertUnwindSafe(world.run()).catch_unwind().await.map(|()| world.tally)
    });
    BROKEN.set(None);
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

fn seeds(default: u64) -> RangeInclusive<u64> {
    let from_env = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match from_env("TLOG_EXPLORE_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=from_env("TLOG_EXPLORE_SEEDS").unwrap_or(default),
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { openings, refused, acknowledged, wiped } = self;
        write!(
            f,
            "{openings} openings, {refused} refused, {acknowledged} blocks acknowledged, {wiped} stores wiped"
        )
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_ruled_out_comes_back() {
    let mut sum = Tally::default();
    for seed in seeds(400) {
        match explore(seed, None) {
            Ok(tally) => {
                sum.openings += tally.openings;
                sum.refused += tally.refused;
                sum.acknowledged += tally.acknowledged;
                sum.wiped += tally.wiped;
            }
            Err(found) => panic!("seed {seed}: {found}"),
        }
    }
    println!("{sum}");
    assert!(
        sum.openings > 400 && sum.acknowledged > 1000 || seeds(400).count() < 100,
        "hardly explored: {sum}"
    );
}

/// The first seed that shows what breaking a rule does.
fn must_be_caught(rule: Rule) {
    let caught = (1..=3000).find_map(|seed| explore(seed, Some(rule)).err().map(|found| (seed, found)));
    let (seed, found) = caught.unwrap_or_else(|| panic!("nobody noticed that {rule:?} is broken"));
    println!("{rule:?} broken: seed {seed}: {}", found.chars().take(120).collect::<String>());
}

#[test]
fn leaving_out_start_records_is_noticed() {
    must_be_caught(Rule::StartRecords);
}

#[test]
fn opening_without_a_majority_is_noticed() {
    must_be_caught(Rule::Majority);
}

#[test]
fn taking_an_empty_store_for_the_old_one_is_noticed() {
    must_be_caught(Rule::Identity);
}

#[test]
fn counting_answers_of_an_old_identity_is_noticed() {
    must_be_caught(Rule::Forget);
}

#[test]
fn acknowledging_before_w_stores_have_it_is_noticed() {
    must_be_caught(Rule::WriteQuorum);
}
