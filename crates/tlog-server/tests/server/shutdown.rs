//! Stopping.

use std::time::Duration;

use tlog_proto::{Generation, LogPosition, Sequence, VdiskId};
use tlog_server::{CloseReason, ServerSettings};
use tokio::net::TcpStream;

use crate::support::*;

fn at(sequence: u64) -> Option<LogPosition> {
    Some(LogPosition { generation: Generation(1), sequence: Sequence(sequence) })
}

fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

#[tokio::test]
async fn a_shutdown_makes_everything_durable_tells_the_clients_and_says_so() {
    let server = Running::start().await;
    let (logs, addr) = (server.logs.clone(), server.addr);
    let mut one = Client::connect(addr, "one", 7, 1).await;
    let mut two = Client::connect(addr, "two", 8, 5).await;
    one.sends_blocks([1, 2, 4]).await;
    one.hears_recv_ok([1, 2, 4]).await;
    two.sends_blocks([5]).await;
    two.hears_recv_ok([5]).await;
    server.shutdown.cancel();
    one.hears_flush_ok([1, 2]).await;
    one.sees_the_end().await;
    two.hears_flush_ok([5]).await;
    two.sees_the_end().await;
    drop((one, two));
    let report = soon(server.task).await.unwrap();
    assert!(report.all_durable());
    let left: Vec<_> = report.vdisks.iter().map(|v| (v.vdisk.as_str(), v.durable, v.ordered)).collect();
    assert_eq!(left, [("one", at(2), at(2)), ("two", at(5), at(5))]);
    assert_eq!((*logs.disk("one").closed.borrow(), *logs.disk("two").closed.borrow()), (1, 1));
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens");
    assert!(server.server.status().vdisks.is_empty());
}

#[tokio::test]
async fn a_shutdown_that_cannot_make_everything_durable_in_time_says_that() {
    let settings = ServerSettings { shutdown_grace: Duration::from_millis(50), ..ServerSettings::default() };
    let server = Running::with(settings).await;
    server.logs.disk("vd").hold();
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks([1, 2]).await;
    client.hears_recv_ok([1, 2]).await;
    server.shutdown.cancel();
    let report = soon(server.task).await.unwrap();
    assert!(!report.all_durable());
    assert_eq!((report.vdisks[0].durable, report.vdisks[0].ordered), (None, at(2)));
    client.sees_the_end().await;
}

#[tokio::test]
async fn a_log_that_fails_during_shutdown_is_reported_and_told() {
    let server = Running::start().await;
    let disk = server.logs.disk("vd");
    disk.hold();
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks([1]).await;
    client.hears_recv_ok([1]).await;
    server.shutdown.cancel();
    soon(disk.flushes.subscribe().wait_for(|&flushes| flushes > 0)).await.unwrap();
    disk.fail(CloseReason::Failed("no store answers".to_owned()));
    client.hears_just(tlog_proto::BlockStatus::FlushFailed).await;
    drop(client);
    let report = soon(server.task).await.unwrap();
    assert!(report.vdisks[0].error.as_ref().unwrap().contains("no store answers"));
}

#[tokio::test]
async fn a_log_that_ends_by_itself_when_all_of_it_is_durable_is_no_failure_of_a_shutdown() {
    for reason in [CloseReason::Fenced, CloseReason::Failed("it was deleted".to_owned())] {
        let server = Running::start().await;
        let disk = server.logs.disk("vd");
        let mut client = Client::connect(server.addr, "vd", 7, 1).await;
        client.sends_blocks([1]).await;
        client.hears_recv_ok([1]).await;
        client.asks_to_flush(1).await;
        client.hears_just(tlog_proto::BlockStatus::ForceFlushReceived).await;
        client.hears_flush_ok([1]).await;
        // As the server closes it.
        disk.fail_at_close(reason);
        server.shutdown.cancel();
        drop(client);
        let report = soon(server.task).await.unwrap();
        assert!(report.all_durable(), "{report:?}");
        assert_eq!((report.vdisks[0].durable, report.vdisks[0].ordered), (at(1), at(1)));
    }
}

#[tokio::test]
async fn connections_that_never_said_hello_do_not_hold_up_a_shutdown() {
    let server = Running::start().await;
    let _silent = Client::dial(server.addr).await;
    server.until(|status| status.connections == 1).await;
    assert!(server.stop().await.all_durable());
}

#[tokio::test]
async fn one_vdisk_is_closed_and_the_others_go_on() {
    let server = Running::start().await;
    let (logs, addr) = (server.logs.clone(), server.addr);
    let mut one = Client::connect(addr, "one", 7, 1).await;
    let mut two = Client::connect(addr, "two", 8, 1).await;
    one.sends_blocks([1, 2, 4]).await;
    one.hears_recv_ok([1, 2, 4]).await;
    let report = soon(server.server.close_vdisk(&vdisk("one"))).await.unwrap();
    assert_eq!((report.durable, report.ordered, report.error), (at(2), at(2), None));
    one.hears_flush_ok([1, 2]).await;
    one.sees_the_end().await;
    assert_eq!((*logs.disk("one").opened.borrow(), *logs.disk("one").closed.borrow()), (1, 1));
    assert_eq!(soon(server.server.close_vdisk(&vdisk("one"))).await, None, "it is not open");

    two.sends_blocks([1]).await;
    two.hears_recv_ok([1]).await;
    // It is opened again by whoever comes.
    let mut again = Client::connect(addr, "one", 7, 3).await;
    again.sends_blocks([3]).await;
    again.hears_recv_ok([3]).await;
    drop((one, two, again));
    let report = server.stop().await;
    assert!(report.all_durable());
    assert_eq!(report.vdisks.iter().map(|v| v.durable).collect::<Vec<_>>(), [at(3), at(1)]);
}

#[tokio::test]
async fn a_vdisk_that_is_closed_while_its_log_fails_says_so() {
    let server = Running::start().await;
    let disk = server.logs.disk("vd");
    disk.hold();
    let mut client = Client::connect(server.addr, "vd", 7, 1).await;
    client.sends_blocks([1]).await;
    client.hears_recv_ok([1]).await;
    let closing = server.server.clone();
    let closing = tokio::spawn(async move { closing.close_vdisk(&vdisk("vd")).await });
    soon(disk.flushes.subscribe().wait_for(|&flushes| flushes > 0)).await.unwrap();
    disk.fail(CloseReason::Failed("no store answers".to_owned()));
    client.hears_just(tlog_proto::BlockStatus::FlushFailed).await;
    let report = soon(closing).await.unwrap().unwrap();
    assert!(report.error.unwrap().contains("no store answers"));
    assert!(server.stop().await.all_durable(), "it was not open any more");
}
