//! A log read back: its whole history, and the disk at its end.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use tlog_codec::VdiskKeys;
use tlog_player::{
    FileOptions, LogReader, Moment, NoTarget, ReadOptions, ReplayOptions, RestoreOptions, restore_to_file,
};
use tlog_proto::{BlockIndex, VdiskId};

use super::data::Content;
use super::figures::Figures;
use super::load::Acknowledged;
use super::process::{cpu_seconds, peak_memory};
use crate::reading;
use crate::settings::Settings;

/// Replays the log, then restores the disk: to nothing, and to a file, which stays. Each opens the log anew.
pub(crate) async fn measure(
    settings: &Settings,
    vdisk: &VdiskId,
    file: &Path,
    stores_cpu: impl Fn() -> Option<f64>,
) -> anyhow::Result<Figures> {
    let keys = reading::keys_of(settings, vdisk)?;
    let mut figures = Figures::default();

    let stage = Stage::begin(&stores_cpu);
    let reader = reading::open(settings, vdisk).await?;
    let bytes = replay(&reader, &keys).await?;
    if bytes == 0 {
        bail!("vdisk {vdisk}: there are no blocks in its log to be read");
    }
    stage.end("replay", "replay", bytes, &stores_cpu, &mut figures);

    let stage = Stage::begin(&stores_cpu);
    let (reader, state) = disk_state(settings, vdisk, &keys).await?;
    figures.add("state_ms", "which write counts, ms", stage.begun.elapsed().as_secs_f64() * 1000.0);
    let content = state.content_bytes();
    reader.restore(&keys, &state, Arc::new(NoTarget), &RestoreOptions::default(), |_| {}).await?;
    stage.end("restore_to_nothing", "restore to nothing", content, &stores_cpu, &mut figures);

    let stage = Stage::begin(&stores_cpu);
    let (reader, state) = disk_state(settings, vdisk, &keys).await?;
    restore_to_file(&reader, &keys, &state, file, &FileOptions::default(), |_| {}).await?;
    stage.end("restore_to_file", "restore to a file", content, &stores_cpu, &mut figures);

    figures.add("replayed_bytes", "replayed, bytes", bytes as f64);
    figures.add("restored_bytes", "restored, bytes", content as f64);
    let peak = peak_memory(std::process::id()).map(|bytes| bytes as f64 / 1e6);
    figures.add_known("peak_memory_mb", "peak memory of this process, MB", peak);
    Ok(figures)
}

async fn replay(reader: &LogReader, keys: &VdiskKeys) -> anyhow::Result<u64> {
    let extent = reader.extent();
    let mut replay = reader.replay(extent.first..=extent.last, keys, ReplayOptions::default());
    let mut bytes = 0;
    while let Some(replayed) = replay.next().await? {
        bytes += replayed.blocks.iter().map(|block| block.size() as u64).sum::<u64>();
    }
    Ok(bytes)
}

async fn disk_state(
    settings: &Settings,
    vdisk: &VdiskId,
    keys: &VdiskKeys,
) -> anyhow::Result<(LogReader, tlog_player::DiskState)> {
    let reader = reading::open(settings, vdisk).await?;
    let state = reader.disk_state(keys, Moment::Newest, &ReadOptions::default()).await;
    Ok((reader, state.map_err(reading::tell)?))
}

/// Compares a restored file with what was written last to every block. Answers how many blocks those are.
pub(crate) fn compare(file: &Path, written: &Acknowledged, content: &Content) -> anyhow::Result<u64> {
    let told = || format!("the restored {}", file.display());
    let image = File::open(file).with_context(told)?;
    let last: HashMap<BlockIndex, u64> =
        (0..written.blocks).map(|number| (content.write(written.number, number).0, number)).collect();
    let mut found = vec![0; content.block_size()];
    for (index, number) in &last {
        let offset = index.get() * content.block_size() as u64;
        image.read_exact_at(&mut found, offset).with_context(told)?;
        let (_, data) = content.write(written.number, *number);
        ensure!(data == found, "block {} was not restored as it was written last", index.get());
    }
    Ok(last.len() as u64)
}

/// Something that is measured.
struct Stage {
    begun: Instant,
    own: Option<f64>,
    stores: Option<f64>,
}

impl Stage {
    fn begin(stores_cpu: impl Fn() -> Option<f64>) -> Self {
        Self { begun: Instant::now(), own: cpu_seconds(std::process::id()), stores: stores_cpu() }
    }

    fn end(
        self,
        key: &str,
        label: &str,
        bytes: u64,
        stores_cpu: impl Fn() -> Option<f64>,
        figures: &mut Figures,
    ) {
        let (seconds, gigabytes) = (self.begun.elapsed().as_secs_f64(), bytes as f64 / 1e9);
        let spent = |before: Option<f64>, now: Option<f64>| Some((now? - before?) / gigabytes);
        figures.add(format!("{key}_gb_per_s"), format!("{label}, GB/s"), gigabytes / seconds);
        let own = spent(self.own, cpu_seconds(std::process::id()));
        figures.add_known(&format!("{key}_cpu_s_per_gb"), &format!("{label}, CPU s/GB"), own);
        let stores = spent(self.stores, stores_cpu());
        figures.add_known(
            &format!("{key}_stores_cpu_s_per_gb"),
            &format!("{label}, CPU s/GB in stores"),
            stores,
        );
    }
}
