//! From an address to a connection that may send blocks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use tlog_proto::{
    FrameError, FrameReader, Generation, HandshakeRequest, HandshakeResponse, HandshakeStatus, LogPosition,
    Refusal, Sequence, SessionId, VdiskId,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tls::{self, SetUpError};
use crate::{ClientOptions, ConnectError, Start, TlsFailure};

/// Asks where a log ends: nobody's first sequence, so that it is refused as a gap, and the refusal tells.
const QUESTION: Sequence = Sequence(u64::MAX);

/// How often a log may have grown between asking for its end and beginning there.
const TRIES: usize = 5;

/// Silence after which the system asks a server whether it still lives, where the client has nothing to say to it.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(30);

/// What comes from a server, plain or TLS.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// What goes to a server, plain or TLS.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Makes a client's connections, in place of TCP and TLS: over streams of another kind, or simulated ones.
/// See [`Client::connect_over`](crate::Client::connect_over).
pub trait Connector: Send + Sync + 'static {
    /// Connects to a server, by its address as it stands in the list. The client bounds the time, and drops the future where it is over.
    fn connect(&self, server: &str) -> Connecting;
}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<(Reader, Writer)>> + Send>>;

/// A connection whose handshake was accepted.
pub(crate) struct Accepted {
    pub(crate) server: Arc<str>,
    pub(crate) reader: FrameReader<Reader>,
    pub(crate) writer: Writer,
    /// Where the client begins, or goes on.
    pub(crate) first: Sequence,
    /// What the log durably holds of the generation that goes on.
    pub(crate) last_flushed: Option<Sequence>,
    /// Where the log ends; none where the server does not tell.
    pub(crate) end: Option<LogPosition>,
}

impl Accepted {
    /// Whether the log ends right before the client's first block, so that this is no new generation.
    fn goes_on(&self) -> bool {
        let Some(end) = self.end else { return true };
        match end.generation == Generation::default() {
            true => self.first == Sequence(1),
            false => end.sequence.next() == self.first,
        }
    }
}

/// Where a client that comes back stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The first sequence that is not durable.
    pub(crate) first: Sequence,
    /// The one after the last that a server can have of it.
    pub(crate) sent: Sequence,
    /// Where the log ended when it was accepted first; none where that server did not tell.
    pub(crate) found: Option<LogPosition>,
    /// Whether anything of it is durable.
    pub(crate) durable: bool,
}

/// Connects one client instance, again and again.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) vdisk: VdiskId,
    pub(crate) session: SessionId,
    pub(crate) options: Arc<ClientOptions>,
    /// None: TCP, with TLS where the options say so.
    pub(crate) connector: Option<Arc<dyn Connector>>,
}

impl Dialer {
    pub(crate) fn new(
        vdisk: VdiskId,
        options: Arc<ClientOptions>,
        connector: Option<Arc<dyn Connector>>,
    ) -> Result<Self, ConnectError> {
        let session = match (options.start, options.session) {
            // With that of an earlier client, whose blocks the log holds, ours would be taken for those sent again, and be
            // acknowledged without being stored.
            (Start::Continue | Start::Reset(_), _) | (_, None) => random_session()?,
            (Start::At(_), Some(session)) => session,
        };
        Ok(Self { vdisk, session, options, connector })
    }

    /// The first connection of this instance.
    pub(crate) async fn begin(&self, server: &Arc<str>) -> Result<Accepted, ConnectError> {
        let (first, reset) = match self.options.start {
            Start::At(first) => (first, false),
            Start::Reset(first) => (first, true),
            Start::Continue => return self.begin_at_the_end(server).await,
        };
        let request = HandshakeRequest { reset_first_sequence: reset, ..self.request(first) };
        self.accepted(server, &request).await
    }

    /// The log may grow between the question and the beginning, by what a client still sends that had it before.
    async fn begin_at_the_end(&self, server: &Arc<str>) -> Result<Accepted, ConnectError> {
        let mut tries = 0;
        loop {
            let end = self.end_of_log(server).await?;
            let request = self.request(end.map_or(Sequence(1), Sequence::next));
            tries += 1;
            match self.accepted(server, &request).await {
                Ok(accepted) if accepted.last_flushed == end && accepted.goes_on() => return Ok(accepted),
                Ok(_) | Err(ConnectError::Gap { .. }) if tries < TRIES => {}
                Ok(_) => return Err(self.end_unknown(server)),
                Err(error) => return Err(error),
            }
        }
    }

