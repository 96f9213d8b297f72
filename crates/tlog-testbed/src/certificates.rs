//! Certificate authorities, and what they sign.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority, with its files in PEM in one directory.
pub struct Authority {
    directory: PathBuf,
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key: files in PEM.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one, with its certificate in `NAME.pem`.
    pub fn make(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Each has a name of its own: two of one name are told apart by their signatures alone, which no real ones are.
        let common_name = format!("authority {name} of {}", directory.display());
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = directory.join(format!("{name}.pem"));
        fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory: directory.to_owned(), certificate, issuer: Issuer::new(params, key) }
    }

    /// The file with its own certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Its own certificate and key, as a server should not show them.
    pub fn itself(&self) -> IdentityFiles {
        let key = self.directory.join("itself.key");
        fs::write(&key, self.issuer.key().serialize_pem()).unwrap();
        IdentityFiles { certificate: self.certificate.clone(), key }
    }

    /// A certificate with these names in its subjectAltName, in `FILE.pem` and `FILE.key`. Files that are there are replaced.
    pub fn issue(&self, file: &str, names: &[&str]) -> IdentityFiles {
        self.issue_with(file, names, |_| {})
    }

    /// The same, and its time was over years ago.
    pub fn issue_expired(&self, file: &str, names: &[&str]) -> IdentityFiles {
        self.issue_with(file, names, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    fn issue_with(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> IdentityFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("testbed {file}"));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let files = IdentityFiles {
            certificate: self.directory.join(format!("{file}.pem")),
            key: self.directory.join(format!("{file}.key")),
        };
        fs::write(&files.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// Files, in PEM, for a server and its clients. They go away with the server.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate of the authority, for both sides.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
    /// A client's certificate.
    pub client_certificate: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

impl TlsFiles {
    /// Makes an authority, a certificate for a server of these names, and one for a client.
    pub fn make(directory: &Path, names: &[String]) -> Self {
        let authority = Authority::make(directory, "ca");
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let server = authority.issue("server", &names);
        let client = authority.issue("client", &["client"]);
        Self {
            ca: authority.certificate,
            certificate: server.certificate,
            key: server.key,
            client_certificate: client.certificate,
            client_key: client.key,
        }
    }
}
