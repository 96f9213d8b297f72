//! Reading with a key: opening proves the shards, and what is damaged is found and made up for only where that fails.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use tlog_codec::{EncodedAggregation, Keyring, MasterKey, OpenError, Opener, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber, Block};
use tlog_quorum::ShardCondition::{self, Damaged, Held};
use tlog_quorum::{Candidate, NotOpened};
use tlog_store::Operation;

use crate::log::{TestLog, vdisk};

const ONE: AggregationNumber = AggregationNumber(1);
const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

async fn with_one(on: &[usize]) -> (TestLog, EncodedAggregation) {
    let log = TestLog::begun(4, 2).await;
    let one = log.aggregation(1, AggregationId::BEFORE_FIRST, 1);
    log.append(&one, 1, on).await;
    (log, one)
}

/// What came of opening an aggregation of a 4+2 log.
struct Opened {
    result: Result<(Candidate, Vec<Block>), NotOpened<OpenError>>,
    /// How often it was tried.
    opens: u32,
    /// Shards that were asked for.
    asked: u64,
}

async fn open_with(log: &TestLog, id: AggregationId, key: u8) -> Opened {
    let keyring = Arc::new(Keyring::new(MasterKey::from_bytes([key; 32])));
    let opener = Opener::new(VdiskKeys::new(vdisk(), keyring));
    let opens = Cell::new(0);
    let survey = log.survey().await;
    let open = |candidate: Candidate| {
        opens.set(opens.get() + 1);
        let blocks = opener.blocks(&candidate.head, &candidate.payloads);
        async move { blocks }
    };
    let result = log.set.opened(&survey, ONE, id, open).await;
    let asked = log.controls.iter().map(|control| control.calls(Operation::Shard)).sum();
    Opened { result, opens: opens.get(), asked }
}

/// Opens what was written, and checks what came and which payloads were taken.
async fn check(log: &TestLog, one: &EncodedAggregation, present: [bool; 6], opens: u32, asked: u64) {
    let opened = open_with(log, one.id, 7).await;
    let (candidate, blocks) = opened.result.unwrap();
    assert_eq!(blocks[0].data, Bytes::from(1u64.to_le_bytes().repeat(64)));
    assert_eq!(candidate.payloads.iter().map(Option::is_some).collect::<Vec<_>>(), present);
    assert_eq!((opened.opens, opened.asked), (opens, asked));
}

/// Flips a bit in payloads so that the store does not know.
fn rot(log: &TestLog, stores: &[usize]) {
    for &store in stores {
        let damaged = log.memories[store].damage(&vdisk(), ONE, |shard| {
            let mut payload = shard.payload.to_vec();
            payload[store] ^= 1 << store;
            shard.payload = payload.into();
        });
        assert!(damaged);
    }
}

#[tokio::test]
async fn what_is_whole_is_opened_once_from_k_stores() {
    let (log, one) = with_one(&ALL).await;
    check(&log, &one, [true, true, true, true, false, false], 1, 4).await;
}

#[tokio::test]
async fn each_damaged_shard_costs_one_more_read() {
    let (log, one) = with_one(&ALL).await;
    rot(&log, &[2]);
    check(&log, &one, [true, true, false, true, true, false], 2, 5).await;
    let (log, one) = with_one(&ALL).await;
    rot(&log, &[0, 3]);
    check(&log, &one, [false, true, true, false, true, true], 2, 6).await;
    // The second damaged one is what the first is made up with.
    let (log, one) = with_one(&ALL).await;
    rot(&log, &[1, 4]);
    check(&log, &one, [true, false, true, true, false, true], 3, 6).await;
}

#[tokio::test]
async fn damage_in_parity_that_is_not_needed_is_not_even_read() {
    let (log, one) = with_one(&ALL).await;
    rot(&log, &[4, 5]);
    check(&log, &one, [true, true, true, true, false, false], 1, 4).await;
}

#[tokio::test]
async fn with_more_damaged_than_can_be_made_up_for_the_error_says_which_are() {
    let (log, one) = with_one(&ALL).await;
    rot(&log, &[0, 2, 5]);
    let opened = open_with(&log, one.id, 7).await;
    let Err(NotOpened::Unreadable(error)) = opened.result else { panic!("it opened") };
    assert_eq!((error.present, error.needed, opened.asked), (3, 4, 6));
    let is_damaged = |condition: &ShardCondition| match condition {
        Damaged(_) => true,
        Held(id) if *id == one.id => false,
        other => panic!("{other:?}"),
    };
    let damaged: Vec<bool> = error.conditions.iter().map(|(_, condition)| is_damaged(condition)).collect();
    assert_eq!(damaged, [true, false, true, false, false, true]);
}

#[tokio::test]
async fn the_payload_or_the_whole_shard_of_another_aggregation_is_made_up_for() {
    let (log, one) = with_one(&ALL).await;
    let other = log.aggregation(1, AggregationId::BEFORE_FIRST, 2);
    let of_other = |store: usize| other.shard(store, tlog_proto::Epoch(1)).unwrap();
    // Its payload under the right head, and a shard that is whole and another one.
    log.memories[1].damage(&vdisk(), ONE, |shard| shard.payload = of_other(1).payload);
    log.memories[3].damage(&vdisk(), ONE, |shard| {
        (shard.head, shard.payload) = (of_other(3).head, of_other(3).payload);
    });
    check(&log, &one, [true, false, true, false, true, true], 2, 6).await;
}

#[tokio::test]
async fn a_payload_of_another_length_is_made_up_for() {
    let (log, one) = with_one(&ALL).await;
    log.memories[0].damage(&vdisk(), ONE, |shard| shard.payload = shard.payload.slice(1..));
    check(&log, &one, [false, true, true, true, true, false], 2, 5).await;
}

#[tokio::test]
async fn what_is_whole_and_does_not_open_is_an_error_at_once() {
    let (log, one) = with_one(&ALL).await;
    let opened = open_with(&log, one.id, 8).await;
    assert!(matches!(opened.result, Err(NotOpened::Refused(OpenError::Key(_)))));
    assert_eq!((opened.opens, opened.asked), (1, 4));
}

#[tokio::test]
async fn what_was_ruled_out_is_not_opened_unless_a_later_opening_adopted_it() {
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    log.start(2, 1, &[5]).await;
    let opened = open_with(&log, one.id, 7).await;
    assert!(matches!(opened.result, Err(NotOpened::Unreadable(error)) if error.present == 0));
    assert_eq!(opened.opens, 0);
    // All five are needed to know that it counts; that one of them is damaged costs no other.
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    log.start(2, 1, &[5]).await;
    log.append(&one, 3, &[4]).await;
    rot(&log, &[1]);
    check(&log, &one, [true, false, true, true, true, false], 2, 5).await;
}
