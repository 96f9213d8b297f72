//! Reading one aggregation from whichever k stores give it back first.
//!
//! ```text
//! ask the k that are likely the quickest
//!   one answers with nothing useful      -> ask the next at once
//!   not there when it usually would be   -> ask one more; and again after as long
//!   k whole shards are there             -> done; what is under way is dropped
//!     with a key: k shards are there     -> opened, which proves them; if that fails, verified, and damaged ones made up for
//!   nobody is left to ask, none under way -> the error, with what each store has
//! ```
//! So a store that hangs costs a few milliseconds, not its time limit, and after that it is asked last for a while.

use std::pin::Pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_store::ShardSlot;
use tokio::time::{Instant, Sleep, sleep};

use crate::read::{Candidate, ReadError};
use crate::shards_read::ShardsRead;
use crate::survey::{Standing, StoreSet, Survey};

/// What one store has answered.
struct Answer {
    store: usize,
    slot: Option<ShardSlot>,
    took: Duration,
}

/// An aggregation that was not opened.
#[derive(Debug)]
pub enum NotOpened<E> {
    /// Too few whole shards can be read.
    Unreadable(ReadError),
    /// Its shards are whole, and it does not open.
    Refused(E),
}

impl StoreSet {
    /// Reads the aggregation `id` under a number from the k stores that give it back first, data shards where all are equally quick.
    /// Payloads are verified.
    ///
    /// Takes as long as the quickest k whole shards, and at worst, before it is an error, as long as the slowest store.
    pub async fn aggregation(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        id: AggregationId,
    ) -> Result<Candidate, ReadError> {
        let mut read = ShardsRead::new(self.stores().len());
        let mut reading = Reading::of(self, survey, number, id);
        while reading.enough(&mut read).await {
            read.verify();
            if let Some(candidate) = read.candidates.get(&id).filter(|candidate| reading.counts(candidate)) {
                reading.were_overtaken();
                return Ok(candidate.clone());
            }
        }
        Err(read.into_error(self, survey, number, id))
    }

    /// The same for a reader with a key, which is proof enough: `open` gets the shards as they come, not verified, and must fail unless
    /// they are what was sealed. Only where it does are they verified against the hashes in the head, damaged ones left out and others read.
    /// Saves hashing every byte of what is read.
    ///
    /// The candidate that comes back is the one that opened. Of its payloads those that opening does not take, parity where all data
    /// is there, may be damaged.
    pub async fn opened<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        id: AggregationId,
        mut open: impl FnMut(Candidate) -> F,
    ) -> Result<(Candidate, T), NotOpened<E>> {
        let mut read = ShardsRead::new(self.stores().len());
        let mut reading = Reading::of(self, survey, number, id);
        while reading.enough(&mut read).await {
            while let Some(candidate) = read.with_unverified(id).filter(|candidate| reading.counts(candidate))
            {
                match open(candidate.clone()).await {
                    Ok(opened) => {
                        reading.were_overtaken();
                        return Ok((candidate, opened));
                    }
                    Err(error) => {
                        read.verify();
                        let whole = read.candidates.get(&id).map_or(0, Candidate::present);
                        if whole == candidate.present() {
                            return Err(NotOpened::Refused(error));
                        }
                        tracing::debug!(vdisk = %self.vdisk(), number = number.0, "a damaged shard is made up for");
                    }
                }
            }
        }
        Err(NotOpened::Unreadable(read.into_error(self, survey, number, id)))
    }

    /// The stores that count, in the order in which they are best asked.
    pub(crate) fn reading_order(&self, survey: &Survey) -> Vec<usize> {
        let counts = |store: &usize| survey.views.get(*store).is_some_and(|v| v.standing == Standing::Member);
        self.health().order().into_iter().filter(counts).collect()
    }

    async fn answer_of(&self, survey: &Survey, number: AggregationNumber, store: usize) -> Answer {
        let begun = Instant::now();
        let slot = self.shard_of(survey, number, store).await;
        Answer { store, slot, took: begun.elapsed() }
    }
}

/// Shards of an aggregation that are asked for, each from its store.
struct Reading<'a> {
    set: &'a StoreSet,
    survey: &'a Survey,
    number: AggregationNumber,
    id: AggregationId,
    /// Stores that can yet be asked, in order.
    rest: std::vec::IntoIter<usize>,
    under_way: FuturesUnordered<BoxFuture<'a, Answer>>,
    /// The stores that have not answered yet.
    since: Vec<(usize, Instant)>,
    /// Shards that are waited for: k, or more where all that came were ruled out.
    needed: usize,
    /// So many more are on their way, as some are late.
    more: usize,
    delay: Duration,
    late: Pin<Box<Sleep>>,
}

impl<'a> Reading<'a> {
    fn of(set: &'a StoreSet, survey: &'a Survey, number: AggregationNumber, id: AggregationId) -> Self {
        let delay = set.health().delay();
        Self {
            set,
            survey,
            number,
            id,
            rest: set.reading_order(survey).into_iter(),
            under_way: FuturesUnordered::new(),
            since: Vec::new(),
            needed: set.quorums().data(),
            more: 0,
            delay,
            late: Box::pin(sleep(delay)),
        }
    }

    /// Waits until as many shards as are needed have arrived. Not where there are no more: then what came is verified, for the error.
    async fn enough(&mut self, read: &mut ShardsRead) -> bool {
        while read.arrived(self.id) < self.needed {
            while read.arrived(self.id) + self.under_way.len() < self.needed + self.more {
                let Some(store) = self.rest.next() else { break };
                self.since.push((store, Instant::now()));
                self.under_way.push(self.set.answer_of(self.survey, self.number, store).boxed());
            }
            tokio::select! {
                biased;
                answer = self.under_way.next() => {
                    let Some(Answer { store, slot, took }) = answer else {
                        read.verify();
                        return false;
                    };
                    self.since.retain(|(of, _)| *of != store);
                    match slot {
                        Some(_) => self.set.health().answered(store, took),
                        None => self.set.health().failed(store),
                    }
                    self.set.take_shard(self.number, store, slot, read);
                }
                () = &mut self.late, if self.rest.len() > 0 => {
                    self.more += 1;
                    self.late.as_mut().reset(Instant::now() + self.delay);
                }
            }
        }
        true
    }

    /// Whether these shards are enough and not ruled out. If they are, another store may have one that was written under an epoch that
    /// counts: it is waited for.
    fn counts(&mut self, candidate: &Candidate) -> bool {
        if !candidate.is_whole() {
            return false;
        }
        let ruled_out = self.survey.rules_out(candidate.epoch, self.number);
        if ruled_out {
            self.needed = candidate.present() + 1;
        }
        !ruled_out
    }

    /// The stores that have not answered had as long as it usually takes, and others were quicker.
    fn were_overtaken(&self) {
        let late = self.since.iter().filter(|(_, since)| since.elapsed() >= self.delay);
        late.for_each(|(store, _)| self.set.health().failed(*store));
    }
}
