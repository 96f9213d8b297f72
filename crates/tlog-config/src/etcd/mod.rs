//! etcd v3 as a source.

pub(crate) mod import;
mod link;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::{
    DocumentSource, DocumentWatch, EtcdEndpoint, EtcdFault, EtcdOptions, OpenSourceError, Snapshot,
    SourceError,
};
use etcd_client::WatchStream;
use link::Link;
use watch::EtcdWatch;

/// Documents in an etcd, each under its own key. Keys that are none of ours are ignored.
///
/// One server is spoken to at a time, the next one where it does not answer. Files for TLS are read again for each connection.
#[derive(Debug, Clone)]
pub struct EtcdSource {
    settings: Arc<Settings>,
}

/// Where the servers are, and how to be let in.
#[derive(Debug)]
struct Settings {
    endpoints: Vec<EtcdEndpoint>,
    options: EtcdOptions,
    /// Whether there ever were documents of ours.
    had_documents: AtomicBool,
}

impl EtcdSource {
    /// Nothing is reached yet.
    pub fn new(endpoints: Vec<EtcdEndpoint>, options: EtcdOptions) -> Result<Self, OpenSourceError> {
        if options.certificate_file.is_some() != options.key_file.is_some() {
            return Err(OpenSourceError::HalfIdentity);
        }
        if options.user.is_some() != options.password.is_some() {
            return Err(OpenSourceError::HalfCredentials);
        }
        let files = options.ca_file.is_some() || options.certificate_file.is_some();
        if files && endpoints.iter().any(|endpoint| endpoint.tls == Some(false)) {
            return Err(OpenSourceError::TlsWithoutHttps);
        }
        let had_documents = AtomicBool::new(false);
        Ok(Self { settings: Arc::new(Settings { endpoints, options, had_documents }) })
    }
}

/// What a server is wanted for.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// Everything that is there.
    All,
    /// Everything that is there, and to be told of what changes.
    AllAndWatch,
    /// To be told of what changes after a revision.
    Watch(u64),
}

/// A server that answers.
struct Found {
    /// Which of them it is.
    index: usize,
    link: Link,
    snapshot: Option<Snapshot>,
    stream: Option<WatchStream>,
}

impl Settings {
    /// The first server from `first` on that does what is wanted. Else the error that says most: of servers that are there rather than of
    /// those that are not.
    async fn find(&self, first: usize, want: Want) -> Result<Found, SourceError> {
        let mut told: Option<SourceError> = None;
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            match self.ask(index, want).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    told = Some(match told {
                        Some(told) if !is_absence(&told) || is_absence(&error) => told,
                        _ => error,
                    });
                }
            }
        }
        Err(told.unwrap_or(SourceError::NoServer))
    }

    async fn ask(&self, index: usize, want: Want) -> Result<Found, SourceError> {
        let endpoint = self.endpoints.get(index).ok_or(SourceError::NoServer)?;
        let mut link = Link::connect(endpoint, &self.options).await?;
        let snapshot = match want {
            Want::All | Want::AllAndWatch => Some(link.read_all().await?),
            Want::Watch(_) => None,
        };
        let after = match (want, &snapshot) {
            (Want::Watch(revision), _) => Some(revision),
            (Want::AllAndWatch, Some(snapshot)) => Some(snapshot.revision),
            _ => None,
        };
        let stream = match after {
            Some(revision) => Some(link.watch_after(revision).await?),
            None => None,
        };
        Ok(Found { index, link, snapshot, stream })
    }
}

/// Whether it only says that nobody answers.
fn is_absence(error: &SourceError) -> bool {
    matches!(
        error,
        SourceError::Etcd { fault: EtcdFault::Unreachable(_) | EtcdFault::Silent | EtcdFault::Ended, .. }
    )
}

#[async_trait]
impl DocumentSource for EtcdSource {
    async fn get(&self) -> Result<Snapshot, SourceError> {
        let snapshot = self.settings.find(0, Want::All).await?.snapshot.unwrap_or_default();
        self.settings.had_documents.fetch_or(!snapshot.documents.is_empty(), Ordering::Relaxed);
        Ok(snapshot)
    }

    fn watch(&self, since: u64) -> Box<dyn DocumentWatch> {
        Box::new(EtcdWatch::new(Arc::clone(&self.settings), since))
    }
}
