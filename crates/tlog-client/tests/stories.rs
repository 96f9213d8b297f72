//! What becomes of blocks, told by client and server in turn.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod scripted;

use std::time::Duration;

use bytes::Bytes;
use scripted::{SHORT, at, connected, defaults, is_pending, set, set_many, starting_at};
use tlog_client::{
    AppendError, BLOCK_OVERHEAD, ClientOptions, EndCause, Event, SlaveSyncError, Start, Unacknowledged,
};
use tlog_proto::{Block, BlockFault, BlockHash, Limits, Operation, Sequence, Timestamp};

/// Room for so many blocks of one byte.
fn room_for(blocks: usize) -> ClientOptions {
    ClientOptions { max_unflushed_bytes: blocks * (1 + BLOCK_OVERHEAD), ..defaults() }
}

#[tokio::test]
async fn a_handle_resolves_with_flush_ok_and_not_with_recv_ok() {
    let (client, mut peer) = connected(defaults()).await;
    let mut events = client.events();
    let mut first = set(&client, 0).await;
    let second = client.delete(at(9)).await.unwrap();
    assert_eq!((first.sequence(), second.sequence()), (Sequence(1), Sequence(2)));

    let block = peer.expect_block(1).await;
    assert_eq!((block.index, block.operation, &block.data[..]), (at(0), Operation::Set, &[0][..]));
    assert!(block.timestamp > Timestamp(1_600_000_000_000_000_000), "nanoseconds since 1970");
    let block = peer.expect_block(2).await;
    assert_eq!((block.index, block.operation, block.size()), (at(9), Operation::Delete, 0));

    peer.ack_received(1).await;
    assert!(matches!(events.next().await, Some(Event::Received(Sequence(1)))));
    assert!(is_pending(&mut first));
    peer.ack_flush([1, 2]).await;
    first.await.unwrap();
    second.await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.sent_blocks, stats.received_blocks, stats.durable_blocks), (2, 1, 2));
    assert_eq!((stats.unflushed_blocks, stats.unflushed_bytes, stats.unexpected_responses), (0, 0, 0));
    assert!(client.unflushed().await.is_empty());
}

#[tokio::test]
async fn acknowledgements_in_any_order_reach_the_right_handles() {
    let (client, mut peer) = connected(defaults()).await;
    let mut handles = set_many(&client, 4).await;
    peer.expect_blocks(1..=4).await;
    peer.ack_flush([4, 2]).await;
    handles.remove(3).await.unwrap();
    handles.remove(1).await.unwrap();
    let left: Vec<_> = client.unflushed().await.iter().map(|block| block.sequence.0).collect();
    assert_eq!(left, [1, 3]);
    assert!(is_pending(client.durable_up_to(Sequence(2))), "2 is durable, 1 is not");
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(2)).await.unwrap();
    assert!(is_pending(client.durable_up_to(Sequence(3))));
}

#[tokio::test]
async fn flush_forces_the_server_and_waits_until_everything_before_it_is_durable() {
    let (client, mut peer) = connected(defaults()).await;
    client.flush().await.unwrap(); // nothing handed over: nothing to ask
    set_many(&client, 3).await;
    let script = async {
        peer.expect_blocks(1..=3).await;
        peer.expect_force_flush(3).await;
        peer.ack_force_flush().await;
        peer.ack_flush([1, 2]).await;
        peer.ack_flush([3]).await;
    };
    let (flushed, ()) = tokio::join!(client.flush(), script);
    flushed.unwrap();
    client.flush().await.unwrap(); // everything durable: nothing to ask
    client.close().await;
    peer.expect_close().await;
}

#[tokio::test]
async fn a_force_flush_goes_out_behind_what_was_handed_over_before_it() {
    let (client, mut peer) = connected(defaults()).await;
    set(&client, 0).await;
    client.force_flush_at(Sequence(99)).await.unwrap();
    set(&client, 1).await;
    peer.expect_block(1).await;
    peer.expect_force_flush(99).await;
    peer.expect_block(2).await;
}

#[tokio::test]
async fn at_the_bound_appends_wait_and_the_server_is_asked_to_flush() {
    let (client, mut peer) = connected(room_for(2)).await;
    set_many(&client, 2).await;
    assert!(matches!(client.try_append(Operation::Set, at(2), vec![1]), Err(AppendError::Full)));
    assert!(matches!(client.try_append(Operation::Delete, at(2), Bytes::new()), Err(AppendError::Full)));
    let script = async {
        peer.expect_blocks(1..=2).await;
        peer.expect_force_flush(2).await;
        peer.ack_flush([1]).await;
        peer.expect_block(3).await;
    };
    let (third, ()) = tokio::join!(client.set(at(2), vec![2]), script);
    assert_eq!(third.unwrap().sequence(), Sequence(3));
    assert!(matches!(client.try_append(Operation::Set, at(3), vec![1]), Err(AppendError::Full)));
    assert_eq!(client.stats().unflushed_blocks, 2);
}

