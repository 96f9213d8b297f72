//! Removing history that no kept moment needs.
//!
//! Every moment of the window stays: the log from the *base* on, a checkpoint at the oldest moment of the window. Single moments before
//! that stay as images, each as far as it differs from the next newer one. What is below the base is then removed, unless a slave or a
//! running restore still needs it.
//!
//! What is in the window is told by the [clock of the log](super::clock), not by single writes. An image that was stored for an
//! earlier prune and stays whole is not stored again.
//!
//! An image of the base is as large as the disk, so that removing history costs writing, too. It is done when more is removed than
//! written; an older checkpoint that is there already is used where that is nearly as good.

use std::time::Duration;

use anyhow::Context;
use tlog_ambient::{Point as Failpoint, reached};
use tlog_codec::{MarkName, PlaceInLog, Record};
use tlog_player::{Checkpoint, DiskState, DiskStateError, LogReader, Moment, MomentError, ReadOptions};
use tlog_proto::{AggregationNumber, Timestamp};
use tokio::time::Instant;

use super::clock::LogClock;
use super::image::{Image, Pace, read_again, store};
use super::keep::Keep;
use super::limits::{Limit, Limits};
use super::{How, PointReport, Progress, PruneReport, Work, place_of};
use crate::moment;

/// How long all stores may take to have everything before history is removed.
const COMPLETE_WITHIN: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(30) };
/// Heads that are looked at to tell how much is removed.
const SAMPLES: u64 = 64;
/// So many images are laid over each other, and the next one over the base again: a restore reads all that are below its own, and a reader
/// follows no more than a thousand.
const LAYERS: usize = if cfg!(test) { 8 } else { 128 };

/// The oldest moment of which everything that follows is kept.
enum Base {
    /// There is an image of it.
    There(Box<Checkpoint>),
    /// An image is to be stored of this disk.
    New(Box<DiskState>),
}

/// What is to be done.
struct Plan {
    base: Base,
    /// Everything below is removed.
    first: AggregationNumber,
    /// Moments before the base that are kept, newest first.
    points: Vec<Point>,
    removed_bytes: u64,
    written_bytes: u64,
}

/// A single moment that is kept.
struct Point {
    why: String,
    place: PlaceInLog,
    /// The image of it that is there already and stays.
    image: Option<AggregationNumber>,
}

pub(super) async fn prune(
    work: &mut Work<'_>,
    keep: &Keep,
    how: How,
    limits: &dyn Limits,
    mut pace: Pace,
    progress: Progress<'_>,
) -> anyhow::Result<PruneReport> {
    let began = Instant::now();
    let now = now();
    let reader = work.reader_of_now().await?;
    let mut report = PruneReport::new(&work.vdisk, reader.extent(), keep.since(now), how.dry_run);
    let mut plan = match plan(work, &reader, keep, now).await? {
        Ok(planned) => planned,
        Err(why) => return Ok(report.nothing(why)),
    };
    report.planned(plan.first, plan.removed_bytes, plan.written_bytes);
    report.points = plan.points.iter().map(|point| PointReport::new(&point.why, &point.place)).collect();

    let limit = match limit(work, limits, how).await {
        Ok(limit) => limit.filter(|limit| limit.from < plan.first),
        Err(why) => return Ok(report.nothing(format!("{why}; with --ignore-slave it is not waited for"))),
    };
    if let Some(limit) = limit {
        report.held_back_by = Some(limit.who.clone());
        plan.first = limit.from;
        if plan.first <= reader.extent().first {
            return Ok(
                report.nothing(format!("{} needs everything from aggregation {} on", limit.who, limit.from))
            );
        }
        (plan.removed_bytes, _) = bytes_between(&reader, reader.extent().first, plan.first).await?;
        report.planned(plan.first, plan.removed_bytes, plan.written_bytes);
    }
    if plan.removed_bytes <= plan.written_bytes && !how.anyway {
        return Ok(report.nothing(
            "more would be written, as images of what is kept, than removed; say --anyway to do it all the same".to_owned(),
        ));
    }
    if how.dry_run {
        report.seconds = began.elapsed().as_secs_f64();
        return Ok(report);
    }

    // Before anything is stored: else a server would store images again and again while a store is away.
    if !how.degraded && !work.log.wait_until_complete(COMPLETE_WITHIN).await {
        return Ok(report.nothing(INCOMPLETE.to_owned()));
    }
    let (base, base_disk) = match plan.base {
        // It may be long ago that it was stored.
        Base::There(checkpoint) => (checkpoint.number, read_again(work, &reader, checkpoint.number).await?),
        Base::New(disk) => {
            let place = disk.reached().map(place_of).context("the base is a moment of the log")?;
            let image = Image { place, disk: &disk, blocks: &disk, gone: Vec::new(), base: None };
            (store(work, image, &mut pace, progress).await?.0, *disk)
        }
    };
    report.base = Some(base.0);
    store_points(work, &reader, &plan.points, (base, base_disk), &mut pace, progress).await?;
    keep_marks(work, &reader, keep, plan.first, &plan.points).await?;

    if !work.log.wait_until_complete(COMPLETE_WITHIN).await && !how.degraded {
        return Ok(report.nothing(INCOMPLETE.to_owned()));
    }
    // Whoever has come since is respected; whoever comes from now on is told what stays.
    let slave =
        if how.ignore_slave { None } else { limits.slave(&work.vdisk).await.map_err(anyhow::Error::msg)? };
    let wanted = slave.map_or(plan.first, |slave| slave.from.min(plan.first));
    let first = limits.decide(&work.vdisk, wanted);
    reached(Failpoint::BeforeRemoval);
    let pruned = work.log.prune(first).await?;
    reached(Failpoint::AfterRemoval);
    metrics::counter!("tlog_retention_pruned_aggregations_total")
        .increment(first.0.saturating_sub(reader.extent().first.0));
    report.done(pruned.first, pruned.later, began.elapsed());
    Ok(report)
}

