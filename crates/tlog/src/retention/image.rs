//! Storing the image of a moment in the log, and reading it back.

use std::time::Duration;

use anyhow::{Context, bail};
use tlog_ambient::{Point, reached};
use tlog_codec::{CheckpointPart, CheckpointRecord, PlaceInLog, Record};
use tlog_player::{DiskState, LogReader, Moment, ReadOptions, StoredFormat};
use tlog_proto::{AggregationNumber, Block, BlockIndex};
use tokio::time::Instant;

use super::{CheckpointReport, Progress, Work, place_of};

/// Bytes of content in one part, about; a block that is larger is a part alone.
const PART_BYTES: usize = 4 << 20;
/// Most blocks in one part: its manifest stays well below a megabyte.
const PART_BLOCKS: usize = 8192;
/// Bytes of memory for what is read ahead.
const MEMORY: u64 = 64 << 20;

/// Keeps writing below a rate, so that clients hardly notice.
pub(super) struct Pace {
    rate: u64,
    free_at: Instant,
}

impl Pace {
    /// So many bytes a second at most.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free_at: Instant::now() }
    }

    async fn take(&mut self, bytes: u64) {
        tokio::time::sleep_until(self.free_at).await;
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.free_at = self.free_at.max(Instant::now()) + takes;
    }
}

/// An image that is to be stored.
pub(super) struct Image<'a> {
    pub(super) place: PlaceInLog,
    /// The whole disk.
    pub(super) disk: &'a DiskState,
    /// What of it the parts have.
    pub(super) blocks: &'a DiskState,
    /// Blocks that the base has and the disk has not.
    pub(super) gone: Vec<BlockIndex>,
    /// The record of the image below it.
    pub(super) base: Option<AggregationNumber>,
}

/// Stores an image of a moment.
pub(super) async fn checkpoint(
    work: &mut Work<'_>,
    moment: Moment,
    mut pace: Pace,
    progress: Progress<'_>,
) -> anyhow::Result<CheckpointReport> {
    let began = Instant::now();
    let reader = work.reader_of_now().await?;
    let disk = reader.disk_state(&work.keys, moment, &ReadOptions::default()).await?;
    let Some(reached) = disk.reached().filter(|reached| reached.format == StoredFormat::Two) else {
        bail!(
            "vdisk {}: the moment is in history of format 1, or nothing was logged yet; a checkpoint can be made of what was written \
             in format 2",
            work.vdisk
        );
    };
    let place = place_of(reached);
    let image = Image { place, disk: &disk, blocks: &disk, gone: Vec::new(), base: None };
    let (number, parts) = store(work, image, &mut pace, progress).await?;
    Ok(CheckpointReport::new(&work.vdisk, number, &place, &disk, parts, began.elapsed()))
}

/// Stores an image, reads it back, and answers the number of its record and how many parts it has.
pub(super) async fn store(
    work: &mut Work<'_>,
    image: Image<'_>,
    pace: &mut Pace,
    progress: Progress<'_>,
) -> anyhow::Result<(AggregationNumber, usize)> {
    let Image { place, disk, blocks, gone, base } = image;
    reached(Point::BeforeImage);
    let reader = work.reader().await?;
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    let (mut written, total) = (0, blocks.content_bytes());
    progress(0, total);
    let gone = gone.into_iter().map(|index| Block::delete(place.position.sequence, index, place.timestamp));
    part.extend(gone);
    let mut read = reader.read_blocks(&work.keys, blocks, MEMORY);
    loop {
        let next = read.next().await.transpose()?;
        let end = next.is_none();
        let mut next = next.into_iter().flatten().peekable();
        while next.peek().is_some() || part.len() > PART_BLOCKS || end && !part.is_empty() {
            while part.len() < PART_BLOCKS && bytes < PART_BYTES {
                let Some(block) = next.next() else { break };
                bytes += block.size();
                part.push(block);
            }
            if part.len() < PART_BLOCKS && bytes < PART_BYTES && !end {
                break; // more comes
            }
            let rest = part.split_off(part.len().min(PART_BLOCKS));
            pace.take(bytes as u64).await;
            parts.push(store_part(work, std::mem::replace(&mut part, rest), &place).await?);
            reached(Point::AfterImagePart);
            written += std::mem::take(&mut bytes) as u64;
            progress(written, total);
        }
        if end {
            break;
        }
    }
    parts.sort_by_key(|part| part.number); // stored again after a take-over
    let count = parts.len();
    let record = CheckpointRecord {
        place,
        block_size: disk.block_size(),
        blocks: disk.block_count() as u64,
        bytes: disk.content_bytes(),
        base,
        parts,
    };
    // Restores go by it as soon as its record is there.
    read_back(work, &record, disk).await?;
    let stored = work.store_record(Record::Checkpoint(record)).await?;
    reached(Point::AfterImage);
    tracing::info!(vdisk = %work.vdisk, number = %stored.number, moment = %place.aggregation, parts = count, bytes = written,
        "a checkpoint is stored and was read back");
    Ok((stored.number, count))
}

async fn store_part(
    work: &mut Work<'_>,
    mut blocks: Vec<Block>,
    place: &PlaceInLog,
) -> anyhow::Result<CheckpointPart> {
    blocks.sort_by_key(|block| block.index);
    let ends = blocks.first().zip(blocks.last()).map(|(first, last)| (first.index, last.index));
    let (first, last) = ends.context("a part has blocks")?;
    let count = u32::try_from(blocks.len())?;
    let stored = work.store_part(blocks, place.timestamp).await?;
    Ok(CheckpointPart { number: stored.number, id: stored.id, blocks: count, first, last })
}

/// Whether what is stored is the disk: every block is where and what it should be, and all data is read.
async fn read_back(work: &Work<'_>, record: &CheckpointRecord, disk: &DiskState) -> anyhow::Result<()> {
    let reader = work.reader().await?;
    let image = reader.image_to_be(&work.keys, record.clone()).await.context("what was just stored")?;
    let ((differing, gone), place) = (image.apart_from(disk), image.reached().map(place_of));
    if differing.block_count() > 0 || !gone.is_empty() || place != disk.reached().map(place_of) {
        bail!(
            "vdisk {}: what was stored is not the disk at aggregation {}: {} blocks differ, {} are missing. It is no checkpoint, and nothing was \
             removed. This is a fault of this program or its machine: please report it",
            work.vdisk,
            record.place.aggregation,
            differing.block_count(),
            gone.len()
        );
    }
    read_all(work, &reader, &image).await.context("what was just stored cannot be read back")
}

/// Reads all of an image that is there, and answers what it is of.
pub(super) async fn read_again(
    work: &Work<'_>,
    reader: &LogReader,
    number: AggregationNumber,
) -> anyhow::Result<DiskState> {
    let said = || {
        format!(
            "vdisk {}: checkpoint {number}, which is to take the place of history; run tlog verify",
            work.vdisk
        )
    };
    let image = reader.image(&work.keys, number).await.with_context(said)?;
    read_all(work, reader, &image).await.with_context(said)?;
    Ok(image)
}

/// Those below an image are read with it.
async fn read_all(work: &Work<'_>, reader: &LogReader, image: &DiskState) -> anyhow::Result<()> {
    let mut read = reader.read_blocks(&work.keys, image, MEMORY);
    let mut blocks = 0;
    while let Some(next) = read.next().await {
        blocks += next?.len();
    }
    if blocks != image.block_count() {
        bail!("{blocks} of {} blocks can be read", image.block_count());
    }
    Ok(())
}
