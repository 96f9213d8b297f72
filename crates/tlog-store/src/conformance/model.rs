//! A slow, obvious model of a store, and random operations that must come out the same on both.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tlog_proto::{AggregationNumber, Epoch, VdiskId};

use super::{shard, vdisk};
use crate::{
    FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord, StoreError,
    StoreErrorKind, StoreIdentity,
};

/// One log, as the port describes it, word for word. What is stored is a plain list.
#[derive(Clone, Default)]
struct Model {
    state: LogState,
    shards: Vec<(AggregationNumber, Shard)>,
    /// Identities of logs of that name which were deleted.
    former: Vec<StoreIdentity>,
}

const UNSEEN: StoreIdentity = StoreIdentity([0; 16]);

#[derive(Clone, Debug)]
enum Step {
    Promise(Epoch),
    Start(StartRecord, Members),
    Append(AggregationNumber, Shard, AggregationNumber),
    Publish(Epoch, AggregationNumber),
    Fill(AggregationNumber, Shard),
    Prune(Epoch, AggregationNumber),
    Delete(Epoch),
}

/// What an operation says, in words that can be compared: `ok`, what a fill did, or the name of the error.
type Said = &'static str;

impl Model {
    fn apply(&mut self, step: &Step) -> Said {
        if self.state.identity.is_none() {
            match step {
                Step::Promise(_) => {}
                Step::Delete(_) => return "ok",
                _ => return "no_log",
            }
        }
        let fenced = |epoch: Epoch| self.state.epoch > epoch;
        match step {
            Step::Promise(epoch) => {
                if *epoch <= self.state.epoch {
                    return "fenced";
                }
                self.state.epoch = *epoch;
                // Which one the store makes is its own affair; that it then stays is not.
                self.state.identity.get_or_insert(UNSEEN);
                self.state.first = self.state.first.max(AggregationNumber(1));
            }
            Step::Start(record, _) if fenced(record.epoch) => return "fenced",
            Step::Start(record, members) => {
                self.shards.retain(|(number, s)| !(*number >= record.number && s.epoch < record.epoch));
                self.state.starts.retain(|other| other.number < record.number);
                self.state.starts.push(*record);
                self.state.epoch = record.epoch;
                if members.version() >= self.state.members.version() {
                    self.state.members = members.clone();
                }
            }
            Step::Append(number, shard, committed) => {
                let newer = self.shards.iter().any(|(held, s)| held == number && s.epoch > shard.epoch);
                if fenced(shard.epoch) || newer {
                    return "fenced";
                }
                self.state.epoch = shard.epoch;
                self.state.committed = self.state.committed.max(*committed);
                self.put(*number, shard);
            }
            Step::Publish(epoch, _) if fenced(*epoch) => return "fenced",
            Step::Publish(epoch, committed) => {
                self.state.epoch = *epoch;
                self.state.committed = self.state.committed.max(*committed);
            }
            Step::Fill(number, shard) => {
                if *number > self.state.committed {
                    return "not_committed";
                }
                let same = self.shards.iter().any(|(held, s)| held == number && s.id == shard.id);
                if same || *number < self.state.first {
                    return "already";
                }
                self.put(*number, shard);
                return "stored";
            }
            Step::Prune(epoch, _) if fenced(*epoch) => return "fenced",
            Step::Prune(_, first) => {
                if first.0 > self.state.committed.0 + 1 {
                    return "not_committed";
                }
                self.state.first = self.state.first.max(*first);
                self.shards.retain(|(number, _)| *number >= self.state.first);
            }
            Step::Delete(epoch) if fenced(*epoch) => return "fenced",
            Step::Delete(_) => {
                self.former.extend(self.state.identity);
                self.state = LogState::default();
                self.shards.clear();
            }
        }
        "ok"
    }

    fn put(&mut self, number: AggregationNumber, shard: &Shard) {
        if number >= self.state.first {
            self.shards.retain(|(held, _)| *held != number);
            self.shards.push((number, shard.clone()));
        }
    }
}

async fn ask(store: &dyn ShardStore, vdisk: &VdiskId, step: &Step) -> Said {
    fn said<T>(result: Result<T, StoreError>) -> Said {
        match result {
            Ok(_) => "ok",
            Err(StoreError { kind: kind @ StoreErrorKind::Unavailable { .. }, .. }) => panic!("{kind}"),
            Err(error) => error.kind.name(),
        }
    }
    match step.clone() {
        Step::Promise(epoch) => said(store.promise(vdisk, epoch).await),
        Step::Start(record, members) => said(store.start(vdisk, record, &members).await),
        Step::Append(number, shard, committed) => said(store.append(vdisk, number, shard, committed).await),
        Step::Publish(epoch, committed) => said(store.publish(vdisk, epoch, committed).await),
        Step::Fill(number, shard) => match store.fill(vdisk, number, shard).await {
            Ok(FillOutcome::Stored) => "stored",
            Ok(FillOutcome::AlreadyHeld) => "already",
            other => said(other),
        },
        Step::Prune(epoch, first) => said(store.prune(vdisk, epoch, first).await),
        Step::Delete(epoch) => said(store.delete(vdisk, epoch).await),
    }
}

