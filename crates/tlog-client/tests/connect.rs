//! Getting a connection, and every way of not getting one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use scripted::{SHORT, ScriptedServer, at, starting_at, vdisk};
use tlog_client::{Client, ClientOptions, ConnectError, Connecting, Connector, Reader, Start, Writer};
use tlog_proto::{
    FrameError, Generation, HandshakeResponse, HandshakeStatus, Limits, LogPosition, Refusal, Sequence,
    SessionId, Version,
};
use tokio::io::AsyncWriteExt;

/// The error of a connect at sequence 20 that is answered so.
async fn answered(status: HandshakeStatus, last_flushed: Option<u64>) -> ConnectError {
    let server = ScriptedServer::start().await;
    let connect = Client::connect(server.addr(), vdisk(), starting_at(20));
    tokio::join!(connect, server.refuse_handshake(status, last_flushed)).0.unwrap_err()
}

/// The error of a connect to a server that sends these bytes and keeps the connection.
async fn answered_with_bytes(bytes: &[u8]) -> ConnectError {
    let server = ScriptedServer::start().await;
    let options =
        ClientOptions { limits: Limits { max_block_bytes: 1000, ..Limits::default() }, ..starting_at(1) };
    let script = async {
        let mut peer = server.accept_request().await;
        peer.send_bytes(bytes).await;
        peer
    };
    tokio::join!(Client::connect(server.addr(), vdisk(), options), script).0.unwrap_err()
}

/// Goes to one address, whatever a server is called.
struct Detour(String);

impl Connector for Detour {
    fn connect(&self, server: &str) -> Connecting {
        let (address, known) = (self.0.clone(), server == "nowhere:1");
        Box::pin(async move {
            if !known {
                return Err(std::io::ErrorKind::HostUnreachable.into());
            }
            let (reader, writer) = tokio::net::TcpStream::connect(address).await?.into_split();
            Ok((Box::new(reader) as Reader, Box::new(writer) as Writer))
        })
    }
}

