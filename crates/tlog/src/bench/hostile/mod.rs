//! Clients that are hostile, beside one that is not: what they take from it, how much memory they cost the server, and how long the server
//! bears with them.

pub(crate) mod kind;
pub(crate) mod swarm;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tlog_proto::VdiskId;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::kind::HostileKind;
use self::swarm::{REPORT, SwarmReport};
use super::data::{Content, DataKind};
use super::figures::Figures;
use super::load::{Limit, Load, Pace};
use super::process::{ChildProcess, cpu_seconds, memory};
use super::site::{ServerProcess, Site, SiteOptions, StoreKind};
use super::writing::{measure, verify};
use crate::settings::Settings;

/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(50);

/// How many of a kind there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hostile {
    pub(crate) kind: HostileKind,
    pub(crate) count: usize,
}

/// On what it is measured.
pub(crate) struct Measurement<'a> {
    pub(crate) options: SiteOptions,
    pub(crate) scratch: &'a Path,
    /// How long the good client writes each time.
    pub(crate) time: Duration,
    pub(crate) outstanding: usize,
}

impl Measurement<'_> {
    /// A good client alone, beside all of these, and alone again. Answers how many blocks were found afterwards as they were written.
    pub(crate) async fn run(
        &self,
        name: &str,
        hostile: &[Hostile],
        figures: &mut Figures,
    ) -> anyhow::Result<u64> {
        let site = Site::start(&self.room_for(hostile), self.scratch).await?;
        let server = site.start_server().await?;
        let pid = server.watched().pid.context("no process")?;
        let content = Arc::new(Content::new(DataKind::Random, 4096, 1 << 18, 1)?);
        let mut good =
            Good { measurement: self, site: &site, server: &server, content, verified: 0, loads: 0 };
        // The first takes what every server takes once.
        good.writes().await?;
        let alone = good.writes().await?;
        let before = memory(pid).context("the system does not tell how much memory a process has")?;
        let watch = MemoryWatch::start(pid);
        let mut swarms = Vec::new();
        for hostile in hostile {
            swarms.push((hostile.kind, start_swarm(*hostile, &site, &server)?));
        }
        for (_, swarm) in &mut swarms {
            swarm.line_with("ready").await?;
        }
        let beside = good.writes().await?;
        let metrics = server.watched().metrics().await?.context("no metrics")?;
        let connections = metrics.total("tlog_server_connections");
        let mut reports = Vec::new();
        for (kind, mut swarm) in swarms {
            let cpu = cpu_seconds(swarm.pid());
            let status = swarm.stop().await?;
            ensure!(status.success(), "hostile clients ({kind}) ended with {status}: {}", swarm.said());
            let line = swarm.line_with(REPORT).await?;
            let report: SwarmReport = serde_json::from_str(line.strip_prefix(REPORT).context("no report")?)?;
            reports.push((kind, report, cpu));
        }
        let most = watch.stop().await?;
        let again = good.writes().await?;
        let verified = good.verified;
        let (speed, shown) = ((alone + again) / 2.0, name);
        figures.add(format!("{name}_alone_mb_per_s"), format!("{shown}: good client alone, MB/s"), speed);
        figures.add(format!("{name}_beside_mb_per_s"), format!("{shown}: beside them, MB/s"), beside);
        figures.add(format!("{name}_ratio"), format!("{shown}: beside them to alone"), beside / speed);
        let growth = most.saturating_sub(before) as f64 / f64::from(1 << 20);
        figures.add(
            format!("{name}_memory_growth_mib"),
            format!("{shown}: memory of the server grew by, MiB"),
            growth,
        );
        figures.add(
            format!("{name}_connections"),
            format!("{shown}: connections of the server"),
            connections,
        );
        for (kind, report, cpu) in reports {
            let key = if hostile.len() == 1 { name.to_owned() } else { format!("{name}_{kind}") };
            let shown = if hostile.len() == 1 { name.to_owned() } else { format!("{name}, {kind}") };
            tell(report, kind, &key, &shown, figures);
            let label = format!("{shown}: processors that the hostile clients themselves take");
            figures.add_known(&format!("{key}_own_processors"), &label, cpu.map(|cpu| cpu / report.seconds));
        }
        server.stop().await?;
        Ok(verified)
    }

    /// Settings of a server that lets so many in at once, unless somebody set them otherwise.
    fn room_for(&self, hostile: &[Hostile]) -> SiteOptions {
        let count = |greets: bool| -> usize {
            hostile
                .iter()
                .filter(|hostile| hostile.kind.greets() == greets)
                .map(|hostile| hostile.count)
                .sum()
        };
        let mut options = self.options.clone();
        for (key, room) in [("max-connections", count(true) + 100), ("max-newcomers", count(false) + 1024)] {
            if !options.settings.has(key) {
                options.settings = options.settings.with(key, room.to_string());
            }
        }
        options
    }
}

