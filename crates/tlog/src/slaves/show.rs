//! Slaves as JSON, the same in the server's status and from `tlog slave status`.

use serde_json::{Value, json};
use tlog_player::slave::{SlaveLag, SlaveStatus, SlaveSyncState};
use tlog_store::slave::{Restoring, SlavePosition};

use super::{NoSyncer, ShownSlave};
use crate::moment;

/// One slave, as a server sees it.
pub fn show_slave(slave: &ShownSlave) -> Value {
    let mut shown = json!({ "vdisk": slave.vdisk.as_str(), "cluster": slave.cluster });
    let more = match &slave.syncer {
        Err(no) => json!({
            "state": no.kind(),
            "because": match no {
                NoSyncer::Unusable(why) | NoSyncer::LogAway(why) => Some(why),
                NoSyncer::Starting | NoSyncer::NoLog => None,
            },
        }),
        Ok(status) => show_status(status),
    };
    if let (Some(shown), Value::Object(more)) = (shown.as_object_mut(), more) {
        shown.extend(more);
    }
    shown
}

fn show_status(status: &SlaveStatus) -> Value {
    let SlaveStatus { state, position, blocks, bytes, lag } = status;
    let (since, because) = match state {
        SlaveSyncState::WaitingForSlave { since, because }
        | SlaveSyncState::WaitingForLog { since, because } => {
            (jiff::Timestamp::try_from(*since).ok().map(|since| since.to_string()), Some(because.clone()))
        }
        SlaveSyncState::NeedsResync(why) => (None, Some(why.to_string())),
        _ => (None, None),
    };
    json!({
        "state": state.kind(),
        "since": since,
        "because": because,
        "restoring": match state {
            SlaveSyncState::Restoring(restoring) => Some(show_restoring(restoring)),
            _ => None,
        },
        "position": position.as_ref().map(show_position),
        "lag": lag.as_ref().map(show_lag),
        "applied_blocks": blocks,
        "applied_bytes": bytes,
    })
}

/// How far a log is applied.
pub fn show_position(position: &SlavePosition) -> Value {
    let last = position.last;
    json!({
        "aggregation": position.point.aggregation.0,
        "blocks_of_it": position.point.blocks,
        "generation": last.map(|last| last.position.generation.0),
        "sequence": last.map(|last| last.position.sequence.0),
        "timestamp": last.map(|last| moment::show(last.timestamp)),
    })
}

/// How far a slave is behind.
pub fn show_lag(lag: &SlaveLag) -> Value {
    let since = lag.since.map(moment::show);
    json!({ "aggregations": lag.aggregations, "blocks": lag.blocks, "since": since })
}

/// A restore that is not complete.
pub fn show_restoring(restoring: &Restoring) -> Value {
    let (of, done) = restoring.aggregations;
    json!({ "to": show_position(&restoring.target), "aggregations": of, "aggregations_done": done, "blocks": restoring.blocks })
}
