//! What a directory store makes of files that are not as they were written.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use std::ops::Range;
use std::path::Path;

use common::{open_small_segments as open, *};
use tlog_proto::Epoch;
use tlog_store::{DirectoryStore, FillOutcome, HeadSlot, ShardSlot, ShardStore, StoreErrorKind};

const PAYLOAD: usize = 24;

/// A log with numbers 1 to `last` in one segment, each acknowledged before the next was sent. Answers where in the file each
/// record stands: that of the start, then those of the numbers.
async fn small_log(directory: &Path, last: u64) -> Vec<Range<usize>> {
    let store = open(directory);
    begin(&store, &disk(), 2, 1).await;
    for number in 1..=last {
        store.append(&disk(), n(number), shard(2, number, PAYLOAD), n(number - 1)).await.unwrap();
    }
    let bytes = std::fs::read(segment(directory, 1)).unwrap();
    let mut ends: Vec<usize> =
        (0..bytes.len()).step_by(8).filter(|&at| bytes[at..].starts_with(b"tls\x01")).collect();
    ends.push(bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1);
    // The first record is that of the promise.
    let records: Vec<_> = ends.windows(2).skip(1).map(|pair| pair[0]..pair[1]).collect();
    assert_eq!(records.len() as u64, 1 + last);
    records
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(usize),
    Truncate(usize),
    ZeroFrom(usize),
    GarbageFrom(usize),
}

fn damage(path: &Path, damage: Damage) {
    let mut bytes = std::fs::read(path).unwrap();
    match damage {
        Damage::Flip(at) => bytes[at] ^= 0xff,
        Damage::Truncate(at) => bytes.truncate(at),
        Damage::ZeroFrom(at) => bytes[at..].fill(0),
        Damage::GarbageFrom(at) => bytes[at..at + 500].fill(0xa5),
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_wherever_it_is_torn_and_written_over() {
    let whole = tempfile::tempdir().unwrap();
    let records = small_log(whole.path(), 4).await;
    let last = records.last().unwrap().clone();
    let kinds = [Damage::Flip, Damage::Truncate, Damage::ZeroFrom, Damage::GarbageFrom];
    for what in last.flat_map(|at| kinds.map(|kind| kind(at))) {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), what);
        let store = open(copy.path());
        assert_eq!(held(&store).await, [1, 2, 3], "{what:?}");
        assert_eq!(slot(&store, 4).await, ShardSlot::Empty, "{what:?}");
        store.append(&disk(), n(4), shard(2, 44, PAYLOAD), n(3)).await.unwrap();
        store.append(&disk(), n(5), shard(2, 5, 3 * PAYLOAD), n(3)).await.unwrap();
        drop(store);
        let store = open(copy.path());
        for number in 1..=3 {
            assert_eq!(slot(&store, number).await, ShardSlot::Held(shard(2, number, PAYLOAD)), "{what:?}");
        }
        assert_eq!(slot(&store, 4).await, ShardSlot::Held(shard(2, 44, PAYLOAD)), "{what:?}");
        assert_eq!(slot(&store, 5).await, ShardSlot::Held(shard(2, 5, 3 * PAYLOAD)), "{what:?}");
        assert_eq!(held(&store).await, [1, 2, 3, 4, 5], "{what:?}");
    }
}

#[tokio::test]
async fn a_torn_tail_is_not_there_for_a_reader_and_is_left_alone_by_it() {
    let whole = tempfile::tempdir().unwrap();
    let records = small_log(whole.path(), 3).await;
    for at in records.last().unwrap().clone().step_by(7) {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), Damage::ZeroFrom(at));
        let before = std::fs::read(segment(copy.path(), 1)).unwrap();
        let reader = DirectoryStore::open_read_only(copy.path()).unwrap();
        assert_eq!(held(&reader).await, [1, 2], "{at}");
        assert_eq!(slot(&reader, 3).await, ShardSlot::Empty);
        assert_eq!(std::fs::read(segment(copy.path(), 1)).unwrap(), before);
        // The rest of the write arrives.
        std::fs::copy(segment(whole.path(), 1), segment(copy.path(), 1)).unwrap();
        assert_eq!(held(&reader).await, [1, 2, 3], "{at}");
    }
}

