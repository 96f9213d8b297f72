//! The tests that every [`SlaveStore`] passes.

use std::sync::Arc;

use bytes::Bytes;
use tlog_proto::{
    AggregationId, AggregationNumber, BlockIndex, Epoch, Generation, LogPosition, Sequence, Timestamp,
};

use super::vdisk;
use crate::StoreError;
use crate::slave::{
    BlockChange, Claim, FillId, LastWrite, PartState, RecordState, Restoring, SlaveMark, SlaveOutcome,
    SlaveOwner, SlavePart, SlavePoint, SlavePosition, SlaveRecord, SlaveStep, SlaveStore,
};

const FILL: FillId = FillId([7; 16]);
const DONE: SlaveOutcome = SlaveOutcome::Done;
const CHANGED: SlaveOutcome = SlaveOutcome::Changed;

/// Checks every rule. `make` answers a store that knows nothing, a new one each time.
pub async fn check_slave(make: impl Fn() -> Arc<dyn SlaveStore>) {
    a_store_that_knows_nothing_says_so(make()).await;
    an_epoch_is_promised_once_and_fences_what_is_older(make()).await;
    who_comes_back_is_fenced_by_whoever_came_between(make()).await;
    a_store_that_knows_an_older_epoch_has_changed(make()).await;
    a_step_is_applied_once_and_only_from_where_it_begins(make()).await;
    a_part_that_is_being_filled_takes_blocks_in_any_order(make()).await;
    a_clear_leaves_nothing_but_the_epoch(make()).await;
    a_record_comes_back_as_it_was_kept(make()).await;
    one_store_can_be_both_and_vdisks_do_not_touch_each_other(make()).await;
    a_large_step_is_applied_as_a_whole(make()).await;
}

/// A point whose id follows from its numbers.
pub fn point(aggregation: u64, blocks: u32) -> SlavePoint {
    let mut id = [1; 32];
    id[..8].copy_from_slice(&aggregation.to_le_bytes());
    SlavePoint { aggregation: AggregationNumber(aggregation), blocks, id: AggregationId(id) }
}

fn part(applied: Option<SlavePoint>) -> SlavePart {
    SlavePart { fill: FILL, index: 1, stores: 3, applied }
}

fn step(from: SlavePoint, to: SlavePoint) -> SlaveStep {
    SlaveStep { fill: FILL, from: Some(from), to: Some(to) }
}

fn set(index: u64, data: &'static [u8]) -> BlockChange {
    BlockChange { index: BlockIndex::new(index).unwrap(), data: Some(Bytes::from_static(data)) }
}

fn delete(index: u64) -> BlockChange {
    BlockChange { index: BlockIndex::new(index).unwrap(), data: None }
}

fn fenced_by<T: std::fmt::Debug>(result: Result<T, StoreError>, epoch: u64) {
    match result.unwrap_err().kind {
        crate::StoreErrorKind::Fenced { promised } => assert_eq!(promised, Epoch(epoch)),
        other => panic!("not fenced: {other}"),
    }
}

async fn a_store_that_knows_nothing_says_so(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    assert_eq!(store.part(&disk).await.unwrap(), PartState::default());
    assert_eq!(store.record(&disk).await.unwrap(), RecordState::default());
    // Nobody has promised it anything, so that nothing is done for anybody.
    assert_eq!(store.begin(&disk, Epoch(1), &part(None)).await.unwrap(), CHANGED);
    assert_eq!(store.clear(&disk, Epoch(1)).await.unwrap(), CHANGED);
    assert_eq!(store.keep(&disk, Epoch(1), &SlaveRecord::default()).await.unwrap(), CHANGED);
    let step = step(point(0, 0), point(1, 1));
    assert_eq!(store.apply(&disk, Epoch(1), &step, &[set(1, b"a")]).await.unwrap(), CHANGED);
    assert_eq!(store.part(&disk).await.unwrap(), PartState::default());
}

