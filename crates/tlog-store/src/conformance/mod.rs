//! The tests that every [`ShardStore`] passes: each rule of the port by name, and random operations against a model.
//!
//! They are functions and not tests, so that the stores of other crates run them too. They panic where a store breaks a
//! rule.
//!
//! ```ignore
//! #[tokio::test]
//! async fn my_store_conforms() {
//!     conformance::check_store(|| Arc::new(MyStore::new_empty())).await;
//!     conformance::check_against_model(Arc::new(MyStore::new_empty()), seed, 300, |store| store).await;
//! }
//! ```
// A test suite's panics are its answers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod model;
mod slave;

use std::sync::Arc;

use bytes::Bytes;
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};

pub use self::model::check_against_model;
pub use self::slave::{check_slave, point};
use crate::{
    FillOutcome, Head, HeadSlot, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreError,
    StoreErrorKind, StoreIdentity,
};

/// Checks every rule. `make` answers a store that knows no log, a new one each time.
pub async fn check_store(make: impl Fn() -> Arc<dyn ShardStore>) {
    a_log_that_is_not_known_is_said_to_be_so(make()).await;
    a_promise_makes_the_log_and_fences_everything_older(make()).await;
    a_start_drops_what_older_epochs_wrote_from_its_number_on(make()).await;
    a_start_forgets_starts_at_and_above_its_number(make()).await;
    the_newer_list_of_members_wins(make()).await;
    an_append_stores_replaces_and_raises(make()).await;
    an_append_never_replaces_what_a_newer_epoch_wrote(make()).await;
    a_publish_raises_epoch_and_committed_only(make()).await;
    a_fill_needs_a_committed_number_and_mends_what_is_not_right(make()).await;
    a_prune_removes_what_is_below_and_nothing_comes_back_there(make()).await;
    a_delete_removes_the_log_is_fenced_and_can_be_repeated(make()).await;
    heads_are_those_of_the_range_in_order_and_bounded(make()).await;
    empty_and_large_parts_are_kept_as_they_are(make()).await;
    parts_of_payloads_are_what_was_stored(make()).await;
    logs_do_not_touch_each_other(make()).await;
    operations_at_once_all_take_effect(make()).await;
}

/// A vdisk for a test.
pub fn vdisk(name: &str) -> VdiskId {
    VdiskId::new(name).unwrap()
}

/// A shard whose content follows from its epoch and `salt`.
pub fn shard(epoch: u64, salt: u64) -> Shard {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&epoch.to_le_bytes());
    id[8..16].copy_from_slice(&salt.to_le_bytes());
    let fill = (epoch.wrapping_mul(31) ^ salt) as u8;
    Shard {
        epoch: Epoch(epoch),
        id: AggregationId(id),
        head: Bytes::from(vec![fill; 10 + (salt % 50) as usize]),
        payload: Bytes::from(vec![!fill; (salt * 37 % 300) as usize]),
    }
}

fn n(number: u64) -> AggregationNumber {
    AggregationNumber(number)
}

fn start(epoch: u64, number: u64) -> StartRecord {
    StartRecord { epoch: Epoch(epoch), number: n(number) }
}

fn fenced_by<T: std::fmt::Debug>(result: Result<T, StoreError>, epoch: u64) {
    match result.unwrap_err().kind {
        StoreErrorKind::Fenced { promised } => assert_eq!(promised, Epoch(epoch)),
        other => panic!("not fenced: {other}"),
    }
}

fn not_committed<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::NotCommitted { .. }), "{error}");
}

fn no_log<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::NoLog), "{error}");
}

/// The numbers that the store says it holds, which must be those that it answers.
async fn held(store: &dyn ShardStore, vdisk: &VdiskId) -> Vec<u64> {
    let status = store.status(vdisk).await.unwrap();
    let said: Vec<u64> = status.held.iter().flat_map(|range| range.start().0..=range.end().0).collect();
    let heads = store.heads(vdisk, n(0)..=n(u64::MAX), usize::MAX).await.unwrap();
    assert_eq!(heads.iter().map(|(number, _)| number.0).collect::<Vec<_>>(), said);
    assert_eq!(status.head().0, said.last().copied().unwrap_or_default());
    said
}

async fn held_shard(store: &dyn ShardStore, vdisk: &VdiskId, number: u64) -> Shard {
    match store.shard(vdisk, n(number)).await.unwrap() {
        ShardSlot::Held(shard) => shard,
        other => panic!("number {number}: {other:?}"),
    }
}

