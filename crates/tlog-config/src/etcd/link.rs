//! A connection to one etcd server, and reading from it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, KvClient, TlsOptions, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::time::timeout;

use crate::{Document, DocumentKey, EtcdEndpoint, EtcdFault, EtcdOptions, Secret, Snapshot, SourceError};

/// How long a server may take for one answer before the next one is asked.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a quiet connection is tried. Servers by default take more than one in 5 s for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Keys in one answer: some 100 bytes each.
const PAGE: i64 = 5_000;
/// Documents in one answer, each of 1.5 MiB at most (etcd's own bound); and of operations in a transaction etcd takes 128.
const BATCH: usize = 64;
const MAX_MESSAGE: usize = 128 << 20;
/// How often everything is begun anew because its revision was compacted while it was read.
const ATTEMPTS: usize = 3;

/// A connection to one server.
pub(super) struct Link {
    client: Client,
    kv: KvClient,
    endpoint: String,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects, and logs in where there is a user.
    pub(super) async fn connect(endpoint: &EtcdEndpoint, options: &EtcdOptions) -> Result<Self, SourceError> {
        let files = options.ca_file.is_some() || options.certificate_file.is_some();
        let tls = endpoint.tls.unwrap_or(files);
        let url = EtcdEndpoint { tls: Some(tls), ..endpoint.clone() }.to_string();
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(ANSWER)
            .with_keep_alive(KEEP_ALIVE, ANSWER)
            .with_keep_alive_while_idle(true)
            // A server that is cut off from the others would otherwise answer from the past.
            .with_require_leader(true);
        if tls {
            connect = connect.with_tls(tls_options(options).await?);
        }
        if let (Some(user), Some(password)) = (&options.user, &options.password) {
            connect = connect.with_user(user, Secret::reveal(password));
        }
        let client = answer(&url, Client::connect([&url], Some(connect))).await?;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { client, kv, endpoint: url })
    }

    /// Every document, as of one revision.
    pub(super) async fn read_all(&mut self) -> Result<Snapshot, SourceError> {
        let mut attempt = 1;
        loop {
            match self.read_once().await {
                Err(SourceError::Etcd { fault: EtcdFault::Refused(why), .. })
                    if why.contains("compacted") && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn read_once(&mut self) -> Result<Snapshot, SourceError> {
        // First the keys alone: others may use this etcd, and their values may be large.
        let (keys, revision) = self.keys().await?;
        let mut documents = BTreeMap::new();
        let options = GetOptions::new().with_revision(revision);
        for batch in keys.chunks(BATCH) {
            let gets: Vec<_> =
                batch.iter().map(|key| TxnOp::get(key.to_string(), Some(options.clone()))).collect();
            let response = answer(&self.endpoint, self.kv.txn(Txn::new().and_then(gets))).await?;
            for answer in response.op_responses() {
                let TxnOpResponse::Get(answer) = answer else { continue };
                for kv in answer.kvs() {
                    if let Some((key, document)) = document_of(kv.key(), kv.value()) {
                        documents.insert(key, document);
                    }
                }
            }
        }
        Ok(Snapshot { documents, revision: u64::try_from(revision).unwrap_or_default() })
    }

    /// All keys of ours, and the revision at which they are there.
    async fn keys(&mut self) -> Result<(Vec<DocumentKey>, i64), SourceError> {
        let mut keys = Vec::new();
        let mut from = vec![0];
        let mut revision = 0;
        loop {
            let options = GetOptions::new().with_from_key().with_keys_only().with_limit(PAGE);
            let options = options.with_revision(revision);
            let page = answer(&self.endpoint, self.kv.get(from, Some(options))).await?;
            if revision == 0 {
                revision = page.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
            }
            keys.extend(
                page.kvs().iter().filter_map(|kv| DocumentKey::parse(std::str::from_utf8(kv.key()).ok()?)),
            );
            match page.kvs().last() {
                // The next key that there can be.
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => return Ok((keys, revision)),
            }
        }
    }

    /// Does everything in it or nothing.
    pub(super) async fn write(&mut self, operations: Vec<TxnOp>) -> Result<(), SourceError> {
        answer(&self.endpoint, self.kv.txn(Txn::new().and_then(operations))).await.map(drop)
    }

    /// What happens after a revision, to any key.
    pub(super) async fn watch_after(&self, revision: u64) -> Result<WatchStream, SourceError> {
        let start = i64::try_from(revision).unwrap_or(i64::MAX).saturating_add(1);
        let options = WatchOptions::new().with_from_key().with_start_revision(start);
        let mut watch = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        answer(&self.endpoint, watch.watch([0], Some(options))).await
    }

    /// Where it leads.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// The document under a key; none where the key is none of ours.
pub(super) fn document_of(key: &[u8], value: &[u8]) -> Option<(DocumentKey, Document)> {
    let key = std::str::from_utf8(key).ok()?;
    Some((DocumentKey::parse(key)?, Document::from_bytes(key, value)))
}

async fn answer<T>(
    endpoint: &str,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, SourceError> {
    let fault = match timeout(ANSWER, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => fault(&error),
        Err(_) => EtcdFault::Silent,
    };
    Err(SourceError::Etcd { endpoint: endpoint.to_owned(), fault })
}

/// What an error of the client means. Its texts come from etcd and the system and have no password in them.
pub(super) fn fault(error: &Error) -> EtcdFault {
    let Error::GRpcStatus(status) = error else {
        let mut text = error.to_string();
        if let Error::TransportError(error) = error {
            text = with_causes(error);
        }
        return EtcdFault::Unreachable(text);
    };
    let message = status.message();
    // By their texts: etcd has the same code for all of these, and others for other things.
    let login = [
        "user name is empty",
        "authentication failed",
        "invalid auth token",
        "authentication is not enabled",
    ];
    if message.contains("permission denied") {
        EtcdFault::NotPermitted(message.to_owned())
    } else if login.iter().any(|login| message.contains(login)) {
        EtcdFault::Credentials(message.to_owned())
    } else if status.source().is_some() {
        EtcdFault::Unreachable(with_causes(status))
    } else {
        EtcdFault::Refused(message.to_owned())
    }
}

/// An error and what it comes from, each once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

async fn tls_options(options: &EtcdOptions) -> Result<TlsOptions, SourceError> {
    let mut tls = TlsOptions::new();
    tls = match &options.ca_file {
        Some(file) => tls.ca_certificate(Certificate::from_pem(read(file).await?)),
        None => tls.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (&options.certificate_file, &options.key_file) {
        tls = tls.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(tls)
}

async fn read(file: &Path) -> Result<Vec<u8>, SourceError> {
    let path = file.to_owned();
    let read = crate::file::off_the_runtime(move || std::fs::read(path)).await;
    read.map_err(|error| SourceError::TlsFile { file: file.to_owned(), error: Arc::new(error) })
}
