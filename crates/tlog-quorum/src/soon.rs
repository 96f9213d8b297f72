//! Heads without waiting for the slowest: of a few numbers, for whoever asks often and one after the other.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tlog_proto::AggregationNumber;
use tlog_store::HeadSlot;
use tokio::time::{Instant, sleep_until};

use crate::read::Located;
use crate::survey::{StoreSet, Survey};

/// At least so long the others are waited for.
const LEAST_DELAY: Duration = Duration::from_millis(50);

impl StoreSet {
    /// The same as [`StoreSet::heads`] from as many stores as tell what was acknowledged, and from the others if they answer about
    /// as soon; those that do not are shown as out of reach. Whoever does not find what must be there asks for all of them.
    pub async fn heads_soon(
        &self,
        survey: &Survey,
        range: RangeInclusive<AggregationNumber>,
    ) -> Vec<Located> {
        let mut answers: Vec<Option<Vec<(AggregationNumber, HeadSlot)>>> = vec![None; self.stores().len()];
        let heads_of = async |store| (store, self.heads_of(survey, store, range.clone()).await);
        let mut waiting: FuturesUnordered<_> = self.reading_order(survey).into_iter().map(heads_of).collect();
        let enough = self.quorums().reading().max(self.quorums().data());
        let (mut counted, mut until) = (0, None);
        loop {
            let late = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = waiting.next() => match answer {
                    Some((store, answer)) => {
                        counted += usize::from(answer.is_some());
                        if let Some(slot) = answers.get_mut(store) {
                            *slot = answer;
                        }
                        if counted >= enough {
                            until.get_or_insert_with(|| Instant::now() + self.health().delay().max(LEAST_DELAY));
                        }
                    }
                    None => break,
                },
                () = late => break,
            }
        }
        drop(waiting);
        self.locate(survey, range.clone(), answers)
    }
}
