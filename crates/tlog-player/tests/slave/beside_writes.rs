//! A log has records and parts of checkpoints among its writes, and may have lost its beginning.

use tlog_codec::{CheckpointPart, CheckpointRecord, Content, Mark, MarkName, PlaceInLog, Record};
use tlog_player::slave::{
    NeedsResync, SlaveLag, SlaveRestoreError, SlaveRestoreOptions, SlaveSyncState, lag_behind,
    restore_to_slave, resync_slave,
};
use tlog_player::{Moment, ReadOptions};
use tlog_proto::{Block, BlockIndex, Generation, LogPosition, Sequence, Timestamp};
use tlog_store::ShardStore;
use tlog_store::slave::SlavePoint;
use tokio::sync::watch;

use crate::log::number;
use crate::scene::{Stores, Written, until, within};

/// Where the log is after a write; sequence and write are one here, and there is one generation.
fn place(written: &Written, write: usize) -> PlaceInLog {
    let SlavePoint { aggregation, blocks, id } = written.after[write].0;
    let of = written.after.iter().filter(|(point, _)| point.aggregation == aggregation).count() as u32;
    let position = LogPosition { generation: Generation(1), sequence: Sequence(write as u64) };
    PlaceInLog { aggregation, id, blocks, of, position, timestamp: Timestamp(1000 + write as u64) }
}

async fn mark(written: &mut Written, write: usize) {
    let place = place(written, write);
    let record = Record::Mark(Mark { name: MarkName::new("m").unwrap(), place });
    written.log.append_without_writes(Content::Record(&record), place.timestamp).await;
    written.log.publish().await;
}

async fn checkpoint(written: &mut Written, write: usize) {
    let place = place(written, write);
    let disk = written.after[write].1.clone();
    let set = |(index, data): (&u64, &bytes::Bytes)| {
        Block::set(Sequence(1), BlockIndex::new(*index).unwrap(), Timestamp(1), data.clone())
    };
    let blocks: Vec<Block> = disk.iter().map(set).collect();
    let mut parts = Vec::new();
    for part in blocks.chunks(2) {
        let stored = written.log.append_without_writes(Content::Checkpoint(part), place.timestamp).await;
        parts.push(CheckpointPart {
            number: stored.header.number,
            id: stored.id,
            blocks: part.len() as u32,
            first: part[0].index,
            last: part[part.len() - 1].index,
        });
    }
    let record = Record::Checkpoint(CheckpointRecord {
        place,
        block_size: 64,
        blocks: blocks.len() as u64,
        bytes: blocks.iter().map(|block| block.data.len() as u64).sum(),
        base: None,
        parts,
    });
    written.log.append_without_writes(Content::Record(&record), place.timestamp).await;
    written.log.publish().await;
}

async fn prune(written: &Written, first: u64) {
    for store in &written.log.memory {
        store.prune(&written.log.vdisk, written.log.epoch, number(first)).await.unwrap();
    }
}

#[tokio::test]
async fn a_slave_is_followed_past_them_and_is_up_to_date_also_where_the_log_ends_with_some() {
    let nothing = SlaveLag { aggregations: 0, blocks: Some(0), since: None };
    let mut written = Written::new(81).await;
    let stores = Stores::new(2, true);
    let (tell, more) = watch::channel(());
    let syncer = written.syncer_told(stores.cluster(&written.log), more);
    for round in 0..4 {
        written.append(3).await;
        let newest = written.after.len() - 1;
        checkpoint(&mut written, newest).await;
        // More than is listed at once.
        for _ in 0..round * 20 {
            mark(&mut written, newest).await;
        }
        tell.send_replace(());
        within(syncer.wait_until(written.end())).await.unwrap();
        let status = until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
        assert_eq!(stores.disk(&written.log), *written.disk());
        assert_eq!(status.lag, Some(nothing));
        let position = status.position.unwrap();
        assert_eq!(
            (position.point, position.last.unwrap().position),
            (written.after[newest].0, written.end())
        );
        // Whoever has no syncer to ask sees the same.
        let reader = written.log.reader().await;
        assert_eq!(lag_behind(&reader, &position).await.unwrap(), nothing);
    }
    syncer.stop().await;
    // What comes without writes leaves a slave that starts again up to date.
    mark(&mut written, 1).await;
    let syncer = written.syncer(stores.cluster(&written.log));
    let status = until(&syncer, |state| *state == SlaveSyncState::UpToDate).await;
    assert_eq!((status.lag, status.blocks), (Some(nothing), 0));
}

