//! Which stores count, and what their answers mean together.

use tlog_proto::{AggregationNumber, Epoch};
use tlog_quorum::{MAX_IN_FLIGHT, Standing, StoreSet, doubtful};
use tlog_store::{LogState, Members, NumberRanges, ShardStore, StartRecord};

use crate::log::{TestLog, vdisk};

fn record(epoch: u64, number: u64) -> StartRecord {
    StartRecord { epoch: Epoch(epoch), number: AggregationNumber(number) }
}

async fn standings(log: &TestLog) -> Vec<Standing> {
    log.survey().await.views.iter().map(|view| view.standing).collect()
}

#[tokio::test]
async fn all_stores_of_a_log_that_nobody_knows_may_begin_it() {
    let log = TestLog::unknown(2, 1);
    log.controls[2].set_down(true);
    let survey = log.survey().await;
    assert!(survey.is_new());
    assert_eq!(standings(&log).await, [Standing::Member, Standing::Member, Standing::Unreachable]);
    assert_eq!((survey.committed().0, survey.head().0, survey.first().0), (0, 0, 1));
}

#[tokio::test]
async fn a_store_that_was_wiped_or_replaced_is_blank() {
    let log = TestLog::begun(2, 2).await;
    log.memories[0].wipe();
    log.memories[1].wipe();
    log.memories[1].promise(&vdisk(), Epoch(9)).await.unwrap();
    let survey = log.survey().await;
    assert!(!survey.is_new());
    assert_eq!(standings(&log).await, [Standing::Blank, Standing::Blank, Standing::Member, Standing::Member]);
    assert_eq!((survey.counted_len(), survey.unreachable_len()), (2, 0));
    // An epoch that a blank store has promised is never taken again.
    assert_eq!(survey.highest_epoch(), Epoch(9));
}

#[tokio::test]
async fn the_newest_list_of_members_counts_wherever_it_is() {
    let log = TestLog::begun(2, 1).await;
    log.memories[0].wipe();
    log.memories[0].promise(&vdisk(), Epoch(1)).await.unwrap();
    assert_eq!(log.survey().await.views[0].standing, Standing::Blank);
    // One store has heard that the new one is a member.
    let members =
        Members { epoch: Epoch(1), change: 1, identities: log.identities().await, ..Members::default() };
    log.memories[2].start(&vdisk(), record(1, 1), &members).await.unwrap();
    assert_eq!(log.survey().await.members, members);
    assert_eq!(standings(&log).await, [Standing::Member; 3]);
    log.controls[2].set_down(true);
    assert_eq!(log.survey().await.views[0].standing, Standing::Blank);
}

#[tokio::test]
async fn a_store_that_was_not_there_when_the_log_began_is_blank_when_it_comes() {
    let log = TestLog::unknown(2, 1);
    for memory in &log.memories[..2] {
        memory.promise(&vdisk(), Epoch(1)).await.unwrap();
    }
    log.start(1, 1, &[0, 1]).await;
    log.memories[2].promise(&vdisk(), Epoch(1)).await.unwrap();
    assert_eq!(standings(&log).await, [Standing::Member, Standing::Member, Standing::Blank]);
}

#[tokio::test(start_paused = true)]
async fn too_few_stores_are_named_with_what_is_wrong_with_each() {
    let log = TestLog::begun(4, 2).await;
    log.memories[1].wipe();
    log.controls[3].set_down(true);
    log.controls[4].hang();
    let survey = log.survey().await;
    assert_eq!(survey.require(3), Ok(()));
    let error = survey.require(5).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vdisk disk: 3 of 6 stores can be counted on, 5 are needed; bring back: memory:1 is blank: it was wiped or replaced; \
         store memory:3: is not available: out of reach; store memory:4: is not available: no answer within 1s"
    );
}

#[tokio::test]
async fn start_records_of_all_members_are_put_together_without_those_that_say_nothing_more() {
    let log = TestLog::begun(2, 3).await;
    log.start(2, 6, &[1]).await;
    log.start(3, 5, &[0, 2]).await;
    log.start(4, 9, &[0, 1, 2]).await;
    // (2, 6) is covered by (3, 5), although the store that has it never heard of that.
    assert_eq!(log.state(1).await.starts, [record(1, 1), record(2, 6), record(4, 9)]);
    let survey = log.survey().await;
    assert_eq!(survey.starts(), [record(1, 1), record(3, 5), record(4, 9)]);
    for (epoch, number, ruled_out) in
        [(1, 4, false), (1, 5, true), (2, 5, true), (3, 5, false), (3, 9, true), (4, 99, false)]
    {
        assert_eq!(survey.rules_out(Epoch(epoch), AggregationNumber(number)), ruled_out, "{epoch} {number}");
    }
}

#[test]
fn what_a_store_may_hold_wrongly_lies_between_a_start_it_missed_and_the_next_it_has_heard_of() {
    let held: NumberRanges = [1, 2, 4, 5, 6, 8, 9].map(AggregationNumber).into_iter().collect();
    let state = |starts: &[(u64, u64)]| LogState {
        starts: starts.iter().map(|(epoch, number)| record(*epoch, *number)).collect(),
        held: held.clone(),
        ..LogState::default()
    };
    let all = [record(1, 1), record(2, 5), record(3, 9)];
    let of = |starts: &[(u64, u64)]| -> Vec<u64> {
        doubtful(&all, &state(starts)).iter().flat_map(|range| range.start().0..=range.end().0).collect()
    };
    assert!(of(&[(1, 1), (2, 5), (3, 9)]).is_empty());
    assert_eq!(of(&[(1, 1), (3, 9)]), [5, 6, 8]);
    assert_eq!(of(&[(1, 1)]), [5, 6, 8, 9]);
    assert!(of(&[(1, 1), (4, 3)]).is_empty(), "a later start below all of them cleared everything");
    // No older writer got further than what it may have in flight.
    let mut long = state(&[(1, 1)]);
    long.held.insert_range(AggregationNumber(1)..=AggregationNumber(1_000_000));
    assert_eq!(doubtful(&all[..2], &long).count(), MAX_IN_FLIGHT as u64);
}

#[tokio::test]
async fn the_highest_positions_of_any_member_count_and_those_of_others_do_not() {
    let log = TestLog::begun(2, 1).await;
    log.memories[0].publish(&vdisk(), Epoch(1), AggregationNumber(7)).await.unwrap();
    log.memories[0].prune(&vdisk(), Epoch(1), AggregationNumber(4)).await.unwrap();
    log.memories[1].publish(&vdisk(), Epoch(1), AggregationNumber(9)).await.unwrap();
    let survey = log.survey().await;
    assert_eq!((survey.committed(), survey.first()), (AggregationNumber(9), AggregationNumber(4)));
    log.controls[1].set_down(true);
    assert_eq!(log.survey().await.committed(), AggregationNumber(7));
}

#[test]
fn a_set_takes_exactly_as_many_stores_as_the_log_has_shards() {
    let log = TestLog::unknown(2, 1);
    let of = |count: usize| {
        let stores = log.set.stores().iter().take(count).cloned().collect();
        StoreSet::new(vdisk(), stores, log.set.quorums(), log.set.timeout())
    };
    assert!(of(2).is_none() && of(3).is_some());
}
