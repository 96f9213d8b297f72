//! Which shards count, and reading an aggregation from any k of them.

use std::time::Duration;

use tlog_codec::EncodedAggregation;
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_quorum::ShardCondition::{self, Damaged, Held, Missing, RuledOut, Unreachable};
use tlog_quorum::Survey;
use tlog_store::Operation;
use tokio::time::Instant;

use crate::log::{TestLog, vdisk};

const FIRST: AggregationId = AggregationId::BEFORE_FIRST;
const ONE: AggregationNumber = AggregationNumber(1);

async fn with_one(on: &[usize]) -> (TestLog, EncodedAggregation) {
    let log = TestLog::begun(4, 2).await;
    let one = log.aggregation(1, FIRST, 1);
    log.append(&one, 1, on).await;
    (log, one)
}

/// Which candidates there are, by heads and by whole shards, and what each store has.
async fn check(log: &TestLog, candidates: &[(AggregationId, u64, usize)], expected: &[ShardCondition]) {
    let survey = log.survey().await;
    let located = log.set.heads(&survey, ONE..=ONE).await;
    let by_heads: Vec<_> =
        located[0].candidates.iter().map(|c| (c.head.id, c.epoch.0, c.holders.len())).collect();
    assert_eq!((by_heads.as_slice(), located[0].conditions.as_slice()), (candidates, expected));
    let (whole, conditions) = log.set.all_shards(&survey, ONE).await;
    let by_shards: Vec<_> = whole.iter().map(|c| (c.head.id, c.epoch.0, c.present())).collect();
    assert_eq!((by_shards.as_slice(), conditions.as_slice()), (candidates, expected));
}

#[tokio::test]
async fn every_store_shows_what_it_has() {
    let (log, one) = with_one(&[0, 1, 2, 4]).await;
    log.controls[1].set_down(true);
    log.memories[2].mark_damaged(&vdisk(), ONE);
    log.memories[5].wipe();
    let id = one.id;
    let damaged = Damaged("the store says so".to_owned());
    check(&log, &[(id, 1, 2)], &[Held(id), Unreachable, damaged, Missing, Held(id), Unreachable]).await;
}

#[tokio::test]
async fn of_two_aggregations_under_a_number_the_one_of_the_higher_epoch_comes_first() {
    let (log, one) = with_one(&[0, 1]).await;
    let other = log.aggregation(1, FIRST, 2);
    log.append(&other, 3, &[2, 3, 4]).await;
    let (a, b) = (one.id, other.id);
    check(&log, &[(b, 3, 3), (a, 1, 2)], &[Held(a), Held(a), Held(b), Held(b), Held(b), Missing]).await;
}

#[tokio::test]
async fn a_start_record_on_any_member_rules_out_what_older_epochs_wrote_at_and_above_it() {
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    log.start(2, 1, &[5]).await;
    let id = one.id;
    let out = || RuledOut(id);
    check(&log, &[], &[out(), out(), out(), out(), Missing, Missing]).await;
    let error = log.set.aggregation(&log.survey().await, ONE, id).await.unwrap_err();
    assert_eq!((error.present, error.needed), (0, 4));
    // A store that does not count rules nothing out.
    log.memories[5].wipe();
    check(&log, &[(id, 1, 4)], &[Held(id), Held(id), Held(id), Held(id), Missing, Unreachable]).await;
}

#[tokio::test]
async fn a_start_record_above_a_number_rules_nothing_out_under_it() {
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    log.start(2, 2, &[4, 5]).await;
    let id = one.id;
    check(&log, &[(id, 1, 4)], &[Held(id), Held(id), Held(id), Held(id), Missing, Missing]).await;
}

#[tokio::test]
async fn all_shards_of_an_aggregation_count_where_a_later_opening_has_adopted_it() {
    // Epoch 2 began at 1 and got no further than store 5; epoch 3 did not hear of that, and adopted.
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    log.start(2, 1, &[5]).await;
    log.append(&one, 3, &[3]).await;
    let id = one.id;
    check(&log, &[(id, 3, 4)], &[Held(id), Held(id), Held(id), Held(id), Missing, Missing]).await;
    let candidate = log.set.aggregation(&log.survey().await, ONE, id).await.unwrap();
    assert_eq!(candidate.rebuild().unwrap().id, id);
}