    async fn end_of_log(&self, server: &Arc<str>) -> Result<Option<Sequence>, ConnectError> {
        let question = HandshakeRequest {
            // Not the session that will write: it must not be known for having asked.
            session: random_session()?,
            ..HandshakeRequest::new(self.vdisk.clone(), QUESTION)
        };
        let response = self.greet(server, &question).await?.2;
        match (response.status, response.last_flushed, response.refusal) {
            (HandshakeStatus::InternalServerError, Some(end), _) => Ok(Some(end)),
            (HandshakeStatus::InternalServerError, None, Some(Refusal::Gap)) => Ok(None),
            // It does not know the question, and takes it for a first sequence like any other, or refuses it.
            (HandshakeStatus::InternalServerError, None, None) | (HandshakeStatus::Ok, ..) => {
                Err(self.end_unknown(server))
            }
            _ => Self::check(server, &question, &response).map(|()| None),
        }
    }

    /// A further connection of this instance.
    pub(crate) async fn come_back(
        &self,
        server: &Arc<str>,
        standing: Standing,
    ) -> Result<Accepted, ConnectError> {
        let Standing { first, sent, found, durable } = standing;
        let resets = matches!(self.options.start, Start::Reset(_));
        let request = HandshakeRequest {
            // A server of ours that is told where the log ended knows whether it was done; to others it is not said twice.
            reset_first_sequence: resets && !durable,
            returning: found,
            ..self.request(first)
        };
        let accepted = self.accepted(server, &request).await?;
        match accepted.last_flushed {
            // It takes for ours what we have not sent: new blocks would be acknowledged and not stored.
            Some(last) if last >= sent => {
                Err(ConnectError::TakenOver { server: server.to_string(), vdisk: self.vdisk.clone() })
            }
            // It lacks what was acknowledged, and does not know it.
            Some(last) if last.next() < first => Err(self.gap(server, first, Some(last))),
            // The log is as it was before anything was acknowledged.
            None if durable && accepted.end.is_some() && accepted.end == found => {
                let end = found.filter(|end| end.generation != Generation::default());
                Err(self.gap(server, first, end.map(|end| end.sequence)))
            }
            _ => Ok(accepted),
        }
    }

    fn request(&self, first: Sequence) -> HandshakeRequest {
        HandshakeRequest { session: self.session, ..HandshakeRequest::new(self.vdisk.clone(), first) }
    }

    fn end_unknown(&self, server: &Arc<str>) -> ConnectError {
        ConnectError::LogEndUnknown { server: server.to_string(), vdisk: self.vdisk.clone() }
    }

    fn gap(&self, server: &Arc<str>, first: Sequence, last_flushed: Option<Sequence>) -> ConnectError {
        let (server, vdisk) = (server.to_string(), self.vdisk.clone());
        ConnectError::Gap { server, vdisk, first_sequence: first, last_flushed }
    }

    async fn accepted(
        &self,
        server: &Arc<str>,
        request: &HandshakeRequest,
    ) -> Result<Accepted, ConnectError> {
        let (reader, writer, response) = self.greet(server, request).await?;
        Self::check(server, request, &response)?;
        let (first, last_flushed, end) = (request.first_sequence, response.last_flushed, response.end);
        tracing::debug!(
            vdisk = %self.vdisk, %server, version = %response.version, %first, ?last_flushed, session = %self.session,
            "accepted"
        );
        Ok(Accepted { server: Arc::clone(server), reader, writer, first, last_flushed, end })
    }

    /// Connects and says what is asked for; the answer may be a refusal.
    async fn greet(
        &self,
        server: &Arc<str>,
        request: &HandshakeRequest,
    ) -> Result<(FrameReader<Reader>, Writer, HandshakeResponse), ConnectError> {
        let name = || server.to_string();
        let limit = self.options.connect_timeout;
        let (reader, mut writer) = match timeout(limit, self.connect(server)).await {
            Ok(connected) => connected?,
            Err(_) => return Err(ConnectError::ConnectTimeout { server: name(), timeout: limit }),
        };
        let mut reader = FrameReader::new(reader, self.options.limits);
        let answer = async {
            let mut wire = BytesMut::new();
            request.encode_into(&mut wire);
            let said = async {
                writer.write_all(&wire).await?;
                writer.flush().await
            };
            // A server that refuses may close before it has read everything: its answer counts, if there is one.
            let said = said.await;
            match reader.handshake_response().await {
                Err(FrameError::Io(error)) if tls::failure(&error, "").is_none() => {
                    Err(FrameError::Io(said.err().unwrap_or(error)))
                }
                answer => answer,
            }
        };
        let expected = self.expected_name(server);
        match timeout(self.options.handshake_timeout, answer).await {
            Ok(Ok(Some(response))) => Ok((reader, writer, response)),
            Ok(Ok(None)) => Err(ConnectError::ClosedInHandshake { server: name() }),
            Ok(Err(FrameError::Io(source))) => Err(match tls::failure(&source, &expected) {
                Some(failure) => ConnectError::Tls { server: name(), failure },
                None => ConnectError::BrokenInHandshake { server: name(), source },
            }),
            Ok(Err(FrameError::TooManySegments { segments, .. }))
                if self.options.tls.is_none() && tls::is_alert(segments) =>
            {
                Err(ConnectError::Tls { server: name(), failure: TlsFailure::TlsWanted })
            }
            Ok(Err(source)) => Err(ConnectError::NotTlog { server: name(), source }),
            Err(_) => {
                let timeout = self.options.handshake_timeout;
                Err(ConnectError::HandshakeTimeout { server: name(), timeout })
            }
        }
    }

