//! The task that owns an open log of format 1: one aggregation at a time, since each names the ciphertext of the one before.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tlog_codec::BlockEntry;
use tlog_codec::format1::{self, Keys};
use tlog_proto::{Aggregation, AggregationId, Generation, LogPosition, Timestamp};
use tlog_quorum::StoreSet;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use super::log::{Command, Format1Status, Format1StoreStatus};
use super::storing::{Trouble, store_link};
use super::tail::Recent;
use crate::aggregator::{Aggregator, Batch};
use crate::log::{CloseReason, Durability};
use crate::metric;
use crate::settings::LogSettings;

/// Bytes of blocks above which an aggregation is encoded on a thread for that.
const LARGE: u64 = 1 << 20;

/// Invariant: `newest` is stored on every store, and nothing after it is; what is on its way follows it.
pub(super) struct Writer {
    set: StoreSet,
    keys: Keys,
    settings: LogSettings,
    newest: AggregationId,
    recent: Arc<Recent>,
    durability: watch::Sender<Durability>,
    commits: metric::Commits,
    aggregator: Aggregator<OwnedSemaphorePermit>,
    storing: Option<BoxFuture<'static, Result<Stored, String>>>,
    trouble: Trouble,
    stored: u64,
    closing: bool,
}

/// An aggregation that every store holds.
struct Stored {
    id: AggregationId,
    generation: Generation,
    entries: Vec<BlockEntry>,
    bytes: u64,
    stored_bytes: u64,
    since: Instant,
    /// Given back now that it is durable.
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Writer {
    pub(super) fn new(
        set: StoreSet,
        keys: Keys,
        settings: LogSettings,
        newest: AggregationId,
        recent: Arc<Recent>,
        durability: watch::Sender<Durability>,
    ) -> Self {
        Self {
            commits: metric::Commits::new(set.vdisk()),
            aggregator: Aggregator::new(settings.max_blocks, settings.max_batch_bytes, settings.max_age),
            set,
            keys,
            settings,
            newest,
            recent,
            durability,
            storing: None,
            trouble: Trouble::default(),
            stored: 0,
            closing: false,
        }
    }

    /// Runs until the log closes, or every handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let reason = loop {
            self.store_due(Instant::now());
            if self.closing && self.storing.is_none() && self.aggregator.is_empty() {
                break CloseReason::Requested;
            }
            let deadline = self.aggregator.deadline().filter(|_| self.storing.is_none());
            tokio::select! {
                biased;
                stored = wait(&mut self.storing) => match stored {
                    Ok(stored) => self.handle_stored(stored),
                    Err(why) => break CloseReason::Failed(why),
                },
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => break CloseReason::Failed("the log was dropped without being closed".to_owned()),
                },
                () = sleep_until(deadline) => {}
            }
        };
        let vdisk = self.set.vdisk();
        match &reason {
            CloseReason::Requested => tracing::info!(%vdisk, newest = %self.newest, "log of format 1 closed"),
            reason => tracing::warn!(%vdisk, newest = %self.newest, %reason, "log of format 1 closed"),
        }
        metric::closed(vdisk, reason.kind());
        self.durability.send_modify(|state| state.closed = Some(reason));
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Append(block, permit) => self.aggregator.handle_block(Instant::now(), block, permit),
            Command::Flush => self.aggregator.handle_flush(),
            Command::Close => {
                self.aggregator.handle_flush();
                self.closing = true;
            }
            // Who asked may be gone.
            Command::Status(answer) => drop(answer.send(self.status())),
        }
    }

    /// Encodes and sends the next aggregation, if one is due and none is on its way.
    fn store_due(&mut self, now: Instant) {
        if self.storing.is_some() {
            return;
        }
        if self.closing {
            self.aggregator.handle_flush(); // what came after the close too
        }
        if let Some(batch) = self.aggregator.poll_batch(now) {
            let (set, keys) = (self.set.clone(), self.keys.clone());
            let (pause, trouble) = (self.settings.retry_after, self.trouble.clone());
            let store = store(set, keys, self.newest, batch, pause, trouble);
            self.storing = Some(Box::pin(store));
        }
    }

    fn handle_stored(&mut self, stored: Stored) {
        self.storing = None;
        self.stored += 1;
        self.newest = stored.id;
        let blocks = stored.entries.len() as u64;
        self.commits.count(blocks, stored.bytes, stored.stored_bytes, stored.since.elapsed());
        let last = stored.entries.last().map(|entry| entry.sequence);
        self.recent.extend(stored.generation, stored.entries.into_iter());
        if let Some(sequence) = last {
            let durable = LogPosition { generation: stored.generation, sequence };
            tracing::debug!(vdisk = %self.set.vdisk(), id = %stored.id, %durable, "stored in format 1");
            self.durability.send_modify(|state| state.durable = Some(durable));
        }
    }

    fn status(&self) -> Format1Status {
        let store = |(i, store): (usize, &Arc<dyn tlog_store::ShardStore>)| Format1StoreStatus {
            address: store.address().to_string(),
            error: self.trouble.of(i),
        };
        Format1Status {
            vdisk: self.set.vdisk().clone(),
            newest: (self.newest != AggregationId::BEFORE_FIRST).then_some(self.newest),
            stored: self.stored,
            in_flight: self.storing.is_some(),
            waiting_blocks: self.aggregator.len(),
            stores: self.set.stores().iter().enumerate().map(store).collect(),
            losses_survived: self.set.quorums().redundancy().parity(),
        }
    }
}

/// Encodes a batch that follows `prev`, and stores it everywhere.
async fn store(
    set: StoreSet,
    keys: Keys,
    prev: AggregationId,
    batch: Batch<OwnedSemaphorePermit>,
    pause: std::time::Duration,
    trouble: Trouble,
) -> Result<Stored, String> {
    let since = Instant::now();
    let Batch { generation, session: _, blocks, permits } = batch;
    let bytes: u64 = blocks.iter().map(|block| block.size() as u64).sum();
    let entries = blocks.iter().map(BlockEntry::from).collect();
    let aggregation = Aggregation {
        name: Aggregation::NAME.to_owned(),
        timestamp: wall_clock(),
        vdisk_id: set.vdisk().clone(),
        blocks,
        prev: Bytes::copy_from_slice(&prev.0),
    };
    let redundancy = set.quorums().redundancy();
    let encode = move || format1::try_encode(&aggregation, keys.encrypter(), redundancy);
    let encoded = if bytes < LARGE {
        encode()
    } else {
        tokio::task::spawn_blocking(encode).await.map_err(|error| error.to_string())?
    };
    let format1::Encoded { id, shards } = encoded.map_err(|error| error.to_string())?;
    store_link(&set, id, &shards, |_| true, pause, &trouble).await.map_err(|error| error.to_string())?;
    let stored_bytes = shards.iter().map(|shard| shard.len() as u64).sum();
    Ok(Stored { id, generation, entries, bytes, stored_bytes, since, _permits: permits })
}

async fn wait(storing: &mut Option<BoxFuture<'static, Result<Stored, String>>>) -> Result<Stored, String> {
    match storing {
        Some(storing) => storing.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn wall_clock() -> Timestamp {
    Timestamp(tlog_ambient::unix_nanos())
}
