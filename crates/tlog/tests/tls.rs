//! The real `tlog-server` over TLS: starting, certificates that are renewed while it runs, and starts that are refused.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::Method;
use support::{Place, Server};
use tlog::admin_client::ask;
use tlog_proto::{
    Block, BlockIndex, BlockStatus, FrameReader, HandshakeRequest, HandshakeResponse, HandshakeStatus,
    Limits, Refusal, Sequence, Timestamp, VdiskId,
};
use tlog_testbed::{Authority, IdentityFiles};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

const NAME: &str = "tlog.example.org";

/// Nothing but the protocol over TLS.
struct Client {
    reader: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl Client {
    /// Connects, and does the handshake for a vdisk.
    async fn greet(
        server: &Server,
        ca: &Path,
        own: Option<&IdentityFiles>,
        vdisk: &str,
    ) -> io::Result<(Self, HandshakeResponse)> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let certificate = CertificateDer::from_pem_file(&own.certificate).unwrap();
                let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(server.address).await?;
        let name = ServerName::try_from(NAME).unwrap();
        let (read, writer) = split(TlsConnector::from(Arc::new(config)).connect(name, stream).await?);
        let mut client = Self { reader: FrameReader::new(read, Limits::default()), writer };
        let mut bytes = BytesMut::new();
        HandshakeRequest::new(VdiskId::new(vdisk).unwrap(), Sequence(1)).encode_into(&mut bytes);
        client.writer.write_all(&bytes).await?;
        client.writer.flush().await?;
        let answer = client.reader.handshake_response().await.map_err(io::Error::other)?;
        Ok((client, answer.ok_or(io::ErrorKind::UnexpectedEof)?))
    }

    async fn sends(&mut self, sequence: u64) {
        let (index, data) = (BlockIndex::new(sequence).unwrap(), Bytes::from(vec![7; 4096]));
        let mut bytes = BytesMut::new();
        Block::set(Sequence(sequence), index, Timestamp(sequence), data).encode_into(&mut bytes);
        self.writer.write_all(&bytes).await.unwrap();
        self.writer.flush().await.unwrap();
        let answer = self.reader.response().await.unwrap().unwrap();
        assert_eq!((answer.status, answer.sequences), (BlockStatus::RecvOk, vec![Sequence(sequence)]));
    }
}

