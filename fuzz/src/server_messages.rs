//! A server whose clients send what is well-formed and hostile, over a log that waits, fails and is taken over: nothing is acknowledged that is
//! not in the log, and nothing is in the log that was not sent.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, ClientMessage, FrameError, FrameReader, Generation, HandshakeRequest,
    Limits, LogPosition, Response, Sequence, SessionId, Timestamp, UnverifiedBlock, VdiskId,
};
use tlog_server::{CloseReason, Server, ServerSettings};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::Target;
use crate::input::Input;
use crate::memory_log::MemoryLogs;
use crate::time::runtime;

/// One step after the other: of clients, and of their logs.
pub const TARGET: Target = Target { name: "server-messages", memory: 8 << 20, check, seeds };

/// Most steps of an input: many short stories find more than a long one.
const MOST_STEPS: usize = 60;

fn check(input: &[u8]) {
    runtime().block_on(async {
        let mut scene = Scene::new();
        let mut input = Input::new(input);
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            scene.step(&mut input).await;
        }
        scene.end().await;
    });
}

/// A server, its logs, and whoever is connected.
pub(crate) struct Scene {
    server: Server,
    logs: Arc<MemoryLogs>,
    clients: Vec<Client>,
    /// Who has disconnected and may still be told something that was on the way.
    gone: Vec<JoinHandle<()>>,
    told: Arc<Mutex<Told>>,
    /// Good blocks that were sent, by vdisk and sequence.
    sent: HashMap<(VdiskId, Sequence), Vec<Block>>,
    /// Bytes were sent of which nobody has looked at what they say.
    unknown: bool,
}

struct Client {
    /// Whose blocks it sends.
    vdisk: VdiskId,
    write: WriteHalf<DuplexStream>,
    reading: JoinHandle<()>,
}

/// What servers have said of blocks.
#[derive(Default)]
struct Told {
    received: HashSet<(VdiskId, Sequence)>,
    durable: HashSet<(VdiskId, Sequence)>,
}

