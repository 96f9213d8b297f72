//! What goes wrong while everything runs.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use crate::front_end::Command;
use crate::net::{Fault, Host, LONGEST_HOLD};
use crate::reading;
use crate::rule::Rule;
use crate::scenario::one_of;
use crate::slave::Slave;
use crate::stores::{Bay, Process};
use crate::world::World;

/// Something goes wrong, or somebody looks.
pub(crate) async fn strike(world: &Arc<World>, slave: &Arc<Slave>, orders: &Command, rng: &mut SmallRng) {
    match world.scenario.about {
        Some(Rule::StartRecords) if rng.random_bool(0.5) => return rack(world, orders, rng).await,
        Some(Rule::Majority) if rng.random_bool(0.5) => return split(world, orders, rng).await,
        _ => {}
    }
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
                1 => {
                    Fault::Hold(Duration::from_millis(rng.random_range(100..LONGEST_HOLD.as_millis() as u64)))
                }
                _ => {
                    let directions = [(true, true), (true, false), (false, true)];
                    let (up, down) = one_of(rng, &directions).unwrap_or((true, true));
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
            let slow = Duration::from_millis(one_of(rng, &[0, 0, 30, 300, 1200]).unwrap_or_default());
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
        90..92 => rack(world, orders, rng).await,
        92..94 => split(world, orders, rng).await,
        _ => drop(tokio::spawn(reading::look(Arc::clone(world), world.rng()))),
    }
}

fn kill_client(orders: &Command) {
    orders.give(|orders| orders.kills += 1);
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

/// Some stores and all servers are in one rack: the servers reach these stores alone, then all of them are gone, the client
/// too. Servers come back elsewhere, then the stores, and then the servers are gone once more.
async fn rack(world: &Arc<World>, orders: &Command, rng: &mut SmallRng) {
    let total = world.bays.len();
    let most = world.quorums().data().max(total - world.quorums().opening()).min(total - 1).max(1);
    let mut out: Vec<usize> = (0..total).collect();
    let mut rack = Vec::new();
    for _ in 0..rng.random_range(1..=most) {
        rack.push(out.swap_remove(rng.random_range(0..out.len())));
    }
    world.tell(|| format!("a rack with the stores {rack:?} is cut off"));
    for machine in &world.machines {
        machine.cut_off(out.clone());
    }
    pause(rng, 1500).await;
    world.tell(|| "the rack is gone, the servers with it".to_owned());
    set_down(world, &rack, true);
    kill_all(world);
    if rng.random_bool(0.8) {
        kill_client(orders);
    }
    world.machines.iter().for_each(|machine| machine.start(world));
    pause(rng, 5000).await;
    world.tell(|| "the rack is back".to_owned());
    set_down(world, &rack, false);
    if rng.random_bool(0.7) {
        kill_all(world);
        if rng.random_bool(0.5) {
            kill_client(orders);
        }
        world.machines.iter().for_each(|machine| machine.start(world));
        pause(rng, 1000).await;
    }
}

/// Half of the servers reach some of the stores, the others the rest; a server is killed now and then.
async fn split(world: &Arc<World>, orders: &Command, rng: &mut SmallRng) {
    let total = world.bays.len();
    let (one, other): (Vec<usize>, Vec<usize>) = (0..total).partition(|_| rng.random_bool(0.5));
    world.tell(|| format!("half of the servers reach the stores {one:?}, the others {other:?}"));
    for _ in 0..rng.random_range(1..=3) {
        for (at, machine) in world.machines.iter().enumerate() {
            machine.cut_off(if at % 2 == 0 { other.clone() } else { one.clone() });
        }
        pause(rng, 3000).await;
        if let Some(machine) = world.machines.get(rng.random_range(0..world.machines.len())) {
            machine.kill(world);
            machine.start(world);
        }
        if rng.random_bool(0.3) {
            kill_client(orders);
        }
    }
    if rng.random_bool(0.5) {
        world.machines.iter().for_each(|machine| machine.cut_off(Vec::new()));
    }
}

async fn pause(rng: &mut SmallRng, most_ms: u64) {
    sleep(Duration::from_millis(rng.random_range(0..most_ms))).await;
}

fn set_down(world: &World, places: &[usize], down: bool) {
    for bay in world.bays.iter().filter(|bay| places.contains(&bay.place)) {
        if !down {
            bay.restart();
        }
        bay.set_down(down);
    }
}

fn kill_all(world: &World) {
    for machine in &world.machines {
        machine.kill(world);
    }
}

fn some_places(world: &World, rng: &mut SmallRng) -> Vec<usize> {
    let total = world.bays.len();
    let most = total.saturating_sub(1);
    let count = one_of(rng, &[0, 0, 1, 1, most, 2.min(most)]).unwrap_or_default();
    let mut places: Vec<usize> = (0..total).collect();
    while places.len() > count {
        places.swap_remove(rng.random_range(0..places.len()));
    }
    places
}

/// A store loses something, as far as an acknowledgement promises that it may.
async fn lose(world: &Arc<World>, bay: &Arc<Bay>, rng: &mut SmallRng) {
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
