//! When blocks become an aggregation. Pure: time comes in as an argument.
//!
//! Calling order: [`Aggregator::handle_block`] and [`Aggregator::handle_flush`] as things happen; after each, and at
//! [`Aggregator::deadline`], [`Aggregator::poll_batch`] until it answers none or the caller can take no more. A caller that
//! takes none for a while loses nothing: blocks wait in order.

use std::collections::VecDeque;
use std::time::Duration;

use tlog_proto::{Block, Generation, SessionId};
use tokio::time::Instant;

use crate::log::PositionedBlock;

/// Blocks of one generation and session that become one aggregation.
#[derive(Debug)]
pub(crate) struct Batch<P> {
    pub(crate) generation: Generation,
    pub(crate) session: SessionId,
    pub(crate) blocks: Vec<Block>,
    /// What was handed in with each block; kept until they are durable.
    pub(crate) permits: Vec<P>,
}

/// Collects ordered blocks and says when they are to be flushed.
///
/// Invariant: `run` describes the longest prefix of `queue` that fits into one aggregation, and `run.closed` says that the
/// block behind it does not belong to it.
#[derive(Debug)]
pub(crate) struct Aggregator<P> {
    max_blocks: usize,
    max_bytes: usize,
    max_age: Duration,
    queue: VecDeque<Waiting<P>>,
    run: Run,
    /// So many blocks at the front of the queue were there when a flush was asked for.
    flush: usize,
}

#[derive(Debug)]
struct Waiting<P> {
    block: PositionedBlock,
    permit: P,
    since: Instant,
}

#[derive(Debug, Default)]
struct Run {
    blocks: usize,
    bytes: usize,
    closed: bool,
}

impl<P> Aggregator<P> {
    pub(crate) fn new(max_blocks: usize, max_bytes: usize, max_age: Duration) -> Self {
        Self { max_blocks, max_bytes, max_age, queue: VecDeque::new(), run: Run::default(), flush: 0 }
    }

    /// The next block of the log.
    pub(crate) fn handle_block(&mut self, now: Instant, block: PositionedBlock, permit: P) {
        self.queue.push_back(Waiting { block, permit, since: now });
        self.extend_run();
    }

    /// Everything that is there now is to be flushed without waiting for more.
    pub(crate) fn handle_flush(&mut self) {
        self.flush = self.queue.len();
    }

    /// The next aggregation, if one is due.
    pub(crate) fn poll_batch(&mut self, now: Instant) -> Option<Batch<P>> {
        let front = self.queue.front()?;
        let due =
            self.run.closed || self.flush > 0 || now.saturating_duration_since(front.since) >= self.max_age;
        if !due {
            return None;
        }
        let (generation, session) = (front.block.generation, front.block.session);
        let (mut blocks, mut permits) =
            (Vec::with_capacity(self.run.blocks), Vec::with_capacity(self.run.blocks));
        for waiting in self.queue.drain(..self.run.blocks) {
            blocks.push(waiting.block.block);
            permits.push(waiting.permit);
        }
        self.flush = self.flush.saturating_sub(blocks.len());
        self.run = Run::default();
        self.extend_run();
        Some(Batch { generation, session, blocks, permits })
    }