/// The flags of a server with these files.
fn flags<'a>(identity: &'a IdentityFiles, more: &[&'a str]) -> Vec<&'a str> {
    let files = [identity.certificate.to_str().unwrap(), identity.key.to_str().unwrap()];
    [&["--tls-certificate-file", files[0], "--tls-key-file", files[1]], more].concat()
}

#[tokio::test]
async fn a_certificate_is_renewed_while_the_server_runs() {
    let place = Place::new();
    let of_clients = Authority::make(place.path(), "clients-ca");
    let old_ca = Authority::make(place.path(), "old-ca");
    let identity = old_ca.issue("server", &[NAME]);
    let one = of_clients.issue("one", &["one.example.org"]);
    let client_ca = ["--tls-client-ca-file", of_clients.certificate().to_str().unwrap()];
    let rules = ["--tls-permissions", "one.example.org=vm-*,admin=*"];
    let mut server = place.server_with_log(&flags(&identity, &[client_ca, rules].concat()));
    let told = server.waits_for_log("TLS is on");
    assert!(told.contains("server.pem") && told.contains(NAME) && told.contains("clients-ca.pem"), "{told}");

    let (mut open, answer) = Client::greet(&server, old_ca.certificate(), Some(&one), "vm-1").await.unwrap();
    assert_eq!(answer.status, HandshakeStatus::Ok);
    open.sends(1).await;
    server.waits_for_log("one.example.org");
    let (_, answer) = Client::greet(&server, old_ca.certificate(), Some(&one), "vda").await.unwrap();
    assert_eq!(
        (answer.status, answer.refusal),
        (HandshakeStatus::InvalidVdiskId, Some(Refusal::NotPermitted))
    );
    server.waits_for_log("no rule permits");
    Client::greet(&server, old_ca.certificate(), None, "vm-1").await.map(|_| ()).unwrap_err();
    server.waits_for_log("the client shows no certificate");

    let new_ca = Authority::make(place.path(), "new-ca");
    new_ca.issue("server", &[NAME]);
    server.signal("-HUP");
    server.waits_for_log("were read again");
    Client::greet(&server, old_ca.certificate(), Some(&one), "vm-2").await.map(|_| ()).unwrap_err();
    let told = server.waits_for_log("TLS handshake failed");
    assert!(
        told.contains("WARN") && told.contains("the certificate of the authority that issued it"),
        "{told}"
    );
    let (mut new, _) = Client::greet(&server, new_ca.certificate(), Some(&one), "vm-2").await.unwrap();
    new.sends(1).await;
    open.sends(2).await;

    std::fs::write(&identity.key, "half a k").unwrap();
    server.signal("-HUP");
    let told = server.waits_for_log("the old certificate stays in force");
    assert!(told.contains("ERROR") && told.contains("server.key has no private key"), "{told}");
    Client::greet(&server, new_ca.certificate(), Some(&one), "vm-3").await.unwrap();
    open.sends(3).await;

    let metrics = ask(&server.admin(), Method::GET, "/metrics").await.unwrap();
    for line in [
        "tlog_server_tls_handshakes_failed_total{reason=\"no_client_certificate\"} 1",
        "tlog_server_tls_handshakes_failed_total{reason=\"client_distrusts_us\"} 1",
        "tlog_server_handshakes_refused_total{reason=\"not_permitted\"} 1",
        "tlog_server_tls_reloads_total{outcome=\"done\"} 1",
        "tlog_server_tls_reloads_total{outcome=\"failed\"} 1",
        "tlog_server_tls_certificate_expires_seconds ",
    ] {
        assert!(metrics.contains(line), "no {line} in:\n{metrics}");
    }
    drop((open, new));
    server.stop();
}

#[test]
fn a_server_without_tls_goes_on_after_sighup() {
    let place = Place::new();
    let mut server = place.server_with_log(&[]);
    server.signal("-HUP");
    server.waits_for_log("there are neither files of TLS nor documents to be read again");
    server.stop();
}

#[tokio::test]
async fn a_server_with_an_expired_certificate_says_so_at_its_start() {
    let place = Place::new();
    let ca = Authority::make(place.path(), "ca");
    let identity = ca.issue_expired("server", &[NAME]);
    let mut server = place.server_with_log(&flags(&identity, &[]));
    let told = server.waits_for_log("no client will take the server's certificate");
    assert!(told.contains("WARN") && told.contains("it has expired; renew it"), "{told}");
    Client::greet(&server, ca.certificate(), None, "vda").await.map(|_| ()).unwrap_err();
    let told = server.waits_for_log("TLS handshake failed");
    assert!(told.contains("alert CertificateExpired"), "{told}");
    server.stop();
}

#[test]
fn a_start_that_is_refused_says_why_and_what_to_do() {
    let place = Place::new();
    let ca = Authority::make(place.path(), "ca");
    let (one, other) = (ca.issue("one", &[NAME]), ca.issue("other", &[NAME]));
    let half = IdentityFiles { key: other.key.clone(), ..one.clone() };
    let gone = IdentityFiles { certificate: "/nowhere/server.pem".into(), ..one.clone() };
    let empty = IdentityFiles { certificate: place.path().join("empty.pem"), ..one.clone() };
    std::fs::write(&empty.certificate, "").unwrap();
    for (arguments, says) in [
        (flags(&gone, &[]), "cannot read /nowhere/server.pem, for TLS"),
        (flags(&empty, &[]), "empty.pem has no certificate in PEM in it"),
        (flags(&half, &[]), "name two files that belong together"),
        (
            flags(&one, &["--tls-client-ca-file", one.key.to_str().unwrap()]),
            "one.key has no certificate in PEM",
        ),
        (
            flags(&one, &["--tls-permissions", "a=*"]),
            "tls-permissions does nothing without tls-client-ca-file",
        ),
        (vec!["--tls-certificate-file", "a"], "tls-certificate-file and tls-key-file go together"),
        (vec!["--listen", "0.0.0.0:0"], "listening on 0.0.0.0:0 without TLS"),
        (vec!["--listen", "[::]:0"], "set tls-certificate-file and tls-key-file"),
    ] {
        let said = place.server_fails(&arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert!(!place.path().join("tlog-data").exists(), "a refused start leaves nothing behind");
}

#[tokio::test]
async fn on_the_network_a_server_listens_with_tls_or_when_told_that_it_may_without() {
    let place = Place::new();
    let ca = Authority::make(place.path(), "ca");
    let identity = ca.issue("server", &[NAME]);
    let mut server = place.server_on("0.0.0.0:0", &flags(&identity, &[]));
    server.waits_for_log("clients need no certificate");
    server.stop();
    let mut server = place.server_on("0.0.0.0:0", &["--allow-unencrypted-network"]);
    server.waits_for_log("plain TCP without passwords or encryption");
    server.stop();
}
