//! A directory store and the processes around it: the lock, readers, room.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::*;
use tlog_proto::{Epoch, VdiskId};
use tlog_store::{
    DirectoryOptions, DirectoryStore, Holder, Members, ShardSlot, ShardStore, StartRecord, StoreError,
    StoreErrorKind, lock_holder,
};

fn with_note(note: &str) -> DirectoryOptions {
    DirectoryOptions { note: note.to_owned(), ..DirectoryOptions::default() }
}

#[tokio::test]
async fn a_second_writer_is_told_who_the_first_one_is() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(lock_holder(directory.path()).unwrap(), None);
    let store = DirectoryStore::open(directory.path(), with_note("admin 127.0.0.1:1")).unwrap();
    let pid = std::process::id();
    let holder = |note: &str| Some(Holder { pid, note: note.to_owned() });
    assert_eq!(lock_holder(directory.path()).unwrap(), holder("admin 127.0.0.1:1"));
    match DirectoryStore::open(directory.path(), with_note("other")).unwrap_err().kind {
        StoreErrorKind::Locked { holder } => assert_eq!(holder, format!("pid {pid}, admin 127.0.0.1:1")),
        other => panic!("{other}"),
    }
    store.set_lock_note("x").unwrap();
    assert_eq!(lock_holder(directory.path()).unwrap(), holder("x"));
    drop(store);
    assert_eq!(lock_holder(directory.path()).unwrap(), None);
    DirectoryStore::open(directory.path(), with_note("other")).unwrap();
    assert_eq!(lock_holder(directory.path().join("nowhere")).unwrap(), None);
}

#[tokio::test]
async fn asking_who_holds_the_lock_never_keeps_a_writer_out() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let path = directory.path().to_owned();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let asking = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            lock_holder(&path).unwrap();
        }
    });
    for _ in 0..200 {
        drop(open(directory.path()));
    }
    drop(stop);
    asking.join().unwrap();
}

