//! Rounds of faults, and what is looked at after each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::checking::Calm;
use crate::fault::{Blow, Fault, Target, Who};
use crate::plan::{Strike, faults};
use crate::report::{Report, Tally};
use crate::site::{Plot, Site};
use crate::wrong::Wrong;
use crate::{checking, slaves, small_disk, striking};

/// How long faults go on before everything is compared.
const ROUND: Duration = Duration::from_secs(40);

/// Writes of a client in a second, if the run is not so long that [`MOST_WRITES`] makes it fewer.
const RATE: u32 = 40;

/// Writes of a client, about, in a whole run: so much history fits in memory and on small disks.
const MOST_WRITES: u64 = 100_000;

/// How long the start may take, on a machine that does other things as well.
const START: Duration = Duration::from_secs(240);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long, about: the last round ends after that.
    pub length: Duration,
    /// What is decided by this: faults, places and contents of writes, and moments that are restored. Not the order in which the machine lets things happen.
    pub seed: u64,
    /// Where journals, logs and what was restored are left; gone where nothing was found and this is none.
    pub keep: Option<PathBuf>,
    /// Where `tlog` and `tlog-server` are.
    pub binaries: PathBuf,
    /// How long everything may take to recover by itself.
    pub recovery: Duration,
    /// What is done wrong, and must be found.
    pub wrong: Option<Wrong>,
}

/// Somebody did not want to wait any longer.
#[derive(Debug, thiserror::Error)]
#[error("it was interrupted")]
struct Interrupted;

/// Where everything is.
enum Place {
    Kept(PathBuf),
    Temporary(TempDir),
}

/// Runs it. An error is one of the machine or of a program that is not there; what is found to be wrong is in the report.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let alone = small_disk::be_alone()?;
    for binary in ["tlog", "tlog-server"] {
        let path = options.binaries.join(binary);
        anyhow::ensure!(path.is_file(), "{} is not there; 'cargo xtask chaos' builds it", path.display());
    }
    let place = match &options.keep {
        Some(path) => {
            std::fs::create_dir_all(path)?;
            // A journal that is there would be gone on with.
            anyhow::ensure!(std::fs::read_dir(path)?.next().is_none(), "{} is not empty", path.display());
            Place::Kept(std::path::absolute(path)?)
        }
        None => Place::Temporary(tempfile::Builder::new().prefix("tlog-chaos-").tempdir()?),
    };
    let root = match &place {
        Place::Kept(path) => path.clone(),
        Place::Temporary(directory) => directory.path().to_owned(),
    };
    let minutes = options.length.as_secs().div_ceil(60).max(1);
    let plot = Plot {
        root,
        binaries: std::path::absolute(&options.binaries)?,
        seed: options.seed,
        rate: u32::try_from(MOST_WRITES / (60 * minutes)).unwrap_or(RATE).clamp(1, RATE),
        // What a run writes, twice, as Redis writes its file anew now and then.
        small_disk: alone.then_some((64 + 8 * minutes.min(32)) << 20),
        wrong: options.wrong,
    };
    let tally = Arc::new(Tally::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let began = Instant::now();
    let found = runtime.block_on(whole(&plot, options, &tally));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let mut report = tally.report();
    (report.seed, report.took) = (options.seed, began.elapsed());
    if !alone {
        report.impossible.push("disk of a store full");
    }
    if let Err(error) = found {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        report.found = Some(format!("{error:#}"));
        let kept = match place {
            Place::Kept(path) => path,
            Place::Temporary(directory) => directory.keep(),
        };
        eprintln!("journals and logs are in {}", kept.display());
    }
    Ok(report)
}

async fn whole(plot: &Plot, options: &Options, tally: &Arc<Tally>) -> anyhow::Result<()> {
    let starting = plot.clone();
    let site =
        Arc::new(tokio::task::spawn_blocking(move || Site::start(&starting)).await.context("the start")??);
    let done = tokio::select! {
        done = rounds(&site, options, tally) => done,
        looked = checking::keep_looking(Arc::clone(&site), options.seed, Arc::clone(tally)) => looked,
        _ = tokio::signal::ctrl_c() => Err(Interrupted.into()),
    };
    let counted = count(&site, tally);
    site.keep_logs()?;
    done.and(counted)
}

fn count(site: &Site, tally: &Tally) -> anyhow::Result<()> {
    for client in &site.clients {
        let journal = client.journal()?;
        let acknowledged = journal.writes.iter().take(journal.acknowledged as usize);
        let sets = acknowledged.filter(|write| write.operation == tlog_proto::Operation::Set).count() as u64;
        tally.change(|report| {
            report.acknowledged += journal.acknowledged;
            report.bytes += sets * u64::from(client.disk.block_size);
        });
    }
    Ok(())
}

