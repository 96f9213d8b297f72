//! One open log, as the server's port wants it: of format 2, or of format 1 beside older servers.

use std::sync::Arc;

use async_trait::async_trait;
use tlog_codec::BlockEntry;
use tlog_flusher::format1::{Format1Log, Format1Status};
use tlog_flusher::{AppendError, Log, LogStatus, LookupError, PositionedBlock};
use tlog_proto::{LogPosition, VdiskId};
use tlog_server::{BlockDigest, CloseReason, Closed, Durability, LogEnd, OrderedBlock, VdiskLog};
use tokio::sync::{Notify, watch};

/// A writer of either format.
#[derive(Debug)]
pub enum AnyLog {
    /// Ours. Others may hold it too: a scrub, a replacement of stores.
    Two(Arc<Log>),
    /// That of existing servers.
    One(Box<Format1Log>),
}

/// What a writer of either format shows of itself.
#[derive(Debug)]
pub enum AnyStatus {
    /// Of format 2.
    Two(LogStatus),
    /// Of format 1.
    One(Format1Status),
}

impl AnyStatus {
    /// Whose log it is.
    pub fn vdisk(&self) -> &VdiskId {
        match self {
            Self::Two(log) => &log.vdisk,
            Self::One(log) => &log.vdisk,
        }
    }
}

impl AnyLog {
    fn end(&self) -> tlog_flusher::LogEnd {
        match self {
            Self::Two(log) => log.end(),
            Self::One(log) => log.end(),
        }
    }

    async fn append(&self, blocks: Vec<PositionedBlock>) -> Result<(), AppendError> {
        match self {
            Self::Two(log) => log.append_all(blocks).await,
            Self::One(log) => {
                for block in blocks {
                    log.append(block).await?;
                }
                Ok(())
            }
        }
    }

    async fn flush(&self) -> Result<(), AppendError> {
        match self {
            Self::Two(log) => log.flush().await,
            Self::One(log) => log.flush().await,
        }
    }

    fn durability(&self) -> watch::Receiver<tlog_flusher::Durability> {
        match self {
            Self::Two(log) => log.durability(),
            Self::One(log) => log.durability(),
        }
    }

    async fn find(&self, position: LogPosition) -> Result<Option<BlockEntry>, LookupError> {
        match self {
            Self::Two(log) => log.find(position).await,
            Self::One(log) => log.find(position).await,
        }
    }

    async fn confirm(&self) -> Result<bool, AppendError> {
        match self {
            Self::Two(log) => log.confirm().await,
            // Nothing fences a writer of format 1, so nothing can be asked.
            Self::One(_) => Ok(true),
        }
    }

    async fn close(&self) -> Result<(), AppendError> {
        match self {
            Self::Two(log) => log.close().await,
            Self::One(log) => log.close().await,
        }
    }

    /// None where it has closed.
    pub async fn status(&self) -> Option<AnyStatus> {
        match self {
            Self::Two(log) => log.status().await.map(AnyStatus::Two),
            Self::One(log) => log.status().await.map(AnyStatus::One),
        }
    }
}

/// One open log. Two tasks live as long as it: one passes the durable position on in the server's words, one asks for
/// flushes, so that the server need not wait for the writer's queue.
pub(crate) struct OpenLog {
    log: Arc<AnyLog>,
    durability: watch::Receiver<Durability>,
    flush: Arc<Notify>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl OpenLog {
    pub(crate) fn new(log: AnyLog) -> Self {
        let log = Arc::new(log);
        let mut theirs = log.durability();
        let (tell, durability) = watch::channel(in_server_words(&theirs.borrow_and_update()));
        let forward = tokio::spawn(async move {
            loop {
                let changed = theirs.changed().await;
                let mut now = in_server_words(&theirs.borrow_and_update());
                if changed.is_err() && now.closed.is_none() {
                    now.closed = Some(CloseReason::Failed("the writer stopped".to_owned()));
                }
                let closed = now.closed.is_some();
                if tell.send(now).is_err() || closed {
                    return;
                }
            }
        });
        let flush = Arc::new(Notify::new());
        let (asked, writer) = (Arc::clone(&flush), Arc::clone(&log));
        let flusher = tokio::spawn(async move {
            loop {
                asked.notified().await;
                if writer.flush().await.is_err() {
                    return;
                }
            }
        });
        Self { log, durability, flush, tasks: [forward, flusher] }
    }

    /// The writer behind it.
    pub(crate) fn log(&self) -> Arc<AnyLog> {
        Arc::clone(&self.log)
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[async_trait]
impl VdiskLog for OpenLog {
    fn end(&self) -> LogEnd {
        let tlog_flusher::LogEnd { generation, first, last, session } = self.log.end();
        LogEnd { generation, first, last, session }
    }

    fn keeps_generations(&self) -> bool {
        matches!(&*self.log, AnyLog::Two(_))
    }

    async fn append(&self, blocks: Vec<OrderedBlock>) -> Result<(), Closed> {
        let positioned =
            |OrderedBlock { generation, session, block }| PositionedBlock { generation, session, block };
        // In the memory that they are in: both are the same words.
        let blocks = blocks.into_iter().map(positioned).collect();
        self.log.append(blocks).await.map_err(|error| Closed(reason(error.0)))
    }

    fn flush(&self) {
        // What was appended so far is in the writer's queue already, so a flush that is asked for now comes behind it.
        self.flush.notify_one();
    }

    fn durability(&self) -> watch::Receiver<Durability> {
        self.durability.clone()
    }

    async fn find(&self, position: LogPosition) -> Result<Option<BlockDigest>, Closed> {
        let entry = self.log.find(position).await.map_err(|error| {
            let why = format!("a block that came again could not be compared with the log: {error}");
            Closed(CloseReason::Failed(why))
        })?;
        Ok(entry.map(|entry| BlockDigest {
            index: entry.index,
            operation: entry.operation,
            timestamp: entry.timestamp,
            length: entry.length,
            hash_prefix: entry.hash_prefix,
        }))
    }

    async fn confirm(&self) -> Result<bool, Closed> {
        self.log.confirm().await.map_err(|error| Closed(reason(error.0)))
    }

    async fn close(&self) -> Result<(), Closed> {
        let closed = self.log.close().await.map_err(|error| Closed(reason(error.0)));
        // The position that the server sees must not lag behind this answer.
        let mut durability = self.durability.clone();
        let _told = durability.wait_for(|state| state.closed.is_some()).await;
        closed
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
