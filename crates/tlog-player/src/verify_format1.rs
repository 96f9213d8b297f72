//! Whether the part of a log that was written in format 1 is still there.

use tlog_quorum::{Link, LinkCondition, LinkError, LinkRead, StoreSet};

use crate::format1::Format1Error;
use crate::reader::LogReader;

/// What a verification found in format 1. There every byte of every shard is read, and the hash of every block checked: nothing
/// less tells anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format1Report {
    /// Aggregations that could be read.
    pub aggregations: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Aggregations that lack the shard of some store, or have a damaged one, and can be read all the same.
    pub degraded: u64,
    /// The stores, in order.
    pub stores: Vec<Format1StoreReport>,
    /// The aggregation that cannot be read; with it everything before it is lost, and was not looked at.
    pub broken: Option<Format1Error>,
    /// Newer aggregations that may have been acknowledged and cannot be read.
    pub doubts: Vec<LinkError>,
    /// So many more of the stores may be lost, whichever, and everything can still be read. None where something is lost already.
    pub losses_survived: Option<usize>,
}

/// What one store has of the aggregations of format 1 that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format1StoreReport {
    /// What a person calls the store.
    pub address: String,
    /// Shards that it holds whole.
    pub held: u64,
    /// Shards that it lacks.
    pub missing: u64,
    /// Shards that are not what was written.
    pub damaged: u64,
    /// Shards that it did not answer about.
    pub unread: u64,
    /// What it said then.
    pub error: Option<String>,
}

impl Format1Report {
    /// Whether every store holds its shard of everything.
    pub fn is_whole(&self) -> bool {
        self.broken.is_none() && self.doubts.is_empty() && self.degraded == 0
    }

    fn new(set: &StoreSet, doubts: &[LinkError]) -> Self {
        let stores = set.stores().iter().map(|store| Format1StoreReport {
            address: store.address().to_string(),
            ..Format1StoreReport::default()
        });
        Self {
            aggregations: 0,
            blocks: 0,
            degraded: 0,
            stores: stores.collect(),
            broken: None,
            doubts: doubts.to_vec(),
            losses_survived: None,
        }
    }

    fn handle(&mut self, link: &Link, data_shards: usize) {
        self.aggregations += 1;
        self.blocks += link.aggregation.blocks.len() as u64;
        self.degraded += u64::from(link.held() < link.conditions.len());
        let spare = link.held().saturating_sub(data_shards);
        self.losses_survived = Some(self.losses_survived.map_or(spare, |least| least.min(spare)));
        for (store, condition) in self.stores.iter_mut().zip(&link.conditions) {
            match condition {
                LinkCondition::Held => store.held += 1,
                LinkCondition::Missing => store.missing += 1,
                LinkCondition::Damaged => store.damaged += 1,
                LinkCondition::NotAsked => store.unread += 1,
                LinkCondition::Unreachable(error) => {
                    store.unread += 1;
                    store.error.get_or_insert_with(|| error.clone());
                }
            }
        }
    }
}

impl LogReader {
    /// Looks at every aggregation of format 1 on every store; none where the log has no such part. An error is only that its keys
    /// are missing. `progress` is told how many were looked at.
    pub(crate) async fn verify_format1(
        &self,
        mut progress: impl FnMut(&Format1Report) + Send,
    ) -> Result<Option<Format1Report>, Format1Error> {
        let Some(mut walk) = self.format1_walk(LinkRead::All)? else { return Ok(None) };
        let mut report = Format1Report::new(self.stores(), self.format1_doubts());
        let data_shards = self.stores().quorums().data();
        loop {
            match walk.next().await {
                Ok(Some(link)) => report.handle(&link, data_shards),
                Ok(None) => break,
                Err(error) => {
                    report.broken = Some(error);
                    report.losses_survived = None;
                    break;
                }
            }
            progress(&report);
        }
        Ok(Some(report))
    }
}
