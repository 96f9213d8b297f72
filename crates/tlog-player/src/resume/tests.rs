//! Journals, whole and damaged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, Timestamp, VdiskId};

use super::journal::{Begun, Complete, Found, Journal, NotLocked, Told};
use crate::format1::StoredFormat;
use crate::job::JobKey;
use crate::moment::MomentReached;

fn begun() -> Begun {
    Begun {
        vdisk: VdiskId::new("disk").unwrap(),
        reached: MomentReached {
            format: StoredFormat::Two,
            aggregation: AggregationNumber(7),
            id: AggregationId([9; 32]),
            blocks: 3,
            of: 5,
            position: LogPosition { generation: Generation(2), sequence: Sequence(99) },
            timestamp: Timestamp(1_700_000_000_000_000_000),
        },
        newest: true,
        block_size: 4096,
        len: 1 << 40,
        file: 4711,
    }
}

fn keys(numbers: &[u64]) -> Vec<JobKey> {
    numbers.iter().map(|number| (StoredFormat::Two, AggregationNumber(*number))).collect()
}

/// A journal with two notes and the word that all is there, and what it tells.
fn whole() -> (tempfile::TempDir, PathBuf, Told) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (mut journal, found) = Journal::open(path.clone()).unwrap();
    assert_eq!(found, Found::Empty);
    let complete = Complete { len: 1 << 40, modified: 77 };
    journal.begin(&begun()).unwrap();
    journal.done(&keys(&[1, 2, 3])).unwrap();
    journal.done(&[(StoredFormat::One, AggregationNumber(1))]).unwrap();
    journal.complete(complete).unwrap();
    let mut done: BTreeSet<JobKey> = keys(&[1, 2, 3]).into_iter().collect();
    done.insert((StoredFormat::One, AggregationNumber(1)));
    (directory, path, Told { begun: begun(), done, complete: Some(complete) })
}

fn open(path: &Path) -> (Journal, Found) {
    Journal::open(path.to_owned()).unwrap()
}

fn told(found: Found) -> Told {
    match found {
        Found::Told(told) => *told,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_journal_tells_what_was_noted_and_only_one_can_have_it_open() {
    let (_directory, path, expected) = whole();
    let (journal, found) = open(&path);
    assert_eq!(told(found), expected);
    assert!(matches!(Journal::open(path.clone()), Err(NotLocked::Busy)));
    drop(journal);
    open(&path);
}

#[test]
fn whatever_is_cut_off_or_flipped_nothing_is_told_that_was_not_noted() {
    let (_directory, path, expected) = whole();
    let bytes = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        match open(&path).1 {
            Found::Told(told) => {
                assert_eq!(told.begun, expected.begun, "{what}");
                assert!(told.done.is_subset(&expected.done), "{what}");
                assert!(told.complete.is_none_or(|_| told == Box::new(whole().2)), "{what}");
                assert!(told.done.len() < expected.done.len() || told.complete.is_none(), "{what}");
            }
            Found::Empty => assert!(bytes.is_empty(), "{what}"),
            Found::Unreadable => {}
            Found::OtherVersion(version) => panic!("{what}: {version}"),
        }
    };
    for length in 0..bytes.len() {
        check(&bytes[..length], &format!("cut off at {length}"));
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        check(&flipped, &format!("flipped at {at}"));
    }
}

#[test]
fn what_is_noted_behind_a_torn_end_is_told_and_what_was_torn_is_not() {
    let (_directory, path, _) = whole();
    let bytes = std::fs::read(&path).unwrap();
    // The last note, of 8 + 17 bytes, is torn; so is the middle of the one before it.
    std::fs::write(&path, &bytes[..bytes.len() - 25 - 3]).unwrap();
    let (mut journal, found) = open(&path);
    assert_eq!(told(found).done, keys(&[1, 2, 3]).into_iter().collect());
    journal.done(&keys(&[8])).unwrap();
    drop(journal);
    let (mut journal, found) = open(&path);
    let after = told(found);
    assert_eq!((after.done, after.complete), (keys(&[1, 2, 3, 8]).into_iter().collect(), None));
    journal.begin(&begun()).unwrap();
    drop(journal);
    assert!(told(open(&path).1).done.is_empty());
}

#[test]
fn a_journal_of_another_version_and_what_is_none_are_told_apart() {
    let (_directory, path, _) = whole();
    let frame = |body: &[u8]| {
        let length = (body.len() as u32).to_le_bytes();
        let crc = crc32c::crc32c(&[&length[..], body].concat()).to_le_bytes();
        [&length[..], &crc, body].concat()
    };
    let check = |bytes: &[u8], expected: Found| {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(open(&path).1, expected);
    };
    check(&frame(b"Btlog restore\x02whatever"), Found::OtherVersion(2));
    check(&frame(b"Btlog restore\x01too short"), Found::Unreadable);
    check(&frame(b"D"), Found::Unreadable);
    check(b"somebody's shopping list", Found::Unreadable);
    let mut lying = frame(b"Btlog restore\x01");
    lying[3] = 0xff;
    check(&lying, Found::Unreadable);
}
