//! The simulation finds nothing, repeats, and finds what is broken on purpose.

#![allow(clippy::panic, clippy::unwrap_used)]

use tlog_sim::{Options, Rule, run, run_many};

/// Seeds of a usual run. `cargo xtask sim --seeds N` runs more.
const SEEDS: u64 = 300;

/// Within so many a broken rule must be found.
const MOST: u64 = 1000;

/// Enough for the rule to be found, and still nothing is while it holds.
const OBEYED: u64 = 60;

#[test]
fn nothing_is_found_and_the_seeds_do_something() {
    let many = run_many(1, SEEDS, 2, Options::default(), |_| {});
    if let Some((seed, what)) = many.found {
        let story = run(seed, Options { told: true, ..Options::default() }).story.join("\n");
        panic!("{story}\nseed {seed}: {what}\nagain: cargo xtask sim --seed {seed}");
    }
    let did = many.tally;
    println!("{SEEDS} seeds in {:?}: {did:?}", many.took);
    assert!(did.acknowledged > 10_000 && did.openings > 600 && did.lives > 600, "hardly anything: {did:?}");
    assert!(did.reads > 300 && did.restores > 300 && did.slave_looks > 100, "hardly anything: {did:?}");
}

#[test]
fn the_same_seed_twice_is_the_same_run() {
    let told = Options { told: true, ..Options::default() };
    // A thread of its own: maps that are hashed with random keys have others there.
    let run_elsewhere = |seed| std::thread::spawn(move || run(seed, told)).join().unwrap();
    for seed in 1..=40 {
        let (one, other) = (run(seed, told), run_elsewhere(seed));
        let differs = one.story.iter().zip(&other.story).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.story.len(), one.found, one.tally), (other.story.len(), other.found, other.tally));
    }
}

#[test]
fn whether_the_story_is_told_changes_nothing() {
    for seed in 1..=20 {
        let (told, untold) =
            (run(seed, Options { told: true, ..Options::default() }), run(seed, Options::default()));
        assert_eq!((told.found, told.tally), (untold.found, untold.tally), "seed {seed}");
        assert!(!told.story.is_empty() && untold.story.is_empty());
    }
}

/// The first seed that shows what breaking the rule does; with the same seeds nothing is found while it holds.
fn must_be_found(rule: Rule) {
    let broken = Options { rule: Some(rule), ..Options::default() };
    let many = run_many(1, MOST, 2, broken, |_| {});
    let (seed, what) = many.found.unwrap_or_else(|| panic!("nobody noticed {rule} in {MOST} seeds"));
    println!("{rule}: seed {seed}: {}", what.chars().take(160).collect::<String>());
    let story = run(seed, Options { told: true, ..broken }).story;
    assert!(story.iter().any(|line| line.contains("FOUND")), "the story does not say what was found");
    let obeyed = run_many(1, seed.max(OBEYED), 2, Options { obeyed: true, ..broken }, |_| {});
    assert_eq!(obeyed.found, None, "{rule} holds");
}

#[test]
fn doing_without_start_records_is_found() {
    must_be_found(Rule::StartRecords);
}

#[test]
fn opening_without_a_majority_is_found() {
    must_be_found(Rule::Majority);
}

#[test]
fn a_write_quorum_that_is_too_small_is_found() {
    must_be_found(Rule::WriteQuorum);
}

#[test]
fn acknowledging_before_stores_have_answered_is_found() {
    must_be_found(Rule::Answers);
}

#[test]
fn recording_a_position_before_the_data_is_there_is_found() {
    must_be_found(Rule::DataFirst);
}
