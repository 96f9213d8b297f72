//! One connection: handshake, then reading and writing side by side in one task.
//!
//! Reading checks the blocks that arrived together, counts their memory and hands them to the vdisk's task; writing takes
//! from the [`Outbox`]. Whichever ends first ends the connection. All of it is the same over plain TCP and over TLS, whose own
//! handshake comes first.

mod reading;

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tlog_proto::{
    DecodeError, FrameError, FrameReader, HandshakeRequest, HandshakeResponse, HandshakeStatus, LogPosition,
    Refusal, Sequence,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::reading::Reading;
use crate::budget::Budget;
use crate::outbox::{Ended, Outbox, Reason, ToWrite};
use crate::places::Place;
use crate::registry::{Hello, Incoming, Shared, Verdict};
use crate::seldom::warn_seldom;
use crate::session::Greeting;
use crate::tls::{self, Caller, NotAccepted, ServerTls, TlsFault};

/// Batches that may wait for the vdisk's task.
const INBOUND_BATCHES: usize = 4;
/// How long a connection that the server ends may take to read the last words. Closing while the client still sends
/// would make the client's end drop them.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of answers that the system holds for a client that does not read them, about; left to itself it takes megabytes for each.
const UNREAD_BYTES: usize = 256 << 10;

/// Serves a connection until it ends. With `tls` it speaks that and nothing else.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<ServerTls>,
    place: Place,
) {
    let _ = stream.set_nodelay(true);
    if let Err(error) = socket2::SockRef::from(&stream).set_send_buffer_size(UNREAD_BYTES) {
        debug!(%peer, %error, "no bound on what the system holds for it");
    }
    if let Some(time) = shared.settings.keepalive {
        let keepalive = socket2::TcpKeepalive::new().with_time(time).with_interval(time);
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            debug!(%peer, %error, "no keepalive");
        }
    }
    // One for both handshakes, that of TLS and ours.
    let deadline = pin!(sleep(shared.settings.handshake_timeout));
    let served = async {
        match tls {
            None => over_tcp(stream, peer, &shared, place, deadline).await,
            Some(tls) => Box::pin(over_tls(tls, stream, peer, &shared, place, deadline)).await,
        }
    };
    unless_killed(&shared, served).await;
}

/// Serves a stream that is no TCP connection of ours, as if it were one without TLS.
pub(crate) async fn serve_stream(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    shared: Arc<Shared>,
    place: Place,
) {
    let deadline = pin!(sleep(shared.settings.handshake_timeout));
    let caller = Caller::unknown();
    let served = over_stream(&mut stream, peer, &caller, &shared, place, deadline);
    unless_killed(&shared, served).await;
}

async fn unless_killed(shared: &Shared, served: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = shared.kill.cancelled() => {}
        () = served => {}
    }
}

async fn over_stream(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    peer: SocketAddr,
    caller: &Caller,
    shared: &Arc<Shared>,
    mut place: Place,
    deadline: Pin<&mut Sleep>,
) {
    let (read, write) = tokio::io::split(&mut *stream);
    if converse(read, write, peer, caller, shared, &mut place, deadline).await == Linger::Yes {
        Box::pin(linger(stream)).await;
    }
}

async fn over_tcp(
    mut stream: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    mut place: Place,
    deadline: Pin<&mut Sleep>,
) {
    let (read, write) = stream.split();
    if converse(read, write, peer, &Caller::unknown(), shared, &mut place, deadline).await == Linger::Yes {
        Box::pin(linger(&mut stream)).await;
    }
}

