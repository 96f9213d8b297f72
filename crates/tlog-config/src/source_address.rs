//! How a person writes down where documents are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::address::host_and_port;
use crate::{DocumentSource, FileSource, Secret};

/// Where documents are: a YAML file, or an etcd by some of its servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAddress {
    /// A YAML file.
    File(PathBuf),
    /// Servers of one etcd, at least one.
    Etcd(Vec<EtcdEndpoint>),
}

/// One server of an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdEndpoint {
    /// Name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether it is reached over TLS; none where nobody said so, and then it is if there are certificates for it.
    pub tls: Option<bool>,
}

/// How to be let in by an etcd. By default as anybody, over TLS with the authorities of this system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// Name of the user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// Authorities, in PEM, that the servers' certificates must come from.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show, in PEM, and those that lead to its authority.
    pub certificate_file: Option<PathBuf>,
    /// The key that goes with it, in PEM.
    pub key_file: Option<PathBuf>,
}

/// Why a text is not the address of a source. Never repeats the text, which may have a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceAddressFault {
    /// Nothing.
    #[error(
        "it is empty; a source is a YAML file or etcd servers, such as http://10.0.0.1:2379,http://10.0.0.2:2379"
    )]
    Empty,
    /// Another scheme than those two.
    #[error("an etcd server begins with http:// or https://, such as http://10.0.0.1:2379")]
    Scheme,
    /// No legal host and port.
    #[error(
        "an etcd server needs a host and a port and no more, such as http://10.0.0.1:2379, https://etcd-1.lan:2379 or [::1]:2379; \
         a file with a colon in its name is written with its folder, such as ./a:b.yaml"
    )]
    HostAndPort,
    /// User and password.
    #[error("user and password do not go into the address of an etcd server but into settings of their own")]
    Credentials,
    /// Some are servers and some are not.
    #[error(
        "these are etcd servers and something else; write one file, or etcd servers with commas between them"
    )]
    Mixed,
}

impl SourceAddress {
    /// Parses what a person wrote: a file, or `http://host:port`, `https://host:port` or `host:port`, several with commas between.
    pub fn parse(text: &str) -> Result<Self, SourceAddressFault> {
        let text = text.trim();
        if text.is_empty() {
            return Err(SourceAddressFault::Empty);
        }
        if let Some(file) = text.strip_prefix("file:") {
            // As a URL it has two more slashes.
            let file = file.strip_prefix("//").unwrap_or(file);
            return if file.is_empty() {
                Err(SourceAddressFault::Empty)
            } else {
                Ok(Self::File(file.into()))
            };
        }
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        // A colon and no folder: somebody means a server, if perhaps not as it must be written.
        let means_server = |part: &&str| part.contains("://") || (part.contains(':') && !part.contains('/'));
        match parts.iter().filter(|part| means_server(part)).count() {
            0 => Ok(Self::File(text.into())),
            servers if servers == parts.len() => {
                parts.into_iter().map(EtcdEndpoint::from_str).collect::<Result<_, _>>().map(Self::Etcd)
            }
            _ => Err(SourceAddressFault::Mixed),
        }
    }
}

impl FromStr for EtcdEndpoint {
    type Err = SourceAddressFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tls, place) = match text.split_once("://") {
            Some(("http", place)) => (Some(false), place),
            Some(("https", place)) => (Some(true), place),
            Some(_) => return Err(SourceAddressFault::Scheme),
            None => (None, text),
        };
        if place.contains('@') {
            return Err(SourceAddressFault::Credentials);
        }
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = host_and_port(place).ok_or(SourceAddressFault::HostAndPort)?;
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.tls.map_or("", |tls| if tls { "https://" } else { "http://" });
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}{open}{}{close}:{}", self.host, self.port)
    }
}

impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Etcd(endpoints) => {
                let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                f.write_str(&endpoints.join(","))
            }
        }
    }
}

