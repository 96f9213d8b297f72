//! Connections, generations, force flush, slave sync, failing logs.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tlog_proto::{BlockStatus, ClientMessage, HandshakeStatus, LogPosition, Sequence, VdiskId};
use tlog_server::{CloseReason, Server, ServerSettings, SlaveSync, SlaveSyncError, SlaveSyncOutcome};
use tokio::sync::watch;

use crate::support::*;

#[tokio::test]
async fn each_block_is_answered_by_itself_and_what_is_flushed_together_together() {
    let server = Running::start().await;
    let mut client = Client::connect(server.addr, "vd", 7, 10).await;
    client.sends_blocks([10, 12, 11, 13]).await;
    client.hears_recv_ok([10, 12, 11, 13]).await;
    client.asks_to_flush(12).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.hears_flush_ok(10..=13).await;
    client.sends_blocks([13, 14]).await;
    client.hears_flush_ok([13]).await;
    client.hears_recv_ok([14]).await;
    let status = server.server.status();
    let vdisk = &status.vdisks[0];
    let position =
        |sequence| LogPosition { generation: tlog_proto::Generation(1), sequence: Sequence(sequence) };
    assert_eq!((vdisk.received, vdisk.ordered), (Some(Sequence(14)), Some(position(14))));
    assert_eq!((vdisk.durable, vdisk.open), (Some(position(13)), true));
    assert!(vdisk.peer.is_some() && vdisk.unflushed_bytes > 64 && vdisk.last_error.is_none());
}

#[tokio::test]
async fn a_stream_that_was_accepted_elsewhere_is_served_like_a_connection() {
    let server = Server::new(ServerSettings::default(), Arc::new(MemoryLogs::default()), None).unwrap();
    let (ours, theirs) = tokio::io::duplex(4096);
    server.serve_stream(theirs, "10.0.0.1:7".parse().unwrap());
    let mut client = Client::over(ours);
    client.say_hello(handshake("vd", 7, 1)).await;
    assert_eq!(client.hears_handshake().await.status, HandshakeStatus::Ok);
    client.sends_blocks(1..=3).await;
    client.hears_recv_ok(1..=3).await;
    client.asks_to_flush(3).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.hears_flush_ok(1..=3).await;
    assert_eq!(server.status().vdisks[0].peer, Some("10.0.0.1:7".parse().unwrap()));
    let report = server.stop().await;
    assert!(report.all_durable() && report.vdisks.len() == 1, "{report:?}");
    client.sees_the_end().await;
}

#[tokio::test]
async fn a_later_block_does_not_make_a_force_flush_miss_its_own() {
    let server = Running::start().await;
    server.logs.disk("vd").hold();
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.asks_to_flush(2).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.sends_blocks(1..=5).await;
    client.hears_recv_ok(1..=5).await;
    server.logs.disk("vd").release();
    client.hears_flush_ok([1, 2]).await;
}

#[tokio::test]
async fn a_new_connection_takes_over_and_the_old_one_is_closed() {
    let server = Running::start().await;
    let mut old = Client::connect(server.addr, "vd", 7, 1).await;
    old.sends_blocks(1..=3).await;
    old.hears_recv_ok(1..=3).await;
    let (mut new, _) = Client::greet(server.addr, back("vd", 7, 1)).await;
    old.sees_the_end().await;
    new.sends_blocks([2]).await;
    new.hears_recv_ok([2]).await;
    new.asks_to_flush(2).await;
    new.hears_just(BlockStatus::ForceFlushReceived).await;
    new.hears_flush_ok([2]).await;
    assert_eq!(server.logs.disk("vd").durable(), [(1, 1), (1, 2), (1, 3)]);
}

