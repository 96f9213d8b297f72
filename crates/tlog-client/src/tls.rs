//! TLS to a server: whom the client trusts, who it says it is, and what can go wrong, by name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How servers are trusted, and what they are shown. The default trusts whom this system trusts, and shows no certificate.
///
/// The files, in PEM, are read for each connection: one that is replaced counts from the next connection on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities that servers' certificates must come from; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// For servers that ask for a certificate, as those do that decide by it who may write what.
    pub client: Option<ClientCertificate>,
    /// The name that each server's certificate must have. None: the host that is connected to, be it a name or an address.
    pub server_name: Option<String>,
}

/// What a client shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// File with the certificate, and what leads from it to its authority.
    pub certificate: PathBuf,
    /// File with its private key.
    pub key: PathBuf,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFailure {
    /// A file of [`TlsOptions`] cannot be used.
    #[error("{file} cannot be used for TLS: {source}", file = .file.display())]
    File {
        /// Which one.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file of [`TlsOptions`] has no certificate in it.
    #[error("{file} has no certificate in PEM in it", file = .0.display())]
    NoCertificate(PathBuf),
    /// The system has no certificates of authorities.
    #[error(
        "this system has no certificates of authorities; name a file with the one that the server's comes from"
    )]
    NoSystemCertificates,
    /// Certificate and key of the client do not belong together, or are of a kind that is not known.
    #[error(
        "the client's certificate in {} and key in {} cannot be used: {source}; name two files that belong together, with a certificate \
         of X.509 version 3", .files.certificate.display(), .files.key.display()
    )]
    ClientCertificateUnusable {
        /// Which files.
        files: Box<ClientCertificate>,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The host, or [`TlsOptions::server_name`], is no name that a certificate can have.
    #[error("{0:?} is not a name that a certificate can have")]
    NotAName(String),
    /// The server's certificate comes from an authority that is not trusted.
    #[error(
        "the server's certificate does not come from an authority that is trusted here; check the CA file"
    )]
    UntrustedServer,
    /// The server's certificate is not valid any more.
    #[error(
        "the server's certificate has expired; its operator has to renew it (check this machine's clock, too)"
    )]
    ServerCertificateExpired,
    /// The server's certificate is not valid yet.
    #[error("the server's certificate is not valid yet; check this machine's clock")]
    ServerCertificateNotYetValid,
    /// The server's certificate is for another name.
    #[error(
        "the server's certificate is not for {expected}; connect by a name that it has, or set the server name"
    )]
    WrongName {
        /// The name that was expected.
        expected: String,
    },
    /// The server shows the certificate of an authority, or one that signed itself, as its own.
    #[error(
        "the server shows the certificate of an authority as its own (one that signed itself?); have one made by the authority, docs/tls.md says how"
    )]
    ServerShowsAuthority,
    /// The server's certificate is bad in another way.
    #[error("the server's certificate is not accepted: {0}")]
    BadServerCertificate(#[source] rustls::Error),
    /// The server asks for a certificate, and none was set.
    #[error(
        "the server asks for a client certificate; set one, and its key (client-certificate-file and client-key-file of the tool)"
    )]
    ClientCertificateRequired,
    /// The server does not accept the client's certificate.
    #[error("the server does not accept this client's certificate: {why} ({0:?})", why = refused(.0))]
    ClientCertificateRefused(AlertDescription),
    /// The server does not speak TLS.
    #[error("the server does not speak TLS; connect without it")]
    NotTls,
    /// The server speaks nothing but TLS.
    #[error("the server wants TLS; connect with it (server-ca-file of the tool)")]
    TlsWanted,
    /// Something else.
    #[error("TLS failed: {0}")]
    Other(#[source] rustls::Error),
}

/// What happened while TLS was set up.
pub(crate) enum SetUpError {
    Tls(TlsFailure),
    Broken(io::Error),
}

