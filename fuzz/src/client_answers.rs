//! A client whose servers answer what is well-formed and hostile: a block is durable only where a server has said so, and every other one is
//! given back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tlog_client::{Client, ClientOptions, Connecting, Connector, Start};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, ClientMessage, FrameReader, Generation, HandshakeResponse,
    HandshakeStatus, Limits, LogPosition, Refusal, Response, Sequence, SessionId, VdiskId, Version,
};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::timeout;

use crate::Target;
use crate::input::Input;
use crate::time::runtime;

/// How the client begins and how many bytes are its steps; then its steps; the rest is what its servers do.
pub const TARGET: Target = Target { name: "client-answers", memory: 8 << 20, check, seeds };

/// Many short stories find more than a long one.
const LONGEST_SCRIPT: usize = 600;

fn check(input: &[u8]) {
    play(input, Manner::Answers);
}

/// How servers answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// With messages, most of them well-formed.
    Answers,
    /// With bytes.
    Bytes,
}

/// What all connections have in common.
struct Servers {
    manner: Manner,
    /// What they still do, one connection after the other, or whichever comes first of several.
    script: Mutex<Vec<u8>>,
    said: Mutex<Said>,
}

/// What servers have said.
#[derive(Clone, Default)]
struct Said {
    durable: BTreeSet<Sequence>,
    /// Everything up to this one.
    durable_to: Option<Sequence>,
    /// They may have said anything.
    anything: bool,
}

impl Servers {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("nobody panics with it")
    }

    /// Takes decisions from the script.
    fn decide<T>(&self, decide: impl FnOnce(&mut Input<'_>) -> T) -> Option<T> {
        let mut script = self.script.lock().expect("nobody panics with it");
        if script.is_empty() {
            return None;
        }
        let mut input = Input::new(&script);
        let decided = decide(&mut input);
        *script = input.rest().to_vec();
        Some(decided)
    }
}

/// The script of all servers makes the connections.
struct Scripted(Arc<Servers>);

impl Connector for Scripted {
    fn connect(&self, _: &str) -> Connecting {
        let servers = Arc::clone(&self.0);
        Box::pin(async move {
            match servers.decide(|input| input.byte()) {
                None | Some(0) => Err(io::ErrorKind::ConnectionRefused.into()),
                Some(1) => std::future::pending().await,
                Some(_) => {
                    let (ours, theirs) = duplex(4 << 10);
                    tokio::spawn(async move { serve(&servers, theirs).await });
                    let (read, write) = split(ours);
                    Ok((Box::new(read) as _, Box::new(write) as _))
                }
            }
        })
    }
}

