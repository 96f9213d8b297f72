//! What a server shows of its stores and of the logs that are open.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tlog_flusher::LogStatus;
use tlog_flusher::format1::Format1Status;
use tlog_proto::LogPosition;
use tlog_server::VdiskStatus;
use tlog_store::{NumberRanges, ShardStore};

use crate::moment;
use crate::open_log::AnyStatus;

/// How long a store may take to say whether it is durable, when somebody looks at the status.
const ASK_DURABILITY: Duration = Duration::from_secs(1);

pub(crate) async fn show_stores(stores: &[(Option<String>, Arc<dyn ShardStore>)]) -> Vec<Value> {
    let asked = stores.iter().map(|(cluster, store)| async move {
        let answer = tokio::time::timeout(ASK_DURABILITY, store.durability()).await;
        let (durability, why) = match answer {
            Ok(Ok(answer)) => (Some(answer.name()), answer.reason().map(str::to_owned)),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(_) => (None, Some("no answer".to_owned())),
        };
        json!({ "address": &*store.address(), "cluster": cluster, "durability": durability, "why": why })
    });
    join_all(asked).await
}

pub(crate) fn show_vdisk(vdisk: &VdiskStatus, log: Option<&AnyStatus>) -> Value {
    json!({
        "vdisk": vdisk.vdisk.as_str(),
        "open": vdisk.open,
        "peer": vdisk.peer.map(|peer| peer.to_string()),
        "received": vdisk.received.map(|sequence| sequence.0),
        "ordered": vdisk.ordered.map(show_position),
        "durable": vdisk.durable.map(show_position),
        "unflushed_bytes": vdisk.unflushed_bytes,
        "window_blocks": vdisk.window_blocks,
        "window_bytes": vdisk.window_bytes,
        "last_error": vdisk.last_error,
        "log": log.map(|log| match log {
            AnyStatus::Two(log) => show_log(log),
            AnyStatus::One(log) => show_format1(log),
        }),
    })
}

fn show_position(position: LogPosition) -> Value {
    json!({ "generation": position.generation.0, "sequence": position.sequence.0 })
}

fn show_log(log: &LogStatus) -> Value {
    let stores: Vec<Value> = log
        .stores
        .iter()
        .map(|store| {
            json!({
                "address": store.address,
                "state": store.state.name(),
                "out_since": store.out_since.map(moment::show),
                "out_for_seconds": store.out_for.map(|out_for| out_for.as_secs_f64()),
                "error": store.error,
                "missing": store.missing,
                "first_missing": store.first_missing.map(|number| number.0),
                "missing_bytes": store.missing_bytes,
                "unrepairable": ranges(&store.unrepairable),
                "unanswered_bytes": store.unanswered_bytes,
            })
        })
        .collect();
    json!({
        "format": 2,
        "epoch": log.epoch.0,
        "committed": log.committed.0,
        "in_flight": log.in_flight,
        "waiting_blocks": log.waiting_blocks,
        "losses_survived": log.losses_survived,
        "losses_survived_when_complete": log.losses_survived_when_complete,
        "behind": log.behind,
        "stores": stores,
    })
}

fn show_format1(log: &Format1Status) -> Value {
    let stores: Vec<Value> =
        log.stores.iter().map(|store| json!({ "address": store.address, "error": store.error })).collect();
    json!({
        "format": 1,
        "newest": log.newest.map(|id| id.to_string()),
        "stored": log.stored,
        "in_flight": usize::from(log.in_flight),
        "waiting_blocks": log.waiting_blocks,
        "losses_survived": log.losses_survived,
        "stores": stores,
    })
}

fn ranges(numbers: &NumberRanges) -> Vec<(u64, u64)> {
    numbers.iter().map(|range| (range.start().0, range.end().0)).collect()
}
