//! What a log says about itself: marks and checkpoints, found from the newest back, each by way of the one after it.

use std::collections::HashSet;

use tlog_codec::{Kind, Mark, MarkName, Opener, Record, VdiskKeys};
use tlog_proto::{AggregationNumber, Timestamp, VdiskId};
use tlog_quorum::HeadCandidate;

use crate::history::HistoryError;
use crate::reader::LogReader;
use crate::walk::Forward;

/// A record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFound {
    /// Its place in the log.
    pub number: AggregationNumber,
    /// When it was stored, by the server's clock.
    pub stored_at: Timestamp,
    /// What it says.
    pub record: Record,
}

/// The records of a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The aggregation that has it, or that leads to it, is lost.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// It does not open: the key is not there, or is not the right one; or a later version wrote it.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Open {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
}

/// The records of a log from the newest to the oldest that is kept. One read of heads for each.
pub struct Records {
    reader: LogReader,
    opener: Opener,
    next: Option<AggregationNumber>,
}

impl LogReader {
    /// What the log says about itself, newest first.
    pub fn records(&self, keys: &VdiskKeys) -> Records {
        let last = (!self.extent().is_empty()).then_some(self.extent().last);
        Records { reader: self.clone(), opener: Opener::new(keys.clone()), next: last }
    }

    /// The marks that count, by name: of several with one name the newest, unless it was removed.
    pub async fn marks(&self, keys: &VdiskKeys) -> Result<Vec<Mark>, RecordsError> {
        let mut seen: HashSet<MarkName> = HashSet::new();
        let mut marks = Vec::new();
        let mut records = self.records(keys);
        while let Some(found) = records.next().await? {
            match found.record {
                Record::Mark(mark) if seen.insert(mark.name.clone()) => marks.push(mark),
                Record::MarkRemoved(name) => drop(seen.insert(name)),
                Record::Mark(_) | Record::Checkpoint(_) => {}
            }
        }
        marks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(marks)
    }

    /// The record that an aggregation is; none where it is something else.
    pub(crate) async fn record_at(
        &self,
        keys: &VdiskKeys,
        number: AggregationNumber,
    ) -> Result<Option<Record>, RecordsError> {
        let found = self.head_at(number).await?;
        if found.head.header.kind != Kind::Record {
            return Ok(None);
        }
        let failed = |source| RecordsError::Open { vdisk: self.vdisk().clone(), number, source };
        Opener::new(keys.clone()).record(&found.head).map(Some).map_err(failed)
    }

    /// The head of one aggregation of the log, as far as the chain around it decides which one that is.
    pub(crate) async fn head_at(&self, number: AggregationNumber) -> Result<HeadCandidate, HistoryError> {
        let found = Forward::soon(self.clone(), number, number).next().await.into_iter().next();
        let (chosen, conditions) = found.map_or((None, Vec::new()), |found| (found.chosen, found.conditions));
        match chosen {
            Some(chosen) => Ok(chosen),
            None => Err(self.lost([number].into_iter().collect(), &conditions).await),
        }
    }
}

impl Records {
    /// All that are left have numbers no higher than this; none where none is left.
    pub(crate) fn no_higher_than(&self) -> Option<AggregationNumber> {
        self.next.filter(|number| *number >= self.reader.extent().first)
    }

    /// The next older one; none where there is no more.
    pub async fn next(&mut self) -> Result<Option<RecordFound>, RecordsError> {
        while let Some(number) = self.no_higher_than() {
            let HeadCandidate { head, .. } = self.reader.head_at(number).await?;
            self.next = head.header.record_before();
            // What is said in the clear is proven by what is sealed; where records are is believed no sooner.
            let failed = |source| RecordsError::Open { vdisk: self.opener.vdisk().clone(), number, source };
            if head.header.kind == Kind::Record {
                let record = self.opener.record(&head).map_err(failed)?;
                return Ok(Some(RecordFound { number, stored_at: head.header.sealed_at, record }));
            }
            self.opener.manifest(&head).map_err(failed)?;
        }
        Ok(None)
    }
}
