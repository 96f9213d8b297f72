//! Restoring to files.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tlog_player::{
    DiskState, FileOptions, Moment, RestoreError, RestoreFileError, RestoreOptions, RestoreSummary,
    restore_to_file,
};

use crate::log::{TestLog, set_block};
use crate::oracle::random_story;

async fn restore(
    log: &TestLog,
    path: &Path,
    options: &FileOptions,
) -> Result<RestoreSummary, RestoreFileError> {
    let state: DiskState = log.state(Moment::Newest).await.unwrap();
    restore_to_file(&log.reader().await, &log.keys, &state, path, options, |_| {}).await
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const OVERWRITE: FileOptions =
    FileOptions { overwrite: true, restore: RestoreOptions { min_len: 0, memory: 1 << 20 } };

#[tokio::test]
async fn a_disk_is_restored_to_a_file_of_its_length() {
    let story = random_story(1, 4, 2, 9).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let summary = restore(&story.log, &path, &FileOptions::default()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == story.newest().image);
    assert_eq!(summary.len, story.newest().image.len() as u64);
    assert_eq!(names(directory.path()), ["disk.img"]);

    // The real length of the disk, where that is known.
    let longer = FileOptions { restore: RestoreOptions { min_len: 10_000, memory: 1 }, ..OVERWRITE };
    restore(&story.log, &path, &longer).await.unwrap();
    let mut expected = story.newest().image.clone();
    expected.resize(10_000, 0);
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[tokio::test]
async fn zeros_become_holes_also_inside_of_blocks() {
    let mut log = TestLog::new(2, 1).await;
    let mut sparse = vec![0; 1 << 20];
    sparse[700_000] = 1;
    log.append(
        1,
        &[
            set_block(1, 0, 1, sparse.clone()),
            set_block(2, 1, 1, vec![0; 1 << 20]),
            set_block(3, 63, 1, sparse.clone()),
        ],
    )
    .await;
    log.publish().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    restore(&log, &path, &FileOptions::default()).await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 <= 64 << 10, "{} bytes are allocated", metadata.blocks() * 512);
    let content = std::fs::read(&path).unwrap();
    assert!(content[..1 << 20] == sparse && content[63 << 20..] == sparse);
    assert!(content[1 << 20..63 << 20].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn what_is_there_is_replaced_only_if_that_was_said_and_only_by_something_complete() {
    let story = random_story(2, 2, 1, 5).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, "precious").unwrap();
    let error = restore(&story.log, &path, &FileOptions::default()).await.unwrap_err();
    assert!(matches!(&error, RestoreFileError::Exists { path: there } if *there == path), "{error}");

    story.log.memory[0].wipe();
    story.log.memory[2].wipe();
    let error = restore(&story.log, &path, &OVERWRITE).await.unwrap_err();
    assert!(matches!(error, RestoreFileError::Restore(RestoreError::DataLost { .. })), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(directory.path()), ["disk.img"], "nothing is left of the attempt");

    let story = random_story(2, 2, 1, 5).await;
    let link = directory.path().join("link.img");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    restore(&story.log, &link, &OVERWRITE).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == story.newest().image, "what the link leads to is replaced");
    assert!(link.is_symlink());

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    restore(&story.log, &path, &OVERWRITE).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "who may read it stays as it was");
}

#[tokio::test]
async fn what_appears_during_a_restore_is_not_replaced() {
    let story = random_story(3, 2, 1, 5).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let state = story.log.state(Moment::Newest).await.unwrap();
    let reader = story.log.reader().await;
    let appear = |_: &_| std::fs::write(&path, "precious").unwrap();
    let result =
        restore_to_file(&reader, &story.log.keys, &state, &path, &FileOptions::default(), appear).await;
    assert!(matches!(result.unwrap_err(), RestoreFileError::Exists { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(directory.path()), ["disk.img"]);
}

#[tokio::test]
async fn what_is_no_file_or_cannot_be_written_is_refused_by_name() {
    let story = random_story(4, 2, 1, 5).await;
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), Path::new("/dev/null")] {
        let error = restore(&story.log, path, &OVERWRITE).await.unwrap_err();
        assert!(matches!(error, RestoreFileError::NotAFile { .. }), "{error}");
    }
    let nowhere = directory.path().join("no/such/disk.img");
    let error = restore(&story.log, &nowhere, &OVERWRITE).await.unwrap_err();
    assert!(matches!(error, RestoreFileError::Io { what: "create", .. }), "{error}");
    assert!(error.to_string().contains("no/such"), "{error}");
    // Longer than any file can be.
    let file = directory.path().join("disk.img");
    let endless = FileOptions { restore: RestoreOptions { min_len: u64::MAX, memory: 1 }, ..OVERWRITE };
    let error = restore(&story.log, &file, &endless).await.unwrap_err();
    assert!(matches!(error, RestoreFileError::Restore(RestoreError::Target { .. })), "{error}");
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_restore_that_is_given_up_leaves_nothing_behind() {
    let story = random_story(5, 2, 1, 5).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let state = story.log.state(Moment::Newest).await.unwrap();
    let reader = story.log.reader().await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    let begin = |_: &_| {
        assert_eq!(names(directory.path()).len(), 1, "it is not under its name yet");
        assert!(!path.exists());
        story.log.controls.iter().for_each(|control| control.hang());
        begun.take().into_iter().for_each(|begun| begun.send(()).unwrap());
    };
    let options = FileOptions::default();
    tokio::select! {
        _ = has_begun => {}
        _ = restore_to_file(&reader, &story.log.keys, &state, &path, &options, begin) => {
            panic!("no store answers");
        }
    }
    assert_eq!(names(directory.path()), Vec::<String>::new());
}
