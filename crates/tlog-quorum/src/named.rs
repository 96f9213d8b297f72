//! Heads of which it is known which they must be: each is named by the id of the one after it.
//!
//! What names itself needs no second opinion. One store is asked, and others only for what it lacks.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tlog_codec::ShardHead;
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_store::NumberRanges;
use tokio::time::timeout;

use crate::read::HeadCandidate;
use crate::survey::{StoreSet, Survey};

/// How many times as long as for a shard is waited for heads before another store is asked for them too: there are many at once.
const HEADS_PER_SHARD: u32 = 4;
const LEAST_DELAY: Duration = Duration::from_millis(50);

/// The heads of a range of numbers as one store has them, each whole by itself; and then those that others made up for.
#[derive(Debug)]
pub struct HeadsRead {
    range: RangeInclusive<AggregationNumber>,
    /// By store: what it was asked for, and what it has of that.
    stores: Vec<(NumberRanges, Heads)>,
    /// The store that was asked first.
    first: Option<usize>,
}

type Heads = BTreeMap<AggregationNumber, ShardHead>;

impl StoreSet {
    /// Head parts in `range` from whichever store answers, one that has been quick if there is any. Ask for as many as may be in
    /// memory at once. What they prove is seen by [`StoreSet::named_heads`].
    pub async fn heads_of_one(&self, survey: &Survey, range: RangeInclusive<AggregationNumber>) -> HeadsRead {
        let mut read = HeadsRead {
            range: range.clone(),
            stores: vec![Default::default(); self.stores().len()],
            first: None,
        };
        let heads_of = async |store| (store, self.whole_heads(survey, store, &range).await);
        let mut rest = self.reading_order(survey).into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut asked = Vec::new();
        let delay = (self.health().delay() * HEADS_PER_SHARD).max(LEAST_DELAY);
        loop {
            if let Some(store) = rest.next() {
                under_way.push(heads_of(store));
                asked.push(store);
            }
            // Until one answers, or it is time to ask one more.
            let answer = match rest.len() {
                0 => Ok(under_way.next().await),
                _ => timeout(delay, under_way.next()).await,
            };
            match answer {
                Ok(Some((store, Some(heads)))) => {
                    // Those that were asked before it have had their time.
                    let late = asked.iter().take_while(|earlier| **earlier != store);
                    late.for_each(|earlier| self.health().failed(*earlier));
                    read.take_in(store, heads);
                    return read;
                }
                Ok(None) if rest.len() == 0 => return read,
                _ => {}
            }
        }
    }

    /// The heads of a whole range from its end to its beginning. `newest` is the id of the last; each names the one before it. Other
    /// stores are asked for what is not there. None where one of them cannot be found on any store, or was ruled out.
    pub async fn named_heads(
        &self,
        survey: &Survey,
        mut read: HeadsRead,
        newest: AggregationId,
    ) -> Option<Vec<HeadCandidate>> {
        let (first, last) = read.range.clone().into_inner();
        let mut wanted = newest;
        let mut found = Vec::new();
        for number in (first.0..=last.0).rev().map(AggregationNumber) {
            let head = self.named_head(survey, &mut read, number, wanted).await?;
            wanted = head.head.header.prev;
            found.push(head);
        }
        Some(found)
    }

    async fn named_head(
        &self,
        survey: &Survey,
        read: &mut HeadsRead,
        number: AggregationNumber,
        id: AggregationId,
    ) -> Option<HeadCandidate> {
        let mut order = self.reading_order(survey);
        order.sort_by_key(|store| read.first != Some(*store));
        for store in order {
            if !read.stores.get(store)?.0.contains(number) {
                let lacking = read.lacking_up_to(number);
                read.stores.get_mut(store)?.0.insert_range(lacking.clone());
                if let Some(heads) = self.whole_heads(survey, store, &lacking).await {
                    read.stores.get_mut(store)?.1.extend(heads);
                }
            }
            let head = read.stores.get(store)?.1.get(&number);
            let counts = |head: &&ShardHead| head.id == id && !survey.rules_out(head.epoch, number);
            if let Some(head) = head.filter(counts) {
                return Some(HeadCandidate { head: head.clone(), epoch: head.epoch, holders: vec![store] });
            }
        }
        None
    }

    /// The heads in a range that one store has, without those that are damaged. None where it does not answer.
    async fn whole_heads(
        &self,
        survey: &Survey,
        store: usize,
        range: &RangeInclusive<AggregationNumber>,
    ) -> Option<Heads> {
        let Some(slots) = self.heads_of(survey, store, range.clone()).await else {
            self.health().failed(store);
            return None;
        };
        let checked = self.check_heads(store, &slots).into_iter();
        let whole = checked.filter_map(|(number, checked)| Some((number, checked.ok()?)));
        Some(whole.collect())
    }
}

impl HeadsRead {
    /// Bytes of heads in it.
    pub fn bytes(&self) -> u64 {
        self.stores.iter().flat_map(|(_, heads)| heads.values()).map(|head| head.stored_len() as u64).sum()
    }

    /// The numbers in it.
    pub fn range(&self) -> &RangeInclusive<AggregationNumber> {
        &self.range
    }

    fn take_in(&mut self, store: usize, heads: Heads) {
        self.first = Some(store);
        if let Some((asked, known)) = self.stores.get_mut(store) {
            asked.insert_range(self.range.clone());
            known.extend(heads);
        }
    }

    /// The run of numbers that ends with `number` and of which, but for that one, no head is known.
    fn lacking_up_to(&self, number: AggregationNumber) -> RangeInclusive<AggregationNumber> {
        let known =
            |number: &AggregationNumber| self.stores.iter().any(|(_, heads)| heads.contains_key(number));
        let below = (self.range.start().0..number.0).rev().map(AggregationNumber);
        let lowest = below.take_while(|number| !known(number)).last();
        lowest.unwrap_or(number)..=number
    }
}
