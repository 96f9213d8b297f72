//! TLS: who gets in, who does not and is told why, and files that change while the server runs.

use std::io;
use std::time::Duration;

use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::{AlertDescription, ClientConfig, ConnectionTrafficSecrets, ContentType, ProtocolVersion};
use tlog_proto::{HandshakeStatus, Refusal};
use tlog_server::{Permissions, ServerCertificateFault, ServerSettings, ServerTls, TlsError, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::certificates::{Authority, dial_tls, put};
use crate::support::client::block_of;
use crate::support::scene::{NAME, Place, Scene};
use crate::support::*;

/// The alert that ended a connection.
fn alert(error: &io::Error) -> AlertDescription {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?} is no alert"),
    }
}

#[tokio::test]
async fn a_session_over_tls_is_like_any_other() {
    let scene = Scene::with(false, ServerSettings::default()).await;
    let mut client = scene.connect(scene.nobody(), "vd", 1).await;
    client.works(1).await;
    client.sends([block_of(2, 3 << 20), block_of(3, 16 << 20), block_of(4, 1)]).await;
    client.hears_recv_ok([2, 3, 4]).await;
    let many: Vec<u64> = (5..3000).collect();
    client.sends_blocks(many.iter().copied()).await;
    client.hears_recv_ok(many.iter().copied()).await;
    scene.server.shutdown.cancel();
    client.hears_flushed(2..3000).await;
    client.hears_the_end().await;
    drop(client);
    assert!(soon(scene.server.task).await.unwrap().all_durable());
    assert_eq!(scene.counters.get("tlog_server_tls_handshakes_total"), 1);
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_served_too() {
    let scene = Scene::new(true).await;
    let identity = scene.place.of_clients.issue(&["old.example.org"]);
    let config = scene.place.of_servers.trusted_by(&[&rustls::version::TLS12], Some(&identity));
    let mut client = scene.connect(config, "vd", 1).await;
    client.works(1).await;
    scene.said.once(&["DEBUG", "TLS handshake done", "TLSv1_2"]);
    scene.said.once(&["INFO", "certificate of the client", "old.example.org"]);
}

#[tokio::test]
async fn a_client_that_does_not_take_the_certificate_is_named_with_its_reason() {
    // A client of another authority.
    let scene = Scene::new(false).await;
    let config = Authority::new("another authority").trusted(None);
    dial_tls(scene.addr(), config, NAME).await.unwrap_err();
    scene.failed("client_distrusts_us", "give the client the certificate of the authority").await;

    let scene = Scene::new(false).await;
    dial_tls(scene.addr(), scene.nobody(), "other.example.org").await.unwrap_err();
    scene.failed("client_distrusts_us", "has not the name that the client connects to").await;

    let scene = Scene::new(false).await;
    scene.place.put_identity(&scene.place.of_servers.issue_expired(&[NAME]));
    let reloaded = scene.tls.reload().unwrap();
    assert_eq!(reloaded.fault, Some(ServerCertificateFault::Expired));
    dial_tls(scene.addr(), scene.nobody(), NAME).await.unwrap_err();
    scene.failed("client_distrusts_us", "renew it and reload").await;

    let scene = Scene::new(false).await;
    scene.place.put_identity(&scene.place.of_servers.issue_for_clients(&[NAME]));
    let reloaded = scene.tls.reload().unwrap();
    assert_eq!(reloaded.fault, Some(ServerCertificateFault::NotForServers));
    dial_tls(scene.addr(), scene.nobody(), NAME).await.unwrap_err();
    scene.failed("client_distrusts_us", "must have serverAuth").await;
}

#[tokio::test]
async fn a_client_whose_certificate_is_not_taken_gets_an_alert_and_is_named() {
    let check = async |config: &dyn Fn(&Scene) -> ClientConfig,
                       expected: AlertDescription,
                       reason: &str,
                       says: &str| {
        let scene = Scene::new(true).await;
        // In TLS 1.3 the client is through before the server has looked at its certificate.
        let outcome = dial_tls(scene.addr(), config(&scene), NAME).await;
        let error = match outcome {
            Ok(mut stream) => soon(stream.read_u8()).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(alert(&error), expected, "{reason}");
        scene.failed(reason, says).await;
        scene.connect(scene.named(&["one"]), "vd", 1).await.works(1).await;
    };
    check(
        &|scene| scene.nobody(),
        AlertDescription::CertificateRequired,
        "no_client_certificate",
        "give it a certificate",
    )
    .await;
    check(
        &|scene| {
            let stranger = Authority::new("another authority").issue(&["one"]);
            scene.place.of_servers.trusted(Some(&stranger))
        },
        AlertDescription::UnknownCA,
        "client_certificate_untrusted",
        "add its authority to the client CA",
    )
    .await;
    check(
        &|scene| scene.place.of_servers.trusted(Some(&scene.place.of_clients.issue_expired(&["one"]))),
        AlertDescription::CertificateExpired,
        "client_certificate_expired",
        "certificate expired",
    )
    .await;
    check(
        &|scene| scene.place.of_servers.trusted(Some(&scene.place.of_clients.issue_early(&["one"]))),
        AlertDescription::CertificateExpired,
        "client_certificate_expired",
        "not valid yet",
    )
    .await;
    check(
        &|scene| scene.place.of_servers.trusted(Some(&scene.place.of_clients.issue_for_servers(&["one"]))),
        AlertDescription::UnsupportedCertificate,
        "client_certificate_untrusted",
        "must have clientAuth",
    )
    .await;
}

#[tokio::test]
async fn a_vdisk_is_for_those_whose_certificate_a_rule_permits() {
    let scene = Scene::new(true).await;
    scene.permit(&["one.example.org=vd", "two.example.org=vm-*", "admin=*"]);
    let mut owner = scene.connect(scene.named(&["x", "one.example.org"]), "vd", 1).await;
    owner.works(1).await;
    scene.said.once(&["INFO", "certificate of the client", "one.example.org", "vdisk=vd"]);
    let refused = async |names: &[&str], vdisk: &str| {
        let mut client = scene.dial(scene.named(names)).await;
        client.say_hello(handshake(vdisk, 8, 1)).await;
        let answer = client.hears_handshake().await;
        assert_eq!(
            (answer.status, answer.refusal),
            (HandshakeStatus::InvalidVdiskId, Some(Refusal::NotPermitted))
        );
        client.hears_the_end().await;
    };
    refused(&["two.example.org"], "vd").await;
    scene.said.once(&["WARN", "refused: no rule permits", "peer=127.0.0.1:", "vdisk=vd", "two.example.org"]);
    refused(&["three.example.org"], "vd").await;
    refused(&["*.example.org"], "vd").await;
    refused(&["one.example.org"], "vm-1").await;
    refused(&["two.example.org"], "vm1").await;
    assert_eq!(scene.counters.get("tlog_server_handshakes_refused_total{not_permitted}"), 5);
    // Who writes the vdisk was not disturbed, and no log was opened for the others.
    owner.works(2).await;
    assert_eq!(*scene.server.logs.disk("vd").opened.borrow(), 1);
    assert_eq!(*scene.server.logs.disk("vm-1").opened.borrow(), 0);
    scene.connect(scene.named(&["two.example.org"]), "vm-1", 1).await.works(1).await;
    scene.connect(scene.named(&["admin"]), "anything", 1).await.works(1).await;
    // Rules change for those who come after.
    scene.permit(&["three.example.org=*"]);
    owner.works(3).await;
    refused(&["one.example.org"], "vd").await;
    scene.connect(scene.named(&["three.example.org"]), "vm-2", 1).await.works(1).await;
}

#[tokio::test]
async fn a_plain_client_is_told_in_its_own_words() {
    let scene = Scene::new(true).await;
    let (mut client, answer) = Client::greet(scene.addr(), handshake("vd", 7, 1)).await;
    assert_eq!(answer.status, HandshakeStatus::InvalidRequest);
    client.sees_the_end().await;
    drop(client);
    scene.failed("not_tls", "tell it to use TLS").await;
    assert_eq!(*scene.server.logs.disk("vd").opened.borrow(), 0);
}

#[tokio::test]
async fn a_tls_client_at_a_plain_server_is_refused_and_named() {
    let (counters, _counting) = Counters::install();
    let (said, _listening) = Said::listen();
    let server = Running::with(small()).await;
    dial_tls(server.addr, Authority::new("any").trusted(None), NAME).await.unwrap_err();
    server.until(|status| status.connections == 0).await;
    assert_eq!(counters.get("tlog_server_handshakes_refused_total{tls}"), 1);
    said.once(&["WARN", "the client speaks TLS, and this server does not", "peer=127.0.0.1:"]);
}

/// The first message of a real client, as it goes over the wire.
fn client_hello(config: ClientConfig) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn who_stops_in_the_middle_of_a_handshake_is_closed_in_time_and_holds_up_nobody() {
    let settings = ServerSettings { handshake_timeout: Duration::from_secs(1), ..small() };
    let scene = Scene::with(false, settings).await;
    let hello = client_hello(scene.nobody());
    let mut stopped = Vec::new();
    for length in [1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let mut stream = TcpStream::connect(scene.addr()).await.unwrap();
        stream.write_all(&hello[..length]).await.unwrap();
        stopped.push(stream);
    }
    // Nothing at all counts too.
    stopped.push(TcpStream::connect(scene.addr()).await.unwrap());
    scene.connect(scene.nobody(), "vd", 1).await.works(1).await;
    for mut stream in stopped {
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
    }
    scene.server.until(|status| status.connections == 0).await;
    assert_eq!(scene.counters.get("tlog_server_tls_handshakes_failed_total{timeout}"), 6);
    assert_eq!(scene.said.lines(&["WARN", "TLS handshake failed", "was not done in time"]).len(), 6);
}

#[tokio::test]
async fn one_time_is_for_both_handshakes() {
    let settings = ServerSettings { handshake_timeout: Duration::from_secs(1), ..small() };
    let scene = Scene::with(false, settings).await;
    let mut client = scene.dial(scene.nobody()).await;
    assert_eq!(client.hears_handshake().await.status, HandshakeStatus::InvalidRequest);
    client.hears_the_end().await;
    assert_eq!(scene.counters.get("tlog_server_handshakes_refused_total{timeout}"), 1);
}

#[tokio::test]
async fn garbage_is_refused_before_it_takes_memory() {
    let check = async |bytes: &[u8], reason: &str, says: &str| {
        let scene = Scene::new(false).await;
        let mut stream = TcpStream::connect(scene.addr()).await.unwrap();
        // The server may have closed before everything is written.
        let _ = soon(stream.write_all(bytes)).await;
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        drop(stream);
        scene.failed(reason, says).await;
        scene.connect(scene.nobody(), "vd", 1).await.works(1).await;
    };
    check(b"GET / HTTP/1.1\r\n\r\n", "not_tls", "is not TLS").await;
    check(&[0xff; 4096], "not_tls", "is not TLS").await;
    check(&[22; 4096], "other", "").await;
    // A record of more than a record can be, and a message of 16 MiB in records that are as they should be.
    check(&[&[22, 3, 1, 0xff, 0xff][..], &[0; 70000]].concat(), "other", "").await;
    let record = [&[22, 3, 1, 0x40, 0][..], &[1, 0xff, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
    check(&record.repeat(64), "other", "").await;
    // A handshake that breaks off.
    let scene = Scene::new(false).await;
    let hello = client_hello(scene.nobody());
    let mut stream = TcpStream::connect(scene.addr()).await.unwrap();
    stream.write_all(&hello[..hello.len() - 1]).await.unwrap();
    drop(stream);
    scene.failed("closed", "closed the connection in the middle").await;
}

#[tokio::test]
async fn no_flipped_byte_of_a_handshake_harms_the_server() {
    let scene = Scene::new(true).await;
    let hello = client_hello(scene.nobody());
    for at in 1..hello.len() {
        let mut hello = hello.clone();
        hello[at] ^= 0x55;
        let mut stream = TcpStream::connect(scene.addr()).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
    }
    scene.server.until(|status| status.connections == 0).await;
    let failed = ["other", "closed"]
        .map(|reason| scene.counters.get(&format!("tlog_server_tls_handshakes_failed_total{{{reason}}}")));
    assert_eq!(failed.iter().sum::<u64>(), hello.len() as u64 - 1, "{failed:?}");
    scene.connect(scene.named(&["one"]), "vd", 1).await.works(1).await;
}

/// An alert of TLS 1.3 as it goes over the wire, from a client whose handshake is done.
fn late_alert(client: rustls::ClientConnection, alert: AlertDescription) -> Vec<u8> {
    let suite = client.negotiated_cipher_suite().unwrap().tls13().unwrap();
    let (sequence, secrets) = client.dangerous_extract_secrets().unwrap().tx;
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        panic!("an unknown cipher");
    };
    let fatal = [2, alert.into()];
    let message = OutboundPlainMessage {
        typ: ContentType::Alert,
        version: ProtocolVersion::TLSv1_3,
        payload: OutboundChunks::Single(&fatal),
    };
    suite.aead_alg.encrypter(key, iv).encrypt(message, sequence).unwrap().encode()
}

#[tokio::test]
async fn a_client_that_refuses_the_certificate_when_the_server_is_through_is_named_too() {
    let scene = Scene::new(false).await;
    let mut config = scene.nobody();
    config.enable_secret_extraction = true;
    let stream = dial_tls(scene.addr(), config, NAME).await.unwrap();
    scene.server.until(|_| scene.counters.get("tlog_server_tls_handshakes_total") == 1).await;
    let (mut stream, client) = stream.into_inner();
    stream.write_all(&late_alert(client, AlertDescription::UnknownCA)).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    drop(stream);
    scene.failed("client_distrusts_us", "give the client the certificate of the authority").await;
    assert_eq!(scene.said.lines(&["broke before the handshake"]), Vec::<String>::new());
}

#[tokio::test]
async fn whoever_looks_whether_the_port_is_open_is_no_failure() {
    let scene = Scene::new(true).await;
    drop(TcpStream::connect(scene.addr()).await.unwrap());
    scene.connect(scene.named(&["one"]), "vd", 1).await.works(1).await;
    scene.server.until(|status| status.connections == 0).await;
    assert_eq!(scene.said.lines(&["WARN"]), Vec::<String>::new());
}

#[tokio::test]
async fn what_breaks_tls_right_after_its_handshake_is_reported_as_its_failure() {
    let scene = Scene::new(false).await;
    let mut stream = dial_tls(scene.addr(), scene.nobody(), NAME).await.unwrap();
    scene.server.until(|_| scene.counters.get("tlog_server_tls_handshakes_total") == 1).await;
    let record = [&[23, 3, 3, 0, 64][..], &[7; 64]].concat();
    stream.get_mut().0.write_all(&record).await.unwrap();
    assert_eq!(alert(&soon(stream.read_u8()).await.unwrap_err()), AlertDescription::BadRecordMac);
    scene.failed("other", "decrypt").await;
}

#[tokio::test]
async fn a_client_that_is_killed_has_closed_the_connection() {
    let scene = Scene::new(false).await;
    let client = scene.connect(scene.nobody(), "vd", 1).await;
    drop(client); // without a word of TLS
    scene.server.until(|status| status.connections == 0).await;
    assert_eq!(scene.counters.get("tlog_server_disconnects_total{closed_by_client}"), 1);
    // In the middle of a message it is what it is without TLS.
    let mut client = scene.connect(scene.nobody(), "vd", 1).await;
    client.sends_bytes(&[1, 0, 0]).await;
    drop(client);
    scene.server.until(|status| status.connections == 0).await;
    assert_eq!(scene.counters.get("tlog_server_bad_messages_total{truncated}"), 1);
}

#[tokio::test]
async fn who_never_reads_is_closed_over_tls_too() {
    let settings = ServerSettings { write_timeout: Duration::from_millis(100), ..small() };
    let scene = Scene::with(false, settings).await;
    let mut client = scene.connect(scene.nobody(), "vd", 1).await;
    client.works(1).await;
    soon(client.sends_without_end(block(1))).await;
    scene.server.until(|status| status.connections == 0).await;
    assert_eq!(scene.counters.get("tlog_server_disconnects_total{not_reading}"), 1);
}

#[tokio::test]
async fn new_connections_get_the_new_files_and_old_ones_live_on() {
    let scene = Scene::new(true).await;
    let mut old = scene.connect(scene.named(&["one"]), "old", 1).await;
    old.works(1).await;
    // Other authorities for both sides.
    let (servers, clients) =
        (Authority::new("new authority of servers"), Authority::new("new authority of clients"));
    scene.place.put_identity(&servers.issue(&["new.example.org", NAME]));
    put(scene.place.directory.path(), "clients.pem", &clients.pem);
    let before = scene.named(&["one"]);
    scene.connect(before.clone(), "vd", 1).await.works(1).await;
    let certificate = scene.tls.reload().unwrap();
    assert_eq!(
        (certificate.names, certificate.fault),
        (vec!["new.example.org".to_owned(), NAME.to_owned()], None)
    );
    assert!(certificate.not_after.unwrap() > std::time::SystemTime::now());
    let error = dial_tls(scene.addr(), before, NAME).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let now = servers.trusted(Some(&clients.issue(&["one"])));
    scene.connect(now.clone(), "new", 1).await.works(1).await;
    old.works(2).await;

    // With broken files it stays at that.
    put(scene.place.directory.path(), "clients.pem", "");
    let error = scene.tls.reload().unwrap_err();
    assert!(matches!(&error, TlsError::NoCertificate(file) if file.ends_with("clients.pem")), "{error}");
    std::fs::remove_file(scene.place.directory.path().join("server.key")).unwrap();
    let error = scene.tls.reload().unwrap_err();
    assert!(matches!(&error, TlsError::Unreadable { file, .. } if file.ends_with("server.key")), "{error}");
    scene.connect(now, "newer", 1).await.works(1).await;
    old.works(3).await;
    assert_eq!(scene.counters.get("tlog_server_tls_reloads_total{done}"), 1);
    assert_eq!(scene.counters.get("tlog_server_tls_reloads_total{failed}"), 2);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let check = |file: &str, text: &str, says: &[&str]| {
        let place = Place::new();
        put(place.directory.path(), file, text);
        let error = ServerTls::load(place.files(true), Permissions::default()).unwrap_err().to_string();
        for says in says.iter().chain([&file]) {
            assert!(error.contains(says), "{file}: {error}");
        }
    };
    let place = Place::new();
    let other = place.of_servers.issue(&[NAME]);
    check("server.pem", "", &["no certificate in PEM", "BEGIN CERTIFICATE"]);
    check("server.pem", &other.key, &["no certificate in PEM"]);
    check("server.pem", &other.certificate, &["the key in", "server.key is not that of the certificate"]);
    check("server.pem", &other.certificate[..other.certificate.len() / 2], &["cannot be read as PEM"]);
    check(
        "server.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &["cannot be used"],
    );
    check("server.key", "", &["no private key in PEM", "openssl pkey"]);
    check("server.key", &other.certificate, &["no private key in PEM"]);
    check("server.key", &other.key, &["is not that of the certificate in", "server.pem"]);
    check(
        "server.key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        &["cannot be used"],
    );
    check(
        "server.key",
        "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n",
        &["cannot be read as PEM"],
    );
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    check("server.key", encrypted, &["one with a password"]);
    check("clients.pem", "nothing", &["no certificate in PEM"]);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    check("clients.pem", broken, &["the client CA, cannot be used"]);
    let gone = TlsFiles { certificate: "/nowhere/server.pem".into(), ..place.files(true) };
    let error = ServerTls::load(gone, Permissions::default()).unwrap_err().to_string();
    assert!(error.contains("cannot read /nowhere/server.pem"), "{error}");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_tls_handshakes() {
    let scene = Scene::new(false).await;
    let hello = client_hello(scene.nobody());
    let mut stopped = Vec::new();
    for length in [0, 1, hello.len() / 2, hello.len()] {
        let mut stream = TcpStream::connect(scene.addr()).await.unwrap();
        stream.write_all(&hello[..length]).await.unwrap();
        stopped.push(stream);
    }
    let _silent = scene.dial(scene.nobody()).await;
    scene.server.until(|status| status.connections == 5).await;
    assert!(scene.server.stop().await.all_durable());
    assert_eq!(scene.said.lines(&["TLS handshake failed"]), Vec::<String>::new());
}
