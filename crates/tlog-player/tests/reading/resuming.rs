//! Restores to files that are interrupted, and gone on with.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tlog_player::{
    DiskState, Moment, RestoreError, RestoreFileError, RestoreOptions, RestoreSummary, ResumableFile,
    ResumeError, ResumeOptions,
};

use crate::file::names;
use crate::log::{BLOCK_SIZE, TestLog, set_block};
use crate::oracle::{Story, random_story};

/// Notes every aggregation, and reads them one after the other.
const EACH: ResumeOptions = ResumeOptions {
    restore: RestoreOptions { min_len: 0, memory: 1 },
    sync_bytes: 1,
    check: true,
    ignore_free_space: false,
};

/// A file to restore to, in a directory of its own.
struct Scene {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        Self { directory, path }
    }

    fn beside(&self) -> PathBuf {
        self.directory.path().join(".disk.img.restoring")
    }

    fn journal(&self) -> PathBuf {
        self.directory.path().join(".disk.img.restoring.journal")
    }

    fn names(&self) -> Vec<String> {
        names(self.directory.path())
    }
}

async fn restore_until(
    log: &TestLog,
    path: &Path,
    asked: Moment,
    (overwrite, fresh): (bool, bool),
    most: u64,
) -> Result<RestoreSummary, ResumeError> {
    let file = ResumableFile::lock(path, overwrite, fresh)?;
    let state: DiskState = log.state(file.moment(&log.vdisk, asked)).await.unwrap();
    let (enough, is_enough) = tokio::sync::oneshot::channel::<()>();
    let mut enough = Some(enough);
    let mut begun_with = None;
    let progress = |progress: &tlog_player::RestoreProgress| {
        let done = progress.aggregations - *begun_with.get_or_insert(progress.aggregations);
        if done >= most {
            // What stops it is heard of only when there is something to wait for.
            log.controls.iter().for_each(|control| control.hang());
            enough.take();
        }
    };
    let stop = async { drop(is_enough.await) };
    let (state, reader) = (Arc::new(state), log.reader().await);
    let result = file.restore(&reader, &log.keys, &state, asked, &EACH, stop, progress).await;
    log.controls.iter().for_each(|control| control.release());
    result
}

async fn restore(log: &TestLog, path: &Path, asked: Moment) -> Result<RestoreSummary, ResumeError> {
    restore_until(log, path, asked, (false, false), u64::MAX).await
}

/// A restore of which two aggregations are done; how many it needs.
async fn interrupted(story: &Story, scene: &Scene, asked: Moment) -> u64 {
    let error = restore_until(&story.log, &scene.path, asked, (false, false), 2).await.unwrap_err();
    let ResumeError::Interrupted { aggregations, .. } = error else { panic!("{error}") };
    assert_eq!(aggregations, 2);
    assert_eq!(scene.names(), [".disk.img.restoring", ".disk.img.restoring.journal"]);
    aggregations
}

fn is_newest(story: &Story, scene: &Scene) {
    assert!(std::fs::read(&scene.path).unwrap() == story.newest().image);
    assert_eq!(scene.names(), ["disk.img"], "nothing else is left");
}

