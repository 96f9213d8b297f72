//! Servers that die, hang, refuse or change, told by client and servers in turn.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use std::time::{Duration, Instant};

use bytes::Bytes;
use scripted::{Peer, ScriptedServer, at, connected_to, defaults, is_pending, set, set_many, soon, vdisk};
use tlog_client::{
    AppendError, BLOCK_OVERHEAD, Backoff, Client, ClientOptions, EndCause, Event, LostCause, Start,
};
use tlog_proto::{
    BlockStatus, HandshakeResponse, HandshakeStatus, LogPosition, Operation, Refusal, Sequence, SessionId,
};

/// Two servers, and a client that is connected to the first.
async fn two(options: ClientOptions) -> (Client, Peer, ScriptedServer, ScriptedServer) {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let connect = Client::connect([first.addr(), second.addr()], vdisk(), options);
    let (client, peer) = tokio::join!(connect, first.accept_handshake());
    (client.unwrap(), peer, first, second)
}

async fn next_cause(events: &mut tlog_client::Events) -> std::sync::Arc<LostCause> {
    loop {
        match soon(events.next()).await.unwrap() {
            Event::Reconnecting { cause, .. } => return cause,
            Event::Ended(ending) => panic!("{ending}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn when_a_server_dies_the_next_one_gets_what_is_not_durable_and_is_told_who_comes() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    let mut events = client.events();
    assert_eq!(peer.request.returning, None);
    let mut handles = set_many(&client, 5).await;
    peer.expect_blocks(1..=5).await;
    peer.ack_received(2).await;
    peer.ack_flush([1, 3]).await;
    handles.remove(0).await.unwrap();
    peer.drop_connection();

    let mut peer = soon(second.accept_handshake()).await;
    let request = &peer.request;
    assert_eq!((request.first_sequence, request.session), (Sequence(2), client.session()));
    assert_eq!(request.returning, Some(LogPosition::default()), "what it found when it came first");
    assert!(!request.reset_first_sequence);
    assert_eq!(soon(peer.expect_block(2)).await.data[..], [1]);
    peer.expect_blocks(3..=5).await; // 3 is durable, and needed for what comes behind it
    set(&client, 9).await;
    peer.expect_block(6).await;
    peer.ack_flush([3]).await;
    peer.ack_flush([2, 4, 5]).await;
    for handle in handles {
        handle.await.unwrap();
    }
    assert_eq!(client.server().as_deref(), Some(&*second.addr()));
    let stats = client.stats();
    assert_eq!((stats.reconnects, stats.resent_blocks, stats.sent_blocks), (1, 4, 6));

    let mut seen = Vec::new();
    while seen.last().is_none_or(|last: &String| !last.contains("Durable(SequenceSet(2, 4-5))")) {
        seen.push(format!("{:?}", soon(events.next()).await.unwrap()));
    }
    assert!(seen[0].starts_with("Received"), "{seen:?}");
    assert!(seen[2].starts_with("Reconnecting") && seen[2].contains("ServerClosed"), "{seen:?}");
    assert!(seen[3].starts_with("Reconnected") && seen[3].contains("unflushed_blocks: 3"), "{seen:?}");
}

#[tokio::test]
async fn what_the_next_server_holds_durably_is_not_sent_again() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    let handles = set_many(&client, 4).await;
    peer.expect_blocks(1..=4).await;
    peer.drop_connection();
    let mut peer = soon(second.accept_continuing(3)).await;
    for handle in handles.into_iter().take(3) {
        handle.await.unwrap();
    }
    peer.expect_block(4).await;
    assert_eq!(client.stats().resent_blocks, 1);
}

#[tokio::test]
async fn a_flush_and_a_wait_for_the_slave_go_on_over_lost_connections() {
    let (client, mut peer, first, second) = two(defaults()).await;
    set_many(&client, 2).await;
    let script = async {
        peer.expect_blocks(1..=2).await;
        peer.expect_force_flush(2).await;
        peer.expect_wait_slave_sync().await;
        peer.fail_flush().await;
        let mut peer = second.accept_handshake().await;
        peer.expect_wait_slave_sync().await;
        peer.expect_blocks(1..=2).await;
        peer.expect_force_flush(2).await;
        peer.ack_flush([1]).await;
        peer.drop_connection();
        let mut peer = first.accept_handshake().await;
        peer.expect_wait_slave_sync().await;
        peer.ack_slave_sync().await;
        peer.expect_block(2).await;
        peer.expect_force_flush(2).await;
        peer.ack_flush([2]).await;
        peer
    };
    let waited = client.wait_nbd_slave_sync(Duration::from_secs(60));
    let (flushed, waited, _peer) = soon(async { tokio::join!(client.flush(), waited, script) }).await;
    flushed.unwrap();
    waited.unwrap();
}

#[tokio::test]
async fn a_wait_for_the_slave_that_timed_out_is_not_asked_for_again_at_the_next_server() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    let given_up = client.wait_nbd_slave_sync(Duration::from_millis(20)).await;
    assert!(given_up.is_err());
    let waited = client.wait_nbd_slave_sync(Duration::from_secs(60));
    let script = async {
        peer.expect_wait_slave_sync().await;
        peer.expect_wait_slave_sync().await;
        peer.drop_connection();
        let mut peer = second.accept_handshake().await;
        peer.expect_wait_slave_sync().await;
        set(&client, 0).await;
        peer.expect_block(1).await; // and no second wait before it
        peer.ack_slave_sync().await;
        peer
    };
    let (waited, _peer) = soon(async { tokio::join!(waited, script) }).await;
    waited.unwrap();
}

#[tokio::test]
async fn a_failed_flush_and_silence_and_nonsense_each_lead_to_the_next_server() {
    let options = ClientOptions { answer_timeout: Duration::from_millis(200), ..defaults() };
    let (client, mut peer, first, second) = two(options).await;
    let mut events = client.events();
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    peer.fail_flush().await;
    let mut peer = soon(second.accept_handshake()).await;
    assert!(matches!(*next_cause(&mut events).await, LostCause::FlushFailed));
    peer.expect_block(1).await; // and nothing is said
    let mut silent = peer;
    let mut peer = soon(first.accept_handshake()).await;
    assert!(matches!(*next_cause(&mut events).await, LostCause::Silent(_)));
    soon(async { while silent.expect_some_flush().await != 1 {} }).await; // it was asked before it was left
    peer.expect_block(1).await;
    peer.send_bytes(&[0xff; 16]).await;
    let mut peer = soon(second.accept_handshake()).await;
    assert!(matches!(*next_cause(&mut events).await, LostCause::Protocol(_)));
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    handle.await.unwrap();
}

#[tokio::test]
async fn a_block_that_a_server_refuses_again_and_again_is_taken_to_the_next_one() {
    let options = ClientOptions { resend_timeout: Duration::from_millis(20), ..defaults() };
    let (client, mut peer, _first, second) = two(options).await;
    let mut events = client.events();
    let handle = set(&client, 0).await;
    let refusing = tokio::spawn(async move {
        loop {
            match peer.next_message().await {
                tlog_proto::ClientMessage::Block(_) => peer.refuse(1).await,
                _ => peer.ack_force_flush().await,
            }
        }
    });
    let mut peer = soon(second.accept_handshake()).await;
    assert!(matches!(*next_cause(&mut events).await, LostCause::Refused(Sequence(1))));
    refusing.abort();
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    handle.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_listed_any_more_is_left_and_one_that_is_stays() {
    let (client, mut peer, first, second) = two(defaults()).await;
    let third = ScriptedServer::start().await;
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    client.set_servers([third.addr(), first.addr()]).unwrap();
    set(&client, 1).await;
    peer.expect_block(2).await;
    client.set_servers([third.addr(), second.addr()]).unwrap();
    let mut moved = soon(third.accept_handshake()).await;
    peer.expect_close().await;
    moved.expect_blocks(1..=2).await;
    moved.ack_flush([1, 2]).await;
    handle.await.unwrap();
    assert!(client.set_servers(" ").is_err() && client.set_servers("tlog-1").is_err());
    assert_eq!(client.servers().len(), 2);

    // Also while there is none: the new list counts at once.
    drop((moved, third));
    let fourth = ScriptedServer::start().await;
    drop(second);
    client.set_servers(fourth.addr()).unwrap();
    soon(fourth.accept_handshake()).await;
}

#[tokio::test]
async fn a_list_that_changes_is_followed_until_it_ends_and_what_is_no_list_is_passed_over() {
    let (client, mut peer, first, _second) = two(defaults()).await;
    let third = ScriptedServer::start().await;
    let (lists, received) = futures::channel::mpsc::unbounded();
    client.follow_servers(received);
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    lists.unbounded_send("tlog-1".to_owned()).unwrap();
    lists.unbounded_send(format!("{},{}", third.addr(), first.addr())).unwrap();
    lists.unbounded_send(third.addr().to_string()).unwrap();
    let mut moved = soon(third.accept_handshake()).await;
    peer.expect_close().await;
    moved.expect_block(1).await;
    moved.ack_flush([1]).await;
    handle.await.unwrap();
    // The end of the stream leaves the last list.
    drop(lists);
    set(&client, 1).await;
    moved.expect_block(2).await;
    assert!(client.servers().contains(&third.addr().to_string()));
}

#[tokio::test]
async fn a_client_that_was_taken_over_ends_and_says_so() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    peer.drop_connection();
    soon(second.refuse_because(Refusal::TakenOver)).await;
    let error = soon(handle).await.unwrap_err();
    let EndCause::TakenOver { server } = error.ending.cause() else { panic!("{error}") };
    assert_eq!(*server, second.addr());
    assert_eq!(client.unflushed().await.len(), 1);
}

#[tokio::test]
async fn a_server_that_claims_to_have_what_was_never_sent_has_it_from_another_client() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    peer.drop_connection();
    let _peer = soon(second.accept_continuing(7)).await;
    let error = soon(handle).await.unwrap_err();
    assert!(matches!(error.ending.cause(), EndCause::TakenOver { .. }), "{error}");
}

