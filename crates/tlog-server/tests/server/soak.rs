//! Many clients at once, on several threads, that lose their connections all the time.

use std::collections::BTreeSet;

use tlog_proto::{BlockStatus, HandshakeStatus};

use crate::support::client::block_of;
use crate::support::*;

/// Writes blocks 1 to `count`, a little out of order, and comes back whenever its connection is gone.
async fn write_all(addr: std::net::SocketAddr, vdisk: String, session: u64, count: u64) {
    let mut kept: BTreeSet<u64> = (1..=count).collect();
    let mut round = 0;
    while let Some(&first) = kept.first() {
        round += 1;
        let (mut client, response) = Client::greet(addr, handshake(&vdisk, session, first)).await;
        assert_eq!(response.status, HandshakeStatus::Ok);
        if let Some(last_flushed) = response.last_flushed {
            kept.retain(|&sequence| sequence > last_flushed.0);
        }
        let mut batch: Vec<u64> = kept.iter().copied().take(120).collect();
        batch.chunks_mut(7).for_each(|chunk| chunk.reverse());
        let Some(&last) = batch.iter().max() else { break };
        client.sends(batch.iter().map(|&sequence| block_of(sequence, 1000))).await;
        if round % 3 == 0 {
            continue; // gone before anything was heard
        }
        client.asks_to_flush(last).await;
        let mut missing: BTreeSet<u64> = batch.into_iter().collect();
        while !missing.is_empty() {
            let (status, sequences) = client.hears().await;
            match status {
                BlockStatus::FlushOk => sequences.iter().for_each(|sequence| {
                    missing.remove(sequence);
                    kept.remove(sequence);
                }),
                // There was no room for it ahead of its turn.
                BlockStatus::RecvFailed => client.sends([block_of(sequences[0], 1000)]).await,
                status => assert!(!status.is_error(), "{status} {sequences:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_that_come_and_go_lose_nothing_and_store_nothing_twice() {
    let mut settings = small();
    settings.max_unflushed_bytes = 40 << 10;
    settings.max_total_unflushed_bytes = 80 << 10;
    settings.max_total_window_bytes = 128 << 10;
    settings.vdisk_idle = std::time::Duration::from_millis(1);
    let server = Running::with(settings).await;
    let clients: Vec<_> =
        (1..=12).map(|n| tokio::spawn(write_all(server.addr, format!("vd{n}"), n, 600))).collect();
    for client in clients {
        soon(client).await.unwrap();
    }
    let logs = server.logs.clone();
    assert!(server.stop().await.all_durable());
    for n in 1..=12 {
        let expected: Vec<_> = (1..=600).map(|sequence| (1, sequence)).collect();
        assert_eq!(logs.disk(&format!("vd{n}")).durable(), expected);
    }
}
