//! The real client and the real server over TLS: what works, and every way of not getting in, as the client's program and the
//! server's operator are told.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{Place, Server};
use tlog_client::{
    Client, ClientCertificate, ClientOptions, ConnectError, LostCause, TlsFailure, TlsOptions,
};
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::{Authority, IdentityFiles};

const NAME: &str = "tlog.example.org";

/// Two authorities, and what they have issued.
struct Site {
    place: Place,
    servers: Authority,
    clients: Authority,
    one: IdentityFiles,
}

impl Site {
    fn new() -> Self {
        let place = Place::new();
        let servers = Authority::make(place.path(), "servers-ca");
        let clients = Authority::make(place.path(), "clients-ca");
        let one = clients.issue("one", &["one.example.org"]);
        Self { place, servers, clients, one }
    }

    /// A server with this certificate, which lets `one.example.org` write the vdisks `vm-*`.
    fn serve(&self, identity: &IdentityFiles) -> Server {
        let [certificate, key] = [&identity.certificate, &identity.key].map(|file| file.to_str().unwrap());
        self.place.server_with_log(&[
            "--tls-certificate-file",
            certificate,
            "--tls-key-file",
            key,
            "--tls-client-ca-file",
            self.clients.certificate().to_str().unwrap(),
            "--tls-permissions",
            "one.example.org=vm-*",
        ])
    }

    fn options(&self) -> TlsOptions {
        trusting(self.servers.certificate(), Some(&self.one))
    }
}

fn trusting(ca: &Path, own: Option<&IdentityFiles>) -> TlsOptions {
    let client =
        own.map(|own| ClientCertificate { certificate: own.certificate.clone(), key: own.key.clone() });
    TlsOptions { ca_file: Some(ca.to_owned()), client, server_name: Some(NAME.to_owned()) }
}

async fn connect(
    server: &Server,
    vdisk: &str,
    tls: impl Into<Option<TlsOptions>>,
) -> Result<Client, ConnectError> {
    let options = ClientOptions { tls: tls.into(), ..ClientOptions::default() };
    Client::connect(server.addr(), VdiskId::new(vdisk).unwrap(), options).await
}

async fn failure(server: &Server, tls: impl Into<Option<TlsOptions>>) -> TlsFailure {
    match connect(server, "vm-1", tls).await.unwrap_err() {
        ConnectError::Tls { failure, .. } => failure,
        error => panic!("{error:?}"),
    }
}

async fn write(client: &Client, blocks: u64) {
    for index in 0..blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![index as u8 + 1; 4096]).await.unwrap();
    }
    client.flush().await.unwrap();
}

#[tokio::test]
async fn a_disk_is_written_over_tls_and_goes_on_over_a_restart_with_another_certificate() {
    let site = Site::new();
    let server = site.serve(&site.servers.issue("server", &[NAME]));
    let client = connect(&server, "vm-1", site.options()).await.unwrap();
    write(&client, 100).await;
    // A large block goes out in many records.
    client.set(BlockIndex::new(0).unwrap(), vec![9; 4 << 20]).await.unwrap();
    client.flush().await.unwrap();
    server.kill();
    let server = site.serve(&site.servers.issue("server-2", &[NAME]));
    client.set_servers(server.addr()).unwrap();
    write(&client, 50).await;
    assert!(client.stats().reconnects >= 1);
    client.close_after_flush().await.unwrap();
    server.stop();
}