#[tokio::test]
async fn rot_in_what_was_acknowledged_is_damage_of_that_number_and_can_be_filled() {
    let whole = tempfile::tempdir().unwrap();
    let records = small_log(whole.path(), 5).await;
    for (number, at) in
        [1, 3].into_iter().flat_map(|number| records[number as usize].clone().map(move |at| (number, at)))
    {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), Damage::Flip(at));
        let reader = DirectoryStore::open_read_only(copy.path()).unwrap();
        assert_eq!(slot(&reader, number).await, ShardSlot::Damaged, "byte {at}");
        let store = open(copy.path());
        assert_eq!(held(&store).await, [1, 2, 3, 4, 5], "byte {at}");
        let status = store.status(&disk()).await.unwrap();
        assert_eq!((status.epoch, status.committed, status.starts.len()), (Epoch(2), n(4), 1));
        for other in 1..=5 {
            let expected = match other {
                _ if other == number => ShardSlot::Damaged,
                _ => ShardSlot::Held(shard(2, other, PAYLOAD)),
            };
            assert_eq!(slot(&store, other).await, expected, "byte {at}, number {other}");
        }
        let outcome = store.fill(&disk(), n(number), shard(2, number, PAYLOAD)).await.unwrap();
        assert_eq!(outcome, FillOutcome::Stored, "byte {at}");
        drop(store);
        assert_eq!(slot(&open(copy.path()), number).await, ShardSlot::Held(shard(2, number, PAYLOAD)));
    }
}

#[tokio::test]
async fn rot_that_only_a_torn_tail_tells_of_stays_known_when_that_is_cut_off() {
    let whole = tempfile::tempdir().unwrap();
    let records = small_log(whole.path(), 3).await;
    // The write behind the rotten record began when that was durable, and was not finished.
    damage(&segment(whole.path(), 1), Damage::Flip(records[3].end - 1));
    for at in records[2].clone() {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), Damage::Flip(at));
        for opening in 1..=3 {
            let store = open(copy.path());
            assert_eq!(held(&store).await, [1, 2], "byte {at}, opening {opening}");
            assert_eq!(slot(&store, 2).await, ShardSlot::Damaged, "byte {at}, opening {opening}");
            assert_eq!(slot(&store, 3).await, ShardSlot::Empty, "byte {at}, opening {opening}");
        }
        let store = open(copy.path());
        store.append(&disk(), n(3), shard(2, 33, PAYLOAD), n(2)).await.unwrap();
        drop(store);
        let store = open(copy.path());
        assert_eq!(slot(&store, 2).await, ShardSlot::Damaged, "byte {at}");
        assert_eq!(slot(&store, 3).await, ShardSlot::Held(shard(2, 33, PAYLOAD)), "byte {at}");
    }
}

#[tokio::test]
async fn heads_need_only_the_head_part_to_be_whole() {
    let directory = tempfile::tempdir().unwrap();
    let records = small_log(directory.path(), 3).await;
    damage(&segment(directory.path(), 1), Damage::Flip(records[2].end - 1));
    damage(&segment(directory.path(), 1), Damage::Flip(records[1].end - PAYLOAD - 1));
    let store = open(directory.path());
    let heads = store.heads(&disk(), n(1)..=n(9), 1000).await.unwrap();
    assert_eq!(heads[0], (n(1), HeadSlot::Damaged));
    assert!(matches!(heads[1], (_, HeadSlot::Held(_))));
    assert_eq!(slot(&store, 1).await, ShardSlot::Damaged);
    assert_eq!(slot(&store, 2).await, ShardSlot::Damaged);
}

#[tokio::test]
async fn a_rotten_record_of_a_start_does_not_take_its_epoch_along() {
    let whole = tempfile::tempdir().unwrap();
    let records = small_log(whole.path(), 3).await;
    for at in records[0].clone() {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), Damage::Flip(at));
        let store = open(copy.path());
        let status = store.status(&disk()).await.unwrap();
        assert_eq!((status.epoch, status.committed), (Epoch(2), n(2)), "byte {at}");
        assert_eq!(held(&store).await, [1, 2, 3]);
        let fenced = store.promise(&disk(), Epoch(2)).await.unwrap_err();
        assert!(fenced.is_fenced());
    }
}

