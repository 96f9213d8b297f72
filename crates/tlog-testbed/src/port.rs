//! A port that nobody else gets.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// A free loopback port, kept free for the servers that this process starts on it.
///
/// A socket that is bound and does not listen holds the port: the system gives it to no other, not even as the source of an outgoing
/// connection, while a server that is killed and started again on it must find it free. A server sets `SO_REUSEADDR`, and
/// with that on both, the two may be bound side by side as long as only one listens.
#[derive(Debug)]
pub struct ReservedPort {
    _socket: OwnedFd,
    port: u16,
}

#[allow(clippy::new_without_default)] // it takes something
impl ReservedPort {
    /// Takes one.
    pub fn new() -> Self {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        // Bound without it, so that it shares with nobody who is there already; set after that, so that the server may come.
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        Self { _socket: socket, port: address.port() }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }
}
