//! A store that fails on command.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tokio::sync::watch;

use crate::{
    ChainStore, FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord,
    StoreDurability, StoreError, StoreErrorKind, StoreIdentity,
};

/// An operation of [`ShardStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the operation of the same name")]
pub enum Operation {
    Promise,
    Start,
    Append,
    Publish,
    Fill,
    Prune,
    Delete,
    Heads,
    Shard,
    Status,
    Vdisks,
    Durability,
}

impl Operation {
    /// Whether it changes something on the store.
    pub fn writes(self) -> bool {
        use Operation::{Append, Delete, Fill, Promise, Prune, Publish, Start};
        matches!(self, Promise | Start | Append | Publish | Fill | Prune | Delete)
    }
}

/// How often things go wrong by themselves: probabilities from 0 to 1, drawn for each call in the order of this list.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RandomFaults {
    /// The call takes a while, up to `longest_delay` of tokio's time.
    pub delay: f64,
    /// See `delay`.
    pub longest_delay: Duration,
    /// The store is out of reach; nothing happens.
    pub unavailable: f64,
    /// An append stores half a payload and answers that the store is out of reach.
    pub torn_append: f64,
    /// The call is carried out, and its answer is lost.
    pub lost_answer: f64,
}

/// A [`ShardStore`] that hands calls on to another one, and fails as its [`FaultControl`] says.
///
/// The same calls in the same order, with the same seed, fail in the same way.
pub struct FaultyStore {
    inner: Arc<dyn ShardStore>,
    control: FaultControl,
}

/// Controls a [`FaultyStore`]. Clones control the same one.
#[derive(Clone)]
pub struct FaultControl {
    faults: Arc<Mutex<Faults>>,
    /// Whether calls wait.
    hang: watch::Sender<bool>,
    /// Calls that have begun, by operation.
    calls: watch::Sender<BTreeMap<Operation, u64>>,
    wipe: Arc<dyn Fn() + Send + Sync>,
}

struct Faults {
    rng: SmallRng,
    random: RandomFaults,
    down: bool,
    read_only: bool,
    full: bool,
    delay: Duration,
    /// How many of the next calls lose their answer.
    lost_answers: u64,
    /// How many of the next appends are torn.
    torn_appends: u64,
}

/// What becomes of one call.
struct Verdict {
    refuse: Option<StoreErrorKind>,
    tear: bool,
    lose_answer: bool,
}

impl FaultyStore {
    /// Without faults until [`FaultControl`] says otherwise. `seed` is for [`FaultControl::set_random`].
    pub fn new(inner: Arc<dyn ShardStore>, seed: u64) -> Self {
        Self::with_wipe(inner, seed, || {})
    }

    /// `wipe` empties the inner store, for [`FaultControl::wipe`].
    pub fn with_wipe(inner: Arc<dyn ShardStore>, seed: u64, wipe: impl Fn() + Send + Sync + 'static) -> Self {
        let faults = Faults {
            rng: SmallRng::seed_from_u64(seed),
            random: RandomFaults::default(),
            down: false,
            read_only: false,
            full: false,
            delay: Duration::ZERO,
            lost_answers: 0,
            torn_appends: 0,
        };
        let control = FaultControl {
            faults: Arc::new(Mutex::new(faults)),
            hang: watch::Sender::new(false),
            calls: watch::Sender::new(BTreeMap::new()),
            wipe: Arc::new(wipe),
        };
        Self { inner, control }
    }

    /// What controls it.
    pub fn control(&self) -> FaultControl {
        self.control.clone()
    }

    /// `act` is told whether to tear what it stores.
    async fn call<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        operation: Operation,
        act: impl FnOnce(bool) -> F,
    ) -> Result<T, StoreError> {
        let refused = |kind| Err(StoreError::new(&*self.inner.address(), kind));
        let (delay, verdict) = self.control.judge(operation);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // Fails only if the sender is gone, and we hold it.
        let _ = self.control.hang.subscribe().wait_for(|hanging| !hanging).await;
        if let Some(kind) = verdict.refuse {
            return refused(kind);
        }
        let answer = act(verdict.tear).await;
        if verdict.tear || verdict.lose_answer {
            return refused(unavailable("the answer was lost"));
        }
        answer
    }
}

fn unavailable(what: &'static str) -> StoreErrorKind {
    StoreErrorKind::Unavailable { source: std::io::Error::other(what) }
}

impl FaultControl {
    /// Out of reach: every call fails at once, and nothing happens.
    pub fn set_down(&self, down: bool) {
        self.faults().down = down;
    }

    /// Calls do not answer, and do nothing, until [`FaultControl::release`]; a call that was given up by then never happens.
    pub fn hang(&self) {
        self.hang.send_replace(true);
    }

    /// Ends [`FaultControl::hang`]: what waits is carried out.
    pub fn release(&self) {
        self.hang.send_replace(false);
    }

    /// Every call takes so long, in tokio's time, before it is carried out.
    pub fn set_delay(&self, delay: Duration) {
        self.faults().delay = delay;
    }