async fn over_tls(
    tls: ServerTls,
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    place: Place,
    mut deadline: Pin<&mut Sleep>,
) {
    match Box::pin(tls::accept(tls, stream, peer, shared, deadline.as_mut())).await {
        Ok((mut stream, caller)) => over_stream(&mut stream, peer, &caller, shared, place, deadline).await,
        Err(NotAccepted::Told(mut stream)) => Box::pin(linger(&mut stream)).await,
        Err(NotAccepted::Plain(mut stream)) => {
            // Most likely a client of ours that was not told of TLS. It understands this, and no alert.
            let answer = HandshakeResponse::refused(HandshakeStatus::InvalidRequest, Refusal::TlsWanted);
            respond(&mut stream, &answer, shared).await;
            Box::pin(linger(&mut stream)).await;
        }
        Err(NotAccepted::Gone) => {}
    }
}

/// Whether something was written that the client is to read before the connection is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Linger {
    Yes,
    No,
}

/// Says that nothing more will come, over TLS in its words too, and gives the client the time to read it.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let drained = async {
        let _ = stream.shutdown().await;
        let mut dropped = [0; 4096];
        while matches!(stream.read(&mut dropped).await, Ok(1..)) {}
    };
    let _ = timeout(LINGER, drained).await;
}

async fn converse<R, W>(
    read: R,
    mut write: W,
    peer: SocketAddr,
    caller: &Caller,
    shared: &Arc<Shared>,
    place: &mut Place,
    deadline: Pin<&mut Sleep>,
) -> Linger
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = FrameReader::new(read, shared.settings.limits);
    let request = match greeted(&mut reader, peer, caller, shared, deadline).await {
        Ok(request) => request,
        Err(None) => return Linger::No,
        Err(Some(answer)) => {
            respond(&mut write, &answer, shared).await;
            return Linger::Yes;
        }
    };
    if !place.greeted() {
        shared.count_refused("too_many");
        let max = shared.settings.max_connections;
        warn_seldom!(shared.seldom, "too_many", vdisk = %request.vdisk_id, %peer, max, "refused: too many connections");
        respond(&mut write, &HandshakeResponse::unavailable(), shared).await;
        return Linger::Yes;
    }
    // Of newcomers there may be many: they do not take the room that a conversation needs.
    Box::pin(talk(reader, write, request, peer, shared)).await
}

/// All that follows the handshake request of a client that is let in.
async fn talk<R, W>(
    mut reader: FrameReader<R>,
    mut write: W,
    request: HandshakeRequest,
    peer: SocketAddr,
    shared: &Arc<Shared>,
) -> Linger
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let vdisk = request.vdisk_id.clone();
    // Whoever is gone before it is answered takes nothing over. Who only asks where the log ends takes nothing over in any case.
    let asks = request.first_sequence == Greeting::QUESTION;
    let connected = tokio::select! {
        biased;
        connected = connect(request, peer, shared) => connected,
        () = reader.gone(), if !asks => {
            info!(%vdisk, %peer, "the client was gone before its handshake was answered");
            Connected::Gone
        }
    };
    let link = match connected {
        Connected::Live(link) => link,
        Connected::Refused(answer) => {
            respond(&mut write, &answer, shared).await;
            return Linger::Yes;
        }
        Connected::Gone => return Linger::No,
    };
    let (last_flushed, end) = (link.last_flushed, Some(link.end));
    let accepted = HandshakeResponse { last_flushed, end, ..HandshakeResponse::new(HandshakeStatus::Ok) };
    if !respond(&mut write, &accepted, shared).await {
        return Linger::No;
    }
    let outbox = Arc::clone(&link.outbox);
    let reading = Reading::new(reader, peer, shared, vdisk.clone(), link);
    let ended = tokio::select! {
        biased;
        reason = write_all(&mut write, &outbox, shared.settings.write_timeout) => reason,
        reason = reading.run() => reason,
    };
    outbox.end(Ended::Aborted(ended)); // nobody takes from it any more
    let reason = ended.name();
    metrics::counter!("tlog_server_disconnects_total", "reason" => reason).increment(1);
    if ended.is_fault() {
        warn!(%vdisk, %peer, reason, "connection closed");
    } else {
        info!(%vdisk, %peer, reason, "connection closed");
    }
    match ended {
        Reason::LogClosed | Reason::VdiskClosed | Reason::Shutdown | Reason::SlaveSyncFailed => Linger::Yes,
        _ => Linger::No,
    }
}