fn tell(report: SwarmReport, kind: HostileKind, key: &str, shown: &str, figures: &mut Figures) {
    figures.add(
        format!("{key}_opened"),
        format!("{shown}: hostile connections opened"),
        report.opened as f64,
    );
    let label = format!("{shown}: attempts that were not accepted");
    figures.add(format!("{key}_not_opened"), label, report.not_opened as f64);
    let label = format!("{shown}: hostile bytes/s");
    figures.add(format!("{key}_bytes_per_s"), label, report.bytes as f64 / report.seconds.max(1e-3));
    if kind != HostileKind::Vanish {
        let label = format!("{shown}: the longest lived, s");
        figures.add(format!("{key}_longest_lived_s"), label, report.longest_lived_seconds);
    }
    let label = format!("{shown}: not closed in the end");
    figures.add(format!("{key}_still_open"), label, report.still_open as f64);
}

/// The good client: a new vdisk each time.
struct Good<'a> {
    measurement: &'a Measurement<'a>,
    site: &'a Site,
    server: &'a ServerProcess,
    content: Arc<Content>,
    verified: u64,
    loads: u32,
}

impl Good<'_> {
    /// Writes, and finds in the log what it has written. Answers MB/s.
    async fn writes(&mut self) -> anyhow::Result<f64> {
        let settings: &Settings = self.site.settings();
        self.loads += 1;
        let load = Load {
            server: self.server.address.clone(),
            tls: settings.client_tls.as_ref().map(crate::recording::tls_options),
            vdisks: vec![VdiskId::new(&format!("good-{}", self.loads))?],
            content: Arc::clone(&self.content),
            pace: Pace::Outstanding(self.measurement.outstanding.max(2 * settings.flush_size)),
            limit: Limit::Time(self.measurement.time),
        };
        let measured = measure(load, &self.server.watched(), || None).await?;
        if self.measurement.options.stores != StoreKind::Memory {
            self.verified += verify(settings, &measured.written, &self.content, &[]).await?;
        }
        measured.figures.get("data_mb_per_s").context("no throughput")
    }
}

fn start_swarm(hostile: Hostile, site: &Site, server: &ServerProcess) -> anyhow::Result<ChildProcess> {
    let program = std::env::current_exe()?;
    let mut arguments = vec!["bench".to_owned(), "swarm".to_owned()];
    arguments.extend([
        format!("--kind={}", hostile.kind),
        format!("--count={}", hostile.count),
        format!("--server={}", server.address),
    ]);
    if site.settings().tls.is_some() {
        arguments.push("--tls".to_owned());
    }
    ChildProcess::start(hostile.kind.name(), &program, &arguments, site.directory())
}

/// Looks at the memory of a process all the time.
struct MemoryWatch {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looking: JoinHandle<()>,
}

impl MemoryWatch {
    fn start(pid: u32) -> Self {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let looking = tokio::spawn({
            let (most, stop) = (Arc::clone(&most), Arc::clone(&stop));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    most.fetch_max(memory(pid).unwrap_or_default(), Ordering::Relaxed);
                    sleep(LOOK).await;
                }
            }
        });
        Self { most, stop, looking }
    }

    /// Answers the most that it had, in bytes.
    async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.await.context("what watched the server's memory broke")?;
        Ok(self.most.load(Ordering::Relaxed))
    }
}
