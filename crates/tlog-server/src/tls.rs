//! TLS: the files that say who the server is and whom it lets in, read at start and again when asked to.

mod accept;
mod fault;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use crate::permissions::Permissions;

pub(crate) use accept::{Caller, NotAccepted, accept};
pub(crate) use fault::{TlsFault, is_end_of_stream, is_tls_at_plain_server};

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of that certificate, without a password.
    pub key: PathBuf,
    /// Certificates of the authorities that clients' certificates must come from. None lets clients in without one.
    pub client_ca: Option<PathBuf>,
}

/// What a server needs to speak TLS. Clones are the same: what one reloads, all have.
#[derive(Clone, Debug)]
pub struct ServerTls {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
    permissions: RwLock<Arc<Permissions>>,
}

/// What a server shows to its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The DNS names in its subjectAltName.
    pub names: Vec<String>,
    /// The last moment at which clients take it; none where that cannot be told.
    pub not_after: Option<SystemTime>,
    /// Why no client will take it as it is, where that can be told from here. It is served nevertheless: this machine's clock
    /// may be the one that is wrong.
    pub fault: Option<ServerCertificateFault>,
}

/// Why no client will take a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerCertificateFault {
    /// Its time is over.
    #[error("it has expired; renew it")]
    Expired,
    /// Its time has not begun.
    #[error(
        "it is not valid yet; look at the clock of this machine, and at the date that the certificate begins with"
    )]
    NotYetValid,
    /// It is that of an authority.
    #[error("it is that of an authority, or signed itself; have one made by the authority")]
    OfAnAuthority,
    /// It is for something else.
    #[error("it is not for servers; its extendedKeyUsage must have serverAuth, or be left out")]
    NotForServers,
}

/// Why a server cannot speak TLS with the files that it was given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}, for TLS: {source}; check its name, and who may read it", .file.display())]
    Unreadable {
        /// Which one.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not PEM, or is cut short.
    #[error("{} cannot be read as PEM: {source}; it must have lines such as -----BEGIN CERTIFICATE-----", .file.display())]
    Pem {
        /// Which one.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// A file has no certificate in it.
    #[error("{} has no certificate in PEM in it; it must have a part that begins with -----BEGIN CERTIFICATE-----", .0.display())]
    NoCertificate(PathBuf),
    /// A file has no private key in it.
    #[error(
        "{} has no private key in PEM in it, or one with a password; it must have a part that begins with \
         -----BEGIN PRIVATE KEY----- ('openssl pkey -in FILE -out FILE' takes the password away)", .0.display()
    )]
    NoKey(PathBuf),
    /// The key belongs to another certificate.
    #[error(
        "the key in {} is not that of the certificate in {}, whose first certificate must be the server's own; name two files \
         that belong together", .key.display(), .certificate.display()
    )]
    KeyOfAnother {
        /// File with the certificate.
        certificate: PathBuf,
        /// File with the key.
        key: PathBuf,
    },
    /// The certificate or its key is of a kind that cannot be used.
    #[error(
        "the certificate in {} and the key in {} cannot be used: {source}; take a certificate of X.509 version 3 (openssl x509 -req \
         makes one with -copy_extensions copy) and an ECDSA key (P-256, P-384), Ed25519, or RSA of 2048 bits or more", .certificate.display(), .key.display()
    )]
    Unusable {
        /// File with the certificate.
        certificate: PathBuf,
        /// File with the key.
        key: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// A certificate of the client CA cannot be used.
    #[error("a certificate in {}, the client CA, cannot be used: {source}; take the certificate of the authority that signs clients' certificates", .file.display())]
    ClientCa {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
}

impl ServerTls {
    /// Reads the files. `permissions` has no effect without a client CA but to keep everybody out: without one nobody has a name.
    pub fn load(files: TlsFiles, permissions: Permissions) -> Result<(Self, ServerCertificate), TlsError> {
        let (config, certificate) = read(&files)?;
        let config = RwLock::new(Arc::new(config));
        let permissions = RwLock::new(Arc::new(permissions));
        Ok((Self { state: Arc::new(State { files, config, permissions }) }, certificate))
    }

    /// Reads the files again. New connections get what is in them; those that are open live on as they are. After an error
    /// everything stays as it was.
    pub fn reload(&self) -> Result<ServerCertificate, TlsError> {
        let outcome = read(&self.state.files);
        let label = if outcome.is_ok() { "done" } else { "failed" };
        metrics::counter!("tlog_server_tls_reloads_total", "outcome" => label).increment(1);
        let (config, certificate) = outcome?;
        *self.state.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(certificate)
    }

    /// From now on these rules say who may write what. Connections that are open live on.
    pub fn replace_permissions(&self, permissions: Permissions) {
        *self.state.permissions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(permissions);
    }

    /// The files that it is read from.
    pub fn files(&self) -> &TlsFiles {
        &self.state.files
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.state.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn permissions(&self) -> Arc<Permissions> {
        Arc::clone(&self.state.permissions.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(files: &TlsFiles) -> Result<(ServerConfig, ServerCertificate), TlsError> {
    // Named, not the default of the process: that is for whoever owns the process.
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let own = chain.first().map(look_at).unwrap_or_default();
    let key = private_key(&files.key)?;
    let unusable = |source| TlsError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => builder.with_client_cert_verifier(client_verifier(file, provider)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyOfAnother { certificate: files.certificate.clone(), key: files.key.clone() }
        }
        error => unusable(error),
    })?;
    // Connections live for days, so nothing is won by resuming, and a resumed one would not have its client's certificate
    // checked again: it could have expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if let Some(since_1970) = own.not_after.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        metrics::gauge!("tlog_server_tls_certificate_expires_seconds").set(since_1970.as_secs_f64());
    }
    Ok((config, own))
}

fn client_verifier(
    file: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let unusable = |source| TlsError::ClientCa { file: file.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(unusable)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|error| unusable(rustls::Error::General(error.to_string())))
}

fn bytes_of(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { file: file.to_owned(), source })
}

/// At least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = bytes_of(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|source| TlsError::Pem { file: file.to_owned(), source })?;
    if certificates.is_empty() { Err(TlsError::NoCertificate(file.to_owned())) } else { Ok(certificates) }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&bytes_of(file)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(file.to_owned()),
        source => TlsError::Pem { file: file.to_owned(), source },
    })
}

/// The DNS names in a certificate's subjectAltName.
fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = EndEntityCert::try_from(certificate);
    parsed.map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect()).unwrap_or_default()
}

fn look_at(certificate: &CertificateDer<'_>) -> ServerCertificate {
    // Of no authority: what is wrong with the certificate itself is told before that.
    let complaint_at = |time| {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        parsed.verify_for_usage(algorithms, &[], &[], time, KeyUsage::server_auth(), None, None).err()
    };
    let fault = match complaint_at(UnixTime::now()) {
        Some(webpki::Error::CertExpired { .. }) => Some(ServerCertificateFault::Expired),
        Some(webpki::Error::CertNotValidYet { .. }) => Some(ServerCertificateFault::NotYetValid),
        Some(webpki::Error::CaUsedAsEndEntity) => Some(ServerCertificateFault::OfAnAuthority),
        Some(webpki::Error::RequiredEkuNotFoundContext(_)) => Some(ServerCertificateFault::NotForServers),
        _ => None,
    };
    // At the end of all time it complains that the certificate has expired, and says when.
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let not_after = match complaint_at(end_of_time) {
        Some(webpki::Error::CertExpired { not_after, .. }) => {
            UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs()))
        }
        _ => None,
    };
    ServerCertificate { names: names_of(certificate), not_after, fault }
}
