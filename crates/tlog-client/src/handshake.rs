//! From an address to a connection that may send blocks.

use bytes::BytesMut;
use tlog_proto::{FrameError, FrameReader, HandshakeRequest, HandshakeResponse, HandshakeStatus, SessionId};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::{ClientOptions, ConnectError};

/// Both directions of a connection whose handshake was answered.
pub(crate) struct Greeted {
    pub(crate) reader: FrameReader<OwnedReadHalf>,
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) response: HandshakeResponse,
}

/// Connects and shakes hands. The answer may be a refusal: see [`accepted`].
pub(crate) async fn greet(
    addr: &str,
    request: &HandshakeRequest,
    options: &ClientOptions,
) -> Result<Greeted, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { addr: addr.to_owned(), source };
    let stream = match timeout(options.connect_timeout, TcpStream::connect(addr)).await {
        Ok(stream) => stream.map_err(unreachable)?,
        Err(_) => {
            return Err(ConnectError::ConnectTimeout {
                addr: addr.to_owned(),
                timeout: options.connect_timeout,
            });
        }
    };
    stream.set_nodelay(true).map_err(unreachable)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader::new(reader, options.limits);
    let answer = async {
        let mut wire = BytesMut::new();
        request.encode_into(&mut wire);
        writer.write_all(&wire).await?;
        reader.handshake_response().await
    };
    let addr = addr.to_owned();
    match timeout(options.handshake_timeout, answer).await {
        Ok(Ok(Some(response))) => Ok(Greeted { reader, writer, response }),
        Ok(Ok(None)) => Err(ConnectError::ClosedInHandshake { addr }),
        Ok(Err(FrameError::Io(source))) => Err(ConnectError::BrokenInHandshake { addr, source }),
        Ok(Err(source)) => Err(ConnectError::NotTlog { addr, source }),
        Err(_) => Err(ConnectError::HandshakeTimeout { addr, timeout: options.handshake_timeout }),
    }
}

/// Turns every answer but OK into an error that says what to do next.
pub(crate) fn accepted(request: &HandshakeRequest, response: &HandshakeResponse) -> Result<(), ConnectError> {
    let server = response.version;
    let vdisk = || request.vdisk_id.clone();
    let first_sequence = request.first_sequence;
    match (response.status, response.last_flushed) {
        (HandshakeStatus::Ok, _) if !server.is_supported() => Err(ConnectError::ServerTooOld { server }),
        (HandshakeStatus::Ok, _) => Ok(()),
        (HandshakeStatus::InvalidRequest, _) => Err(ConnectError::InvalidRequest { server }),
        (HandshakeStatus::InvalidVersion, _) => Err(ConnectError::ClientTooOld { server }),
        (HandshakeStatus::InvalidVdiskId, _) => Err(ConnectError::UnknownVdisk { vdisk: vdisk() }),
        (HandshakeStatus::InternalServerError, Some(last_flushed))
            if first_sequence > last_flushed.next() =>
        {
            Err(ConnectError::Gap { vdisk: vdisk(), first_sequence, last_flushed })
        }
        (HandshakeStatus::InternalServerError, _) => {
            Err(ConnectError::ServerFailed { vdisk: vdisk(), first_sequence })
        }
    }
}

/// A random number, never 0.
pub(crate) fn random_session() -> Result<SessionId, ConnectError> {
    let number = getrandom::u64().map_err(ConnectError::NoRandomSession)?;
    Ok(SessionId(number.max(1)))
}
