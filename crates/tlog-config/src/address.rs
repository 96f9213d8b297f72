//! Where a store is.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::Secret;

/// The address of one store. `Display` shows it without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// `file:DIRECTORY`: on this machine.
    Directory(PathBuf),
    /// `memory:`: gone when the process stops.
    Memory,
    /// `host:port[@db]`, `redis://[user:password@]host:port[/db]`, `rediss://...`: over the network.
    Redis(RedisServer),
}

/// A Redis, or compatible, server, and how to be let in. `Display` shows it without its user and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisServer {
    /// Name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Number of the database.
    pub database: u32,
    /// Whether it is reached over TLS.
    pub tls: bool,
    /// Name of the user; none for the default one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
}

impl RedisServer {
    /// Database 0 without user, password or TLS.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, database: 0, tls: false, user: None, password: None }
    }

    /// What is the same for the same data, as far as that can be told without asking: host, port and database. Another user or password does
    /// not make it another store, and neither does another name of this machine.
    pub fn place(&self) -> (String, u16, u32) {
        let host = self.host.to_ascii_lowercase().replace("localhost", "127.0.0.1");
        (host, self.port, self.database)
    }

    /// The same with the next port; none after the last one.
    #[must_use]
    pub fn on_next_port(&self) -> Option<Self> {
        Some(Self { port: self.port.checked_add(1)?, ..self.clone() })
    }
}

/// Why a text is not the address of a store. Never repeats the text, which may have a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreAddressFault {
    /// `file:` and nothing behind it.
    #[error("file: needs a directory, such as file:/srv/tlog/store-0")]
    NoDirectory,
    /// `memory:` with something behind it.
    #[error("memory: takes nothing behind it")]
    NotOnlyMemory,
    /// Starts with something else.
    #[error(
        "a store is host:port[@db], such as 127.0.0.1:16379, redis://[user:password@]host:port[/db], rediss://... (TLS), \
         file:DIRECTORY or memory:"
    )]
    Unknown,
    /// No legal host and port.
    #[error("a store on the network needs a host and a port, such as 127.0.0.1:16379")]
    HostAndPort,
    /// User or password cannot be read.
    #[error(
        "user and password of a store are percent-encoded text: %40 for @, %3A for :, %2F for /, %25 for %"
    )]
    Credentials,
    /// The database is no number.
    #[error("the database of a store is a number, such as 127.0.0.1:16379@2")]
    Database,
}

impl StoreAddress {
    /// Parses what a person wrote.
    pub fn parse(text: &str) -> Result<Self, StoreAddressFault> {
        let text = text.trim();
        if let Some(directory) = text.strip_prefix("file:") {
            // As a URL it has two more slashes: file:///srv is /srv.
            let directory = directory.strip_prefix("//").unwrap_or(directory);
            if directory.is_empty() {
                return Err(StoreAddressFault::NoDirectory);
            }
            // One slash means what several mean, and does not look like the two of a URL when it is shown.
            let relative = directory.trim_start_matches('/');
            let root = if relative.len() < directory.len() { "/" } else { "" };
            return Ok(Self::Directory(format!("{root}{relative}").into()));
        }
        if let Some(rest) = text.strip_prefix("memory:") {
            return if rest.is_empty() { Ok(Self::Memory) } else { Err(StoreAddressFault::NotOnlyMemory) };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let tls = match scheme {
                "redis" => false,
                "rediss" => true,
                _ => return Err(StoreAddressFault::Unknown),
            };
            let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
            let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
            let database = if database.is_empty() { "0" } else { database };
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            let server = RedisServer {
                tls,
                user: decoded(user)?,
                password: decoded(password)?.map(Secret::new),
                ..server(place, database)?
            };
            return Ok(Self::Redis(server));
        }
        let (place, database) = text.split_once('@').unwrap_or((text, "0"));
        if !place.contains(':') {
            return Err(StoreAddressFault::Unknown);
        }
        Ok(Self::Redis(server(place, database)?))
    }
}

fn server(place: &str, database: &str) -> Result<RedisServer, StoreAddressFault> {
    let (host, port) = host_and_port(place).ok_or(StoreAddressFault::HostAndPort)?;
    let database = database.parse().map_err(|_| StoreAddressFault::Database)?;
    Ok(RedisServer { database, ..RedisServer::new(host, port) })
}