const INCOMPLETE: &str = "some stores do not have everything, so that what is kept would survive fewer losses than what is removed; \
                          bring them back or replace them, or say --degraded";

fn now() -> Timestamp {
    let now = jiff::Timestamp::now().as_nanosecond();
    Timestamp(u64::try_from(now).unwrap_or_default())
}

async fn limit(work: &Work<'_>, limits: &dyn Limits, how: How) -> Result<Option<Limit>, String> {
    let slave = if how.ignore_slave { None } else { limits.slave(&work.vdisk).await? };
    let readers = limits.readers(&work.vdisk);
    Ok(slave.into_iter().chain(readers).min_by_key(|limit| limit.from))
}

/// What is to be done, or why there is nothing to do.
async fn plan(
    work: &Work<'_>,
    reader: &LogReader,
    keep: &Keep,
    now: Timestamp,
) -> anyhow::Result<Result<Plan, String>> {
    let (keys, first, since) = (&work.keys, reader.extent().first, keep.since(now));
    let everything = "everything that the log has is within what is to be kept".to_owned();
    let Some(oldest) = locate(work, reader, Moment::At(since)).await? else {
        return Ok(Err(everything));
    };
    let clock = clock_of(reader, first, oldest.aggregation).await?;
    let newest = locate(work, reader, Moment::Newest).await?;
    let all_before = newest.is_none_or(|newest| newest.position == oldest.position);
    if let Some(taken) = clock.is_behind(since).filter(|_| all_before) {
        return Ok(Err(format!(
            "by their timestamps all writes are older than {}, but the last of them was logged at {}: the clock of whoever writes is \
             wrong, or history was copied here; say a --keep-within that goes back further than these timestamps",
            moment::show(since),
            moment::show(taken)
        )));
    }
    // The disk at the beginning of the window is in the middle of that aggregation, or after all of it.
    let wanted = if oldest.blocks == oldest.of {
        oldest.aggregation
    } else {
        oldest.aggregation.previous().unwrap_or_default()
    };
    let wanted = wanted.min(clock.first_after(since).previous().unwrap_or_default());
    if wanted < first || oldest.aggregation.0 == 0 {
        return Ok(Err(everything));
    }
    let Some(wanted) = locate(work, reader, Moment::Aggregation(wanted)).await? else {
        return Ok(Err(everything));
    };
    let wanted = wanted.aggregation;
    let checkpoints = reader.checkpoints(keys).await?;
    let there = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.is_base(first) && checkpoint.record.place.aggregation <= wanted)
        .max_by_key(|checkpoint| (checkpoint.record.place.aggregation, checkpoint.number));
    let there_first = there.map_or(first, |there| there.record.place.aggregation.next());
    let (removed_anyway, _) = bytes_between(reader, first, there_first).await?;
    let (removed_besides, stored_per_plain) = bytes_between(reader, there_first, wanted.next()).await?;
    let mut image_bytes = 0;
    let base = match there {
        Some(there) if there.record.place.aggregation == wanted => Base::There(Box::new(there.clone())),
        there => {
            let state = reader.disk_state(keys, Moment::Aggregation(wanted), &ReadOptions::default()).await?;
            image_bytes = (state.content_bytes() as f64 * stored_per_plain) as u64;
            match there {
                Some(there) if removed_besides <= image_bytes && there_first > first => {
                    Base::There(Box::new(there.clone()))
                }
                _ => Base::New(Box::new(state)),
            }
        }
    };
    let (plan_first, removed_bytes, written_bytes) = match &base {
        Base::There(_) => (there_first, removed_anyway, 0),
        Base::New(_) => (wanted.next(), removed_anyway + removed_besides, image_bytes),
    };
    if plan_first <= first {
        return Ok(Err(everything));
    }
    let times = keep.times(now);
    let points = points(work, reader, (&times, keep.marks), &clock, &checkpoints, plan_first).await?;
    Ok(Ok(Plan { base, first: plan_first, points, removed_bytes, written_bytes }))
}