/// Why a source cannot be opened, whatever is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenSourceError {
    /// The feature is not built in.
    #[error(
        "this build has no etcd; build with --features etcd (`cargo xtask setup` installs what that needs), or use a file"
    )]
    NoEtcd,
    /// One of two that go together.
    #[error("a certificate and its key go together: give both files for etcd, or none")]
    HalfIdentity,
    /// One of two that go together.
    #[error("user and password go together: give both for etcd, or none")]
    HalfCredentials,
    /// Certificates for a server that does not want any.
    #[error(
        "an etcd server at http:// is spoken to without TLS, and there are files for TLS; write https://, or leave the files out"
    )]
    TlsWithoutHttps,
}

/// The source at an address. Nothing is read or reached yet.
pub fn open_source(
    address: &SourceAddress,
    options: &EtcdOptions,
) -> Result<Arc<dyn DocumentSource>, OpenSourceError> {
    match address {
        SourceAddress::File(file) => Ok(Arc::new(FileSource::new(file))),
        SourceAddress::Etcd(endpoints) => open_etcd(endpoints, options),
    }
}

#[cfg(feature = "etcd")]
fn open_etcd(
    endpoints: &[EtcdEndpoint],
    options: &EtcdOptions,
) -> Result<Arc<dyn DocumentSource>, OpenSourceError> {
    Ok(Arc::new(crate::EtcdSource::new(endpoints.to_vec(), options.clone())?))
}

#[cfg(not(feature = "etcd"))]
fn open_etcd(_: &[EtcdEndpoint], _: &EtcdOptions) -> Result<Arc<dyn DocumentSource>, OpenSourceError> {
    Err(OpenSourceError::NoEtcd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_and_servers_are_told_apart() {
        let check = |text: &str, shown: &str, servers: usize| {
            let address = SourceAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            let found = if let SourceAddress::Etcd(endpoints) = &address { endpoints.len() } else { 0 };
            assert_eq!(found, servers, "{text}");
            assert_eq!(SourceAddress::parse(shown), Ok(address));
        };
        check("vdisks.yaml", "vdisks.yaml", 0);
        check(" /etc/tlog/vdisks.yaml ", "/etc/tlog/vdisks.yaml", 0);
        check("file:/etc/vdisks.yaml", "/etc/vdisks.yaml", 0);
        check("file:///etc/vdisks.yaml", "/etc/vdisks.yaml", 0);
        check("./a:1", "./a:1", 0);
        check("a,b.yaml", "a,b.yaml", 0);
        check("localhost:2379", "localhost:2379", 1);
        check("http://10.0.0.1:2379/", "http://10.0.0.1:2379", 1);
        check("https://etcd-1.lan:2379, [::1]:2379", "https://etcd-1.lan:2379,[::1]:2379", 2);
    }

    #[test]
    fn what_is_neither_is_refused_and_a_password_is_not_repeated() {
        use SourceAddressFault::*;
        let check = |text: &str, fault: SourceAddressFault| {
            assert_eq!(SourceAddress::parse(text), Err(fault), "{text}");
        };
        check("", Empty);
        check("file:", Empty);
        check("etcd://host:1", Scheme);
        check("redis://host:1", Scheme);
        check("http://host", HostAndPort);
        check("host:0", HostAndPort);
        check("host:99999", HostAndPort);
        check("http://host:1/path", HostAndPort);
        check("http://root:secret@host:2379", Credentials);
        check("host:1,vdisks.yaml", Mixed);
        check("host:1,", Mixed);
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn a_build_without_etcd_says_so() {
        let address = SourceAddress::parse("host:2379").unwrap();
        let error = open_source(&address, &EtcdOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("this build has no etcd; build with --features etcd"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(http://|https://|file:|)[a-z0-9:@/,\\[\\].]{0,30}") {
            if let Ok(address) = SourceAddress::parse(&text) {
                let shown = address.to_string();
                if matches!(address, SourceAddress::Etcd(_)) {
                    prop_assert_eq!(SourceAddress::parse(&shown), Ok(address));
                }
            }
        }
    }
}