    /// The next `calls` are carried out, and their answers are lost: [`StoreErrorKind::Unavailable`].
    pub fn lose_answers(&self, calls: u64) {
        self.faults().lost_answers = calls;
    }

    /// The next `appends` store only half of the payload, and are answered with [`StoreErrorKind::Unavailable`].
    pub fn tear_appends(&self, appends: u64) {
        self.faults().torn_appends = appends;
    }

    /// Writes are refused as [`StoreErrorKind::ReadOnly`].
    pub fn set_read_only(&self, read_only: bool) {
        self.faults().read_only = read_only;
    }

    /// Writes are refused as [`StoreErrorKind::Full`], but for prunes.
    pub fn set_full(&self, full: bool) {
        self.faults().full = full;
    }

    /// Things go wrong at random from now on; the default stops that.
    pub fn set_random(&self, random: RandomFaults) {
        self.faults().random = random;
    }

    /// Empties the store, by the hook that it was made with.
    pub fn wipe(&self) {
        (self.wipe)();
    }

    /// Ends every fault. What hangs is carried out.
    pub fn heal(&self) {
        let mut faults = self.faults();
        let rng = faults.rng.clone();
        *faults = Faults {
            rng,
            random: RandomFaults::default(),
            down: false,
            read_only: false,
            full: false,
            delay: Duration::ZERO,
            lost_answers: 0,
            torn_appends: 0,
        };
        drop(faults);
        self.release();
    }

    /// How often an operation has been called, however it ended.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls.borrow().get(&operation).copied().unwrap_or_default()
    }

    /// Waits until an operation has been called so often in all.
    pub async fn called(&self, operation: Operation, times: u64) {
        let reached =
            |calls: &BTreeMap<Operation, u64>| calls.get(&operation).copied().unwrap_or_default() >= times;
        // Fails only if the sender is gone, and we hold it.
        let _ = self.calls.subscribe().wait_for(reached).await;
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, operation: Operation) -> (Duration, Verdict) {
        self.calls.send_modify(|calls| *calls.entry(operation).or_default() += 1);
        let mut faults = self.faults();
        let random = faults.random;
        // All are drawn for every call, so that one fault does not shift the draws of the next calls.
        let mut drawn = |probability: f64| faults.rng.random::<f64>() < probability;
        let delayed = drawn(random.delay);
        let (unreachable, torn, lost) =
            (drawn(random.unavailable), drawn(random.torn_append), drawn(random.lost_answer));
        let part = faults.rng.random::<f64>();
        let extra = if delayed { random.longest_delay.mul_f64(part) } else { Duration::ZERO };

        let writes = operation.writes();
        let refuse = if faults.down || unreachable {
            Some(unavailable("out of reach"))
        } else if faults.read_only && writes {
            Some(StoreErrorKind::ReadOnly)
        } else if faults.full && writes && operation != Operation::Prune {
            Some(StoreErrorKind::Full { source: std::io::ErrorKind::StorageFull.into() })
        } else {
            None
        };
        let happens = refuse.is_none();
        let tear = happens && operation == Operation::Append && (torn || take_one(&mut faults.torn_appends));
        let lose_answer = happens && !tear && (lost || take_one(&mut faults.lost_answers));
        // Down is down at once.
        let delay = if faults.down { Duration::ZERO } else { faults.delay + extra };
        (delay, Verdict { refuse, tear, lose_answer })
    }
}

fn take_one(left: &mut u64) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

/// What a write leaves that stops half-way.
fn torn(mut shard: Shard) -> Shard {
    shard.payload.truncate(shard.payload.len() / 2);
    shard
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyStore").field(&self.inner).finish()
    }
}

impl fmt::Debug for FaultControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultControl").field("calls", &*self.calls.borrow()).finish_non_exhaustive()
    }
}