#[tokio::test]
async fn shards_in_the_wrong_place_are_damaged_ones() {
    let (log, one) = with_one(&[0, 1, 2, 3]).await;
    let two = log.aggregation(2, one.id, 2);
    let wrong = |aggregation: &EncodedAggregation, index| {
        aggregation.shard(index, tlog_proto::Epoch(1)).unwrap().head
    };
    log.memories[0].damage(&vdisk(), ONE, |shard| shard.head = wrong(&two, 0));
    log.memories[1].damage(&vdisk(), ONE, |shard| shard.head = wrong(&one, 2));
    log.memories[2].damage(&vdisk(), ONE, |shard| shard.head = shard.head.slice(1..));
    let located = log.set.heads(&log.survey().await, ONE..=ONE).await;
    let how = |store: usize| match &located[0].conditions[store] {
        Damaged(how) => how.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(how(0), "it is a shard of aggregation 2");
    assert_eq!(how(1), "it is shard 2 of its aggregation, not shard 1");
    assert_eq!(how(2), "not a shard of format 2");
    assert_eq!(located[0].conditions[3], Held(one.id));
}

#[tokio::test]
async fn heads_come_in_batches_and_every_number_has_an_entry() {
    let log = TestLog::begun(2, 1).await;
    let mut prev = FIRST;
    for number in (1..=40).filter(|number| number % 10 != 0) {
        let aggregation = log.aggregation(number, prev, number);
        prev = aggregation.id;
        log.append(&aggregation, 1, &[0, 1, 2]).await;
    }
    let range = AggregationNumber(5)..=AggregationNumber(60);
    let located = log.set.heads(&log.survey().await, range).await;
    assert_eq!(located.iter().map(|l| l.number.0).collect::<Vec<_>>(), (5..=60).collect::<Vec<_>>());
    for located in &located {
        let number = located.number.0;
        let held = number <= 40 && number % 10 != 0;
        assert_eq!(located.candidates.len(), usize::from(held), "{number}");
        assert!(held || located.conditions.iter().all(|condition| *condition == Missing), "{number}");
    }
    let none = log.set.heads(&log.survey().await, AggregationNumber(7)..=AggregationNumber(6)).await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn an_aggregation_is_read_from_data_shards_alone_where_they_are_whole() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4, 5]).await;
    let candidate = log.set.aggregation(&log.survey().await, ONE, one.id).await.unwrap();
    assert_eq!(
        candidate.payloads.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, true, true, true, false, false]
    );
    let asked = |store: usize| log.controls[store].calls(Operation::Shard);
    assert_eq!((asked(0), asked(4), asked(5)), (1, 0, 0));
}

#[tokio::test]
async fn reading_goes_on_to_other_stores_where_one_fails_or_holds_something_damaged() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4, 5]).await;
    let survey = log.survey().await;
    log.controls[1].set_down(true);
    log.memories[3].damage(&vdisk(), ONE, |shard| shard.payload = shard.payload.slice(1..));
    let candidate = log.set.aggregation(&survey, ONE, one.id).await.unwrap();
    assert_eq!(
        candidate.payloads.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, true, false, true, true]
    );
    let rebuilt = candidate.rebuild().unwrap();
    assert_eq!((rebuilt.id, rebuilt.shard(3, candidate.epoch)), (one.id, one.shard(3, candidate.epoch)));
}

/// Reads aggregation 1 so often, one after the other, and tells how long that took.
async fn took(log: &TestLog, survey: &Survey, one: &EncodedAggregation, times: u32) -> Duration {
    let began = Instant::now();
    for _ in 0..times {
        let read = log.set.aggregation(survey, ONE, one.id).await.unwrap();
        assert_eq!(read.rebuild().unwrap().id, one.id);
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_a_moment_once_and_is_then_left_alone() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4]).await;
    let survey = log.survey().await;
    assert_eq!(took(&log, &survey, &one, 20).await, Duration::ZERO);
    log.controls[0].hang();
    let began = Instant::now();
    for _ in 0..20 {
        assert!(log.set.aggregation(&survey, ONE, one.id).await.is_ok());
    }
    assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    assert_eq!(log.controls[0].calls(Operation::Shard), 21, "20 before, and once when it hung");
}

