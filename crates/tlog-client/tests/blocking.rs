//! The facade for callers without a runtime: what they do happens on plain threads, and the server is scripted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use scripted::{Peer, ScriptedServer, at, defaults, soon, starting_at, vdisk};
use tlog_client::blocking::{BlockingConnectError, Client};
use tlog_client::{
    AppendError, BLOCK_OVERHEAD, ClientOptions, ConnectError, EndCause, Event, SlaveSyncError,
};
use tlog_proto::{Block, BlockStatus, ClientMessage, Operation, Sequence, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::{RwLock, RwLockReadGuard, oneshot};

/// Threads are counted for the whole process: whoever makes some holds this for reading, who counts them for writing.
static THREADS: RwLock<()> = RwLock::const_new(());

/// Does something on a thread of its own, on which there is no runtime, and awaits what comes of it.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = oneshot::channel();
    let thread = thread::spawn(move || {
        assert!(Handle::try_current().is_err(), "no runtime");
        let _ = done.send(work());
    });
    match soon(outcome).await {
        Ok(answer) => answer,
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// A client, the server's end of its connection, and the right to have threads.
async fn connected(options: ClientOptions) -> (Client, Peer, RwLockReadGuard<'static, ()>) {
    let threads = THREADS.read().await;
    let (client, peer) = connected_by(options).await;
    (client, peer, threads)
}

async fn connected_by(options: ClientOptions) -> (Client, Peer) {
    let server = ScriptedServer::start().await;
    let addr = server.addr();
    let connect = on_a_thread(move || Client::connect(addr, vdisk(), options));
    let (client, peer) = tokio::join!(connect, server.accept_handshake());
    (client.unwrap(), peer)
}

/// Room for so many blocks of one byte.
fn room_for(blocks: usize) -> ClientOptions {
    ClientOptions { max_unflushed_bytes: blocks * (1 + BLOCK_OVERHEAD), ..defaults() }
}

#[tokio::test]
async fn blocks_are_handed_over_flushed_and_waited_for_without_a_runtime() {
    let (client, mut peer, _threads) = connected(defaults()).await;
    let work = on_a_thread(move || {
        let mut events = client.events();
        let first = client.set(at(0), vec![1]).unwrap();
        let second = client.delete(at(9)).unwrap();
        let own = Block::set(Sequence(3), at(2), Timestamp(77), Bytes::from_static(b"own"));
        let third = client.send(own).unwrap();
        assert_eq!((first.sequence(), third.sequence()), (Sequence(1), Sequence(3)));
        client.flush().unwrap();
        client.durable_up_to(Sequence(3)).unwrap();
        for handle in [first, second, third] {
            handle.wait().unwrap();
        }
        let Some(Event::Durable(durable)) = client.next_event(&mut events) else { panic!("no event") };
        assert_eq!(durable.to_string(), "1-3");
        client.wait_nbd_slave_sync(Duration::from_secs(3600)).unwrap();
        let late = client.wait_nbd_slave_sync(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(late, SlaveSyncError::TimedOut { .. }), "{late}");
        assert_eq!((client.stats().durable_blocks, client.stats().unflushed_blocks), (3, 0));
        assert!(client.unflushed().is_empty());
        client.close_after_flush().unwrap();
        assert!(client.next_event(&mut events).is_some_and(|event| matches!(event, Event::Ended(_))));
        assert!(client.next_event(&mut events).is_none());
    });
    let script = async {
        peer.expect_blocks(1..=2).await;
        assert_eq!(peer.expect_block(3).await.timestamp, Timestamp(77));
        peer.expect_force_flush(3).await;
        peer.ack_flush([1, 2, 3]).await;
        peer.expect_wait_slave_sync().await;
        peer.ack_slave_sync().await;
        peer.expect_wait_slave_sync().await; // and is not answered
        peer.expect_close().await;
    };
    tokio::join!(work, script);
}

#[tokio::test]
async fn at_the_bound_an_append_waits_until_there_is_room_and_goes_on() {
    let (client, mut peer, _threads) = connected(room_for(1)).await;
    let work = on_a_thread(move || {
        client.set(at(0), vec![0]).unwrap();
        let full = client.try_append(Operation::Set, at(1), vec![1]).unwrap_err();
        assert!(matches!(full, AppendError::Full), "{full}");
        let second = client.set(at(1), vec![1]).unwrap();
        assert_eq!(client.stats().durable_blocks, 1, "it has waited for the first");
        let own = Block::set(Sequence(3), at(2), Timestamp(77), Bytes::from_static(b"o"));
        let third = client.send(own).unwrap();
        second.wait().unwrap();
        assert_eq!(client.stats().durable_blocks, 2, "it has waited for the second");
        third.wait().unwrap();
    });
    let script = async {
        for sequence in 1..=2 {
            peer.expect_block(sequence).await;
            peer.expect_force_flush(sequence).await; // because somebody waits
            peer.ack_flush([sequence]).await;
        }
        peer.expect_block(3).await;
        peer.ack_flush([3]).await;
    };
    tokio::join!(work, script);
}

#[tokio::test]
async fn blocks_of_several_threads_get_sequences_without_gaps_and_all_become_durable() {
    const EACH: u64 = 100;
    const THREADS_AT_ONCE: u64 = 4;
    let (client, mut peer, _threads) = connected(room_for(8)).await;
    let work = on_a_thread(move || {
        let threads: Vec<_> = (0..THREADS_AT_ONCE)
            .map(|thread| {
                let client = client.clone();
                thread::spawn(move || {
                    for number in 0..EACH {
                        let durable = client.set(at(thread * EACH + number), vec![1]).unwrap();
                        if number % 10 == 0 {
                            durable.wait().unwrap();
                        }
                    }
                    client.flush().unwrap();
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        client.close()
    });
    let script = async {
        let mut seen = vec![false; (EACH * THREADS_AT_ONCE) as usize];
        let mut next = 1;
        while next <= EACH * THREADS_AT_ONCE {
            match peer.next_message().await {
                ClientMessage::Block(block) => {
                    assert_eq!(block.sequence, Sequence(next));
                    seen[block.index as usize] = true;
                    peer.respond(BlockStatus::FlushOk, [next]).await;
                    next += 1;
                }
                other => assert!(matches!(other, ClientMessage::ForceFlushAtSeq(_)), "{other:?}"),
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
        peer.until_closed().await;
    };
    let (ending, ()) = tokio::join!(work, script);
    assert!(ending.unacknowledged().is_empty(), "{ending}");
}

#[tokio::test]
async fn closing_ends_whatever_other_threads_wait_for_and_gives_the_blocks_back() {
    let (client, mut peer, _threads) = connected(room_for(1)).await;
    let (first, appends, flushes, waits) = (client.clone(), client.clone(), client.clone(), client.clone());
    let durable = on_a_thread(move || first.set(at(0), vec![7]).unwrap()).await;
    peer.expect_block(1).await;
    let handle = on_a_thread(move || durable.wait().unwrap_err());
    let append = on_a_thread(move || appends.set(at(1), vec![1]).unwrap_err());
    let flush = on_a_thread(move || flushes.flush().unwrap_err());
    let wait = on_a_thread(move || waits.durable_up_to(Sequence(9)).unwrap_err());
    let close = async {
        // Once for who waits for room, once for who flushes: by then both wait, and nothing is ever answered.
        peer.expect_force_flush(1).await;
        peer.expect_force_flush(1).await;
        on_a_thread(move || {
            let began = Instant::now();
            let ending = client.close();
            let took = began.elapsed();
            assert!(took < Duration::from_millis(100), "{took:?}");
            assert_eq!(client.unflushed().len(), 1);
            let refused = client.set(at(2), vec![2]).unwrap_err();
            assert!(matches!(refused, AppendError::Ended(_)), "{refused}");
            ending
        })
        .await
    };
    let (handle, append, flush, wait, ending) = tokio::join!(handle, append, flush, wait, close);
    assert!(matches!(ending.cause(), EndCause::Closed));
    assert_eq!(ending.unacknowledged().to_string(), "1");
    assert_eq!(handle.sequence, Sequence(1));
    assert!(matches!(append, AppendError::Ended(_)), "{append}");
    for ended in [handle.ending, flush, wait] {
        assert!(matches!(ended.cause(), EndCause::Closed), "{ended}");
    }
    peer.until_closed().await;
}

#[tokio::test]
async fn dropping_the_last_clone_closes_and_fails_the_handles_that_are_left() {
    let (client, mut peer, _threads) = connected(defaults()).await;
    let clone = client.clone();
    let durable = on_a_thread(move || clone.set(at(0), vec![7]).unwrap()).await;
    peer.expect_block(1).await;
    peer.ack_received(1).await;
    on_a_thread(move || drop(client)).await;
    peer.expect_close().await;
    let failed = on_a_thread(move || durable.wait().unwrap_err()).await;
    assert!(matches!(failed.ending.cause(), EndCause::Closed), "{failed}");
}

#[tokio::test]
async fn its_thread_ends_with_it_and_a_connect_that_fails_leaves_none() {
    let _alone = THREADS.write().await;
    let until_there_are = async |count: usize| {
        soon(async {
            while threads() != count {
                tokio::task::yield_now().await;
            }
        })
        .await
    };
    until_there_are(0).await;
    let (client, mut peer) = connected_by(defaults()).await;
    assert_eq!(threads(), 1);
    let (clone, durable) = on_a_thread(move || (client.clone(), client.set(at(0), vec![7]).unwrap())).await;
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    on_a_thread(move || clone.flush().unwrap()).await;
    assert_eq!(threads(), 1, "a handle may still be waited for");
    on_a_thread(move || durable.wait().unwrap()).await;
    until_there_are(0).await;
    peer.until_closed().await;

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = on_a_thread(move || Client::connect(nobody, vdisk(), starting_at(1)).unwrap_err()).await;
    assert!(matches!(&error, BlockingConnectError::Connect(ConnectError::Unreachable { .. })), "{error}");
    until_there_are(0).await;
}

/// How many of this process's threads belong to clients.
fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    // One that ends while it is looked at has no name any more.
    let names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "tlog-client").count()
}

#[tokio::test]
#[should_panic(expected = "Cannot start a runtime from within a runtime")]
async fn within_asynchronous_code_waiting_panics_and_does_not_hang() {
    let _threads = THREADS.read().await;
    let _ = Client::connect("127.0.0.1:1", vdisk(), defaults());
}
