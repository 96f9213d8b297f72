//! Which moments there are, and what the disk is at each.

use tlog_player::{DiskStateError, LogReader, Moment, MomentError, OpenError, ReadOptions};
use tlog_proto::{BlockIndex, Generation, LogPosition, Sequence, Timestamp, VdiskId};
use tlog_quorum::StoreSet;

use crate::log::{BLOCK_SIZE, TestLog, number, set_block};
use crate::oracle::{Snapshot, Story, random_story};

pub(crate) async fn check(story: &Story, moment: Moment, expected: &Snapshot, seed: u64) {
    let state = story.log.state(moment).await.unwrap();
    let reached = state.reached().unwrap();
    let of = |s: &Snapshot| (s.format, s.aggregation, s.generation, s.sequence, s.timestamp);
    let LogPosition { generation, sequence } = reached.position;
    let actual = (reached.format, reached.aggregation.0, generation.0, sequence.0, reached.timestamp.0);
    assert_eq!(actual, of(expected), "seed {seed}, {moment:?}");
    assert_eq!(state.disk_len(), Some(expected.image.len() as u64), "seed {seed}, {moment:?}");
    let restored = story.log.restore(moment).await.unwrap();
    assert!(restored == expected.image, "seed {seed}, {moment:?}: the restored disk differs");

    // Found without the data: exactly the blocks that differ from another image.
    let other = &story.newest().image;
    let padded = |image: &[u8], at: usize| -> Vec<u8> {
        let block = image.iter().skip(at * BLOCK_SIZE).take(BLOCK_SIZE);
        block.copied().chain(std::iter::repeat(0)).take(BLOCK_SIZE).collect()
    };
    let blocks: Vec<Vec<u8>> = (0..12).map(|at| padded(other, at)).collect();
    let indexed = blocks.iter().enumerate().map(|(i, b)| (BlockIndex::new(i as u64).unwrap(), b.as_slice()));
    let differs: Vec<bool> = (0..12).map(|at| padded(&expected.image, at) != blocks[at]).collect();
    assert_eq!(state.differ(indexed), differs, "seed {seed}, {moment:?}");
}

#[tokio::test]
async fn every_moment_of_random_histories_equals_an_image_taken_then() {
    for (data, parity) in [(4, 2), (2, 1), (1, 0), (3, 2)] {
        for seed in 0..3 {
            let story = random_story(seed, data, parity, 14).await;
            check(&story, Moment::Newest, story.newest(), seed).await;
            for aggregation in 1..=14 {
                let expected = story.last_where(|s| s.aggregation == aggregation).unwrap();
                check(&story, Moment::Aggregation(number(aggregation)), expected, seed).await;
            }
            let times = story.snapshots.iter().flat_map(|s| s.timestamp - 1..=s.timestamp);
            let times: std::collections::BTreeSet<u64> = times.chain([1_000_000]).collect();
            for time in times {
                if let Some(expected) = story.last_where(|s| s.timestamp <= time) {
                    check(&story, Moment::At(Timestamp(time)), expected, seed).await;
                }
            }
            for snapshot in &story.snapshots {
                let sequence = Sequence(snapshot.sequence);
                let newest = story.last_where(|s| s.sequence == snapshot.sequence).unwrap();
                check(&story, Moment::Sequence { generation: None, sequence }, newest, seed).await;
                let generation = Some(Generation(snapshot.generation));
                check(&story, Moment::Sequence { generation, sequence }, snapshot, seed).await;
            }
        }
    }
}

