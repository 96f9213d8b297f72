//! Time, which passes here only when nothing else happens; so no sockets.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    BlockHash, BlockIndex, BlockStatus, FrameReader, Limits, Operation, Response, SessionId, VdiskId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;
use crate::shared::Draft;
use crate::{Backoff, ClientOptions};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A running client whose only connection goes through a pipe that holds 1 KiB, and the server's end of it. It ends when
/// it loses that.
fn running() -> (Arc<Shared>, mpsc::Sender<Request>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 10);
    let (reader, writer) = tokio::io::split(ours);
    let servers = Servers::from("127.0.0.1:1");
    let shared = Arc::new(Shared::new(Sequence(1), 1 << 20, servers.clone()));
    let (requests, questions) = mpsc::channel(1);
    let hour = Duration::from_secs(3600);
    let options = ClientOptions {
        answer_timeout: TIMEOUT,
        resend_timeout: hour,
        flush_after: hour,
        reconnect_deadline: Some(Duration::ZERO),
        ..ClientOptions::default()
    };
    let vdisk = VdiskId::new("myimg").unwrap();
    let options = Arc::new(options.bounded());
    let dialer = Dialer { vdisk, session: SessionId(7), options, connector: None };
    let accepted = Accepted {
        server: "pipe".into(),
        reader: FrameReader::new(Box::new(reader), Limits::default()),
        writer: Box::new(writer),
        first: Sequence(1),
        last_flushed: None,
        end: None,
    };
    let plan = Plan::new(servers, Backoff::default(), None);
    tokio::spawn(Driver::new(shared.clone(), questions, dialer, plan, &accepted).run(accepted));
    (shared, requests, theirs)
}

fn hand_over(shared: &Shared, size: usize) {
    let data = Bytes::from(vec![1; size]);
    let (ticket, _) = Ticket::new();
    let hash = BlockHash::of(&data);
    let draft = Draft { own: None, index: BlockIndex::default(), operation: Operation::Set, hash, data };
    shared.intake().hand_over(draft, 1, ticket).unwrap();
    shared.wake.notify_one();
}

/// Why the connection was lost.
async fn lost(shared: &Shared) -> Arc<LostCause> {
    let mut events = shared.events.subscribe();
    loop {
        match events.recv().await.unwrap() {
            Event::Reconnecting { cause, .. } => return cause,
            Event::Ended(ending) => panic!("{ending}"),
            _ => {}
        }
    }
}

fn is_open(shared: &Shared) -> bool {
    shared.intake().ended.is_none()
}

fn response(status: BlockStatus, sequences: &[u64]) -> BytesMut {
    let mut wire = BytesMut::new();
    Response { status, sequences: sequences.iter().copied().map(Sequence).collect() }.encode_into(&mut wire);
    wire
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_but_talks_is_alive_until_it_falls_silent() {
    let (shared, _requests, mut server) = running();
    hand_over(&shared, 4 << 10);
    let mut spoke = Instant::now();
    for _ in 0..10 {
        sleep(TIMEOUT * 3 / 4).await;
        assert!(is_open(&shared));
        server.write_all(&response(BlockStatus::FlushOk, &[])).await.unwrap();
        spoke = Instant::now();
    }
    assert!(matches!(*lost(&shared).await, LostCause::Silent(TIMEOUT)));
    assert_eq!(spoke.elapsed().as_secs(), TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_slowly_is_alive_until_it_stops() {
    let (shared, _requests, mut server) = running();
    hand_over(&shared, 4 << 10);
    let mut read = Instant::now();
    for _ in 0..3 {
        sleep(TIMEOUT * 3 / 4).await;
        assert!(is_open(&shared));
        server.read_exact(&mut [0; 256]).await.unwrap();
        read = Instant::now();
    }
    assert!(matches!(*lost(&shared).await, LostCause::Silent(TIMEOUT)));
    assert_eq!(read.elapsed().as_secs(), TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_owes_nothing_may_be_silent_for_ever_and_its_time_begins_with_the_next_block() {
    let (shared, _requests, mut server) = running();
    hand_over(&shared, 16);
    server.write_all(&response(BlockStatus::FlushOk, &[1])).await.unwrap();
    sleep(TIMEOUT * 20 + TIMEOUT / 2).await;
    assert!(is_open(&shared));
    let begin = Instant::now();
    hand_over(&shared, 4 << 10);
    assert!(matches!(*lost(&shared).await, LostCause::Silent(TIMEOUT)));
    assert_eq!(begin.elapsed().as_secs(), TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_says_so_and_why() {
    let (shared, _requests, server) = running();
    hand_over(&shared, 16);
    drop(server);
    let mut progress = shared.progress.subscribe();
    let ending =
        progress.wait_for(|progress| progress.ending.is_some()).await.unwrap().ending.clone().unwrap();
    assert!(matches!(ending.cause(), EndCause::GaveUp { .. }), "{ending}");
    assert_eq!(ending.unacknowledged().to_string(), "1");
}