/// `host:port`, with an IPv6 address in brackets, which the host is answered without; none where it is not that.
pub(crate) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let legal = v6.map_or_else(|| is_host_name(host), |v6| v6.parse::<Ipv6Addr>().is_ok());
    legal.then_some((v6.unwrap_or(host), port))
}

/// None where there is nothing.
fn decoded(text: &str) -> Result<Option<String>, StoreAddressFault> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| StoreAddressFault::Credentials)?;
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

/// A name, or an IPv4 address; not one that only looks like an address, such as `127.0.0.256`.
pub fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    host.len() <= 253 && host.split('.').all(label) && (!numeric || host.parse::<Ipv4Addr>().is_ok())
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "file:{}", directory.display()),
            Self::Memory => f.write_str("memory:"),
            Self::Redis(server) => server.fmt(f),
        }
    }
}

impl fmt::Display for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, database, tls, .. } = self;
        let scheme = if *tls { "rediss" } else { "redis" };
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{host}{close}:{port}/{database}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_a_store_address_is_read() {
        let check = |text: &str, shown: &str| {
            let address = StoreAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(StoreAddress::parse(shown).unwrap().to_string(), shown);
        };
        check("file:/srv/tlog/store-0", "file:/srv/tlog/store-0");
        check("file:///srv/tlog", "file:/srv/tlog");
        check(" file:relative/dir ", "file:relative/dir");
        check("memory:", "memory:");
        check("127.0.0.1:16379", "redis://127.0.0.1:16379/0");
        check("store-1.lan:16379@3", "redis://store-1.lan:16379/3");
        check("[::1]:16379@3", "redis://[::1]:16379/3");
        check("redis://user:se:cr@et@host:6379/2", "redis://host:6379/2");
        check("rediss://host:6379", "rediss://host:6379/0");
        check("rediss://host:6379/", "rediss://host:6379/0");
    }

    #[test]
    fn user_and_password_are_kept_and_not_shown() {
        let check = |text: &str, user: Option<&str>, password: Option<&str>| {
            let Ok(StoreAddress::Redis(server)) = StoreAddress::parse(text) else { panic!("{text}") };
            assert_eq!(server.user.as_deref(), user, "{text}");
            assert_eq!(server.password.as_ref().map(Secret::reveal), password, "{text}");
            for shown in [server.to_string(), format!("{server:?}")] {
                assert!(password.is_none_or(|password| !shown.contains(password)), "{shown}");
            }
        };
        check("redis://host:6379", None, None);
        check("redis://:secret@host:6379", None, Some("secret"));
        check("redis://anna:secret@host:6379/2", Some("anna"), Some("secret"));
        check("redis://anna:se:cr@et@host:6379/2", Some("anna"), Some("se:cr@et"));
        check("rediss://an%40na:se%3Acr%2Fet@host:6379/2", Some("an@na"), Some("se:cr/et"));
    }

    #[test]
    fn what_is_no_store_address_is_refused_and_a_password_is_not_repeated() {
        use StoreAddressFault::*;
        let check = |text: &str, fault: StoreAddressFault| {
            assert_eq!(StoreAddress::parse(text), Err(fault), "{text}");
            assert!(!fault.to_string().contains("secret"));
        };
        check("", Unknown);
        check("/srv/tlog", Unknown);
        check("etcd://host:1", Unknown);
        check("http://user:secret@host:1", Unknown);
        check("file:", NoDirectory);
        check("file://", NoDirectory);
        check("memory:x", NotOnlyMemory);
        check("host:0", HostAndPort);
        check("host:99999", HostAndPort);
        check("redis://user:secret@host", HostAndPort);
        check("redis://user:secret@:6379", HostAndPort);
        check("host:1@two", Database);
        check("redis://user:secret%ff@host:1", Credentials);
        check("redis://user:secret@host:1/two", Database);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(file:|memory:|redis://|)[a-z0-9:@/\\[\\].]{0,30}") {
            if let Ok(address) = StoreAddress::parse(&text) {
                let shown = address.to_string();
                prop_assert_eq!(StoreAddress::parse(&shown).map(|address| address.to_string()), Ok(shown));
            }
        }
    }
}
