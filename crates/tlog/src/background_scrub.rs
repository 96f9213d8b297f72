//! The scrub that a server does by itself, from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlog_flusher::ScrubReport;
use tlog_proto::VdiskId;

use crate::storage::FlusherStorage;
use crate::storages::{StorageInUse, Storages};

/// What a scrub could not put right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Findings {
    /// Why nothing could be looked at.
    refused: Option<String>,
    /// Aggregations of which too few whole shards are left.
    unreadable: String,
    /// Stores that do not hold all their shards, and why.
    incomplete: Vec<String>,
}

impl Findings {
    fn of(report: &ScrubReport) -> Self {
        let ranges: Vec<String> = report
            .unreadable
            .iter()
            .map(|range| match (range.start(), range.end()) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first} to {last}"),
            })
            .collect();
        let incomplete = report.stores.iter().filter_map(|store| {
            let left = (store.missing.count() + store.damaged.count()).saturating_sub(store.refilled.count());
            let error = store.error.as_deref().unwrap_or("no reason given");
            match store.counted {
                false => Some(format!("{} could not be looked at: {error}", store.address)),
                true if left > 0 => Some(format!("{} lacks {left} shards: {error}", store.address)),
                true => None,
            }
        });
        Self { refused: None, unreadable: ranges.join(", "), incomplete: incomplete.collect() }
    }
}

/// Scrubs every log that the stores know, one after the other, again and again: `every` from the end of one round to the
/// beginning of the next. Reads at most `rate` bytes per second. Never opens a log for writing, which would take it away
/// from another server; a store that came back empty is filled by the log's writer.
///
/// What cannot be repaired is said once, and again when it changed.
pub async fn run(storages: Storages, every: Duration, rate: u64) {
    let mut told: BTreeMap<VdiskId, Findings> = BTreeMap::new();
    loop {
        tokio::time::sleep(every).await;
        let logs = logs(&storages).await;
        told.retain(|vdisk, _| logs.iter().any(|(known, _)| known == vdisk));
        let began = Instant::now();
        let mut looked_at = 0u64;
        for (vdisk, storage) in &logs {
            let report = storage.look_over(vdisk, rate).await;
            looked_at += report.as_ref().map_or(0, |report| report.aggregations);
            let findings = match &report {
                Ok(report) => Findings::of(report),
                Err(error) => Findings { refused: Some(error.to_string()), ..Findings::default() },
            };
            for store in
                report.iter().flat_map(|report| &report.stores).filter(|store| !store.refilled.is_empty())
            {
                tracing::warn!(%vdisk, store = store.address, put_back = store.refilled.count(), damaged = store.damaged.count(),
                    "a scrub put back shards that were missing or damaged; damage means that its disk returns other bytes than were written");
            }
            tell(vdisk, &findings, told.get(vdisk));
            let bad = u32::from(!findings.unreadable.is_empty());
            metrics::gauge!("tlog_scrub_data_lost", "vdisk" => vdisk.to_string()).set(bad);
            if findings == Findings::default() {
                told.remove(vdisk);
            } else {
                told.insert(vdisk.clone(), findings);
            }
        }
        metrics::counter!("tlog_scrub_rounds_total").increment(1);
        tracing::info!(
            vdisks = logs.len(),
            aggregations = looked_at,
            seconds = began.elapsed().as_secs(),
            with_findings = told.len(),
            "scrubbed all logs"
        );
    }
}

/// Every log that the stores know, where the vdisk's log is.
async fn logs(storages: &Storages) -> Vec<(VdiskId, Arc<FlusherStorage>)> {
    let mut logs = Vec::new();
    for StorageInUse { cluster, storage, .. } in storages.all().await {
        let known = storage.inventory().await.vdisks.into_iter().filter(|(_, known)| known.logs > 0);
        // Clusters may have stores in common; the shards of a log are in the right places on its own.
        let here = known.map(|(vdisk, _)| vdisk).filter(|vdisk| storages.is_on(vdisk, cluster.as_deref()));
        logs.extend(here.map(|vdisk| (vdisk, Arc::clone(&storage))));
    }
    logs
}

fn tell(vdisk: &VdiskId, now: &Findings, before: Option<&Findings>) {
    if before == Some(now) || (before.is_none() && *now == Findings::default()) {
        return;
    }
    if *now == Findings::default() {
        tracing::info!(%vdisk, "a scrub finds every store whole again");
    }
    if let Some(refused) = &now.refused {
        tracing::warn!(%vdisk, error = refused, "the log could not be scrubbed");
    }
    if !now.incomplete.is_empty() {
        tracing::warn!(%vdisk, stores = ?now.incomplete, "a scrub could not put everything back");
    }
    if !now.unreadable.is_empty() {
        tracing::error!(%vdisk, aggregations = now.unreadable, "DATA IS LOST: of these too few whole shards are left");
    }
}

#[cfg(test)]
mod tests {
    use tlog_flusher::StoreScrub;
    use tlog_store::NumberRanges;

    use super::*;

    #[test]
    fn findings_say_what_is_left_after_repair_and_nothing_where_all_is_well() {
        let numbers = |numbers: &[u64]| -> NumberRanges {
            numbers.iter().map(|&number| tlog_proto::AggregationNumber(number)).collect()
        };
        let store = |missing: &[u64], refilled: &[u64]| StoreScrub {
            address: "redis://a:1/0".to_owned(),
            counted: true,
            missing: numbers(missing),
            refilled: numbers(refilled),
            ..StoreScrub::default()
        };
        let report = |stores, unreadable: &[u64]| ScrubReport {
            aggregations: 9,
            stores,
            unreadable: numbers(unreadable),
        };
        assert_eq!(Findings::of(&report(vec![store(&[1, 2], &[1, 2])], &[])), Findings::default());
        let bad = Findings::of(&report(vec![store(&[1, 2], &[2])], &[4, 5, 7]));
        assert_eq!(bad.unreadable, "4 to 5, 7");
        assert_eq!(bad.incomplete, ["redis://a:1/0 lacks 1 shards: no reason given"]);
    }
}
