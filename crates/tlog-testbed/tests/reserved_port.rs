//! A reserved port, in a process of its own: a test beside it that starts a server would, between fork and exec, hold a copy of
//! the listening socket, and the port would go on answering after the listener is gone.

use std::net::{TcpListener, TcpStream};

use tlog_testbed::ReservedPort;

#[test]
fn a_reserved_port_refuses_connections_and_takes_a_server_again_and_again() {
    let port = ReservedPort::new();
    for _ in 0..3 {
        TcpStream::connect(("127.0.0.1", port.number())).unwrap_err();
        // The standard library sets SO_REUSEADDR too.
        let server = TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port.number())).unwrap();
        drop((server.accept().unwrap(), client));
    }
}
