//! How far a slave is behind its log.

use tlog_store::slave::{SlavePoint, SlavePosition};

use super::status::SlaveLag;
use crate::history::{AggregationInfo, HistoryError};
use crate::reader::LogReader;

/// What is known of the log, to tell how far the slave is behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its last aggregation; none where it is empty.
    pub(crate) last: Option<AggregationInfo>,
    /// The first aggregation of which the slave lacks something.
    pub(crate) oldest: Option<AggregationInfo>,
}

/// How far a slave that holds everything up to a position is behind a log. For whoever has no syncer to ask.
pub async fn lag_behind(reader: &LogReader, position: &SlavePosition) -> Result<SlaveLag, HistoryError> {
    let known = known_of(reader, position).await?;
    Ok(lag(&known, *position).unwrap_or_default())
}

/// What is to be known of a log to tell how far a slave is behind.
pub(crate) async fn known_of(reader: &LogReader, position: &SlavePosition) -> Result<Known, HistoryError> {
    let (first, last) = (reader.extent().first, reader.extent().last);
    let info = async |number| {
        let infos = reader.history_of(number..=number).collect().await;
        infos.map(|infos| infos.last().copied())
    };
    let newest = if reader.extent().is_empty() { None } else { info(last).await? };
    // The aggregation that it is in, unless it has all of that.
    let mut oldest = None;
    for number in [position.point.aggregation, position.point.aggregation.next(), first] {
        if oldest.is_none() && number >= first && number <= last {
            oldest = info(number).await?.filter(|info| !holds_all(position.point, info));
        }
    }
    Ok(Known { last: newest, oldest })
}

fn holds_all(point: SlavePoint, info: &AggregationInfo) -> bool {
    (info.number, info.blocks) <= point.place()
}

/// How far a position is behind; none where the log is not known to reach it.
pub(crate) fn lag(known: &Known, position: SlavePosition) -> Option<SlaveLag> {
    let Some(last) = known.last else { return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() }) };
    if holds_all(position.point, &last) {
        return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() });
    }
    let oldest = known.oldest.filter(|oldest| !holds_all(position.point, oldest))?;
    let end = (last.generation, last.last_sequence.0);
    let blocks = match position.last.map(|last| last.position) {
        Some(at) if at.generation == end.0 => Some(end.1.saturating_sub(at.sequence.0)),
        _ if oldest.generation == end.0 => Some((end.1 + 1).saturating_sub(oldest.first_sequence.0)),
        _ => None,
    };
    let aggregations = (last.number.0 + 1).saturating_sub(oldest.number.0);
    Some(SlaveLag { aggregations, blocks, since: Some(oldest.sealed_at) })
}