/// One connection, until the script ends or closes it.
async fn serve(servers: &Servers, stream: DuplexStream) -> Option<()> {
    let (read, mut write) = split(stream);
    if servers.manner == Manner::Bytes {
        return serve_bytes(servers, read, write).await;
    }
    let mut frames = FrameReader::new(read, Limits::default());
    frames.handshake_request().await.ok()??;
    let mut bytes = BytesMut::new();
    let answer = servers.decide(handshake)?;
    if answer.status == HandshakeStatus::Ok {
        let mut said = servers.said();
        let end = answer.end.map(|end| end.sequence);
        said.durable_to = [said.durable_to, answer.last_flushed, end].into_iter().flatten().max();
    }
    answer.encode_into(&mut bytes);
    write.write_all(&bytes).await.ok()?;
    let mut received = Vec::new();
    loop {
        let next = timeout(Duration::from_millis(10), frames.client_message());
        if let Ok(message) = next.await {
            match message.ok()?? {
                ClientMessage::Block(block) => received.push(block.sequence),
                ClientMessage::ForceFlushAtSeq(_) | ClientMessage::WaitNbdSlaveSync => {}
            }
        }
        let bytes = servers.decide(|input| {
            let mut bytes = BytesMut::new();
            match input.below(8) {
                0 => {}
                1 => return None,
                2 => bytes.extend_from_slice(&{
                    servers.said().anything = true;
                    let length = input.below(64);
                    input.bytes(length).to_vec()
                }),
                _ => response(input, &received, &mut servers.said()).encode_into(&mut bytes),
            }
            let pause = if input.below(8) == 7 { u64::from(input.u16()) } else { 0 };
            Some((bytes, pause))
        })?;
        let (bytes, pause) = bytes?;
        write.write_all(&bytes).await.ok()?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Reads whatever comes and answers with bytes, until there are none.
async fn serve_bytes(
    servers: &Servers,
    mut read: ReadHalf<DuplexStream>,
    mut write: WriteHalf<DuplexStream>,
) -> Option<()> {
    servers.said().anything = true;
    let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    while let Some((bytes, closes)) = servers.decide(|input| {
        let length = usize::from(input.byte());
        // 255 begins a new connection.
        (input.bytes(length).to_vec(), length == 255)
    }) {
        if write.write_all(&bytes).await.is_err() || closes {
            break;
        }
        tokio::task::yield_now().await;
    }
    reading.abort();
    Some(())
}

fn handshake(input: &mut Input<'_>) -> HandshakeResponse {
    const STATUSES: [HandshakeStatus; 4] = [
        HandshakeStatus::InvalidVdiskId,
        HandshakeStatus::InvalidRequest,
        HandshakeStatus::InternalServerError,
        HandshakeStatus::Ok,
    ];
    let status = STATUSES.get(input.below(12)).copied().unwrap_or(HandshakeStatus::Ok);
    let version =
        if input.below(8) == 7 { Version::from_wire(input.number() as u32) } else { Version::CURRENT };
    let refusal = Refusal::from_wire(input.below(8) as u8);
    let last_flushed = input.flag().then(|| Sequence(input.number()));
    let end = input
        .flag()
        .then(|| LogPosition { generation: Generation(input.number()), sequence: Sequence(input.number()) });
    HandshakeResponse { version, status, last_flushed, refusal, end }
}

fn response(input: &mut Input<'_>, received: &[Sequence], said: &mut Said) -> Response {
    const STATUSES: [BlockStatus; 6] = [
        BlockStatus::RecvOk,
        BlockStatus::FlushOk,
        BlockStatus::FlushOk,
        BlockStatus::RecvFailed,
        BlockStatus::FlushFailed,
        BlockStatus::WaitNbdSlaveSyncReceived,
    ];
    let status = STATUSES[input.below(STATUSES.len())];
    let sequences: Vec<Sequence> = match input.below(4) {
        0 => (0..input.below(4)).map(|_| Sequence(input.number())).collect(),
        1 => received.get(input.below(received.len())).copied().into_iter().collect(),
        2 => received.iter().take(input.below(256)).copied().collect(),
        _ => received.iter().rev().take(2).copied().collect(),
    };
    if status == BlockStatus::FlushOk {
        said.durable.extend(sequences.iter().copied());
    }
    Response { status, sequences }
}

/// A client from its beginning to its end.
pub(crate) fn play(input: &[u8], manner: Manner) {
    let mut input = Input::new(input);
    let how = input.byte();
    let first = Sequence(input.number());
    let length = input.below(64);
    let steps = input.bytes(length);
    let servers = Arc::new(Servers {
        manner,
        script: Mutex::new(input.bytes(LONGEST_SCRIPT).to_vec()),
        said: Mutex::default(),
    });
    let start = match how & 3 {
        0 => Start::Continue,
        1 => Start::Reset(first),
        _ => Start::At(first),
    };
    let options = ClientOptions {
        start,
        session: Some(SessionId(7)),
        max_unflushed_bytes: 4096,
        reconnect_deadline: Some(Duration::from_secs(30)),
        connect_deadline: Duration::from_secs(u64::from(how >> 6)),
        ..ClientOptions::default()
    };
    runtime().block_on(async {
        let vdisk = VdiskId::new("v").expect("a legal id");
        let connector = Arc::new(Scripted(Arc::clone(&servers)));
        let list = ["a:1", "b:2"];
        let Ok(client) = Client::connect_over(connector, list, vdisk, options).await else { return };
        let outcome = use_it(&client, &mut Input::new(steps)).await;
        client.close().await;
        let said = servers.said().clone();
        compare(&said, outcome, &client).await;
    });
}

/// What became of each block that was handed over: whether it is durable.
type Outcome = BTreeMap<Sequence, (Bytes, tokio::task::JoinHandle<bool>)>;

async fn use_it(client: &Client, steps: &mut Input<'_>) -> Outcome {
    let mut outcome = Outcome::new();
    while !steps.is_empty() {
        let soon = Duration::from_millis(1 << steps.below(16));
        match steps.below(6) {
            0..=2 => {
                let index = BlockIndex::new(steps.below(9) as u64).unwrap_or_default();
                let data = Bytes::from(vec![steps.byte(); 1 + steps.below(200)]);
                if let Ok(Ok(durable)) = timeout(soon, client.set(index, data.clone())).await {
                    let sequence = durable.sequence();
                    let waits = tokio::spawn(async move { durable.await.is_ok() });
                    assert!(outcome.insert(sequence, (data, waits)).is_none(), "{sequence} was there before");
                }
            }
            3 => drop(timeout(soon, client.flush()).await),
            4 => drop(client.wait_nbd_slave_sync(soon).await),
            _ => drop(timeout(soon, client.durable_up_to(Sequence(steps.number()))).await),
        }
        tokio::task::yield_now().await;
        let _ = (client.stats(), client.ending());
    }
    outcome
}

async fn compare(said: &Said, outcome: Outcome, client: &Client) {
    let given_back: BTreeMap<Sequence, Block> =
        client.unflushed().await.into_iter().map(|block| (block.sequence, block)).collect();
    for (sequence, (data, waits)) in outcome {
        let durable = waits.await.expect("it does not panic");
        let block = given_back.get(&sequence);
        assert_eq!(durable, block.is_none(), "{sequence} is durable or given back");
        assert!(block.is_none_or(|block| block.data == data), "{sequence} is given back as it was");
        let was_said = said.anything
            || said.durable.contains(&sequence)
            || said.durable_to.is_some_and(|to| sequence <= to);
        assert!(!durable || was_said, "{sequence} is durable, and no server has said so");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // The client: a block is a deadline, what, an index, a byte and a length; a flush a deadline and what.
    let steps: &[u8] = &[10, 0, 1, 7, 9, 10, 1, 2, 8, 9, 10, 0, 1, 9, 9, 14, 3];
    // A handshake: that there is a server, status, version, refusal, last flushed, end.
    let accepts: &[u8] = &[2, 4, 0, 0, 0, 1, 0, 0];
    let refuses: &[u8] = &[2, 1, 0, 2, 0, 0];
    let nothing: &[u8] = &[0, 0];
    let received: &[u8] = &[3, 0, 3, 0];
    let durable: &[u8] = &[3, 1, 2, 255, 0];
    let closes: &[u8] = &[1];
    let of = |how: u8, script: &[&[u8]]| [&[how, 1, steps.len() as u8], steps, &script.concat()[..]].concat();
    vec![
        of(2, &[accepts, nothing, received, received, nothing, durable, durable]),
        of(2, &[refuses, accepts, received, durable]),
        of(2, &[accepts, received, closes, &[2, 4, 0, 0, 1, 2, 1, 1, 2], received, durable, durable]),
        of(0, &[&[2, 4, 0, 0, 1, 0, 1, 0, 0], accepts, durable, durable]),
        of(1, &[accepts, &[2, 5, 1, 2, 3, 4, 5, 0], accepts, durable]),
        of(2, &[accepts, &[3, 1, 0, 2, 1, 0xf0, 0], &[3, 3, 3, 0], &[3, 4, 2, 9, 0], accepts, durable]),
    ]
}