/// A step that is likely to do something: epochs near the store's, numbers near its head.
fn draw(rng: &mut SmallRng, model: &Model, salt: u64) -> Step {
    let near = |rng: &mut SmallRng, at: u64, below: u64, above: u64| {
        rng.random_range(at.saturating_sub(below)..=at + above)
    };
    let epoch = model.state.epoch.0;
    let head = model.shards.iter().map(|(number, _)| number.0).max().unwrap_or_default();
    let committed = model.state.committed.0;
    let some_epoch = if rng.random_bool(0.85) { epoch } else { near(rng, epoch, 2, 1) };
    let number = if rng.random_bool(0.6) { head + 1 } else { near(rng, head, 8, 3) };
    match rng.random_range(0..100) {
        0..6 => Step::Promise(Epoch(near(rng, epoch, 1, 2))),
        6..14 => {
            let record = StartRecord {
                epoch: Epoch(near(rng, epoch, 1, 1)),
                number: AggregationNumber(near(rng, head, 6, 2)),
            };
            let identities = vec![Some(StoreIdentity([salt as u8; 16])), None];
            let members = Members {
                epoch: Epoch(near(rng, epoch, 2, 0)),
                change: salt % 5,
                identities,
                data_shards: salt as u8,
                write_quorum: salt as u8 ^ 1,
            };
            Step::Start(record, members)
        }
        14..66 => {
            let committed = AggregationNumber(near(rng, committed, 1, 1).min(head));
            Step::Append(AggregationNumber(number), shard(some_epoch, salt), committed)
        }
        66..74 => Step::Publish(Epoch(some_epoch), AggregationNumber(near(rng, committed, 1, 2).min(head))),
        74..92 => {
            let number = AggregationNumber(near(rng, committed, 6, 1));
            // Often what is there already.
            let held = model.shards.iter().find(|(held, _)| *held == number).map(|(_, shard)| shard.clone());
            let keep = rng.random_bool(0.3);
            let other = shard(near(rng, epoch, 4, 1), salt);
            Step::Fill(number, held.filter(|_| keep).unwrap_or(other))
        }
        92 if rng.random_bool(0.5) => Step::Delete(Epoch(near(rng, epoch, 1, 1))),
        _ => Step::Prune(Epoch(some_epoch), AggregationNumber(near(rng, committed, 9, 1))),
    }
}

/// Draws `steps` operations from `seed`, on two vdisks that `store` must not know yet, and checks each answer and what the
/// store then has against the model. `reopen` is called now and then: it answers the store that goes on from there, as
/// after a restart, or just the one that it is given.
pub async fn check_against_model(
    mut store: Arc<dyn ShardStore>,
    seed: u64,
    steps: usize,
    mut reopen: impl FnMut(Arc<dyn ShardStore>) -> Arc<dyn ShardStore>,
) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let disks = [vdisk("model-1"), vdisk("model-2")];
    let mut models = [Model::default(), Model::default()];
    for at in 0..steps {
        let which = usize::from(rng.random_bool(0.2));
        let (disk, model) = (&disks[which], &mut models[which]);
        let salt = rng.random::<u64>() >> 16;
        let step = draw(&mut rng, model, salt);
        let expected = model.apply(&step);
        let said = ask(&*store, disk, &step).await;
        assert_eq!(said, expected, "seed {seed}, step {at}: {step:?}");
        if rng.random_bool(0.03) {
            store = reopen(store);
        }
        let context = format!("seed {seed}, after step {at}: {step:?}");
        compare(&*store, disk, model, &mut rng, &context).await;
    }
    store = reopen(store);
    for (disk, model) in disks.iter().zip(&mut models) {
        let context = format!("seed {seed}, in the end");
        compare(&*store, disk, model, &mut rng, &context).await;
        for (number, shard) in &model.shards {
            let slot = store.shard(disk, *number).await.unwrap();
            assert_eq!(slot, ShardSlot::Held(shard.clone()), "{context}, number {number}");
        }
    }
}

async fn compare(
    store: &dyn ShardStore,
    disk: &VdiskId,
    model: &mut Model,
    rng: &mut SmallRng,
    context: &str,
) {
    let status = store.status(disk).await.unwrap();
    let mut expected = model.state.clone();
    assert_eq!(status.identity.is_some(), expected.identity.is_some(), "{context}");
    if expected.identity.is_none() {
        return;
    }
    if expected.identity == Some(UNSEEN) {
        let former = status.identity.is_some_and(|identity| model.former.contains(&identity));
        assert!(!former, "{context}: a new log has the identity of a deleted one");
        model.state.identity = status.identity;
        expected.identity = status.identity;
    }
    expected.held = model.shards.iter().map(|(number, _)| *number).collect();
    assert_eq!(status, expected, "{context}");
    if let Some((number, shard)) = model.shards.choose(rng) {
        let slot = store.shard(disk, *number).await.unwrap();
        assert_eq!(slot, ShardSlot::Held(shard.clone()), "{context}, number {number}");
        let heads = store.heads(disk, *number..=*number, 1).await.unwrap();
        match heads.as_slice() {
            [(found, HeadSlot::Held(head))] => {
                assert_eq!((found, head.epoch, head.id), (number, shard.epoch, shard.id), "{context}");
                assert_eq!(head.head, shard.head, "{context}");
            }
            other => panic!("{context}, head of {number}: {other:?}"),
        }
    }
}
