//! Moments worth restoring: why, and that their names lead there.

use std::collections::BTreeSet;
use std::time::Duration;

use tlog_player::{Moment, Point, PointOptions, PointReason, ReadOptions, StoredFormat};
use tlog_proto::{Generation, LogPosition, Sequence, SessionId, Timestamp};

use crate::checkpoint_story::Story;
use crate::log::{TestLog, number, set_block};
use crate::many_moments::with_block_size;
use crate::oracle::random_story_with_short_blocks;

fn block(sequence: u64, time: u64) -> tlog_proto::Block {
    set_block(sequence, sequence, time, vec![1; 8])
}

/// Two generations, three clients, a pause, a clock that steps back.
async fn eventful() -> TestLog {
    let mut log = TestLog::new(2, 1).await;
    log.append(1, &[block(1, 1_000), block(2, 1_010)]).await;
    log.append(1, &[block(3, 1_020)]).await;
    log.append(1, &[block(4, 2_000)]).await;
    log.session = 78;
    log.append(1, &[block(5, 2_010)]).await;
    log.append(1, &[block(6, 1_500), block(7, 1_505)]).await;
    log.session = 79;
    log.append(2, &[block(1, 1_510), block(2, 1_515)]).await;
    log.append(2, &[block(3, 1_520)]).await;
    log.publish().await;
    log
}

async fn points(log: &TestLog, options: PointOptions) -> Vec<Point> {
    log.reader().await.points(options).collect().await.unwrap()
}

#[tokio::test]
async fn what_ended_began_or_stood_still_is_a_moment_with_its_reasons() {
    use PointReason::*;
    let log = eventful().await;
    let gap = Duration::from_nanos(500);
    let found = points(&log, PointOptions { since: None, gap }).await;
    let shown: Vec<(Moment, u64, &[PointReason])> =
        found.iter().map(|point| (point.moment, point.timestamp.0, &point.reasons[..])).collect();
    let at = |n| Moment::Aggregation(number(n));
    let first = Moment::Sequence { generation: Some(Generation(2)), sequence: Sequence(1) };
    assert_eq!(
        shown,
        [
            (at(1), 1_010, &[Beginning][..]),
            (at(2), 1_020, &[BeforePause(Duration::from_nanos(980))]),
            (at(3), 2_000, &[BeforeSession(SessionId(78))]),
            (at(4), 2_010, &[BeforeStepBack(Duration::from_nanos(510))]),
            (at(5), 1_505, &[BeforeGeneration(Generation(2)), BeforeSession(SessionId(79))]),
            (first, 1_510, &[FirstOfGeneration(Generation(2))]),
            (at(7), 1_520, &[End]),
        ]
    );
    assert_eq!(found[5].position, LogPosition { generation: Generation(2), sequence: Sequence(1) });
    assert_eq!(found[4].position, LogPosition { generation: Generation(1), sequence: Sequence(7) });

    let since = points(&log, PointOptions { since: Some(Timestamp(1_520)), gap }).await;
    assert_eq!(since, [2, 3, 6].map(|at| found[at].clone()));
    let without_pause = points(&log, PointOptions::default()).await;
    assert_eq!(without_pause.len(), 6);
}

#[tokio::test]
async fn every_point_of_a_random_history_leads_to_the_aggregation_that_it_names() {
    for (seed, links) in [(50, 0), (51, 10), (52, 20)] {
        let story = random_story_with_short_blocks(seed, (2, 1), links, 20 - links).await;
        let options = PointOptions { since: None, gap: Duration::from_nanos(30) };
        let found = points(&story.log, options).await;
        assert!(found.len() > 10, "seed {seed}: {found:?}");
        for point in found {
            let reader = story.log.reader().await;
            let state = reader.disk_state(&story.log.keys, point.moment, &with_block_size()).await.unwrap();
            let reached = state.reached().unwrap();
            assert_eq!((reached.id, reached.position), (point.id, point.position), "seed {seed}: {point:?}");
            assert_eq!((reached.format, reached.aggregation), (point.format, point.aggregation));
            let first = matches!(point.reasons[..], [PointReason::FirstOfGeneration(_)]);
            let expected = if first { 1 } else { reached.of };
            assert_eq!(reached.blocks, expected, "seed {seed}: {point:?}");
        }
    }
}

#[tokio::test]
async fn where_older_servers_stopped_is_a_moment() {
    let story = random_story_with_short_blocks(53, (2, 1), 5, 5).await;
    let found = points(&story.log, PointOptions { gap: Duration::MAX, ..Default::default() }).await;
    let end = found.iter().find(|point| point.reasons.contains(&PointReason::EndOfFormat1)).unwrap();
    assert_eq!((end.format, end.aggregation), (StoredFormat::One, number(5)));
    assert!(matches!(end.moment, Moment::Id(_)));
}