#[tokio::test]
async fn a_reader_writes_nothing_and_refuses_to() {
    let directory = tempfile::tempdir().unwrap();
    assert!(DirectoryStore::open_read_only(directory.path().join("nowhere")).is_err());
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    let read_only = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::ReadOnly), "{error}");
    };
    let disk = disk();
    let start = StartRecord { epoch: Epoch(1), number: n(1) };
    read_only(reader.promise(&disk, Epoch(1)).await.map(drop));
    read_only(reader.start(&disk, start, &Members::default()).await.map(drop));
    read_only(reader.append(&disk, n(1), shard(1, 1, 5), n(0)).await.map(drop));
    read_only(reader.publish(&disk, Epoch(1), n(0)).await.map(drop));
    read_only(reader.fill(&disk, n(1), shard(1, 1, 5)).await.map(drop));
    read_only(reader.prune(&disk, Epoch(1), n(1)).await);
    read_only(reader.delete(&disk, Epoch(1)).await);
    read_only(reader.set_lock_note("x"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    // It sees a log that comes later.
    assert_eq!(reader.status(&disk).await.unwrap().identity, None);
    let writer = open(directory.path());
    begin(&writer, &disk, 1, 1).await;
    writer.append(&disk, n(1), shard(1, 1, 50), n(0)).await.unwrap();
    assert_eq!(slot(&reader, 1).await, ShardSlot::Held(shard(1, 1, 50)));
    assert_eq!(reader.vdisks().await.unwrap(), [disk]);
}

#[tokio::test]
async fn a_reader_follows_a_store_that_was_replaced_under_it() {
    let directory = tempfile::tempdir().unwrap();
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    let mut identities = Vec::new();
    for round in 1..=3 {
        let writer = open(directory.path());
        begin(&writer, &disk(), round, 1).await;
        for number in 1..=round {
            writer.append(&disk(), n(number), shard(round, number, 50), n(0)).await.unwrap();
        }
        assert_eq!(held(&reader).await, (1..=round).collect::<Vec<_>>());
        assert_eq!(slot(&reader, 1).await, ShardSlot::Held(shard(round, 1, 50)));
        identities.extend(reader.status(&disk()).await.unwrap().identity);
        drop(writer);
        std::fs::remove_dir_all(directory.path().join("disk")).unwrap();
    }
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), 3);
    assert_eq!(reader.status(&disk()).await.unwrap().identity, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_a_log_that_is_deleted_and_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Arc::new(open_small_segments(directory.path()));
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    let rounds = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move {
            for round in 1..=40 {
                begin(&writer, &disk(), 1, 1).await;
                for number in 1..=20 {
                    writer.append(&disk(), n(number), shard(1, number, 900), n(number)).await.unwrap();
                }
                if round < 40 {
                    writer.delete(&disk(), Epoch(1)).await.unwrap();
                }
            }
        }
    });
    while !rounds.is_finished() {
        match reader.shard(&disk(), n(1)).await {
            Ok(ShardSlot::Held(found)) => assert_eq!(found, shard(1, 1, 900)),
            Ok(ShardSlot::Empty) | Err(StoreError { kind: StoreErrorKind::NoLog, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    rounds.await.unwrap();
    assert_eq!(reader.status(&disk()).await.unwrap(), writer.status(&disk()).await.unwrap());
    writer.delete(&disk(), Epoch(1)).await.unwrap();
    assert_eq!(reader.status(&disk()).await.unwrap().identity, None);
    assert_eq!(reader.vdisks().await.unwrap(), []);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[tokio::test]
async fn what_a_crash_left_of_a_deleted_log_is_removed_by_the_next_writer() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let left = directory.path().join(".deleted-0123");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("00000000000000000001.seg"), b"x").unwrap();
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    assert_eq!(reader.vdisks().await.unwrap(), []);
    assert!(left.exists(), "a reader removes nothing");
    drop(open(directory.path()));
    assert!(!left.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_beside_a_busy_writer_never_sees_a_hole_or_a_wrong_shard() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Arc::new(open_small_segments(directory.path()));
    begin(&writer, &disk(), 1, 1).await;
    let writing = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move {
            for number in 1..=400u64 {
                writer.append(&disk(), n(number), shard(1, number, 700), n(number)).await.unwrap();
                if number % 20 == 0 {
                    writer.prune(&disk(), Epoch(1), n(number - 15)).await.unwrap();
                }
            }
        }
    });
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    let mut seen = 0;
    while !writing.is_finished() {
        let status = reader.status(&disk()).await.unwrap();
        assert!(status.committed.0 >= seen, "it went back from {seen} to {}", status.committed);
        seen = status.committed.0;
        let holes = status.held.missing_in(status.first..=status.committed);
        assert!(holes.is_empty() || seen == 0, "{holes:?} of {}..={}", status.first, status.committed);
        for number in [status.first.0, seen] {
            match reader.shard(&disk(), n(number)).await.unwrap() {
                ShardSlot::Held(found) => assert_eq!(found, shard(1, number, 700)),
                // It may have been pruned since.
                ShardSlot::Empty => assert!(
                    reader.status(&disk()).await.unwrap().first.0 > number || number == 0 || seen == 0
                ),
                ShardSlot::Damaged => panic!("{number} is damaged"),
            }
        }
    }
    writing.await.unwrap();
    assert_eq!(reader.status(&disk()).await.unwrap(), writer.status(&disk()).await.unwrap());
}

#[tokio::test]
async fn the_room_of_pruned_history_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_small_segments(directory.path());
    begin(&store, &disk(), 1, 1).await;
    for number in 1..=100 {
        store.append(&disk(), n(number), shard(1, number, 4000), n(number)).await.unwrap();
    }
    let full = bytes_on_disk(directory.path());
    assert!(full > 400_000, "{full}");
    store.prune(&disk(), Epoch(1), n(50)).await.unwrap();
    let half = bytes_on_disk(directory.path());
    assert!(half < full * 2 / 3, "{half} of {full}");
    store.prune(&disk(), Epoch(1), n(101)).await.unwrap();
    let nothing = bytes_on_disk(directory.path());
    assert!(nothing <= 128 << 10, "{nothing}");
    drop(store);
    let status = open(directory.path()).status(&disk()).await.unwrap();
    assert_eq!((status.first, status.committed, status.head()), (n(101), n(100), n(0)));
}