#[tokio::test(start_paused = true)]
async fn as_many_stores_as_may_be_lost_may_hang_also_when_nothing_is_known_yet() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4, 5]).await;
    let survey = log.survey().await;
    log.controls[1].hang();
    log.controls[3].hang();
    let began = Instant::now();
    assert!(log.set.aggregation(&survey, ONE, one.id).await.is_ok());
    assert!(began.elapsed() < log.set.timeout() / 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_recovered_is_read_from_again() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4, 5]).await;
    let survey = log.survey().await;
    took(&log, &survey, &one, 20).await;
    log.controls[2].set_down(true);
    took(&log, &survey, &one, 5).await;
    log.controls[2].set_down(false);
    let before = log.controls[2].calls(Operation::Shard);
    took(&log, &survey, &one, 5).await;
    assert_eq!(log.controls[2].calls(Operation::Shard), before, "it has just failed");
    tokio::time::advance(Duration::from_secs(3)).await;
    took(&log, &survey, &one, 5).await;
    assert_eq!(log.controls[2].calls(Operation::Shard), before + 5);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slower_than_the_others_is_not_waited_for() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4, 5]).await;
    for (store, control) in log.controls.iter().enumerate() {
        control.set_delay(Duration::from_millis(if store == 0 { 400 } else { 2 }));
    }
    let survey = log.survey().await;
    let time = took(&log, &survey, &one, 100).await;
    // 2 ms each, and once the time after which it is clear that store 0 is late.
    assert!(time < Duration::from_millis(320), "{time:?}");
    assert!(log.controls[0].calls(Operation::Shard) < 3);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_late_store_before_the_next_is_asked_for_what_another_lacks() {
    let (log, one) = with_one(&[0, 2, 3, 4, 5]).await;
    let survey = log.survey().await;
    took(&log, &survey, &one, 20).await;
    log.controls[0].hang();
    let began = Instant::now();
    let read = log.set.aggregation(&survey, ONE, one.id).await.unwrap();
    assert!(read.payloads[0].is_none() && read.payloads[1].is_none());
    assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_error_has_the_condition_of_every_store_also_of_one_that_hangs() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4]).await;
    let survey = log.survey().await;
    log.controls[0].hang();
    log.controls[4].set_down(true);
    let began = Instant::now();
    let error = log.set.aggregation(&survey, ONE, one.id).await.unwrap_err();
    assert_eq!((error.present, began.elapsed()), (3, log.set.timeout()));
    let id = one.id;
    let conditions: Vec<_> = error.conditions.into_iter().map(|(_, condition)| condition).collect();
    assert_eq!(conditions, [Unreachable, Held(id), Held(id), Held(id), Unreachable, Missing]);
}

#[tokio::test]
async fn what_cannot_be_read_names_number_and_stores_and_what_each_has() {
    let (log, one) = with_one(&[0, 1, 2, 3, 4]).await;
    let survey = log.survey().await;
    log.controls[0].set_down(true);
    log.memories[1].damage(&vdisk(), ONE, |shard| shard.payload = shard.payload.slice(1..));
    let error = log.set.aggregation(&survey, ONE, one.id).await.unwrap_err();
    assert_eq!((error.present, error.needed), (3, 4));
    assert_eq!(
        error.to_string(),
        "vdisk disk, aggregation 1: 3 of 4 needed shards can be read; memory:0 is out of reach or blank; memory:1 holds a \
         damaged shard (the payload is damaged: its hash does not match); memory:5 does not hold its shard"
    );
    let other = log.aggregation(1, FIRST, 2).id;
    assert_eq!(log.set.aggregation(&survey, ONE, other).await.unwrap_err().present, 0);
}

#[tokio::test]
async fn named_heads_come_from_one_store_and_from_others_where_it_has_another_aggregation_or_none() {
    let log = TestLog::begun(4, 2).await;
    let (mut prev, mut ids) = (FIRST, Vec::new());
    for number in 1..=9 {
        let aggregation = log.aggregation(number, prev, number);
        prev = aggregation.id;
        ids.push(prev);
        // Store 0 lacks 3 and has another one under 6, as has store 1.
        let on: &[usize] = match number {
            3 => &[1, 2, 3, 4, 5],
            6 => &[2, 3, 4, 5],
            _ => &[0, 1, 2, 3, 4, 5],
        };
        log.append(&aggregation, 1, on).await;
    }
    let other = log.aggregation(6, ids[4], 77);
    log.append(&other, 1, &[0, 1]).await;
    let range = || ONE..=AggregationNumber(9);
    let named = async |newest| {
        let survey = log.survey().await;
        let read = log.set.heads_of_one(&survey, range()).await;
        log.set.named_heads(&survey, read, newest).await
    };
    let found = named(ids[8]).await.unwrap();
    assert_eq!(
        found.iter().rev().map(|head| (head.head.id, head.holders[0])).collect::<Vec<_>>(),
        std::iter::zip(ids.iter().copied(), [0, 0, 1, 0, 0, 2, 0, 0, 0]).collect::<Vec<_>>()
    );
    assert!(named(other.id).await.is_none(), "nobody has that under 9");
    // An opening that nobody of these knows of rules out what is from 8 on.
    log.start(2, 8, &[5]).await;
    assert!(named(ids[8]).await.is_none());
}