#[tokio::test]
async fn moments_that_the_log_does_not_have_are_named_with_those_that_it_has() {
    let log = TestLog::with(2, 1, 3).await; // sequences 1 to 3, timestamps 1001 to 1003
    let error = async |moment| match log.state(moment).await {
        Err(DiskStateError::Moment(error)) => error,
        other => panic!("{other:?}"),
    };
    let vdisk = log.vdisk.clone();
    assert_eq!(
        error(Moment::At(Timestamp(1000))).await,
        MomentError::BeforeHistory {
            vdisk: vdisk.clone(),
            asked: Timestamp(1000),
            oldest: Timestamp(1001),
            newest: Timestamp(1003),
        }
    );
    let at = |sequence| LogPosition { generation: Generation(1), sequence: Sequence(sequence) };
    let (sequence, generation) = (Sequence(4), None);
    let absent =
        MomentError::NoSuchSequence { vdisk: vdisk.clone(), sequence, generation, first: at(1), last: at(3) };
    assert_eq!(error(Moment::Sequence { generation, sequence }).await, absent);
    let (sequence, generation) = (Sequence(2), Some(Generation(2)));
    let absent =
        MomentError::NoSuchSequence { vdisk: vdisk.clone(), sequence, generation, first: at(1), last: at(3) };
    assert_eq!(error(Moment::Sequence { generation, sequence }).await, absent);
    for asked in [number(0), number(4)] {
        let absent =
            MomentError::NoSuchAggregation { vdisk: vdisk.clone(), asked, first: number(1), last: number(3) };
        assert_eq!(error(Moment::Aggregation(asked)).await, absent);
    }
}

#[tokio::test]
async fn an_empty_log_is_an_empty_disk_and_has_no_moments() {
    let log = TestLog::new(2, 1).await;
    let state = log.state(Moment::Newest).await.unwrap();
    assert_eq!((state.reached(), state.block_count(), state.disk_len()), (None, 0, Some(0)));
    assert!(!state.differs(BlockIndex::new(3).unwrap(), &[0; 100]));
    assert!(state.differs(BlockIndex::new(3).unwrap(), &[0, 1]));
    assert_eq!(log.restore(Moment::Newest).await.unwrap(), Vec::<u8>::new());
    let error = log.state(Moment::At(Timestamp(5))).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::Empty { .. })), "{error}");
    assert_eq!(log.reader().await.history().collect().await.unwrap(), []);
}

#[tokio::test]
async fn a_vdisk_that_no_store_knows_is_an_error_and_so_are_too_few_stores() {
    let log = TestLog::with(4, 2, 1).await;
    let of = |vdisk: &str| {
        let vdisk = VdiskId::new(vdisk).unwrap();
        StoreSet::new(vdisk, log.set.stores().to_vec(), log.set.quorums(), log.set.timeout()).unwrap()
    };
    log.controls[2].set_down(true);
    let error = LogReader::open(of("other")).await.unwrap_err();
    assert!(
        matches!(&error, OpenError::UnknownVdisk { unreachable, .. } if unreachable.len() == 1),
        "{error}"
    );
    assert!(error.to_string().contains("memory:2"), "{error}");
    for store in [0, 1, 3] {
        log.controls[store].set_down(true);
    }
    assert!(LogReader::open(of("disk")).await.is_ok(), "two stores answer, which is what a reader needs");
    log.controls[4].set_down(true);
    let error = LogReader::open(of("disk")).await.unwrap_err();
    assert!(matches!(&error, OpenError::TooFewStores(e) if e.counted == 1 && e.needed == 2), "{error}");
    assert!(error.to_string().contains("memory:4"), "{error}");
}

#[tokio::test]
async fn a_log_on_another_number_of_stores_is_not_mistaken_for_a_damaged_one() {
    let log = TestLog::with(4, 2, 2).await;
    let quorums = tlog_quorum::Quorums::default_for(tlog_codec::Redundancy::new(2, 1).unwrap());
    let stores = log.set.stores()[..3].to_vec();
    let set = StoreSet::new(log.vdisk.clone(), stores, quorums, log.set.timeout()).unwrap();
    let error = LogReader::open(set).await.unwrap_err();
    assert!(matches!(error, OpenError::OtherShape(_)), "{error}");
    assert!(error.to_string().contains("is on 6 stores"), "{error}");
}

#[tokio::test]
async fn every_call_can_be_made_from_a_task_of_its_own() {
    fn sendable<T: Send>(future: T) -> T {
        future
    }
    let log = TestLog::with(2, 1, 2).await;
    let reader = sendable(LogReader::open(log.set.clone())).await.unwrap();
    let options = ReadOptions::default();
    let state = sendable(reader.disk_state(&log.keys, Moment::Newest, &options)).await.unwrap();
    sendable(reader.history().collect()).await.unwrap();
    sendable(reader.verify(tlog_player::Depth::Deep(&log.keys), |_| {})).await.unwrap();
    let target = std::sync::Arc::new(tlog_player::MemoryTarget::default());
    let options = tlog_player::RestoreOptions::default();
    sendable(reader.restore(&log.keys, &state, target, &options, |_| {})).await.unwrap();
}

