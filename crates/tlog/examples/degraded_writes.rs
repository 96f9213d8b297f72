//! What acknowledgements cost while stores hang, die, and are filled: six real Redis servers, a server and a client in this
//! process.
//!
//! ```text
//! cargo run --release -p tlog --example degraded_writes [SECONDS OF EACH PHASE] [BLOCKS PER SECOND]
//! ```
//!
//! 4-KiB blocks of random data, at most 50 of them outstanding, aggregations of 25. A latency is the time from handing a block
//! over to its being durable, the wait for a full aggregation included. The servers keep everything in memory, 1.5 times what is
//! written: mind rate and time. Ratios within one run are worth something; single times depend on the machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tlog::service::Service;
use tlog::settings::{Settings, SettingsArgs};
use tlog_client::{Client, ClientOptions};
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::{RedisOptions, RedisProcess, RedisServers};
use tokio_util::sync::CancellationToken;

const BLOCK: usize = 4096;
const OUTSTANDING: usize = 50;

/// When a block was handed over, and how long it took to be durable.
type Latencies = Vec<(Instant, Duration)>;

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(30, |seconds| seconds.parse().unwrap());
    let phase = Duration::from_secs(seconds);
    let rate = std::env::args().nth(2).map_or(5000.0, |rate| rate.parse().unwrap());
    let redis =
        tokio::task::spawn_blocking(|| RedisServers::start(6, &RedisOptions::default())).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let args = SettingsArgs::default()
        .with("storage", redis.addresses().join(","))
        .with("listen", "127.0.0.1:0")
        .with("admin-listen", "127.0.0.1:0")
        .with("data-dir", directory.path().to_str().unwrap());
    tlog::keys::write_new(&directory.path().join("tlog.key")).unwrap();
    let service = Service::start(&Settings::from_flags(&args).unwrap()).await.unwrap();
    let (address, admin) = (service.address(), service.admin_address().unwrap());
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(service.run(shutdown.clone()));

    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write(address.to_string(), rate, Arc::clone(&done)));
    let mut marks = vec![("healthy", Instant::now())];
    tokio::time::sleep(phase).await;

    let hung = &redis[5];
    hung.stop();
    marks.push(("one hangs (SIGSTOP)", Instant::now()));
    tokio::time::sleep(phase).await;
    hung.cont();
    marks.push(("it is filled", Instant::now()));
    let filled = wait_until_filled(&admin.to_string()).await;
    println!("filled {:.1} s after it went on", filled.as_secs_f64());
    marks.push(("healthy again", Instant::now()));
    tokio::time::sleep(phase).await;
    let dying = &redis[0];
    dying.kill();
    marks.push(("one dead (SIGKILL)", Instant::now()));
    tokio::time::sleep(phase).await;
    back(dying).await;
    marks.push(("it is filled", Instant::now()));
    let filled = wait_until_filled(&admin.to_string()).await;
    println!("filled {:.1} s after it was back, empty", filled.as_secs_f64());
    marks.push(("the end", Instant::now()));
    done.store(true, Ordering::Relaxed);
    let latencies = writing.await.unwrap();
    shutdown.cancel();
    assert!(server.await.unwrap().all_durable());

    println!("{:<22} {:>9} {:>8} {:>8} {:>8} {:>8}", "", "MB/s", "p50 ms", "p99 ms", "max ms", "p99 ms*");
    for (at, (name, from)) in marks.iter().enumerate().take(marks.len() - 1) {
        let to = marks[at + 1].1;
        let within = |from: Instant| {
            let within = latencies.iter().filter(|(begun, _)| (from..to).contains(begun));
            let mut within: Vec<Duration> = within.map(|(_, latency)| *latency).collect();
            within.sort_unstable();
            within
        };
        let (all, later) = (within(*from), within(*from + Duration::from_secs(1)));
        let rate = (all.len() * BLOCK) as f64 / 1e6 / (to - *from).as_secs_f64();
        println!(
            "{name:<22} {rate:>9.1} {:>8.2} {:>8.2} {:>8.2} {:>8.2}",
            quantile(&all, 0.5),
            quantile(&all, 0.99),
            quantile(&all, 1.0),
            quantile(&later, 0.99)
        );
    }
    println!(
        "* without the first second of the phase\npeak memory of server and client: {} MiB",
        peak_memory_mib()
    );
}

async fn back(redis: &RedisProcess) {
    tokio::task::block_in_place(|| redis.restart_empty());
}

async fn write(address: String, rate: f64, done: Arc<AtomicBool>) -> Latencies {
    let vdisk = VdiskId::new("measured").unwrap();
    let client = Client::connect(address, vdisk, ClientOptions::default()).await.unwrap();
    let mut random = SmallRng::seed_from_u64(1);
    let mut outstanding = VecDeque::new();
    let mut latencies = Latencies::new();
    let (began, mut sent) = (Instant::now(), 0.0);
    while !done.load(Ordering::Relaxed) || !outstanding.is_empty() {
        if !done.load(Ordering::Relaxed) && outstanding.len() < OUTSTANDING {
            let ahead = sent / rate - began.elapsed().as_secs_f64();
            if ahead > 0.001 {
                tokio::time::sleep(Duration::from_secs_f64(ahead)).await;
            }
            sent += 1.0;
            let mut data = vec![0; BLOCK];
            random.fill(&mut data[..]);
            let index = BlockIndex::new(random.random_range(0..1 << 18)).unwrap();
            let begun = Instant::now();
            outstanding.push_back((begun, client.set(index, data).await.unwrap()));
            continue;
        }
        if done.load(Ordering::Relaxed) {
            client.flush().await.unwrap();
        }
        let (begun, durable) = outstanding.pop_front().unwrap();
        durable.await.unwrap();
        latencies.push((begun, begun.elapsed()));
    }
    latencies
}

/// How long until every store takes part and lacks nothing.
async fn wait_until_filled(admin: &str) -> Duration {
    let began = Instant::now();
    loop {
        let text = tlog::admin_client::ask(admin, hyper::Method::GET, "/status").await.unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        let stores = status["vdisks"][0]["log"]["stores"].as_array().cloned().unwrap_or_default();
        let complete = |store: &Value| store["state"] == "active" && store["missing"] == 0;
        if stores.len() == 6 && stores.iter().all(complete) {
            return began.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
}

fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}
