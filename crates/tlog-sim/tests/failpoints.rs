//! Processes that die at each failpoint: nothing is violated, and everything goes on.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use tlog_sim::{Options, Point, run};

/// At each point in so many seeds.
const SEEDS: u64 = 20;

/// Not every seed comes to every point: within so many, enough must.
const MOST: u64 = 600;

fn check(points: impl Iterator<Item = Point>) {
    let mut of_part = 0;
    for point in points {
        let mut killed = 0;
        for seed in 1..=MOST {
            let outcome = run(seed, Options { failpoint: Some(point), ..Options::default() });
            let again = format!("cargo xtask sim --seed {seed} --failpoint {}", point.name());
            assert_eq!(outcome.found, None, "again: {again}");
            killed += u64::from(outcome.tally.killed_at_point > 0);
            if killed == SEEDS {
                break;
            }
        }
        assert_eq!(killed, SEEDS, "hardly anybody comes to {}", point.name());
        of_part += 1;
    }
    assert!(of_part > 0);
}

fn of(part: &'static str) -> impl Iterator<Item = Point> {
    Point::all().filter(move |point| point.what().starts_with(part))
}

#[test]
fn a_writer_that_dies_at_any_of_its_points_loses_nothing() {
    check(of("writer: "));
}

#[test]
fn a_recovery_that_dies_at_any_of_its_points_loses_nothing() {
    check(of("recovery: "));
}

#[test]
fn a_repair_that_dies_at_any_of_its_points_loses_nothing() {
    check(of("repair: "));
}

#[test]
fn a_slave_is_the_disk_after_some_write_wherever_its_syncer_dies() {
    check(of("slave: "));
}

#[test]
fn the_documentation_has_every_point() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reliability.md");
    let text = std::fs::read_to_string(file).unwrap();
    let line = |point: Point| {
        let (part, what) = point.what().split_once(": ").unwrap();
        format!("| `{}` | {part} | {what} |", point.name())
    };
    let missing: Vec<String> = Point::all().map(line).filter(|line| !text.contains(line)).collect();
    assert!(missing.is_empty(), "docs/reliability.md lacks:\n{}", missing.join("\n"));
    let listed = text.lines().skip_while(|line| !line.starts_with("| failpoint |")).skip(2);
    assert_eq!(listed.take_while(|line| line.starts_with('|')).count(), Point::all().count());
}