#[tokio::test]
async fn an_append_that_is_given_up_while_it_waits_hands_nothing_over() {
    let (client, mut peer) = connected(room_for(1)).await;
    set(&client, 0).await;
    assert!(is_pending(client.set(at(1), vec![1])));
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    assert_eq!(set(&client, 2).await.sequence(), Sequence(2));
    assert_eq!(peer.expect_block(2).await.index, at(2));
}

#[tokio::test]
async fn a_block_larger_than_the_bound_is_taken_when_nothing_else_is_held() {
    let (client, mut peer) = connected(room_for(1)).await;
    let large = Bytes::from(vec![1; 100_000]);
    client.set(at(0), large.clone()).await.unwrap();
    assert!(matches!(client.try_append(Operation::Set, at(1), large.clone()), Err(AppendError::Full)));
    assert_eq!(peer.expect_block(1).await.data, large);
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    client.try_append(Operation::Set, at(1), large).unwrap();
}

#[tokio::test]
async fn blocks_that_cannot_be_sent_are_refused_before_anything_is() {
    let limits = Limits { max_block_bytes: 10, ..Limits::default() };
    let (client, mut peer) = connected(ClientOptions { limits, ..defaults() }).await;
    let error = client.set(at(0), vec![1; 11]).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { bytes: 11, max: 10 }), "{error}");
    let error = client.set(at(0), Bytes::new()).await.unwrap_err();
    assert!(matches!(error, AppendError::Fault(BlockFault::SetWithoutData)), "{error}");

    let good = Block::set(Sequence(1), at(0), Timestamp(5), Bytes::from_static(b"abc"));
    let error = client.send(Block { sequence: Sequence(2), ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, AppendError::NotNext { given: Sequence(2), expected: Sequence(1) }), "{error}");
    let error = client.send(Block { hash: BlockHash([0; 32]), ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, AppendError::Fault(BlockFault::WrongHash { .. })), "{error}");
    let error = client.try_send(Block { operation: Operation::Delete, ..good.clone() }).unwrap_err();
    assert!(matches!(error, AppendError::Fault(BlockFault::DeleteWithData(3))), "{error}");

    client.send(good.clone()).await.unwrap();
    assert_eq!(peer.expect_block(1).await, good);
    assert_eq!(client.stats().sent_blocks, 1);
}

#[tokio::test]
async fn the_last_sequence_of_all_is_never_given_out() {
    let (client, mut peer) = connected(starting_at(u64::MAX - 1)).await;
    set(&client, 0).await;
    peer.expect_block(u64::MAX - 1).await;
    assert!(matches!(client.set(at(0), vec![1]).await, Err(AppendError::NoSequenceLeft)));
    peer.ack_flush([u64::MAX - 1]).await;
    client.flush().await.unwrap();
}

