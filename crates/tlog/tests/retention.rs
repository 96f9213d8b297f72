//! Marks, checkpoints, and history that is removed, on real servers: what is to be kept can be restored, byte for byte.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "retention/clocks.rs"]
mod clocks;
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::{Place, Server};
use tlog::admin_client::{ask, ask_with};
use tlog_client::{Client, ClientOptions};
use tlog_proto::{Block, BlockIndex, Sequence, Timestamp, VdiskId};

const BLOCK: usize = 512;
const BLOCKS: u64 = 48;
const HOUR: u64 = 3600 * 1_000_000_000;
const FLUSH: &[&str] = &["--flush-size", "5"];

fn now() -> u64 {
    jiff::Timestamp::now().as_nanosecond() as u64
}

/// A disk that is written to, and every write that it ever got.
struct Disk {
    client: Client,
    random: SmallRng,
    writes: Vec<Block>,
}

impl Disk {
    async fn connect(server: &Server) -> Self {
        let vdisk = VdiskId::new("vda").unwrap();
        let client = Client::connect(server.addr(), vdisk, ClientOptions::default()).await.unwrap();
        Self { client, random: SmallRng::seed_from_u64(7), writes: Vec::new() }
    }

    /// One write at a time of the client's own choice; now and then it deletes.
    async fn write(&mut self, timestamp: u64) {
        let sequence = Sequence(self.client.next_sequence().0);
        let index = BlockIndex::new(self.random.random_range(0..BLOCKS)).unwrap();
        let block = match self.random.random_bool(0.1) {
            true => Block::delete(sequence, index, Timestamp(timestamp)),
            false => {
                let data: Vec<u8> = (0..BLOCK).map(|_| self.random.random()).collect();
                Block::set(sequence, index, Timestamp(timestamp), Bytes::from(data))
            }
        };
        self.writes.push(block.clone());
        self.client.send(block).await.unwrap();
    }

    async fn write_now(&mut self, count: usize) {
        for _ in 0..count {
            self.write(now()).await;
        }
        self.client.flush().await.unwrap();
    }

    fn last(&self) -> u64 {
        self.writes.last().unwrap().sequence.0
    }

    /// The disk after a write.
    fn after(&self, sequence: u64) -> Vec<u8> {
        image_of(self.writes.iter().filter(|block| block.sequence.0 <= sequence))
    }

    /// The disk at a time.
    fn at(&self, time: u64) -> Vec<u8> {
        let last = self.writes.iter().rposition(|block| block.timestamp.0 <= time);
        image_of(&self.writes[..last.map_or(0, |last| last + 1)])
    }
}

fn image_of<'a>(writes: impl IntoIterator<Item = &'a Block>) -> Vec<u8> {
    let mut image = vec![0; BLOCKS as usize * BLOCK];
    for block in writes {
        let at = block.index.get() as usize * BLOCK;
        image[at..at + BLOCK].fill(0);
        image[at..at + block.data.len()].copy_from_slice(&block.data);
    }
    image
}

/// The disk that `tlog restore` makes, with zeros behind it up to its whole length.
fn restored(place: &Place, name: &str, moment: &[&str]) -> Vec<u8> {
    place.tlog_ok(&[&["restore", "vda", "-o", name, "--force", "--fresh"], moment].concat());
    let mut image = std::fs::read(place.path().join(name)).unwrap();
    image.resize(BLOCKS as usize * BLOCK, 0);
    image
}

