#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]
mod support;
use support::*;
use tlog_codec::*;
use tlog_proto::*;
#[test]
fn probe() {
    for seed in 1..40u64 {
        let n = noise(seed + 1000, 400);
        let long: String = n.iter().map(|b| (b'a' + b % 26) as char).take(128).collect();
        for name in [&long[..], &long[..40], "golden"] {
            for len in [1usize, 8, 40, 300] {
                let u = |a: usize| u64::from_le_bytes(n[a..a + 8].try_into().unwrap());
                let b = Block::set(Sequence(u(200)), BlockIndex::new(u(208) >> 1).unwrap(), Timestamp(u(216)), noise(seed, len).into());
                let blocks = [b];
                let s = Sealer::new(keys(name), Redundancy::new(1, 0).unwrap());
                let s = stored(s.seal(request(&blocks)).unwrap());
                let h = by_hand::Head::take_apart(&s[0].head);
                let p = h.number(by_hand::field::BODY_PLAIN) as i64; let d = p + 16 - h.number(by_hand::field::BODY_SEALED) as i64; if d < 45 || h.header[8] == 0 { println!("seed {seed} name {} len {len} m{} shrinks {d} of {p}", name.len(), h.header[8]); }
            }
        }
    }
}
