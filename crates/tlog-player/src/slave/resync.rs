//! Filling a slave anew from its log, unless what it holds may be the last copy of something.

use tlog_codec::VdiskKeys;
use tlog_proto::{AggregationId, AggregationNumber, LogPosition};
use tlog_store::slave::{LastWrite, SlaveMark, SlavePoint};

use super::adopt;
use super::cluster::{SlaveCluster, SlaveState};
use super::follow::{FollowError, Follower};
use super::needs_resync::{LegacyFault, NeedsResync};
use super::restore::{
    SlaveRestoreError, SlaveRestoreOptions, SlaveRestoreSummary, restore_to_slave, target_of,
};
use super::standing::Standing;
use crate::disk_state::ReadOptions;
use crate::history::AggregationInfo;
use crate::moment::Moment;
use crate::reader::LogReader;
use crate::restore::RestoreProgress;

/// Fills a slave anew with the newest state of its disk, whatever is there, so that a syncer can go on. Where a restore of another moment
/// was interrupted it is finished instead: the syncer brings the rest. Unless the options say otherwise it refuses a slave that is
/// stopped, or may have been, and one that holds what the log lacks.
pub async fn resync_slave(
    reader: &LogReader,
    keys: &VdiskKeys,
    slave: &SlaveCluster,
    read: &ReadOptions,
    options: &SlaveRestoreOptions,
    progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<SlaveRestoreSummary, SlaveRestoreError> {
    let options = SlaveRestoreOptions { overwrite: true, ..*options };
    let state = slave.state().await?;
    refuse_last_copy(reader, keys, slave, &state, &options).await?;
    let interrupted = match state.mark() {
        SlaveMark::Restoring(restoring) => Some(restoring.target),
        SlaveMark::Running | SlaveMark::Stopped => None,
    };
    let again = interrupted.and_then(|target| target.last).map(|last| Moment::Sequence {
        generation: Some(last.position.generation),
        sequence: last.position.sequence,
    });
    if let Some(moment) = again
        && let Ok(state) = reader.disk_state(keys, moment, read).await
        && Some(target_of(&state)) == interrupted
    {
        return restore_to_slave(reader, keys, &state, slave, &options, progress).await;
    }
    let state = reader.disk_state(keys, Moment::Newest, read).await?;
    restore_to_slave(reader, keys, &state, slave, &options, progress).await
}

/// Fails where what the slave holds may be the last copy of something, and nobody said that it may go.
async fn refuse_last_copy(
    reader: &LogReader,
    keys: &VdiskKeys,
    slave: &SlaveCluster,
    state: &SlaveState,
    options: &SlaveRestoreOptions,
) -> Result<(), SlaveRestoreError> {
    let (vdisk, blocks) = (slave.vdisk().clone(), state.blocks());
    if blocks == 0 {
        return Ok(());
    }
    let standing = state.standing();
    if let Standing::NeedsResync(
        reason @ (NeedsResync::MetadataLost { .. } | NeedsResync::BlocksWithoutPosition { .. }),
    ) = &standing
        && !options.nobody_uses_it
    {
        return Err(SlaveRestoreError::MayBeInUse { vdisk, blocks, reason: Box::new(reason.clone()) });
    }
    if options.discard {
        return Ok(());
    }
    // A stopped one is refused anyway, unless the caller has said more than this.
    let lacking = match standing {
        Standing::Stopped | Standing::Restoring(_) => None,
        Standing::Legacy { sequence, .. } => match adopt::place_of(reader, sequence).await {
            Err(FollowError::NoWayOn(
                reason @ NeedsResync::LegacyPosition { why: LegacyFault::Unknown, .. },
            )) => Some(reason),
            Ok(_) | Err(FollowError::NoWayOn(_)) => None,
            Err(error) => return Err(error.into()),
        },
        _ => lacking(reader, keys, state).await?,
    };
    let Some(reason) = lacking else { return Ok(()) };
    let slave = state.position().and_then(|position| position.last);
    Err(SlaveRestoreError::WouldDiscard {
        vdisk,
        reason: Box::new(reason),
        slave,
        log: end_of(reader).await?,
    })
}

/// How the log is known not to have what was applied to the slave; none where it has, or that is not known.
async fn lacking(
    reader: &LogReader,
    keys: &VdiskKeys,
    state: &SlaveState,
) -> Result<Option<NeedsResync>, FollowError> {
    let parts = state.parts.iter().filter_map(|(_, part)| part.part.as_ref()?.applied);
    let points = parts.chain(state.position().map(|position| position.point));
    let Some(latest) = points.max_by_key(SlavePoint::place) else { return Ok(None) };
    let SlavePoint { aggregation, id: expected, .. } = latest;
    if aggregation.0 == 0 {
        let is_other = expected != AggregationId::BEFORE_FIRST && !reader.has_format1();
        let found = AggregationId::BEFORE_FIRST;
        return Ok(is_other.then_some(NeedsResync::OtherLog { aggregation, expected, found }));
    }
    match Follower::new(reader.clone(), keys.clone(), latest) {
        Ok(_) => {}
        Err(FollowError::NoWayOn(reason @ NeedsResync::SlaveAhead { .. })) => return Ok(Some(reason)),
        // It was certain once. Who goes without an uncertain end goes without that too.
        Err(FollowError::BeyondCertain { .. }) => {
            let last = reader.extent().last;
            return Ok(Some(NeedsResync::SlaveAhead { applied: aggregation, last }));
        }
        // What was removed is older than what the log has.
        Err(FollowError::NoWayOn(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    let found = info_of(reader, aggregation).await?.map(|info| info.id);
    let found = found.filter(|found| *found != expected);
    Ok(found.map(|found| NeedsResync::OtherLog { aggregation, expected, found }))
}

async fn info_of(
    reader: &LogReader,
    number: AggregationNumber,
) -> Result<Option<AggregationInfo>, FollowError> {
    Ok(reader.history_of(number..=number).collect().await?.last().copied())
}

async fn end_of(reader: &LogReader) -> Result<Option<LastWrite>, FollowError> {
    if reader.extent().is_empty() {
        return Ok(None);
    }
    let last = info_of(reader, reader.extent().last).await?;
    Ok(last.map(|last| LastWrite {
        position: LogPosition { generation: last.generation, sequence: last.last_sequence },
        timestamp: last.newest_timestamp,
    }))
}