    async fn connect(&self, server: &Arc<str>) -> Result<(Reader, Writer), ConnectError> {
        let unreachable = |source| ConnectError::Unreachable { server: server.to_string(), source };
        if let Some(connector) = &self.connector {
            return connector.connect(server).await.map_err(unreachable);
        }
        let stream = TcpStream::connect(&**server).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        // Where it cannot be set, silence is noticed by the next block.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let Some(options) = &self.options.tls else {
            let (reader, writer) = stream.into_split();
            return Ok((Box::new(reader), Box::new(writer)));
        };
        match tls::connect(stream, host(server), options).await {
            Ok(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                Ok((Box::new(reader), Box::new(writer)))
            }
            Err(SetUpError::Tls(failure)) => Err(ConnectError::Tls { server: server.to_string(), failure }),
            Err(SetUpError::Broken(source)) => {
                Err(ConnectError::BrokenInHandshake { server: server.to_string(), source })
            }
        }
    }

    fn expected_name(&self, server: &str) -> String {
        let given = self.options.tls.as_ref().and_then(|tls| tls.server_name.clone());
        given.unwrap_or_else(|| host(server).to_owned())
    }

    /// Turns every answer but OK into an error that says what to do next.
    fn check(
        server: &Arc<str>,
        request: &HandshakeRequest,
        response: &HandshakeResponse,
    ) -> Result<(), ConnectError> {
        let version = response.version;
        let (server, vdisk) = (server.to_string(), request.vdisk_id.clone());
        let first_sequence = request.first_sequence;
        Err(match (response.status, response.refusal, response.last_flushed) {
            (HandshakeStatus::Ok, ..) if !version.is_supported() => {
                ConnectError::ServerTooOld { server, version }
            }
            (HandshakeStatus::Ok, ..) => return Ok(()),
            (_, Some(Refusal::TlsWanted), _) => ConnectError::Tls { server, failure: TlsFailure::TlsWanted },
            (HandshakeStatus::InvalidRequest, ..) => ConnectError::InvalidRequest { server, version },
            (HandshakeStatus::InvalidVersion, ..) => ConnectError::ClientTooOld { server, version },
            (_, Some(Refusal::NotPermitted), _) => ConnectError::NotPermitted { server, vdisk },
            (HandshakeStatus::InvalidVdiskId, ..) => ConnectError::UnknownVdisk { server, vdisk },
            (_, Some(Refusal::TakenOver), _) => ConnectError::TakenOver { server, vdisk },
            (_, Some(Refusal::Gap), last_flushed) => {
                ConnectError::Gap { server, vdisk, first_sequence, last_flushed }
            }
            (_, None, Some(last)) if first_sequence > last.next() => {
                ConnectError::Gap { server, vdisk, first_sequence, last_flushed: Some(last) }
            }
            (HandshakeStatus::InternalServerError, ..) => {
                ConnectError::ServerFailed { server, vdisk, first_sequence }
            }
        })
    }
}

/// The host in `host:port`; in brackets where it is an IPv6 address.
fn host(server: &str) -> &str {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// A random number, never 0.
fn random_session() -> Result<SessionId, ConnectError> {
    let number = tlog_ambient::random_u64().map_err(ConnectError::NoRandomSession)?;
    Ok(SessionId(number.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_is_what_its_certificate_is_for() {
        for (server, expected) in
            [("tlog-1:11211", "tlog-1"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1"), ("bare", "bare")]
        {
            assert_eq!(host(server), expected);
        }
    }
}