async fn open(store: &dyn ShardStore, vdisk: &VdiskId, epoch: u64, number: u64) -> StoreIdentity {
    store.promise(vdisk, Epoch(epoch)).await.unwrap();
    store.start(vdisk, start(epoch, number), &Members::default()).await.unwrap()
}

async fn a_log_that_is_not_known_is_said_to_be_so(store: Arc<dyn ShardStore>) {
    let disk = vdisk("nobody");
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.identity, status.epoch, status.head()), (None, Epoch(0), n(0)));
    assert_eq!(status.first, n(1));
    assert_eq!(store.vdisks().await.unwrap(), []);
    no_log(store.start(&disk, start(1, 1), &Members::default()).await);
    no_log(store.append(&disk, n(1), shard(1, 1), n(0)).await);
    no_log(store.publish(&disk, Epoch(1), n(0)).await);
    no_log(store.fill(&disk, n(1), shard(1, 1)).await);
    no_log(store.prune(&disk, Epoch(1), n(1)).await);
    no_log(store.heads(&disk, n(1)..=n(5), 100).await);
    no_log(store.shard(&disk, n(1)).await);
    // A promise that is refused makes no log either.
    fenced_by(store.promise(&disk, Epoch(0)).await, 0);
    assert_eq!(store.status(&disk).await.unwrap().identity, None);
    assert_eq!(store.vdisks().await.unwrap(), []);
}

async fn a_promise_makes_the_log_and_fences_everything_older(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    let made = store.promise(&disk, Epoch(3)).await.unwrap();
    assert!(made.identity.is_some());
    assert_eq!((made.epoch, made.committed, made.first), (Epoch(3), n(0), n(1)));
    assert_eq!(store.status(&disk).await.unwrap(), made);
    fenced_by(store.promise(&disk, Epoch(3)).await, 3);
    fenced_by(store.promise(&disk, Epoch(2)).await, 3);
    let again = store.promise(&disk, Epoch(7)).await.unwrap();
    assert_eq!((again.identity, again.epoch), (made.identity, Epoch(7)));
    fenced_by(store.start(&disk, start(6, 1), &Members::default()).await, 7);
    fenced_by(store.append(&disk, n(1), shard(6, 1), n(0)).await, 7);
    fenced_by(store.publish(&disk, Epoch(6), n(0)).await, 7);
    fenced_by(store.prune(&disk, Epoch(6), n(1)).await, 7);
    assert_eq!(store.status(&disk).await.unwrap(), again);
}

async fn a_start_drops_what_older_epochs_wrote_from_its_number_on(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    for number in 1..=5 {
        store.append(&disk, n(number), shard(1, number), n(2)).await.unwrap();
    }
    store.append(&disk, n(4), shard(2, 4), n(2)).await.unwrap();
    let identity = store.start(&disk, start(2, 3), &Members::default()).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [1, 2, 4]);
    assert_eq!(store.shard(&disk, n(3)).await.unwrap(), ShardSlot::Empty);
    assert_eq!(held_shard(&*store, &disk, 4).await, shard(2, 4));
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.identity, status.epoch), (Some(identity), Epoch(2)));
    assert_eq!(status.starts, [start(1, 1), start(2, 3)]);
    // It needs no promise of its own, and what comes later is not dropped by it.
    store.start(&disk, start(4, 6), &Members::default()).await.unwrap();
    fenced_by(store.promise(&disk, Epoch(4)).await, 4);
    store.append(&disk, n(6), shard(4, 6), n(2)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [1, 2, 4, 6]);
}

async fn a_start_forgets_starts_at_and_above_its_number(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    for (epoch, number, then) in [
        (2, 10, vec![start(1, 1), start(2, 10)]),
        (3, 20, vec![start(1, 1), start(2, 10), start(3, 20)]),
        (4, 20, vec![start(1, 1), start(2, 10), start(4, 20)]),
        (4, 20, vec![start(1, 1), start(2, 10), start(4, 20)]),
        (5, 7, vec![start(1, 1), start(5, 7)]),
    ] {
        store.start(&disk, start(epoch, number), &Members::default()).await.unwrap();
        assert_eq!(store.status(&disk).await.unwrap().starts, then);
    }
}

