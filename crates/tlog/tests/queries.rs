//! What a log is asked with the real tool: which blocks differ, who wrote one, and which moments there are.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use serde_json::Value;
use support::Place;

const BLOCK: usize = 4096;

/// A log of four recordings, whose server was stopped, and the image at each.
struct Recorded {
    place: Place,
    images: Vec<Vec<u8>>,
    /// Last sequence of each recording.
    sequences: Vec<u64>,
}

impl Recorded {
    fn new() -> Self {
        let place = Place::new();
        let server = place.server(&[]);
        let (mut images, mut sequences) = (Vec::new(), Vec::new());
        let mut image: Vec<u8> = (0..40 * BLOCK).map(|at| (at / BLOCK) as u8 + 1).collect();
        let changes: [&[(usize, u8)]; 4] =
            [&[], &[(3, 200), (7, 0), (8, 201)], &[(3, 4), (9, 202)], &[(9, 203), (30, 0)]];
        for change in changes {
            for &(block, byte) in change {
                image[block * BLOCK..(block + 1) * BLOCK].fill(byte);
            }
            std::fs::write(place.path().join("disk.img"), &image).unwrap();
            let said = place.tlog_ok(&["record", "vda", "disk.img", "--server", &server.addr(), "--json"]);
            let said: Value = serde_json::from_str(&said).unwrap();
            sequences.push(said["last_sequence"].as_u64().unwrap());
            images.push(image.clone());
        }
        server.stop();
        Self { place, images, sequences }
    }