    /// When the oldest block will have waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.queue.front().map(|waiting| waiting.since + self.max_age)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    fn extend_run(&mut self) {
        while !self.run.closed {
            let Some(next) = self.queue.get(self.run.blocks) else {
                break;
            };
            let bytes = self.run.bytes + next.block.block.size();
            let same = |a: &PositionedBlock, b: &PositionedBlock| {
                a.generation == b.generation
                    && a.session == b.session
                    && a.block.sequence.0.checked_add(self.run.blocks as u64) == Some(b.block.sequence.0)
            };
            let fits = self.run.blocks == 0
                || (bytes <= self.max_bytes
                    && self.queue.front().is_some_and(|front| same(&front.block, &next.block)));
            if !fits {
                self.run.closed = true;
                break;
            }
            self.run.blocks += 1;
            self.run.bytes = bytes;
            self.run.closed = self.run.blocks >= self.max_blocks || bytes >= self.max_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use tlog_proto::{BlockIndex, Sequence, Timestamp};

    fn block(generation: u64, session: u64, sequence: u64, bytes: usize) -> PositionedBlock {
        PositionedBlock {
            generation: Generation(generation),
            session: SessionId(session),
            block: Block::set(
                Sequence(sequence),
                BlockIndex::new(sequence).unwrap(),
                Timestamp(sequence),
                Bytes::from(vec![1; bytes]),
            ),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Block { new_generation: bool, new_session: bool, bytes: usize },
        Flush,
        Wait(u64),
        Poll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (prop::bool::weighted(0.1), prop::bool::weighted(0.1), 1usize..40)
                .prop_map(|(new_generation, new_session, bytes)| Step::Block { new_generation, new_session, bytes }),
            1 => Just(Step::Flush),
            1 => (0u64..15).prop_map(Step::Wait),
            3 => Just(Step::Poll),
        ];
        prop::collection::vec(step, 0..80)
    }

    /// The slow oracle: looks at the whole queue every time.
    fn oracle(queue: &[(PositionedBlock, u64)], flush: usize, now: u64) -> Option<usize> {
        let (front, since) = queue.first()?;
        let mut run = 0;
        let mut bytes = 0;
        for (next, _) in queue {
            let more = bytes + next.block.size();
            let same = next.generation == front.generation && next.session == front.session;
            if run > 0 && (run == 5 || bytes >= 64 || more > 64 || !same) {
                break;
            }
            run += 1;
            bytes = more;
        }
        let full = run == 5 || bytes >= 64 || run < queue.len();
        (full || flush > 0 || now - since >= 10).then_some(run)
    }

    proptest! {
        #[test]
        fn batches_are_those_of_a_slow_oracle(steps in steps()) {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut aggregator = Aggregator::new(5, 64, Duration::from_secs(10));
            let (mut queue, mut flush, mut now) = (Vec::new(), 0, 0);
            let (mut generation, mut session, mut sequence) = (1, 1, 0);
            for step in steps {
                match step {
                    Step::Block { new_generation, new_session, bytes } => {
                        generation += u64::from(new_generation);
                        session += u64::from(new_session);
                        sequence += 1;
                        let block = block(generation, session, sequence, bytes);
                        queue.push((block.clone(), now));
                        aggregator.handle_block(at(now), block, sequence);
                    }
                    Step::Flush => {
                        flush = queue.len();
                        aggregator.handle_flush();
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Poll => {
                        let expected = oracle(&queue, flush, now);
                        let batch = aggregator.poll_batch(at(now));
                        prop_assert_eq!(batch.as_ref().map(|batch| batch.blocks.len()), expected);
                        if let Some(batch) = batch {
                            let taken: Vec<_> = queue.drain(..batch.blocks.len()).map(|(block, _)| block).collect();
                            flush -= flush.min(taken.len());
                            for (block, taken) in batch.blocks.iter().zip(&taken) {
                                prop_assert_eq!(block, &taken.block);
                                prop_assert_eq!((batch.generation, batch.session), (taken.generation, taken.session));
                            }
                            prop_assert_eq!(
                                batch.permits,
                                taken.iter().map(|block| block.block.sequence.0).collect::<Vec<_>>()
                            );
                        }
                    }
                }
                prop_assert_eq!(aggregator.deadline(), queue.first().map(|(_, since)| at(since + 10)));
                prop_assert_eq!(aggregator.len(), queue.len());
            }
        }
    }

    #[test]
    fn a_flush_takes_what_is_there_and_does_not_make_later_blocks_hurry() {
        let now = Instant::now();
        let mut aggregator = Aggregator::new(25, 1 << 20, Duration::from_secs(25));
        for sequence in 1..=3 {
            aggregator.handle_block(now, block(1, 1, sequence, 10), ());
        }
        assert!(aggregator.poll_batch(now).is_none());
        aggregator.handle_flush();
        assert_eq!(aggregator.poll_batch(now).unwrap().blocks.len(), 3);
        aggregator.handle_block(now, block(1, 1, 4, 10), ());
        assert!(aggregator.poll_batch(now).is_none());
        assert!(aggregator.poll_batch(now + Duration::from_secs(25)).is_some());
        assert!(aggregator.is_empty());
    }
}
