//! The file `.lock` of a store's directory: who writes here.
//!
//! The writer holds an exclusive `flock` on it, which the kernel releases when the process dies, however it dies. The
//! text in it (process id, then a line of the holder's own) is only for people and tools; without the lock it means
//! nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// No vdisk has such a name.
const NAME: &str = ".lock";
/// Longest text that is read.
const MAX_TEXT: u64 = 4096;
/// A tool that asks who holds the lock takes it, shared, for a moment. That must not keep a server from starting.
const PATIENCE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(5);

/// Who has a store open for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id; 0 where it has not said yet.
    pub pid: u32,
    /// What it says of itself, such as the address of its admin interface.
    pub note: String,
}

/// Who has the store in `directory` open for writing right now; none where nobody has, or there is no store.
pub fn lock_holder(directory: impl AsRef<Path>) -> io::Result<Option<Holder>> {
    let mut file = match File::open(directory.as_ref().join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => read_holder(&mut file).map(Some),
        Err(error) => Err(error.into()),
    }
}

fn read_holder(file: &mut File) -> io::Result<Holder> {
    let mut text = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (pid, note) = text.split_once('\n').unwrap_or_default();
    Ok(Holder { pid: pid.parse().unwrap_or_default(), note: note.trim_end().to_owned() })
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum NotLocked {
    HeldBy(Holder),
    Io(io::Error),
}

impl From<io::Error> for NotLocked {
    fn from(error: io::Error) -> Self {
        NotLocked::Io(error)
    }
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn take(directory: &Path, note: &str) -> Result<Self, NotLocked> {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(directory.join(NAME))?;
        let mut waited = Duration::ZERO;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if waited < PATIENCE => {
                    std::thread::sleep(PAUSE);
                    waited += PAUSE;
                }
                Err(Errno::WOULDBLOCK) => return Err(NotLocked::HeldBy(read_holder(&mut file)?)),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        let lock = Self(file);
        lock.set_note(note)?;
        Ok(lock)
    }

    pub(super) fn set_note(&self, note: &str) -> io::Result<()> {
        let text = format!("{}\n{}\n", std::process::id(), note.replace('\n', " "));
        self.0.write_all_at(text.as_bytes(), 0)?;
        self.0.set_len(text.len() as u64)
    }
}