#[tokio::test]
async fn answers_go_only_to_the_connection_they_are_for() {
    let server = Running::start().await;
    let mut one = Client::connect(server.addr, "one", 7, 1).await;
    let mut two = Client::connect(server.addr, "two", 8, 100).await;
    one.sends_blocks([1, 2]).await;
    two.sends_blocks([100]).await;
    one.hears_recv_ok([1, 2]).await;
    two.hears_recv_ok([100]).await;
    one.asks_to_flush(2).await;
    one.hears_just(BlockStatus::ForceFlushReceived).await;
    one.hears_flush_ok([1, 2]).await;
    two.asks_to_flush(100).await;
    two.hears_just(BlockStatus::ForceFlushReceived).await;
    two.hears_flush_ok([100]).await;
}

#[tokio::test]
async fn a_client_that_comes_back_hears_what_is_durable_and_sends_the_rest_again() {
    let server = Running::start().await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks(1..=2).await;
    client.asks_to_flush(2).await;
    client.hears_flushed(1..=2).await;
    client.sends_blocks(3..=4).await;
    client.hears_recv_ok(3..=4).await;
    drop(client);
    let (mut client, response) = Client::greet(server.addr, back("vd", 7, 2)).await;
    assert_eq!((response.status, response.last_flushed), (HandshakeStatus::Ok, Some(Sequence(2))));
    client.sends_blocks(2..=5).await;
    client.hears_flush_ok([2]).await;
    client.hears_recv_ok(3..=5).await;
    client.asks_to_flush(5).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.hears_flush_ok(3..=5).await;
    assert_eq!(server.logs.disk("vd").durable().len(), 5);
}

#[tokio::test]
async fn another_client_that_starts_over_starts_a_generation_once_it_sends() {
    let server = Running::start().await;
    let mut first = Client::connect(server.addr, "vd", 7, 1).await;
    first.sends_blocks(1..=3).await;
    first.hears_recv_ok(1..=3).await;
    let (silent, response) = Client::greet(server.addr, handshake("vd", 8, 1)).await;
    assert_eq!((response.status, response.last_flushed), (HandshakeStatus::Ok, None));
    assert_eq!(server.logs.disk("vd").durable().len(), 3, "what was ordered is flushed first");
    drop(silent);
    let (_, response) = Client::greet(server.addr, handshake("vd", 7, 4)).await;
    assert_eq!(response.last_flushed, Some(Sequence(3)), "who sent nothing changed nothing");
    let mut second = Client::connect(server.addr, "vd", 8, 1).await;
    second.works(1).await;
    assert_eq!(server.logs.disk("vd").durable(), [(1, 1), (1, 2), (1, 3), (2, 1)]);
}

#[tokio::test]
async fn without_a_session_every_block_is_compared_with_the_log() {
    let logs = closed_log().await;
    let server = Running::with_all(ServerSettings::default(), Arc::clone(&logs), None).await;
    let disk = logs.disk("vd");
    disk.stop_finds();

    let mut client = Client::connect(server.addr, "vd", 0, 3).await;
    client.sends_blocks([3, 4]).await;
    client.sends([another(5), block(6)]).await;
    disk.allow_finds(1);
    client.hears_flush_ok([3]).await;
    disk.allow_finds(2);
    client.hears_flush_ok([4]).await;
    client.hears_recv_ok([5, 6]).await;
    client.asks_to_flush(6).await;
    client.hears_just(BlockStatus::ForceFlushReceived).await;
    client.hears_flush_ok([5, 6]).await;
    assert_eq!(disk.durable()[3..], [(1, 4), (1, 5), (2, 5), (2, 6)]);
}

/// The log of "vd" with blocks 1 to 5 of a client without a session, closed.
async fn closed_log() -> Arc<MemoryLogs> {
    let server = Running::start().await;
    let mut client = Client::connect(server.addr, "vd", 0, 1).await;
    client.sends_blocks(1..=5).await;
    client.hears_recv_ok(1..=5).await;
    let logs = Arc::clone(&server.logs);
    assert!(server.stop().await.all_durable());
    logs
}

/// Another block under the same sequence.
fn another(sequence: u64) -> tlog_proto::Block {
    client::block_of(sequence, 65)
}

