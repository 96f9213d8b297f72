//! Reading one aggregation from whichever k stores give it back first.
//!
//! ```text
//! ask the k that are likely the quickest
//!   one answers with nothing useful      -> ask the next at once
//!   not there when it usually would be   -> ask one more; and again after as long
//!   k whole shards are there             -> done; what is under way is dropped
//!   nobody is left to ask, none under way -> the error, with what each store has
//! ```
//! So a store that hangs costs a few milliseconds, not its time limit, and after that it is asked last for a while.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_store::ShardSlot;
use tokio::time::{Instant, sleep};

use crate::read::{Candidate, ReadError, ShardsRead};
use crate::survey::{Standing, StoreSet, Survey};

/// What one store has answered.
struct Answer {
    store: usize,
    slot: Option<ShardSlot>,
    took: Duration,
}

impl StoreSet {
    /// Reads the aggregation `id` under a number from the k stores that give it back first, data shards where all are equally quick.
    ///
    /// Takes as long as the quickest k whole shards, and at worst, before it is an error, as long as the slowest store.
    pub async fn aggregation(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        id: AggregationId,
    ) -> Result<Candidate, ReadError> {
        let needed = self.quorums().data();
        let mut read = ShardsRead::new(self.stores().len());
        let mut rest = self.reading_order(survey).into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut asked = Asked { since: Vec::new(), set: self };
        // So many more than needed are on their way, as some are late or do not count.
        let mut more = 0;
        let delay = self.health().delay();
        let mut late = pin!(sleep(delay));
        loop {
            while read.arrived(id) + under_way.len() < needed + more {
                let Some(store) = rest.next() else { break };
                asked.since.push((store, Instant::now()));
                under_way.push(self.answer_of(survey, number, store));
            }
            tokio::select! {
                biased;
                answer = under_way.next() => {
                    let Some(Answer { store, slot, took }) = answer else {
                        read.verify();
                        return Err(read.into_error(self, survey, number, id));
                    };
                    asked.since.retain(|(of, _)| *of != store);
                    match slot {
                        Some(_) => self.health().answered(store, took),
                        None => self.health().failed(store),
                    }
                    if self.take_shard(number, store, slot, &mut read) != Some(id) || read.arrived(id) < needed {
                        continue;
                    }
                    read.verify();
                    let whole = read.candidates.get(&id).filter(|candidate| candidate.is_whole());
                    let Some(candidate) = whole else { continue };
                    if !survey.rules_out(candidate.epoch, number) {
                        asked.were_overtaken(delay);
                        return Ok(candidate.clone());
                    }
                    // Another store may have a shard that was written under an epoch that counts.
                    more = more.max(candidate.present().saturating_sub(needed) + 1);
                }
                () = &mut late, if rest.len() > 0 => {
                    more += 1;
                    late.as_mut().reset(Instant::now() + delay);
                }
            }
        }
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

/// The stores that have not answered yet.
struct Asked<'a> {
    since: Vec<(usize, Instant)>,
    set: &'a StoreSet,
}

impl Asked<'_> {
    /// The others were quicker than these, which had as long as it usually takes.
    fn were_overtaken(&self, delay: Duration) {
        let late = self.since.iter().filter(|(_, since)| since.elapsed() >= delay);
        late.for_each(|(store, _)| self.set.health().failed(*store));
    }
}