async fn an_epoch_is_promised_once_and_fences_what_is_older(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(4)).await.unwrap();
    fenced_by(store.raise(&disk, Epoch(4)).await, 4);
    fenced_by(store.raise(&disk, Epoch(3)).await, 4);
    fenced_by(store.begin(&disk, Epoch(3), &part(Some(point(0, 0)))).await, 4);
    assert_eq!(store.begin(&disk, Epoch(4), &part(Some(point(0, 0)))).await.unwrap(), DONE);
    let first = step(point(0, 0), point(1, 1));
    assert_eq!(store.apply(&disk, Epoch(4), &first, &[set(1, b"a")]).await.unwrap(), DONE);
    store.raise(&disk, Epoch(9)).await.unwrap();
    fenced_by(store.apply(&disk, Epoch(4), &step(point(1, 1), point(1, 2)), &[set(4, b"b")]).await, 9);
    fenced_by(store.clear(&disk, Epoch(4)).await, 9);
    let state = store.part(&disk).await.unwrap();
    let expected = PartState { epoch: Epoch(9), part: Some(part(Some(point(1, 1)))), blocks: 1, counted: 1 };
    assert_eq!(state, expected);
}

async fn who_comes_back_is_fenced_by_whoever_came_between(store: Arc<dyn SlaveStore>) {
    let (disk, one, two) = (vdisk("v"), SlaveOwner([1; 16]), SlaveOwner([2; 16]));
    store.promise(&disk, Epoch(1), one, Claim::Over).await.unwrap();
    store.promise(&disk, Epoch(2), one, Claim::Back).await.unwrap();
    fenced_by(store.promise(&disk, Epoch(2), one, Claim::Back).await, 2);
    fenced_by(store.promise(&disk, Epoch(3), two, Claim::Back).await, 2);
    store.promise(&disk, Epoch(3), two, Claim::Over).await.unwrap();
    fenced_by(store.promise(&disk, Epoch(4), one, Claim::Back).await, 3);
    fenced_by(store.keep(&disk, Epoch(2), &SlaveRecord::default()).await, 3);
    let state = store.record(&disk).await.unwrap();
    assert_eq!((state.epoch, state.owner), (Epoch(3), Some(two)));
    assert_eq!(store.keep(&disk, Epoch(3), &SlaveRecord::default()).await.unwrap(), DONE);
}

async fn a_store_that_knows_an_older_epoch_has_changed(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(4)).await.unwrap();
    assert_eq!(store.begin(&disk, Epoch(4), &part(Some(point(0, 0)))).await.unwrap(), DONE);
    let first = step(point(0, 0), point(1, 1));
    assert_eq!(store.apply(&disk, Epoch(5), &first, &[set(1, b"a")]).await.unwrap(), CHANGED);
    assert_eq!(store.clear(&disk, Epoch(5)).await.unwrap(), CHANGED);
    assert_eq!(store.begin(&disk, Epoch(5), &part(None)).await.unwrap(), CHANGED);
    assert_eq!(store.part(&disk).await.unwrap().part, Some(part(Some(point(0, 0)))));
    store.promise(&disk, Epoch(4), SlaveOwner([1; 16]), Claim::Over).await.unwrap();
    assert_eq!(store.keep(&disk, Epoch(5), &SlaveRecord::default()).await.unwrap(), CHANGED);
}

