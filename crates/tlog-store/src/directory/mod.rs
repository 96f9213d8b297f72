//! A store in a directory on disk: the embedded store.
//!
//! ```text
//! DIRECTORY/.lock                           who writes here
//! DIRECTORY/VDISK/00000000000000000001.seg  segments of that vdisk's log: records behind each other
//! DIRECTORY/.deleted-IDENTITY/              a log that was deleted, and is being removed
//! ```
//!
//! One process writes; others can read meanwhile. `docs/directory-store.md` tells the whole story. The parts:
//! `record` is the byte layout, `scan` finds records in a file, `index` is what they say, `log` and `reads` read, `commit`
//! writes, `files` and `lock` are what their names say.

mod at_once;
mod commit;
#[cfg(test)]
#[path = "../../tests/common/mod.rs"]
mod common;
mod crash;
mod files;
mod index;
mod lock;
mod log;
mod reads;
mod record;
mod scan;

use std::collections::HashMap;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use tlog_proto::{AggregationNumber, Epoch, VdiskId};

use self::commit::{Answer, Request, kind_of};
use self::files::{OpenFiles, entries, guard, remove_deleted, segments, sync_directory};
pub use self::lock::{Holder, lock_holder};
use self::lock::{Lock, NotLocked};
use self::log::{Log, Shared};
use crate::log_state::unknown_log;
use crate::observe::{Appends, answered};
use crate::{
    FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreDurability,
    StoreError, StoreErrorKind, StoreIdentity,
};

/// How a [`DirectoryStore`] is opened for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryOptions {
    /// What [`lock_holder`] tells others, on one line: what this process is, where it can be reached.
    pub note: String,
    /// Length of a log's first segment file in bytes. Each next one is twice as long, up to `max_segment_bytes`: a small log
    /// takes little room, a large one has few files.
    pub first_segment_bytes: u32,
    /// Length of the longest segment files, in bytes. Space comes back a segment at a time.
    pub max_segment_bytes: u32,
    /// Most files that are kept open while nobody uses them.
    pub open_files: usize,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            note: String::new(),
            first_segment_bytes: 256 << 10,
            max_segment_bytes: 64 << 20,
            open_files: 64,
        }
    }
}

impl DirectoryOptions {
    /// A segment is never made longer than this, whatever is set; half of it bounds a shard.
    pub const MAX_SEGMENT_BYTES: u32 = 1 << 30;
    const MIN_SEGMENT_BYTES: u32 = 8 << 10;
}

/// A [`ShardStore`] in a directory.
///
/// What it has answered is on disk: it survives the death of the process and, as far as the disk tells the truth about
/// its cache, of the machine. The lock is released when the last use of the store has ended; until then, and while
/// operations are in flight, nobody else can open it for writing.
///
/// All operations must be called from within a tokio runtime; files are touched on its blocking threads.
#[derive(Debug)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
    directory: PathBuf,
    /// The logs that were asked for so far.
    logs: Mutex<HashMap<VdiskId, Arc<Log>>>,
}

impl DirectoryStore {
    /// Opens `directory` for writing, and makes it where it is not there. Quick: a log is read when it is first asked for.
    ///
    /// Refused as [`StoreErrorKind::Locked`] while another process, or another store of this process, writes there.
    pub fn open(directory: impl Into<PathBuf>, options: DirectoryOptions) -> Result<Self, StoreError> {
        let directory = directory.into();
        let lock = make_directory(&directory)
            .map_err(NotLocked::Io)
            .and_then(|()| Lock::take(&directory, &options.note))
            .map_err(|not_locked| {
                let kind = match not_locked {
                    NotLocked::Io(error) => kind_of(&error),
                    NotLocked::HeldBy(Holder { pid, note }) if note.is_empty() => {
                        StoreErrorKind::Locked { holder: format!("pid {pid}") }
                    }
                    NotLocked::HeldBy(Holder { pid, note }) => {
                        StoreErrorKind::Locked { holder: format!("pid {pid}, {note}") }
                    }
                };
                StoreError::new(address_of(&directory), kind)
            })?;
        remove_deleted(&directory);
        Ok(Self::new(directory, Some(lock), &options))
    }

    /// Opens `directory` for reading, also while another process writes there. Never writes; operations that would are refused
    /// as [`StoreErrorKind::ReadOnly`]. Every call sees what the writer had answered before it.
    ///
    /// Fails where the directory cannot be read.
    pub fn open_read_only(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let directory = directory.into();
        match std::fs::read_dir(&directory) {
            Ok(_) => Ok(Self::new(directory, None, &DirectoryOptions::default())),
            Err(source) => {
                Err(StoreError::new(address_of(&directory), StoreErrorKind::Unavailable { source }))
            }
        }
    }

    fn new(directory: PathBuf, lock: Option<Lock>, options: &DirectoryOptions) -> Self {
        let bounds = (DirectoryOptions::MIN_SEGMENT_BYTES, DirectoryOptions::MAX_SEGMENT_BYTES);
        let max_segment_bytes = options.max_segment_bytes.clamp(bounds.0, bounds.1);
        let shared = Shared {
            address: address_of(&directory).into(),
            appends: Appends::default(),
            files: OpenFiles::new(lock.is_some(), options.open_files.max(1)),
            lock,
            first_segment_bytes: options.first_segment_bytes.clamp(bounds.0, max_segment_bytes),
            max_segment_bytes,
        };
        Self { shared: Arc::new(shared), directory, logs: Mutex::default() }
    }