#[tokio::test]
async fn where_every_server_lacks_what_was_acknowledged_the_client_ends_and_where_one_does_it_goes_on() {
    let (client, mut peer, first, second) = two(defaults()).await;
    set_many(&client, 3).await;
    peer.expect_blocks(1..=3).await;
    peer.ack_flush([1, 2]).await;
    client.durable_up_to(Sequence(2)).await.unwrap();
    peer.drop_connection();
    let refuse =
        |server| ScriptedServer::refuse_handshake(server, HandshakeStatus::InternalServerError, Some(1));
    soon(refuse(&second)).await;
    let mut peer = soon(first.accept_handshake()).await;
    peer.expect_block(3).await;
    peer.drop_connection();

    let lacking = async {
        // Accepted at a lower sequence than was acknowledged is the same.
        drop(second.accept_continuing(1).await);
        loop {
            refuse(&first).await;
            refuse(&second).await;
        }
    };
    let error = tokio::select! {
        () = soon(lacking) => unreachable!(),
        error = client.durable_up_to(Sequence(3)) => error.unwrap_err(),
    };
    let EndCause::Gap { expected, last_flushed, .. } = error.cause() else { panic!("{error}") };
    assert_eq!((*expected, *last_flushed), (Sequence(3), Some(Sequence(1))));
}