#[tokio::test]
async fn a_slave_that_lacks_something_is_behind_by_the_first_write_that_it_lacks() {
    let mut written = Written::new(82).await;
    written.append(2).await;
    let stores = Stores::new(1, false);
    let syncer = written.syncer(stores.cluster(&written.log));
    within(syncer.wait_until(written.end())).await.unwrap();
    syncer.stop().await;
    let position = stores.cluster(&written.log).state().await.unwrap().position().unwrap();
    let newest = written.after.len() - 1;
    checkpoint(&mut written, newest).await;
    let first_lacking = written.log.next;
    written.append(1).await;
    mark(&mut written, newest).await;
    let lag = lag_behind(&written.log.reader().await, &position).await.unwrap();
    let lacking = (written.after.len() - 1 - newest) as u64;
    assert_eq!((lag.aggregations, lag.blocks), (2, Some(lacking)));
    assert_eq!(lag.since, Some(Timestamp(1_000_000 + first_lacking.0)));
}

#[tokio::test]
async fn a_slave_goes_on_as_long_as_its_own_aggregation_is_kept_and_is_filled_from_a_checkpoint_after_that() {
    for beyond in [0, 1] {
        let mut written = Written::new(83).await;
        written.append(5).await;
        let stores = Stores::new(2, false);
        let cluster = stores.cluster(&written.log);
        let syncer = written.syncer(cluster.clone());
        within(syncer.wait_until(written.end())).await.unwrap();
        syncer.stop().await;
        let newest = written.after.len() - 1;
        let aggregation = written.after[newest].0.aggregation.0;
        checkpoint(&mut written, newest).await;
        written.append(4).await;
        prune(&written, aggregation + beyond).await;
        let syncer = written.syncer(cluster.clone());
        if beyond == 0 {
            within(syncer.wait_until(written.end())).await.unwrap();
        } else {
            let pruned = NeedsResync::Pruned { next: number(aggregation), first: number(aggregation + 1) };
            until(&syncer, |state| *state == SlaveSyncState::NeedsResync(pruned.clone())).await;
            let reader = written.log.reader().await;
            let (read, options) = (ReadOptions::default(), SlaveRestoreOptions::default());
            resync_slave(&reader, &written.log.keys, &cluster, &read, &options, |_| {}).await.unwrap();
            within(syncer.wait_until(written.end())).await.unwrap();
        }
        assert_eq!(stores.disk(&written.log), *written.disk());
    }
}

#[tokio::test]
async fn a_restore_that_was_interrupted_goes_on_right_also_where_a_checkpoint_came_or_went_meanwhile() {
    let (with, without) =
        (ReadOptions::default(), ReadOptions { ignore_checkpoints: true, ..ReadOptions::default() });
    for [first, second] in [[without, with], [with, without]] {
        let (mut resumed, mut incomplete) = (0, 0);
        for steps in 0..60 {
            let mut written = Written::new(84).await;
            written.append(4).await;
            // Its parts lie behind all writes that are restored, or among them.
            let among = steps % 2 == 0;
            if among {
                let newest = written.after.len() - 1;
                checkpoint(&mut written, newest).await;
            }
            written.append(4).await;
            let write = written.after.len() - 1;
            let moment = Moment::Sequence { generation: None, sequence: Sequence(write as u64) };
            let base = (1..write).rev().find(|at| {
                let place = place(&written, *at);
                place.blocks == place.of && place.aggregation.0 <= 4
            });
            let stores = Stores::new(2, true);
            let cluster = stores.cluster(&written.log);
            if !among {
                checkpoint(&mut written, base.unwrap()).await;
            }
            let restore = async |read: &ReadOptions| {
                let reader = written.log.reader().await;
                let state = reader.disk_state(&written.log.keys, moment, read).await.unwrap();
                let options = SlaveRestoreOptions::default();
                restore_to_slave(&reader, &written.log.keys, &state, &cluster, &options, |_| {}).await
            };
            stores.gate.close_after(steps, false);
            let interrupted = restore(&first).await.is_err();
            stores.gate.open();
            // Where the notes say that something is done which this way needs again, it is not taken for complete.
            let done = match restore(&second).await {
                Err(SlaveRestoreError::Incomplete { .. }) if second == without => {
                    incomplete += 1;
                    restore(&second).await.unwrap()
                }
                done => done.unwrap(),
            };
            resumed += u32::from(done.resumed);
            assert_eq!(stores.disk(&written.log), *written.disk(), "after {steps} steps");
            let position = cluster.state().await.unwrap().position().unwrap();
            assert_eq!(position.point, written.after[write].0);
            if !interrupted {
                break;
            }
        }
        assert!(resumed > 3, "{resumed} were gone on with, {incomplete} begun again");
    }
}
