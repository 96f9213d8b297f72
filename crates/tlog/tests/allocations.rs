//! What a block costs in allocations on its way through a server: from the connection into the stores, in steady state.
//!
//! A block is a part of the buffer that it was read into, and waits in queues that are there already. What is taken for it alone is taken
//! a hundred thousand times a second.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tlog::service::Service;
use tlog::settings::{Settings, SettingsArgs};
use tlog_proto::{
    Block, BlockIndex, BlockStatus, FrameReader, HandshakeRequest, HandshakeStatus, Limits, Sequence,
    SessionId, Timestamp, VdiskId,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;

/// Most allocations of a block, in aggregations of so many. None is taken for a block alone. What an aggregation takes for itself - buffers,
/// shards for six stores - is shared by its blocks, and what is taken each time that something has arrived by those that did. A little more than
/// it is now: what has become less is to be written down here.
const LIMITS: [(usize, f64); 2] = [(25, 2.75), (250, 0.85)];

/// Blocks that are sent before anything is counted, and then once and twice: the difference is what so many cost.
const BLOCKS: u64 = 5000;

/// Blocks that are sent together and waited for.
const TOGETHER: u64 = 250;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static FOLLOWED: AtomicBool = AtomicBool::new(false);
static PLACES: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread takes is not of the server, or is taken to follow what is.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; counting touches no memory but counters, and following one does not follow itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that is ending has no cell any more, and is none of those that serve.
    let _ = IS_OURS.try_with(|is_ours| {
        if is_ours.get() {
            return;
        }
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if FOLLOWED.load(Ordering::Relaxed) {
            is_ours.set(true);
            PLACES.lock().unwrap().push(Backtrace::force_capture());
            is_ours.set(false);
        }
    });
}

/// Does what it is told without being counted: the client, beside the server on one thread, so that the same happens each time.
struct Uncounted<F>(Pin<Box<F>>);

impl<F: Future> Future for Uncounted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        IS_OURS.set(true);
        let polled = self.0.as_mut().poll(context);
        IS_OURS.set(false);
        polled
    }
}

/// A client that sends bytes made before.
struct Client {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    wire: Vec<u8>,
    /// Where in it the sequences stand.
    sequences: Vec<usize>,
    sent: u64,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(read, Limits::default());
        let (mut wire, mut sequences) = (Vec::new(), Vec::new());
        for number in 0..TOGETHER {
            let data = Bytes::from(vec![number as u8; 4096]);
            let [message, other] = [0, u64::MAX].map(|sequence| {
                let index = BlockIndex::new(number).unwrap();
                let mut message = BytesMut::new();
                Block::set(Sequence(sequence), index, Timestamp(1), data.clone()).encode_into(&mut message);
                message
            });
            let differs = message.iter().zip(&other).position(|(one, other)| one != other).unwrap();
            sequences.push(wire.len() + differs);
            wire.extend_from_slice(&message);
        }
        let mut hello = BytesMut::new();
        let request = HandshakeRequest::new(VdiskId::new("vda").unwrap(), Sequence(1));
        HandshakeRequest { session: SessionId(1), ..request }.encode_into(&mut hello);
        writer.write_all(&hello).await.unwrap();
        let answer = reader.handshake_response().await.unwrap().unwrap();
        assert_eq!(answer.status, HandshakeStatus::Ok);
        Self { reader, writer, wire, sequences, sent: 0 }
    }

    /// Sends so many, some at a time, and waits until each of those is durable.
    async fn write(&mut self, blocks: u64) {
        for _ in 0..blocks / TOGETHER {
            for &at in &self.sequences {
                self.sent += 1;
                (&mut self.wire[at..]).put_u64_le(self.sent);
            }
            self.writer.write_all(&self.wire).await.unwrap();
            loop {
                let response = self.reader.response().await.unwrap().unwrap();
                assert!(matches!(response.status, BlockStatus::RecvOk | BlockStatus::FlushOk));
                let last = Sequence(self.sent);
                if response.status == BlockStatus::FlushOk && response.sequences.contains(&last) {
                    break;
                }
            }
        }
    }

    async fn allocations_of(&mut self, blocks: u64) -> u64 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        self.write(blocks).await;
        ALLOCATIONS.load(Ordering::Relaxed) - before
    }
}

