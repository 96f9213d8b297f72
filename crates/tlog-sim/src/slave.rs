//! A slave that is kept up to date with the log, by a syncer that is killed and started again.
//!
//! At any time, in the middle of anything, the blocks of a slave must be the disk after the last write that any of its stores names, and its
//! record must not be ahead of that. What a look finds is compared at the end, when the log is known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tlog_player::slave::{SlaveCluster, SlaveSyncOptions, SlaveSyncState, SlaveSyncer, SlaveWaitError};
use tlog_proto::{Generation, LogPosition};
use tlog_store::slave::{MemorySlave, SlaveGate, SlavePoint, SlaveStore};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::model::{Disk, Entry, disk_after};
use crate::stores::{Process, SlaveLink};
use crate::world::World;

/// What a slave was at one moment.
struct Look {
    /// After which write its blocks should be.
    latest: SlavePoint,
    /// What its record says.
    recorded: Option<SlavePoint>,
    disk: Disk,
}

/// A slave and its syncer.
pub(crate) struct Slave {
    stores: Vec<Arc<MemorySlave>>,
    running: Mutex<Option<(Arc<SlaveSyncer>, Arc<Process>)>>,
    looks: Mutex<Vec<Look>>,
}

impl Slave {
    pub(crate) fn new(stores: usize) -> Self {
        let gate = Arc::new(SlaveGate::default());
        let store = |number| Arc::new(MemorySlave::new(format!("slave-{number}"), Arc::clone(&gate)));
        Self { stores: (0..stores).map(store).collect(), running: Mutex::default(), looks: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, Option<(Arc<SlaveSyncer>, Arc<Process>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn start(&self, world: &World) {
        let mut running = self.running();
        if running.is_some() || self.stores.is_empty() {
            return;
        }
        let process = Process::new();
        let link = |store: &Arc<MemorySlave>| -> Arc<dyn SlaveStore> {
            let (process, weather) = (Arc::clone(&process), Arc::clone(&world.weather));
            Arc::new(SlaveLink::new(Arc::clone(store), process, weather, world.rng()))
        };
        let data: Vec<_> = self.stores.iter().map(link).collect();
        let metadata = data.first().cloned();
        let cluster = metadata.and_then(|metadata| SlaveCluster::new(world.vdisk.clone(), data, metadata));
        let (Some(cluster), Some(log)) = (cluster, world.stores(&process)) else { return };
        let options = SlaveSyncOptions {
            poll: Duration::from_millis(200),
            check: Duration::from_secs(2),
            record_every: 3,
            ..SlaveSyncOptions::default()
        };
        match SlaveSyncer::start(log, world.keys.clone(), cluster, watch::channel(()).1, options) {
            Ok(syncer) => *running = Some((Arc::new(syncer), process)),
            Err(error) => world.find(format!("a syncer does not start: {error}")),
        }
        world.tell(|| "a syncer of the slave starts".to_owned());
    }

    pub(crate) fn kill(&self, world: &World) {
        if let Some((syncer, process)) = self.running().take() {
            process.die();
            drop(syncer);
            world.tell(|| "the syncer of the slave is killed".to_owned());
        }
    }

    /// Notes what the slave is right now.
    pub(crate) async fn look(&self, world: &World) {
        let Some(metadata) = self.stores.first() else { return };
        let mut latest = SlavePoint::START;
        let mut disk = Disk::new();
        for store in &self.stores {
            let part = store.part(&world.vdisk).await.ok().and_then(|state| state.part);
            let applied = part.and_then(|part| part.applied).unwrap_or(SlavePoint::START);
            if applied.place() > latest.place() {
                latest = applied;
            }
            disk.extend(store.blocks(&world.vdisk));
        }
        let record = metadata.record(&world.vdisk).await.ok().and_then(|state| state.record.position);
        world.tally(|tally| tally.slave_looks += 1);
        let recorded = record.map(|position| position.point);
        world.tell(|| {
            format!("the slave is after {}:{}, and says {recorded:?}", latest.aggregation, latest.blocks)
        });
        let look = Look { latest, recorded, disk };
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
    }

    /// Waits until the slave is as its log, once faults have stopped.
    pub(crate) async fn finish(&self, world: &World, log: &[Entry], limit: Duration) {
        if self.stores.is_empty() {
            return;
        }
        let Some(end) = position_of(log) else { return };
        let until = Instant::now() + limit;
        loop {
            self.start(world);
            let running = self.running().as_ref().map(|(syncer, _)| Arc::clone(syncer));
            let Some(syncer) = running else { return };
            match timeout_at(until, syncer.wait_until(end)).await {
                Ok(Ok(())) => break self.look(world).await,
                // A request of one that was killed came late, and looked like another syncer: whoever keeps the slave starts one again.
                Ok(Err(SlaveWaitError::Fenced | SlaveWaitError::Ended)) => {
                    self.kill(world);
                    sleep(Duration::from_secs(1)).await;
                }
                Ok(Err(error)) => {
                    break world.find(format!("the slave cannot be brought up to date: {error}"));
                }
                Err(_) => {
                    let state: SlaveSyncState = syncer.status().borrow().state.clone();
                    break world.find(format!("the slave is not up to date after {limit:?}: {state:?}"));
                }
            }
        }
        self.check(world, log);
    }

    /// Compares what was noted with the log.
    fn check(&self, world: &World, log: &[Entry]) {
        for look in self.looks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let Look { latest, recorded, disk } = look;
            let Some(count) = writes_up_to(log, &latest) else {
                world.find(format!("the slave is after {latest}, which the log does not have"));
                continue;
            };
            if disk != disk_after(log, count) {
                world.find(format!(
                    "the slave is not the disk after {}:{} ({count} writes)",
                    latest.aggregation, latest.blocks
                ));
            }
            if let Some(recorded) = recorded.filter(|recorded| recorded.place() > latest.place()) {
                world.find(format!(
                    "the slave's record is ahead of its blocks: {}:{} and {}:{}",
                    recorded.aggregation, recorded.blocks, latest.aggregation, latest.blocks
                ));
            }
        }
    }
}

fn position_of(log: &[Entry]) -> Option<LogPosition> {
    let last = log.last()?;
    let generation: Generation = last.generation;
    Some(LogPosition { generation, sequence: last.block.sequence })
}

/// How many writes of the log are up to a point; none where it is not in the log.
fn writes_up_to(log: &[Entry], point: &SlavePoint) -> Option<usize> {
    if point.aggregation.0 == 0 {
        return Some(0);
    }
    let before = log.iter().take_while(|entry| entry.number < point.aggregation).count();
    let of = log.iter().filter(|entry| entry.number == point.aggregation && entry.id == point.id).count();
    let blocks = usize::try_from(point.blocks).ok()?;
    (blocks <= of && of > 0).then_some(before + blocks)
}