#[tokio::test]
async fn a_gap_is_refused_and_tells_where_the_log_goes_on() {
    let (counters, _guard) = Counters::install();
    let server = Running::start().await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks(1..=3).await;
    client.hears_recv_ok(1..=3).await;
    for first in [5, u64::MAX] {
        let (mut asking, response) = Client::greet(server.addr, handshake("vd", 7, first)).await;
        assert_eq!(response.status, HandshakeStatus::InternalServerError);
        assert_eq!(response.last_flushed, Some(Sequence(3)), "what was ordered is durable by now");
        asking.sees_the_end().await;
    }
    // Asking with the highest sequence is how a client learns where the log ends: no mistake of its own.
    assert_eq!(counters.get("tlog_server_handshakes_refused_total{gap}"), 1);
    client.hears_flush_ok(1..=3).await;
    client.works(4).await;
}

#[tokio::test]
async fn a_reset_starts_over_where_it_likes_after_everything_is_durable() {
    let server = Running::start().await;
    let mut old = Client::connect(server.addr, "vd", 7, 1).await;
    old.sends_blocks([1, 2, 4]).await;
    old.hears_recv_ok([1, 2, 4]).await;
    let reset =
        |first| tlog_proto::HandshakeRequest { reset_first_sequence: true, ..handshake("vd", 7, first) };
    let (mut client, response) = Client::greet(server.addr, reset(100)).await;
    assert_eq!((response.status, response.last_flushed), (HandshakeStatus::Ok, None));
    assert_eq!(server.logs.disk("vd").durable(), [(1, 1), (1, 2)]);
    client.works(100).await;
    let (mut client, _) = Client::greet(server.addr, reset(101)).await;
    client.works(101).await;
    assert_eq!(server.logs.disk("vd").durable(), [(1, 1), (1, 2), (2, 100), (2, 101)]);
}

/// A slave that follows when it is told to.
struct Slave {
    asked: Mutex<Vec<Option<LogPosition>>>,
    outcome: watch::Sender<Option<Result<SlaveSyncOutcome, String>>>,
}

impl Slave {
    fn new() -> Arc<Self> {
        Arc::new(Self { asked: Mutex::default(), outcome: watch::Sender::new(None) })
    }
}

#[async_trait]
impl SlaveSync for Slave {
    async fn wait_and_stop(
        &self,
        _: &VdiskId,
        position: Option<LogPosition>,
    ) -> Result<SlaveSyncOutcome, SlaveSyncError> {
        self.asked.lock().unwrap().push(position);
        let mut outcome = self.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        outcome.map_err(|error| SlaveSyncError(error.into()))
    }
}

#[tokio::test]
async fn waiting_for_the_slave_is_about_what_was_flushed_before_and_holds_up_nothing() {
    let slave = Slave::new();
    let server = Running::with_all(ServerSettings::default(), Arc::default(), Some(slave.clone())).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.works(1).await;
    client.sends_blocks([2]).await;
    client.sends([ClientMessage::WaitNbdSlaveSync, ClientMessage::WaitNbdSlaveSync]).await;
    client.hears_recv_ok([2]).await;
    client.sends_blocks([3]).await;
    client.asks_to_flush(3).await;
    client.hears_flushed([2, 3]).await;
    slave.outcome.send_replace(Some(Ok(SlaveSyncOutcome::Synced)));
    client.hears_just(BlockStatus::WaitNbdSlaveSyncReceived).await;
    client.hears_just(BlockStatus::WaitNbdSlaveSyncReceived).await;
    let asked = slave.asked.lock().unwrap().clone();
    // The second one too: after the first the slave is stopped, and holds no more.
    let at =
        |sequence| Some(LogPosition { generation: tlog_proto::Generation(1), sequence: Sequence(sequence) });
    assert_eq!(asked, [at(1), at(1)]);
}