async fn the_newer_list_of_members_wins(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    let members = |epoch, change, byte: u8| Members {
        epoch: Epoch(epoch),
        change,
        identities: vec![Some(StoreIdentity([byte; 16])), None],
        data_shards: byte,
        write_quorum: byte + 1,
    };
    for (given, kept) in [
        (members(2, 5, 1), members(2, 5, 1)),
        (members(2, 4, 2), members(2, 5, 1)),
        (members(1, 9, 3), members(2, 5, 1)),
        (members(2, 6, 4), members(2, 6, 4)),
        (members(3, 0, 5), members(3, 0, 5)),
    ] {
        store.start(&disk, start(3, 1), &given).await.unwrap();
        assert_eq!(store.status(&disk).await.unwrap().members, kept);
    }
}

async fn an_append_stores_replaces_and_raises(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    let identity = open(&*store, &disk, 1, 1).await;
    assert_eq!(store.append(&disk, n(1), shard(1, 1), n(0)).await.unwrap(), identity);
    assert_eq!(held_shard(&*store, &disk, 1).await, shard(1, 1));
    store.append(&disk, n(1), shard(1, 100), n(0)).await.unwrap();
    assert_eq!(held_shard(&*store, &disk, 1).await, shard(1, 100));
    store.append(&disk, n(1), shard(3, 200), n(0)).await.unwrap();
    assert_eq!(held_shard(&*store, &disk, 1).await, shard(3, 200));
    fenced_by(store.append(&disk, n(2), shard(2, 2), n(9)).await, 3);
    // Numbers may come in any order, and committed never falls.
    store.append(&disk, n(9), shard(3, 9), n(5)).await.unwrap();
    store.append(&disk, n(3), shard(3, 3), n(1)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [1, 3, 9]);
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.epoch, status.committed, status.head()), (Epoch(3), n(5), n(9)));
}

async fn an_append_never_replaces_what_a_newer_epoch_wrote(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    store.publish(&disk, Epoch(1), n(2)).await.unwrap();
    store.fill(&disk, n(2), shard(5, 2)).await.unwrap();
    fenced_by(store.append(&disk, n(2), shard(1, 77), n(2)).await, 5);
    assert_eq!(held_shard(&*store, &disk, 2).await, shard(5, 2));
    assert_eq!(store.status(&disk).await.unwrap().epoch, Epoch(1));
}

async fn a_publish_raises_epoch_and_committed_only(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    let identity = open(&*store, &disk, 2, 1).await;
    assert_eq!(store.publish(&disk, Epoch(2), n(7)).await.unwrap(), identity);
    store.publish(&disk, Epoch(4), n(3)).await.unwrap();
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.epoch, status.committed, status.head()), (Epoch(4), n(7), n(0)));
    fenced_by(store.publish(&disk, Epoch(3), n(9)).await, 4);
}

async fn a_fill_needs_a_committed_number_and_mends_what_is_not_right(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 5, 1).await;
    store.append(&disk, n(2), shard(5, 2), n(3)).await.unwrap();
    not_committed(store.fill(&disk, n(4), shard(5, 4)).await);
    // It needs no epoch: an older one is as good, and the store's does not change.
    assert_eq!(store.fill(&disk, n(1), shard(3, 1)).await.unwrap(), FillOutcome::Stored);
    assert_eq!(store.fill(&disk, n(1), shard(3, 1)).await.unwrap(), FillOutcome::AlreadyHeld);
    assert_eq!(store.fill(&disk, n(2), shard(5, 2)).await.unwrap(), FillOutcome::AlreadyHeld);
    assert_eq!(store.fill(&disk, n(2), shard(4, 22)).await.unwrap(), FillOutcome::Stored);
    assert_eq!(held_shard(&*store, &disk, 1).await, shard(3, 1));
    assert_eq!(held_shard(&*store, &disk, 2).await, shard(4, 22));
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.epoch, status.committed), (Epoch(5), n(3)));
}