    /// Changes what [`lock_holder`] tells others, as when the address of the admin interface is known only later.
    pub fn set_lock_note(&self, note: &str) -> Result<(), StoreError> {
        let result = match &self.shared.lock {
            Some(lock) => lock.set_note(note).map_err(|error| kind_of(&error)),
            None => Err(StoreErrorKind::ReadOnly),
        };
        result.map_err(|kind| StoreError::new(&*self.shared.address, kind))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// None where there is nothing on disk of such a log, and none is to be made: names that anybody asks for take no memory.
    fn log(&self, vdisk: &VdiskId, make: bool) -> Option<Arc<Log>> {
        let mut logs = guard(&self.logs);
        if let Some(log) = logs.get(vdisk) {
            return Some(Arc::clone(log));
        }
        let directory = self.directory.join(vdisk.as_str());
        if !make && !directory.is_dir() {
            return None;
        }
        let log = Arc::new(Log::new(Arc::clone(&self.shared), vdisk.clone(), directory));
        logs.insert(vdisk.clone(), Arc::clone(&log));
        Some(log)
    }

    async fn write<T>(
        &self,
        operation: &'static str,
        vdisk: &VdiskId,
        request: Request,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, StoreError> {
        answered(&self.shared.address, operation, self.written(vdisk, request, take).await)
    }

    async fn written<T>(
        &self,
        vdisk: &VdiskId,
        request: Request,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, StoreErrorKind> {
        let make = matches!(request, Request::Promise(_));
        let log = match self.shared.writing() {
            true => self.log(vdisk, make).ok_or(StoreErrorKind::NoLog),
            false => Err(StoreErrorKind::ReadOnly),
        };
        let result = match log {
            Ok(log) => log.submit(request).await,
            Err(kind) => Err(kind),
        };
        let other = || StoreErrorKind::Unavailable {
            source: io::Error::other("the answer is that to something else"),
        };
        result.and_then(|answer| take(answer).ok_or_else(other))
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        vdisk: &VdiskId,
        unknown: Result<T, StoreErrorKind>,
        read: impl FnOnce(&Log) -> Result<T, StoreErrorKind> + Send + 'static,
    ) -> Result<T, StoreError> {
        let result = match self.log(vdisk, false) {
            None => unknown,
            Some(log) => blocking(move || read(&log)).await,
        };
        answered(&self.shared.address, operation, result)
    }
}

/// Runs what touches files off the runtime's own threads.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, StoreErrorKind> + Send + 'static,
) -> Result<T, StoreErrorKind> {
    let done = match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(act).await.map_err(io::Error::other),
        Err(error) => Err(io::Error::other(error)),
    };
    done.unwrap_or_else(|source| Err(StoreErrorKind::Unavailable { source }))
}

fn address_of(directory: &Path) -> String {
    format!("file:{}", directory.display())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

fn identity(answer: Answer) -> Option<StoreIdentity> {
    match answer {
        Answer::Identity(identity) => Some(identity),
        _ => None,
    }
}

#[async_trait]
impl ShardStore for DirectoryStore {
    fn address(&self) -> Arc<str> {
        Arc::clone(&self.shared.address)
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.write("promise", vdisk, Request::Promise(epoch), |answer| match answer {
            Answer::State(state) => Some(state),
            _ => None,
        })
        .await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.write("start", vdisk, Request::Start(record, members.clone()), identity).await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let begun = Instant::now();
        let result = self.written(vdisk, Request::Append(number, shard, committed), identity).await;
        self.shared.appends.answered(&self.shared.address, begun.elapsed(), result)
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.write("publish", vdisk, Request::Publish(epoch, committed), identity).await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.write("fill", vdisk, Request::Fill(number, shard), |answer| match answer {
            Answer::Fill(outcome) => Some(outcome),
            _ => None,
        })
        .await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.write("prune", vdisk, Request::Prune(epoch, first), |answer| {
            matches!(answer, Answer::Done).then_some(())
        })
        .await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        let deleted = self.write("delete", vdisk, Request::Delete(epoch), |answer| {
            matches!(answer, Answer::Done).then_some(())
        });
        match deleted.await {
            // What is not there needs no deleting.
            Err(StoreError { kind: StoreErrorKind::NoLog, .. }) => Ok(()),
            done => done,
        }
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.read("heads", vdisk, Err(StoreErrorKind::NoLog), move |log| log.heads(range, max_bytes)).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        let result = match self.log(vdisk, false) {
            None => Err(StoreErrorKind::NoLog),
            Some(log) => log.shard(number).await,
        };
        answered(&self.shared.address, "shard", result)
    }

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        let result = match self.log(vdisk, false) {
            None => Err(StoreErrorKind::NoLog),
            Some(log) => log.payload_parts(number, parts).await,
        };
        answered(&self.shared.address, "payload_parts", result)
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.read("status", vdisk, Ok(unknown_log()), Log::state).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        let directory = self.directory.clone();
        let vdisks = blocking(move || {
            list_vdisks(&directory).map_err(|source| StoreErrorKind::Unavailable { source })
        });
        answered(&self.shared.address, "vdisks", vdisks.await)
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        Ok(StoreDurability::Durable)
    }
}

fn list_vdisks(directory: &Path) -> io::Result<Vec<VdiskId>> {
    let mut vdisks = Vec::new();
    for name in entries(directory)? {
        let name = name?;
        // A log exists from its first segment on.
        let Ok(vdisk) = VdiskId::new(&name) else { continue };
        let path = directory.join(&name);
        if path.is_dir() && !segments(&path)?.is_empty() {
            vdisks.push(vdisk);
        }
    }
    vdisks.sort_unstable();
    Ok(vdisks)
}
