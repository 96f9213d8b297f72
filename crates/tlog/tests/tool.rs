//! The real `tlog`, where no server is needed.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use support::Place;

#[test]
fn keygen_prints_a_key_or_makes_a_file_and_never_overwrites() {
    let place = Place::new();
    let (first, second) = (place.tlog_ok(&["keygen"]), place.tlog_ok(&["keygen"]));
    assert_ne!(first, second);
    assert_eq!(first.lines().last().unwrap().len(), 64);
    let said = place.tlog_ok(&["keygen", "-o", "my.key"]);
    assert!(said.contains("my.key; keep a copy"), "{said}");
    let made = std::fs::read_to_string(place.path().join("my.key")).unwrap();
    let said = place.tlog_fails(&["keygen", "-o", "my.key"]);
    assert!(said.contains("my.key is there already"), "{said}");
    assert_eq!(std::fs::read_to_string(place.path().join("my.key")).unwrap(), made);
    place.tlog_ok(&["keygen", "-o", "new/directory/key"]);
    place.tlog_fails(&["keygen", "-o", "my.key/below-a-file"]);
}

#[test]
fn config_prints_a_file_that_config_takes_and_shows_what_is_in_force() {
    let place = Place::new();
    std::fs::write(place.path().join("tlog.toml"), place.tlog_ok(&["config"])).unwrap();
    let said = place.tlog_ok(&["config", "--check", "tlog.toml"]);
    assert_eq!(said, "tlog.toml is right: 4+2, write quorum 5\n");
    std::fs::write(place.path().join("bad.toml"), "flush-sise = 3").unwrap();
    let said = place.tlog_fails(&["config", "--check", "bad.toml"]);
    assert_eq!(said, "tlog: there is no setting flush-sise (in bad.toml); did you mean flush-size?\n");
    std::fs::write(place.path().join("tlog.toml"), "flush-size = 3").unwrap();
    let said = place.tlog_ok(&["config", "--show", "-m", "3"]);
    assert!(said.contains("flush-size = 3  # in tlog.toml\n"), "{said}");
    assert!(said.contains("parity-shards = 3  # on the command line (--parity-shards)\n"), "{said}");
    assert!(said.contains("data-shards = 4  # by default\n"), "{said}");
    std::fs::write(place.path().join("shown.toml"), said).unwrap();
    place.tlog_ok(&["config", "--check", "shown.toml"]);
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let place = Place::new();
    assert_eq!(place.tlog(&[]).status.code(), Some(64));
    assert_eq!(place.tlog(&["nonsense"]).status.code(), Some(64));
    assert_eq!(place.tlog(&["scrub", "an/illegal/id"]).status.code(), Some(64));
    assert_eq!(place.tlog(&["--help"]).status.code(), Some(0));
}
