//! What the tests of this folder share.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{DirectoryOptions, DirectoryStore, Members, Shard, ShardSlot, ShardStore, StartRecord};

pub fn disk() -> VdiskId {
    VdiskId::new("disk").unwrap()
}

pub fn n(number: u64) -> AggregationNumber {
    AggregationNumber(number)
}

/// A shard whose content follows from the arguments.
pub fn shard(epoch: u64, number: u64, payload: usize) -> Shard {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id[8..16].copy_from_slice(&epoch.to_le_bytes());
    let byte = (number * 31 + epoch) as u8 | 1;
    Shard {
        epoch: Epoch(epoch),
        id: AggregationId(id),
        head: Bytes::from(vec![byte; 8]),
        payload: Bytes::from(vec![!byte | 1; payload]),
    }
}

pub fn open(directory: &Path) -> DirectoryStore {
    DirectoryStore::open(directory, DirectoryOptions::default()).unwrap()
}

pub fn open_small_segments(directory: &Path) -> DirectoryStore {
    let options = DirectoryOptions {
        first_segment_bytes: 8 << 10,
        max_segment_bytes: 64 << 10,
        ..DirectoryOptions::default()
    };
    DirectoryStore::open(directory, options).unwrap()
}

/// Begins an epoch at a number.
pub async fn begin(store: &DirectoryStore, vdisk: &VdiskId, epoch: u64, number: u64) {
    store.promise(vdisk, Epoch(epoch)).await.unwrap();
    let start = StartRecord { epoch: Epoch(epoch), number: n(number) };
    store.start(vdisk, start, &Members::default()).await.unwrap();
}

pub async fn slot(store: &DirectoryStore, number: u64) -> ShardSlot {
    store.shard(&disk(), n(number)).await.unwrap()
}

pub async fn held(store: &DirectoryStore) -> Vec<u64> {
    let status = store.status(&disk()).await.unwrap();
    status.held.iter().flat_map(|range| range.start().0..=range.end().0).collect()
}

pub fn segment(directory: &Path, number: u64) -> PathBuf {
    directory.join("disk").join(format!("{number:020}.seg"))
}

/// The segment files of the vdisk, in order.
pub fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory.join("disk")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Bytes on disk, not counting holes.
pub fn bytes_on_disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    segments(directory).iter().map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum()
}

/// A copy of a store that nobody has open; in memory where that can be had, as syncing hundreds of copies would take most
/// of a test's time.
pub fn copy_of(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    std::fs::create_dir(copy.path().join("disk")).unwrap();
    for path in segments(directory) {
        std::fs::copy(&path, copy.path().join("disk").join(path.file_name().unwrap())).unwrap();
    }
    copy
}