#[tokio::test]
async fn a_connector_makes_the_connections_and_its_errors_are_those_of_a_server_out_of_reach() {
    let server = ScriptedServer::start().await;
    let detour = Arc::new(Detour(server.addr()));
    let connect = Client::connect_over(detour.clone(), "elsewhere:1, nowhere:1", vdisk(), starting_at(20));
    let (client, mut peer) = tokio::join!(connect, server.accept_handshake());
    let client = client.unwrap();
    assert_eq!(client.server().as_deref(), Some("nowhere:1"));
    let _durable = client.set(at(3), vec![3; 64]).await.unwrap();
    peer.expect_blocks(20..=20).await;
    let error = Client::connect_over(detour, "elsewhere:1", vdisk(), starting_at(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn the_handshake_says_who_wants_what() {
    let server = ScriptedServer::start().await;
    let options =
        ClientOptions { start: Start::At(Sequence(3)), session: Some(SessionId(7)), ..starting_at(3) };
    let connect = Client::connect(server.addr(), vdisk(), options);
    let (client, peer) = tokio::join!(connect, server.accept_handshake());
    let client = client.unwrap();
    assert_eq!(peer.request.version, Version::CURRENT);
    assert_eq!(peer.request.vdisk_id, vdisk());
    assert_eq!(peer.request.first_sequence, Sequence(3));
    assert!(!peer.request.reset_first_sequence);
    assert_eq!(peer.request.session, SessionId(7));
    assert_eq!((client.first_sequence(), client.next_sequence()), (Sequence(3), Sequence(3)));
    assert_eq!(client.session(), SessionId(7));

    // A reset makes no use of a session: what the log holds of it must not pass for what is sent now.
    let options =
        ClientOptions { start: Start::Reset(Sequence(3)), session: Some(SessionId(7)), ..starting_at(3) };
    let connect = Client::connect(server.addr(), vdisk(), options);
    let (_client, peer) = tokio::join!(connect, server.accept_handshake());
    assert!(peer.request.reset_first_sequence && peer.request.session != SessionId(7));
}

#[tokio::test]
async fn sessions_are_drawn_anew_for_every_client() {
    let server = ScriptedServer::start().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let connect = Client::connect(server.addr(), vdisk(), starting_at(1));
        let (client, peer) = tokio::join!(connect, server.accept_handshake());
        assert_eq!(client.unwrap().session(), peer.request.session);
        assert!(peer.request.session.is_known());
        sessions.push(peer.request.session.0);
    }
    sessions.dedup();
    assert_eq!(sessions.len(), 3);
}

#[tokio::test]
async fn every_refusal_is_its_own_error() {
    use HandshakeStatus as Status;
    let error = answered(Status::InvalidRequest, None).await;
    assert!(matches!(error, ConnectError::InvalidRequest { .. }), "{error}");
    let error = answered(Status::InvalidVersion, None).await;
    assert!(matches!(error, ConnectError::ClientTooOld { .. }), "{error}");
    let error = answered(Status::InvalidVdiskId, None).await;
    assert!(matches!(&error, ConnectError::UnknownVdisk { vdisk: it, .. } if *it == vdisk()), "{error}");
    assert!(!error.is_retryable());
    let error = answered(Status::InternalServerError, None).await;
    assert!(matches!(error, ConnectError::ServerFailed { first_sequence: Sequence(20), .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_gap_is_told_with_both_numbers_and_only_where_there_is_one() {
    let error = answered(HandshakeStatus::InternalServerError, Some(9)).await;
    let text = error.to_string();
    assert!(
        text.contains(
            "starting at sequence 20 of vdisk myimg would leave a gap, the last durable one is 9; "
        ),
        "{text}"
    );
    let error = answered(HandshakeStatus::InternalServerError, Some(19)).await;
    assert!(matches!(error, ConnectError::ServerFailed { .. }), "{error}");
}

#[tokio::test]
async fn a_server_older_than_the_oldest_supported_is_refused() {
    let server = ScriptedServer::start().await;
    let script = async {
        let mut peer = server.accept_request().await;
        let version = "1.0.9".parse().unwrap();
        let response = HandshakeResponse { version, ..HandshakeResponse::new(HandshakeStatus::Ok) };
        peer.answer_handshake_with(response).await;
        peer
    };
    let (client, _) = tokio::join!(Client::connect(server.addr(), vdisk(), starting_at(1)), script);
    assert!(matches!(client, Err(ConnectError::ServerTooOld { .. })));
}

#[tokio::test]
async fn answers_that_are_not_of_a_tlog_server_are_refused_with_what_is_wrong_with_them() {
    let kind = |error: ConnectError| match error {
        ConnectError::NotTlog { source, .. } => source.kind(),
        other => panic!("{other}"),
    };
    assert_eq!(kind(answered_with_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n").await), "too_many_segments");
    assert_eq!(kind(answered_with_bytes(&[0, 0, 0, 0, 0xff, 0xff, 0, 0]).await), "too_large");
    assert_eq!(
        kind(answered_with_bytes(&[0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]).await),
        "malformed"
    );
    // One word of data, version 1.1.0-alpha, status 99.
    let unknown_status = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 1, 1, 99, 0, 0, 0];
    let error = answered_with_bytes(&unknown_status).await;
    assert!(error.to_string().contains("unknown status 99"), "{error}");
}

#[tokio::test]
async fn a_server_that_closes_in_the_handshake_is_told_from_one_that_breaks_off_in_the_middle() {
    let server = ScriptedServer::start().await;
    let (client, _) = tokio::join!(Client::connect(server.addr(), vdisk(), starting_at(1)), async {
        drop(server.accept_request().await)
    });
    assert!(matches!(client, Err(ConnectError::ClosedInHandshake { .. })));

    let script = async {
        let mut peer = server.accept_request().await;
        peer.send_bytes(&[0, 0, 0, 0]).await;
    };
    let (client, ()) = tokio::join!(Client::connect(server.addr(), vdisk(), starting_at(1)), script);
    assert!(matches!(client, Err(ConnectError::NotTlog { source: FrameError::Truncated, .. })));
}

#[tokio::test]
async fn a_server_that_never_answers_the_handshake_is_given_up() {
    let server = ScriptedServer::start().await;
    let options = ClientOptions { handshake_timeout: SHORT, ..starting_at(1) };
    let (client, _peer) =
        tokio::join!(Client::connect(server.addr(), vdisk(), options), server.accept_request());
    assert!(matches!(client, Err(ConnectError::HandshakeTimeout { timeout: SHORT, .. })));
}

#[tokio::test]
async fn where_nothing_listens_the_error_names_the_address() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Client::connect(addr, vdisk(), starting_at(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }));
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    assert!(error.is_retryable());
    let error = Client::connect("no port here", vdisk(), starting_at(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAnAddress { .. }));
}

fn continuing() -> ClientOptions {
    ClientOptions { start: Start::Continue, ..starting_at(1) }
}

#[tokio::test]
async fn continuing_a_log_starts_after_its_last_durable_sequence() {
    let server = ScriptedServer::start().await;
    let script = async {
        let question = server.refuse_handshake(HandshakeStatus::InternalServerError, Some(41)).await;
        (question, server.accept_continuing(41).await)
    };
    let options = ClientOptions { session: Some(SessionId(7)), ..continuing() };
    let connect = Client::connect(server.addr(), vdisk(), options);
    let (client, (question, mut peer)) = tokio::join!(connect, script);
    let client = client.unwrap();
    assert_eq!(question.first_sequence, Sequence(u64::MAX));
    assert_eq!(peer.request.first_sequence, Sequence(42));
    assert_ne!(peer.request.session, question.session);
    assert_ne!(peer.request.session, SessionId(7), "what an earlier client sent must not pass for ours");
    assert_eq!(peer.request.returning, None);
    assert_eq!(client.last_flushed_at_connect(), Some(Sequence(41)));
    client.set(at(0), vec![1]).await.unwrap();
    peer.expect_block(42).await;
}

#[tokio::test]
async fn a_log_that_grows_between_the_question_and_the_beginning_is_asked_again() {
    let server = ScriptedServer::start().await;
    let refuse = |last| server.refuse_handshake(HandshakeStatus::InternalServerError, Some(last));
    let script = async {
        refuse(41).await;
        // Somebody else wrote: it would begin a new generation.
        let mut kicked_out = server.accept_handshake().await;
        kicked_out.expect_close().await;
        refuse(50).await;
        server.accept_continuing(50).await
    };
    let connect = Client::connect(server.addr(), vdisk(), continuing());
    let (client, peer) = tokio::join!(connect, script);
    assert_eq!((client.unwrap().first_sequence(), peer.request.first_sequence), (Sequence(51), Sequence(51)));
}

#[tokio::test]
async fn continuing_an_empty_log_begins_at_one() {
    let server = ScriptedServer::start().await;
    let script = async {
        let question = server.refuse_because(Refusal::Gap).await;
        assert!(!question.reset_first_sequence);
        server.accept_handshake().await
    };
    let (client, peer) = tokio::join!(Client::connect(server.addr(), vdisk(), continuing()), script);
    assert_eq!((client.unwrap().next_sequence(), peer.request.first_sequence), (Sequence(1), Sequence(1)));
}

#[tokio::test]
async fn an_empty_log_in_which_somebody_writes_between_the_question_and_the_beginning_is_asked_again() {
    let server = ScriptedServer::start().await;
    let script = async {
        server.refuse_because(Refusal::Gap).await;
        let mut peer = server.accept_request().await;
        // Three blocks are there by now: it would begin a new generation.
        let end = Some(LogPosition { generation: Generation(1), sequence: Sequence(3) });
        let accepted = HandshakeResponse { end, ..HandshakeResponse::new(HandshakeStatus::Ok) };
        peer.answer_handshake_with(accepted).await;
        peer.expect_close().await;
        server.refuse_handshake(HandshakeStatus::InternalServerError, Some(3)).await;
        server.accept_continuing(3).await
    };
    let (client, _peer) = tokio::join!(Client::connect(server.addr(), vdisk(), continuing()), script);
    assert_eq!(client.unwrap().first_sequence(), Sequence(4));
}

#[tokio::test]
async fn continuing_fails_where_the_server_does_not_tell_the_end_or_refuses() {
    let server = ScriptedServer::start().await;
    let connect = || Client::connect(server.addr(), vdisk(), continuing());
    let refuse = |status| server.refuse_handshake(status, None);
    let (client, _) = tokio::join!(connect(), refuse(HandshakeStatus::InternalServerError));
    assert!(matches!(client, Err(ConnectError::LogEndUnknown { .. })));
    // A server that does not know the question takes it for a sequence; that says nothing of where the log ends.
    let (client, _peer) = tokio::join!(connect(), server.accept_handshake());
    assert!(matches!(client, Err(ConnectError::LogEndUnknown { .. })));
    let (client, _) = tokio::join!(connect(), refuse(HandshakeStatus::InvalidVdiskId));
    assert!(matches!(client, Err(ConnectError::UnknownVdisk { .. })));
    let (client, _) = tokio::join!(connect(), server.refuse_because(Refusal::LogUnavailable));
    assert!(matches!(client, Err(ConnectError::ServerFailed { .. })));
}

#[tokio::test]
async fn refusals_that_a_server_explains_have_errors_of_their_own() {
    let server = ScriptedServer::start().await;
    let connect = || Client::connect(server.addr(), vdisk(), starting_at(20));
    let (client, _) = tokio::join!(connect(), server.refuse_because(Refusal::TakenOver));
    assert!(matches!(client, Err(ConnectError::TakenOver { .. })));
    let (client, _) = tokio::join!(connect(), server.refuse_because(Refusal::NotPermitted));
    assert!(matches!(client, Err(ConnectError::NotPermitted { .. })));
    let (client, _) = tokio::join!(connect(), server.refuse_because(Refusal::Gap));
    assert!(matches!(client, Err(ConnectError::Gap { last_flushed: None, .. })));
}

#[tokio::test]
async fn the_first_server_that_works_is_taken_and_where_none_does_each_is_named() {
    let dead = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (server, refusing) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let servers = [dead(), refusing.addr(), server.addr()];
    let script = async {
        refusing.refuse_because(Refusal::LogUnavailable).await;
        server.accept_handshake().await
    };
    let (client, _peer) = tokio::join!(Client::connect(servers, vdisk(), starting_at(1)), script);
    assert_eq!(client.unwrap().server().as_deref(), Some(&*server.addr()));

    let servers = [dead(), refusing.addr()];
    let connect = Client::connect(servers.clone(), vdisk(), starting_at(1));
    let (client, _) = tokio::join!(connect, refusing.refuse_because(Refusal::NotPermitted));
    let error = client.unwrap_err();
    assert!(matches!(&error, ConnectError::NoneOf(errors) if errors.len() == 2), "{error}");
    assert!(servers.iter().all(|server| error.to_string().contains(server)), "{error}");
    assert!(error.is_retryable(), "one of them may come back");
    let none = Client::connect(" , ", vdisk(), starting_at(1)).await;
    assert!(matches!(none, Err(ConnectError::NoServers)));
}

#[tokio::test]
async fn a_first_connect_that_may_take_time_goes_round_until_a_server_is_there() {
    let server = ScriptedServer::start().await;
    let options = ClientOptions { connect_deadline: Duration::from_secs(60), ..starting_at(1) };
    let script = async {
        for _ in 0..3 {
            server.refuse_because(Refusal::LogUnavailable).await;
        }
        server.accept_handshake().await
    };
    let (client, _peer) = tokio::join!(Client::connect(server.addr(), vdisk(), options.clone()), script);
    client.unwrap();
    // What nobody can mend is not waited for.
    let connect = Client::connect(server.addr(), vdisk(), options);
    let (client, _) = tokio::join!(connect, server.refuse_because(Refusal::NotPermitted));
    assert!(matches!(client, Err(ConnectError::NotPermitted { .. })));
}

#[tokio::test]
async fn a_response_that_comes_with_the_handshake_is_not_lost() {
    let server = ScriptedServer::start().await;
    let script = async {
        let mut peer = server.accept_request().await;
        let mut wire = bytes::BytesMut::new();
        let ok = HandshakeStatus::Ok;
        HandshakeResponse { last_flushed: Some(Sequence(4)), ..HandshakeResponse::new(ok) }
            .encode_into(&mut wire);
        tlog_proto::Response { status: tlog_proto::BlockStatus::FlushFailed, sequences: vec![] }
            .encode_into(&mut wire);
        peer.send_bytes(&wire).await;
        peer
    };
    let (client, _peer) = tokio::join!(Client::connect(server.addr(), vdisk(), starting_at(5)), script);
    let client = client.unwrap();
    assert_eq!(client.last_flushed_at_connect(), Some(Sequence(4)));
    let lost = async {
        while client.stats().failed_reconnects == 0 && client.server().is_some() {
            tokio::task::yield_now().await
        }
    };
    scripted::soon(lost).await; // FlushFailed: it was left
}

#[tokio::test]
async fn a_handshake_that_arrives_byte_by_byte_is_read() {
    let server = ScriptedServer::start().await;
    let script = async {
        let mut stream = server.accept().await;
        stream.set_nodelay(true).unwrap();
        let mut wire = bytes::BytesMut::new();
        HandshakeResponse::new(HandshakeStatus::Ok).encode_into(&mut wire);
        for byte in wire {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        stream
    };
    let (client, _stream) = tokio::join!(Client::connect(server.addr(), vdisk(), starting_at(1)), script);
    client.unwrap();
}
