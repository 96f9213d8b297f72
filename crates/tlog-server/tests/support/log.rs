//! Logs in memory, with handles for everything that can go wrong. The fuzz targets have them, too.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tlog_proto::{LogPosition, VdiskId};
use tlog_server::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, VdiskLog,
};
use tokio::sync::{Semaphore, watch};

/// Flushes only when asked to; what it holds survives closing.
#[derive(Default)]
pub struct MemoryLogs {
    disks: Mutex<HashMap<VdiskId, Arc<Disk>>>,
    unknown: Mutex<HashSet<VdiskId>>,
}

/// One vdisk.
pub struct Disk {
    state: Mutex<State>,
    durability: watch::Sender<Durability>,
    /// Appends wait while the value is true.
    full: watch::Sender<bool>,
    /// Finds wait for a permit.
    finds: Semaphore,
    /// So does opening.
    pub openings: Semaphore,
    /// How often it was opened, and closed.
    pub opened: watch::Sender<usize>,
    pub closed: watch::Sender<usize>,
    pub flushes: watch::Sender<usize>,
    /// How often somebody asked whether it is ours still.
    pub confirms: watch::Sender<usize>,
    /// Another server has it, and this one finds out when it asks the next time.
    pub taken_over: AtomicBool,
    /// Whether it is ours cannot be told.
    pub uncertain: AtomicBool,
    /// It cannot be opened.
    pub away: AtomicBool,
}

#[derive(Default)]
struct State {
    blocks: Vec<OrderedBlock>,
    durable: usize,
    asked: usize,
    /// Flushes are asked for and do not happen.
    held: bool,
    open: bool,
    /// It closes by itself when it is to be closed.
    at_close: Option<CloseReason>,
}

impl MemoryLogs {
    /// The log of a vdisk, open or not.
    pub fn disk(&self, vdisk: &str) -> Arc<Disk> {
        let vdisk = VdiskId::new(vdisk).unwrap();
        let new = || {
            Arc::new(Disk {
                state: Mutex::default(),
                durability: watch::Sender::new(Durability::default()),
                full: watch::Sender::new(false),
                finds: Semaphore::new(Semaphore::MAX_PERMITS),
                openings: Semaphore::new(Semaphore::MAX_PERMITS),
                opened: watch::Sender::new(0),
                closed: watch::Sender::new(0),
                flushes: watch::Sender::new(0),
                confirms: watch::Sender::new(0),
                taken_over: AtomicBool::new(false),
                uncertain: AtomicBool::new(false),
                away: AtomicBool::new(false),
            })
        };
        Arc::clone(self.disks.lock().unwrap().entry(vdisk).or_insert_with(new))
    }

    /// All logs that somebody has asked for.
    pub fn all(&self) -> Vec<(VdiskId, Arc<Disk>)> {
        let disks = self.disks.lock().unwrap();
        disks.iter().map(|(vdisk, disk)| (vdisk.clone(), Arc::clone(disk))).collect()
    }

    /// From now on the vdisk is not known.
    pub fn forget(&self, vdisk: &str) {
        self.unknown.lock().unwrap().insert(VdiskId::new(vdisk).unwrap());
    }
}

impl Disk {
    /// (generation, sequence) of everything that is durable.
    pub fn durable(&self) -> Vec<(u64, u64)> {
        let state = self.state.lock().unwrap();
        state.blocks[..state.durable].iter().map(|b| (b.generation.0, b.block.sequence.0)).collect()
    }

    /// All that was appended, and how many of them are durable.
    pub fn blocks(&self) -> (Vec<OrderedBlock>, usize) {
        let state = self.state.lock().unwrap();
        (state.blocks.clone(), state.durable)
    }

    /// How many blocks were appended.
    pub fn appended(&self) -> usize {
        self.state.lock().unwrap().blocks.len()
    }

    /// Flushes do not happen until [`Disk::release`].
    pub fn hold(&self) {
        self.state.lock().unwrap().held = true;
    }

    pub fn release(&self) {
        self.state.lock().unwrap().held = false;
        self.settle();
    }

    /// Appends wait, or do not.
    pub fn set_full(&self, full: bool) {
        self.full.send_replace(full);
    }

    /// Finds do not answer until [`Disk::allow_finds`].
    pub fn stop_finds(&self) {
        self.finds.forget_permits(usize::MAX);
    }

    pub fn allow_finds(&self, count: usize) {
        self.finds.add_permits(count);
    }

    /// The log closes by itself. What was not durable is gone.
    pub fn fail(&self, reason: CloseReason) {
        let mut state = self.state.lock().unwrap();
        let durable = state.durable;
        state.blocks.truncate(durable);
        state.asked = durable;
        state.open = false;
        drop(state);
        self.durability.send_modify(|durability| durability.closed = Some(reason));
    }

    /// The same, when the server closes it.
    pub fn fail_at_close(&self, reason: CloseReason) {
        self.state.lock().unwrap().at_close = Some(reason);
    }

