//! What all actors of a run share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_codec::{Keyring, MasterKey, VdiskKeys};
use tlog_proto::VdiskId;
use tlog_quorum::{Quorums, Standing, StoreSet, Survey};
use tlog_store::ShardStore;
use tokio::time::Instant;

use crate::machine::Machine;
use crate::model::Model;
use crate::net::Net;
use crate::rule::Rule;
use crate::scenario::Scenario;
use crate::stores::{Bay, Link, Process, Weather};
use crate::story::Story;

/// Time limit of a request to a store.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything there is.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) story: Arc<Story>,
    pub(crate) vdisk: VdiskId,
    pub(crate) keys: VdiskKeys,
    pub(crate) net: Arc<Net>,
    pub(crate) weather: Arc<Weather>,
    pub(crate) bays: Vec<Arc<Bay>>,
    pub(crate) machines: Vec<Machine>,
    model: Mutex<Model>,
    seeds: Mutex<SmallRng>,
    hosts: AtomicU64,
    found: Mutex<Option<String>>,
    /// An opening said last that stores are damaged so that the end cannot be told.
    uncertain: AtomicBool,
    /// Until then a handshake of a client that is gone may still be answered.
    ghost_until: Mutex<Option<Instant>>,
    tally: Mutex<Tally>,
}

/// What a run did, to see that it did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Connections of clients that were accepted, and front-ends that began.
    pub lives: u64,
    /// Logs that servers opened.
    pub openings: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Reads of the whole log that came to an end.
    pub reads: u64,
    /// Restores that were compared.
    pub restores: u64,
    /// Looks at the slave.
    pub slave_looks: u64,
    /// Times that processes died at the failpoint.
    pub killed_at_point: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: Tally) {
        self.acknowledged += other.acknowledged;
        self.lives += other.lives;
        self.openings += other.openings;
        self.faults += other.faults;
        self.reads += other.reads;
        self.restores += other.restores;
        self.slave_looks += other.slave_looks;
        self.killed_at_point += other.killed_at_point;
    }
}

impl World {
    pub(crate) fn new(scenario: Scenario, told: bool) -> Arc<Self> {
        let mut seeds = SmallRng::seed_from_u64(scenario.seed);
        let vdisk = scenario.vdisk.clone();
        let keyring = Arc::new(Keyring::new(MasterKey::from_bytes([7; 32])));
        Arc::new(Self {
            story: Arc::new(Story::new(told)),
            keys: VdiskKeys::new(vdisk.clone(), keyring),
            vdisk,
            net: Net::new(SmallRng::seed_from_u64(seeds.random()), scenario.latency),
            weather: Weather::new(scenario.rates),
            bays: (0..scenario.quorums.total()).map(Bay::new).collect(),
            machines: (0..scenario.servers).map(Machine::new).collect(),
            model: Mutex::default(),
            seeds: Mutex::new(seeds),
            hosts: AtomicU64::new(0),
            found: Mutex::default(),
            uncertain: AtomicBool::new(false),
            ghost_until: Mutex::default(),
            tally: Mutex::default(),
            scenario,
        })
    }

    /// A source of randomness of its own, so that what one actor draws does not depend on another one.
    pub(crate) fn rng(&self) -> SmallRng {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        SmallRng::seed_from_u64(seeds.random())
    }

