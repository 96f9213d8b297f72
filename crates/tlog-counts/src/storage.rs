//! Logs for the server: one that is durable at once, and the real writer on stores in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tlog_codec::Redundancy;
use tlog_flusher::{Log, LogSettings, PositionedBlock};
use tlog_proto::{LogPosition, VdiskId};
use tlog_quorum::{Quorums, StoreSet};
use tlog_server::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, VdiskLog,
};
use tlog_store::{MemoryStore, ShardStore};
use tokio::sync::watch;

use crate::subject::{SHARDS, keys};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Keeps nothing, and says of every so many blocks that they are durable.
    Nothing {
        /// How many.
        flush_size: usize,
    },
    /// Aggregates, seals, splits, and stores in memory.
    Memory {
        /// Blocks of an aggregation.
        flush_size: usize,
    },
}

#[async_trait]
impl LogStorage for Storage {
    async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        match *self {
            Self::Nothing { flush_size } => Ok(Arc::new(Forgetful::new(flush_size))),
            Self::Memory { flush_size } => {
                let log = open(vdisk, flush_size).await;
                log.map(|log| Arc::new(log) as _).map_err(|error| OpenError::Failed(error.into()))
            }
        }
    }
}

/// A log that keeps nothing.
struct Forgetful {
    flush_size: usize,
    appended: AtomicUsize,
    durability: watch::Sender<Durability>,
}

impl Forgetful {
    fn new(flush_size: usize) -> Self {
        Self { flush_size, appended: AtomicUsize::new(0), durability: watch::Sender::default() }
    }
}

#[async_trait]
impl VdiskLog for Forgetful {
    fn end(&self) -> LogEnd {
        LogEnd::default()
    }

    async fn append(&self, blocks: Vec<OrderedBlock>) -> Result<(), Closed> {
        for block in blocks {
            let before = self.appended.fetch_add(1, Ordering::Relaxed);
            if (before + 1).is_multiple_of(self.flush_size) {
                let durable = Some(block.position());
                self.durability.send_replace(Durability { durable, closed: None });
            }
        }
        Ok(())
    }

    fn flush(&self) {}

    fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.subscribe()
    }

    async fn find(&self, _: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        Ok(None)
    }

    async fn confirm(&self) -> Result<bool, Closed> {
        Ok(true)
    }

    async fn close(&self) -> Result<(), Closed> {
        self.durability.send_modify(|state| state.closed = Some(CloseReason::Requested));
        Ok(())
    }
}

/// The real writer. What stands between it and the server is as little as it can be.
struct Written {
    log: Log,
    durability: watch::Receiver<Durability>,
}

async fn open(vdisk: &VdiskId, flush_size: usize) -> anyhow::Result<Written> {
    let quorums = Quorums::default_for(Redundancy::new(SHARDS.0, SHARDS.1)?);
    let store = |index| Arc::new(MemoryStore::new(format!("memory:{index}"))) as Arc<dyn ShardStore>;
    let stores = (0..quorums.total()).map(store).collect();
    let set = StoreSet::new(vdisk.clone(), stores, quorums, Duration::from_secs(60));
    let set = set.ok_or_else(|| anyhow::anyhow!("the number of stores is not that of the shards"))?;
    let settings = LogSettings { max_blocks: flush_size, ..LogSettings::default() };
    let log = Log::open(set, keys()?, settings).await?;
    let mut theirs = log.durability();
    let (tell, durability) = watch::channel(in_server_words(&theirs.borrow_and_update()));
    tokio::spawn(async move {
        while theirs.changed().await.is_ok() {
            let now = in_server_words(&theirs.borrow_and_update());
            if tell.send(now).is_err() {
                return;
            }
        }
    });
    Ok(Written { log, durability })
}

#[async_trait]
impl VdiskLog for Written {
    fn end(&self) -> LogEnd {
        LogEnd::default()
    }

    async fn append(&self, blocks: Vec<OrderedBlock>) -> Result<(), Closed> {
        let positioned =
            |OrderedBlock { generation, session, block }| PositionedBlock { generation, session, block };
        let blocks = blocks.into_iter().map(positioned).collect();
        self.log.append_all(blocks).await.map_err(|error| Closed(reason(error.0)))
    }

    fn flush(&self) {}

    fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.clone()
    }

    async fn find(&self, _: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        Ok(None)
    }

    async fn confirm(&self) -> Result<bool, Closed> {
        Ok(true)
    }

    async fn close(&self) -> Result<(), Closed> {
        self.log.close().await.map_err(|error| Closed(reason(error.0)))
    }
}

fn in_server_words(state: &tlog_flusher::Durability) -> Durability {
    Durability { durable: state.durable, closed: state.closed.clone().map(reason) }
}

fn reason(reason: tlog_flusher::CloseReason) -> CloseReason {
    match reason {
        tlog_flusher::CloseReason::Requested => CloseReason::Requested,
        tlog_flusher::CloseReason::Fenced => CloseReason::Fenced,
        tlog_flusher::CloseReason::Failed(why) => CloseReason::Failed(why),
    }
}
