//! What grows with the number of vdisks, and with the length of a log: memory of those that are idle, throughput and fairness of those that
//! write, and the time that a long log takes to open.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use tlog_client::{Client, ClientOptions};
use tlog_proto::VdiskId;

use super::data::{Content, DataKind};
use super::figures::Figures;
use super::load::{Limit, Load, Pace};
use super::process::{allow_open_files, memory};
use super::site::{ServerProcess, Site, SiteOptions, StoreKind};
use super::writing::{Measured, measure, verify};
use crate::reading;
use crate::settings::Settings;

/// How many clients connect at the same time.
const CONNECTING: usize = 32;

/// How long all vdisks are idle before memory is looked at: stores have been told what is committed by then.
const IDLE: Duration = Duration::from_secs(2);

/// Bytes of a block of a long log: its length is what counts.
const LONG_LOG_BLOCK: usize = 512;

/// Blocks of a long log that are outstanding.
const LONG_LOG_OUTSTANDING: usize = 1000;

/// Files that a process has open beside one connection for each vdisk.
const OTHER_FILES: u64 = 500;

/// On what it is measured.
pub(crate) struct Scale<'a> {
    pub(crate) options: SiteOptions,
    pub(crate) scratch: &'a Path,
}

impl Scale<'_> {
    /// Stores, and settings of a server that takes so many vdisks.
    async fn site(&self, vdisks: usize) -> anyhow::Result<Site> {
        allow_open_files(vdisks as u64 + OTHER_FILES)?;
        let mut options = self.options.clone();
        if !options.settings.has("max-connections") {
            options.settings =
                options.settings.with("max-connections", (vdisks + CONNECTING + 100).to_string());
        }
        Site::start(&options, self.scratch).await
    }

    /// Memory of one server as more and more vdisks are connected that have written one block and are idle. `counts` rise.
    pub(crate) async fn idle(&self, counts: &[usize], figures: &mut Figures) -> anyhow::Result<()> {
        let Some(&most) = counts.last() else { return Ok(()) };
        let site = self.site(most).await?;
        let server = site.start_server().await?;
        let content = Content::new(DataKind::Random, 4096, 1 << 18, 1)?;
        let mut clients = Vec::with_capacity(most);
        let before = memory_of(&server)?;
        figures.add("idle_0_server_mb", "no vdisk: server, MB", before / 1e6);
        // What the first vdisk has the process take once and for all is no cost of the others.
        let mut earlier = before;
        for &count in counts {
            let begun = Instant::now();
            let connecting =
                stream::iter(clients.len()..count).map(|number| one_block(&server, &content, number));
            let connected: Vec<Client> = connecting.buffered(CONNECTING).try_collect().await?;
            let took_part = connected.len();
            let took = millis(begun) / took_part.max(1) as f64;
            clients.extend(connected);
            tokio::time::sleep(IDLE).await;
            let (now, shown) = (memory_of(&server)?, count_in_words(count));
            let of_each = (now - before) / 1024.0 / count as f64;
            let of_further = (now - earlier) / 1024.0 / took_part.max(1) as f64;
            earlier = now;
            figures.add(format!("idle_{count}_server_mb"), format!("{shown} idle: server, MB"), now / 1e6);
            figures.add(
                format!("idle_{count}_kib_per_vdisk"),
                format!("{shown} idle: KiB of the server for each"),
                of_each,
            );
            figures.add(
                format!("idle_{count}_kib_per_further_vdisk"),
                format!("{shown} idle: KiB of the server for each beyond those before"),
                of_further,
            );
            figures.add(
                format!("idle_{count}_connect_ms"),
                format!("{shown} idle: opening one and its first block, ms"),
                took,
            );
        }
        ensure!(
            clients.iter().all(|client| client.stats().unflushed_blocks == 0),
            "a vdisk of those that should be idle is not"
        );
        for client in clients {
            client.close().await;
        }
        server.stop().await
    }

    /// Throughput of each of these numbers of vdisks that all write, each with as many blocks outstanding, and how evenly it is shared. Answers how many blocks were found afterwards
    /// as they were written.
    pub(crate) async fn active(
        &self,
        counts: &[usize],
        outstanding: usize,
        time: Duration,
        figures: &mut Figures,
    ) -> anyhow::Result<u64> {
        let (mut verified, mut first) = (0, None);
        for &count in counts {
            let site = self.site(count).await?;
            let server = site.start_server().await?;
            let content = Arc::new(Content::new(DataKind::Random, 4096, 1 << 18, 1)?);
            let load = Load {
                server: server.address.clone(),
                tls: None,
                vdisks: (0..count).map(vdisk).collect::<anyhow::Result<_>>()?,
                content: Arc::clone(&content),
                pace: Pace::Outstanding(outstanding),
                limit: Limit::Time(time),
            };
            let Measured { written, figures: of_all, .. } =
                measure(load, &server.watched(), || site.stores_cpu()).await?;
            server.stop().await?;
            if self.options.stores != StoreKind::Memory {
                verified += verify(site.settings(), &written, &content, &[]).await?;
            }
            let (key, shown) = (format!("active_{count}"), format!("{} active", count_in_words(count)));
            let slowest = written.vdisks.iter().map(|vdisk| vdisk.blocks).min().unwrap_or_default();
            let mean = written.blocks as f64 / count as f64;
            let speed = of_all.get("data_mb_per_s").context("no throughput")?;
            figures.add_all(&key, &shown, of_all);
            figures.add(
                format!("{key}_slowest_to_mean"),
                format!("{shown}: blocks of the slowest to the mean"),
                slowest as f64 / mean,
            );
            match first {
                None => first = Some((count, speed)),
                Some((few, of_few)) => figures.add(
                    format!("active_{count}_to_{few}"),
                    format!("{shown}: throughput to that of {few}"),
                    speed / of_few,
                ),
            }
        }
        Ok(verified)
    }

    /// How long a log of so many aggregations takes to open: for a client of a server that has just been started, and for a reader.
    pub(crate) async fn history(&self, aggregations: u64, figures: &mut Figures) -> anyhow::Result<()> {
        if self.options.stores == StoreKind::Memory {
            bail!(
                "stores in memory are gone with their server: no log could be opened again; take other --stores, or --history 0"
            );
        }
        let mut options = self.options.clone();
        // Each block an aggregation of its own.
        options.settings = options.settings.with("flush-size", "1");
        let site = Site::start(&options, self.scratch).await?;
        let server = site.start_server().await?;
        let content = Arc::new(Content::new(DataKind::Random, LONG_LOG_BLOCK, 1 << 18, 1)?);
        let load = Load {
            server: server.address.clone(),
            tls: None,
            vdisks: vec![vdisk(0)?],
            content,
            pace: Pace::Outstanding(LONG_LOG_OUTSTANDING),
            limit: Limit::Blocks(aggregations),
        };
        let Measured { figures: written, .. } = measure(load, &server.watched(), || None).await?;
        server.stop().await?;
        let per_second = written.get("blocks_per_s").unwrap_or_default();
        figures.add("history_aggregations", "long log: aggregations", aggregations as f64);
        figures.add("history_aggregations_per_s", "long log: aggregations/s as it was written", per_second);

        let begun = Instant::now();
        let server = site.start_server().await?;
        figures.add("history_start_ms", "long log: starting the server, ms", millis(begun));
        let before = memory_of(&server)?;
        let begun = Instant::now();
        let client = Client::connect(server.address.as_str(), vdisk(0)?, at_once()).await?;
        figures.add("history_open_ms", "long log: opening it for a client, ms", millis(begun));
        let kib = (memory_of(&server)? - before) / 1024.0;
        figures.add("history_open_kib", "long log: memory that the server takes for it, KiB", kib);
        client.close().await;
        server.stop().await?;
        let begun = Instant::now();
        let last = last_number(site.settings()).await?;
        figures.add("history_read_open_ms", "long log: opening it for reading, ms", millis(begun));
        ensure!(last == aggregations, "the log has {last} aggregations, and {aggregations} were written");
        Ok(())
    }
}

