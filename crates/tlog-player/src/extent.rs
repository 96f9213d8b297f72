//! How far a log goes, and whether that can be told.
//!
//! ```text
//!   first ............ committed ... last | beyond ... head
//!   every number is in the log     W of n | fewer than W in reach: not acknowledged, unless the stores that
//!                                  hold it| cannot be asked hold it too; then the end is uncertain
//! ```

use tlog_proto::{AggregationId, AggregationNumber, Timestamp};
use tlog_quorum::{HeadCandidate, Located, ShardCondition, StoreSet, Survey};

use crate::history::AggregationInfo;
use crate::resolve::{following, resolve};

/// Numbers above the highest committed one that are asked for at once. A writer has no more than a few in flight.
const AHEAD: u64 = 64;

/// Which aggregations a log has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Lowest number kept; 1 unless history was pruned.
    pub first: AggregationNumber,
    /// Highest number that certainly belongs to the log. Below `first` where the log is empty.
    pub last: AggregationNumber,
    /// Highest number that a store knows as committed; at most `last`.
    pub committed: AggregationNumber,
    /// There may be more, which was acknowledged.
    pub uncertain: Option<UncertainEnd>,
}

impl Extent {
    /// Whether there is no aggregation in it.
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }

    /// How many aggregations it has.
    pub fn count(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }

    /// Whether a number is in it.
    pub fn contains(&self, number: AggregationNumber) -> bool {
        (self.first..=self.last).contains(&number)
    }
}

/// Something lies above the end that too few of the stores in reach hold, and that would be in the log if the others held it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncertainEnd {
    /// The first number of which it cannot be told.
    pub beyond: AggregationNumber,
    /// Addresses of stores that hold it.
    pub holders: Vec<String>,
    /// Addresses of stores that may hold it and cannot be asked: out of reach, blank, or damaged there. Bringing them back
    /// makes the end certain.
    pub missing: Vec<String>,
    /// How many stores must hold it for it to count.
    pub needed: usize,
    /// What may be in the log above its last number, as far as a store in reach holds it.
    pub tail: Vec<AggregationInfo>,
    /// Whether there may be more than `tail` shows: only damaged shards of it are in reach.
    pub more: bool,
}

impl UncertainEnd {
    /// Oldest block timestamp of what may be there; none where that is not known.
    pub fn oldest_timestamp(&self) -> Option<Timestamp> {
        if self.more { None } else { self.tail.iter().map(|info| info.oldest_timestamp).min() }
    }
}

/// The extent, and the id of its last aggregation where any store in reach still has that. `before_first` is what aggregation 1
/// follows; none where that is not known.
pub(crate) async fn determine(
    stores: &StoreSet,
    survey: &Survey,
    before_first: Option<AggregationId>,
) -> (Extent, Option<AggregationId>) {
    let (first, committed, head) = (survey.first(), survey.committed(), survey.head());
    let mut end = End::new(stores, committed, at_committed(stores, survey, before_first).await);
    let mut next = committed.next().max(first);
    while next <= head && !end.decided {
        let to = AggregationNumber(next.0.saturating_add(AHEAD - 1)).min(head);
        for located in stores.heads(survey, next..=to).await {
            end.handle(&located);
        }
        next = to.next();
    }
    let extent = Extent { first, last: end.last, committed, uncertain: end.uncertain };
    (extent, end.live.and_then(|ids| ids.first().copied()))
}

/// Ids that the highest committed aggregation may have, the likeliest first. None where its heads are gone.
async fn at_committed(
    stores: &StoreSet,
    survey: &Survey,
    before_first: Option<AggregationId>,
) -> Option<Vec<AggregationId>> {
    let (first, committed) = (survey.first(), survey.committed());
    if committed.0 == 0 {
        return before_first.map(|id| vec![id]);
    }
    if committed < first {
        return None;
    }
    // The one before it tells candidates apart of which the start records in reach do not.
    let from = committed.previous().unwrap_or_default().max(first);
    let run = stores.heads(survey, from..=committed).await;
    let before = before_first.filter(|_| from.0 == 1);
    let resolution = resolve(before, &run, None);
    let likeliest = resolution.run.last()?.chosen.as_ref()?.head.id;
    let others = run.last()?.candidates.iter().map(|c| c.head.id).filter(|id| *id != likeliest);
    Some(std::iter::once(likeliest).chain(others).collect())
}

/// Follows the numbers above the highest committed one, from low to high.
struct End<'a> {
    stores: &'a StoreSet,
    last: AggregationNumber,
    /// Ids that the number before may have; none where that is not known.
    live: Option<Vec<AggregationId>>,
    /// Ids that the number before may have, above `last`.
    possible: Option<Vec<AggregationId>>,
    uncertain: Option<UncertainEnd>,
    decided: bool,
}

impl<'a> End<'a> {
    fn new(stores: &'a StoreSet, committed: AggregationNumber, live: Option<Vec<AggregationId>>) -> Self {
        Self { stores, last: committed, live, possible: None, uncertain: None, decided: false }
    }

    fn handle(&mut self, located: &Located) {
        if self.decided {
            return;
        }
        let needed = self.stores.quorums().acknowledged();
        if self.uncertain.is_none() {
            let held = following(located, self.live.as_deref()).filter(|c| c.holders.len() >= needed);
            let held: Vec<AggregationId> = held.map(|c| c.head.id).collect();
            if !held.is_empty() {
                (self.last, self.live) = (located.number, Some(held));
                return;
            }
            self.possible = self.live.clone();
        }

        let silent: Vec<usize> = cannot_be_asked(located).collect();
        let could_count = |c: &&HeadCandidate| c.holders.len() + silent.len() >= needed;
        let could: Vec<&HeadCandidate> =
            following(located, self.possible.as_deref()).filter(could_count).collect();
        // Only damage is to be seen of it: whether it follows what is before it cannot be told.
        let only_damaged = could.is_empty()
            && silent.len() >= needed
            && located.conditions.iter().any(|c| matches!(c, ShardCondition::Damaged(_)));
        if could.is_empty() && !only_damaged {
            self.decided = true;
            return;
        }
        let (holders, missing) = (could.first().map_or(&[][..], |c| &c.holders), silent.as_slice());
        let stores = self.stores;
        let uncertain = self.uncertain.get_or_insert_with(|| UncertainEnd {
            beyond: located.number,
            holders: addresses(stores, holders),
            missing: addresses(stores, missing),
            needed,
            tail: Vec::new(),
            more: false,
        });
        uncertain.tail.extend(could.iter().map(|c| AggregationInfo::from(*c)));
        uncertain.more = only_damaged;
        self.decided = only_damaged;
        self.possible = Some(could.iter().map(|c| c.head.id).collect());
    }
}

fn addresses(set: &StoreSet, stores: &[usize]) -> Vec<String> {
    let address = |&i: &usize| set.stores().get(i).map(|store| store.address().to_string());
    stores.iter().filter_map(address).collect()
}

/// Stores that may hold a number and cannot say so.
fn cannot_be_asked(located: &Located) -> impl Iterator<Item = usize> {
    let silent = |c: &ShardCondition| matches!(c, ShardCondition::Unreachable | ShardCondition::Damaged(_));
    located.conditions.iter().enumerate().filter(move |(_, c)| silent(c)).map(|(i, _)| i)
}