#[tokio::test]
async fn a_log_that_is_as_it_was_before_anything_was_acknowledged_lacks_it() {
    let (client, mut peer, _first, second) = two(defaults()).await;
    set_many(&client, 2).await;
    peer.expect_blocks(1..=2).await;
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    client.set_servers(second.addr()).unwrap();
    let script = async {
        loop {
            // An empty log, which takes any first sequence.
            let mut peer = second.accept_request().await;
            let end = Some(LogPosition::default());
            let accepted = HandshakeResponse { end, ..HandshakeResponse::new(HandshakeStatus::Ok) };
            peer.answer_handshake_with(accepted).await;
        }
    };
    let error = tokio::select! {
        () = soon(script) => unreachable!(),
        error = client.durable_up_to(Sequence(2)) => error.unwrap_err(),
    };
    let EndCause::Gap { expected, last_flushed: None, .. } = error.cause() else { panic!("{error}") };
    assert_eq!(*expected, Sequence(2));
}

#[tokio::test]
async fn a_reset_is_asked_for_again_with_what_the_log_looked_like_before_it() {
    let options = ClientOptions { start: Start::Reset(Sequence(5)), ..defaults() };
    let (client, mut peer, first, second) = two(options).await;
    set_many(&client, 2).await;
    peer.expect_block(5).await;
    peer.drop_connection();
    let mut peer = soon(second.accept_handshake()).await;
    assert!(peer.request.reset_first_sequence && peer.request.returning.is_some());
    peer.expect_blocks(5..=6).await;
    peer.ack_flush([5]).await;
    client.durable_up_to(Sequence(5)).await.unwrap();
    peer.drop_connection();
    let peer = soon(first.accept_handshake()).await;
    assert!(!peer.request.reset_first_sequence);
    assert_eq!(peer.request.first_sequence, Sequence(6));
}

