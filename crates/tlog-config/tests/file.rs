//! A file as a source, changed in all the ways in which files are changed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // tests want to fail, loudly

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use support::{Running, within_limit};
use tempfile::TempDir;
use tlog_config::{Configuration, FileSource};

/// The vdisks `a` and `b`, of so many GiB.
fn vdisks(a: u64, b: u64) -> String {
    format!(
        "vdisks:\n  a: {{type: db, blockSize: 4096, size: {a}}}\n  b: {{type: db, blockSize: 4096, size: {b}}}\n"
    )
}

/// Looks so rarely that only what the system tells can be what makes a test pass.
const NEVER: Duration = Duration::from_secs(100_000);

struct Folder {
    folder: TempDir,
    running: Running,
}

impl Folder {
    /// A file with `a` and `b` of one GiB, read by `path` in a folder that `make` fills.
    async fn open(path: &str, look_every: Duration, make: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let source = FileSource::new(folder.path().join(path)).look_every(look_every);
        let running = Running::open(Arc::new(source)).await;
        let mut folder = Self { folder, running };
        folder.running.until_sizes(1, 1).await;
        folder
    }

    async fn plain() -> Self {
        Self::open("vdisks.yaml", NEVER, |folder| {
            fs::write(folder.join("vdisks.yaml"), vdisks(1, 1)).unwrap()
        })
        .await
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("vdisks.yaml")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.folder.path().join(from), self.folder.path().join(to)).unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_written_in_place_is_followed() {
    let mut folder = Folder::plain().await;
    for size in 2..5 {
        folder.write("vdisks.yaml", &vdisks(size, 1));
        folder.running.until_sizes(size, 1).await;
    }
}

#[tokio::test]
async fn a_file_that_is_renamed_onto_it_is_followed_again_and_again() {
    let mut folder = Folder::plain().await;
    for size in 2..5 {
        folder.write("vdisks.yaml.new", &vdisks(1, size));
        folder.rename("vdisks.yaml.new", "vdisks.yaml");
        folder.running.until_sizes(1, size).await;
    }
    // And in place afterwards: it is the new file that is watched.
    folder.write("vdisks.yaml", &vdisks(7, 7));
    folder.running.until_sizes(7, 7).await;
}

#[tokio::test]
async fn a_file_that_is_away_for_a_while_counts_on_as_it_was() {
    let mut folder = Folder::plain().await;
    folder.rename("vdisks.yaml", "away");
    let why = folder.running.until_away().await;
    assert!(why.contains("vdisks.yaml cannot be read"), "{why}");
    assert_eq!(folder.running.sizes(), (1, 1));
    folder.write("vdisks.yaml", &vdisks(2, 2));
    folder.running.until_sizes(2, 2).await;
    folder.running.until_back().await;
    // As the one that was there, it is back all the same.
    folder.rename("vdisks.yaml", "away");
    folder.running.until_away().await;
    folder.rename("away", "vdisks.yaml");
    folder.running.until_back().await;
    assert_eq!(folder.running.sizes(), (2, 2));
}

#[tokio::test]
async fn a_file_that_makes_no_sense_is_told_of_and_counts_on_as_it_was() {
    let mut folder = Folder::plain().await;
    let all = vdisks(3, 3);
    // Cut in the middle, empty, one with a section that nobody knows, and one with a vdisk that is not valid.
    for (text, problem) in [
        (&all[..all.len() - 4], "this is not YAML"),
        ("", "it is empty"),
        ("vdiskz: {}", "did you mean vdisks?"),
        (
            "vdisks: {a: {type: db, blockSize: 1, size: 1}, b: {type: db, blockSize: 4096, size: 1}}",
            "a block size is",
        ),
    ] {
        folder.write("vdisks.yaml", text);
        let problems = folder.running.until_problems(1).await;
        folder
            .running
            .until(problem, |running| running.configuration.problems()[0].to_string().contains(problem))
            .await;
        assert_eq!(folder.running.sizes(), (1, 1), "{problems:?}");
        assert!(folder.running.health().away.is_none());
    }
    folder.write("vdisks.yaml", &all);
    folder.running.until_sizes(3, 3).await;
    folder.running.until_problems(0).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read_before_it_is_closed() {
    use std::io::Write;
    let mut folder = Folder::plain().await;
    folder.write("other.yaml", &vdisks(1, 1));
    let other = FileSource::new(folder.folder.path().join("other.yaml")).look_every(NEVER);
    let mut other = Running::open(Arc::new(other)).await;

    // It is followed by now, and not only about to be.
    folder.write("vdisks.yaml", &vdisks(1, 2));
    folder.running.until_sizes(1, 2).await;

    // The first half makes sense by itself, and has no `b`.
    let text = vdisks(2, 2);
    let (first, second) = text.split_at(text.find("  b:").unwrap());
    let names = folder.running.configuration.vdisks();
    let mut file = fs::File::create(folder.file()).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    // One that was written later, and closed, has been read by now; this one has not.
    for size in 2..5 {
        folder.write("other.yaml", &vdisks(size, size));
        other.until_sizes(size, size).await;
    }
    assert_eq!(folder.running.sizes(), (1, 2));
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    folder.running.until_sizes(2, 2).await;
    assert!(!names.has_changed().unwrap());
}

#[tokio::test]
async fn links_on_the_way_to_the_file_are_followed() {
    // As secrets and config maps are mounted: the file links into a folder link that is swapped as a whole.
    let mut folder = Folder::open("vdisks.yaml", NEVER, |folder| {
        fs::create_dir(folder.join("v1")).unwrap();
        fs::write(folder.join("v1/vdisks.yaml"), vdisks(1, 1)).unwrap();
        symlink("v1", folder.join("data")).unwrap();
        symlink("data/vdisks.yaml", folder.join("vdisks.yaml")).unwrap();
    })
    .await;
    for version in 2..5 {
        let name = format!("v{version}");
        fs::create_dir(folder.folder.path().join(&name)).unwrap();
        folder.write(&format!("{name}/vdisks.yaml"), &vdisks(version, 1));
        symlink(&name, folder.folder.path().join("data.new")).unwrap();
        folder.rename("data.new", "data");
        folder.running.until_sizes(version, 1).await;
    }
    // What is now behind the links is watched too.
    folder.write("v4/vdisks.yaml", &vdisks(9, 9));
    folder.running.until_sizes(9, 9).await;
}

#[tokio::test]
async fn a_folder_on_the_way_that_is_another_one_is_found_by_looking() {
    let often = Duration::from_millis(20);
    let mut folder = Folder::open("a/b/vdisks.yaml", often, |folder| {
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/vdisks.yaml"), vdisks(1, 1)).unwrap();
    })
    .await;
    fs::create_dir_all(folder.folder.path().join("new/b")).unwrap();
    folder.write("new/b/vdisks.yaml", &vdisks(2, 2));
    folder.rename("a", "old");
    folder.rename("new", "a");
    folder.running.until_sizes(2, 2).await;
    folder.write("a/b/vdisks.yaml", &vdisks(3, 3));
    folder.running.until_sizes(3, 3).await;
}

#[tokio::test]
async fn a_reload_is_in_force_when_it_is_answered() {
    let folder = Folder::plain().await;
    for size in 2..10 {
        folder.write("vdisks.yaml", &vdisks(size, size));
        folder.running.configuration.reload().await;
        assert_eq!(folder.running.sizes(), (size, size));
    }
}

#[tokio::test]
async fn many_changes_in_a_row_end_in_the_last_one() {
    let mut folder = Folder::plain().await;
    for size in 2..200 {
        folder.write("new", &vdisks(size, size));
        folder.rename("new", "vdisks.yaml");
    }
    folder.running.until_sizes(199, 199).await;
    folder.running.configuration.reload().await;
    assert_eq!(folder.running.sizes(), (199, 199));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_from_the_start_is_an_error() {
    within_limit(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vdisks.yaml");
        let open = async || Configuration::open(Arc::new(FileSource::new(&file))).await;
        let error = open().await.unwrap_err().to_string();
        assert!(error.contains("vdisks.yaml cannot be read: No such file or directory"), "{error}");
        fs::write(&file, "vdisks: [").unwrap();
        let error = open().await.unwrap_err().to_string();
        assert!(error.contains("vdisks.yaml:2:1: this is not YAML"), "{error}");
        fs::write(&file, [0xff, 0xfe]).unwrap();
        let error = open().await.unwrap_err().to_string();
        assert!(error.contains("this is not UTF-8 text"), "{error}");
        fs::write(&file, vec![b'#'; (16 << 20) + 1]).unwrap();
        let error = open().await.unwrap_err().to_string();
        assert!(error.contains("it has more than 16777216 bytes"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_thousand_vdisks_are_read_quickly_and_one_change_fires_for_one() {
    let text = |changed: u64| {
        let mut text = "storageClusters: {c: {dataStorage: [{address: 'host:1'}]}}\nvdisks:\n".to_owned();
        for index in 0..1000 {
            let size = if index == 7 { changed } else { 1 };
            text.push_str(&format!(
                "  v{index}:\n    type: db\n    blockSize: 4096\n    size: {size}\n    tlog: {{ storageClusterID: c }}\n    nbd: {{ storageClusterID: c }}\n"
            ));
        }
        text
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vdisks.yaml");
    fs::write(&file, text(1)).unwrap();
    let begun = std::time::Instant::now();
    let running = Running::open(Arc::new(FileSource::new(&file))).await;
    let opened = begun.elapsed();
    println!("opened 1,000 vdisks of a file in {opened:?}");
    assert!(opened.as_secs() < 2, "{opened:?}");
    assert_eq!(running.health().vdisks, 1000);
    let receiver = |index| running.configuration.vdisk(&support::vdisk(&format!("v{index}")));
    let receivers: Vec<_> = (0..1000).map(receiver).collect();
    fs::write(&file, text(2)).unwrap();
    running.configuration.reload().await;
    let changed: Vec<_> = receivers.iter().map(|receiver| receiver.has_changed().unwrap()).collect();
    assert_eq!(changed.iter().position(|&changed| changed), Some(7));
    assert_eq!(changed.iter().filter(|&&changed| changed).count(), 1);
}