#[tokio::test]
async fn a_log_of_one_aggregation_begins_and_ends_with_it_and_an_empty_one_has_no_points() {
    use PointReason::*;
    let log = TestLog::with(2, 1, 1).await;
    let found = points(&log, PointOptions::default()).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].reasons, [Beginning, End]);
    assert_eq!(points(&TestLog::new(2, 1).await, PointOptions::default()).await, []);
}

#[tokio::test]
async fn what_is_lost_ends_the_points_with_an_error_after_those_before_it() {
    let log = TestLog::with(2, 1, 5).await;
    for store in &log.memory {
        assert!(store.remove(&log.vdisk, number(3)));
    }
    let options = PointOptions { gap: Duration::ZERO, ..Default::default() };
    let mut points = log.reader().await.points(options);
    let found = points.next_batch().await.unwrap().unwrap();
    assert_eq!(found.len(), 1, "what comes after 2 is not known: {found:?}");
    assert!(points.next_batch().await.is_err());
    assert!(points.next_batch().await.is_err());
}

#[tokio::test]
async fn marks_and_images_are_points_in_the_logs_order_also_where_their_history_is_gone() {
    let mut gone = 0;
    for seed in 60..70 {
        let mut story = Story::random(seed, 2, 1, 12).await;
        let middle = story.after.len() / 2;
        let base = (middle..).find(|at| story.after[*at].place.blocks == story.after[*at].place.of).unwrap();
        let base = story.checkpoint_of(base).await;
        for first in [1, base.record.place.aggregation.0 + 1] {
            story.prune(first).await;
            let reader = story.log.reader().await;
            let options = PointOptions { since: None, gap: Duration::MAX };
            let found = reader.points_with_records(&story.log.keys, options).await.unwrap();
            let found = found.collect().await.unwrap();
            assert!(found.is_sorted_by_key(|point| point.position), "seed {seed}: {found:?}");

            // Each mark that can be restored, each image that is there, and nothing that cannot be restored.
            let mut marks = Vec::new();
            for point in &found {
                let state = reader.disk_state(&story.log.keys, point.moment, &ReadOptions::default()).await;
                let state = state.unwrap_or_else(|error| panic!("seed {seed}, {point:?}: {error}"));
                assert_eq!(state.reached().unwrap().position, point.position, "seed {seed}: {point:?}");
                gone += u64::from(point.aggregation.0 < first);
                for reason in &point.reasons {
                    match reason {
                        PointReason::Mark(name) => {
                            assert_eq!(story.marks[name.as_str()].position, point.position);
                            marks.push(name.to_string());
                        }
                        PointReason::Checkpoint { record, is_base } => {
                            let made = story.made.iter().find(|made| made.number == record.0).unwrap();
                            assert_eq!(made.record.place.position, point.position);
                            assert_eq!(*is_base, story.bases().any(|base| base.number == record.0));
                        }
                        _ => {}
                    }
                }
            }
            let names: BTreeSet<&String> = marks.iter().collect();
            assert_eq!(names.len(), marks.len(), "seed {seed}: each mark once");
            let images = found.iter().flat_map(|point| &point.reasons);
            let images = images.filter(|reason| matches!(reason, PointReason::Checkpoint { .. })).count();
            assert_eq!(images, story.made.iter().filter(|made| story.is_kept(made)).count(), "seed {seed}");
            let kept = reader.marks(&story.log.keys).await.unwrap();
            for mark in kept {
                let moment = Moment::Sequence {
                    generation: Some(mark.place.position.generation),
                    sequence: mark.place.position.sequence,
                };
                let is_there = story.expected(moment).is_some();
                assert_eq!(marks.contains(&mark.name.to_string()), is_there, "seed {seed}: {mark:?}");
            }
        }
    }
    assert!(gone > 5, "{gone} moments of which an image alone is left");
}

#[tokio::test]
async fn records_and_parts_of_images_are_no_pauses_and_no_clients() {
    let mut story = Story::new(3, 2, 1).await;
    for _ in 0..4 {
        story.write().await;
        story.checkpoint_of(0).await;
    }
    let options = PointOptions { since: None, gap: Duration::MAX };
    let without = points(&story.log, options).await;
    let last = without.last().unwrap();
    assert_eq!(last.position, story.after.last().unwrap().place.position);
    assert_eq!((last.id, &last.reasons[..]), (story.after.last().unwrap().place.id, &[PointReason::End][..]));
    assert!(
        !without
            .iter()
            .any(|point| point.reasons.iter().any(|why| matches!(why, PointReason::BeforeSession(_))))
    );
}
