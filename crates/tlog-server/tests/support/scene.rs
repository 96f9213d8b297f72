//! A server that speaks TLS, with everything around it.

use std::net::SocketAddr;

use rustls::ClientConfig;
use tlog_proto::HandshakeStatus;
use tlog_server::{PermissionRule, Permissions, ServerSettings, ServerTls, TlsFiles};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::certificates::{Authority, Identity, dial_tls, put};
use super::{Client, Counters, Running, Said, handshake, small};

/// The name that the server's certificates have.
pub const NAME: &str = "tlog.example.org";

pub type TlsClient = Client<ReadHalf<TlsStream<TcpStream>>, WriteHalf<TlsStream<TcpStream>>>;

/// Files of a server, and the authorities that sign for it and for its clients.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub of_servers: Authority,
    pub of_clients: Authority,
}

impl Place {
    pub fn new() -> Self {
        let place = Self {
            directory: tempfile::tempdir().unwrap(),
            of_servers: Authority::new("authority of servers"),
            of_clients: Authority::new("authority of clients"),
        };
        place.put_identity(&place.of_servers.issue(&[NAME]));
        put(place.directory.path(), "clients.pem", &place.of_clients.pem);
        place
    }

    pub fn put_identity(&self, identity: &Identity) {
        put(self.directory.path(), "server.pem", &identity.certificate);
        put(self.directory.path(), "server.key", &identity.key);
    }

    pub fn files(&self, mutual: bool) -> TlsFiles {
        let file = |name: &str| self.directory.path().join(name);
        TlsFiles {
            certificate: file("server.pem"),
            key: file("server.key"),
            client_ca: mutual.then(|| file("clients.pem")),
        }
    }

    pub fn load(&self, mutual: bool) -> ServerTls {
        ServerTls::load(self.files(mutual), Permissions::default()).unwrap().0
    }
}

/// A server that speaks TLS, its counters and its log.
pub struct Scene {
    pub place: Place,
    pub tls: ServerTls,
    pub server: Running,
    pub counters: &'static Counters,
    pub said: Said,
    _guards: (metrics::LocalRecorderGuard<'static>, tracing::subscriber::DefaultGuard),
}

impl Scene {
    pub async fn new(mutual: bool) -> Self {
        Self::with(mutual, small()).await
    }

    pub async fn with(mutual: bool, settings: ServerSettings) -> Self {
        let (counters, counting) = Counters::install();
        let (said, listening) = Said::listen();
        let place = Place::new();
        let tls = place.load(mutual);
        let server = Running::with_tls(settings, tls.clone()).await;
        Self { place, tls, server, counters, said, _guards: (counting, listening) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    pub fn permit(&self, rules: &[&str]) {
        self.tls.replace_permissions(permissions(rules));
    }

    /// How a client is set up that trusts the server and shows no certificate.
    pub fn nobody(&self) -> ClientConfig {
        self.place.of_servers.trusted(None)
    }

    /// The same with a certificate of these names.
    pub fn named(&self, names: &[&str]) -> ClientConfig {
        self.place.of_servers.trusted(Some(&self.place.of_clients.issue(names)))
    }

    pub async fn dial(&self, config: ClientConfig) -> TlsClient {
        Client::over(dial_tls(self.addr(), config, NAME).await.unwrap())
    }

    pub async fn connect(&self, config: ClientConfig, vdisk: &str, first: u64) -> TlsClient {
        let mut client = self.dial(config).await;
        client.say_hello(handshake(vdisk, 7, first)).await;
        assert_eq!(client.hears_handshake().await.status, HandshakeStatus::Ok);
        client
    }

    /// One handshake has failed for this reason, which the log explains so.
    pub async fn failed(&self, reason: &str, says: &str) {
        let counter = format!("tlog_server_tls_handshakes_failed_total{{{reason}}}");
        // It may not even be accepted yet.
        self.server.until(|status| status.connections == 0 && self.counters.get(&counter) > 0).await;
        assert_eq!(self.counters.get(&counter), 1, "{counter}");
        self.said.once(&[
            "WARN",
            "TLS handshake failed",
            "peer=127.0.0.1:",
            &format!("reason=\"{reason}\""),
            says,
        ]);
    }
}

pub fn permissions(rules: &[&str]) -> Permissions {
    Permissions::new(rules.iter().map(|rule| rule.parse::<PermissionRule>().unwrap()).collect())
}