fn json_of(place: &Place, arguments: &[&str]) -> Value {
    let said = place.tlog_ok(&[arguments, &["--json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// RFC 3339 in full precision.
fn time(nanoseconds: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_a_moment_everywhere_and_as_durable_as_a_write() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    assert!(place.tlog_fails(&["mark", "vda", "too-early"]).contains("vda"));
    disk.write_now(23).await;
    let marked = json_of(&place, &["mark", "vda", "first"]);
    assert_eq!((&marked["place"]["sequence"], &marked["before"]), (&json!(disk.last()), &Value::Null));
    let first = disk.last();
    disk.write_now(20).await;
    assert_eq!(restored(&place, "a", &["--at", "first"]), disk.after(first));
    assert!(
        json_of(&place, &["diff", "vda", "--from", "first", "--to", "newest"])["blocks"].as_u64().unwrap()
            > 0
    );
    place.tlog_ok(&["restore", "vda", "--verify-against", "a", "--at", "first"]);

    // The server is killed: the mark is there, and the tool makes others without a server.
    disk.client.close().await;
    server.kill();
    place.tlog_ok(&["mark", "vda", "second", "--at", "seq:10"]);
    assert_eq!(restored(&place, "b", &["--at", "second"]), disk.after(10));
    let moved = json_of(&place, &["mark", "vda", "first", "--at", "second"]);
    assert_eq!((&moved["place"]["sequence"], &moved["before"]["sequence"]), (&json!(10), &json!(first)));
    place.tlog_ok(&["mark", "vda", "second", "--remove"]);
    let marks = json_of(&place, &["mark", "vda"]);
    let names: Vec<&str> =
        marks.as_array().unwrap().iter().map(|mark| mark["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first"]);
    assert!(place.tlog_fails(&["restore", "vda", "-o", "c", "--at", "second"]).contains("no mark"));
    assert!(place.tlog_fails(&["mark", "vda", "second", "--remove"]).contains("it has first"));
    assert!(place.tlog_fails(&["mark", "vda", "5m"]).contains("begins with a letter"));

    // Clients go on where they were.
    let server = place.server(FLUSH);
    let mut again = Disk { writes: disk.writes, ..Disk::connect(&server).await };
    again.write_now(5).await;
    assert_eq!(restored(&place, "d", &[]), again.after(again.last()));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_starts_at_a_checkpoint_and_is_the_same_without_it() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    disk.write_now(200).await;
    let checkpoint = json_of(&place, &["checkpoint", "vda"]);
    assert_eq!(checkpoint["place"]["sequence"], disk.last());
    let of = disk.last();
    disk.write_now(12).await;
    let listed = json_of(&place, &["checkpoint", "vda", "--list"]);
    assert_eq!(listed[0]["checkpoint"], checkpoint["checkpoint"]);
    assert_eq!(listed[0]["later_moments"], true);

    std::fs::remove_dir_all(place.store(1)).unwrap();
    for sequence in [of, of + 3, of + 12] {
        let moment = &["--sequence", &sequence.to_string()];
        assert_eq!(restored(&place, "with", moment), disk.after(sequence));
        assert_eq!(
            restored(&place, "without", &[&moment[..], &["--ignore-checkpoints"]].concat()),
            disk.after(sequence)
        );
    }
    assert_eq!(restored(&place, "before", &["--sequence", "50"]), disk.after(50));
    let with = json_of(&place, &["restore", "vda", "-o", "x"]);
    let without = json_of(&place, &["restore", "vda", "-o", "y", "--ignore-checkpoints"]);
    let read = |report: &Value| report["aggregations_read"].as_u64().unwrap();
    assert!(read(&with) < read(&without), "{with} {without}");
    let of_the_past = json_of(&place, &["checkpoint", "vda", "--at", "seq:100"]);
    assert_eq!(of_the_past["place"]["sequence"], 100);
    server.stop();
}

/// Writes a block for each hour of so many days up to now.
async fn write_days(disk: &mut Disk, days: u64) {
    let now = now();
    for hour in (1..=days * 24).rev() {
        // Clocks step back now and then.
        let back = if hour % 50 == 0 { 3 * HOUR } else { 0 };
        disk.write(now - hour * HOUR - back).await;
    }
    disk.client.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_kept_stays_and_the_rest_of_history_goes() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    write_days(&mut disk, 20).await;
    for (name, sequence) in [("old", 30), ("older", 12)] {
        place.tlog_ok(&["mark", "vda", name, "--at", &format!("seq:{sequence}")]);
    }
    let keep = ["prune", "vda", "--keep-within", "72h", "--keep-daily", "10", "--keep-hourly", "76"];
    let planned = json_of(&place, &[&keep[..], &["--dry-run", "--anyway"]].concat());
    assert_eq!((&planned["pruned"], &planned["first_before"]), (&json!(false), &json!(1)));
    assert_eq!(json_of(&place, &["verify", "vda"])["first"], 1, "a dry run changes nothing");
    let done = json_of(&place, &[&keep[..], &["--anyway"]].concat());
    assert_eq!((&done["pruned"], &done["first"]), (&json!(true), &planned["first"]), "{done}");
    assert!(done["first"].as_u64().unwrap() > 70, "{done}");
    let verified = json_of(&place, &["verify", "vda", "--deep"]);
    assert_eq!((&verified["verdict"], &verified["first"]), (&json!("whole"), &done["first"]));

    // Every moment of the window.
    let now = now();
    for hours in [0, 1, 7, 26, 49, 71] {
        let at = now - hours * HOUR - HOUR / 2;
        assert_eq!(restored(&place, "a", &["--at", &time(at)]), disk.at(at), "{hours} hours ago");
    }
    // Single moments before it, by day, by hour and by name.
    let points = done["points"].as_array().unwrap();
    // Two marks, and the days that are over and lie before what is kept anyway: it begins up to five blocks before the window.
    let days = (0..10).filter(|day| now % (24 * HOUR) + day * 24 * HOUR > 77 * HOUR).count();
    assert!(points.len() >= days + 2, "{done}");
    for point in points {
        let sequence = point["place"]["sequence"].as_u64().unwrap();
        let at = format!("gen:1/seq:{sequence}");
        assert_eq!(restored(&place, "b", &["--at", &at]), disk.after(sequence), "{point}");
    }
    assert_eq!(restored(&place, "c", &["--at", "old"]), disk.after(30));
    assert_eq!(restored(&place, "d", &["--at", "older"]), disk.after(12));
    // And nothing else is guessed.
    let why = place.tlog_fails(&["restore", "vda", "-o", "e", "--at", "seq:20"]);
    assert!(why.contains("no block of its log has sequence 20") || why.contains("removed"), "{why}");
    place.tlog_fails(&["restore", "vda", "-o", "e", "--at", &time(now - 15 * 24 * HOUR)]);

    // Again, with a server that was killed in between; the log goes on, and single moments are carried along.
    disk.write_now(30).await;
    server.kill();
    let server = place.server(FLUSH);
    let again = json_of(&place, &["prune", "vda", "--keep-within", "24h", "--keep-daily", "2", "--anyway"]);
    assert_eq!(again["pruned"], true, "{again}");
    assert!(again["first"].as_u64() > done["first"].as_u64());
    assert_eq!(restored(&place, "f", &["--at", "older"]), disk.after(12));
    assert_eq!(restored(&place, "g", &[]), disk.after(disk.last()));
    let nothing = json_of(&place, &["prune", "vda", "--keep-within", "24h"]);
    assert_eq!(nothing["pruned"], false, "{nothing}");
    assert_eq!(json_of(&place, &["verify", "vda", "--deep"])["verdict"], "whole");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_a_restore_has_pinned_is_not_removed() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    write_days(&mut disk, 10).await;
    let pin = json!({ "from": 1, "who": "a test", "seconds": 60 }).to_string();
    let pinned = ask_with(&server.admin(), Method::POST, "/vdisks/vda/pins", Bytes::from(pin)).await.unwrap();
    let pinned: Value = serde_json::from_str(&pinned).unwrap();
    let keep = ["prune", "vda", "--keep-within", "24h", "--anyway"];
    let held = json_of(&place, &keep);
    assert_eq!((&held["pruned"], &held["first"]), (&json!(false), &json!(1)));
    assert!(held["why_not"].as_str().unwrap().contains("restore"), "{held}");
    let id = pinned["id"].as_str().unwrap();
    ask(&server.admin(), Method::DELETE, &format!("/vdisks/vda/pins/{id}")).await.unwrap();
    assert_eq!(json_of(&place, &keep)["pruned"], true);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_removes_by_itself_what_is_not_to_be_kept() {
    let place = Place::new();
    let server = place.server(&["--flush-size", "5", "--keep-within", "24h", "--prune-every", "50ms"]);
    let mut disk = Disk::connect(&server).await;
    write_days(&mut disk, 20).await;
    let began = Instant::now();
    while json_of(&place, &["verify", "vda"])["first"].as_u64().unwrap() < 80 {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is removed");
    }
    let now = now();
    for hours in [0, 10, 23] {
        let at = now - hours * HOUR - HOUR / 2;
        assert_eq!(restored(&place, "a", &["--at", &time(at)]), disk.at(at));
    }
    let metrics = ask(&server.admin(), Method::GET, "/metrics").await.unwrap();
    assert!(metrics.contains("tlog_retention_pruned_aggregations_total"), "{metrics}");
    server.stop();
}

/// Bytes that the files of all stores take on the disk.
fn used(place: &Place) -> u64 {
    fn of(path: &Path) -> u64 {
        // What was there a moment ago may be removed by now.
        let Ok(metadata) = path.symlink_metadata() else { return 0 };
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        metadata.blocks() * 512 + entries.map(|entry| of(&entry.path())).sum::<u64>()
    }
    (0..6).map(|store| of(&place.store(store))).sum()
}

/// How long everything races in this test; ten minutes and more by hand.
fn race_seconds() -> u64 {
    std::env::var("TLOG_RACE_SECONDS").ok().map_or(6, |seconds| seconds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_restores_scrubs_checkpoints_and_prunes_beside_each_other_lose_no_moment_of_the_window() {
    let (place, over) = (Place::new(), AtomicBool::new(false));
    let [restores, prunes, looks, went_down] = [const { AtomicU64::new(0) }; 4];
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    disk.write_now(50).await;
    let writes = std::sync::Mutex::new(disk.writes.clone());
    let ends = Instant::now() + Duration::from_secs(race_seconds());
    let (place, over, writes) = (&place, &over, &writes);
    let (restores, prunes, looks, went_down) = (&restores, &prunes, &looks, &went_down);
    let mut removed = 0;
    std::thread::scope(|scope| {
        let scrubbing = scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                let done = place.tlog(&["scrub", "vda"]);
                assert!(done.status.success(), "scrub: {done:?}");
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let pruning = scope.spawn(move || {
            let (mut first, mut most) = (1u64, 0);
            while !over.load(Ordering::Acquire) {
                let done = place.tlog(&["prune", "vda", "--keep-within", "6s", "--anyway", "--json"]);
                let report: Value =
                    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
                if report["pruned"] == true {
                    prunes.fetch_add(1, Ordering::Relaxed);
                    let now = used(place);
                    went_down.fetch_add(u64::from(now < most), Ordering::Relaxed);
                    most = most.max(now);
                    first = report["first"].as_u64().unwrap();
                } else if let Some(why) = report["why_not"].as_str() {
                    let known = ["restore", "within what is to be kept", "do not have everything"];
                    assert!(known.iter().any(|known| why.contains(known)), "{why}");
                }
            }
            first
        });
        let restoring = scope.spawn(move || {
            let mut random = SmallRng::seed_from_u64(5);
            while !over.load(Ordering::Acquire) {
                // A write of the last second, so that it is in the window whenever the restore comes to it.
                let known = writes.lock().unwrap().clone();
                let recent = known.iter().filter(|block| block.timestamp.0 + 1_000_000_000 > now()).count();
                let back = random.random_range(0..recent.max(1));
                let block = &known[known.len() - 1 - back];
                let moment = ["--sequence", &block.sequence.0.to_string()];
                let expected = image_of(&known[..known.len() - back]);
                assert_eq!(restored(place, "raced", &moment), expected, "after write {}", block.sequence);
                restores.fetch_add(1, Ordering::Relaxed);
            }
        });
        let runtime = tokio::runtime::Handle::current();
        // So long, and until all of them were done, however slow the machine is.
        let counts = || [restores, prunes, looks].map(|count| count.load(Ordering::Relaxed));
        let failed = || restoring.is_finished() || pruning.is_finished() || scrubbing.is_finished();
        while (Instant::now() < ends || counts().contains(&0)) && !failed() {
            tokio::task::block_in_place(|| runtime.block_on(disk.write_now(5)));
            writes.lock().unwrap().clone_from(&disk.writes);
        }
        over.store(true, Ordering::Release);
        restoring.join().unwrap();
        removed = pruning.join().unwrap();
        scrubbing.join().unwrap();
    });
    let [restores, prunes, looks] = [restores, prunes, looks].map(|count| count.load(Ordering::Relaxed));
    let (written, used) = (disk.writes.len(), used(place));
    let went_down = went_down.load(Ordering::Relaxed);
    println!("{written} writes, {restores} restores, {prunes} prunes up to {removed}, {looks} scrubs");
    println!("{used} bytes used at the end, less than there had been after {went_down} prunes");
    if race_seconds() >= 60 {
        assert!(went_down > 0, "bytes used never went down");
    }
    assert!(restores > 0 && prunes > 0 && looks > 0, "{restores} {prunes} {looks}");
    assert_eq!(restored(place, "end", &[]), disk.after(disk.last()));
    assert_eq!(json_of(place, &["verify", "vda", "--deep"])["verdict"], "whole");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_log_is_asked_is_answered_from_images_where_history_was_removed() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    write_days(&mut disk, 10).await;
    place.tlog_ok(&["mark", "vda", "old", "--at", "seq:30"]);
    let pruned = json_of(&place, &["prune", "vda", "--keep-within", "72h", "--anyway"]);
    let first = pruned["first"].as_u64().unwrap();
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let said = place.tlog_ok(&[arguments, &["--json"]].concat());
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };

    // The mark whose history is gone is the first point, and each of them can be restored.
    let points = lines(&["points", "vda"]);
    assert_eq!((&points[0]["moment"], &points[0]["sequence"]), (&json!("old"), &json!(30)), "{points:?}");
    assert_eq!(points[0]["why"][0], json!({ "reason": "mark", "name": "old" }));
    let of_images = |point: &&Value| point["why"].to_string().contains(r#""later_moments":true"#);
    assert_eq!(points.iter().filter(of_images).count(), 1, "{points:?}");
    for point in &points {
        let expected = disk.after(point["sequence"].as_u64().unwrap());
        assert_eq!(restored(&place, "p", &["--at", point["moment"].as_str().unwrap()]), expected, "{point}");
    }
    let shown = place.tlog_ok(&["points", "vda"]);
    assert!(shown.contains("--at old ") && shown.contains("mark old; image "), "{shown}");

    // Without the key the rest is shown.
    let key = place.path().join("tlog-data/tlog.key");
    std::fs::rename(&key, place.path().join("key")).unwrap();
    let without = place.tlog(&["points", "vda"]);
    let (shown, said) =
        (String::from_utf8(without.stdout).unwrap(), String::from_utf8(without.stderr).unwrap());
    assert!(
        without.status.success() && shown.contains("history begins") && !shown.contains("old"),
        "{shown}"
    );
    assert!(said.contains("they take the key"), "{said}");
    let other = place.path().join("other.key");
    place.tlog_ok(&["keygen", "-o", other.to_str().unwrap()]);
    let why = place.tlog_fails(&["points", "vda", "--key-file", other.to_str().unwrap()]);
    assert!(why.contains("marks and checkpoints are not among them"), "{why}");
    std::fs::rename(place.path().join("key"), &key).unwrap();

    // What differs since the mark, and since the oldest moment that history reaches.
    let at = |image: &[u8], block: usize| image[block * BLOCK..(block + 1) * BLOCK].to_vec();
    let newest = disk.after(disk.last());
    let begin = points[1]["sequence"].as_u64().unwrap();
    for (from, then) in [("old", disk.after(30)), (&*format!("seq:{begin}"), disk.after(begin))] {
        let list = place.tlog_ok(&["diff", "vda", "--from", from, "--list"]);
        let expected = (0..BLOCKS as usize).filter(|block| at(&then, *block) != at(&newest, *block));
        let expected: Vec<String> = expected.map(|block| block.to_string()).collect();
        assert_eq!(list.lines().collect::<Vec<_>>(), expected, "since {from}");
    }

    // Who wrote a block.
    let mut from_image = 0;
    for block in 0..BLOCKS {
        let last = disk.writes.iter().rev().find(|write| write.index.get() == block).unwrap();
        let found = lines(&["blame", "vda", "--block", &block.to_string()]);
        let Some(found) = found.first() else {
            assert!(last.data.is_empty(), "block {block}");
            continue;
        };
        assert_eq!(found["sequence"], last.sequence.0, "{found}");
        let is_gone = found["aggregation"].is_null();
        assert_eq!(is_gone, !found["checkpoint"].is_null(), "{found}");
        from_image += u64::from(is_gone);
    }
    assert!(from_image > 0);

    let history = lines(&["history", "vda"]);
    for line in &history {
        assert_eq!(line["kind"] == "blocks", line["first_sequence"].is_u64(), "{line}");
    }
    let of_kind = |kind: &str| history.iter().filter(|line| line["kind"] == kind).count();
    assert!(of_kind("checkpoint") >= 2 && of_kind("record") >= 3, "{history:?}");
    assert!(place.tlog_ok(&["history", "vda"]).contains("part of an image"));
    let vdisks = place.tlog_ok(&["vdisks"]);
    assert!(vdisks.contains(&format!(" {first}-")), "{vdisks}");
    server.stop();
}