/// Bounds that a few bytes reach.
fn settings() -> ServerSettings {
    let limits = Limits { max_block_bytes: 512, max_segments: 64 };
    let block = limits.max_message_bytes() + 256;
    ServerSettings {
        max_connections: 3,
        limits,
        max_window_span: 16,
        max_window_bytes: block,
        max_total_window_bytes: block,
        max_unflushed_bytes: block,
        max_total_unflushed_bytes: block + 512,
        ..ServerSettings::default()
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        let logs = Arc::new(MemoryLogs::default());
        let server = Server::new(settings(), Arc::clone(&logs) as _, None).expect("good settings");
        Self {
            server,
            logs,
            clients: Vec::new(),
            gone: Vec::new(),
            told: Arc::default(),
            sent: HashMap::new(),
            unknown: false,
        }
    }

    async fn step(&mut self, input: &mut Input<'_>) {
        let what = input.below(16);
        let which = input.below(self.clients.len());
        let vdisk = vdisk(input);
        let log = self.logs.disk(vdisk.as_str());
        match what {
            0 | 1 => self.greets(&vdisk, input).await,
            2..=5 => {
                let message = self.block(which, input);
                self.sends(which, &message).await;
            }
            6 => self.sends_message(which, &ClientMessage::ForceFlushAtSeq(Sequence(input.number()))).await,
            7 => self.sends_message(which, &ClientMessage::WaitNbdSlaveSync).await,
            8 => {
                let length = input.below(64);
                self.sends_unknown(which, input.bytes(length)).await;
            }
            9 if which < self.clients.len() => {
                let mut client = self.clients.swap_remove(which);
                match input.flag() {
                    true => drop(client.write.shutdown().await),
                    false => client.reading.abort(),
                }
                self.gone.push(client.reading);
            }
            10 => match input.flag() {
                true => log.hold(),
                false => log.release(),
            },
            11 => log.set_full(input.flag()),
            12 => match input.below(4) {
                0 => log.fail(CloseReason::Fenced),
                1 => log.fail(CloseReason::Failed("a store is gone".to_owned())),
                2 => drop(self.server.close_vdisk(&vdisk)),
                _ => drop(timeout(Duration::from_secs(1), self.server.close_vdisk(&vdisk)).await),
            },
            13 => match input.below(3) {
                0 => log.taken_over.store(true, Relaxed),
                1 => log.uncertain.store(input.flag(), Relaxed),
                _ => log.away.store(input.flag(), Relaxed),
            },
            14 => sleep(Duration::from_millis(u64::from(input.u16()))).await,
            _ => drop(self.server.status()),
        }
        tokio::task::yield_now().await;
    }

    /// Somebody connects and says where it stands.
    async fn greets(&mut self, vdisk: &VdiskId, input: &mut Input<'_>) {
        let returning = input.flag().then(|| LogPosition {
            generation: Generation(input.number()),
            sequence: Sequence(input.number()),
        });
        let request = HandshakeRequest {
            session: SessionId(input.below(3) as u64),
            reset_first_sequence: input.below(4) == 1,
            returning,
            ..HandshakeRequest::new(vdisk.clone(), Sequence(input.number()))
        };
        let mut bytes = BytesMut::new();
        request.encode_into(&mut bytes);
        self.connects(vdisk.clone());
        self.sends(self.clients.len() - 1, &bytes).await;
    }

    /// Somebody connects and says nothing yet. Whatever it says is for this vdisk, or is not looked at.
    pub(crate) fn connects(&mut self, vdisk: VdiskId) {
        let (ours, theirs) = duplex(4 << 10);
        self.server.serve_stream(theirs, SocketAddr::from(([127, 0, 0, 1], 1)));
        let (read, write) = split(ours);
        let reading = tokio::spawn(listen(read, vdisk.clone(), Arc::clone(&self.told)));
        self.clients.push(Client { vdisk, write, reading });
    }

    async fn sends_message(&mut self, which: usize, message: &ClientMessage) {
        let mut bytes = BytesMut::new();
        message.encode_into(&mut bytes);
        self.sends(which, &bytes).await;
    }

    /// Bytes that may be anything.
    pub(crate) async fn sends_unknown(&mut self, which: usize, bytes: &[u8]) {
        self.unknown = true;
        self.sends(which, bytes).await;
    }

    /// As far as the server takes it.
    async fn sends(&mut self, which: usize, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(which) else { return };
        if !matches!(timeout(Duration::from_secs(5), client.write.write_all(bytes)).await, Ok(Ok(()))) {
            let client = self.clients.swap_remove(which);
            self.gone.push(client.reading);
        }
    }

    /// A block, mostly a good one.
    fn block(&mut self, which: usize, input: &mut Input<'_>) -> BytesMut {
        let mut bytes = BytesMut::new();
        let (sequence, index) =
            (Sequence(input.number()), BlockIndex::new(input.number()).unwrap_or_default());
        let (what, time) = (input.byte(), Timestamp(input.number()));
        let length = if what & 1 == 1 { input.below(16) } else { input.below(256) * 2 };
        let block = match length {
            0 => Block::delete(sequence, index, time),
            length => Block::set(sequence, index, time, Bytes::from(vec![what; length])),
        };
        if what >= 0xf0 {
            let mut wrong = UnverifiedBlock::from(block);
            match what & 3 {
                0 => wrong.operation = input.byte(),
                1 => wrong.index = input.number() as i64,
                2 => wrong.hash = None,
                _ => wrong.data = Bytes::from(vec![1; length + 1]),
            }
            if let Ok(block) = wrong.clone().verify() {
                self.was_sent(which, &block);
            }
            ClientMessage::Block(wrong).encode_into(&mut bytes);
        } else {
            self.was_sent(which, &block);
            block.encode_into(&mut bytes);
        }
        bytes
    }

    fn was_sent(&mut self, which: usize, block: &Block) {
        if let Some(client) = self.clients.get(which) {
            self.sent.entry((client.vdisk.clone(), block.sequence)).or_default().push(block.clone());
        }
    }

    /// The server stops while everybody still listens; then what was said is compared with what is there.
    pub(crate) async fn end(self) {
        let Self { server, logs, clients, gone, told, sent, unknown } = self;
        for (_, log) in logs.all() {
            log.set_full(false);
            log.release();
        }
        let report = server.stop().await;
        for reading in clients.into_iter().map(|client| client.reading).chain(gone) {
            if let Err(error) = reading.await {
                assert!(error.is_cancelled(), "what the server said makes no sense: {error}");
            }
        }
        if unknown {
            return; // whose blocks these are, and which, is not known
        }
        let told = told.lock().expect("nobody panics with it");
        for (vdisk, log) in logs.all() {
            let (blocks, durable) = log.blocks();
            assert!(!report.all_durable() || durable == blocks.len(), "{vdisk}: not all is durable");
            let durable: HashSet<Sequence> =
                blocks[..durable].iter().map(|block| block.block.sequence).collect();
            for (_, sequence) in told.durable.iter().filter(|(of, _)| *of == vdisk) {
                assert!(durable.contains(sequence), "{vdisk}: {sequence} was acknowledged and is not there");
            }
            for block in &blocks {
                let sent = sent.get(&(vdisk.clone(), block.block.sequence));
                assert!(
                    sent.is_some_and(|sent| sent.contains(&block.block)),
                    "{vdisk}: {block:?} was not sent"
                );
            }
        }
        for of in &told.received {
            assert!(sent.contains_key(of), "{of:?} was not sent");
        }
    }
}