async fn a_prune_removes_what_is_below_and_nothing_comes_back_there(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    for number in 1..=6 {
        store.append(&disk, n(number), shard(1, number), n(5)).await.unwrap();
    }
    not_committed(store.prune(&disk, Epoch(1), n(7)).await);
    store.prune(&disk, Epoch(1), n(4)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [4, 5, 6]);
    store.prune(&disk, Epoch(9), n(2)).await.unwrap();
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.first, status.epoch), (n(4), Epoch(1)));
    // What arrives late is not kept.
    store.append(&disk, n(3), shard(1, 3), n(5)).await.unwrap();
    assert_eq!(store.fill(&disk, n(2), shard(1, 2)).await.unwrap(), FillOutcome::AlreadyHeld);
    assert_eq!(held(&*store, &disk).await, [4, 5, 6]);
    store.prune(&disk, Epoch(1), n(6)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [6]);
    store.append(&disk, n(7), shard(1, 7), n(7)).await.unwrap();
    store.prune(&disk, Epoch(1), n(8)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [] as [u64; 0]);
    assert_eq!(store.status(&disk).await.unwrap().first, n(8));
}

async fn heads_are_those_of_the_range_in_order_and_bounded(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    let shard = |number| Shard { head: Bytes::from(vec![number as u8; 100]), ..shard(1, number) };
    for number in [8, 2, 5, 4] {
        store.append(&disk, n(number), shard(number), n(0)).await.unwrap();
    }
    let entry = |number| {
        let Shard { epoch, id, head, .. } = shard(number);
        (n(number), HeadSlot::Held(Head { epoch, id, head }))
    };
    let heads = async |from, to, max| store.heads(&disk, n(from)..=n(to), max).await.unwrap();
    assert_eq!(heads(3, 8, 10_000).await, [entry(4), entry(5), entry(8)]);
    assert_eq!(heads(0, u64::MAX, usize::MAX).await, [entry(2), entry(4), entry(5), entry(8)]);
    assert_eq!(heads(1, 9, 0).await, [entry(2)]);
    assert_eq!(heads(1, 9, 100).await, [entry(2)]);
    assert_eq!(heads(1, 9, 101).await, [entry(2), entry(4)]);
    assert_eq!(heads(6, 7, 100).await, []);
    assert_eq!(heads(5, 4, 100).await, []);
}

async fn a_delete_removes_the_log_is_fenced_and_can_be_repeated(store: Arc<dyn ShardStore>) {
    let (disk, other) = (vdisk("disk"), vdisk("other"));
    store.delete(&disk, Epoch(1)).await.unwrap(); // not known: nothing to do, and nothing made
    assert_eq!(store.vdisks().await.unwrap(), []);
    let identity = open(&*store, &disk, 3, 1).await;
    open(&*store, &other, 1, 1).await;
    for number in 1..=5 {
        store.append(&disk, n(number), shard(3, number), n(number - 1)).await.unwrap();
        store.append(&other, n(number), shard(1, number), n(number - 1)).await.unwrap();
    }
    fenced_by(store.delete(&disk, Epoch(2)).await, 3);
    assert_eq!(held(&*store, &disk).await, [1, 2, 3, 4, 5]);
    store.promise(&disk, Epoch(4)).await.unwrap();
    fenced_by(store.delete(&disk, Epoch(3)).await, 4);
    store.delete(&disk, Epoch(4)).await.unwrap();
    for _ in 0..2 {
        let status = store.status(&disk).await.unwrap();
        assert_eq!((status.identity, status.epoch, status.head()), (None, Epoch(0), n(0)));
        assert_eq!((status.first, status.committed, status.starts), (n(1), n(0), vec![]));
        no_log(store.append(&disk, n(6), shard(4, 6), n(5)).await);
        no_log(store.fill(&disk, n(1), shard(3, 1)).await);
        no_log(store.publish(&disk, Epoch(4), n(5)).await);
        no_log(store.shard(&disk, n(1)).await);
        no_log(store.heads(&disk, n(1)..=n(9), 99).await);
        store.delete(&disk, Epoch(1)).await.unwrap();
    }
    assert_eq!(store.vdisks().await.unwrap(), std::slice::from_ref(&other));
    assert_eq!(held(&*store, &other).await, [1, 2, 3, 4, 5]);
    // A log of that name is another one, and nothing of the old one is in it.
    let state = store.promise(&disk, Epoch(1)).await.unwrap();
    assert!(state.identity.is_some_and(|new| new != identity));
    assert_eq!((state.committed, state.first, state.starts), (n(0), n(1), vec![]));
    store.start(&disk, start(1, 1), &Members::default()).await.unwrap();
    assert_eq!(held(&*store, &disk).await, Vec::<u64>::new());
    store.append(&disk, n(2), shard(1, 9), n(0)).await.unwrap();
    assert_eq!(held(&*store, &disk).await, [2]);
    assert_eq!(held_shard(&*store, &disk, 2).await, shard(1, 9));
}