async fn rounds(site: &Arc<Site>, options: &Options, tally: &Arc<Tally>) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut random = SmallRng::seed_from_u64(options.seed.rotate_left(7));
    for client in &site.clients {
        client.program.lock().await.start()?;
    }
    checking::write(site).await?;
    // A log that is being begun has promised nothing yet.
    let calm = Calm::begin("the start", options.recovery.max(START));
    checking::writes_go_on(site, calm).await?;
    checking::stores_are_whole(site, calm).await?;
    say(began, "everything is there, and both disks are written");
    let mut round = 0;
    loop {
        let length = ROUND.min(options.length);
        let strikes = faults(options.seed, round, length, &site.shape());
        carry_out(site, strikes, began, tally).await?;
        slaves::slave_is_a_moment(site, tally).await?;
        match options.wrong {
            Some(Wrong::WipedStores) => wipe_too_many(site, began).await?,
            Some(Wrong::EarlyAcknowledgement) => kill_what_is_not_durable(site, began).await?,
            Some(Wrong::OtherContent) | None => {}
        }
        let calm = Calm::begin("faults had stopped", options.recovery);
        say(began, "faults have stopped");
        tally.took("acknowledgements come again", checking::writes_go_on(site, calm).await?);
        tally.took("everything is durable", checking::be_quiet(site, calm).await?);
        tally.took("all stores have everything", checking::stores_are_whole(site, calm).await?);
        tally.took("the slave is up to date", slaves::slave_is_the_disk(site, calm).await?);
        checking::restores_are_the_disk(site, &mut random, tally).await?;
        site.check_runs().await?;
        site.check_logs().await?;
        round += 1;
        tally.change(|report| report.rounds = round);
        let handed: u64 = site
            .clients
            .iter()
            .map(|client| client.look(|journal| journal.handed()))
            .sum::<Result<_, _>>()?;
        say(began, &format!("round {round} is over: {handed} writes, all of them there"));
        if began.elapsed() >= options.length {
            // Nothing is written since it was quiet.
            return checking::history_is_whole(site).await;
        }
        checking::write(site).await?;
    }
}

/// Lets go wrong what is planned, when it is planned; answers when all of it is undone. Where a start takes the machine long, what is planned
/// next for that process waits for it.
async fn carry_out(
    site: &Arc<Site>,
    strikes: Vec<Strike>,
    began: Instant,
    tally: &Arc<Tally>,
) -> anyhow::Result<()> {
    let start = tokio::time::Instant::now();
    let (mut under_way, mut free) = (JoinSet::new(), BTreeMap::<Target, Arc<Mutex<()>>>::new());
    for strike in strikes {
        let (site, tally) = (Arc::clone(site), Arc::clone(tally));
        // In one order, so that no two wait for each other.
        let targets: BTreeSet<Target> = strike.fault.targets(&site.shape()).into_iter().collect();
        let free: Vec<_> =
            targets.into_iter().map(|target| Arc::clone(free.entry(target).or_default())).collect();
        under_way.spawn(async move {
            sleep_until(start + strike.at).await;
            let mut held = Vec::new();
            for target in free {
                held.push(target.lock_owned().await);
            }
            let Strike { lasts, fault, .. } = &strike;
            say(began, &format!("{fault}, for {:.1} s", lasts.as_secs_f64()));
            tally.fault(fault);
            striking::begin(&site, fault).await.with_context(|| fault.to_string())?;
            sleep_until(start + strike.end()).await;
            striking::end(&site, fault).await.with_context(|| format!("after this: {fault}"))
        });
    }
    while let Some(struck) = under_way.join_next().await {
        struck??;
    }
    Ok(())
}

/// Three of six stores lose everything, where any four are needed.
async fn wipe_too_many(site: &Arc<Site>, began: Instant) -> anyhow::Result<()> {
    for store in [0, 2, 5] {
        let fault = Fault::StoreWiped(store);
        say(began, &format!("{fault}, and it must not"));
        striking::begin(site, &fault).await?;
        striking::end(site, &fault).await?;
    }
    Ok(())
}

/// A client that writes while no server is there is killed: nothing but its journal has those writes. Servers are killed, not stopped, as
/// the system would keep for a stopped one what arrives.
async fn kill_what_is_not_durable(site: &Arc<Site>, began: Instant) -> anyhow::Result<()> {
    // One that waits for a server may have no room for another write.
    checking::writes_go_on(site, Calm::begin("faults had stopped", START)).await?;
    let servers = (0..site.shape().servers).map(|server| Fault::Process(Who::Server(server), Blow::Killed));
    for fault in servers.clone() {
        say(began, &format!("{fault}, until a client has been killed that writes"));
        striking::begin(site, &fault).await?;
    }
    checking::something_is_acknowledged(site, 0, Calm::begin("the servers were killed", START)).await?;
    let client = Fault::Process(Who::Client(0), Blow::Killed);
    say(began, &client.to_string());
    striking::begin(site, &client).await?;
    for fault in servers.chain([client]) {
        striking::end(site, &fault).await?;
    }
    Ok(())
}

/// A line of the story.
fn say(began: Instant, what: &str) {
    eprintln!("[{:7.1}] {what}", began.elapsed().as_secs_f64());
}

/// A seed that nobody has chosen.
pub fn random_seed() -> anyhow::Result<u64> {
    // Short enough to be typed again.
    Ok(u64::from(getrandom::u32().context("no random numbers")? % 1_000_000))
}
