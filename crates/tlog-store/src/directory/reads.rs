//! Reading what is not [at hand](super::at_once): shards of one log that are asked for at the same time share threads, and what bringing the
//! index up to date costs.
//!
//! Whoever asks joins the log's queue. A thread takes what waits, brings the index up to date once, reads and answers, and begins
//! anew until nothing waits. One thread is enough for what is in memory already: waking it for every shard costs more than the
//! reading. Where a disk has to be waited for the queue grows, and more threads are put to it, so that the disk has several reads to
//! do at once.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tlog_proto::AggregationNumber;
use tokio::sync::oneshot;

use super::files::guard;
use super::log::Log;
use crate::{ShardSlot, StoreErrorKind};

/// Threads that read one log at once, at most.
const READERS: usize = 8;
/// So many that wait are worth another thread.
const WORTH_ANOTHER: usize = 4;
/// Shards that one thread takes at once.
const AT_ONCE: usize = 8;

type Outcome<T> = Result<T, StoreErrorKind>;

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: VecDeque<Asked>,
    readers: usize,
}

/// One that waits.
#[derive(Debug)]
enum Asked {
    Shard(AggregationNumber, oneshot::Sender<Outcome<ShardSlot>>),
    Parts(AggregationNumber, Vec<Range<u32>>, oneshot::Sender<Outcome<Option<Vec<Bytes>>>>),
}

impl Log {
    /// Reads a shard, as the writer had left it when this was called or later.
    pub(super) async fn shard(self: &Arc<Self>, number: AggregationNumber) -> Outcome<ShardSlot> {
        match self.shard_at_once(number) {
            Some(shard) => Ok(shard),
            None => self.ask(|reply| Asked::Shard(number, reply)).await,
        }
    }

    /// Reads bytes of a payload, unchecked.
    pub(super) async fn payload_parts(
        self: &Arc<Self>,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Outcome<Option<Vec<Bytes>>> {
        match self.parts_at_once(number, parts) {
            Some(read) => Ok(Some(read)),
            None => self.ask(|reply| Asked::Parts(number, parts.to_vec(), reply)).await,
        }
    }

    async fn ask<T>(
        self: &Arc<Self>,
        asked: impl FnOnce(oneshot::Sender<Outcome<T>>) -> Asked,
    ) -> Outcome<T> {
        let gone = || StoreErrorKind::Unavailable { source: io::Error::other("the store is shutting down") };
        let (reply, answer) = oneshot::channel();
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| gone())?;
        let another = {
            let mut reads = guard(&self.reads);
            reads.waiting.push_back(asked(reply));
            let another = reads.readers < READERS && reads.waiting.len() > reads.readers * WORTH_ANOTHER;
            reads.readers += usize::from(another);
            another
        };
        if another {
            let reader = Reader { log: Arc::clone(self), left: false };
            runtime.spawn_blocking(move || reader.run());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// One that reads for those who wait.
struct Reader {
    log: Arc<Log>,
    /// It is not counted any more.
    left: bool,
}

impl Reader {
    fn run(mut self) {
        while let Some(asked) = self.take() {
            // They were asked for before this. Where it fails each looks for itself, as an error of the system has no copy.
            let known = self.log.require_log().is_ok();
            for asked in asked {
                match asked {
                    Asked::Shard(number, reply) => self.answer(known, reply, |log| log.shard_now(number)),
                    Asked::Parts(number, parts, reply) => {
                        self.answer(known, reply, |log| log.parts_now(number, &parts));
                    }
                }
            }
        }
    }

    fn answer<T>(
        &self,
        known: bool,
        reply: oneshot::Sender<Outcome<T>>,
        read: impl FnOnce(&Log) -> Outcome<T>,
    ) {
        if reply.is_closed() {
            return; // another store was quicker
        }
        let known = if known { Ok(()) } else { self.log.require_log() };
        drop(reply.send(known.and_then(|()| read(&self.log)))); // who asked may be gone
    }

    /// Some of those who wait; none where nobody does: then this one ends.
    fn take(&mut self) -> Option<Vec<Asked>> {
        let mut reads = guard(&self.log.reads);
        if reads.waiting.is_empty() {
            reads.readers = reads.readers.saturating_sub(1);
            self.left = true;
            return None;
        }
        let take = reads.waiting.len().min(AT_ONCE);
        Some(reads.waiting.drain(..take).collect())
    }
}

impl Drop for Reader {
    /// The thread was never started, or it panicked: where it was the last one, those who wait hear of it by their dropped senders.
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut reads = guard(&self.log.reads);
        reads.readers = reads.readers.saturating_sub(1);
        if reads.readers == 0 {
            reads.waiting.clear();
        }
    }
}
