//! The TLS handshake of one connection.

use std::net::SocketAddr;
use std::pin::Pin;

use tlog_proto::VdiskId;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::{ServerTls, TlsFault, names_of};
use crate::registry::Shared;

/// What every TLS connection begins with: the type of a record of a handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// Bytes that TLS holds to be written to one connection. A client that takes so much in the time that it has is not taken for
/// one that stands still.
const MAX_BUFFERED: usize = 16 << 10;

/// Who is at the other end, as far as TLS tells.
pub(crate) struct Caller {
    /// The names in the client's certificate.
    names: Vec<String>,
    /// None where the connection is plain TCP.
    tls: Option<ServerTls>,
}

impl Caller {
    /// One who came over plain TCP.
    pub(crate) fn unknown() -> Self {
        Self { names: Vec::new(), tls: None }
    }

    /// The names in its certificate; empty where it showed none.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn is_over_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether it may write the vdisk, by the rules of this moment.
    pub(crate) fn may_write(&self, vdisk: &VdiskId) -> bool {
        let names = self.names.iter().map(String::as_str);
        self.tls.as_ref().is_none_or(|tls| tls.permissions().permit(names, vdisk))
    }
}

/// What is left to do where no TLS connection came about.
pub(crate) enum NotAccepted {
    /// Nothing.
    Gone,
    /// Something was written that the client is to read before the connection is gone.
    Told(TcpStream),
    /// It does not speak TLS, and may speak what comes after it.
    Plain(TcpStream),
}

/// Does the TLS handshake. What failed is counted and logged when this returns.
pub(crate) async fn accept(
    tls: ServerTls,
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    mut deadline: Pin<&mut Sleep>,
) -> Result<(TlsStream<TcpStream>, Caller), NotAccepted> {
    let accepted = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return Err(NotAccepted::Gone),
        accepted = handshake(&tls, stream, peer, shared) => accepted,
        () = deadline.as_mut() => {
            TlsFault::Timeout.report(peer, &shared.seldom);
            return Err(NotAccepted::Gone);
        }
    };
    let (mut stream, names) = accepted?;
    stream.get_mut().1.set_buffer_limit(Some(MAX_BUFFERED));
    metrics::counter!("tlog_server_tls_handshakes_total").increment(1);
    debug!(%peer, ?names, version = ?stream.get_ref().1.protocol_version(), "TLS handshake done");
    Ok((stream, Caller { names, tls: Some(tls) }))
}

async fn handshake(
    tls: &ServerTls,
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
) -> Result<(TlsStream<TcpStream>, Vec<String>), NotAccepted> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1..) => {}
        // Whoever looks whether the port is open is no failure.
        Ok(0) => {
            shared.count_refused("vanished");
            debug!(%peer, "closed without a handshake");
            return Err(NotAccepted::Gone);
        }
        Err(error) => {
            shared.count_refused("vanished");
            debug!(%peer, %error, "broke before the handshake");
            return Err(NotAccepted::Gone);
        }
    }
    if first != [HANDSHAKE_RECORD] {
        TlsFault::NotTls.report(peer, &shared.seldom);
        return Err(NotAccepted::Plain(stream));
    }
    // Kept after a failure: dropped at once, it would take the alert along that says why.
    match TlsAcceptor::from(tls.config()).accept(stream).into_fallible().await {
        Ok(stream) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let names = certificate.map(names_of).unwrap_or_default();
            Ok((stream, names))
        }
        Err((error, stream)) => {
            TlsFault::of(error).report(peer, &shared.seldom);
            Err(NotAccepted::Told(stream))
        }
    }
}
