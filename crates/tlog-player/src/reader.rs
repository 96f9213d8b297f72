//! Opening a log for reading.

use std::fmt;
use std::sync::Arc;

use tlog_proto::{AggregationId, AggregationNumber, VdiskId};
use tlog_quorum::{
    Candidate, OtherShape, ReadError, ShardCondition, Standing, StoreSet, Survey, TooFewStores,
};
use tlog_store::NumberRanges;

use crate::extent::{Extent, determine};
use crate::history::HistoryError;
use crate::metric;

/// A vdisk's log as it was when it was opened for reading. What is written or pruned afterwards it does not see; open
/// another one for that. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    stores: StoreSet,
    survey: Arc<Survey>,
    extent: Extent,
    last_id: Option<AggregationId>,
}

/// A log cannot be opened for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// No store in reach knows the vdisk.
    UnknownVdisk {
        /// The vdisk.
        vdisk: VdiskId,
        /// Stores that do not answer, and why. With as many as did answer, an acknowledged write would be known.
        unreachable: Vec<String>,
    },
    /// Too few stores answer, or count, to know what was acknowledged.
    TooFewStores(TooFewStores),
    /// The log has other numbers of shards than it is read with.
    OtherShape(OtherShape),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::UnknownVdisk { vdisk, unreachable } => {
                write!(f, "vdisk {vdisk} is not known: nothing was ever logged for it on these stores")?;
                if !unreachable.is_empty() {
                    write!(f, " (not asked: {})", unreachable.join("; "))?;
                }
                write!(f, "; check its name and the storage settings")
            }
            OpenError::TooFewStores(error) => error.fmt(f),
            OpenError::OtherShape(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::TooFewStores(error) => Some(error),
            _ => None,
        }
    }
}

impl LogReader {
    /// Asks all stores what they have and finds where the log begins and ends. Needs no key, promises nothing and changes
    /// nothing. Data that is lost in the middle is no error here, but when it is read.
    pub async fn open(stores: StoreSet) -> Result<Self, OpenError> {
        let survey = stores.survey().await;
        stores.check_shape(&survey).map_err(OpenError::OtherShape)?;
        let stores = stores.as_written(&survey);
        survey.require(stores.quorums().reading()).map_err(OpenError::TooFewStores)?;
        if survey.is_new() && survey.identities().iter().all(Option::is_none) {
            let unreachable = survey.views.iter().filter_map(|view| view.answer.as_ref().err());
            return Err(OpenError::UnknownVdisk {
                vdisk: stores.vdisk().clone(),
                unreachable: unreachable.map(ToString::to_string).collect(),
            });
        }
        let (extent, last_id) = determine(&stores, &survey).await;
        tracing::debug!(vdisk = %stores.vdisk(), first = extent.first.0, last = extent.last.0,
            uncertain = extent.uncertain.is_some(), "log opened for reading");
        Ok(Self { stores, survey: Arc::new(survey), extent, last_id })
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        self.stores.vdisk()
    }

    /// Which aggregations the log has, and whether that is certain.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// The id of the last aggregation, which stands for everything before it; none where the log is empty, or no store in
    /// reach has it any more.
    pub fn last_id(&self) -> Option<AggregationId> {
        self.last_id.filter(|_| !self.extent.is_empty())
    }

    /// The stores that it reads from.
    pub fn stores(&self) -> &StoreSet {
        &self.stores
    }

    /// What the stores said when it was opened.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Addresses of stores that answer, but were wiped or replaced, and of those that do not answer.
    pub fn absent_stores(&self) -> Vec<(String, Standing)> {
        let absent = self.survey.views.iter().filter(|view| view.standing != Standing::Member);
        absent.map(|view| (view.address.clone(), view.standing)).collect()
    }

    /// Reads enough shards of an aggregation of the log. Asks the stores once more before it gives up: one may be back, and
    /// another may have been pruned.
    pub(crate) async fn fetch(
        &self,
        number: AggregationNumber,
        id: AggregationId,
    ) -> Result<Candidate, Unreadable> {
        let read = match self.stores.aggregation(&self.survey, number, id).await {
            Ok(candidate) => candidate,
            Err(error) => {
                tracing::warn!(vdisk = %self.vdisk(), number = number.0, %error, "asking the stores again");
                metric::read_repeated();
                let survey = self.stores.survey().await;
                if survey.first() > number {
                    return Err(Unreadable::Pruned { first: survey.first() });
                }
                self.stores.aggregation(&survey, number, id).await.map_err(Unreadable::Lost)?
            }
        };
        let payloads = read.payloads.iter().flatten();
        metric::aggregation_read(payloads.map(|payload| payload.len() as u64).sum());
        if read.payloads.iter().take(read.head.header.redundancy.data()).any(Option::is_none) {
            metric::aggregation_made_up();
        }
        Ok(read)
    }

    /// The error for numbers that no store in reach has the right head of any more, by what was found under the first.
    pub(crate) async fn lost(&self, numbers: NumberRanges, conditions: &[ShardCondition]) -> HistoryError {
        let first_lost = numbers.first().unwrap_or_default();
        let first = self.stores.survey().await.first();
        if first > first_lost {
            return HistoryError::Pruned { vdisk: self.vdisk().clone(), first };
        }
        metric::data_lost(numbers.count());
        let source = self.stores.unreadable(first_lost, &[], conditions);
        HistoryError::DataLost { vdisk: self.vdisk().clone(), numbers, source }
    }
}

/// Why an aggregation could not be fetched.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// Too few shards.
    Lost(ReadError),
    /// Removed since the log was opened.
    Pruned {
        /// Lowest number that is kept now.
        first: AggregationNumber,
    },
}
