//! One seed, from the beginning to the end.

use std::cell::RefCell;
use std::panic;
use std::sync::{Arc, Once};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tlog_ambient::Point;
use tlog_client::Client;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::failpoint::{Failpoint, is_of_slave};
use crate::faults;
use crate::front_end::{self, Command};
use crate::model::marks;
use crate::reading;
use crate::rule::{Rule, break_rule};
use crate::scenario::Scenario;
use crate::slave::Slave;
use crate::story;
use crate::world::{Tally, World};

/// After so long without faults everything must be durable, and the slave as its log. Generous: what counts is that it happens.
const LIVENESS: Duration = Duration::from_secs(900);

/// What a run found.
#[derive(Debug)]
pub struct Outcome {
    /// What is wrong, if anything.
    pub found: Option<String>,
    /// What it did.
    pub tally: Tally,
    /// What happened, where it was to be told.
    pub story: Vec<String>,
}

thread_local! {
    /// The first panic of a run on this thread; none where no run is under way.
    static PANIC: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// A panic anywhere in a run is something found, also in a task that nobody waits for.
fn note_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = PANIC.with_borrow_mut(|noted| {
                noted.as_mut().map(|first| first.get_or_insert_with(|| info.to_string())).is_some()
            });
            if !noted {
                usual(info);
            }
        }));
    });
}

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// A rule that does not hold. The seeds are then about what shows it: simpler, and otherwise calm.
    pub rule: Option<Rule>,
    /// The rule holds all the same: the same seeds must then find nothing.
    pub obeyed: bool,
    /// The story is kept.
    pub told: bool,
    /// With what the product logs from this level on.
    pub log: Option<tracing::Level>,
    /// Processes die there.
    pub failpoint: Option<Point>,
}

/// Runs one seed, in virtual time. The same arguments make the same run.
pub fn run(seed: u64, options: Options) -> Outcome {
    note_panics();
    let Options { rule, obeyed, failpoint, .. } = options;
    let broken = rule.filter(|_| !obeyed);
    let _broken = break_rule(broken);
    let mut scenario = Scenario::of(seed, rule, broken);
    if failpoint.is_some_and(is_of_slave) && scenario.slave_stores == 0 {
        scenario.slave_stores = 2;
    }
    PANIC.set(Some(None));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = match runtime {
        Ok(runtime) => {
            let ran = panic::catch_unwind(panic::AssertUnwindSafe(|| {
                runtime.block_on(simulate(scenario, options))
            }));
            ran.unwrap_or_else(|_| Outcome { found: None, tally: Tally::default(), story: Vec::new() })
        }
        Err(error) => {
            let found = Some(format!("no runtime: {error}"));
            Outcome { found, tally: Tally::default(), story: Vec::new() }
        }
    };
    let panicked = PANIC.take().flatten().map(|panic| format!("a panic: {panic}"));
    Outcome { found: panicked.or(outcome.found), ..outcome }
}

async fn simulate(scenario: Scenario, options: Options) -> Outcome {
    let Options { told, log, failpoint, .. } = options;
    // Some day in 2026.
    let _entered = tlog_ambient::simulation::enter(scenario.seed, Duration::from_secs(1_770_000_000));
    let world = World::new(scenario, told);
    let _logged = log.filter(|_| told).map(|from| story::log(&world.story, from));
    world.tell(|| world.scenario.describe());
    let slave = Arc::new(Slave::new(world.scenario.slave_stores));
    let mut rng = world.rng();
    let failpoint = failpoint.map(|point| Failpoint::set(point, &world, &slave));
    for machine in &world.machines {
        machine.start(&world);
    }
    slave.start(&world);
    let orders = Command::new(if world.scenario.rivals { 2 } else { 1 });
    let writing: Vec<_> =
        orders.listen().map(|orders| tokio::spawn(front_end::run(Arc::clone(&world), orders))).collect();
    for _ in 0..world.scenario.faults {
        sleep(world.scenario.pause.mul_f64(rng.random())).await;
        if world.found().is_some() {
            break;
        }
        world.tally(|tally| tally.faults += 1);
        faults::strike(&world, &slave, &orders, &mut rng).await;
    }
    drop(failpoint);
    if world.found().is_none() {
        finish(&world, &slave, &orders, writing, &mut rng).await;
    }
    Outcome { found: world.found(), tally: world.tallied(), story: world.story.take() }
}

/// Faults stop. Then everything that was handed over becomes durable, and the log is what it must be.
async fn finish(
    world: &Arc<World>,
    slave: &Arc<Slave>,
    orders: &Command,
    writing: Vec<JoinHandle<Option<Client>>>,
    rng: &mut SmallRng,
) {
    world.tell(|| "faults stop".to_owned());
    world.tell_stores().await;
    world.weather.clear();
    world.net.heal();
    for bay in &world.bays {
        bay.set_down(false);
        bay.set_slow(Duration::ZERO);
    }
    for machine in &world.machines {
        machine.cut_off(Vec::new());
        machine.start(world);
    }
    orders.give(|orders| orders.finish = true);
    let all = futures::future::join_all(writing);
    let finished = timeout(LIVENESS, all).await;
    if finished.is_err() {
        world.tell_stores().await;
        if world.is_torn() {
            return;
        }
        return world.find(format!("not everything is durable {LIVENESS:?} after faults have stopped"));
    }
    let now = world.model().now();
    let read = reading::read_log_to_its_end(world, LIVENESS).await;
    let (reader, log) = match read {
        Ok(read) => read,
        Err(why) if why == "there is no log" && world.model().acknowledged == 0 => return,
        Err(why) => return world.find(format!("the log cannot be read at the end: {why}")),
    };
    world.tell(|| format!("at the end:{} ({:?})", marks(&log), reader.extent()));
    world.tell_stores().await;
    world.tally(|tally| tally.reads += 1);
    let checked = world.model().check(&log, Some(now));
    if let Err(what) = checked {
        return world.find(what);
    }
    if !log.is_empty() {
        for _ in 0..2 {
            if let Err(why) = reading::restore(world, &reader, &log, rng).await {
                world.find(format!("no restore at the end: {why}"));
            }
        }
    }
    slave.finish(world, &log, LIVENESS).await;
}
