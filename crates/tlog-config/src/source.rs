//! Where documents come from: the port, and what passes through it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::{Document, DocumentKey, Problem};

/// All documents of a source at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Each document that is there, whether it makes sense or not.
    pub documents: BTreeMap<DocumentKey, Document>,
    /// Which state of the source this is: the revision in etcd, a number made of the content for a file. Only good for comparing.
    pub revision: u64,
}

/// One document that is now another one; none where it is gone.
pub type DocumentChange = (DocumentKey, Option<Document>);

/// What a source has to say after it was read.
#[derive(Debug)]
pub enum SourceEvent {
    /// These documents are others now; what is not named is as it was.
    Changed {
        /// In the order in which they changed.
        changes: Vec<DocumentChange>,
        /// The state that they lead to.
        revision: u64,
    },
    /// This is all there is now; what is not in it is gone. The source can be reached.
    All(Snapshot),
    /// The source was read and makes no sense as a whole; what was known counts on.
    Refused(SourceError),
    /// The source cannot be read now; what was known counts on. It is followed by `All` when it can.
    Away(SourceError),
}

/// A place where documents are. The same documents whichever it is.
#[async_trait]
pub trait DocumentSource: fmt::Debug + Send + Sync + 'static {
    /// All documents as they are now.
    async fn get(&self) -> Result<Snapshot, SourceError>;

    /// What happens from a state on that [`DocumentSource::get`] has answered.
    fn watch(&self, since: u64) -> Box<dyn DocumentWatch>;
}

/// Follows a source. Whoever has it is told of everything, in order, by the one or the other of its methods.
#[async_trait]
pub trait DocumentWatch: fmt::Debug + Send + 'static {
    /// Waits for the next event. Nothing is lost when the future is dropped before it is done.
    async fn next(&mut self) -> SourceEvent;

    /// Reads everything again, now.
    async fn reread(&mut self) -> SourceEvent;
}

/// Why a source cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("{} cannot be read: {error}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why not.
        error: std::sync::Arc<std::io::Error>,
    },
    /// It was read and is no collection of documents.
    #[error("{}", list(.0))]
    Malformed(Vec<Problem>),
    /// An etcd server does not answer, or refuses.
    #[error("etcd at {endpoint} {fault}")]
    Etcd {
        /// The last one that was asked.
        endpoint: String,
        /// What it did.
        fault: EtcdFault,
    },
    /// There is no etcd server to ask.
    #[error("no etcd server is named")]
    NoServer,
    /// A file for TLS to etcd cannot be used.
    #[error("{} cannot be read, which the connection to etcd needs: {error}", file.display())]
    TlsFile {
        /// Which file.
        file: PathBuf,
        /// Why not.
        error: std::sync::Arc<std::io::Error>,
    },
    /// It was told so: [`crate::MemorySource::set_away`].
    #[error("it is away")]
    Told,
}

/// What an etcd server can do instead of answering.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EtcdFault {
    /// Nobody is there, or nothing is understood.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("does not answer")]
    Silent,
    /// The user is not let in.
    #[error("refuses user or password: {0}; look at etcd-user and etcd-password")]
    Credentials(String),
    /// The user is let in and may not do this.
    #[error("does not permit this user to read or write all keys: {0}; give it a role that does")]
    NotPermitted(String),
    /// It answers an error.
    #[error("answers: {0}")]
    Refused(String),
    /// A connection that was followed has ended.
    #[error("has ended the connection")]
    Ended,
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
