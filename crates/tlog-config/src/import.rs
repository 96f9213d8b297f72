//! Putting the documents of a file into etcd.

use crate::check::read_text;
use crate::{Document, DocumentKey, EtcdEndpoint, EtcdOptions, OpenSourceError, Problem, SourceError};

/// What an import does beside putting documents.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// Documents of ours that are in etcd and not in the file are deleted.
    pub prune: bool,
    /// Nothing is written; the answer says what would be.
    pub dry_run: bool,
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Documents that were not there, or said something else.
    pub put: Vec<DocumentKey>,
    /// Documents that said the same already.
    pub unchanged: Vec<DocumentKey>,
    /// Documents that were not in the file and are gone now.
    pub deleted: Vec<DocumentKey>,
    /// Documents that are not in the file and were left.
    pub others: Vec<DocumentKey>,
    /// In how many steps: whoever follows sees each as a whole.
    pub transactions: usize,
}

/// Why an import was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file has problems, or is none; nothing was written.
    #[error("the file has problems, and nothing was imported")]
    Problems(Vec<Problem>),
    /// The options make no sense, or there is no etcd in this build.
    #[error(transparent)]
    Open(#[from] OpenSourceError),
    /// etcd does not take it. What was written before stays; importing again does the rest.
    #[error("{0}")]
    Etcd(#[from] SourceError),
}

/// Makes an etcd have the documents in the text of a YAML file, which `origin` names. Only what differs is written.
pub async fn import(
    origin: &str,
    text: &str,
    endpoints: &[EtcdEndpoint],
    etcd: &EtcdOptions,
    options: ImportOptions,
) -> Result<ImportReport, ImportError> {
    let documents = read_text(origin, text).map_err(ImportError::Problems)?;
    let texts = documents.values().map(Document::text_of_its_own);
    let problems: Vec<Problem> = texts.filter_map(Result::err).collect();
    if !problems.is_empty() {
        return Err(ImportError::Problems(problems));
    }
    #[cfg(feature = "etcd")]
    {
        let source = crate::EtcdSource::new(endpoints.to_vec(), etcd.clone())?;
        Ok(crate::etcd::import::import(&source, &documents, options).await?)
    }
    #[cfg(not(feature = "etcd"))]
    {
        let _ = (documents, endpoints, etcd, options);
        Err(OpenSourceError::NoEtcd.into())
    }
}