/// Reads the handshake request of a client that may write the vdisk; else says how to answer, if at all.
async fn greeted(
    reader: &mut FrameReader<impl AsyncRead + Unpin>,
    peer: SocketAddr,
    caller: &Caller,
    shared: &Shared,
    deadline: Pin<&mut Sleep>,
) -> Result<HandshakeRequest, Option<HandshakeResponse>> {
    let refused = |reason: &'static str, answer: HandshakeResponse| {
        shared.count_refused(reason);
        Err(Some(answer))
    };
    let seldom = &shared.seldom;
    let unreadable = || HandshakeResponse::new(HandshakeStatus::InvalidRequest);
    let request = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return Err(None),
        request = reader.handshake_request() => request,
        () = deadline => {
            warn_seldom!(seldom, "timeout", %peer, "refused: no handshake in time");
            return refused("timeout", unreadable());
        }
    };
    match request {
        Ok(Some(request)) if !request.version.is_supported() => {
            warn_seldom!(seldom, "version", vdisk = %request.vdisk_id, %peer, version = %request.version, "refused: the client is too old");
            refused("version", HandshakeResponse::new(HandshakeStatus::InvalidVersion))
        }
        Ok(Some(request)) if !caller.may_write(&request.vdisk_id) => {
            let (vdisk, names) = (&request.vdisk_id, caller.names());
            warn_seldom!(seldom, "not_permitted", %vdisk, %peer, ?names, "refused: no rule permits this vdisk to a name of the client's certificate");
            let status = HandshakeStatus::InvalidVdiskId;
            refused("not_permitted", HandshakeResponse::refused(status, Refusal::NotPermitted))
        }
        Ok(Some(request)) => {
            if caller.is_over_tls() {
                info!(vdisk = %request.vdisk_id, %peer, names = ?caller.names(), "certificate of the client");
            }
            Ok(request)
        }
        Ok(None) => {
            shared.count_refused("vanished");
            debug!(%peer, "closed without a handshake");
            Err(None)
        }
        Err(FrameError::Decode(DecodeError::IllegalVdiskId(error))) => {
            warn_seldom!(seldom, "vdisk_id", %peer, %error, "refused: illegal vdisk id");
            refused("vdisk_id", HandshakeResponse::new(HandshakeStatus::InvalidVdiskId))
        }
        Err(FrameError::Io(error)) => {
            match TlsFault::late(&error) {
                Some(fault) => fault.report(peer, seldom),
                None => {
                    shared.count_refused("vanished");
                    debug!(%peer, %error, "broke before the handshake");
                }
            }
            Err(None)
        }
        Err(error) if !caller.is_over_tls() && tls::is_tls_at_plain_server(&error) => {
            warn_seldom!(seldom, "tls", %peer, "refused: the client speaks TLS, and this server does not; give the server a certificate, or tell the client not to");
            refused("tls", unreadable())
        }
        Err(error) => {
            warn_seldom!(seldom, "unreadable", %peer, %error, "refused: the handshake cannot be read");
            refused("unreadable", unreadable())
        }
    }
}

/// Writes a handshake response. False where that failed.
async fn respond(write: &mut (impl AsyncWrite + Unpin), answer: &HandshakeResponse, shared: &Shared) -> bool {
    let mut bytes = BytesMut::new();
    answer.encode_into(&mut bytes);
    let written = async {
        write.write_all(&bytes).await?;
        write.flush().await
    };
    matches!(timeout(shared.settings.write_timeout, written).await, Ok(Ok(())))
}

/// What ties a connection to the task of its vdisk.
struct Link {
    last_flushed: Option<Sequence>,
    end: LogPosition,
    outbox: Arc<Outbox>,
    inbound: mpsc::Sender<Vec<Incoming>>,
    budget: Arc<Budget>,
    stop: CancellationToken,
}