/// Makes a connection one of TLS.
pub(crate) async fn connect(
    stream: TcpStream,
    host: &str,
    options: &TlsOptions,
) -> Result<TlsStream<TcpStream>, SetUpError> {
    let expected = options.server_name.clone().unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(expected.clone())
        .map_err(|_| SetUpError::Tls(TlsFailure::NotAName(expected.clone())))?;
    let options = options.clone();
    // It reads files.
    let config = tokio::task::spawn_blocking(move || config(&options)).await;
    let config = config.map_err(|_| SetUpError::Broken(io::Error::other("the runtime is shutting down")))?;
    let connector = TlsConnector::from(Arc::new(config.map_err(SetUpError::Tls)?));
    connector.connect(name, stream).await.map_err(|error| match failure(&error, &expected) {
        Some(failure) => SetUpError::Tls(failure),
        None => SetUpError::Broken(error),
    })
}

fn config(options: &TlsOptions) -> Result<ClientConfig, TlsFailure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsFailure::Other)?;
    let builder = builder.with_root_certificates(roots(options.ca_file.as_deref())?);
    match &options.client {
        None => Ok(builder.with_no_client_auth()),
        Some(ClientCertificate { certificate, key: key_file }) => {
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|source| TlsFailure::File { file: key_file.clone(), source })?;
            let chain = certificates(certificate)?;
            let unusable = |source| {
                let files = ClientCertificate { certificate: certificate.clone(), key: key_file.clone() };
                TlsFailure::ClientCertificateUnusable { files: Box::new(files), source }
            };
            builder.with_client_auth_cert(chain, key).map_err(unusable)
        }
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsFailure> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(TlsFailure::BadServerCertificate)?;
            }
        }
        None => {
            // What of the system cannot be parsed is of no use to anybody; the rest is.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsFailure::NoSystemCertificates);
            }
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFailure> {
    let unusable = |source| TlsFailure::File { file: file.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(file).map_err(unusable)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    if certificates.is_empty() { Err(TlsFailure::NoCertificate(file.to_owned())) } else { Ok(certificates) }
}

fn refused(alert: &AlertDescription) -> &'static str {
    match *alert {
        AlertDescription::UnknownCA => {
            "it does not come from the authority that the server trusts for clients"
        }
        AlertDescription::CertificateExpired => {
            "it has expired, or is not valid yet; look at the clocks of both machines"
        }
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::UnsupportedCertificate => {
            "it is not for clients; its extendedKeyUsage must have clientAuth, or be left out"
        }
        _ => "the server's log says why",
    }
}

/// The TLS in an error of reading or writing; none where the connection itself broke. A server that does not accept the client's
/// certificate says so only after the client's side of the handshake is over (TLS 1.3), so it is asked of every error.
pub(crate) fn failure(error: &io::Error, expected: &str) -> Option<TlsFailure> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            CertificateError::UnknownIssuer => TlsFailure::UntrustedServer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsFailure::ServerCertificateExpired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFailure::ServerCertificateNotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFailure::WrongName { expected: expected.to_owned() }
            }
            // It has no variant of its own.
            CertificateError::Other(why) if format!("{why:?}").contains("CaUsedAsEndEntity") => {
                TlsFailure::ServerShowsAuthority
            }
            _ => TlsFailure::BadServerCertificate(error.clone()),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => TlsFailure::ClientCertificateRequired,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => TlsFailure::ClientCertificateRefused(*alert),
            _ => TlsFailure::Other(error.clone()),
        },
        rustls::Error::InvalidMessage(_) => TlsFailure::NotTls,
        _ => TlsFailure::Other(error.clone()),
    })
}

/// Whether what a server answered to a plain client is the beginning of an alert of TLS (content type 21, version 3.x), taken
/// for a count of segments: 4 bytes, the lowest first, less one.
pub(crate) fn is_alert(segments: usize) -> bool {
    segments.wrapping_sub(1) & 0xffff == 0x0315
}