    fn seq(&self, recording: usize) -> String {
        format!("seq:{}", self.sequences[recording])
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let said = self.place.tlog_ok(&[arguments, &["--json"]].concat());
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn restored(&self, at: &str) -> Vec<u8> {
        self.place.tlog_ok(&["restore", "vda", "-o", "restored", "--force", "--at", at]);
        std::fs::read(self.place.path().join("restored")).unwrap()
    }
}

#[test]
fn the_blocks_that_differ_between_recordings_are_those_that_changed_in_the_image() {
    let log = Recorded::new();
    let list = |from: usize, to: usize| {
        let said =
            log.place.tlog_ok(&["diff", "vda", "--from", &log.seq(from), "--to", &log.seq(to), "--list"]);
        said.lines().map(|line| line.parse().unwrap()).collect::<Vec<usize>>()
    };
    for from in 0..4 {
        for to in 0..4 {
            let at = |recording: usize, block: usize| {
                log.images[recording][block * BLOCK..].chunks(BLOCK).next().unwrap()
            };
            let changed: Vec<usize> = (0..40).filter(|&block| at(from, block) != at(to, block)).collect();
            assert_eq!(list(from, to), changed, "from {from} to {to}");
        }
    }
    let said = &log.json(&["diff", "vda", "--from", &log.seq(0)])[0];
    assert_eq!((said["blocks"].as_u64(), said["cleared"].as_u64()), (Some(4), Some(2)), "{said}");
    assert_eq!(said["ranges"].to_string(), r#"[{"first":7,"last":9},{"first":30,"last":30}]"#);
    assert_eq!(said["bytes"], 2 * BLOCK);
    assert_eq!(said["to"]["sequence"], log.sequences[3]);
    let said = log.place.tlog_ok(&["diff", "vda", "--from", &log.seq(0)]);
    assert!(said.contains("4 blocks in 2 ranges differ") && said.ends_with("  7-9\n  30\n"), "{said}");
    let said = log.place.tlog_ok(&["diff", "vda", "--from", "now"]);
    assert!(said.contains("no block differs"), "{said}");
}

#[test]
fn who_wrote_a_block_is_told_newest_first() {
    let log = Recorded::new();
    let of = |arguments: &[&str]| log.json(&[&["blame", "vda"], arguments].concat());
    let shown = |writes: &[Value]| -> Vec<(String, u64)> {
        let one = |write: &Value| {
            (write["operation"].as_str().unwrap().to_owned(), write["length"].as_u64().unwrap())
        };
        writes.iter().map(one).collect()
    };
    let set = || ("set".to_owned(), BLOCK as u64);
    assert_eq!(shown(&of(&["--block", "3", "--all"])), [set(), set(), set()]);
    assert_eq!(shown(&of(&["--block", "30", "--all"])), [("delete".to_owned(), 0), set()]);
    assert_eq!(of(&["--block", "9", "--limit", "2"]).len(), 2);
    assert_eq!(of(&["--block", "40", "--all"]).len(), 0);
    let last = &of(&["--block", "9"])[0];
    assert!((log.sequences[2]..=log.sequences[3]).contains(&last["sequence"].as_u64().unwrap()), "{last}");
    assert_eq!(last, &of(&["--offset", &(9 * BLOCK + 17).to_string()])[0]);
    let then = &of(&["--block", "9", "--at", &log.seq(1)])[0];
    assert!(then["sequence"].as_u64().unwrap() <= log.sequences[0], "{then}");

    // The hash says which content: block 3 was written back.
    let hashes: Vec<Value> =
        of(&["--block", "3", "--all"]).iter().map(|write| write["hash_prefix"].clone()).collect();
    assert!(hashes[0] == hashes[2] && hashes[0] != hashes[1], "{hashes:?}");
    let said = log.place.tlog_ok(&["blame", "vda", "--block", "40"]);
    assert!(said.contains("never written"), "{said}");
    let said = log.place.tlog_ok(&["blame", "vda", "--block", "9"]);
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn every_moment_that_points_names_can_be_restored_as_it_is_named() {
    let log = Recorded::new();
    let points = log.json(&["points", "vda"]);
    let reasons = |point: &Value| -> Vec<String> {
        point["why"]
            .as_array()
            .unwrap()
            .iter()
            .map(|why| why["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(reasons(&points[0]).contains(&"beginning".to_owned()), "{points:?}");
    assert_eq!(reasons(points.last().unwrap()), ["end"]);
    // Another client made each recording, so that each but the last ends before another session.
    let ends: Vec<u64> = points
        .iter()
        .filter(|point| reasons(point).iter().any(|why| why == "before_session" || why == "end"))
        .map(|point| point["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(ends, log.sequences);
    for point in &points {
        let sequence = point["sequence"].as_u64().unwrap();
        let restored = log.restored(point["moment"].as_str().unwrap());
        if let Some(recording) = log.sequences.iter().position(|last| *last == sequence) {
            assert!(restored == log.images[recording], "{point}");
        }
    }
    let said = log.place.tlog_ok(&["points", "vda", "--since", "now"]);
    assert_eq!(said.lines().count(), 1, "the heading alone: {said}");
    let id = points[0]["id"].as_str().unwrap();
    assert!(log.restored(&format!("id:{id}")) == log.restored(points[0]["moment"].as_str().unwrap()));
    assert!(log.restored("newest") == log.images[3]);
}

#[test]
fn what_is_no_moment_of_the_log_is_an_error_that_says_what_is() {
    let log = Recorded::new();
    let check = |arguments: &[&str], words: &str| {
        let said = log.place.tlog_fails(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    };
    check(&["diff", "vda", "--from", "before-upgrade"], "has no mark \"before-upgrade\"");
    check(&["restore", "vda", "-o", "x", "--at", "before-upgrade"], "'tlog points vda'");
    check(&["blame", "vda", "--block", "1", "--at", "agg:999"], "not 999");
    check(&["diff", "vda", "--from", "gen:9/seq:1"], "in generation 9");
    check(
        &["blame", "vda", "--block", "1", "--at", &format!("id:{}", "ab".repeat(32))],
        "no aggregation of its log has id",
    );
    check(&["diff", "vda", "--from", "seq:x"], "is no place in a log");
    check(&["diff", "vda", "--from", "5m"], "did you mean '5m ago'?");
    check(&["points", "vda", "--since", "agg:1"], "is no moment");
    check(&["diff", "vda", "--from", "1970-01-02T00:00:00Z"], "is before its history");
    for arguments in
        [&["diff", "vda"][..], &["blame", "vda"], &["blame", "vda", "--block", "1", "--offset", "1"]]
    {
        assert_eq!(log.place.tlog(arguments).status.code(), Some(64), "{arguments:?}");
    }
}
