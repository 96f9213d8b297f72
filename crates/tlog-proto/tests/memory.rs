//! Memory is taken for bytes that have arrived, never for what a peer merely claims.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
#![allow(unsafe_code, reason = "an allocator that counts cannot be written without")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::{bytes_of, message_of_words, set};
use tlog_proto::{Aggregation, FrameReader, Limits, Response};
use tokio::io::AsyncWriteExt;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most that it ever was.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; counting touches no memory but this thread's cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn count(bytes: isize) {
    // A thread that is ending has no cell any more.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        taken.set((now + bytes, most.max(now + bytes)));
    });
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that this thread had at any time during `run`, above what it had before.
fn most_memory_of(run: impl FnOnce()) -> usize {
    let before = TAKEN.with(|taken| {
        let (now, _) = taken.get();
        taken.set((now, now));
        now
    });
    run();
    let (_, most) = TAKEN.with(Cell::get);
    (most - before) as usize
}

#[test]
fn the_counting_allocator_counts() {
    let most = most_memory_of(|| drop(std::hint::black_box(vec![1_u8; 1 << 20])));
    assert!((1 << 20..2 << 20).contains(&most), "{most}");
}

#[test]
fn a_reader_takes_memory_for_what_has_arrived() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let largest = bytes_of(|out| set(1, 2, 3, vec![1; 16 << 20]).encode_into(out));
    // A message of 16 MiB is announced, and so much of it arrives.
    for arrives in [9, 1000, 100_000, 1_000_000, 10_000_000] {
        let most = most_memory_of(|| {
            let mut frames = FrameReader::new(&largest[..arrives], Limits::default());
            runtime.block_on(frames.client_message()).unwrap_err();
        });
        // Twice what has arrived; while the buffer grows the old one is there too.
        let bound = 3 * arrives.max(64 << 10) + (64 << 10);
        assert!(most <= bound, "{arrives} bytes arrived, {most} were taken");
    }
}

#[test]
fn who_begins_a_handshake_and_says_no_more_gets_little_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let most = most_memory_of(|| {
        let mut frames = FrameReader::new(&[0, 0, 0, 0, 8][..], Limits::default());
        runtime.block_on(frames.handshake_request()).unwrap_err();
    });
    assert!(most <= 1 << 10, "{most}");
}

#[test]
fn a_reader_takes_no_memory_for_a_message_that_is_too_large() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let most = most_memory_of(|| {
        runtime.block_on(async {
            let (mut peer, stream) = tokio::io::duplex(1 << 10);
            let table = [[0; 4], u32::MAX.to_le_bytes()].concat();
            peer.write_all(&[&[1], &table[..]].concat()).await.unwrap();
            FrameReader::new(stream, Limits::default()).client_message().await.unwrap_err();
        });
    });
    assert!(most < 128 << 10, "{most}");
}

#[test]
fn a_reader_gives_the_memory_of_a_large_message_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut stream = bytes_of(|out| set(1, 2, 3, vec![1; 16 << 20]).encode_into(out));
    stream.extend(bytes_of(|out| set(2, 2, 3, vec![1; 10]).encode_into(out)));
    let mut frames = FrameReader::new(&stream[..], Limits::default());
    runtime.block_on(frames.client_message()).unwrap().unwrap();
    runtime.block_on(frames.client_message()).unwrap().unwrap();
    // The large buffer goes when the next read begins.
    let before = TAKEN.with(Cell::get).0;
    assert_eq!(runtime.block_on(frames.client_message()).unwrap(), None);
    let after = TAKEN.with(Cell::get).0;
    assert!(before - after > 16 << 20, "{before} before, {after} after");
}

/// Memory that blocks keep which were read and are all held, and what the reader says it has taken from the stream.
fn kept_by_blocks(messages: &[Vec<u8>], all_at_once: bool) -> (usize, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stream = messages.concat();
    let mut blocks = Vec::with_capacity(messages.len());
    let before = TAKEN.with(Cell::get).0;
    let taken = runtime.block_on(async {
        if all_at_once {
            let mut frames = FrameReader::new(&stream[..], Limits::default());
            while let Some(message) = frames.client_message().await.unwrap() {
                blocks.push(message);
            }
            return frames.taken();
        }
        let (mut peer, own) = tokio::io::duplex(1 << 20);
        let mut frames = FrameReader::new(own, Limits::default());
        for message in messages {
            peer.write_all(message).await.unwrap();
            blocks.push(frames.client_message().await.unwrap().unwrap());
        }
        frames.taken()
    });
    let kept = (TAKEN.with(Cell::get).0 - before) as usize;
    assert_eq!(blocks.len(), messages.len());
    blocks.clear();
    assert_eq!(TAKEN.with(Cell::get).0, before, "nothing keeps it but the blocks");
    (kept, taken)
}

#[test]
fn blocks_that_share_a_buffer_keep_little_more_than_what_the_reader_says() {
    let check = |lengths: &[usize], count: usize, most: f64| {
        let one = |at: usize| vec![7; lengths[at % lengths.len()]];
        let messages: Vec<Vec<u8>> =
            (0..count).map(|at| bytes_of(|out| set(at as u64, 2, 3, one(at)).encode_into(out))).collect();
        for all_at_once in [true, false] {
            let (kept, taken) = kept_by_blocks(&messages, all_at_once);
            assert_eq!(taken as usize, messages.concat().len());
            let bound = (taken as f64 * most) as usize + (64 << 10);
            assert!(kept <= bound, "{lengths:?}: {kept} are kept of {taken}, all at once: {all_at_once}");
        }
    };
    check(&[1], 10_000, 1.35);
    check(&[512], 2000, 1.35);
    check(&[4096], 500, 1.35);
    check(&[4096, 59_000], 60, 3.0);
    check(&[1, 64 << 10], 40, 3.0);
    check(&[4096, 100_000], 40, 3.0);
}

#[test]
fn decoders_take_no_memory_for_the_elements_that_a_list_claims() {
    const MOST: u64 = (1 << 29) - 1;
    const STRUCTS: u64 = 1 | 7 << 32;
    const VOID: u64 = 1 | MOST << 35;
    let tag = MOST << 2;
    let responses = [vec![1 << 32 | 1 << 48, 2, VOID], vec![1 << 32 | 1 << 48, 2, STRUCTS, tag]];
    let root = 2 << 32 | 4 << 48;
    let aggregations =
        [vec![root, MOST, 0, 0, 0, VOID | 1 << 2, 0], vec![root, MOST, 0, 0, 0, STRUCTS | 1 << 2, 0, tag]];
    for words in responses {
        let message = message_of_words(&words);
        let most = most_memory_of(|| drop(Response::decode(&message).unwrap_err()));
        assert!(most < 16 << 10, "{most}");
    }
    for words in aggregations {
        let message = message_of_words(&words);
        let most = most_memory_of(|| drop(Aggregation::decode(&message).unwrap_err()));
        assert!(most < 16 << 10, "{most}");
    }
}
