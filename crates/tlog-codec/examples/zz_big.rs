#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]
#[path = "../tests/support/mod.rs"]
mod support;
use support::*;
use tlog_codec::*;
fn main() {
    for (len, count) in [((1usize << 29) - 1, 1u64), (1 << 28, 3), (16 << 20, 60), (300 << 20, 3), (1 << 10, 200_000), (1, 2_000_000), (1, 11_000_000)] {
        let mut data = noise(3, len.min(1 << 20)); data = data.repeat(len / data.len() + 1); data.truncate(len);
        let data = bytes::Bytes::from(data);
        let first = set(1, data.clone());
        let blocks: Vec<_> = (1..=count).map(|i| tlog_proto::Block { sequence: tlog_proto::Sequence(i), ..first.clone() }).collect();
        let start = std::time::Instant::now();
        match sealer(4, 2).seal(request(&blocks)) {
            Ok(sealed) => {
                let shards = stored(sealed);
                let mut p = payloads(&shards); p[0] = None; p[3] = None;
                let head = parse(&shards[1]);
                head.verify_payload(&shards[1].payload).unwrap();
                let same = opener().blocks(&head, &p).unwrap() == blocks;
                println!("{len} x {count}: {same} {:?} head {} payload {}", start.elapsed(), shards[0].head.len(), shards[0].payload.len());
            }
            Err(e) => println!("{len} x {count}: {e} {:?}", start.elapsed()),
        }
    }
}