async fn a_step_is_applied_once_and_only_from_where_it_begins(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(1)).await.unwrap();
    assert_eq!(store.begin(&disk, Epoch(1), &part(Some(point(0, 0)))).await.unwrap(), DONE);
    let first = step(point(0, 0), point(1, 2));
    let changes = [set(1, b"a"), set(4, b"\0\xff"), delete(7)];
    assert_eq!(store.apply(&disk, Epoch(1), &first, &changes).await.unwrap(), DONE);
    let second = step(point(1, 2), point(3, 1));
    assert_eq!(store.apply(&disk, Epoch(1), &second, &[delete(1), set(7, b"c")]).await.unwrap(), DONE);
    let after = store.part(&disk).await.unwrap();
    assert_eq!(
        after,
        PartState { epoch: Epoch(1), part: Some(part(Some(point(3, 1)))), blocks: 2, counted: 2 }
    );
    // Again, as its answer was lost: it is done already. One from before that comes late: it does nothing.
    assert_eq!(store.apply(&disk, Epoch(1), &second, &[delete(1), set(7, b"c")]).await.unwrap(), DONE);
    assert_eq!(store.apply(&disk, Epoch(1), &first, &changes).await.unwrap(), CHANGED);
    // The same place in another log, another fill, and one that fills.
    let other_id = SlavePoint { id: AggregationId([9; 32]), ..point(3, 1) };
    assert_eq!(
        store.apply(&disk, Epoch(1), &step(other_id, point(4, 1)), &[set(1, b"x")]).await.unwrap(),
        CHANGED
    );
    let other_fill = SlaveStep { fill: FillId([8; 16]), ..step(point(3, 1), point(4, 1)) };
    assert_eq!(store.apply(&disk, Epoch(1), &other_fill, &[set(1, b"x")]).await.unwrap(), CHANGED);
    let filling = SlaveStep { fill: FILL, from: None, to: None };
    assert_eq!(store.apply(&disk, Epoch(1), &filling, &[set(1, b"x")]).await.unwrap(), CHANGED);
    assert_eq!(store.part(&disk).await.unwrap(), after);
}

async fn a_part_that_is_being_filled_takes_blocks_in_any_order(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(1)).await.unwrap();
    assert_eq!(store.begin(&disk, Epoch(1), &part(None)).await.unwrap(), DONE);
    let filling = SlaveStep { fill: FILL, from: None, to: None };
    for _ in 0..2 {
        for index in [7, 1, 4] {
            assert_eq!(store.apply(&disk, Epoch(1), &filling, &[set(index, b"x")]).await.unwrap(), DONE);
        }
    }
    let log = step(point(0, 0), point(1, 1));
    assert_eq!(store.apply(&disk, Epoch(1), &log, &[set(10, b"y")]).await.unwrap(), CHANGED);
    assert_eq!(store.part(&disk).await.unwrap().blocks, 3);
    assert_eq!(store.begin(&disk, Epoch(1), &part(Some(point(9, 3)))).await.unwrap(), DONE);
    let state = store.part(&disk).await.unwrap();
    assert_eq!(
        state,
        PartState { epoch: Epoch(1), part: Some(part(Some(point(9, 3)))), blocks: 3, counted: 3 }
    );
}

async fn a_clear_leaves_nothing_but_the_epoch(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(3)).await.unwrap();
    assert_eq!(store.clear(&disk, Epoch(3)).await.unwrap(), DONE);
    assert_eq!(store.begin(&disk, Epoch(3), &part(None)).await.unwrap(), DONE);
    let filling = SlaveStep { fill: FILL, from: None, to: None };
    assert_eq!(store.apply(&disk, Epoch(3), &filling, &[set(1, b"a")]).await.unwrap(), DONE);
    for _ in 0..2 {
        assert_eq!(store.clear(&disk, Epoch(3)).await.unwrap(), DONE);
        let expected = PartState { epoch: Epoch(3), ..PartState::default() };
        assert_eq!(store.part(&disk).await.unwrap(), expected);
    }
    assert_eq!(store.apply(&disk, Epoch(3), &filling, &[set(1, b"a")]).await.unwrap(), CHANGED);
}

