//! Whom a `rediss://` link trusts, and who it says it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Files, in PEM, for links over TLS. The default trusts whom this system trusts, and shows no certificate.
///
/// They are read once: later changes of the files need a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities that servers' certificates must come from; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// A certificate (and what leads to its authority) and its key, for servers that ask for one.
    pub client: Option<ClientCertificate>,
}

/// What a client shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// File with the certificate.
    pub certificate: PathBuf,
    /// File with its key.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {file}, for TLS: {source}", file = file.display())]
    Unreadable {
        /// Which one.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file has no certificate in it.
    #[error("{file} has no certificate in PEM in it", file = .0.display())]
    NoCertificate(PathBuf),
    /// A file is not PEM as it should be.
    #[error("{file} cannot be used for TLS: {source}", file = file.display())]
    NotPem {
        /// Which one.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// What is in the files is not what it should be.
    #[error("certificates or key for TLS cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

impl TlsOptions {
    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Unusable)?;
        let builder = builder.with_root_certificates(self.roots()?);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(ClientCertificate { certificate, key }) => {
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|source| TlsError::NotPem { file: key.clone(), source })?;
                builder.with_client_auth_cert(chain, key).map_err(TlsError::Unusable)?
            }
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(TlsError::Unusable)?;
                }
            }
            // What of the system cannot be read is of no use to anybody. Where nothing is left, no server is trusted, and each says so.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        Ok(roots)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { file: file.to_owned(), source })
}

/// The certificates in a file, at least one: an empty file would mean "trust nobody", and be found out late.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::NoCertificate(file.to_owned())),
        Ok(found) => Ok(found),
        Err(source) => Err(TlsError::NotPem { file: file.to_owned(), source }),
    }
}