/// Where a moment is; none where nothing that is kept has it.
async fn locate(work: &Work<'_>, reader: &LogReader, moment: Moment) -> anyhow::Result<Option<PlaceInLog>> {
    match reader.locate(&work.keys, moment, &ReadOptions::default()).await {
        Ok(reached) => Ok(Some(place_of(&reached))),
        Err(DiskStateError::Moment(
            MomentError::BeforeHistory { .. }
            | MomentError::BasePruned { .. }
            | MomentError::NoSuchSequence { .. }
            | MomentError::NoSuchAggregation { .. },
        )) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Bytes on all stores that aggregations from `from` to below `to` take, about; and how many bytes one of content takes.
async fn bytes_between(
    reader: &LogReader,
    from: AggregationNumber,
    to: AggregationNumber,
) -> anyhow::Result<(u64, f64)> {
    let count = to.0.saturating_sub(from.0);
    let redundancy = reader.stores().quorums().redundancy();
    let expansion = redundancy.total() as f64 / redundancy.data() as f64;
    if count == 0 {
        return Ok((0, expansion));
    }
    let samples = count.min(SAMPLES);
    let (mut stored, mut seen) = (0u64, 0u64);
    for nth in 0..samples {
        let number = AggregationNumber(from.0 + nth * count / samples);
        for info in reader.history_of(number..=number).collect().await? {
            stored += info.stored_bytes;
            seen += 1;
        }
    }
    Ok(((stored as f64 / seen.max(1) as f64 * count as f64) as u64, expansion))
}

/// What time it was where, up to an aggregation.
async fn clock_of(
    reader: &LogReader,
    from: AggregationNumber,
    to: AggregationNumber,
) -> anyhow::Result<LogClock> {
    let mut clock = LogClock::from(from);
    let mut history = reader.history_of(from..=to);
    while let Some(infos) = history.next_batch().await? {
        infos.iter().for_each(|info| clock.handle(info));
    }
    Ok(clock)
}

/// Single moments before `first` that are kept, newest first: the last ones up to some times, and marks.
async fn points(
    work: &Work<'_>,
    reader: &LogReader,
    (times, marks): (&[Timestamp], bool),
    clock: &LogClock,
    checkpoints: &[Checkpoint],
    first: AggregationNumber,
) -> anyhow::Result<Vec<Point>> {
    let mut points: Vec<Point> = Vec::new();
    for &time in times {
        if let Some(place) = last_up_to(work, reader, time, clock, checkpoints).await? {
            points.push(Point {
                why: format!("the last moment up to {}", moment::show(time)),
                place,
                image: None,
            });
        }
    }
    if marks {
        for mark in reader.marks(&work.keys).await? {
            points.push(Point { why: format!("mark {}", mark.name), place: mark.place, image: None });
        }
    }
    points.retain(|point| (1..first.0).contains(&point.place.aggregation.0));
    points.sort_by_key(|point| std::cmp::Reverse(point.place.position));
    points.dedup_by(|later, earlier| {
        let same = later.place.position == earlier.place.position;
        if same {
            earlier.why = format!("{}, {}", earlier.why, later.why);
        }
        same
    });
    // What is at the base is there anyway.
    points.retain(|point| point.place.aggregation.next() < first || point.place.blocks < point.place.of);
    for point in &mut points {
        let is_of = |image: &&Checkpoint| {
            image.record.place == point.place && image.is_whole_from(checkpoints, first)
        };
        point.image = checkpoints.iter().find(is_of).map(|image| image.number);
    }
    Ok(points)
}

/// The last moment up to a time, by the clock of the log; where its history is gone, by the images that are there.
async fn last_up_to(
    work: &Work<'_>,
    reader: &LogReader,
    time: Timestamp,
    clock: &LogClock,
    checkpoints: &[Checkpoint],
) -> anyhow::Result<Option<PlaceInLog>> {
    let after = clock.first_after(time);
    if after > reader.extent().first {
        // It may be in the middle of the first one that is later, but not behind that.
        let exact = locate(work, reader, Moment::At(time)).await?;
        return match exact.filter(|place| place.aggregation <= after) {
            Some(place) => Ok(Some(place)),
            None => locate(work, reader, Moment::Aggregation(after.previous().unwrap_or_default())).await,
        };
    }
    let places = checkpoints.iter().map(|image| image.record.place);
    Ok(places.filter(|place| place.timestamp <= time).max_by_key(|place| place.position))
}

/// Stores images of single moments, each as far as it differs from the one before.
async fn store_points(
    work: &mut Work<'_>,
    reader: &LogReader,
    points: &[Point],
    base: (AggregationNumber, DiskState),
    pace: &mut Pace,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let (base, base_disk) = base;
    let (mut below, mut below_disk, mut layers) = (base, base_disk.clone(), 1);
    for point in points {
        if let Some(image) = point.image {
            // What it is an image of may be about to go.
            if point.place.aggregation >= reader.extent().first {
                read_again(work, reader, image).await?;
            }
            continue;
        }
        let position = point.place.position;
        let moment = Moment::Sequence { generation: Some(position.generation), sequence: position.sequence };
        let disk = match reader.disk_state(&work.keys, moment, &ReadOptions::default()).await {
            Ok(disk) => disk,
            Err(error @ DiskStateError::Moment(_)) => {
                tracing::warn!(vdisk = %work.vdisk, point = point.why, %error, "a moment that is to be kept is not there any more");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if layers >= LAYERS {
            (below, below_disk, layers) = (base, base_disk.clone(), 1);
        }
        let (blocks, gone) = disk.apart_from(&below_disk);
        let place = disk.reached().map_or(point.place, place_of);
        let image = Image { place, disk: &disk, blocks: &blocks, gone, base: Some(below) };
        below = store(work, image, pace, &mut *progress).await?.0;
        below_disk = disk;
        layers += 1;
    }
    Ok(())
}

/// Stores marks again whose records are about to be removed and whose moments stay.
async fn keep_marks(
    work: &mut Work<'_>,
    reader: &LogReader,
    keep: &Keep,
    first: AggregationNumber,
    points: &[Point],
) -> anyhow::Result<()> {
    let mut seen: Vec<MarkName> = Vec::new();
    let mut again = Vec::new();
    let mut records = reader.records(&work.keys);
    while let Some(found) = records.next().await? {
        let name = match &found.record {
            Record::Mark(mark) => mark.name.clone(),
            Record::MarkRemoved(name) => name.clone(),
            Record::Checkpoint(_) => continue,
        };
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        if let Record::Mark(mark) = found.record
            && found.number < first
        {
            let is_point = |point: &Point| point.place.position == mark.place.position;
            if mark.place.aggregation.next() >= first || keep.marks && points.iter().any(is_point) {
                again.push(mark);
            }
        }
    }
    for mark in again.into_iter().rev() {
        work.store_record(Record::Mark(mark)).await?;
        reached(Failpoint::AfterMark);
    }
    Ok(())
}
