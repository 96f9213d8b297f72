//! Removing history that no kept moment needs.
//!
//! Every moment of the window stays: the log from the *base* on, a checkpoint at the oldest moment of the window. Single moments before
//! that stay as images, each as far as it differs from the next newer one. What is below the base is then removed, unless a slave or a
//! running restore still needs it.
//!
//! An image of the base is as large as the disk, so that removing history costs writing, too. It is done when more is removed than
//! written; an older checkpoint that is there already is used where that is nearly as good.

use std::time::Duration;

use anyhow::Context;
use tlog_codec::{MarkName, PlaceInLog, Record};
use tlog_player::{Checkpoint, DiskState, DiskStateError, LogReader, Moment, MomentError, ReadOptions};
use tlog_proto::{AggregationNumber, Timestamp};
use tokio::time::Instant;

use super::image::{Image, Pace, store};
use super::keep::Keep;
use super::limits::{Limit, Limits};
use super::{How, PointReport, Progress, PruneReport, Work, place_of};
use crate::moment;

/// How long all stores may take to have everything before history is removed.
const COMPLETE_WITHIN: Duration = Duration::from_secs(30);
/// Heads that are looked at to tell how much is removed.
const SAMPLES: u64 = 64;

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

    let (base, base_disk) = match plan.base {
        Base::There(checkpoint) => (checkpoint.number, reader.image(&work.keys, checkpoint.number).await?),
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
        return Ok(report.nothing(
            "some stores do not have everything, so that what is kept would survive fewer losses than what is removed; bring them back \
             or replace them, or say --degraded"
                .to_owned(),
        ));
    }
    // Whoever has come since is respected; whoever comes from now on is told what stays.
    let slave =
        if how.ignore_slave { None } else { limits.slave(&work.vdisk).await.map_err(anyhow::Error::msg)? };
    let wanted = slave.map_or(plan.first, |slave| slave.from.min(plan.first));
    let first = limits.decide(&work.vdisk, wanted);
    let pruned = work.log.prune(first).await?;
    metrics::counter!("tlog_retention_pruned_aggregations_total")
        .increment(first.0.saturating_sub(reader.extent().first.0));
    report.done(pruned.first, pruned.later, began.elapsed());
    Ok(report)
}

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
    let (keys, first) = (&work.keys, reader.extent().first);
    let everything = "everything that the log has is within what is to be kept".to_owned();
    let Some(oldest) = locate(work, reader, Moment::At(keep.since(now))).await? else {
        return Ok(Err(everything));
    };
    // The disk at the beginning of the window is in the middle of that aggregation, or after all of it.
    let wanted = if oldest.blocks == oldest.of {
        oldest.aggregation
    } else {
        oldest.aggregation.previous().unwrap_or_default()
    };
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
    let points = points(work, reader, keep, now, plan_first).await?;
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

/// Single moments before `first` that are kept, newest first.
async fn points(
    work: &Work<'_>,
    reader: &LogReader,
    keep: &Keep,
    now: Timestamp,
    first: AggregationNumber,
) -> anyhow::Result<Vec<Point>> {
    let mut points: Vec<Point> = Vec::new();
    for time in keep.times(now) {
        let why = format!("the last moment up to {}", moment::show(time));
        if let Some(place) = locate(work, reader, Moment::At(time)).await? {
            points.push(Point { why, place });
            continue;
        }
        // Its history is gone; an image of it may be there from the last time.
        let images = reader.checkpoints(&work.keys).await?;
        let newest = images.iter().map(|image| image.record.place).filter(|place| place.timestamp <= time);
        if let Some(place) = newest.max_by_key(|place| place.position) {
            points.push(Point { why, place });
        }
    }
    if keep.marks {
        for mark in reader.marks(&work.keys).await? {
            points.push(Point { why: format!("mark {}", mark.name), place: mark.place });
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
    Ok(points)
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
    let (mut below, mut below_disk) = base;
    for point in points {
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
        let (blocks, gone) = disk.apart_from(&below_disk);
        let place = disk.reached().map_or(point.place, place_of);
        let image = Image { place, disk: &disk, blocks: &blocks, gone, base: Some(below) };
        below = store(work, image, pace, &mut *progress).await?.0;
        below_disk = disk;
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
    }
    Ok(())
}