/// Starts a server on six stores in memory, which ends with the runtime.
async fn serve(flush_size: usize, key_file: &Path, admin: bool) -> SocketAddr {
    let mut args = SettingsArgs::default()
        .with("listen", "127.0.0.1:0")
        .with("storage", ["memory:"; 6].join(","))
        .with("key-file", key_file.to_str().unwrap())
        .with("flush-size", flush_size.to_string());
    if admin {
        args = args.with("admin-listen", "127.0.0.1:0");
    }
    let service = Service::start(&Settings::from_flags(&args).unwrap()).await.unwrap();
    let address = service.address();
    tokio::spawn(service.run(CancellationToken::new()));
    address
}

/// Where memory is taken: the innermost function of ours, and how often for each block.
async fn places(client: &mut Client) -> String {
    FOLLOWED.store(true, Ordering::Relaxed);
    client.write(TOGETHER * 4).await;
    FOLLOWED.store(false, Ordering::Relaxed);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for place in PLACES.lock().unwrap().drain(..) {
        *counts.entry(of_ours(&place.to_string())).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let line =
        |(place, count): (String, u64)| format!("{:8.3}  {place}\n", count as f64 / (TOGETHER * 4) as f64);
    counts.into_iter().take(40).map(line).collect()
}

/// Names of the functions from the one that takes memory to the first of this project's.
fn of_ours(backtrace: &str) -> String {
    let names = backtrace.lines().filter_map(|line| line.trim().split_once(": "));
    let names = names.map(|(_, name)| name).filter(|name| !name.starts_with("at "));
    let names: Vec<&str> =
        names.skip_while(|name| !name.contains("__rust") && !name.contains("alloc::alloc")).collect();
    let end = names.iter().position(|name| name.contains("tlog")).map_or(names.len().min(12), |at| at + 2);
    names.iter().take(end).rev().take(4).copied().collect::<Vec<_>>().join(" < ")
}

/// Allocations of a block in steady state, and, where they are too many or somebody asks, where they are.
async fn measured(flush_size: usize, limit: f64, key_file: &Path, admin: bool) -> f64 {
    let mut client = Client::connect(serve(flush_size, key_file, admin).await).await;
    client.write(BLOCKS).await;
    let once = client.allocations_of(BLOCKS).await;
    let twice = client.allocations_of(2 * BLOCKS).await;
    let of_a_block = (twice as f64 - once as f64) / BLOCKS as f64;
    println!("flush-size {flush_size}: {of_a_block:.3} allocations a block, at most {limit}");
    if of_a_block > limit || std::env::var_os("TLOG_SHOW_ALLOCATIONS").is_some() {
        println!("so often for each block, and where:\n{}", places(&mut client).await);
    }
    of_a_block
}

/// `TLOG_SHOW_ALLOCATIONS=1 cargo test -p tlog --test allocations -- --nocapture` shows where they are.
#[test]
fn a_block_takes_few_allocations_on_its_way_into_the_stores_and_its_data_none() {
    let directory = tempfile::tempdir().unwrap();
    let key_file = directory.path().join("key");
    std::fs::write(&key_file, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut faults = String::new();
    for (at, (flush_size, limit)) in LIMITS.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Metrics are recorded by the first server, for all.
        let measuring = Uncounted(Box::pin(measured(flush_size, limit, &key_file, at == 0)));
        let of_a_block = runtime.block_on(measuring);
        if of_a_block > limit {
            faults +=
                &format!("flush-size {flush_size}: {of_a_block:.3} allocations a block, at most {limit}\n");
        }
        assert!(
            of_a_block > 0.3,
            "flush-size {flush_size}: {of_a_block:.3} allocations are not all there are"
        );
    }
    assert!(faults.is_empty(), "{faults}");
}
