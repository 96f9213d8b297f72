//! Links over TLS: who is trusted, and what is said when somebody is not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use tlog_config::RedisServer;
use tlog_redis::{ClientCertificate, Link, LinkLimits, TlsOptions};
use tlog_testbed::{RedisOptions, RedisProcess, Tls};

fn start(tls: Tls) -> RedisProcess {
    RedisProcess::start(RedisOptions { tls: Some(tls), ..RedisOptions::default() })
}

fn trusting(process: &RedisProcess) -> TlsOptions {
    TlsOptions { ca_file: Some(process.tls().unwrap().ca.clone()), client: None }
}

fn link(process: &RedisProcess, tls: bool, options: &TlsOptions) -> Link {
    let server = RedisServer { tls, ..RedisServer::new(process.host(), process.port()) };
    Link::with_tls(server, LinkLimits::default(), options).unwrap()
}

async fn refused(link: Link, said: &str) {
    let error = link.run::<String>(&redis::cmd("PING")).await.unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
}

async fn let_in(link: Link) {
    assert_eq!(link.run::<String>(&redis::cmd("PING")).await.unwrap(), "PONG");
}

#[tokio::test]
async fn a_server_of_a_trusted_authority_is_used_and_no_other() {
    let (process, other) = (start(Tls::default()), start(Tls::default()));
    let_in(link(&process, true, &trusting(&process))).await;
    refused(link(&process, true, &trusting(&other)), "check the CA file").await;
    refused(link(&process, true, &TlsOptions::default()), "check the CA file").await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let process = start(Tls { names: vec!["elsewhere.example".into()], ..Tls::default() });
    refused(link(&process, true, &trusting(&process)), "not made out for 127.0.0.1").await;
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_one() {
    let process = start(Tls { client_certificates: true, ..Tls::default() });
    let files = process.tls().unwrap();
    let client =
        ClientCertificate { certificate: files.client_certificate.clone(), key: files.client_key.clone() };
    let_in(link(&process, true, &TlsOptions { client: Some(client), ..trusting(&process) })).await;
    let anonymous = link(&process, true, &trusting(&process));
    refused(anonymous, "does it ask for a certificate?").await;
}

#[tokio::test]
async fn tls_to_a_plain_server_and_the_other_way_round_say_what_to_change() {
    let plain = RedisProcess::start(RedisOptions::default());
    let tls = start(Tls::default());
    refused(link(&plain, true, &trusting(&tls)), "use redis://").await;
    refused(link(&tls, false, &TlsOptions::default()), "use rediss://").await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let server = RedisServer { tls: true, ..RedisServer::new("127.0.0.1", 1) };
    let fault = || {
        let options = TlsOptions { ca_file: Some(file.clone()), client: None };
        Link::with_tls(server.clone(), LinkLimits::default(), &options).unwrap_err().to_string()
    };
    assert!(fault().contains("cannot read") && fault().contains("ca.pem"), "{}", fault());
    std::fs::write(&file, "nothing").unwrap();
    assert!(fault().contains("no certificate"), "{}", fault());
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(fault().contains("cannot be used"), "{}", fault());
    // Without TLS they are not looked at.
    let plain = RedisServer { tls: false, ..server.clone() };
    let options = TlsOptions { ca_file: Some(folder.path().join("none")), client: None };
    Link::with_tls(plain, LinkLimits::default(), &options).unwrap();
}