    /// The same, and in the same moment everything turns out to be durable.
    pub fn fail_with_everything_durable(&self, reason: CloseReason) {
        let mut state = self.state.lock().unwrap();
        state.durable = state.blocks.len();
        state.open = false;
        let durable = state.blocks.last().map(OrderedBlock::position);
        drop(state);
        self.durability.send_replace(Durability { durable, closed: Some(reason) });
    }

    fn settle(&self) {
        let mut state = self.state.lock().unwrap();
        if state.held || !state.open {
            return;
        }
        state.durable = state.asked;
        let durable = state.durable.checked_sub(1).map(|last| state.blocks[last].position());
        drop(state);
        self.durability.send_if_modified(|durability| {
            let changed = durability.durable != durable;
            durability.durable = durable;
            changed
        });
    }

    fn closed(&self) -> Result<(), Closed> {
        match &self.durability.borrow().closed {
            Some(reason) => Err(Closed(reason.clone())),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl LogStorage for MemoryLogs {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        if self.unknown.lock().unwrap().contains(vdisk) {
            return Err(OpenError::UnknownVdisk(vdisk.clone()));
        }
        let disk = self.disk(vdisk.as_str());
        if disk.away.load(Ordering::Relaxed) {
            return Err(OpenError::Failed("the log is away".into()));
        }
        let permit = disk.openings.acquire().await.unwrap();
        let mut state = disk.state.lock().unwrap();
        assert!(!std::mem::replace(&mut state.open, true), "{vdisk} is opened while it is open");
        let durable = state.durable.checked_sub(1).map(|last| state.blocks[last].position());
        let end = state.end();
        drop(state);
        disk.durability.send_replace(Durability { durable, closed: None });
        disk.opened.send_modify(|opened| *opened += 1);
        drop(permit);
        Ok(Arc::new(Open { disk, end }))
    }
}

impl State {
    fn end(&self) -> LogEnd {
        let Some(last) = self.blocks.last() else {
            return LogEnd::default();
        };
        let first = self.blocks.iter().find(|block| block.generation == last.generation).unwrap();
        LogEnd {
            generation: last.generation,
            first: first.block.sequence,
            last: Some(last.block.sequence),
            session: last.session,
        }
    }
}

struct Open {
    disk: Arc<Disk>,
    end: LogEnd,
}

#[async_trait]
impl VdiskLog for Open {
    fn end(&self) -> LogEnd {
        self.end
    }

    async fn append(&self, blocks: Vec<OrderedBlock>) -> Result<(), Closed> {
        assert!(!blocks.is_empty());
        for block in blocks {
            let mut full = self.disk.full.subscribe();
            let _ = full.wait_for(|full| !full).await;
            self.disk.closed()?;
            let mut state = self.disk.state.lock().unwrap();
            if let Some(last) = state.blocks.last() {
                let follows =
                    last.generation == block.generation && last.block.sequence.next() == block.block.sequence;
                assert!(follows || last.generation.next() == block.generation, "{block:?} after {last:?}");
            }
            state.blocks.push(block);
        }
        Ok(())
    }

    fn flush(&self) {
        let mut state = self.disk.state.lock().unwrap();
        state.asked = state.blocks.len();
        drop(state);
        self.disk.flushes.send_modify(|flushes| *flushes += 1);
        self.disk.settle();
    }

    fn durability(&self) -> watch::Receiver<Durability> {
        self.disk.durability.subscribe()
    }

    async fn find(&self, position: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        self.disk.finds.acquire().await.unwrap().forget();
        let state = self.disk.state.lock().unwrap();
        let found = state.blocks[..state.durable].iter().find(|block| block.position() == position);
        Ok(found.map(|found| (&found.block).into()))
    }

    async fn confirm(&self) -> Result<bool, Closed> {
        self.disk.confirms.send_modify(|confirms| *confirms += 1);
        match self.disk.taken_over.swap(false, Ordering::Relaxed) {
            true => Err(Closed(CloseReason::Fenced)),
            false => Ok(!self.disk.uncertain.load(Ordering::Relaxed)),
        }
    }

    async fn close(&self) -> Result<(), Closed> {
        let at_close = self.disk.state.lock().unwrap().at_close.take();
        if let Some(reason) = at_close {
            self.disk.fail(reason);
        }
        if self.disk.closed().is_ok() {
            self.flush();
            let mut durability = self.disk.durability.subscribe();
            let all = self.disk.state.lock().unwrap().blocks.last().map(OrderedBlock::position);
            let _ = durability.wait_for(|now| now.durable == all || now.closed.is_some()).await;
        }
        self.disk.closed.send_modify(|closed| *closed += 1);
        self.disk.closed()?;
        self.disk.state.lock().unwrap().open = false;
        self.disk.durability.send_modify(|durability| durability.closed = Some(CloseReason::Requested));
        Ok(())
    }
}