#[tokio::test]
async fn without_a_server_blocks_are_kept_up_to_the_bound_and_then_go_out_in_order() {
    let options = ClientOptions { max_unflushed_bytes: 10 * (1 + BLOCK_OVERHEAD), ..defaults() };
    let (client, peer, first, second) = two(options).await;
    drop((peer, first, second));
    soon(async {
        while client.server().is_some() {
            tokio::task::yield_now().await
        }
    })
    .await;
    let handles = set_many(&client, 10).await;
    let full = client.try_append(Operation::Set, at(0), vec![1]);
    assert!(matches!(full, Err(AppendError::Full)));
    assert!(is_pending(client.set(at(0), vec![1])));
    let third = ScriptedServer::start().await;
    client.set_servers(third.addr()).unwrap();
    let mut peer = soon(third.accept_handshake()).await;
    peer.expect_blocks(1..=10).await;
    peer.ack_flush(1..=10).await;
    for handle in handles {
        handle.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_with_a_deadline_gives_up_after_it_and_gives_everything_back() {
    let options = ClientOptions { reconnect_deadline: Some(Duration::from_millis(100)), ..defaults() };
    let (client, mut peer, first, second) = two(options).await;
    set_many(&client, 2).await;
    peer.expect_blocks(1..=2).await;
    let began = Instant::now();
    drop((peer, first, second));
    let error = soon(client.durable_up_to(Sequence(2))).await.unwrap_err();
    let EndCause::GaveUp { failures, .. } = error.cause() else { panic!("{error}") };
    assert_eq!(failures.len(), 2, "one for each server");
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!(client.unflushed().await.len(), 2);
}

#[tokio::test]
async fn a_client_that_sends_again_what_an_earlier_one_left_is_not_taken_for_another() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let options = ClientOptions { session: Some(SessionId(9)), start: Start::At(Sequence(5)), ..defaults() };
    let connect = Client::connect([first.addr(), second.addr()], vdisk(), options);
    let (client, mut peer) = tokio::join!(connect, first.accept_continuing(10));
    let client = client.unwrap();
    set(&client, 0).await;
    peer.expect_block(5).await;
    peer.drop_connection();
    soon(second.accept_continuing(10)).await;
    soon(client.durable_up_to(Sequence(5))).await.unwrap();
}

#[tokio::test]
async fn an_idle_client_does_not_run_round_servers_that_accept_and_close() {
    let (client, peer, first, second) =
        two(ClientOptions { backoff: Backoff::default(), ..defaults() }).await;
    peer.drop_connection();
    let closing = async {
        loop {
            tokio::select! {
                _ = first.accept_handshake() => {}
                _ = second.accept_handshake() => {}
            }
        }
    };
    let second_long = tokio::time::timeout(Duration::from_secs(1), closing);
    assert!(second_long.await.is_err());
    let reconnects = client.stats().reconnects;
    assert!(reconnects < 20, "{reconnects} in a second");
}

/// A client in each state in which it can be, and the state's name.
async fn in_every_state() -> Vec<(&'static str, Client, Box<dyn Send>)> {
    let mut clients: Vec<(&'static str, Client, Box<dyn Send>)> = Vec::new();
    let quick = || ClientOptions { answer_timeout: Duration::from_millis(50), ..defaults() };

    let (client, peer, first, second) = two(defaults()).await;
    clients.push(("connected", client, Box::new((peer, first, second))));

    let (client, peer, ..) = two(defaults()).await;
    drop(peer);
    soon(async {
        while client.stats().failed_reconnects < 5 {
            tokio::task::yield_now().await
        }
    })
    .await;
    clients.push(("nothing listens", client, Box::new(())));

    let (client, peer, first, second) = two(defaults()).await;
    peer.drop_connection();
    let hanging = soon(second.accept_request()).await;
    clients.push(("the handshake hangs", client, Box::new((hanging, first, second))));

    let (client, peer, first, second) = two(defaults()).await;
    let data = Bytes::from(vec![1; 1 << 20]);
    while client.try_append(Operation::Set, at(0), data.clone()).is_ok() {
        tokio::task::yield_now().await;
    }
    clients.push(("the server never reads", client, Box::new((peer, first, second))));

    let (client, peer, first, second) = two(quick()).await;
    set(&client, 0).await;
    let next = soon(second.accept_handshake()).await;
    clients.push(("a server fell silent", client, Box::new((peer, next, first, second))));

    let (client, mut peer, first, second) = two(defaults()).await;
    peer.send_bytes(&[0, 0, 0]).await;
    clients.push(("half an answer has come", client, Box::new((peer, first, second))));
    clients
}

#[tokio::test]
async fn closing_is_immediate_in_every_state() {
    for (state, client, others) in in_every_state().await {
        let waits = tokio::spawn({
            let client = client.clone();
            async move { client.durable_up_to(Sequence(1_000_000)).await }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        let ending = client.close().await;
        let took = began.elapsed();
        println!("close() where {state}: {took:?}");
        assert!(matches!(ending.cause(), EndCause::Closed), "{state}: {ending}");
        assert!(took < Duration::from_secs(2), "{state}: {took:?}; usually less than a millisecond");
        assert!(waits.await.unwrap().is_err());
        drop(others);
    }
}

/// A server that does all it should, and says so through `answer`.
async fn serve(peer: &mut Peer, blocks: u64, mut answer: impl AsyncFnMut(&mut Peer, BlockStatus, Vec<u64>)) {
    let mut durable = std::collections::BTreeSet::new();
    let mut waiting = Vec::new();
    while (durable.len() as u64) < blocks {
        match peer.next_message().await {
            tlog_proto::ClientMessage::Block(block) => {
                let sequence = block.sequence.0;
                match durable.contains(&sequence) {
                    true => answer(peer, BlockStatus::FlushOk, vec![sequence]).await,
                    false => {
                        answer(peer, BlockStatus::RecvOk, vec![sequence]).await;
                        if !waiting.contains(&sequence) {
                            waiting.push(sequence);
                        }
                    }
                }
            }
            _ => answer(peer, BlockStatus::ForceFlushReceived, vec![]).await,
        }
        if waiting.len() >= 25 || durable.len() + waiting.len() == blocks as usize {
            durable.extend(waiting.iter().copied());
            answer(peer, BlockStatus::FlushOk, std::mem::take(&mut waiting)).await;
        }
    }
}

#[tokio::test]
async fn a_second_of_dropped_answers_loses_nothing_and_needs_no_other_server() {
    let options = ClientOptions {
        resend_timeout: Duration::from_millis(200),
        answer_timeout: Duration::from_secs(10),
        ..defaults()
    };
    let server = ScriptedServer::start().await;
    let (client, mut peer) = connected_to(&server, options).await;
    let began = Instant::now();
    let (mut dropped, mut said) = (0, 0);
    let handles = set_many(&client, 500).await;
    let serving = async {
        let mut after = std::collections::BTreeSet::new();
        let mut durable = std::collections::BTreeSet::new();
        while durable.len() < 500 {
            let (status, sequences) = match peer.next_message().await {
                tlog_proto::ClientMessage::Block(block) => {
                    let sequence = block.sequence.0;
                    // All of it is durable at once, and said so; for a second nobody hears.
                    after.insert(sequence);
                    (BlockStatus::FlushOk, vec![sequence])
                }
                _ => (BlockStatus::ForceFlushReceived, vec![]),
            };
            if began.elapsed() < Duration::from_secs(1) {
                dropped += 1;
                continue;
            }
            said += 1;
            if status == BlockStatus::FlushOk {
                durable.extend(sequences.iter().copied());
            }
            peer.respond(status, sequences).await;
        }
        peer
    };
    let _peer = soon(serving).await;
    for handle in handles {
        soon(handle).await.unwrap();
    }
    assert!(dropped >= 500 && said >= 500, "{dropped} dropped, {said} said");
    let stats = client.stats();
    assert_eq!((stats.reconnects, stats.durable_blocks, stats.unflushed_bytes), (0, 500, 0));
}

#[tokio::test]
async fn answers_in_pieces_of_one_byte_are_answers() {
    let server = ScriptedServer::start().await;
    let (client, mut peer) = connected_to(&server, defaults()).await;
    let handles = set_many(&client, 100).await;
    let answer = async |peer: &mut Peer, status, sequences| peer.respond_slowly(status, sequences).await;
    soon(serve(&mut peer, 100, answer)).await;
    for handle in handles {
        soon(handle).await.unwrap();
    }
    assert_eq!(client.stats().repeated_responses + client.stats().unexpected_responses, 0);
}
