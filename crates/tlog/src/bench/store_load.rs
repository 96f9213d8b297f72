//! Shards into stores by the port that the server uses, without a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures::future::try_join_all;
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{Members, Shard, ShardStore, StartRecord};

use super::latency::Latencies;
use super::plain::PlainValues;

const EPOCH: Epoch = Epoch(1);

/// Appends as many values as shards to each store, so many of them at once on each. Answers how long it took until all were
/// answered, and how long each took. The head part has `head_bytes` of them.
pub(crate) async fn append(
    stores: &[Arc<dyn ShardStore>],
    values: &PlainValues,
    head_bytes: usize,
    in_flight: u64,
) -> anyhow::Result<(Duration, Latencies)> {
    let vdisk = VdiskId::new("bench-store")?;
    let mut members = Members { epoch: EPOCH, ..Members::default() };
    for store in stores {
        members.identities.push(store.promise(&vdisk, EPOCH).await?.identity);
    }
    let start = StartRecord { epoch: EPOCH, number: AggregationNumber(1) };
    for store in stores {
        store.start(&vdisk, start, &members).await?;
    }
    let begun = Instant::now();
    let tasks = stores.iter().flat_map(|store| {
        let next = Arc::new(AtomicU64::new(1));
        let (store, vdisk) = (Arc::clone(store), vdisk.clone());
        (0..in_flight.max(1)).map(move |_| {
            let (store, vdisk, next, values) =
                (Arc::clone(&store), vdisk.clone(), Arc::clone(&next), values.clone());
            let appending = tokio::spawn(append_some(store, vdisk, values, head_bytes, in_flight, next));
            async move { appending.await.context("what appends to a store broke")? }
        })
    });
    let mut latencies = Latencies::new()?;
    for some in try_join_all(tasks).await? {
        latencies.add_all(&some)?;
    }
    Ok((begun.elapsed(), latencies))
}

async fn append_some(
    store: Arc<dyn ShardStore>,
    vdisk: VdiskId,
    values: PlainValues,
    head_bytes: usize,
    in_flight: u64,
    next: Arc<AtomicU64>,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number > values.count {
            return Ok(latencies);
        }
        let mut payload: Bytes = values.value(number);
        let head = payload.split_to(head_bytes.min(payload.len()));
        let shard = Shard { epoch: EPOCH, id: AggregationId([1; 32]), head, payload };
        let committed = AggregationNumber(number.saturating_sub(in_flight));
        let begun = Instant::now();
        store.append(&vdisk, AggregationNumber(number), shard, committed).await?;
        latencies.add(begun.elapsed());
    }
}
