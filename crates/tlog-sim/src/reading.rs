//! Readers: the whole log, and the disk restored at moments of it, beside everything else that happens.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tlog_player::{LogReader, MemoryTarget, Moment, OpenError, ReadOptions, ReplayOptions, RestoreOptions};
use tlog_proto::AggregationNumber;
use tlog_store::LogState;
use tokio::time::{Instant, sleep};

use crate::model::{Disk, Entry, disk_after, marks};
use crate::stores::Process;
use crate::world::World;

/// What a reader makes of the log, or why it could not be read.
pub(crate) type Read<T> = Result<T, String>;

/// Reads the whole log. The reader comes back with it.
pub(crate) async fn read_log(world: &World, process: &Arc<Process>) -> Read<(LogReader, Vec<Entry>)> {
    let set = world.stores(process).ok_or("as many stores as shards")?;
    let reader = LogReader::open(set).await.map_err(|error| match error {
        OpenError::UnknownVdisk { .. } => "there is no log".to_owned(),
        error => error.to_string(),
    })?;
    let log = replayed(world, &reader).await?;
    Ok((reader, log))
}

/// The same as soon as every store counts and the end is certain, which takes a while after faults have stopped: blank stores are filled, and
/// told what is committed.
pub(crate) async fn read_log_to_its_end(world: &World, limit: Duration) -> Read<(LogReader, Vec<Entry>)> {
    let process = Process::new();
    let until = Instant::now() + limit;
    loop {
        let read = read_log(world, &process).await;
        let settled = match &read {
            Ok((reader, _)) => {
                let survey = reader.survey();
                // What a store lost that cannot be told from one that never had it, the writer knows, and fills in.
                let all = survey.first()..=survey.head();
                let is_whole = |(_, state): (usize, &LogState)| state.held.missing_in(all.clone()).is_empty();
                reader.extent().uncertain.is_none()
                    && reader.absent_stores().is_empty()
                    && (!world.scenario.loses_tails || survey.counted().all(is_whole))
            }
            Err(_) => false,
        };
        if settled {
            return read;
        }
        if Instant::now() >= until {
            let (reader, _) = read?;
            return Err(format!(
                "{:?} after {limit:?}, without {:?}",
                reader.extent(),
                reader.absent_stores()
            ));
        }
        sleep(Duration::from_millis(300)).await;
    }
}

async fn replayed(world: &World, reader: &LogReader) -> Read<Vec<Entry>> {
    let all = AggregationNumber(1)..=reader.extent().last;
    let mut replay = reader.replay(all, &world.keys, ReplayOptions::default());
    let mut log = Vec::new();
    while let Some(replayed) = replay.next().await.map_err(|error| error.to_string())? {
        let info = replayed.info;
        let entry = |block| Entry { number: info.number, id: info.id, generation: info.generation, block };
        log.extend(replayed.blocks.into_iter().map(entry));
    }
    Ok(log)
}

/// Somebody reads the log while everything goes on, and restores a moment of it. Nothing but what comes out is checked: that stores
/// are out of reach is no fault.
pub(crate) async fn look(world: Arc<World>, mut rng: SmallRng) {
    let process = Process::new();
    let reader = read_log(&world, &process).await;
    let (reader, log) = match reader {
        Ok(read) => read,
        Err(why) => return world.tell(|| format!("the log cannot be read just now: {why}")),
    };
    world.tally(|tally| tally.reads += 1);
    world.tell(|| format!("a reader sees{}", marks(&log)));
    let checked = world.model().check(&log, None);
    if let Err(what) = checked {
        return world.find(what);
    }
    if log.is_empty() || !rng.random_bool(0.5) {
        return;
    }
    if let Err(why) = restore(&world, &reader, &log, &mut rng).await {
        world.tell(|| format!("no restore just now: {why}"));
    }
}

/// Restores a moment and compares it with what the writes up to there make; a difference is found by the world. An error: it could not be
/// read.
pub(crate) async fn restore(
    world: &World,
    reader: &LogReader,
    log: &[Entry],
    rng: &mut SmallRng,
) -> Read<()> {
    let (count, moment) = moment_of(log, rng);
    let block_size = u32::try_from(world.scenario.block_bytes).unwrap_or(u32::MAX);
    let options =
        ReadOptions { block_size: Some(block_size), accept_uncertain_end: true, ..ReadOptions::default() };
    let state = reader.disk_state(&world.keys, moment, &options).await.map_err(|error| error.to_string())?;
    let target = Arc::new(MemoryTarget::default());
    let restored =
        reader.restore(&world.keys, &state, Arc::clone(&target), &RestoreOptions::default(), |_| {}).await;
    restored.map_err(|error| error.to_string())?;
    world.tally(|tally| tally.restores += 1);
    let expected = image(&disk_after(log, count), world.scenario.block_bytes);
    if target.bytes() != expected {
        world.find(format!("the restore of {moment:?} is not the disk after {count} writes:{}", marks(log)));
    }
    Ok(())
}

/// A moment, and how many writes are up to it.
fn moment_of(log: &[Entry], rng: &mut SmallRng) -> (usize, Moment) {
    let picked = log.get(rng.random_range(0..log.len().max(1)));
    match (picked, rng.random_range(0..3)) {
        (Some(Entry { block, .. }), 0) => {
            // Clocks step back: what is later in the log may have an earlier time, and what is earlier a later one.
            let is_before = |entry: &Entry| entry.block.timestamp <= block.timestamp;
            let last = log.iter().rposition(is_before).unwrap_or_default();
            (last + 1, Moment::At(block.timestamp))
        }
        (Some(Entry { generation, block, .. }), 1) => {
            let at = |entry: &Entry| (entry.generation, entry.block.sequence);
            let last = log.iter().rposition(|entry| at(entry) == (*generation, block.sequence));
            let moment = Moment::Sequence { generation: Some(*generation), sequence: block.sequence };
            (last.unwrap_or_default() + 1, moment)
        }
        _ => (log.len(), Moment::Newest),
    }
}

/// The disk as a file.
fn image(disk: &Disk, block_bytes: usize) -> Vec<u8> {
    let mut image = Vec::new();
    for (index, data) in disk {
        image.resize(usize::try_from(*index).unwrap_or(usize::MAX).saturating_mul(block_bytes), 0);
        image.extend_from_slice(data);
    }
    image
}
