//! Parts of payloads, for a reader that can prove what it gets without the rest.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use tlog_codec::PayloadPart;
use tlog_proto::AggregationNumber;
use tokio::time::{Instant, timeout};

use crate::survey::{StoreSet, Survey};

/// How many times as long as for a shard is waited for parts; then all of the aggregation is read, from others.
const PARTS_PER_SHARD: u32 = 2;
const LEAST_WAIT: Duration = Duration::from_millis(50);

/// What one store is asked for: the parts, and which of all that is.
#[derive(Default)]
struct Asked {
    ranges: Vec<Range<u32>>,
    positions: Vec<usize>,
}

impl StoreSet {
    /// Parts of the data shards of an aggregation, in order; nothing of it is verified. None where a store that has one of them is out, slow or
    /// does not have it: then there are others for the whole of it.
    pub async fn payload_parts(
        &self,
        survey: &Survey,
        number: AggregationNumber,
        parts: &[PayloadPart],
    ) -> Option<Vec<Bytes>> {
        let mut asked: BTreeMap<usize, Asked> = BTreeMap::new();
        for (position, part) in parts.iter().enumerate() {
            let asked = asked.entry(part.shard).or_default();
            asked.ranges.push(part.bytes.clone());
            asked.positions.push(position);
        }
        let mut order = self.reading_order(survey);
        order.truncate(self.quorums().data());
        if !asked.keys().all(|store| order.contains(store)) {
            return None;
        }
        let answers = try_join_all(asked.iter().map(|(&store, Asked { ranges, .. })| async move {
            let begun = Instant::now();
            let port = self.stores().get(store).ok_or(())?;
            let wait = (self.health().delay() * PARTS_PER_SHARD).max(LEAST_WAIT);
            let answer = timeout(wait, port.payload_parts(self.vdisk(), number, ranges)).await;
            match answer {
                Ok(Ok(Some(parts))) if parts.len() == ranges.len() => {
                    self.health().answered(store, begun.elapsed());
                    Ok(parts)
                }
                Ok(Ok(_)) => Err(()), // it is there, and lacks this one
                Ok(Err(_)) | Err(_) => {
                    self.health().failed(store);
                    Err(())
                }
            }
        }));
        let answers = answers.await.ok()?;
        let mut read = vec![Bytes::new(); parts.len()];
        for (Asked { positions, .. }, answer) in asked.values().zip(answers) {
            for (&position, bytes) in positions.iter().zip(answer) {
                *read.get_mut(position)? = bytes;
            }
        }
        Some(read)
    }
}