/// Connects, writes a block and waits until that is durable.
async fn one_block(server: &ServerProcess, content: &Content, number: usize) -> anyhow::Result<Client> {
    let vdisk = vdisk(number)?;
    let client = Client::connect(server.address.as_str(), vdisk.clone(), at_once()).await;
    let client = client.with_context(|| format!("vdisk {vdisk}"))?;
    let (index, data) = content.write(u32::try_from(number)?, 0);
    let handle = client.set(index, data).await?;
    client.flush().await?;
    handle.await?;
    Ok(client)
}

/// A client that ends when it loses its server: one that comes back would be measured as one that was never away.
fn at_once() -> ClientOptions {
    ClientOptions { reconnect_deadline: Some(Duration::ZERO), ..ClientOptions::default() }
}

async fn last_number(settings: &Settings) -> anyhow::Result<u64> {
    Ok(reading::open(settings, &vdisk(0)?).await?.extent().last.0)
}

fn vdisk(number: usize) -> anyhow::Result<VdiskId> {
    Ok(VdiskId::new(&format!("bench-{number}"))?)
}

fn memory_of(server: &ServerProcess) -> anyhow::Result<f64> {
    let pid = server.watched().pid.context("no process")?;
    Ok(memory(pid).context("the system does not tell how much memory a process has")? as f64)
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn count_in_words(count: usize) -> String {
    if count == 1 { "1 vdisk".to_owned() } else { format!("{count} vdisks") }
}
