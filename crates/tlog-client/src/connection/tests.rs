//! Time, which passes here only when nothing else happens; so no sockets.

use bytes::Bytes;
use tlog_proto::{BlockHash, BlockIndex, BlockStatus, Limits, Operation};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::shared::Draft;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A running connection through a pipe that holds 1 KiB, and the server's end of it.
fn running() -> (Arc<Shared>, mpsc::Sender<Request>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 10);
    let (reader, writer) = tokio::io::split(ours);
    let shared = Arc::new(Shared::new(Sequence(1), 1 << 20));
    let (requests, questions) = mpsc::channel(1);
    let names = Names { vdisk: VdiskId::new("myimg").unwrap(), peer: "pipe".to_owned() };
    let reader = FrameReader::new(reader, Limits::default());
    tokio::spawn(Connection::new(shared.clone(), questions, reader, writer, TIMEOUT, names).run());
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

async fn ending(shared: &Shared) -> Ending {
    let mut progress = shared.progress.subscribe();
    progress.wait_for(|progress| progress.ending.is_some()).await.unwrap().ending.clone().unwrap()
}

fn is_open(shared: &Shared) -> bool {
    shared.intake().ended.is_none()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_but_talks_is_alive_until_it_falls_silent() {
    let (shared, _requests, mut server) = running();
    hand_over(&shared, 4 << 10);
    let mut response = BytesMut::new();
    Response { status: BlockStatus::RecvOk, sequences: vec![Sequence(1)] }.encode_into(&mut response);
    let mut spoke = Instant::now();
    for _ in 0..10 {
        sleep(TIMEOUT * 3 / 4).await;
        assert!(is_open(&shared));
        server.write_all(&response).await.unwrap();
        spoke = Instant::now();
    }
    assert!(matches!(ending(&shared).await.cause(), EndCause::Stalled(TIMEOUT)));
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
    assert!(matches!(ending(&shared).await.cause(), EndCause::Stalled(TIMEOUT)));
    assert_eq!(read.elapsed().as_secs(), TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_that_has_taken_everything_is_not_given_up_and_the_timeout_starts_with_the_next_block()
 {
    let (shared, _requests, _server) = running();
    hand_over(&shared, 16);
    sleep(TIMEOUT * 20 + TIMEOUT / 2).await;
    assert!(is_open(&shared));
    let begin = Instant::now();
    hand_over(&shared, 4 << 10);
    assert!(matches!(ending(&shared).await.cause(), EndCause::Stalled(TIMEOUT)));
    assert_eq!(begin.elapsed().as_secs(), TIMEOUT.as_secs());
}
