//! The newest blocks of a chain, as far back as a client may come again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tlog_codec::BlockEntry;
use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, Generation, LogPosition, SessionId};
use tlog_quorum::{LinkError, LinkRead, StoreSet};

use crate::log::LogEnd;

/// The generation of everything that was written in format 1 before a log was opened.
pub(crate) const GENERATION: Generation = Generation(1);

/// Blocks that are looked back for. A client comes back with what it has not heard of; that is no more than what a server
/// remembers of its own.
const BLOCKS: usize = 1024;
/// Aggregations that are read for that at most.
const LINKS: usize = 64;
/// Bytes of blocks that are read for that, about.
const BYTES: usize = 64 << 20;

/// The end of a chain: its newest aggregation, and what its last blocks were.
///
/// Invariant: the sequences of `run` rise without gaps.
#[derive(Clone, Debug)]
pub(crate) struct ChainTail {
    newest: AggregationId,
    run: VecDeque<BlockEntry>,
}

impl ChainTail {
    /// That of a chain without anything in it.
    pub(crate) fn empty() -> Self {
        Self { newest: AggregationId::BEFORE_FIRST, run: VecDeque::new() }
    }

    /// Reads the end of the chain that `newest` is the last of. Only what is further back may be unreadable.
    pub(crate) async fn read(set: &StoreSet, newest: AggregationId, keys: &Keys) -> Result<Self, LinkError> {
        let mut tail = Self { newest, run: VecDeque::new() };
        let mut walk = set.chain_walk(newest, keys, LinkRead::Enough);
        let mut bytes = 0;
        for link in 0..LINKS {
            let blocks = match walk.next().await {
                Ok(Some(link)) => link.aggregation.blocks,
                Ok(None) => break,
                Err(error) if link == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "history of format 1 is broken there; run tlog verify");
                    break;
                }
            };
            let goes_on = blocks.iter().rev().all(|block| tail.take(block.into()));
            bytes += blocks.iter().map(|block| block.size()).sum::<usize>();
            if !goes_on || tail.run.len() >= BLOCKS || bytes >= BYTES {
                break;
            }
        }
        Ok(tail)
    }

    /// The next older block. False where it does not come right before what is there: a client had started over.
    fn take(&mut self, entry: BlockEntry) -> bool {
        let follows =
            self.run.front().is_none_or(|next| entry.sequence.0.checked_add(1) == Some(next.sequence.0));
        if follows {
            self.run.push_front(entry);
        }
        follows
    }

    /// Id of the newest aggregation.
    pub(crate) fn newest(&self) -> AggregationId {
        self.newest
    }

    /// Where a log ends that has this behind it. Its first sequence is the first that can be told.
    pub(crate) fn end(&self) -> LogEnd {
        let (Some(first), Some(last)) = (self.run.front(), self.run.back()) else {
            return LogEnd::default();
        };
        LogEnd {
            generation: GENERATION,
            first: first.sequence,
            last: Some(last.sequence),
            session: SessionId::UNKNOWN,
        }
    }

    /// What it has at a position.
    pub(crate) fn find(&self, position: LogPosition) -> Option<BlockEntry> {
        if position.generation != GENERATION {
            return None;
        }
        let at = position.sequence.0.checked_sub(self.run.front()?.sequence.0)?;
        self.run.get(usize::try_from(at).ok()?).copied()
    }
}

/// What a log durably holds, as far back as is remembered.
#[derive(Debug)]
pub(super) struct Recent {
    entries: Mutex<VecDeque<(Generation, BlockEntry)>>,
}

impl Recent {
    /// So many blocks are remembered.
    const MOST: usize = 4 * BLOCKS;

    pub(super) fn new(tail: &ChainTail) -> Self {
        Self { entries: Mutex::new(tail.run.iter().map(|entry| (GENERATION, *entry)).collect()) }
    }

    /// Blocks have become durable.
    pub(super) fn extend(&self, generation: Generation, blocks: impl Iterator<Item = BlockEntry>) {
        let mut entries = self.entries();
        entries.extend(blocks.map(|entry| (generation, entry)));
        let excess = entries.len().saturating_sub(Self::MOST);
        entries.drain(..excess);
    }

    /// The newest at a position.
    pub(super) fn find(&self, position: LogPosition) -> Option<BlockEntry> {
        let entries = self.entries();
        let at = |(generation, entry): &&(Generation, BlockEntry)| {
            (*generation, entry.sequence) == (position.generation, position.sequence)
        };
        entries.iter().rev().find(at).map(|(_, entry)| *entry)
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<(Generation, BlockEntry)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