#[tokio::test]
async fn each_way_of_not_getting_in_has_an_error_of_its_own_and_a_line_in_the_servers_log() {
    let site = Site::new();
    let mut server = site.serve(&site.servers.issue("server", &[NAME]));
    let server_ca = site.servers.certificate();
    let self_signed = site.servers.itself();

    // Wrong authority.
    let other = Authority::make(site.place.path(), "other-ca");
    let wrong_ca = failure(&server, trusting(other.certificate(), Some(&site.one))).await;
    assert!(matches!(wrong_ca, TlsFailure::UntrustedServer), "{wrong_ca}");
    let told = server.waits_for_log("TLS handshake failed");
    assert!(
        told.contains("the authorities that the client trusts") && told.contains("peer=127.0.0.1:"),
        "{told}"
    );

    // Wrong name: that of the options, and the address that is connected to.
    for server_name in [Some("another.example.org".to_owned()), None] {
        let wrong_name = failure(&server, TlsOptions { server_name, ..site.options() }).await;
        assert!(matches!(wrong_name, TlsFailure::WrongName { .. }), "{wrong_name}");
        let told = server.waits_for_log("TLS handshake failed");
        assert!(told.contains("has not the name that the client connects to"), "{told}");
    }

    // No client certificate, one of another authority, one whose time is over.
    let missing = failure(&server, trusting(server_ca, None)).await;
    assert!(matches!(missing, TlsFailure::ClientCertificateRequired), "{missing}");
    server.waits_for_log("the client shows no certificate");
    let foreign = other.issue("foreign", &["one.example.org"]);
    let foreign = failure(&server, trusting(server_ca, Some(&foreign))).await;
    assert!(matches!(foreign, TlsFailure::ClientCertificateRefused(_)), "{foreign}");
    server.waits_for_log("comes from none of the authorities in the client CA");
    let expired = site.clients.issue_expired("expired", &["one.example.org"]);
    let expired = failure(&server, trusting(server_ca, Some(&expired))).await;
    assert!(matches!(expired, TlsFailure::ClientCertificateRefused(_)), "{expired}");
    server.waits_for_log("the client's certificate is not within its time");

    // No permission for the vdisk.
    let error = connect(&server, "vda", site.options()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::NotPermitted { vdisk, .. } if vdisk.as_str() == "vda"), "{error}");
    let told = server.waits_for_log("no rule permits");
    assert!(told.contains("one.example.org") && told.contains("vda"), "{told}");

    // No TLS at all.
    let plain = failure(&server, None).await;
    assert!(matches!(plain, TlsFailure::TlsWanted), "{plain}");
    server.waits_for_log("what the client sends is not TLS");

    // Files of the client's own.
    let nowhere = TlsOptions { ca_file: Some(PathBuf::from("/nowhere/ca.pem")), ..site.options() };
    assert!(failure(&server, nowhere).await.to_string().contains("/nowhere/ca.pem"));
    let key = TlsOptions { ca_file: Some(site.one.key.clone()), ..site.options() };
    assert!(matches!(failure(&server, key).await, TlsFailure::NoCertificate(_)));
    let half = IdentityFiles { key: site.clients.issue("half", &["half"]).key, ..site.one.clone() };
    let half = failure(&server, trusting(server_ca, Some(&half))).await;
    assert!(matches!(half, TlsFailure::ClientCertificateUnusable { .. }), "{half}");

    // Nobody was let in, and the next one is.
    write(&connect(&server, "vm-1", site.options()).await.unwrap(), 5).await;
    server.stop();

    // The server's certificate is that of its authority.
    let authority = TlsOptions { server_name: None, ..trusting(&self_signed.certificate, None) };
    let mut server = site.serve(&self_signed);
    let told = server.waits_for_log("no client will take the server's certificate");
    assert!(told.contains("of an authority"), "{told}");
    let shows = failure(&server, authority).await;
    assert!(matches!(shows, TlsFailure::ServerShowsAuthority), "{shows}");
    server.stop();

    // The server's certificate has expired.
    let mut server = site.serve(&site.servers.issue_expired("old", &[NAME]));
    let expired = failure(&server, site.options()).await;
    assert!(matches!(expired, TlsFailure::ServerCertificateExpired), "{expired}");
    let told = server.waits_for_log("TLS handshake failed");
    assert!(told.contains("it has expired, or is not valid yet by the client's clock"), "{told}");
    server.stop();

    // The server does not speak TLS.
    let mut server = site.place.server_with_log(&[]);
    let not_tls = failure(&server, site.options()).await;
    assert!(matches!(not_tls, TlsFailure::NotTls), "{not_tls}");
    server.waits_for_log("TLS");
    server.stop();
}

#[tokio::test]
async fn a_client_whose_certificate_is_not_taken_any_more_waits_for_one_that_is() {
    let site = Site::new();
    let identity = site.servers.issue("server", &[NAME]);
    let server = site.serve(&identity);
    let client = connect(&server, "vm-1", site.options()).await.unwrap();
    let mut events = client.events();
    write(&client, 5).await;
    site.clients.issue_expired("one", &["one.example.org"]);
    server.kill();
    let server = site.serve(&identity);
    client.set_servers(server.addr()).unwrap();
    let handle = client.set(BlockIndex::new(9).unwrap(), vec![9; 4096]).await.unwrap();
    let refused = async {
        loop {
            match events.next().await.unwrap() {
                tlog_client::Event::NotReconnected(error) => match &*error {
                    ConnectError::Tls { failure: TlsFailure::ClientCertificateRefused(_), .. } => return,
                    ConnectError::Unreachable { .. } => {}
                    error => panic!("{error}"),
                },
                tlog_client::Event::Reconnecting { cause, .. } => {
                    assert!(!matches!(*cause, LostCause::FlushFailed), "{cause}");
                }
                tlog_client::Event::Reconnected { .. } => panic!("with an expired certificate"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
    // The operator renews it: nothing has to be restarted.
    site.clients.issue("one", &["one.example.org"]);
    client.flush().await.unwrap();
    handle.await.unwrap();
    server.stop();
}

#[test]
fn the_tool_records_over_tls_and_says_what_is_wrong() {
    let site = Site::new();
    let server = site.serve(&site.servers.issue("server", &[NAME]));
    std::fs::write(site.place.path().join("disk.img"), vec![7; 64 << 10]).unwrap();
    let ca = site.servers.certificate().to_str().unwrap();
    let [certificate, key] = [&site.one.certificate, &site.one.key].map(|file| file.to_str().unwrap());
    let addr = server.addr();
    let trusted = ["--server", &addr, "--server-ca-file", ca, "--server-name", NAME];
    let own = ["--client-certificate-file", certificate, "--client-key-file", key];
    fn record<'a>(vdisk: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
        [&["record", vdisk, "disk.img"], flags].concat()
    }
    site.place.tlog_ok(&record("vm-1", &[&trusted[..], &own].concat()));
    site.place.tlog_ok(&["restore", "vm-1", "-o", "restored"]);
    assert_eq!(std::fs::read(site.place.path().join("restored")).unwrap(), vec![7; 64 << 10]);
    let fails = |vdisk, flags: &[&str], says: &str| {
        let said = site.place.tlog_fails(&record(vdisk, flags));
        assert!(said.contains(says), "{said}");
    };
    fails("vm-1", &trusted, "the server asks for a client certificate");
    fails("vda", &[&trusted[..], &own].concat(), "does not permit vdisk vda");
    fails("vm-1", &["--server", &addr], "the server wants TLS");
    fails("vm-1", &["--server", &addr, "--server-ca-file", ca], "is not for 127.0.0.1");
    server.stop();
}