#[async_trait]
impl ShardStore for FaultyStore {
    fn address(&self) -> Arc<str> {
        self.inner.address()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.call(Operation::Promise, |_| self.inner.promise(vdisk, epoch)).await
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.call(Operation::Start, |_| self.inner.start(vdisk, record, members)).await
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.call(Operation::Append, |tear| {
            let shard = if tear { torn(shard) } else { shard };
            self.inner.append(vdisk, number, shard, committed)
        })
        .await
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        self.call(Operation::Publish, |_| self.inner.publish(vdisk, epoch, committed)).await
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.call(Operation::Fill, |_| self.inner.fill(vdisk, number, shard)).await
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.call(Operation::Prune, |_| self.inner.prune(vdisk, epoch, first)).await
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.call(Operation::Delete, |_| self.inner.delete(vdisk, epoch)).await
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.call(Operation::Heads, |_| self.inner.heads(vdisk, range, max_bytes)).await
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.call(Operation::Shard, |_| self.inner.shard(vdisk, number)).await
    }

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.call(Operation::Shard, |_| self.inner.payload_parts(vdisk, number, parts)).await
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.call(Operation::Status, |_| self.inner.status(vdisk)).await
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.call(Operation::Vdisks, |_| self.inner.vdisks()).await
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.call(Operation::Durability, |_| self.inner.durability()).await
    }

    fn chains(&self) -> Option<Arc<dyn ChainStore>> {
        self.inner.chains()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tlog_proto::AggregationId;
    use tokio::time::Instant;

    use super::*;
    use crate::MemoryStore;

    fn disk() -> VdiskId {
        VdiskId::new("disk").unwrap()
    }

    fn shard() -> Shard {
        let (head, payload) = (Bytes::from_static(b"head"), Bytes::from_static(b"payload"));
        Shard { epoch: Epoch(1), id: AggregationId([3; 32]), head, payload }
    }

    async fn store() -> (Arc<FaultyStore>, FaultControl) {
        let inner = Arc::new(MemoryStore::new("memory:"));
        let wiped = Arc::clone(&inner);
        let store = FaultyStore::with_wipe(inner, 7, move || wiped.wipe());
        store.promise(&disk(), Epoch(1)).await.unwrap();
        let control = store.control();
        (Arc::new(store), control)
    }

    async fn append(store: &FaultyStore, number: u64) -> Result<StoreIdentity, StoreErrorKind> {
        store
            .append(&disk(), AggregationNumber(number), shard(), AggregationNumber(0))
            .await
            .map_err(|error| error.kind)
    }

    async fn head(store: &FaultyStore) -> u64 {
        store.status(&disk()).await.unwrap().head().0
    }

    #[tokio::test(start_paused = true)]
    async fn down_read_only_and_full_do_nothing_and_say_so() {
        let (store, control) = store().await;
        control.set_down(true);
        assert!(matches!(append(&store, 1).await, Err(StoreErrorKind::Unavailable { .. })));
        assert!(store.status(&disk()).await.is_err());
        control.heal();
        control.set_read_only(true);
        assert!(matches!(append(&store, 1).await, Err(StoreErrorKind::ReadOnly)));
        assert_eq!(head(&store).await, 0);
        control.heal();
        control.set_full(true);
        assert!(matches!(append(&store, 1).await, Err(StoreErrorKind::Full { .. })));
        store.prune(&disk(), Epoch(1), AggregationNumber(1)).await.unwrap();
        control.heal();
        append(&store, 1).await.unwrap();
        assert_eq!(head(&store).await, 1);
        assert_eq!(control.calls(Operation::Append), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_and_a_torn_append_have_happened() {
        let (store, control) = store().await;
        control.lose_answers(1);
        assert!(matches!(append(&store, 1).await, Err(StoreErrorKind::Unavailable { .. })));
        assert_eq!(head(&store).await, 1);
        control.tear_appends(1);
        assert!(matches!(append(&store, 2).await, Err(StoreErrorKind::Unavailable { .. })));
        match store.shard(&disk(), AggregationNumber(2)).await.unwrap() {
            ShardSlot::Held(found) => assert_eq!((found.id, &found.payload[..]), (shard().id, &b"pay"[..])),
            other => panic!("{other:?}"),
        }
        append(&store, 2).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_carried_out_when_released_unless_it_was_given_up() {
        let (store, control) = store().await;
        control.hang();
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { append(&store, 1).await }
        });
        let given_up = tokio::spawn({
            let store = Arc::clone(&store);
            async move { append(&store, 2).await }
        });
        control.called(Operation::Append, 2).await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        assert!(!waiting.is_finished());
        control.release();
        waiting.await.unwrap().unwrap();
        assert_eq!(head(&store).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_pass_in_virtual_time() {
        let (store, control) = store().await;
        control.set_delay(Duration::from_secs(30));
        let begun = Instant::now();
        append(&store, 1).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wiped_store_has_another_identity() {
        let (store, control) = store().await;
        let before = store.status(&disk()).await.unwrap().identity;
        control.wipe();
        assert_eq!(store.status(&disk()).await.unwrap().identity, None);
        assert_ne!(store.promise(&disk(), Epoch(2)).await.unwrap().identity, before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_fails_in_the_same_way() {
        let run = async |seed| {
            let store = FaultyStore::new(Arc::new(MemoryStore::new("memory:")), seed);
            store.promise(&disk(), Epoch(1)).await.unwrap();
            store.control().set_random(RandomFaults {
                delay: 0.3,
                longest_delay: Duration::from_secs(5),
                unavailable: 0.2,
                torn_append: 0.1,
                lost_answer: 0.2,
            });
            let begun = Instant::now();
            let mut said = Vec::new();
            for number in 1..200 {
                said.push((append(&store, number).await.is_ok(), begun.elapsed()));
            }
            store.control().heal();
            said.push((true, Duration::from_secs(head(&store).await)));
            said
        };
        let first = run(5).await;
        assert_eq!(first, run(5).await);
        assert_ne!(first, run(6).await);
        let failed = first.iter().filter(|(ok, _)| !ok).count();
        assert!((50..130).contains(&failed), "{failed}");
    }
}
