//! The whole path with real processes: record, lose stores, restore any moment.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::{Place, Server, of_one_connection};
use tlog_client::{Client, Event};
use tlog_proto::{BlockIndex, VdiskId};

const BLOCK: usize = 4096;

/// A server, an image that changes, and what it looked like after each recording.
struct Story {
    place: Place,
    server: Option<Server>,
    image: Vec<u8>,
    random: SmallRng,
    /// Image and last sequence after each recording.
    moments: Vec<(Vec<u8>, u64)>,
}

impl Story {
    /// An image of 60 blocks and a bit, a third of it zeros, recorded.
    fn begin() -> Self {
        Self::begin_with(60 * BLOCK + 1234)
    }

    fn begin_with(length: usize) -> Self {
        let mut random = SmallRng::seed_from_u64(7);
        let mut image = vec![0; length];
        random.fill(&mut image[..length * 2 / 3]);
        let place = Place::new();
        let server = Some(place.server(&[]));
        let mut story = Self { place, server, image, random, moments: Vec::new() };
        story.record();
        story
    }

    fn image_path(&self) -> PathBuf {
        self.place.path().join("disk.img")
    }

    /// Records the image as it is, and answers what `tlog record` said of it.
    fn record(&mut self) -> Value {
        std::fs::write(self.image_path(), &self.image).unwrap();
        let server = self.server.as_ref().unwrap().addr();
        let said = self.place.tlog_ok(&["record", "vda", "disk.img", "--server", &server, "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        self.moments.push((self.image.clone(), said["last_sequence"].as_u64().unwrap()));
        said
    }

    fn write(&mut self, block: usize) {
        let block = block * BLOCK;
        self.random.fill(&mut self.image[block..block + BLOCK]);
    }

    fn clear(&mut self, block: usize) {
        self.image[block * BLOCK..(block + 1) * BLOCK].fill(0);
    }

    /// Three more moments: written, cleared, grown.
    fn go_on(&mut self) {
        for block in [3, 17, 18, 55] {
            self.write(block);
        }
        self.record();
        self.clear(4);
        self.clear(17);
        self.write(0);
        self.record();
        let length = self.image.len() + 5 * BLOCK;
        self.image.resize(length, 0);
        self.write(61);
        self.record();
    }

    /// Only then may as many stores be lost as there are parity shards; an acknowledgement alone promises less.
    fn wait_until_every_store_knows_all(&self) {
        loop {
            let said = self.place.tlog(&["verify", "vda", "--json"]);
            let said: Value = serde_json::from_slice(&said.stdout).unwrap();
            if said["verdict"] == "whole" && said["committed"] == said["last"] {
                return;
            }
        }
    }

    /// Restores every moment and compares it with what the image was.
    fn every_moment_restores_equal(&self) {
        for (image, sequence) in &self.moments {
            let sequence = sequence.to_string();
            self.place.tlog_ok(&["restore", "vda", "-o", "restored", "--force", "--sequence", &sequence]);
            let restored = std::fs::read(self.place.path().join("restored")).unwrap();
            assert!(restored == *image, "the disk after sequence {sequence} is not what it was");
        }
    }
}

#[test]
fn what_changed_is_recorded_and_every_moment_restores_equal() {
    let mut story = Story::begin();
    let unchanged = story.record();
    assert_eq!((&unchanged["blocks"], &unchanged["last_sequence"]), (&0.into(), &story.moments[0].1.into()));
    story.go_on();
    story.every_moment_restores_equal();
    let text = story.place.tlog_ok(&[
        "record",
        "vda",
        "disk.img",
        "--server",
        &story.server.as_ref().unwrap().addr(),
    ]);
    assert!(text.contains("nothing changed, nothing sent"), "{text}");

    // The newest moment needs no name, and a file that is there is not replaced unasked.
    let said = story.place.tlog_fails(&["restore", "vda", "-o", "restored"]);
    assert!(said.contains("--force"), "{said}");
    std::fs::remove_file(story.place.path().join("restored")).unwrap();
    let said = story.place.tlog_ok(&["restore", "vda", "-o", "restored", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["length"], story.image.len());
    assert!(std::fs::read(story.place.path().join("restored")).unwrap() == story.image);
}

#[test]
fn only_what_the_rules_say_is_sent() {
    let mut story = Story::begin_with(40 * BLOCK);
    // Everything that is not zero, and the last block, which is.
    let (_, first) = &story.moments[0];
    assert_eq!(*first, 40 * 2 / 3 + 1 + 1);
    let check = |said: &Value, set: u64, deleted: u64| {
        assert_eq!((&said["set"], &said["deleted"]), (&set.into(), &deleted.into()), "{said}");
    };
    story.image.fill(0);
    let said = story.record();
    check(&said, 1, 40 * 2 / 3);
    story.every_moment_restores_equal();
    // Shrunk by a bit: another last block, the old one goes.
    story.image.truncate(38 * BLOCK - 100);
    let said = story.record();
    check(&said, 1, 1);
    story.every_moment_restores_equal();
    let said = story.record();
    check(&said, 0, 0);
    // Grown: the short block is now one in the middle, and as zero as before; only the new end is sent.
    story.image.resize(50 * BLOCK, 0);
    let said = story.record();
    check(&said, 1, 0);
    story.every_moment_restores_equal();
    let said = story.record();
    check(&said, 0, 0);
    // Shorter than a block.
    story.image.truncate(10);
    let said = story.record();
    check(&said, 1, 2);
    story.every_moment_restores_equal();
}

#[test]
fn every_two_stores_may_be_lost_and_every_moment_restores_equal() {
    let mut story = Story::begin();
    story.go_on();
    story.server.take().unwrap().stop();
    let kept = story.place.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    for one in 0..6 {
        for other in one + 1..6 {
            for store in [one, other] {
                std::fs::rename(story.place.store(store), kept.join(store.to_string())).unwrap();
            }
            story.every_moment_restores_equal();
            let verified = story.place.tlog(&["verify", "vda"]);
            assert_eq!(verified.status.code(), Some(1), "{verified:?}");
            for store in [one, other] {
                std::fs::rename(kept.join(store.to_string()), story.place.store(store)).unwrap();
            }
        }
    }
    assert_eq!(story.place.tlog(&["verify", "vda", "--deep"]).status.code(), Some(0));
    for store in 0..3 {
        std::fs::rename(story.place.store(store), kept.join(store.to_string())).unwrap();
    }
    let verified = story.place.tlog(&["verify", "vda"]);
    assert_eq!(verified.status.code(), Some(2), "{verified:?}");
    let said = story.place.tlog_fails(&["restore", "vda", "-o", "lost"]);
    assert!(said.contains("vdisk vda") && said.contains("store-0"), "{said}");
    assert!(!story.place.path().join("lost").exists());
}

#[test]
fn every_two_stores_may_be_damaged_and_every_moment_restores_equal() {
    let mut story = Story::begin();
    story.go_on();
    story.server.take().unwrap().stop();
    let segments = |store: usize| -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(story.place.store(store).join("vda")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
    };
    for one in 0..6 {
        for other in one + 1..6 {
            let whole = [segments(one), segments(other)].concat();
            // Often enough to hit every shard, seldom enough to leave some heads whole.
            let stride = 1000 + 137 * one + 31 * other;
            for (path, bytes) in &whole {
                let mut bytes = bytes.clone();
                bytes.iter_mut().skip(700).step_by(stride).for_each(|byte| *byte ^= 0x40);
                std::fs::write(path, bytes).unwrap();
            }
            story.every_moment_restores_equal();
            let verified = story.place.tlog(&["verify", "vda", "--deep"]);
            assert_eq!(verified.status.code(), Some(1), "{verified:?}");
            for (path, bytes) in &whole {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
    assert_eq!(story.place.tlog(&["verify", "vda", "--deep"]).status.code(), Some(0));
    // One damaged store is mended in place.
    for (path, mut bytes) in segments(3) {
        bytes.iter_mut().skip(700).step_by(9000).for_each(|byte| *byte ^= 0x40);
        std::fs::write(path, bytes).unwrap();
    }
    let said = story.place.tlog_ok(&["scrub", "vda"]);
    assert!(said.contains("every store holds every shard"), "{said}");
    assert_eq!(story.place.tlog(&["verify", "vda", "--deep"]).status.code(), Some(0));
}

#[test]
fn stores_lost_under_a_running_server_are_scrubbed_whole_again() {
    let mut story = Story::begin();
    story.go_on();
    std::fs::remove_dir_all(story.place.store(1)).unwrap();
    story.every_moment_restores_equal();
    // With five of six the server goes on, and finds the new directory.
    story.write(9);
    story.record();
    let said = story.place.tlog_ok(&["scrub", "vda"]);
    assert!(said.contains("every store holds every shard"), "{said}");
    assert_eq!(story.place.tlog(&["verify", "vda", "--deep"]).status.code(), Some(0));
    story.wait_until_every_store_knows_all();
    std::fs::remove_dir_all(story.place.store(0)).unwrap();
    std::fs::remove_dir_all(story.place.store(5)).unwrap();
    story.every_moment_restores_equal();
}

#[test]
fn with_too_many_stores_lost_to_write_on_a_disk_can_still_be_restored_and_recorded_anew() {
    let mut story = Story::begin();
    story.server.take().unwrap().stop();
    std::fs::remove_dir_all(story.place.store(1)).unwrap();
    let said = String::from_utf8(story.place.tlog(&["verify", "vda"]).stdout).unwrap();
    assert!(said.ends_with("run 'tlog scrub vda' to put back what is missing\n"), "{said}");
    assert!(said.contains("store-1: not in reach: No such file or directory"), "{said}");
    std::fs::remove_dir_all(story.place.store(4)).unwrap();
    let server = story.place.server(&[]);
    let said = story.place.tlog_fails(&["record", "vda", "disk.img", "--server", &server.addr()]);
    assert!(said.contains("could not open the log of vdisk vda"), "{said}");
    let said = story.place.tlog_fails(&["scrub", "vda"]);
    assert!(said.contains("4 of 6 stores can be counted on, 5 are needed"), "{said}");
    assert!(said.contains("'tlog store replace vda OLD NEW'"), "{said}");
    let verified = story.place.tlog(&["verify", "vda"]);
    let said = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.contains("opening it takes 5 stores that it knows, 4 are there"), "{said}");
    assert!(!said.contains("to put back what is missing") && !said.contains("the server fills it"), "{said}");
    let said = story.place.tlog(&["verify", "vda", "--json"]).stdout;
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!((&said["verdict"], &said["can_be_written"]), (&"degraded".into(), &false.into()));
    story.every_moment_restores_equal();
    story.place.tlog_ok(&["record", "vda-2", "restored", "--server", &server.addr()]);
    story.place.tlog_ok(&["restore", "vda-2", "-o", "again"]);
    assert!(std::fs::read(story.place.path().join("again")).unwrap() == story.image);

    // Or the operator's word: what is in these two places now is empty, and what was there is gone for good.
    let places = ["file:tlog-data/store-1", "file:tlog-data/store-4"];
    let replace = ["store", "replace", "vda", places[0], places[0], places[1], places[1]];
    let said = story.place.tlog_ok(&replace);
    assert!(said.contains("vdisk vda: filled"), "{said}");
    story.server = Some(server);
    story.write(7);
    story.record();
    story.every_moment_restores_equal();
}

#[test]
fn moments_are_found_by_time_and_aggregation() {
    let mut story = Story::begin();
    story.write(5);
    story.record();
    let lines = story.place.tlog_ok(&["history", "vda", "--json"]);
    let history: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [.., before, last] = &history[..] else { panic!("{lines}") };
    assert_eq!((&last["blocks"], &last["prev"]), (&1.into(), &before["id"]));
    let restored = |arguments: &[&str]| {
        story.place.tlog_ok(&[&["restore", "vda", "-o", "restored", "--force"], arguments].concat());
        std::fs::read(story.place.path().join("restored")).unwrap()
    };
    let number = before["number"].to_string();
    assert!(restored(&["--aggregation", &number]) == story.moments[0].0);
    // The history shows milliseconds; a moment in full precision is in the numbers.
    let at = jiff::Timestamp::from_nanosecond(before["newest_ns"].as_i64().unwrap().into()).unwrap();
    assert!(restored(&["--at", &at.to_string()]) == story.moments[0].0);
    assert!(restored(&["--at", "now"]) == story.image);

    let fails = |arguments: &[&str], says: &str| {
        let said = story.place.tlog_fails(&[&["restore", "vda", "-o", "nothing"], arguments].concat());
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!story.place.path().join("nothing").exists());
    };
    fails(&["--at", "1 hour ago"], "is before its history, which goes from");
    fails(&["--at", "1h"], "did you mean '1h ago'?");
    fails(&["--sequence", "100000"], "100000");
    fails(&["--aggregation", "100000"], "100000");
    let table = story.place.tlog_ok(&["history", "vda", "--last", "1"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    let nowhere = ["--data-dir", "nowhere"];
    for command in [&["history", "vda"][..], &["restore", "vda", "-o", "nothing"]] {
        let said = story.place.tlog_fails(&[command, &nowhere].concat());
        assert!(said.contains("none of the stores is there") && said.contains("nowhere/store-0"), "{said}");
    }
    let verified = story.place.tlog(&[&["verify", "vda"][..], &nowhere].concat());
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    let said = story.place.tlog_fails(&["restore", "vda", "-o", "no/such/disk.img"]);
    assert!(said.contains("there is no directory no/such"), "{said}");
    assert!(story.place.tlog_fails(&["history", "vdb"]).contains("vdisk vdb is not known"));
    assert_eq!(story.place.tlog(&["verify", "vdb"]).status.code(), Some(3));
}

#[test]
fn a_recording_refuses_what_would_log_nonsense() {
    let mut story = Story::begin();
    let server = story.server.as_ref().unwrap().addr();
    let fails = |arguments: &[&str], says: &str| {
        let said = story.place.tlog_fails(&[&["record"], arguments, &["--server", &server]].concat());
        assert!(said.contains(says), "{arguments:?}: {said}");
    };
    std::fs::write(story.place.path().join("empty"), []).unwrap();
    fails(&["vda", "empty"], "empty is empty");
    fails(&["vda", "nowhere.img"], "nowhere.img cannot be read");
    fails(&["vda", "."], "is a directory");
    fails(&["vda", "disk.img", "--block-size", "8192"], "has blocks of 4096 bytes, not 8192");
    fails(&["vdb", "disk.img", "--block-size", "5000"], "power of two");
    fails(&["vdb", "disk.img", "--block-size", "256"], "power of two");
    fails(&["vda", "disk.img", "--data-dir", "elsewhere"], "elsewhere");
    // Settings that lead to another log than the server's.
    let other = Place::new();
    let other_server = other.server(&[]);
    std::fs::write(other.path().join("disk.img"), vec![1; 3 * BLOCK]).unwrap();
    other.tlog_ok(&["record", "vda", "disk.img", "--server", &other_server.addr()]);
    let said = other.tlog_fails(&["record", "vda", "disk.img", "--server", &server]);
    assert!(said.contains("they are not the same log"), "{said}");
    let said = story.place.tlog_fails(&["record", "vda", "disk.img", "--server", "127.0.0.1:1"]);
    assert!(said.contains("cannot connect to 127.0.0.1:1"), "{said}");
    story.record();
    story.every_moment_restores_equal();
}

#[test]
fn a_server_killed_again_and_again_while_it_is_recorded_to_loses_nothing_acknowledged() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut story = Story::begin_with(500 * BLOCK);
    let mut interrupted = 0;
    for round in 0..50 {
        for _ in 0..random.random_range(1..80) {
            let block = random.random_range(0..500);
            if random.random_bool(0.2) { story.clear(block) } else { story.write(block) }
        }
        std::fs::write(story.image_path(), &story.image).unwrap();
        let server = story.server.take().unwrap();
        let recording = story.place.tlog_begin(&[
            "record",
            "vda",
            "disk.img",
            "--server",
            &server.addr(),
            "--give-up-after",
            "1ms",
        ]);
        // A random moment of the recording, which takes a few tens of milliseconds: what the test is about, not a wait.
        std::thread::sleep(std::time::Duration::from_millis(random.random_range(0..100)));
        server.kill();
        let acknowledged = recording.wait_with_output().unwrap().status.success();
        interrupted += u32::from(!acknowledged);
        story.server = Some(story.place.server(&[]));
        let again = story.record();
        if acknowledged {
            assert_eq!(again["blocks"], 0, "round {round}, seed {seed}");
        }
        story.place.tlog_ok(&["restore", "vda", "-o", "restored", "--force"]);
        let restored = std::fs::read(story.place.path().join("restored")).unwrap();
        assert!(restored == story.image, "round {round}, seed {seed}");
        // Two are enough to look back at: the first, and this one.
        story.moments.truncate(1);
    }
    story.record();
    story.every_moment_restores_equal();
    assert!(interrupted > 0, "no round was interrupted: the moments are badly chosen; seed {seed}");
    assert_eq!(story.place.tlog(&["verify", "vda", "--deep"]).status.code(), Some(0), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_that_was_acknowledged_one_by_one_survives_a_kill() {
    let place = Place::new();
    let mut next = 0_u64;
    let mut acknowledged = std::collections::BTreeSet::new();
    let content = |index: u64| vec![(index % 251) as u8 + 1; BLOCK];
    for round in 0..5 {
        let server = place.server(&["--flush-size", "3"]);
        let vdisk = VdiskId::new("vda").unwrap();
        let client = Client::connect(server.addr(), vdisk, of_one_connection()).await.unwrap();
        let mut handles = Vec::new();
        for _ in 0..400 {
            handles.push((next, client.set(BlockIndex::new(next).unwrap(), content(next)).await.unwrap()));
            next += 1;
        }
        // In the middle of it: after some were acknowledged, and before all are.
        let mut events = client.events();
        let mut durable = 0;
        while durable < 60 + round * 40 {
            match events.next().await.unwrap() {
                Event::Durable(sequences) => durable += sequences.len(),
                Event::Ended(ending) => panic!("{ending}"),
                _ => {}
            }
        }
        server.kill();
        for (index, handle) in handles {
            if handle.await.is_ok() {
                acknowledged.insert(index);
            }
        }
    }
    place.server(&[]).stop();
    place.tlog_ok(&["restore", "vda", "-o", "restored"]);
    let restored = std::fs::read(place.path().join("restored")).unwrap();
    assert!(acknowledged.len() >= 5 * 60);
    for index in acknowledged {
        let at = index as usize * BLOCK;
        assert!(restored[at..at + BLOCK] == content(index), "block {index} was acknowledged and is lost");
    }
}

#[test]
fn the_demo_ends_well_with_a_real_file_system_and_without() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("scratch")).unwrap();
    let said = place.tlog_ok(&["demo", "--size", "8", "--scratch", "scratch"]);
    assert!(said.contains("all 5 moments restored byte for byte after the loss of 2 of 6 stores"), "{said}");
    assert_eq!(std::fs::read_dir(place.path().join("scratch")).unwrap().count(), 0, "nothing is left behind");
    let said = place.tlog_ok(&["demo", "--size", "8", "--scratch", "scratch", "--generated", "--keep"]);
    assert!(said.contains("generated") && said.contains("all 5 moments restored byte for byte"), "{said}");
    assert_eq!(std::fs::read_dir(place.path().join("scratch")).unwrap().count(), 1);
    assert!(place.tlog_fails(&["demo", "--scratch", "nowhere"]).contains("--scratch"));
}
