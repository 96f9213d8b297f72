//! The servers that a client may use.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::ConnectError;

/// A list of tlog servers of the same log, each `host:port`, in the order in which they are tried. Cheap to clone.
///
/// Made from one address, from a list, or from a text with commas; names that stand twice count once:
///
/// ```
/// use tlog_client::Servers;
///
/// let servers = Servers::from("tlog-1:11211, tlog-2:11211");
/// assert_eq!(servers, Servers::from(["tlog-1:11211", "tlog-2:11211"]));
/// assert!(Servers::from(" ,").is_empty());
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Servers(Arc<[Arc<str>]>);

impl Servers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none. Nothing can be done with such a list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `server` is one of them, by its text.
    pub fn contains(&self, server: &str) -> bool {
        self.0.iter().any(|listed| **listed == *server)
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|server| &**server)
    }

    /// Whether there is one, and each is `host:port`.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        if self.is_empty() {
            return Err(ConnectError::NoServers);
        }
        let is_address = |server: &&str| {
            let (host, port) = server.rsplit_once(':').unwrap_or_default();
            let bare_ipv6 = host.contains(':') && !host.starts_with('[');
            !host.is_empty() && !bare_ipv6 && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        match self.iter().find(|server| !is_address(server)) {
            Some(server) => Err(ConnectError::NotAnAddress { server: server.to_owned() }),
            None => Ok(()),
        }
    }

    /// Number `at`, counted round and round. None in an empty list.
    pub(crate) fn at(&self, at: usize) -> Option<&Arc<str>> {
        self.0.get(at.checked_rem(self.0.len())?)
    }

    /// Where `server` stands.
    pub(crate) fn position(&self, server: &str) -> Option<usize> {
        self.0.iter().position(|listed| **listed == *server)
    }

    fn of<T: ToString>(servers: impl IntoIterator<Item = T>) -> Self {
        let mut list: Vec<Arc<str>> = Vec::new();
        for server in servers {
            for server in server.to_string().split(',').map(str::trim) {
                if !server.is_empty() && !list.iter().any(|listed| **listed == *server) {
                    list.push(server.into());
                }
            }
        }
        Self(list.into())
    }
}

impl From<&str> for Servers {
    fn from(servers: &str) -> Self {
        Self::of([servers])
    }
}

impl From<String> for Servers {
    fn from(servers: String) -> Self {
        Self::of([servers])
    }
}

impl From<&String> for Servers {
    fn from(servers: &String) -> Self {
        Self::of([servers])
    }
}

impl From<SocketAddr> for Servers {
    fn from(server: SocketAddr) -> Self {
        Self::of([server])
    }
}

impl<T: ToString> From<Vec<T>> for Servers {
    fn from(servers: Vec<T>) -> Self {
        Self::of(servers)
    }
}

impl<T: ToString> From<&[T]> for Servers {
    fn from(servers: &[T]) -> Self {
        Self::of(servers.iter().map(T::to_string))
    }
}

impl<T: ToString, const N: usize> From<[T; N]> for Servers {
    fn from(servers: [T; N]) -> Self {
        Self::of(servers)
    }
}

impl fmt::Display for Servers {
    /// With commas, as a list is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, server) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{server}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Servers({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_and_port_is_told_before_anything_is_tried() {
        for good in ["tlog-1:11211", "127.0.0.1:1", "[::1]:65535", "a:1, b:2"] {
            Servers::from(good).check().unwrap();
        }
        for bad in ["localhost", "127.0.0.1:", ":11211", "a:0", "a:65536", "a:b", "::1:11211", "a:1,b"] {
            let error = Servers::from(bad).check().unwrap_err();
            assert!(matches!(error, ConnectError::NotAnAddress { .. }), "{bad}: {error}");
            assert!(!error.is_retryable());
        }
        assert!(matches!(Servers::from(",").check(), Err(ConnectError::NoServers)));
    }
}
