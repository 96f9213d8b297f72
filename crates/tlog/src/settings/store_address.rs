//! Where a store is.

use std::fmt;
use std::path::PathBuf;

use super::values::is_host_name;

/// The address of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// `file:DIRECTORY`: on this machine.
    Directory(PathBuf),
    /// `memory:`: gone when the process stops.
    Memory,
    /// `host:port[@db]`, `redis://...`, `rediss://...`: over the network.
    Network(NetworkStore),
}

/// A store that is reached over the network. Its password is not kept, because nothing uses it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStore {
    /// Name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Number of the database.
    pub db: u32,
    /// Whether it is reached over TLS.
    pub tls: bool,
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
        "a store is file:DIRECTORY, such as file:/srv/tlog/store-0, or memory: (host:port[@db], redis://host:port[/db] and \
         rediss://host:port[/db] are for stores on the network, which this version does not have)"
    )]
    Unknown,
    /// No legal host and port.
    #[error("a store on the network needs a host and a port, such as 127.0.0.1:16379")]
    HostAndPort,
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
            let rest = rest.rsplit_once('@').map_or(rest, |(_credentials, rest)| rest);
            let (place, db) = rest.split_once('/').unwrap_or((rest, ""));
            let db = if db.is_empty() { "0" } else { db };
            return Self::network(place, db, tls);
        }
        let (place, db) = text.split_once('@').unwrap_or((text, "0"));
        if !place.contains(':') {
            return Err(StoreAddressFault::Unknown);
        }
        Self::network(place, db, false)
    }

    fn network(place: &str, db: &str, tls: bool) -> Result<Self, StoreAddressFault> {
        let (host, port) = place.rsplit_once(':').ok_or(StoreAddressFault::HostAndPort)?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or(StoreAddressFault::HostAndPort)?;
        let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let legal = match v6 {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host_name(host),
        };
        if !legal {
            return Err(StoreAddressFault::HostAndPort);
        }
        let db = db.parse().map_err(|_| StoreAddressFault::Database)?;
        Ok(Self::Network(NetworkStore { host: v6.unwrap_or(host).to_owned(), port, db, tls }))
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "file:{}", directory.display()),
            Self::Memory => f.write_str("memory:"),
            Self::Network(NetworkStore { host, port, db, tls }) => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}:{port}/{db}")
            }
        }
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
            assert_eq!(StoreAddress::parse(shown), Ok(address));
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
        check("redis://user:secret@host:1/two", Database);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(file:|memory:|redis://|)[a-z0-9:@/\\[\\].]{0,30}") {
            if let Ok(address) = StoreAddress::parse(&text) {
                prop_assert_eq!(StoreAddress::parse(&address.to_string()), Ok(address));
            }
        }
    }
}
