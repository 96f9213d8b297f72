//! Logs in memory behind a server, which an input makes wait, fail and be taken over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tlog_proto::{LogPosition, VdiskId};
use tlog_server::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, VdiskLog,
};
use tokio::sync::watch;

/// All logs of a server. What was appended survives closing.
#[derive(Default)]
pub(crate) struct Logs {
    logs: Mutex<HashMap<VdiskId, Arc<Log>>>,
}

/// The log of one vdisk.
#[derive(Default)]
pub(crate) struct Log {
    state: Mutex<State>,
    durability: watch::Sender<Durability>,
    /// Appends wait while it is true.
    full: watch::Sender<bool>,
}

/// Invariant: what is durable was asked to be, unless the log was closed since.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) blocks: Vec<OrderedBlock>,
    /// How many of them are durable.
    pub(crate) durable: usize,
    /// How many of them are to be.
    asked: usize,
    /// Nothing becomes durable.
    pub(crate) held: bool,
    /// Another server has it, and this one finds out when it asks.
    pub(crate) taken_over: bool,
    /// Whose it is cannot be told.
    pub(crate) uncertain: bool,
    /// It cannot be opened.
    pub(crate) away: bool,
    open: bool,
}

impl Logs {
    /// That of a vdisk, open or not.
    pub(crate) fn log(&self, vdisk: &VdiskId) -> Arc<Log> {
        let mut logs = self.logs.lock().expect("nobody panics with it");
        Arc::clone(logs.entry(vdisk.clone()).or_default())
    }

    pub(crate) fn all(&self) -> Vec<(VdiskId, Arc<Log>)> {
        let logs = self.logs.lock().expect("nobody panics with it");
        logs.iter().map(|(vdisk, log)| (vdisk.clone(), Arc::clone(log))).collect()
    }
}

impl Log {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.send_replace(full);
    }

    /// It closes by itself, and what is not durable is gone.
    pub(crate) fn fail(&self, why: CloseReason) {
        let mut state = self.state();
        let durable = state.durable;
        state.blocks.truncate(durable);
        state.asked = durable;
        state.open = false;
        drop(state);
        self.durability.send_modify(|durability| durability.closed = Some(why));
    }

    /// Makes durable what is to be.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        if state.held || !state.open {
            return;
        }
        state.durable = state.asked;
        let durable = state.durable.checked_sub(1).map(|last| state.blocks[last].position());
        drop(state);
        self.durability
            .send_if_modified(|durability| std::mem::replace(&mut durability.durable, durable) != durable);
    }

    fn closed(&self) -> Result<(), Closed> {
        self.durability.borrow().closed.clone().map_or(Ok(()), |why| Err(Closed(why)))
    }
}

impl State {
    fn end(&self) -> LogEnd {
        let Some(last) = self.blocks.last() else { return LogEnd::default() };
        let first = self.blocks.iter().find(|block| block.generation == last.generation).unwrap_or(last);
        LogEnd {
            generation: last.generation,
            first: first.block.sequence,
            last: Some(last.block.sequence),
            session: last.session,
        }
    }
}

#[async_trait]
impl LogStorage for Logs {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let log = self.log(vdisk);
        let mut state = log.state();
        if state.away {
            return Err(OpenError::Failed("the log is away".into()));
        }
        assert!(!std::mem::replace(&mut state.open, true), "{vdisk} is opened while it is open");
        let durable = state.durable.checked_sub(1).map(|last| state.blocks[last].position());
        let end = state.end();
        drop(state);
        log.durability.send_replace(Durability { durable, closed: None });
        Ok(Arc::new(Open { log, end }))
    }
}

struct Open {
    log: Arc<Log>,
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
            let mut full = self.log.full.subscribe();
            let _ = full.wait_for(|full| !full).await;
            self.log.closed()?;
            let mut state = self.log.state();
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
        let mut state = self.log.state();
        state.asked = state.blocks.len();
        drop(state);
        self.log.settle();
    }

    fn durability(&self) -> watch::Receiver<Durability> {
        self.log.durability.subscribe()
    }

    async fn find(&self, position: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        let state = self.log.state();
        let found = state.blocks[..state.durable].iter().find(|block| block.position() == position);
        Ok(found.map(|found| (&found.block).into()))
    }

    async fn confirm(&self) -> Result<bool, Closed> {
        let mut state = self.log.state();
        match std::mem::take(&mut state.taken_over) {
            true => Err(Closed(CloseReason::Fenced)),
            false => Ok(!state.uncertain),
        }
    }

    async fn close(&self) -> Result<(), Closed> {
        if self.log.closed().is_ok() {
            self.flush();
            let mut durability = self.log.durability.subscribe();
            let all = self.log.state().blocks.last().map(OrderedBlock::position);
            let _ = durability.wait_for(|now| now.durable == all || now.closed.is_some()).await;
        }
        self.log.closed()?;
        self.log.state().open = false;
        self.log.durability.send_modify(|durability| durability.closed = Some(CloseReason::Requested));
        Ok(())
    }
}