#[tokio::test]
async fn the_room_of_what_a_start_drops_comes_back_and_it_stays_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_small_segments(directory.path());
    begin(&store, &disk(), 1, 1).await;
    for number in 1..=100 {
        store.append(&disk(), n(number), shard(1, number, 4000), n(1)).await.unwrap();
    }
    let full = bytes_on_disk(directory.path());
    begin(&store, &disk(), 2, 2).await;
    let after = bytes_on_disk(directory.path());
    assert!(after < full / 3, "{after} of {full}");
    // The segment that has number 1 also has others, which must not come back, whatever goes after it.
    for round in 3..6 {
        for number in 2..=30 {
            store.append(&disk(), n(number), shard(round - 1, number, 4000), n(1)).await.unwrap();
        }
        begin(&store, &disk(), round, 2).await;
    }
    drop(store);
    let store = open_small_segments(directory.path());
    assert_eq!(held(&store).await, [1]);
    assert!(bytes_on_disk(directory.path()) < full / 2);
}

#[tokio::test]
async fn what_is_written_again_gives_back_the_room_of_what_it_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_small_segments(directory.path());
    begin(&store, &disk(), 1, 1).await;
    for round in 0..40 {
        for number in 1..=10 {
            let shard = shard(1, number, 4000 + round);
            store.append(&disk(), n(number), shard, n(0)).await.unwrap();
        }
    }
    assert!(bytes_on_disk(directory.path()) < 300_000);
    assert_eq!(held(&store).await, (1..=10).collect::<Vec<_>>());
}

/// Replaces number 2 until that takes a new segment.
async fn fill_segment(store: &DirectoryStore, directory: &Path) {
    let last = segments(directory).pop();
    while segments(directory).pop() == last {
        store.append(&disk(), n(2), shard(4, 2, 1000), n(20)).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_fill_of_an_older_epoch_had_replaced_never_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        DirectoryOptions { first_segment_bytes: 1, max_segment_bytes: 1, ..DirectoryOptions::default() };
    let store = DirectoryStore::open(directory.path(), options).unwrap();
    let reader = DirectoryStore::open_read_only(directory.path()).unwrap();
    begin(&store, &disk(), 4, 1).await;
    // Number 10 of epoch 4 is in a segment that stays, number 11 in one that goes.
    store.append(&disk(), n(1), shard(4, 1, 10), n(20)).await.unwrap();
    store.append(&disk(), n(10), shard(4, 10, 10), n(20)).await.unwrap();
    fill_segment(&store, directory.path()).await;
    store.append(&disk(), n(11), shard(4, 11, 10), n(20)).await.unwrap();
    fill_segment(&store, directory.path()).await;
    store.append(&disk(), n(3), shard(4, 3, 10), n(20)).await.unwrap();
    assert_eq!(held(&reader).await, [1, 2, 3, 10, 11]);
    fill_segment(&store, directory.path()).await;
    store.fill(&disk(), n(10), shard(3, 10, 10)).await.unwrap();
    fill_segment(&store, directory.path()).await;
    store.fill(&disk(), n(11), shard(3, 11, 10)).await.unwrap();
    fill_segment(&store, directory.path()).await;
    let before = segments(directory.path()).len();
    let start = StartRecord { epoch: Epoch(4), number: n(10) };
    store.start(&disk(), start, &Members::default()).await.unwrap();
    fill_segment(&store, directory.path()).await;
    assert_eq!(held(&store).await, [1, 2, 3]);
    assert_eq!(held(&reader).await, [1, 2, 3]);
    assert_eq!(slot(&reader, 11).await, ShardSlot::Empty);
    drop(store);
    let store = open(directory.path());
    assert_eq!(held(&store).await, [1, 2, 3]);
    // Once nothing of epoch 4 is left that it hides, the segment of the fills goes.
    store.prune(&disk(), Epoch(4), n(2)).await.unwrap();
    assert!(segments(directory.path()).len() < before);
    drop(store);
    assert_eq!(held(&open(directory.path())).await, [2, 3]);
}

#[tokio::test]
async fn small_logs_take_little_room_and_few_open_files() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..300 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let vdisk = VdiskId::new(&format!("disk-{at}")).unwrap();
            begin(&store, &vdisk, 1, 1).await;
            store.append(&vdisk, n(1), shard(1, 1, 100), n(0)).await.unwrap();
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let open_here = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let open_here = open_here.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open_here = open_here.filter(|path| path.starts_with(directory.path())).count();
    assert!(open_here <= 65, "{open_here} files are open");
    assert_eq!(store.vdisks().await.unwrap().len(), 300);
    let segment = directory.path().join("disk-7").join("00000000000000000001.seg");
    assert!(std::fs::metadata(segment).unwrap().len() <= 256 << 10);
}

