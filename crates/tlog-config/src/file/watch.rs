//! Following a file.
//!
//! ```text
//!  system says that something happened -> wait until it is quiet -> read -> tell, if it says something else
//!  now and then: does the path lead to another file? ----------------^
//! ```
//!
//! What the system says is only ever a reason to read: what is told comes from reading alone, so that a message too much costs a look, and one
//! too few (a network's file system, a folder on the way renamed) is made good by the look that comes now and then.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use super::links::{Names, names_on_the_way};
use super::{off_the_runtime, read};
use crate::{DocumentWatch, Problem, SourceError, SourceEvent};

/// How long nothing must have happened before a file counts as written.
const QUIET: Duration = Duration::from_millis(50);
/// The same while somebody has written to the file and not closed it.
const QUIET_WHILE_OPEN: Duration = Duration::from_secs(2);
/// A file that never comes to rest is read all the same.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Follows one file. What it tells is never older than what it told before.
#[derive(Debug)]
pub(super) struct FileWatch {
    file: PathBuf,
    look_every: Duration,
    /// What was told last.
    told: Told,
    /// The content that was told last of those that make sense.
    revision: u64,
    /// Whether there is a reason to read. It stays until what was read has been told, so that a dropped future loses nothing.
    dirty: bool,
    /// What the path led to when it was read last.
    fingerprint: Option<Fingerprint>,
    next_look: Instant,
    system: Option<System>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Good,
    Refused(Vec<Problem>),
    Away(Option<io::ErrorKind>),
}

/// Changes with every write that is not within the same tick of the clock as the one before.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

/// Where the system's messages come in.
#[derive(Debug)]
struct System {
    names: Names,
    seen: watch::Receiver<Seen>,
    _watcher: Option<RecommendedWatcher>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Whether the last that was heard of the file is that somebody writes to it.
    open: bool,
}

impl FileWatch {
    pub(super) fn new(file: PathBuf, look_every: Duration, since: u64) -> Self {
        Self {
            file,
            look_every,
            told: Told::Good,
            revision: since,
            dirty: false,
            fingerprint: None,
            next_look: Instant::now() + look_every,
            system: None,
        }
    }

    /// Waits for a reason to read, and until the file has come to rest.
    async fn reason_to_read(&mut self) {
        while !self.dirty {
            let file = self.file.clone();
            let names = off_the_runtime(move || names_on_the_way(&file)).await;
            let system = match &mut self.system {
                Some(system) if system.names == names => system,
                system => {
                    // Between the last reading and the new watch anything can have happened.
                    self.dirty = true;
                    system.insert(System::watch(&self.file, names))
                }
            };
            if self.dirty {
                break;
            }
            tokio::select! {
                changed = system.seen.changed() => match changed {
                    Ok(()) => self.dirty = true,
                    // The watcher could not be set up, or has ended; looking is what is left.
                    Err(_) => sleep_until(self.next_look).await,
                },
                () = sleep_until(self.next_look) => {}
            }
            if self.next_look <= Instant::now() {
                self.look().await;
            }
        }
        self.until_quiet().await;
    }

    /// Whether the path leads to something else than it did.
    async fn look(&mut self) {
        let file = self.file.clone();
        let found = off_the_runtime(move || Fingerprint::of(&file)).await;
        self.next_look = Instant::now() + self.look_every;
        if found != self.fingerprint {
            // It may be in another folder of the same name, of which the system says nothing: everything is set up anew.
            self.system = None;
        }
    }

    async fn until_quiet(&mut self) {
        let Some(System { seen, .. }) = &mut self.system else { return };
        let end = Instant::now() + LONGEST_WAIT;
        loop {
            let quiet = if seen.borrow_and_update().open { QUIET_WHILE_OPEN } else { QUIET };
            let left = end.saturating_duration_since(Instant::now());
            match timeout(quiet.min(left), seen.changed()).await {
                Ok(Ok(())) if !left.is_zero() => {}
                // Nobody tells anything.
                Ok(Err(_)) => return sleep(quiet).await,
                _ => return,
            }
        }
    }

    /// Reads; answers what there is, and whether that was told before.
    async fn read(&mut self) -> (SourceEvent, bool) {
        let file = self.file.clone();
        let (fingerprint, result) = off_the_runtime(move || {
            // Before reading: what is written meanwhile is found by the next look.
            let fingerprint = Fingerprint::of(&file);
            (fingerprint, read(&file))
        })
        .await;
        self.fingerprint = fingerprint;
        self.dirty = false;
        let (told, revision, event) = match result {
            Ok(snapshot) => (Told::Good, snapshot.revision, SourceEvent::All(snapshot)),
            Err(SourceError::Malformed(problems)) => {
                let event = SourceEvent::Refused(SourceError::Malformed(problems.clone()));
                (Told::Refused(problems), self.revision, event)
            }
            Err(error) => {
                let kind =
                    if let SourceError::File { error, .. } = &error { Some(error.kind()) } else { None };
                (Told::Away(kind), self.revision, SourceEvent::Away(error))
            }
        };
        let known = told == self.told && revision == self.revision;
        self.told = told;
        self.revision = revision;
        (event, known)
    }
}

#[async_trait]
impl DocumentWatch for FileWatch {
    async fn next(&mut self) -> SourceEvent {
        loop {
            self.reason_to_read().await;
            let (event, known) = self.read().await;
            if !known {
                return event;
            }
        }
    }

    async fn reread(&mut self) -> SourceEvent {
        self.read().await.0
    }
}

impl Fingerprint {
    fn of(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

impl System {
    /// Asks the system to tell of these names. Where it cannot, nothing is heard.
    fn watch(file: &Path, names: Names) -> Self {
        // Whether somebody has it open is not known before anything was heard.
        let (seen, receiver) = watch::channel(Seen { open: true });
        let wanted: Arc<BTreeSet<OsString>> = Arc::new(names.values().flatten().cloned().collect());
        let heard = move |event: notify::Result<notify::Event>| {
            if let Some(open) = event.map_or(Some(false), |event| concerns(&wanted, &event)) {
                seen.send_modify(|seen| seen.open = open);
            }
        };
        let watcher = RecommendedWatcher::new(heard, notify::Config::default()).and_then(|mut watcher| {
            for folder in names.keys() {
                // One that is not there (yet) is found by looking.
                if folder.is_dir() {
                    watcher.watch(folder, RecursiveMode::NonRecursive)?;
                }
            }
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| {
                warn!(file = %file.display(), %error, "the system does not tell when this file changes; it is looked at now and then");
            })
            .ok();
        Self { names, seen: receiver, _watcher: watcher }
    }
}

/// None where it is about another file, or only about being read; else whether the file is being written to.
fn concerns(wanted: &BTreeSet<OsString>, event: &notify::Event) -> Option<bool> {
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| wanted.contains(name));
    if !event.need_rescan() && !event.paths.is_empty() && !event.paths.iter().any(named) {
        return None;
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(false),
        EventKind::Access(_) => None,
        // Who makes a file goes on to write to it.
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => Some(true),
        _ => Some(false),
    }
}