#[tokio::test]
async fn without_a_slave_the_answer_comes_at_once() {
    let slave = Slave::new();
    slave.outcome.send_replace(Some(Ok(SlaveSyncOutcome::NoSlave)));
    for slave in [None, Some(slave as Arc<dyn SlaveSync>)] {
        let server = Running::with_all(ServerSettings::default(), Arc::default(), slave).await;
        let mut client = Client::connect(server.addr, "vd", 7, 1).await;
        client.sends([ClientMessage::WaitNbdSlaveSync]).await;
        client.hears_just(BlockStatus::WaitNbdSlaveSyncReceived).await;
    }
}

#[tokio::test]
async fn a_slave_that_cannot_be_brought_up_to_date_ends_the_connection_and_not_the_vdisk() {
    let slave = Slave::new();
    slave.outcome.send_replace(Some(Err("no slave store answers".to_owned())));
    let server = Running::with_all(ServerSettings::default(), Arc::default(), Some(slave)).await;
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.works(1).await;
    client.sends([ClientMessage::WaitNbdSlaveSync]).await;
    client.sees_the_end().await;
    let mut client = Client::connect(server.addr, "vd", 7, 2).await;
    client.works(2).await;
    assert_eq!(*server.logs.disk("vd").opened.borrow(), 1);
    assert!(server.server.status().vdisks[0].last_error.as_ref().unwrap().contains("no slave store answers"));
}

#[tokio::test]
async fn a_log_that_fails_or_is_fenced_is_told_and_opened_anew_for_the_next_connection() {
    for reason in [CloseReason::Failed("no store answers".to_owned()), CloseReason::Fenced] {
        let (counters, _guard) = Counters::install();
        let server = Running::start().await;
        let disk = server.logs.disk("vd");
        let mut bystander = Client::connect(server.addr, "other", 9, 1).await;
        let mut client = Client::connect(server.addr, "vd", 7, 1).await;
        client.works(1).await;
        disk.hold();
        client.sends_blocks([2, 3]).await;
        client.hears_recv_ok([2, 3]).await;
        disk.fail(reason.clone());
        client.hears_just(BlockStatus::FlushFailed).await;
        client.sees_the_end().await;
        disk.release();
        let (mut client, response) = Client::greet(server.addr, handshake("vd", 7, 2)).await;
        assert_eq!((response.status, response.last_flushed), (HandshakeStatus::Ok, Some(Sequence(1))));
        assert_eq!(*disk.opened.borrow(), 2);
        client.sends_blocks([2, 3]).await;
        client.asks_to_flush(3).await;
        client.hears_flushed([2, 3]).await;
        bystander.works(1).await;
        let name = if reason == CloseReason::Fenced { "fenced" } else { "failed" };
        assert_eq!(counters.get(&format!("tlog_server_logs_failed_total{{{name}}}")), 1);
        let status = server.server.status();
        let vdisk = status.vdisks.iter().find(|vdisk| vdisk.vdisk.as_str() == "vd").unwrap();
        assert!(vdisk.last_error.as_ref().unwrap().contains(&reason.to_string()));
    }
}

#[tokio::test]
async fn a_fenced_log_acknowledges_nothing_more() {
    let server = Running::start().await;
    let disk = server.logs.disk("vd");
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks([1]).await;
    client.hears_recv_ok([1]).await;
    disk.fail_with_everything_durable(CloseReason::Fenced);
    client.hears_just(BlockStatus::FlushFailed).await;
    client.sees_the_end().await;
}

#[tokio::test]
async fn a_vdisk_that_nobody_uses_is_closed_and_opened_again_when_needed() {
    let settings =
        ServerSettings { vdisk_idle: std::time::Duration::from_millis(5), ..ServerSettings::default() };
    let server = Running::with(settings).await;
    let disk = server.logs.disk("vd");
    for round in 1..=5 {
        let mut client = Client::connect(server.addr, "vd", 7, round).await;
        client.works(round).await;
        drop(client);
        soon(disk.closed.subscribe().wait_for(|&closed| closed == round as usize)).await.unwrap();
    }
    server.until(|status| status.vdisks.is_empty()).await;
    assert_eq!(*disk.opened.borrow(), 5);
}

