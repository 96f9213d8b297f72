//! What the log holds, against what was acknowledged.

use anyhow::bail;
use tlog_player::{OpenError, ReplayOptions};
use tlog_proto::{AggregationNumber, Operation, VdiskId};

use super::data::Content;
use super::load::Acknowledged;
use crate::reading;
use crate::settings::Settings;

/// Reads a log back and compares every block with what was sent: the same sequences, in order, each once, at the same index and
/// with the same bytes, and nothing else. `after` is the last aggregation that was there before. Answers how many blocks there are.
pub(crate) async fn check(
    settings: &Settings,
    acknowledged: &Acknowledged,
    content: &Content,
    after: AggregationNumber,
) -> anyhow::Result<u64> {
    let Acknowledged { vdisk, number, first, blocks } = acknowledged;
    let reader = reading::open(settings, vdisk).await?;
    let extent = reader.extent();
    if let Some(end) = &extent.uncertain {
        bail!("vdisk {vdisk}: the end of its log is uncertain: {} cannot be asked", end.missing.join(", "));
    }
    let keys = reading::keys_of(settings, vdisk)?;
    let mut replay =
        reader.replay(extent.first.max(after.next())..=extent.last, &keys, ReplayOptions::default());
    let mut found = 0;
    while let Some(replayed) = replay.next().await? {
        for block in &replayed.blocks {
            // What another client had sent before and was flushed when this one came is not its own.
            if found == 0 && block.sequence < *first {
                continue;
            }
            let (index, data) = content.write(*number, found);
            if found == *blocks {
                bail!("vdisk {vdisk}: sequence {} is in the log and was not sent", block.sequence);
            }
            if block.sequence.0 != first.0 + found {
                let expected = first.0 + found;
                bail!("vdisk {vdisk}: the log has sequence {} where {expected} follows", block.sequence);
            }
            if block.index != index || block.operation != Operation::Set || block.data != data {
                bail!("vdisk {vdisk}: sequence {} is not in the log as it was sent", block.sequence);
            }
            found += 1;
        }
    }
    if found != *blocks {
        bail!("vdisk {vdisk}: {blocks} blocks were acknowledged as durable, and the log has {found} of them");
    }
    Ok(found)
}

/// The last aggregation of a vdisk's log; 0 where there is no log yet.
pub(crate) async fn last_aggregation(
    settings: &Settings,
    vdisk: &VdiskId,
) -> anyhow::Result<AggregationNumber> {
    match reading::try_open(settings, vdisk).await? {
        Ok(reader) => Ok(reader.extent().last),
        Err(OpenError::UnknownVdisk { .. }) => Ok(AggregationNumber(0)),
        Err(error) => Err(error.into()),
    }
}
