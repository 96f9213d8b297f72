//! Whom a `rediss://` link trusts, and who it says it is.

use std::fs;
use std::path::PathBuf;

use redis::{ClientTlsConfig, TlsCertificates};

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
    /// What is in the files is not what it should be.
    #[error("certificates or key for TLS cannot be used: {0}")]
    Unusable(#[source] redis::RedisError),
}

impl TlsOptions {
    /// Reads the files.
    pub(crate) fn read(&self) -> Result<TlsCertificates, TlsError> {
        let read = |file: &PathBuf| {
            fs::read(file).map_err(|source| TlsError::Unreadable { file: file.clone(), source })
        };
        let certificates = |file: &PathBuf| {
            let text = read(file)?;
            let begin = b"-----BEGIN CERTIFICATE-----";
            // Else an empty file would mean "trust nobody", and be found out late.
            let found = text.windows(begin.len()).any(|window| window == begin);
            if found { Ok(text) } else { Err(TlsError::NoCertificate(file.clone())) }
        };
        let client_tls = match &self.client {
            None => None,
            Some(ClientCertificate { certificate, key }) => {
                Some(ClientTlsConfig { client_cert: certificates(certificate)?, client_key: read(key)? })
            }
        };
        let root_cert = self.ca_file.as_ref().map(certificates).transpose()?;
        Ok(TlsCertificates { client_tls, root_cert })
    }
}
