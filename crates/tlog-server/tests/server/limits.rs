//! Memory is bounded, and what is bounded keeps moving.

use tlog_proto::BlockStatus;

use crate::support::client::block_of;
use crate::support::*;

const BLOCK: usize = 4096;

#[tokio::test]
async fn at_the_bound_of_a_vdisk_the_server_stops_reading_until_something_is_durable() {
    let (counters, _guard) = Counters::install();
    let server = Running::with(small()).await;
    let disk = server.logs.disk("vd");
    disk.hold();
    let mut bystander = Client::connect(server.addr, "bystander", 9, 1).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    let sent = client.sends_until_stuck((1..100_000).map(|sequence| block_of(sequence, BLOCK))).await;
    assert!(sent > 16, "at least what fits was taken");
    let status = server.server.status();
    assert!(status.unflushed_bytes <= 64 << 10, "{status:?}");
    assert!(disk.appended() <= (64 << 10) / BLOCK, "{} are held", disk.appended());
    assert!(counters.get("tlog_server_backpressure_total") > 0);
    bystander.works(1).await;
    // It asks for a flush by itself: without one there would never be room again.
    assert!(*disk.flushes.borrow() > 0);
    // All but the last few, which are not enough to be in anybody's way.
    disk.release();
    client.hears_flushed(1..=sent as u64 - 16).await;
}

#[tokio::test]
async fn at_the_bound_of_all_vdisks_those_who_hold_memory_flush() {
    let mut settings = small();
    settings.max_total_unflushed_bytes = settings.max_unflushed_bytes;
    let server = Running::with(settings).await;
    // Nobody asks for a flush. The first one fills three quarters and falls silent.
    let mut first = Client::connect(server.addr, "first", 7, 1).await;
    first.sends((1..=11).map(|sequence| block_of(sequence, BLOCK))).await;
    first.hears_recv_ok(1..=11).await;
    let mut second = Client::connect(server.addr, "second", 8, 1).await;
    second.sends((1..=11).map(|sequence| block_of(sequence, BLOCK))).await;
    first.hears_flush_ok(1..=11).await;
    let mut received = std::collections::BTreeSet::new();
    while received.len() < 11 {
        let (status, sequences) = second.hears().await;
        if status == BlockStatus::RecvOk {
            received.extend(sequences);
        }
    }
}

#[tokio::test]
async fn a_log_that_is_full_holds_up_its_own_connection_only() {
    let server = Running::with(small()).await;
    let disk = server.logs.disk("vd");
    disk.set_full(true);
    let mut bystander = Client::connect(server.addr, "bystander", 9, 1).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends((1..=40).map(|sequence| block_of(sequence, BLOCK))).await;
    client.hears_recv_ok(1..=10).await;
    bystander.works(1).await;
    assert_eq!(disk.appended(), 0);
    // Even now the client can come back.
    let (mut client2, _) = Client::greet(server.addr, back("vd", 7, 1)).await;
    disk.set_full(false);
    client2.sends((1..=40).map(|sequence| block_of(sequence, BLOCK))).await;
    client2.asks_to_flush(40).await;
    client2.hears_flushed(1..=40).await;
    assert_eq!(disk.durable().len(), 40);
}

#[tokio::test]
async fn what_is_too_far_ahead_or_does_not_fit_is_refused_and_taken_when_sent_again() {
    let (counters, _guard) = Counters::install();
    let server = Running::with(small()).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends([block(65)]).await;
    client.hears_recv_failed(65).await;
    assert_eq!(counters.get("tlog_server_blocks_refused_total{too_far_ahead}"), 1);
    // 32 KiB take seven of 4096 + 256 bytes.
    client.sends((2..=9).map(|sequence| block_of(sequence, BLOCK))).await;
    client.hears_recv_ok(2..=8).await;
    client.hears_recv_failed(9).await;
    assert_eq!(counters.get("tlog_server_blocks_refused_total{window_full}"), 1);
    let status = server.server.status();
    assert_eq!(status.vdisks[0].window_blocks, 7);
    assert!(status.window_bytes <= 32 << 10 && status.unflushed_bytes == 0, "{status:?}");
    client.sends([block_of(1, BLOCK), block_of(9, BLOCK)]).await;
    client.hears_recv_ok([1, 9]).await;
    client.asks_to_flush(9).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.hears_flush_ok(1..=9).await;
    server.until(|status| status.window_bytes == 0 && status.unflushed_bytes == 0).await;
}

#[tokio::test]
async fn windows_full_of_blocks_that_wait_for_ever_hold_up_nobody_who_sends_in_order() {
    let (counters, _guard) = Counters::install();
    let server = Running::with(small()).await;
    let mut hoarders = Vec::new();
    for vdisk in ["a", "b", "c"] {
        let mut client = Client::connect(server.addr, vdisk, 7, 1).await;
        client.sends((2..=8).map(|sequence| block_of(sequence, BLOCK))).await;
        for _ in 2..=8 {
            client.hears().await;
        }
        hoarders.push(client);
    }
    assert!(counters.get("tlog_server_blocks_refused_total{all_windows_full}") > 0);
    assert!(server.server.status().window_bytes <= 64 << 10);
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends((1..=100).map(|sequence| block_of(sequence, BLOCK))).await;
    client.asks_to_flush(100).await;
    client.hears_flushed(1..=100).await;
    drop(hoarders);
    server.until(|status| status.window_bytes == 0).await;
}

#[tokio::test]
async fn a_block_that_is_hashed_elsewhere_is_answered_like_any_other() {
    let server = Running::start().await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends([block_of(1, 3 << 20), block_of(2, 16 << 20)]).await;
    client.hears_recv_ok([1, 2]).await;
}