#[tokio::test]
async fn where_blocks_belong_is_never_guessed() {
    // Only the short last block of the disk was written at first.
    let mut log = TestLog::new(2, 1).await;
    log.append(1, &[set_block(1, 5, 10, vec![1; 24])]).await;
    log.append(1, &[set_block(2, 0, 20, vec![2; BLOCK_SIZE])]).await;
    log.publish().await;
    let restored = log.restore(Moment::Aggregation(number(1))).await.unwrap();
    assert_eq!(restored.len(), 5 * BLOCK_SIZE + 24);

    // A short block is followed by zeros.
    let state = log.state(Moment::Newest).await.unwrap();
    let index = BlockIndex::new(5).unwrap();
    let with_end = |end: u8| [vec![1; 24], vec![end; 40]].concat();
    assert_eq!([0, 1].map(|end| state.differs(index, &with_end(end))), [false, true]);
    assert!(state.differs(index, &[1; 23]) && !state.differs(index, &[1; 24]));

    // Blocks of another size, from some time on.
    let mut log = TestLog::new(2, 1).await;
    log.append(1, &[set_block(1, 0, 10, vec![1; 32]), set_block(2, 5, 10, vec![1; 32])]).await;
    log.append(1, &[set_block(3, 0, 20, vec![2; BLOCK_SIZE])]).await;
    log.publish().await;
    let moment = Moment::Aggregation(number(1));
    let error = log.state(moment).await.unwrap_err();
    assert!(matches!(error, DiskStateError::BlockSizeUnclear { then: 32, now: 64, .. }), "{error}");
    let reader = log.reader().await;
    let with = async |block_size| {
        let options = ReadOptions { block_size: Some(block_size), ..ReadOptions::default() };
        reader.disk_state(&log.keys, moment, &options).await
    };
    assert_eq!(with(32).await.unwrap().disk_len(), Some(6 * 32));
    assert_eq!(with(64).await.unwrap().disk_len(), Some(5 * 64 + 32));
    let error = with(16).await.unwrap_err();
    assert!(matches!(error, DiskStateError::BlockTooLong { length: 32, block_size: 16, .. }), "{error}");
}

#[tokio::test]
async fn without_its_beginning_a_disk_is_not_put_together_unless_that_is_accepted() {
    use tlog_store::ShardStore;
    let mut log = TestLog::with(2, 1, 5).await;
    for store in &log.memory {
        store.prune(&log.vdisk, log.epoch, number(4)).await.unwrap();
    }
    let reader = log.reader().await;
    assert_eq!((reader.extent().first, reader.extent().last), (number(4), number(5)));
    let history = reader.history().collect().await.unwrap();
    assert_eq!(history.iter().map(|info| info.number.0).collect::<Vec<_>>(), [4, 5]);
    let error = log.state(Moment::Newest).await.unwrap_err();
    assert!(
        matches!(&error, DiskStateError::Moment(MomentError::BasePruned { first, .. }) if *first == number(4)),
        "{error}"
    );
    let error = log.state(Moment::Aggregation(number(3))).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::NoSuchAggregation { .. })), "{error}");
    let options = ReadOptions { accept_pruned_base: true, ..ReadOptions::default() };
    let state = reader.disk_state(&log.keys, Moment::Newest, &options).await.unwrap();
    assert_eq!(state.blocks().map(|(index, _)| index.get()).collect::<Vec<_>>(), [4, 5]);

    // All of it pruned: what comes next still follows.
    for store in &log.memory {
        store.prune(&log.vdisk, log.epoch, number(6)).await.unwrap();
    }
    assert!(log.reader().await.extent().is_empty());
    log.append_one().await;
    assert_eq!(log.reader().await.history().collect().await.unwrap().len(), 1);
}