fn vdisk(input: &mut Input<'_>) -> VdiskId {
    let name = if input.below(8) == 7 { "b" } else { "a" };
    VdiskId::new(name).expect("a legal id")
}

/// Reads until the server closes. It must say what can be read.
async fn listen(read: ReadHalf<DuplexStream>, vdisk: VdiskId, told: Arc<Mutex<Told>>) {
    let mut frames = FrameReader::new(read, Limits::default());
    match frames.handshake_response().await {
        Ok(Some(_)) => {}
        Ok(None) => return,
        Err(error) => return broke(&error),
    }
    loop {
        match frames.response().await {
            Ok(Some(Response { status, sequences })) => {
                let mut told = told.lock().expect("nobody panics with it");
                let of = sequences.into_iter().map(|sequence| (vdisk.clone(), sequence));
                match status {
                    BlockStatus::RecvOk => told.received.extend(of),
                    BlockStatus::FlushOk => told.durable.extend(of),
                    _ => {}
                }
            }
            Ok(None) => return,
            Err(error) => return broke(&error),
        }
    }
}

/// A connection may end anywhere; what came over it whole must make sense.
fn broke(error: &FrameError) {
    assert!(matches!(error, FrameError::Io(_) | FrameError::Truncated), "the server said: {error}");
}

fn seeds() -> Vec<Vec<u8>> {
    // A greeting: what, which, vdisk, returning, session, reset, first sequence.
    let greet = |session: u8, first: u8| vec![0, 0, 0, 0, session, 0, first];
    let back = |session: u8, generation: u8, sequence: u8, first: u8| {
        vec![0, 0, 0, 1, generation, sequence, session, 0, first]
    };
    // A block: what, which, vdisk, sequence, index, what, time, length.
    let block = |sequence: u8| vec![2, 0, 0, sequence, 3, 1, 9, 5];
    let flush = |sequence: u8| vec![6, 0, 0, sequence];
    let wait = vec![14, 0, 0, 0, 1];
    let leave = vec![9, 0, 0];
    let all = |steps: &[Vec<u8>]| steps.concat();
    vec![
        all(&[
            greet(1, 1),
            block(1),
            block(2),
            flush(2),
            wait.clone(),
            leave.clone(),
            back(1, 0, 0, 2),
            block(3),
            flush(3),
        ]),
        all(&[greet(1, 1), block(2), block(3), block(1), flush(3), wait.clone()]),
        all(&[
            greet(0, 1),
            block(1),
            flush(1),
            wait.clone(),
            leave.clone(),
            greet(0, 1),
            block(1),
            block(2),
            flush(2),
        ]),
        all(&[
            greet(1, 1),
            vec![10, 0, 0, 1],
            block(1),
            block(2),
            flush(2),
            greet(2, 3),
            block(3),
            vec![10, 0, 0, 0],
        ]),
        all(&[
            greet(1, 5),
            block(5),
            vec![11, 0, 0, 1],
            block(6),
            block(7),
            wait.clone(),
            vec![11, 0, 0, 0],
            flush(7),
        ]),
        all(&[
            greet(1, 1),
            block(1),
            vec![12, 0, 0, 0],
            wait.clone(),
            greet(1, 1),
            block(1),
            vec![13, 0, 0, 0],
            greet(2, 2),
        ]),
        all(&[greet(1, 1), vec![2, 0, 0, 1, 3, 0xf3, 9, 5], vec![7, 0, 0], vec![8, 0, 0, 3, 1, 2, 3], wait]),
        all(&[greet(1, 0xf0), vec![2, 0, 0, 0xf0, 3, 1, 9, 5], flush(0xf0)]),
    ]
}