async fn empty_and_large_parts_are_kept_as_they_are(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let parts = [(vec![], vec![]), (vec![1, 2, 3], vec![]), (vec![], vec![9; 77]), (vec![7; 70_001], large)];
    for (number, (head, payload)) in (1..).zip(parts) {
        let shard = Shard { head: head.into(), payload: payload.into(), ..shard(1, number) };
        store.append(&disk, n(number), shard.clone(), n(0)).await.unwrap();
        assert_eq!(held_shard(&*store, &disk, number).await, shard);
    }
}

async fn parts_of_payloads_are_what_was_stored(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    let one_byte = std::slice::from_ref(&(0..1));
    no_log(store.payload_parts(&disk, n(1), one_byte).await);
    open(&*store, &disk, 1, 1).await;
    let payload: Bytes = (0..100_000u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
    let head = Bytes::from(vec![3; 5_000]);
    for number in [2, 3, 5] {
        let shard = Shard { head: head.clone(), payload: payload.clone(), ..shard(1, number) };
        store.append(&disk, n(number), shard, n(0)).await.unwrap();
    }
    store.publish(&disk, Epoch(1), n(5)).await.unwrap();
    store.prune(&disk, Epoch(1), n(3)).await.unwrap();
    for number in [3, 5] {
        let ranges = [99_000..100_000, 0..1, 17..4_113];
        let parts = store.payload_parts(&disk, n(number), &ranges).await.unwrap().unwrap();
        let expected = ranges.map(|range| payload.slice(range.start as usize..range.end as usize));
        assert_eq!(parts, expected);
        for beyond in [99_999..100_001, 100_000..100_001, 4_000_000_000..4_000_000_001] {
            assert_eq!(store.payload_parts(&disk, n(number), &[0..1, beyond]).await.unwrap(), None);
        }
    }
    for nothing in [1, 2, 4, 6, u64::MAX] {
        assert_eq!(store.payload_parts(&disk, n(nothing), one_byte).await.unwrap(), None, "{nothing}");
    }
}

async fn logs_do_not_touch_each_other(store: Arc<dyn ShardStore>) {
    let names = ["b", "a", "a.b", "A", "a:1@x+y"];
    for (epoch, name) in (1..).zip(names) {
        open(&*store, &vdisk(name), epoch, 1).await;
        store.append(&vdisk(name), n(epoch), shard(epoch, epoch), n(0)).await.unwrap();
    }
    let mut sorted = names.map(vdisk);
    sorted.sort();
    assert_eq!(store.vdisks().await.unwrap(), sorted);
    let mut identities = Vec::new();
    for (epoch, name) in (1..).zip(names) {
        assert_eq!(held(&*store, &vdisk(name)).await, [epoch]);
        let status = store.status(&vdisk(name)).await.unwrap();
        assert_eq!(status.epoch, Epoch(epoch));
        identities.extend(status.identity);
    }
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), names.len());
}