async fn a_record_comes_back_as_it_was_kept(store: Arc<dyn SlaveStore>) {
    let (disk, owner) = (vdisk("v"), SlaveOwner([1; 16]));
    store.promise(&disk, Epoch(2), owner, Claim::Over).await.unwrap();
    let last = LastWrite {
        position: LogPosition { generation: Generation(3), sequence: Sequence(u64::MAX) },
        timestamp: Timestamp(u64::MAX - 1),
    };
    let target = SlavePosition { point: point(7, 3), last: Some(last) };
    let running = SlaveRecord {
        mark: SlaveMark::Running,
        fill: Some(FILL),
        position: Some(target),
        applied: vec![point(7, 3), point(6, 25), SlavePoint::START],
    };
    let restoring = |done| {
        let restoring = Restoring { target, done, aggregations: (9, 4), blocks: 1 << 40 };
        SlaveRecord {
            mark: SlaveMark::Restoring(restoring),
            position: None,
            applied: vec![],
            ..running.clone()
        }
    };
    let start = SlavePosition { point: SlavePoint::START, last: None };
    let records = [
        (running.clone(), Some(Sequence(u64::MAX))),
        (SlaveRecord { mark: SlaveMark::Stopped, ..running.clone() }, Some(Sequence(u64::MAX))),
        // What has no fill leaves alone what others have written.
        (SlaveRecord { mark: SlaveMark::Stopped, ..SlaveRecord::default() }, Some(Sequence(u64::MAX))),
        (restoring(None), None),
        (restoring(Some((2, AggregationNumber(5)))), None),
        (SlaveRecord { position: Some(start), applied: vec![SlavePoint::START], ..running.clone() }, None),
        (SlaveRecord::default(), None),
    ];
    for (record, legacy_sequence) in records {
        assert_eq!(store.keep(&disk, Epoch(2), &record).await.unwrap(), DONE);
        let expected = RecordState { epoch: Epoch(2), owner: Some(owner), record, legacy_sequence };
        assert_eq!(store.record(&disk).await.unwrap(), expected);
    }
}

async fn one_store_can_be_both_and_vdisks_do_not_touch_each_other(store: Arc<dyn SlaveStore>) {
    let (one, two) = (vdisk("v"), vdisk("v:slave"));
    store.raise(&one, Epoch(1)).await.unwrap();
    store.promise(&one, Epoch(2), SlaveOwner([1; 16]), Claim::Over).await.unwrap();
    store.raise(&two, Epoch(8)).await.unwrap();
    assert_eq!(store.begin(&one, Epoch(1), &part(None)).await.unwrap(), DONE);
    assert_eq!(store.keep(&one, Epoch(2), &SlaveRecord::default()).await.unwrap(), DONE);
    assert_eq!(store.clear(&two, Epoch(8)).await.unwrap(), DONE);
    assert_eq!(store.part(&one).await.unwrap().part, Some(part(None)));
    assert_eq!(store.part(&one).await.unwrap().epoch, Epoch(1));
    assert_eq!(store.record(&one).await.unwrap().epoch, Epoch(2));
    assert_eq!(store.record(&two).await.unwrap(), RecordState::default());
}

async fn a_large_step_is_applied_as_a_whole(store: Arc<dyn SlaveStore>) {
    let disk = vdisk("v");
    store.raise(&disk, Epoch(1)).await.unwrap();
    assert_eq!(store.begin(&disk, Epoch(1), &part(Some(point(0, 0)))).await.unwrap(), DONE);
    let large = Bytes::from(vec![0x5a; 3 << 20]);
    let index = |i: u64| BlockIndex::new(i * 3 + 1).unwrap();
    let mut changes: Vec<BlockChange> =
        (0..512).map(|i| BlockChange { index: index(i), data: None }).collect();
    assert_eq!(store.apply(&disk, Epoch(1), &step(point(0, 0), point(1, 1)), &changes).await.unwrap(), DONE);
    changes.iter_mut().for_each(|change| change.data = Some(Bytes::from_static(b"block")));
    changes[7].data = Some(large);
    assert_eq!(store.apply(&disk, Epoch(1), &step(point(1, 1), point(2, 1)), &changes).await.unwrap(), DONE);
    assert_eq!(store.part(&disk).await.unwrap().blocks, 512);
    changes.iter_mut().take(500).for_each(|change| change.data = None);
    assert_eq!(store.apply(&disk, Epoch(1), &step(point(2, 1), point(3, 1)), &changes).await.unwrap(), DONE);
    assert_eq!(store.part(&disk).await.unwrap().blocks, 12);
}