#[tokio::test]
async fn when_a_client_ends_every_handle_fails_and_the_blocks_come_back() {
    let (client, mut peer) = connected(defaults()).await;
    let mut events = client.events();
    let mut handles = set_many(&client, 5).await;
    peer.expect_blocks(1..=5).await;
    peer.ack_flush([1, 3]).await;
    handles.remove(0).await.unwrap();
    handles.remove(1).await.unwrap();
    client.close().await;
    for (handle, sequence) in handles.into_iter().zip([2, 4, 5]) {
        let Unacknowledged { sequence: whose, ending } = handle.await.unwrap_err();
        assert_eq!(whose, Sequence(sequence));
        assert!(matches!(ending.cause(), EndCause::Closed), "{ending}");
        assert_eq!(ending.unacknowledged().to_string(), "2, 4-5");
    }
    let error = client.flush().await.unwrap_err();
    assert_eq!(error.to_string(), "the client was closed; not acknowledged: 2, 4-5");
    assert!(matches!(client.set(at(0), vec![1]).await, Err(AppendError::Ended(_))));
    assert!(client.force_flush_at(Sequence(2)).await.is_err());
    client.durable_up_to(Sequence(1)).await.unwrap();

    let blocks = client.unflushed().await;
    assert_eq!(blocks.iter().map(|block| block.sequence.0).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(blocks[1].data[..], [3]);
    assert_eq!(client.stats().unflushed_blocks, 3);
    assert!(matches!(events.next().await, Some(Event::Durable(set)) if set.to_string() == "1, 3"));
    assert!(matches!(events.next().await, Some(Event::Ended(_))));
    assert!(events.next().await.is_none());
    let mut late = client.events();
    assert!(matches!(late.next().await, Some(Event::Ended(_))));
    assert!(late.next().await.is_none());
}

#[tokio::test]
async fn blocks_given_back_can_be_sent_by_the_next_client_as_they_were() {
    let (client, mut peer) = connected(defaults()).await;
    set_many(&client, 3).await;
    let first = peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    client.close().await;

    let blocks = client.unflushed().await;
    let options = ClientOptions {
        start: Start::At(first.sequence.next()),
        session: Some(client.session()),
        ..defaults()
    };
    let (next, mut peer) = connected(options).await;
    for block in blocks.clone() {
        next.send(block).await.unwrap();
    }
    assert_eq!(peer.expect_block(2).await, blocks[0]);
    assert_eq!(peer.expect_block(3).await, blocks[1]);
}

#[tokio::test]
async fn what_was_acknowledged_just_before_the_connection_broke_counts() {
    let (client, mut peer) = connected(defaults()).await;
    let handles = set_many(&client, 3).await;
    peer.expect_blocks(1..=3).await;
    peer.ack_flush([1, 2, 3]).await;
    peer.drop_connection();
    for handle in handles {
        handle.await.unwrap();
    }
    assert!(client.close().await.unacknowledged().is_empty());
}

#[tokio::test]
async fn a_refused_block_is_sent_again_and_its_handle_waits() {
    let (client, mut peer) = connected(defaults()).await;
    let mut events = client.events();
    let mut refused = set(&client, 0).await;
    let mut after = set(&client, 1).await;
    peer.expect_blocks(1..=2).await;
    peer.refuse(1).await;
    peer.ack_received(2).await;
    peer.expect_block(1).await;
    assert!(matches!(events.next().await, Some(Event::Refused(Sequence(1)))));
    assert!(is_pending(&mut refused) && is_pending(&mut after));
    let script = async {
        peer.expect_force_flush(2).await;
        peer.ack_flush([1, 2]).await;
    };
    let (flushed, ()) = tokio::join!(client.flush(), script);
    flushed.unwrap();
    refused.await.unwrap();
    after.await.unwrap();
    assert_eq!((client.stats().refused_blocks, client.stats().resent_blocks), (1, 1));
}

#[tokio::test]
async fn the_slave_sync_is_waited_for_in_the_order_of_the_commands() {
    let (client, mut peer) = connected(defaults()).await;
    let given_up = client.wait_nbd_slave_sync(SHORT).await;
    assert!(matches!(given_up, Err(SlaveSyncError::TimedOut { timeout: SHORT })));
    peer.expect_wait_slave_sync().await;
    let long = Duration::from_secs(60);
    let mut second = Box::pin(client.wait_nbd_slave_sync(long));
    assert!(is_pending(&mut second));
    peer.expect_wait_slave_sync().await;
    set(&client, 0).await;
    peer.expect_block(1).await;
    peer.ack_slave_sync().await; // for the one that was given up
    peer.ack_flush([1]).await;
    client.durable_up_to(Sequence(1)).await.unwrap();
    assert!(is_pending(&mut second));
    peer.ack_slave_sync().await;
    second.await.unwrap();
    let script = async {
        peer.expect_wait_slave_sync().await;
        client.close().await;
    };
    let (third, ()) = tokio::join!(client.wait_nbd_slave_sync(long), script);
    assert!(matches!(third, Err(SlaveSyncError::Ended(_))));
}

#[tokio::test]
async fn closing_fails_what_is_not_durable_and_gives_it_back() {
    let (client, mut peer) = connected(defaults()).await;
    let handle = set(&client, 0).await;
    peer.expect_block(1).await;
    let ending = client.close().await;
    assert!(matches!(ending.cause(), EndCause::Closed));
    assert_eq!(ending.unacknowledged().to_string(), "1");
    assert!(handle.await.is_err());
    assert_eq!(client.unflushed().await.len(), 1);
    peer.expect_close().await;
    client.close().await;
}

#[tokio::test]
async fn whoever_flushes_a_client_that_has_ended_is_told_so_though_everything_is_durable() {
    let (client, mut peer) = connected(defaults()).await;
    set(&client, 0).await;
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    client.flush().await.unwrap();
    assert!(client.ending().is_none());
    client.close().await;
    assert!(matches!(client.flush().await.unwrap_err().cause(), EndCause::Closed));
    assert!(client.ending().unwrap().unacknowledged().is_empty());
    client.durable_up_to(Sequence(1)).await.unwrap();
}

#[tokio::test]
async fn close_after_flush_takes_no_more_blocks_and_closes_when_all_is_durable() {
    let (client, mut peer) = connected(defaults()).await;
    set_many(&client, 2).await;
    let script = async {
        peer.expect_blocks(1..=2).await;
        peer.expect_force_flush(2).await;
        assert!(matches!(client.set(at(0), vec![1]).await, Err(AppendError::Closing)));
        peer.ack_flush([1, 2]).await;
        peer.expect_close().await;
    };
    let (flushed, ()) = tokio::join!(client.close_after_flush(), script);
    flushed.unwrap();
}

#[tokio::test]
async fn close_after_flush_can_be_cut_short() {
    let (client, mut peer) = connected(defaults()).await;
    set(&client, 0).await;
    let script = async {
        peer.expect_block(1).await;
        peer.expect_force_flush(1).await;
        client.close().await
    };
    let (flushed, _) = tokio::join!(client.close_after_flush(), script);
    assert!(matches!(flushed.unwrap_err().cause(), EndCause::Closed));
}

#[tokio::test]
async fn dropping_the_last_clone_closes() {
    let (client, mut peer) = connected(defaults()).await;
    let clone = client.clone();
    let handle = set(&client, 0).await;
    drop(client);
    peer.expect_block(1).await;
    drop(clone);
    peer.expect_close().await;
    assert!(matches!(handle.await.unwrap_err().ending.cause(), EndCause::Closed));
}

#[tokio::test]
async fn a_reader_of_events_that_lags_is_told_how_many_it_missed() {
    let (client, mut peer) = connected(defaults()).await;
    let mut events = client.events();
    set_many(&client, 2000).await;
    peer.expect_blocks(1..=2000).await;
    for sequence in 1..=2000 {
        peer.ack_received(sequence).await;
    }
    peer.ack_flush(1..=2000).await;
    client.flush().await.unwrap();
    let Some(Event::Missed(missed)) = events.next().await else { panic!("nothing missed") };
    assert_eq!(missed, 2001 - 1024);
    let Some(Event::Received(next)) = events.next().await else { panic!("no event") };
    assert_eq!(next, Sequence(missed + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_in_many_tasks_share_one_order_without_gaps() {
    const TASKS: u64 = 4;
    const EACH: u64 = 200;
    let (client, mut peer) = connected(room_for(50)).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut last = Sequence(0);
                for number in 0..EACH {
                    let handle = client.set(at(task * EACH + number), vec![1]).await.unwrap();
                    assert!(handle.sequence() > last);
                    last = handle.sequence();
                }
            })
        })
        .collect();
    let server = tokio::spawn(async move {
        let (mut seen, mut unflushed) = (Vec::new(), Vec::new());
        while (seen.len() as u64) < TASKS * EACH {
            match peer.next_message().await {
                tlog_proto::ClientMessage::Block(block) => {
                    unflushed.push(block.sequence.0);
                    seen.push(block.index as u64);
                    if seen.len() as u64 == TASKS * EACH {
                        peer.ack_flush(unflushed.drain(..)).await;
                    }
                }
                _ => peer.ack_flush(unflushed.drain(..)).await,
            }
        }
        (seen, peer)
    });
    for task in tasks {
        task.await.unwrap();
    }
    client.flush().await.unwrap();
    let (mut seen, _peer) = server.await.unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..TASKS * EACH).collect::<Vec<_>>());
    assert_eq!(client.stats().durable_blocks, TASKS * EACH);
}

#[test]
fn a_runtime_that_goes_away_leaves_no_one_waiting_and_no_block_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (client, handle, _peer) = runtime.block_on(async {
        let (client, peer) = connected(defaults()).await;
        let handle = set(&client, 0).await;
        (client, handle, peer)
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(async {
        assert!(handle.await.is_err());
        assert!(matches!(client.close().await.cause(), EndCause::RuntimeGone));
        assert_eq!(client.unflushed().await.len(), 1);
    });
}

#[tokio::test]
async fn a_client_and_what_it_answers_can_move_between_threads() {
    fn movable<T: Send>(value: T) -> T {
        value
    }
    fn shareable<T: Send + Sync + Clone + 'static>(_: &T) {}
    let (client, mut peer) = connected(defaults()).await;
    shareable(&client);
    drop((
        movable(client.flush()),
        movable(client.close()),
        movable(client.unflushed()),
        movable(client.close_after_flush()),
    ));
    drop(movable(client.events().next()));
    let handle = movable(client.delete(at(0))).await.unwrap();
    peer.expect_block(1).await;
    peer.ack_flush([1]).await;
    movable(handle).await.unwrap();
}