async fn operations_at_once_all_take_effect(store: Arc<dyn ShardStore>) {
    let disk = vdisk("disk");
    open(&*store, &disk, 1, 1).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=40 {
        let (store, disk) = (Arc::clone(&store), disk.clone());
        tasks.spawn(async move {
            store.append(&disk, n(number), shard(1, number), n(number / 2)).await.unwrap();
            assert_eq!(held_shard(&*store, &disk, number).await, shard(1, number));
            assert!(store.status(&disk).await.unwrap().committed >= n(number / 2));
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(held(&*store, &disk).await, (1..=40).collect::<Vec<_>>());
    assert_eq!(store.status(&disk).await.unwrap().committed, n(20));
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{DirectoryOptions, DirectoryStore, FaultyStore, MemoryStore};

    const SEEDS: std::ops::Range<u64> = 0..60;
    const STEPS: usize = 400;

    fn memory() -> Arc<dyn ShardStore> {
        Arc::new(MemoryStore::new("memory:"))
    }

    fn faultless() -> Arc<dyn ShardStore> {
        Arc::new(FaultyStore::new(memory(), 1))
    }

    /// Segments so small that a short history has many.
    fn small_segments() -> DirectoryOptions {
        DirectoryOptions {
            first_segment_bytes: 8 << 10,
            max_segment_bytes: 16 << 10,
            open_files: 2,
            ..DirectoryOptions::default()
        }
    }

    #[tokio::test]
    async fn the_memory_store_keeps_every_rule() {
        check_store(memory).await;
        for seed in SEEDS {
            check_against_model(memory(), seed, STEPS, |store| store).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_faulty_store_without_faults_keeps_every_rule() {
        check_store(faultless).await;
        for seed in SEEDS {
            check_against_model(faultless(), seed, STEPS, |store| store).await;
        }
    }

    #[tokio::test]
    async fn the_directory_store_keeps_every_rule() {
        for options in [small_segments(), DirectoryOptions::default()] {
            let directories = RefCell::new(Vec::new());
            check_store(|| {
                let directory = tempfile::tempdir().unwrap();
                let store = DirectoryStore::open(directory.path(), options.clone()).unwrap();
                directories.borrow_mut().push(directory);
                Arc::new(store)
            })
            .await;
        }
    }

    #[tokio::test]
    async fn the_directory_store_does_what_the_model_does_also_after_reopening() {
        for seed in 0..12 {
            let directory = tempfile::tempdir().unwrap();
            let open = || Arc::new(DirectoryStore::open(directory.path(), small_segments()).unwrap());
            check_against_model(open(), seed, STEPS, |store| {
                drop(store);
                open()
            })
            .await;
        }
    }

    /// The model's answers, read by a store that only reads.
    #[derive(Debug)]
    struct ReadElsewhere {
        writer: DirectoryStore,
        reader: DirectoryStore,
    }

    #[async_trait::async_trait]
    impl ShardStore for ReadElsewhere {
        fn address(&self) -> Arc<str> {
            self.reader.address()
        }
        async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<crate::LogState, StoreError> {
            self.writer.promise(vdisk, epoch).await
        }
        async fn start(
            &self,
            vdisk: &VdiskId,
            record: StartRecord,
            members: &Members,
        ) -> Result<StoreIdentity, StoreError> {
            self.writer.start(vdisk, record, members).await
        }
        async fn append(
            &self,
            vdisk: &VdiskId,
            number: AggregationNumber,
            shard: Shard,
            committed: AggregationNumber,
        ) -> Result<StoreIdentity, StoreError> {
            self.writer.append(vdisk, number, shard, committed).await
        }
        async fn publish(
            &self,
            vdisk: &VdiskId,
            epoch: Epoch,
            committed: AggregationNumber,
        ) -> Result<StoreIdentity, StoreError> {
            self.writer.publish(vdisk, epoch, committed).await
        }
        async fn fill(
            &self,
            vdisk: &VdiskId,
            number: AggregationNumber,
            shard: Shard,
        ) -> Result<FillOutcome, StoreError> {
            self.writer.fill(vdisk, number, shard).await
        }
        async fn prune(
            &self,
            vdisk: &VdiskId,
            epoch: Epoch,
            first: AggregationNumber,
        ) -> Result<(), StoreError> {
            self.writer.prune(vdisk, epoch, first).await
        }
        async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
            self.writer.delete(vdisk, epoch).await
        }
        async fn heads(
            &self,
            vdisk: &VdiskId,
            range: std::ops::RangeInclusive<AggregationNumber>,
            max_bytes: usize,
        ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
            self.reader.heads(vdisk, range, max_bytes).await
        }
        async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
            self.reader.shard(vdisk, number).await
        }
        async fn status(&self, vdisk: &VdiskId) -> Result<crate::LogState, StoreError> {
            self.reader.status(vdisk).await
        }
        async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
            self.reader.vdisks().await
        }
        async fn durability(&self) -> Result<crate::StoreDurability, StoreError> {
            self.reader.durability().await
        }
    }

    #[tokio::test]
    async fn a_reader_sees_what_the_writer_has_answered_whatever_it_was() {
        let open = |directory: &std::path::Path| ReadElsewhere {
            writer: DirectoryStore::open(directory, small_segments()).unwrap(),
            reader: DirectoryStore::open_read_only(directory).unwrap(),
        };
        let directories = RefCell::new(Vec::new());
        check_store(|| {
            let directory = tempfile::tempdir().unwrap();
            let store = open(directory.path());
            directories.borrow_mut().push(directory);
            Arc::new(store)
        })
        .await;
        for seed in 100..108 {
            let directory = tempfile::tempdir().unwrap();
            check_against_model(Arc::new(open(directory.path())), seed, STEPS, |store| store).await;
        }
    }
}