#[tokio::test]
async fn what_is_done_is_not_read_again_and_the_file_is_the_disk() {
    for seed in 0..5 {
        let (story, scene) = (random_story(seed, 2, 1, 12).await, Scene::new());
        let mut before = 0;
        let mut turns = 0;
        let summary = loop {
            match restore_until(&story.log, &scene.path, Moment::Newest, (false, false), 1).await {
                Ok(summary) => break summary,
                Err(ResumeError::Interrupted { aggregations, .. }) => {
                    assert!(aggregations > before, "seed {seed}: {aggregations} after {before}");
                    before = aggregations;
                    turns += 1;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
            assert!(!scene.path.exists());
        };
        assert!(turns > 0, "seed {seed}");
        assert_eq!(summary.before.aggregations, before, "seed {seed}");
        assert_eq!(summary.aggregations + before, summary.aggregations_needed, "seed {seed}");
        is_newest(&story, &scene);
    }
}

#[tokio::test]
async fn what_was_begun_as_the_newest_moment_stays_that_moment_until_somebody_says_otherwise() {
    let (mut story, scene) = (random_story(4, 2, 1, 12).await, Scene::new());
    let done = interrupted(&story, &scene, Moment::Newest).await;
    let next = story.newest().sequence + 1;
    let content = vec![0xee; BLOCK_SIZE];
    story.log.append(story.newest().generation, &[set_block(next, 1, 9_999, content.clone())]).await;
    story.log.publish().await;
    let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
    assert_eq!(summary.before.aggregations, done);
    is_newest(&story, &scene);

    std::fs::remove_file(&scene.path).unwrap();
    interrupted(&story, &scene, Moment::Newest).await;
    let fresh = restore_until(&story.log, &scene.path, Moment::Newest, (false, true), u64::MAX).await;
    assert_eq!(fresh.unwrap().before.aggregations, 0);
    assert!(std::fs::read(&scene.path).unwrap()[BLOCK_SIZE..2 * BLOCK_SIZE] == content);
}

#[tokio::test]
async fn another_moment_another_disk_and_another_length_leave_what_was_begun_as_it_is() {
    let (story, scene) = (random_story(5, 2, 1, 12).await, Scene::new());
    let asked = Moment::Sequence {
        generation: None,
        sequence: story.log.state(Moment::Newest).await.unwrap().reached().unwrap().position.sequence,
    };
    interrupted(&story, &scene, asked).await;
    let files = || (std::fs::read(scene.beside()).unwrap(), std::fs::read(scene.journal()).unwrap());
    let before = files();
    let is_other = |result: Result<RestoreSummary, ResumeError>| {
        let error = result.unwrap_err();
        let ResumeError::OtherRestore { begun, .. } = &error else { panic!("{error}") };
        assert_eq!(begun.vdisk, story.log.vdisk);
        assert!(files() == before);
    };
    let first = story.snapshots.iter().find(|s| s.generation == story.newest().generation).unwrap();
    is_other(
        restore(
            &story.log,
            &scene.path,
            Moment::Aggregation(tlog_proto::AggregationNumber(first.aggregation)),
        )
        .await,
    );
    let mut other = random_story(6, 2, 1, 5).await;
    other.log.vdisk = tlog_proto::VdiskId::new("another").unwrap();
    is_other(restore(&other.log, &scene.path, Moment::Newest).await);
    let file = ResumableFile::lock(&scene.path, false, false).unwrap();
    assert_eq!(file.unfinished().unwrap().moment(), Moment::Aggregation(story.log.last()));
    let state = Arc::new(story.log.state(asked).await.unwrap());
    let longer = ResumeOptions { restore: RestoreOptions { min_len: 1 << 20, memory: 1 }, ..EACH };
    let (reader, stop) = (story.log.reader().await, std::future::pending());
    is_other(file.restore(&reader, &story.log.keys, &state, asked, &longer, stop, |_| {}).await);
    restore(&story.log, &scene.path, asked).await.unwrap();
    is_newest(&story, &scene);
}

#[tokio::test]
async fn only_one_restores_to_a_file_at_a_time() {
    let (story, scene) = (random_story(5, 2, 1, 12).await, Scene::new());
    let file = ResumableFile::lock(&scene.path, false, false).unwrap();
    let error = restore(&story.log, &scene.path, Moment::Newest).await.unwrap_err();
    assert!(matches!(error, ResumeError::Busy { .. }), "{error}");
    drop(file);
    assert_eq!(scene.names(), Vec::<String>::new(), "a restore that never began leaves nothing");
    restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
    is_newest(&story, &scene);
}

#[tokio::test]
async fn what_was_noted_and_is_not_there_any_more_is_read_again() {
    let (story, scene) = (random_story(7, 2, 1, 12).await, Scene::new());
    let done = interrupted(&story, &scene, Moment::Newest).await;
    // As after a loss of power on a disk that lied: everything is something else, also what was not written yet.
    let file = std::fs::OpenOptions::new().write(true).open(scene.beside()).unwrap();
    let (state, len) = (story.log.state(Moment::Newest).await.unwrap(), file.metadata().unwrap().len());
    for (index, place) in state.blocks() {
        let offset = index.offset(BLOCK_SIZE as u32).unwrap();
        file.write_all_at(&vec![0xa5; place.length as usize], offset).unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), len);
    let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
    assert!(done > 0 && summary.before.aggregations == 0, "{summary:?}");
    is_newest(&story, &scene);
}

#[tokio::test]
async fn what_somebody_wrote_where_the_disk_has_nothing_is_zeros_again() {
    let (story, scene) = (random_story(7, 2, 1, 12).await, Scene::new());
    let done = interrupted(&story, &scene, Moment::Newest).await;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(scene.beside()).unwrap();
    let (state, len) = (story.log.state(Moment::Newest).await.unwrap(), file.metadata().unwrap().len());
    let mut content = vec![false; len as usize];
    for (index, place) in state.blocks() {
        let offset = index.offset(BLOCK_SIZE as u32).unwrap() as usize;
        content[offset..offset + place.length as usize].fill(true);
    }
    let nothing: Vec<u64> = (0..len).filter(|at| !content[*at as usize]).collect();
    assert!(!nothing.is_empty());
    for at in nothing {
        file.write_all_at(&[0xa5], at).unwrap();
    }
    let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
    assert_eq!(summary.before.aggregations, done, "{summary:?}");
    is_newest(&story, &scene);
}

#[tokio::test]
async fn a_file_or_journal_that_is_gone_damaged_or_exchanged_means_that_it_begins_anew() {
    let story = random_story(8, 2, 1, 12).await;
    let check = async |name: &str, harm: &dyn Fn(&Scene)| {
        let scene = Scene::new();
        interrupted(&story, &scene, Moment::Newest).await;
        harm(&scene);
        let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
        assert_eq!(summary.before.aggregations, 0, "{name}");
        is_newest(&story, &scene);
    };
    check("no file", &|scene| std::fs::remove_file(scene.beside()).unwrap()).await;
    check("no journal", &|scene| std::fs::remove_file(scene.journal()).unwrap()).await;
    check("an empty journal", &|scene| std::fs::write(scene.journal(), "").unwrap()).await;
    check("no journal at all", &|scene| std::fs::write(scene.journal(), "milk, eggs").unwrap()).await;
    check("a shorter file", &|scene| std::fs::write(scene.beside(), "short").unwrap()).await;
    check("another file", &|scene| {
        let other = scene.directory.path().join("other");
        std::fs::write(&other, vec![0xff; std::fs::metadata(scene.beside()).unwrap().len() as usize])
            .unwrap();
        std::fs::rename(&other, scene.beside()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn whoever_ends_between_the_last_steps_finds_the_disk_complete() {
    let story = random_story(9, 2, 1, 12).await;
    let all = story.log.state(Moment::Newest).await.unwrap().block_count() as u64;
    // A name that appears at the end stops the restore right before it would give it: everything else is done.
    let stopped = async || {
        let scene = Scene::new();
        let file = ResumableFile::lock(&scene.path, false, false).unwrap();
        let state = Arc::new(story.log.state(Moment::Newest).await.unwrap());
        let appear = |_: &_| std::fs::write(&scene.path, "precious").unwrap();
        let (reader, stop) = (story.log.reader().await, std::future::pending());
        let result =
            file.restore(&reader, &story.log.keys, &state, Moment::Newest, &EACH, stop, appear).await;
        assert!(matches!(result, Err(ResumeError::File(RestoreFileError::Exists { .. }))), "{result:?}");
        assert_eq!(std::fs::read(&scene.path).unwrap(), b"precious");
        let again = restore(&story.log, &scene.path, Moment::Newest).await;
        assert!(matches!(again, Err(ResumeError::File(RestoreFileError::Exists { .. }))), "{again:?}");
        std::fs::remove_file(&scene.path).unwrap();
        scene
    };
    let finishes = async |scene: &Scene| {
        let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
        assert_eq!((summary.aggregations, summary.before.blocks), (0, all));
        is_newest(&story, scene);
    };
    let scene = stopped().await;
    finishes(&scene).await;
    // Linked, and the other name is still there.
    let scene = stopped().await;
    std::fs::hard_link(scene.beside(), &scene.path).unwrap();
    finishes(&scene).await;
    // Only the journal is still there.
    let scene = stopped().await;
    std::fs::rename(scene.beside(), &scene.path).unwrap();
    finishes(&scene).await;
    // Somebody has begun to use the disk: it is theirs.
    let scene = stopped().await;
    std::fs::rename(scene.beside(), &scene.path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&scene.path).unwrap().write_all_at(b"mine", 3).unwrap();
    let theirs = std::fs::read(&scene.path).unwrap();
    let error = restore(&story.log, &scene.path, Moment::Newest).await.unwrap_err();
    assert!(matches!(error, ResumeError::File(RestoreFileError::Exists { .. })), "{error}");
    assert!(std::fs::read(&scene.path).unwrap() == theirs);
    restore_until(&story.log, &scene.path, Moment::Newest, (true, false), u64::MAX).await.unwrap();
    is_newest(&story, &scene);
}

#[tokio::test]
async fn a_restore_that_fails_goes_on_when_the_stores_are_back() {
    let (story, scene) = (random_story(11, 2, 1, 12).await, Scene::new());
    let done = interrupted(&story, &scene, Moment::Newest).await;
    let file = ResumableFile::lock(&scene.path, false, false).unwrap();
    let state = Arc::new(story.log.state(Moment::Newest).await.unwrap());
    let reader = story.log.reader().await;
    story.log.controls[..2].iter().for_each(|control| control.set_down(true));
    let stop = std::future::pending();
    let result = file.restore(&reader, &story.log.keys, &state, Moment::Newest, &EACH, stop, |_| {}).await;
    let error = result.unwrap_err();
    assert!(
        matches!(error, ResumeError::File(RestoreFileError::Restore(RestoreError::DataLost { .. }))),
        "{error}"
    );
    story.log.controls[..2].iter().for_each(|control| control.set_down(false));
    let summary = restore(&story.log, &scene.path, Moment::Newest).await.unwrap();
    assert_eq!(summary.before.aggregations, done);
    is_newest(&story, &scene);
}

#[tokio::test]
async fn zeros_are_holes_also_after_an_interruption() {
    let mut log = TestLog::new(2, 1).await;
    for (sequence, index) in [(1, 0), (2, 1), (3, 63)] {
        let mut sparse = vec![0; 1 << 20];
        sparse[700_000] = 1;
        log.append(1, &[set_block(sequence, index, 1, sparse)]).await;
    }
    log.publish().await;
    let scene = Scene::new();
    let error = restore_until(&log, &scene.path, Moment::Newest, (false, false), 1).await.unwrap_err();
    assert!(matches!(error, ResumeError::Interrupted { .. }), "{error}");
    restore(&log, &scene.path, Moment::Newest).await.unwrap();
    let metadata = std::fs::metadata(&scene.path).unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 <= 64 << 10, "{} bytes are allocated", metadata.blocks() * 512);
}
