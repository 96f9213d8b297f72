//! A YAML file as a source.

mod links;
mod split;
mod watch;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use split::split;

use crate::{DocumentSource, DocumentWatch, Fault, Place, Problem, Snapshot, SourceError};
use watch::FileWatch;

/// Most bytes of a file that are read: tens of thousands of vdisks.
const MAX_BYTES: usize = 16 << 20;

/// Documents in one YAML file.
///
/// It is followed however it is changed: written in place, replaced by renaming another onto it, or by a link, to it or to a folder on
/// the way to it, that leads elsewhere. While it is away, empty or no YAML, what was read before counts.
#[derive(Debug, Clone)]
pub struct FileSource {
    file: PathBuf,
    look_every: Duration,
}

impl FileSource {
    /// The file, which may not be there yet.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), look_every: Duration::from_secs(5) }
    }

    /// How often it is looked whether the path leads to another file, beside what the system tells; 5 s unless said otherwise.
    #[must_use]
    pub fn look_every(self, look_every: Duration) -> Self {
        Self { look_every, ..self }
    }
}

#[async_trait]
impl DocumentSource for FileSource {
    async fn get(&self) -> Result<Snapshot, SourceError> {
        let file = self.file.clone();
        off_the_runtime(move || read(&file)).await
    }

    fn watch(&self, since: u64) -> Box<dyn DocumentWatch> {
        Box::new(FileWatch::new(self.file.clone(), self.look_every, since))
    }
}

/// The documents in a file, as they are now. Blocks.
pub(crate) fn read(file: &Path) -> Result<Snapshot, SourceError> {
    let unreadable = |error| SourceError::File { file: file.to_owned(), error: Arc::new(error) };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    // One more than is accepted, so that more is noticed.
    opened.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let revision = revision_of(&bytes);
    let origin: Arc<str> = file.display().to_string().into();
    let documents = match std::str::from_utf8(&bytes) {
        Ok(text) => split(&origin, text),
        Err(_) => {
            let place = Place { origin, path: String::new(), at: None };
            Err(vec![Problem { place, fault: Fault::NotText }])
        }
    };
    Ok(Snapshot { documents: documents.map_err(SourceError::Malformed)?, revision })
}

fn revision_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Runs what blocks on a thread for that.
pub(crate) async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
