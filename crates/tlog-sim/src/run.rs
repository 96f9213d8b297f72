//! One seed, from the beginning to the end.

use std::cell::RefCell;
use std::panic;
use std::sync::{Arc, Once};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tlog_client::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::front_end::{self, Orders};
use crate::model::marks;
use crate::net::{Fault, Host};
use crate::reading;
use crate::rule::{Rule, break_rule};
use crate::scenario::Scenario;
use crate::slave::Slave;
use crate::stores::Process;
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
}

/// Runs one seed, in virtual time. The same arguments make the same run.
pub fn run(seed: u64, options: Options) -> Outcome {
    note_panics();
    let Options { rule, obeyed, told } = options;
    let broken = rule.filter(|_| !obeyed);
    let _broken = break_rule(broken);
    let scenario = Scenario::of(seed, rule, broken);
    PANIC.set(Some(None));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = match runtime {
        Ok(runtime) => {
            let ran =
                panic::catch_unwind(panic::AssertUnwindSafe(|| runtime.block_on(simulate(scenario, told))));
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

async fn simulate(scenario: Scenario, told: bool) -> Outcome {
    // Some day in 2026.
    let _entered = tlog_ambient::simulation::enter(scenario.seed, Duration::from_secs(1_770_000_000));
    let world = World::new(scenario, told);
    world.tell(|| world.scenario.describe());
    let slave = Arc::new(Slave::new(world.scenario.slave_stores));
    let mut rng = world.rng();
    for machine in &world.machines {
        machine.start(&world);
    }
    slave.start(&world);
    let orders = watch::Sender::new(Orders::default());
    let front_ends = if world.scenario.rivals { 2 } else { 1 };
    let writing: Vec<_> = (0..front_ends)
        .map(|_| tokio::spawn(front_end::run(Arc::clone(&world), orders.subscribe())))
        .collect();
    for _ in 0..world.scenario.faults {
        sleep(world.scenario.pause.mul_f64(rng.random())).await;
        if world.found().is_some() {
            break;
        }
        world.tally(|tally| tally.faults += 1);
        strike(&world, &slave, &orders, &mut rng).await;
    }
    if world.found().is_none() {
        finish(&world, &slave, &orders, writing, &mut rng).await;
    }
    Outcome { found: world.found(), tally: world.tallied(), story: world.story.take() }
}

/// Something goes wrong, or somebody looks.
async fn strike(world: &Arc<World>, slave: &Arc<Slave>, orders: &watch::Sender<Orders>, rng: &mut SmallRng) {
    let machine = world.machines.get(rng.random_range(0..world.machines.len()));
    let bay = world.bays.get(rng.random_range(0..world.bays.len()));
    let (Some(machine), Some(bay)) = (machine, bay) else { return };
    let host = Host::Server(rng.random_range(0..world.machines.len()));
    match rng.random_range(0..100) {
        0..12 => {
            match rng.random_bool(0.8) {
                true => machine.kill(world),
                false => machine.stop(world),
            }
            if rng.random_bool(0.3) {
                kill_client(orders);
            }
            start_soon(world, rng);
        }
        12..20 => {
            kill_client(orders);
            if rng.random_bool(0.3) {
                machine.kill(world);
                start_soon(world, rng);
            }
        }
        20..30 => {
            let fault = match rng.random_range(0..4) {
                0 => Fault::Reset,
                1 => Fault::Hold(Duration::from_millis(rng.random_range(100..8000))),
                _ => {
                    let (up, down) = [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
                    Fault::Silence { up, down }
                }
            };
            world.tell(|| format!("connections of {host:?}: {fault:?}"));
            world.net.strike(host, fault);
        }
        30..35 => {
            let server = rng.random_range(0..world.machines.len());
            world.tell(|| format!("server {server} cannot be connected to for a while"));
            world.net.set_reachable(server, false);
            let (world, after) = (Arc::clone(world), Duration::from_millis(rng.random_range(100..6000)));
            tokio::spawn(async move {
                sleep(after).await;
                world.net.set_reachable(server, true);
            });
        }
        35..47 => {
            let places = some_places(world, rng);
            world.tell(|| format!("{machine:?} cannot reach the stores {places:?}"));
            machine.cut_off(places);
        }
        47..55 => {
            let after = Duration::from_millis(rng.random_range(50..6000));
            world.tell(|| format!("{bay:?} is down for {after:?}"));
            bay.set_down(true);
            let bay = Arc::clone(bay);
            tokio::spawn(async move {
                sleep(after).await;
                bay.restart();
                bay.set_down(false);
            });
        }
        55..60 => {
            let slow =
                Duration::from_millis(*[0, 0, 30, 300, 1200].get(rng.random_range(0..5)).unwrap_or(&0));
            world.tell(|| format!("{bay:?} takes {slow:?} longer"));
            bay.set_slow(slow);
        }
        60..72 => lose(world, bay, rng).await,
        72..76 => {
            let by = rng.random_range(-7_200_000_000_000..7_200_000_000_000);
            world.tell(|| format!("the clock steps by {} s", by / 1_000_000_000));
            tlog_ambient::simulation::step_clock(by);
        }
        76..80 => {
            world.tell(|| "a scrub".to_owned());
            if let Some(set) = world.stores(&Process::new()) {
                tokio::spawn(async move { tlog_flusher::scrub(&set, u64::MAX, |_| {}).await.map(drop) });
            }
        }
        80..88 => {
            slave.kill(world);
            slave.look(world).await;
            slave.start(world);
        }
        88..90 => slave.look(world).await,
        _ => drop(tokio::spawn(reading::look(Arc::clone(world), world.rng()))),
    }
}

fn kill_client(orders: &watch::Sender<Orders>) {
    orders.send_modify(|orders| orders.kills += 1);
}

/// Every server that does not run is started, in a while.
fn start_soon(world: &Arc<World>, rng: &mut SmallRng) {
    let (world, after) = (Arc::clone(world), Duration::from_millis(rng.random_range(0..4000)));
    tokio::spawn(async move {
        sleep(after).await;
        for machine in world.machines.iter().filter(|machine| !machine.is_running()) {
            machine.start(&world);
        }
    });
}

fn some_places(world: &World, rng: &mut SmallRng) -> Vec<usize> {
    let total = world.bays.len();
    let most = total.saturating_sub(1);
    let count = *[0, 0, 1, 1, most, 2.min(most)].get(rng.random_range(0..6)).unwrap_or(&0);
    let mut places: Vec<usize> = (0..total).collect();
    while places.len() > count {
        places.swap_remove(rng.random_range(0..places.len()));
    }
    places
}

/// A store loses something, as far as an acknowledgement promises that it may.
async fn lose(world: &Arc<World>, bay: &Arc<crate::stores::Bay>, rng: &mut SmallRng) {
    if world.scenario.loses_tails && rng.random_bool(0.5) {
        world.tell(|| format!("{bay:?} keeps what it has"));
        bay.keep();
        return;
    }
    if world.spare(bay.place).await == 0 {
        return;
    }
    if world.scenario.loses_tails && rng.random_bool(0.6) {
        if bay.lose_tail() {
            world.tell(|| format!("{bay:?} restarts without its newest writes"));
        }
        return;
    }
    match bay.has_old_disk() && world.scenario.about.is_none() && rng.random_bool(0.3) {
        true => {
            bay.put_back();
            world.tell(|| format!("{bay:?}: an old disk"));
        }
        false => {
            bay.wipe();
            world.tell(|| format!("{bay:?}: an empty disk"));
        }
    }
}

/// Faults stop. Then everything that was handed over becomes durable, and the log is what it must be.
async fn finish(
    world: &Arc<World>,
    slave: &Arc<Slave>,
    orders: &watch::Sender<Orders>,
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
    orders.send_modify(|orders| orders.finish = true);
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