enum Connected {
    Live(Link),
    Refused(HandshakeResponse),
    Gone,
}

async fn connect(request: HandshakeRequest, peer: SocketAddr, shared: &Arc<Shared>) -> Connected {
    let connected = async {
        loop {
            let greeting = Greeting {
                connection: shared.connection_id(),
                session: request.session,
                first: request.first_sequence,
                reset: request.reset_first_sequence,
                returning: request.returning,
                certain: true, // the task of the vdisk asks
            };
            let outbox = Arc::new(Outbox::default());
            let (sender, inbound) = mpsc::channel(INBOUND_BATCHES);
            let (verdict, answer) = oneshot::channel();
            let hello = Hello { greeting, peer, outbox: Arc::clone(&outbox), inbound, verdict };
            if shared.vdisk(&request.vdisk_id).send(hello).await.is_err() {
                continue; // its task was just ending
            }
            match answer.await {
                Ok(Verdict::Accepted { last_flushed, end, budget, stop }) => {
                    let inbound = sender;
                    return Connected::Live(Link { last_flushed, end, outbox, inbound, budget, stop });
                }
                Ok(Verdict::Refused(answer)) => {
                    if answer.status == HandshakeStatus::InvalidVdiskId {
                        shared.count_refused("unknown_vdisk");
                        warn_seldom!(shared.seldom, "unknown_vdisk", vdisk = %request.vdisk_id, %peer, "refused: unknown vdisk");
                    }
                    return Connected::Refused(answer);
                }
                Ok(Verdict::Replaced) => return Connected::Gone,
                Err(_) => {} // its task was just ending
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => Connected::Gone,
        connected = timeout(shared.settings.open_timeout, connected) => connected.unwrap_or_else(|_| {
            shared.count_refused("open_timeout");
            warn!(vdisk = %request.vdisk_id, %peer, "refused: the log could not be opened or flushed in time");
            Connected::Refused(HandshakeResponse::unavailable())
        }),
    }
}

/// Writes what is put into the outbox until that ends.
async fn write_all(write: &mut (impl AsyncWrite + Unpin), outbox: &Outbox, limit: Duration) -> Reason {
    loop {
        let mut bytes = match outbox.next().await {
            ToWrite::Bytes(bytes) => bytes,
            ToWrite::End(reason) => return reason,
        };
        while !bytes.is_empty() {
            // The limit is on any progress: slow is fine, standing still is not.
            tokio::select! {
                biased;
                reason = outbox.aborted() => return reason,
                written = timeout(limit, write.write_buf(&mut bytes)) => match written {
                    Ok(Ok(1..)) => {}
                    Ok(_) => return Reason::Broken,
                    Err(_) => return Reason::NotReading,
                },
            }
        }
        // TLS still holds a little of it.
        tokio::select! {
            biased;
            reason = outbox.aborted() => return reason,
            flushed = timeout(limit, write.flush()) => match flushed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Reason::Broken,
                Err(_) => return Reason::NotReading,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tlog_proto::VdiskId;
    use tokio::net::TcpListener;

    use super::*;
    use crate::port::{LogStorage, OpenError, VdiskLog};

    /// Ten thousand of them must not take more than some tens of megabytes.
    const SMALL: usize = 4096;

    struct Nothing;

    #[async_trait::async_trait]
    impl LogStorage for Nothing {
        async fn open(&self, vdisk: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
            Err(OpenError::UnknownVdisk(vdisk.clone()))
        }
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_takes_little_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let peer = stream.peer_addr().unwrap();
        let shared = Arc::new(Shared::new(crate::ServerSettings::default(), Arc::new(Nothing), None));
        let (place, _) = shared.places.enter();
        let bytes = size_of_val(&serve(stream, peer, Arc::clone(&shared), None, place));
        assert!(bytes <= SMALL, "{bytes}");
    }
}