    /// A number for another host.
    pub(crate) fn host(&self) -> u64 {
        self.hosts.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tally(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn tallied(&self) -> Tally {
        let tally = *self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Tally { acknowledged: self.model().acknowledged as u64, ..tally }
    }

    /// A client is gone whose handshake a server may still answer, as it does not know of it for so long: the vdisk is that client's then, and
    /// another one that comes back, having written nothing, is told so.
    pub(crate) fn expect_ghost(&self, unknown_for: Duration) {
        let mut ghost_until = self.ghost_until.lock().unwrap_or_else(PoisonError::into_inner);
        *ghost_until = (*ghost_until).max(Some(Instant::now() + unknown_for));
    }

    pub(crate) fn expects_ghost(&self) -> bool {
        let ghost_until = *self.ghost_until.lock().unwrap_or_else(PoisonError::into_inner);
        ghost_until.is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        self.story.tell(what);
    }

    /// Something is wrong. The first such thing counts.
    pub(crate) fn find(&self, what: String) {
        self.tell(|| format!("FOUND: {what}"));
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    pub(crate) fn found(&self) -> Option<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An opening came to an end; `uncertain`: with the answer that the end of the log cannot be told.
    pub(crate) fn note_opening(&self, uncertain: bool) {
        self.uncertain.store(uncertain, Ordering::Relaxed);
    }

    /// Whether the log does not open because of what was torn: where several stores hold half of an aggregation, nobody can tell whether it was
    /// acknowledged, and it takes an operator to go on.
    pub(crate) fn is_torn(&self) -> bool {
        self.scenario.rates.torn > 0.0 && self.uncertain.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self, rule: Rule) -> bool {
        self.scenario.broken == Some(rule)
    }

    /// The stores as a process sees them, over connections of its own.
    pub(crate) fn stores(&self, process: &Arc<Process>) -> Option<StoreSet> {
        let link = |bay: &Arc<Bay>| -> Arc<dyn ShardStore> {
            let (process, weather) = (Arc::clone(process), Arc::clone(&self.weather));
            let without_starts = self.is_broken(Rule::StartRecords);
            Arc::new(Link::new(Arc::clone(bay), process, weather, self.rng(), without_starts))
        };
        let stores = self.bays.iter().map(link).collect();
        StoreSet::new(self.vdisk.clone(), stores, self.quorums(), STORE_TIMEOUT)
    }

    pub(crate) fn quorums(&self) -> Quorums {
        self.scenario.quorums
    }

    /// What is on the disks, whoever can reach them.
    pub(crate) async fn survey(&self) -> Option<Survey> {
        let stores = self.bays.iter().map(|bay| bay.disk() as Arc<dyn ShardStore>).collect();
        let set = StoreSet::new(self.vdisk.clone(), stores, self.quorums(), STORE_TIMEOUT)?;
        Some(set.survey().await)
    }

    /// Tells what every disk has, one a line.
    pub(crate) async fn tell_stores(&self) {
        let Some(survey) = self.survey().await else { return };
        for view in &survey.views {
            let Ok(state) = &view.answer else { continue };
            self.tell(|| {
                let starts: Vec<_> =
                    state.starts.iter().map(|start| (start.epoch.0, start.number.0)).collect();
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

    /// How many more stores may be lost right now with everything acknowledged kept, if `place` is not counted: what is blank or has lost
    /// something and was not repaired yet is lost already.
    pub(crate) async fn spare(&self, place: usize) -> usize {
        // A log that is being begun has promised nothing, and a list of members may be on its way that counts on a store which is lost now.
        if self.model().acknowledged == 0 {
            return 0;
        }
        let Some(survey) = self.survey().await.filter(|survey| !survey.is_new()) else { return 0 };
        let epoch = survey.highest_epoch();
        let (first, head, committed) = (survey.first(), survey.head(), survey.committed());
        let starts = survey.starts();
        let is_whole = |view: &tlog_quorum::StoreView| {
            let Ok(state) = &view.answer else { return false };
            view.standing == Standing::Member
                && state.epoch == epoch
                && state.committed == committed
                && starts.iter().all(|start| state.starts.iter().any(|own| tlog_quorum::covers(own, start)))
                && state.held.missing_in(first..=head).is_empty()
        };
        let counts = |(at, view): (usize, &tlog_quorum::StoreView)| match self.scenario.loses_tails {
            true => at != place && !is_whole(view),
            false => at != place && view.standing == Standing::Blank,
        };
        let lost = survey.views.iter().enumerate().filter(|view| counts(*view)).count();
        // A list of members that enters a store may not have got far enough to count; then the store is still lost.
        let lost = lost + usize::from(!survey.members.change.is_multiple_of(2));
        self.scenario.may_be_lost.saturating_sub(lost)
    }
}
