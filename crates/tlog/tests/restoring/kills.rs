//! Restores to a file that are killed, over and over.

use std::io::Read;
use std::path::Path;
use std::process::Child;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Scene, json, names};

/// One aggregation after the other, each noted.
const SLOWLY: [&str; 4] = ["--memory", "1", "--sync-every", "1"];

const JOURNAL: &str = ".out.img.restoring.journal";
/// Bytes of a journal of vda in which nothing is done yet.
const BEGUN: u64 = 120;

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Waits until so many bytes were noted, or it has ended.
fn wait_until_noted(child: &mut Child, journal: &Path, from: u64, more: u64) -> bool {
    loop {
        if length(journal) >= from + more {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_restore_that_is_killed_twenty_times_is_the_disk_in_the_end_and_does_nothing_twice() {
    let scene = Scene::record(1500);
    let restore = [&["restore", "vda", "-o", "out.img", "--json"][..], &SLOWLY].concat();
    let journal = scene.path(JOURNAL);
    let mut random = SmallRng::seed_from_u64(11);
    let mut noted = 0;
    let mut kills = 0;
    while kills < 20 {
        let mut child = scene.place.tlog_begin(&restore);
        // From right at the beginning to some aggregations later; a note has 18 bytes or more.
        let more = if kills % 5 == 4 { 0 } else { random.random_range(1..150) };
        assert!(wait_until_noted(&mut child, &journal, noted, more), "it was not slow enough to be killed");
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(!scene.path("out.img").exists());
        let now = length(&journal);
        assert!(now >= noted, "what was noted is forgotten: {now} after {noted} bytes");
        noted = now;
    }
    let said = scene.place.tlog(&restore);
    assert!(said.status.success(), "{said:?}");
    let words = String::from_utf8(said.stderr).unwrap();
    assert!(words.contains("going on with the restore to out.img that was begun, of vdisk vda"), "{words}");
    let report = json(&String::from_utf8(said.stdout).unwrap());
    let number = |name: &str| report[name].as_u64().unwrap();
    // A note has 9 bytes and 9 for each aggregation; the last one may be torn.
    assert!(number("aggregations_before") + 8 >= (noted - BEGUN) / 18, "{noted} bytes noted: {report}");
    assert_eq!(
        number("aggregations_before") + number("aggregations_read"),
        number("aggregations_needed"),
        "{report}"
    );
    assert_eq!(number("length"), scene.image.len() as u64);
    scene.is_the_disk("out.img");
    assert_eq!(names(scene.place.path(), "restoring"), Vec::<String>::new());
}

#[test]
fn whoever_interrupts_a_restore_is_told_that_it_can_be_gone_on_with() {
    // Long enough not to be over before the signal comes, however busy the machine is.
    let scene = Scene::record(1500);
    let restore = [&["restore", "vda", "-o", "out.img"][..], &SLOWLY].concat();
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = scene.place.tlog_begin(&restore);
        let noted = length(&scene.path(JOURNAL)).max(BEGUN);
        assert!(wait_until_noted(&mut child, &scene.path(JOURNAL), noted, 1));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut words = String::new();
        child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{words}");
        assert!(words.contains("and the same command goes on from there"), "{words}");
    }
    // Another moment is not mixed into it.
    let said = scene.place.tlog_fails(&["restore", "vda", "-o", "out.img", "--aggregation", "3"]);
    assert!(
        said.contains("go on with it by 'tlog restore vda' without a moment, or begin anew with --fresh"),
        "{said}"
    );
    let said = scene.place.tlog_ok(&["restore", "vda", "-o", "out.img"]);
    assert!(said.contains("were there from before"), "{said}");
    scene.is_the_disk("out.img");
}

#[test]
fn what_was_begun_for_one_moment_is_given_up_only_by_word() {
    let scene = Scene::record(300);
    let restore = [&["restore", "vda", "-o", "out.img", "--aggregation", "20"][..], &SLOWLY].concat();
    let mut child = scene.place.tlog_begin(&restore);
    assert!(wait_until_noted(&mut child, &scene.path(JOURNAL), BEGUN, 1));
    // It stands still, with its lock, so that the other one comes while it runs.
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let busy = scene.place.tlog_fails(&["restore", "vda", "-o", "out.img"]);
    assert!(busy.contains("another restore to out.img is running"), "{busy}");
    child.kill().unwrap();
    child.wait().unwrap();
    let said = scene.place.tlog_fails(&["restore", "vda", "-o", "out.img"]);
    assert!(said.contains("go on with it by 'tlog restore vda --aggregation 20'"), "{said}");
    let said = scene.place.tlog_ok(&["restore", "vda", "-o", "out.img", "--fresh", "--check"]);
    assert!(!said.contains("were there from before") && said.contains("read back, and equal"), "{said}");
    scene.is_the_disk("out.img");
}