#[tokio::test]
async fn a_log_whose_files_were_deleted_under_it_takes_no_writes_until_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    begin(&store, &disk(), 1, 1).await;
    std::fs::remove_dir_all(directory.path().join("disk")).unwrap();
    for _ in 0..2 {
        let error = store.append(&disk(), n(1), shard(1, 1, 10), n(0)).await.unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::Unavailable { .. }), "{error}");
    }
    let other = VdiskId::new("other").unwrap();
    begin(&store, &other, 1, 1).await;
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.status(&disk()).await.unwrap().identity, None);
    begin(&store, &disk(), 1, 1).await;
}

/// Runs `test` of this file in a child process, in a file system of its own that has room for two megabytes. Answers whether that
/// could be done here.
fn in_a_small_file_system(test: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m,mode=0777 none \"$0\" || exit 77; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(directory.path());
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env(SMALL, directory.path()).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
        _ => false,
    }
}

const SMALL: &str = "TLOG_TEST_SMALL_FILE_SYSTEM";

#[tokio::test]
async fn a_full_store_says_so_can_be_pruned_and_goes_on() {
    let Some(directory) = std::env::var_os(SMALL) else {
        if !in_a_small_file_system("a_full_store_says_so_can_be_pruned_and_goes_on") {
            eprintln!("skipped: no small file system can be mounted here");
        }
        return;
    };
    let store = open(directory.as_ref());
    begin(&store, &disk(), 1, 1).await;
    let disk_id = disk();
    let append = |number| store.append(&disk_id, n(number), shard(1, number, 20_000), n(number - 1));
    let mut number = 0;
    let full = loop {
        number += 1;
        if let Err(error) = append(number).await {
            break error;
        }
    };
    assert!(matches!(full.kind, StoreErrorKind::Full { .. }), "{full}");
    assert!(number > 50, "only {number} were stored");
    assert!(matches!(append(number).await.unwrap_err().kind, StoreErrorKind::Full { .. }));
    let last = number - 1;
    assert_eq!(held(&store).await, (1..=last).collect::<Vec<_>>());
    // Small ones fill what is left. They are of other numbers: what is replaced would give its room back.
    let mut small = number;
    for payload in [1000, 0] {
        while store.append(&disk_id, n(small), shard(1, small, payload), n(last)).await.is_ok() {
            small += 1;
        }
    }
    // Fencing and pruning still work.
    begin(&store, &disk(), 2, last + 1).await;
    store.publish(&disk(), Epoch(2), n(last)).await.unwrap();
    store.prune(&disk(), Epoch(2), n(last - 5)).await.unwrap();
    store.append(&disk(), n(number), shard(2, number, 20_000), n(last)).await.unwrap();
    drop(store);
    let store = open(directory.as_ref());
    assert_eq!(held(&store).await, (last - 5..=number).collect::<Vec<_>>());
    assert_eq!(slot(&store, number).await, ShardSlot::Held(shard(2, number, 20_000)));
}