#[tokio::test]
async fn a_start_whose_record_is_rotten_drops_what_came_before_it_and_nothing_after() {
    let directory = tempfile::tempdir().unwrap();
    let records = small_log(directory.path(), 3).await;
    let store = open(directory.path());
    begin(&store, &disk(), 5, 3).await;
    store.publish(&disk(), Epoch(5), n(9)).await.unwrap();
    store.fill(&disk(), n(4), shard(2, 4, PAYLOAD)).await.unwrap();
    store.prune(&disk(), Epoch(5), n(2)).await.unwrap();
    drop(store);
    // Behind the records of the log stands the mark of the promise, then the state of the start.
    let mark = records.last().unwrap().end.next_multiple_of(8);
    damage(&segment(directory.path(), 1), Damage::Flip(mark + 120 + 20));
    let store = open(directory.path());
    assert_eq!(held(&store).await, [2, 4]);
    assert_eq!(slot(&store, 4).await, ShardSlot::Held(shard(2, 4, PAYLOAD)));
    let status = store.status(&disk()).await.unwrap();
    assert_eq!((status.epoch, status.first, status.starts.len()), (Epoch(5), n(2), 2));
}

#[tokio::test]
async fn rot_in_a_sealed_segment_is_damage_and_never_a_torn_tail() {
    let whole = tempfile::tempdir().unwrap();
    let store = open(whole.path());
    begin(&store, &disk(), 1, 1).await;
    let mut last = 0;
    while segments(whole.path()).len() < 3 {
        last += 1;
        store.append(&disk(), n(last), shard(1, last, 400), n(last - 1)).await.unwrap();
    }
    drop(store);
    let first = std::fs::read(segment(whole.path(), 1)).unwrap();
    for at in (0..first.len()).step_by(97) {
        let copy = copy_of(whole.path());
        damage(&segment(copy.path(), 1), Damage::Flip(at));
        let store = open(copy.path());
        let mut damaged = 0;
        for number in 1..=last {
            match slot(&store, number).await {
                ShardSlot::Held(found) => assert_eq!(found, shard(1, number, 400)),
                ShardSlot::Damaged => damaged += 1,
                // The last record of a segment has none after it that would name it.
                ShardSlot::Empty => damaged += 1,
            }
        }
        assert!(damaged <= 1, "byte {at}: {damaged}");
        let status = store.status(&disk()).await.unwrap();
        assert_eq!((status.epoch, status.committed), (Epoch(1), n(last - 1)));
    }
}

#[tokio::test]
async fn segments_without_any_state_are_an_error_and_not_an_empty_log() {
    let directory = tempfile::tempdir().unwrap();
    small_log(directory.path(), 2).await;
    let path = segment(directory.path(), 1);
    std::fs::write(&path, vec![0xa5; 5000]).unwrap();
    for store in [open(directory.path()), DirectoryStore::open_read_only(directory.path()).unwrap()] {
        let error = store.status(&disk()).await.unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::Damaged { .. }), "{error}");
    }
    let error = open(directory.path()).promise(&disk(), Epoch(9)).await.unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::Damaged { .. }), "{error}");
    assert!(std::fs::read(&path).unwrap() == vec![0xa5; 5000], "nothing of it is lost");
}

#[tokio::test]
async fn a_segment_that_was_being_made_in_a_crash_is_as_if_it_never_was() {
    let directory = tempfile::tempdir().unwrap();
    small_log(directory.path(), 2).await;
    let unfinished = segment(directory.path(), 2).with_extension("new");
    std::fs::write(&unfinished, [1; 300]).unwrap();
    assert_eq!(held(&DirectoryStore::open_read_only(directory.path()).unwrap()).await, [1, 2]);
    assert!(unfinished.exists());
    assert_eq!(held(&open(directory.path())).await, [1, 2]);
    assert!(!unfinished.exists());
}
