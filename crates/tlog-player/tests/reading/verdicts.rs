//! What verification finds, and what it comes to.

use bytes::Bytes;
use tlog_player::{Depth, DiskStateError, Moment, Verdict, VerifyError, VerifyReport};
use tlog_proto::{AggregationId, AggregationNumber, BlockHash, Epoch, VdiskId};
use tlog_quorum::Standing;
use tlog_store::NumberRanges;

use crate::log::{TestLog, keys_of, number};

async fn verify(log: &TestLog) -> VerifyReport {
    log.reader().await.verify(Depth::Chain, |_| {}).await.unwrap()
}

async fn verify_deep(log: &TestLog) -> VerifyReport {
    log.reader().await.verify(Depth::Deep(&log.keys), |_| {}).await.unwrap()
}

fn numbers(of: impl IntoIterator<Item = u64>) -> NumberRanges {
    of.into_iter().map(AggregationNumber).collect()
}

#[tokio::test]
async fn a_log_that_is_all_there_is_whole_and_survives_m_losses() {
    let log = TestLog::with(4, 2, 40).await;
    let mut seen = Vec::new();
    let reader = log.reader().await;
    let report = reader.verify(Depth::Deep(&log.keys), |progress| seen.push(*progress)).await.unwrap();
    assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Whole, Some(2)));
    assert_eq!((report.aggregations, report.blocks, report.blocks_checked), (40, 40, 40));
    assert!(report.stores.iter().all(|store| store.held == 40 && store.standing == Standing::Member));
    let last = seen.last().unwrap();
    assert_eq!((last.aggregations, last.aggregations_total, last.blocks), (40, 40, 40));
    assert!(seen.is_sorted_by_key(|progress| progress.aggregations));

    let report = verify(&log).await;
    assert_eq!((report.verdict, report.blocks, report.blocks_checked), (Verdict::Whole, 40, 0));
    let empty = verify(&TestLog::new(4, 2).await).await;
    assert_eq!((empty.verdict, empty.losses_survived, empty.aggregations), (Verdict::Whole, None, 0));
}

#[tokio::test]
async fn what_is_missing_is_told_by_store_and_number() {
    let log = TestLog::with(4, 2, 9).await;
    log.memory[1].remove(&log.vdisk, number(4));
    log.memory[1].remove(&log.vdisk, number(5));
    log.memory[2].mark_damaged(&log.vdisk, number(7));
    log.memory[3].damage(&log.vdisk, number(8), |shard| shard.head = "rot".into());
    let report = verify(&log).await;
    assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Degraded, Some(1)));
    assert_eq!((report.stores[1].held, &report.stores[1].missing), (7, &numbers([4, 5])));
    assert_eq!(report.stores[2].damaged, numbers([7]));
    assert_eq!(report.stores[3].damaged, numbers([8]));
    assert!(
        report.stores[3].damage.as_ref().unwrap().contains("not a shard"),
        "{:?}",
        report.stores[3].damage
    );

    log.memory[0].remove(&log.vdisk, number(5));
    assert_eq!(verify(&log).await.losses_survived, Some(0));
    log.controls[4].set_down(true);
    let report = verify(&log).await;
    assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Lost { numbers: numbers([5]) }, None));
    assert_eq!((report.stores[4].standing, report.stores[4].held), (Standing::Unreachable, 0));
    assert!(report.stores[4].missing.is_empty(), "what it has is not known");
}

#[tokio::test]
async fn wiped_and_unreachable_stores_degrade_and_are_told_apart() {
    let log = TestLog::with(4, 2, 5).await;
    log.memory[0].wipe();
    log.controls[5].set_down(true);
    let report = verify(&log).await;
    assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Degraded, Some(0)));
    assert_eq!(report.stores[0].standing, Standing::Blank);
    assert_eq!(report.stores[5].standing, Standing::Unreachable);
}

