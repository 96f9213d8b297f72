//! Going on where an existing server's syncer has stopped: it leaves a sequence and nothing else.

use tlog_proto::{Generation, LogPosition, Sequence};
use tlog_store::slave::{LastWrite, SlavePoint, SlavePosition};

use super::follow::FollowError;
use super::needs_resync::{LegacyFault, NeedsResync};
use crate::history::HistoryError;
use crate::reader::LogReader;

/// The one write of the log that has a sequence. An error where none has, or several, or that cannot be told.
///
/// Existing syncers write blocks first and the sequence later, so that blocks may be those of later writes; applying from the
/// sequence on then steps them back, until the log has come to where that syncer was.
pub(crate) async fn place_of(reader: &LogReader, sequence: Sequence) -> Result<SlavePosition, FollowError> {
    let fault = |why| NeedsResync::LegacyPosition { sequence, why };
    if reader.extent().first.0 > 1 {
        return Err(fault(LegacyFault::Pruned).into());
    }
    let mut found = None;
    let mut history = reader.history_of(reader.extent().first..=reader.extent().last);
    while let Some(infos) = history.next_batch().await? {
        for info in infos.iter().filter(|i| (i.first_sequence..=i.last_sequence).contains(&sequence)) {
            let blocks = sequence.0 - info.first_sequence.0 + 1;
            let point = SlavePoint { aggregation: info.number, blocks: blocks as u32, id: info.id };
            let position = LogPosition { generation: info.generation, sequence };
            let last = LastWrite { position, timestamp: info.newest_timestamp };
            if found.replace(SlavePosition { point, last: Some(last) }).is_some() {
                return Err(fault(LegacyFault::Ambiguous).into());
            }
        }
    }
    match (found, reader.before().chain()) {
        (Some(found), None) => Ok(found),
        (None, None) => Err(fault(LegacyFault::Unknown).into()),
        // A sequence of format 2 may be one of format 1 as well.
        (Some(_), Some(_)) => Err(fault(LegacyFault::Ambiguous).into()),
        (None, Some(chain)) => {
            let newest = reader.fetch_link(chain.newest).await.map_err(HistoryError::from)?;
            let last = newest.aggregation.blocks.last().filter(|block| block.sequence == sequence);
            let last = last.ok_or_else(|| fault(LegacyFault::WithinFormat1))?;
            let position = LogPosition { generation: Generation(1), sequence };
            let last = LastWrite { position, timestamp: last.timestamp };
            let point = SlavePoint { id: chain.newest, ..SlavePoint::START };
            Ok(SlavePosition { point, last: Some(last) })
        }
    }
}
