//! Restoring in order, over what is there, and comparing images.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tlog_player::{
    Comparison, DiskState, InPlaceTarget, Moment, RestoreDeviceError, RestoreError, RestoreOptions,
    RestoreSummary, compare_with_image, restore_in_order, restore_to_device,
};

use crate::log::{BLOCK_SIZE, TestLog, set_block};
use crate::oracle::random_story_of_both;

/// Something that is written to and kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn in_order(log: &TestLog, state: &DiskState, options: &RestoreOptions) -> (Vec<u8>, RestoreSummary) {
    let kept = Kept::default();
    let reader = log.reader().await;
    let restoring = restore_in_order(&reader, &log.keys, state, kept.clone(), options, |_| {});
    let summary = restoring.await.unwrap();
    let written = kept.0.lock().unwrap().clone();
    (written, summary)
}

#[tokio::test]
async fn in_order_every_disk_is_the_same_whatever_memory_there_is() {
    for seed in 0..12 {
        let story = random_story_of_both(seed, 2, 1, seed % 3 * 4, 10).await;
        let state = story.log.state(Moment::Newest).await.unwrap();
        let image = &story.newest().image;
        let (written, summary) = in_order(&story.log, &state, &RestoreOptions::default()).await;
        assert!(written == *image, "seed {seed}");
        assert_eq!(summary.aggregations, summary.aggregations_needed, "each is read once if all fits");
        for memory in [0, 1, 400, 800] {
            let options = RestoreOptions { min_len: 10_000, memory };
            let (written, summary) = in_order(&story.log, &state, &options).await;
            let mut expected = image.clone();
            expected.resize(10_000, 0);
            assert!(written == expected, "seed {seed}, {memory} bytes of memory");
            assert!(summary.aggregations >= summary.aggregations_needed);
            assert_eq!(summary.blocks, state.block_count() as u64);
        }
    }
}

#[tokio::test]
async fn what_nobody_reads_any_more_is_an_error() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = TestLog::with(2, 1, 5).await;
    let state = log.state(Moment::Newest).await.unwrap();
    let reader = log.reader().await;
    let options = RestoreOptions::default();
    let error = restore_in_order(&reader, &log.keys, &state, Closed, &options, |_| {}).await.unwrap_err();
    assert!(matches!(error, RestoreError::Target { .. }), "{error}");
}

/// A file full of something else.
fn garbage(path: &Path, len: usize) -> InPlaceTarget {
    std::fs::write(path, vec![0xa5; len]).unwrap();
    InPlaceTarget::new(OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
}

#[tokio::test]
async fn over_what_is_there_every_byte_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    for seed in 0..12 {
        let story = random_story_of_both(seed, 2, 1, seed % 2 * 3, 10).await;
        let state = story.log.state(Moment::Newest).await.unwrap();
        let mut expected = story.newest().image.clone();
        // Up to the middle of a page, so that its rest is zeros by hand and what follows by the file system.
        let target = Arc::new(garbage(&path, 50_001));
        let options = RestoreOptions { min_len: target.capacity(), ..RestoreOptions::default() };
        let reader = story.log.reader().await;
        let summary = reader.restore(&story.log.keys, &state, target, &options, |_| {}).await.unwrap();
        expected.resize(50_001, 0);
        assert!(std::fs::read(&path).unwrap() == expected, "seed {seed}");
        assert_eq!(summary.len, 50_001);

        let small = Arc::new(garbage(&path, story.newest().image.len() - 1));
        let options = RestoreOptions::default();
        let error = reader.restore(&story.log.keys, &state, small, &options, |_| {}).await.unwrap_err();
        assert!(matches!(error, RestoreError::Target { .. }), "{error}");
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0xa5), "nothing was written");
    }
}

#[tokio::test]
async fn only_a_block_device_is_one() {
    let log = TestLog::with(2, 1, 5).await;
    let state = log.state(Moment::Newest).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for path in [&file, Path::new("/dev/null"), directory.path()] {
        let (reader, options) = (log.reader().await, RestoreOptions::default());
        let error = restore_to_device(&reader, &log.keys, &state, path, &options, |_| {}).await.unwrap_err();
        assert!(matches!(error, RestoreDeviceError::NotADevice { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

async fn compare(state: &Arc<DiskState>, image: &[u8]) -> Comparison {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    compare_with_image(state, file.path(), |_, _| {}).await.unwrap()
}

#[tokio::test]
async fn an_image_is_the_disk_or_each_block_that_differs_is_named() {
    for seed in 0..8 {
        let story = random_story_of_both(seed, 2, 1, seed % 2 * 3, 10).await;
        let state = Arc::new(story.log.state(Moment::Newest).await.unwrap());
        let image = &story.newest().image;
        let same = compare(&state, image).await;
        assert!(same.is_equal(), "{same:?}");
        assert_eq!(same.blocks, state.block_count() as u64);
        let longer = [&image[..], &[0; 3 * BLOCK_SIZE + 7]].concat();
        assert!(compare(&state, &longer).await.is_equal(), "zeros behind the end are the disk too");
        for at in 0..longer.len() {
            let mut other = longer.clone();
            other[at] ^= 0x10;
            let found = compare(&state, &other).await;
            let named: Vec<u64> = found.first_different.iter().map(|index| index.get()).collect();
            assert_eq!(
                (found.different, named),
                (1, vec![(at / BLOCK_SIZE) as u64]),
                "seed {seed}, byte {at}"
            );
            assert!(!found.is_equal());
        }
        let shorter = compare(&state, &image[..image.len() - 1]).await;
        assert!(shorter.is_shorter() && !shorter.is_equal(), "{shorter:?}");
        let nothing = compare(&state, &[]).await;
        assert!(!nothing.is_equal(), "{nothing:?}");
    }
}

#[tokio::test]
async fn holes_are_zeros_and_data_anywhere_is_found() {
    let mut log = TestLog::new(2, 1).await;
    let content = vec![7; 64 << 10];
    log.append(1, &[set_block(1, 3, 1, content.clone()), set_block(2, 1 << 20, 1, vec![0; 64 << 10])]).await;
    log.publish().await;
    let state = Arc::new(log.state(Moment::Newest).await.unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    let len = state.disk_len().unwrap();
    file.as_file().set_len(len).unwrap();
    file.as_file().write_all_at(&content, 3 * (64 << 10)).unwrap();
    let check = async || compare_with_image(&state, file.path(), |_, _| {}).await.unwrap();
    let found = check().await;
    assert!(found.is_equal() && found.blocks == 2, "{found:?}");
    // Where nothing was ever written, far from anything.
    file.as_file().write_all_at(&[1], 500_000 * (64 << 10) + 5).unwrap();
    file.as_file().write_all_at(&[1], len - 1).unwrap();
    let found = check().await;
    let named: Vec<u64> = found.first_different.iter().map(|index| index.get()).collect();
    assert_eq!((found.different, named), (2, vec![500_000, 1 << 20]));
}