#[tokio::test]
async fn only_a_deep_look_finds_rot_in_payloads() {
    let log = TestLog::with(4, 2, 5).await;
    let rot = |store: usize| {
        log.memory[store].damage(&log.vdisk, number(3), |shard| {
            let mut payload = shard.payload.to_vec();
            payload[0] ^= 1;
            shard.payload = payload.into();
        });
    };
    rot(2);
    assert_eq!(verify(&log).await.verdict, Verdict::Whole);
    let report = verify_deep(&log).await;
    assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Degraded, Some(1)));
    assert_eq!((&report.stores[2].damaged, report.blocks_checked), (&numbers([3]), 5));
    rot(0);
    rot(1);
    let report = verify_deep(&log).await;
    assert_eq!(report.verdict, Verdict::Lost { numbers: numbers([3]) });
    assert_eq!(report.blocks_checked, 4);
}

#[tokio::test]
async fn what_was_ruled_out_does_not_count_as_held() {
    let mut log = TestLog::with(4, 2, 2).await;
    let block = log.one_block();
    let ruled_out = log.encode(1, &[block]);
    log.store(&ruled_out, Epoch(1), &[0], 2).await;
    log.open(Epoch(2), &[1, 2, 3, 4, 5]).await;
    let block = log.one_block();
    let right = log.encode(1, &[block]);
    log.store(&right, Epoch(2), &[1, 2, 3, 4, 5], 2).await;
    for report in [verify(&log).await, verify_deep(&log).await] {
        assert_eq!((&report.verdict, report.losses_survived), (&Verdict::Degraded, Some(1)));
        assert_eq!((report.stores[0].held, &report.stores[0].ruled_out), (2, &numbers([3])));
    }
}

#[tokio::test]
async fn a_broken_chain_is_a_loss_even_if_every_shard_is_there() {
    let mut log = TestLog::with(2, 1, 6).await;
    let block = log.one_block();
    let replaced = log.encode_as(number(3), AggregationId([1; 32]), 1, &[block]);
    log.plant(&replaced, Epoch(1), &log.all());
    let report = verify(&log).await;
    assert_eq!(report.verdict, Verdict::Lost { numbers: numbers([3, 4]) });
    assert_eq!(report.chain_breaks.len(), 2);
    assert!(report.stores.iter().all(|store| store.held == 6));
}

#[tokio::test]
async fn what_does_not_open_is_lost_but_a_missing_key_says_nothing_about_it() {
    // One bit of a manifest differs, and whoever did it made everything else agree with that.
    let log = TestLog::with(2, 1, 3).await;
    let mut forged_id = AggregationId::BEFORE_FIRST;
    for store in &log.memory {
        store.damage(&log.vdisk, number(3), |shard| {
            (forged_id, shard.head) = forge(&log.vdisk, &shard.head, log.memory.len());
        });
    }
    let reader = log.reader().await;
    assert_eq!(reader.last_id(), Some(forged_id));
    assert_eq!(reader.history().collect().await.unwrap().len(), 3, "nothing follows it that would tell");
    let report = verify_deep(&log).await;
    assert_eq!(report.verdict, Verdict::Lost { numbers: numbers([3]) });
    assert_eq!((report.content_faults.len(), report.content_faults[0].number), (1, number(3)));
    assert!(report.stores.iter().all(|store| store.held == 3));
    let error = log.state(Moment::Newest).await.unwrap_err();
    assert!(matches!(&error, DiskStateError::Manifest { number: at, .. } if *at == number(3)), "{error}");

    let log = TestLog::with(2, 1, 2).await;
    let missing = keys_of(&log.vdisk, 8);
    let error = log.reader().await.verify(Depth::Deep(&missing), |_| {}).await.unwrap_err();
    let VerifyError::Key { number: at, .. } = &error else { panic!("{error}") };
    assert!(*at <= number(2) && error.to_string().contains("keyring"), "{error}");
}

/// The head of a shard with a bit of its sealed manifest changed, and id and check computed anew.
fn forge(vdisk: &VdiskId, head: &[u8], shards: usize) -> (AggregationId, Bytes) {
    let (prefix, common) = head.split_at(24);
    let (header, rest) = common.split_at(168);
    let (hashes, manifest) = rest.split_at(shards * 32);
    let mut manifest = manifest.to_vec();
    manifest[0] ^= 1;
    let name = vdisk.as_str().as_bytes();
    let id = BlockHash::of(&[&(name.len() as u16).to_le_bytes(), name, header, &manifest, hashes].concat()).0;
    let check = BlockHash::of(&[&prefix[..16], &id].concat()).0;
    let head = [&prefix[..16], &check[..8], header, hashes, &manifest].concat();
    (AggregationId(id), head.into())
}
