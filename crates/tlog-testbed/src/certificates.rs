//! A certificate authority for one server.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

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
        let files = Self {
            ca: directory.join("ca.pem"),
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
            client_certificate: directory.join("client.pem"),
            client_key: directory.join("client.key"),
        };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Each has a name of its own: two of one name are told apart by their signatures alone, which no real ones are.
        let name = format!("authority of {}", directory.display());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        fs::write(&files.ca, params.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Issuer::new(params, key);

        let issue = |names: &[String], name: &str, certificate: &Path, key_file: &Path| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names.to_vec()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            fs::write(certificate, params.signed_by(&key, &authority).unwrap().pem()).unwrap();
            fs::write(key_file, key.serialize_pem()).unwrap();
        };
        issue(names, "testbed server", &files.certificate, &files.key);
        issue(&["client".to_owned()], "testbed client", &files.client_certificate, &files.client_key);
        files
    }
}