#[tokio::test]
async fn a_log_that_another_server_took_over_meanwhile_is_opened_again_before_a_client_is_told_its_end() {
    let server = Running::start().await;
    let mut first = Client::connect(server.addr, "vd", 7, 1).await;
    first.works(1).await;
    let disk = server.logs.disk("vd");
    assert_eq!((*disk.opened.borrow(), *disk.confirms.borrow()), (1, 0), "it was opened just now");

    let mut second = Client::connect(server.addr, "vd", 8, 2).await;
    second.works(2).await;
    assert_eq!((*disk.opened.borrow(), *disk.confirms.borrow()), (1, 1), "it is ours still");

    disk.taken_over.store(true, std::sync::atomic::Ordering::Relaxed);
    let (mut third, response) = Client::greet(server.addr, handshake("vd", 9, 3)).await;
    assert_eq!(response.status, HandshakeStatus::Ok);
    assert_eq!((*disk.opened.borrow(), *disk.confirms.borrow()), (2, 2));
    third.works(3).await;
    second.hears_just(tlog_proto::BlockStatus::FlushFailed).await;
}

/// It may have taken long to open, so that another server was quicker: only whoever came before it knows that it is new.
#[tokio::test(start_paused = true)]
async fn a_log_that_was_opened_for_somebody_who_gave_up_is_not_new_for_whoever_comes_next() {
    let logs = Arc::new(MemoryLogs::default());
    let disk = logs.disk("vd");
    disk.openings.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let settings = ServerSettings { open_timeout: SOON / 2, ..ServerSettings::default() };
    let server = Server::new(settings, logs, None).unwrap();
    let come = async |session| {
        let (ours, theirs) = tokio::io::duplex(4096);
        server.serve_stream(theirs, "10.0.0.1:7".parse().unwrap());
        let mut client = Client::over(ours);
        client.say_hello(handshake("vd", session, 1)).await;
        client
    };
    let refused = come(7).await.hears_handshake().await;
    assert_eq!(refused.refusal, Some(tlog_proto::Refusal::LogUnavailable), "it takes too long");
    let mut second = come(8).await;
    disk.openings.add_permits(1);
    assert_eq!(second.hears_handshake().await.status, HandshakeStatus::Ok);
    assert_eq!((*disk.opened.borrow(), *disk.confirms.borrow()), (1, 1), "it was not asked");
}

/// Two clients come back while the log is opened, and the first of them is gone by then: the vdisk is the other's, which is not told of it.
#[tokio::test(start_paused = true)]
async fn whoever_is_gone_before_it_is_answered_takes_nothing_over() {
    let logs = Arc::new(MemoryLogs::default());
    let disk = logs.disk("vd");
    disk.openings.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let server = Server::new(ServerSettings::default(), logs, None).unwrap();
    let come_back = async |session| {
        let (ours, theirs) = tokio::io::duplex(4096);
        server.serve_stream(theirs, "10.0.0.1:7".parse().unwrap());
        let mut client = Client::over(ours);
        client.say_hello(back("vd", session, 1)).await;
        client
    };
    let gone = come_back(7).await;
    settled().await;
    drop(gone);
    let mut second = come_back(8).await;
    settled().await;
    disk.openings.add_permits(1);
    let response = second.hears_handshake().await;
    assert_eq!((response.status, response.refusal), (HandshakeStatus::Ok, None));
    second.works(1).await;
}

/// Time stands still while anything can go on.
async fn settled() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

#[tokio::test]
async fn a_client_that_comes_back_after_another_one_is_told_so() {
    let server = Running::start().await;
    let mut first = Client::connect(server.addr, "vd", 7, 1).await;
    first.works(1).await;
    let mut second = Client::connect(server.addr, "vd", 8, 2).await;
    let (mut refused, response) = Client::greet(server.addr, back("vd", 7, 2)).await;
    assert_eq!(response.status, HandshakeStatus::InternalServerError);
    assert_eq!(response.refusal, Some(tlog_proto::Refusal::TakenOver));
    refused.sees_the_end().await;
    second.works(2).await;
}
