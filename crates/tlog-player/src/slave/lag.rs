//! How far a slave is behind its log.

use tlog_codec::Kind;
use tlog_proto::LogPosition;
use tlog_store::slave::SlavePosition;

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
    // The aggregation that it is in, unless it has all of that; then the next one that has writes.
    let mut history = reader.history_of(position.point.aggregation.max(first)..=last);
    let mut oldest = None;
    while oldest.is_none()
        && newest.is_some_and(|newest| !holds_all(position, &newest))
        && let Some(infos) = history.next_batch().await?
    {
        let lacks = |info: &&AggregationInfo| info.kind == Kind::Blocks && !holds_all(position, info);
        oldest = infos.iter().find(lacks).copied();
    }
    Ok(Known { last: newest, oldest })
}

/// Whether there is no write in an aggregation, or before it, that the slave lacks.
fn holds_all(position: &SlavePosition, info: &AggregationInfo) -> bool {
    if info.kind == Kind::Blocks {
        return (info.number, info.blocks) <= position.point.place();
    }
    let last = LogPosition { generation: info.generation, sequence: info.last_sequence };
    position.last.is_some_and(|held| held.position >= last)
}

/// How far a position is behind; none where the log is not known to reach it.
pub(crate) fn lag(known: &Known, position: SlavePosition) -> Option<SlaveLag> {
    let Some(last) = known.last else { return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() }) };
    if holds_all(&position, &last) {
        return Some(SlaveLag { blocks: Some(0), ..SlaveLag::default() });
    }
    let oldest = known.oldest.filter(|oldest| !holds_all(&position, oldest))?;
    let end = (last.generation, last.last_sequence.0);
    let blocks = match position.last.map(|last| last.position) {
        Some(at) if at.generation == end.0 => Some(end.1.saturating_sub(at.sequence.0)),
        _ if oldest.generation == end.0 => Some((end.1 + 1).saturating_sub(oldest.first_sequence.0)),
        _ => None,
    };
    let aggregations = (last.number.0 + 1).saturating_sub(oldest.number.0);
    Some(SlaveLag { aggregations, blocks, since: Some(oldest.sealed_at) })
}
