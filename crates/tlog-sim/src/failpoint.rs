//! Processes that die at one point of the code, again and again: the servers, or the syncer of the slave.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_ambient::{Point, Watched, watch_points};
use tokio::time::sleep;

use crate::slave::Slave;
use crate::world::World;

/// How often in one run.
const MOST: u64 = 6;

/// Those that somebody reaches in a simulation.
pub fn failpoints() -> impl Iterator<Item = Point> {
    Point::all().filter(|point| !point.is_of_prune())
}

/// Whether a process of the slave's syncer reaches it, not a server.
pub(crate) fn is_of_slave(point: Point) -> bool {
    point.what().starts_with("slave")
}

/// Who reaches the point dies, as long as this exists: not each time, which time is drawn from the seed. All servers die together, as where their
/// power fails: which of them is where in the code is not told. They are started again in a while.
#[must_use]
pub(crate) struct Failpoint(#[allow(dead_code, reason = "it is there to be dropped")] Watched);

impl Failpoint {
    pub(crate) fn set(point: Point, world: &Arc<World>, slave: &Arc<Slave>) -> Self {
        let rng = RefCell::new(SmallRng::seed_from_u64(world.scenario.seed ^ 0xfa11));
        // Some points are reached once in a while, others thousands of times.
        let next = |rng: &mut SmallRng| {
            let most = 1_u64 << rng.random_range(0..7);
            rng.random_range(0..most)
        };
        let (passes, kills) = (Cell::new(next(&mut rng.borrow_mut())), Cell::new(0));
        let (world, slave) = (Arc::downgrade(world), Arc::downgrade(slave));
        Self(watch_points(move |reached| {
            if reached != point || kills.get() == MOST {
                return;
            }
            if passes.get() > 0 {
                return passes.set(passes.get() - 1);
            }
            let mut rng = rng.borrow_mut();
            passes.set(next(&mut rng));
            kills.set(kills.get() + 1);
            kill(point, &world, &slave, Duration::from_millis(rng.random_range(0..2000)));
        }))
    }
}

fn kill(point: Point, world: &Weak<World>, slave: &Weak<Slave>, back_after: Duration) {
    let (Some(world), Some(slave)) = (world.upgrade(), slave.upgrade()) else { return };
    world.tell(|| format!("reached {}: {}", point.name(), point.what()));
    world.tally(|tally| tally.killed_at_point += 1);
    if is_of_slave(point) {
        slave.kill(&world);
    } else {
        world.machines.iter().for_each(|machine| machine.kill(&world));
    }
    tokio::spawn(async move {
        sleep(back_after).await;
        if is_of_slave(point) {
            slave.start(&world);
        } else {
            world.machines.iter().for_each(|machine| machine.start(&world));
        }
    });
}
