//! Two servers on the same six Redis servers, one client that writes all the while, and what can happen to the server that it
//! has: killed, stopped, its port refuses, its stores are out of reach. The log has every block once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tlog_client::{Client, ClientOptions, Durable, Event};
use tlog_proto::{BlockIndex, Sequence, VdiskId};
use tlog_testbed::RedisOptions;

use crate::site::{BLOCK, Site};
use crate::support::Server;
use crate::support::gate::Gate;

/// How often something happens; `TLOG_FAILOVER_ROUNDS` for more.
const ROUNDS: u64 = 24;

/// Blocks of the disk.
const INDICES: u64 = 300;

/// A server, the way to it, and its ways to the stores.
struct Node {
    server: Option<Server>,
    front: Gate,
    stores: Vec<Gate>,
}

impl Node {
    async fn start(site: &Site) -> Self {
        let mut stores = Vec::new();
        for address in site.redis.addresses() {
            stores.push(Gate::to(address).await);
        }
        let front = Gate::to("127.0.0.1:1").await;
        let mut node = Self { server: None, front, stores };
        node.serve(site);
        node
    }

    fn serve(&mut self, site: &Site) {
        let stores: Vec<String> = self.stores.iter().map(|store| store.address().to_string()).collect();
        let server = site.place.server(&[
            "--storage",
            &stores.join(","),
            "--flush-size",
            "5",
            "--flush-time",
            "100ms",
            "--commit-timeout",
            "1s",
        ]);
        self.front.lead_to(server.address);
        self.server = Some(server);
    }

    async fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Killed => self.server.take().unwrap().kill(),
            Fault::Stopped => self.server.as_ref().unwrap().pause(),
            Fault::Refuses => self.front.shut().await,
            Fault::WithoutStores => {
                for store in &mut self.stores {
                    store.shut().await;
                }
            }
        }
    }

    async fn recover(&mut self, fault: Fault, site: &Site) {
        match fault {
            Fault::Killed => self.serve(site),
            Fault::Stopped => self.server.as_ref().unwrap().signal("-CONT"),
            Fault::Refuses => self.front.open().await,
            Fault::WithoutStores => {
                for store in &mut self.stores {
                    store.open().await;
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Killed,
    Stopped,
    Refuses,
    WithoutStores,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Stopped, Fault::Refuses, Fault::WithoutStores];

/// What is written, as fast as the log takes it.
struct Writing {
    handles: Vec<Durable>,
    content: BTreeMap<u64, Bytes>,
}

async fn write(client: Client, seed: u64, done: Arc<AtomicBool>) -> Writing {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut writing = Writing { handles: Vec::new(), content: BTreeMap::new() };
    while !done.load(Ordering::Relaxed) {
        let index = random.random_range(0..INDICES);
        let data = Bytes::from((0..BLOCK).map(|_| random.random()).collect::<Vec<u8>>());
        let handle = client.set(BlockIndex::new(index).unwrap(), data.clone()).await.unwrap();
        writing.content.insert(index, data);
        writing.handles.push(handle);
        // Not as fast as memory fills: what is not durable when a server goes is what this is about, not how much it is.
        if writing.handles.len().is_multiple_of(20) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    writing
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_server_every_handle_resolves_and_the_log_has_every_block_once() {
    let rounds = std::env::var("TLOG_FAILOVER_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("TLOG_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed} (TLOG_SEED repeats it)");
    let mut random = SmallRng::seed_from_u64(seed);
    let site = Site::with(6, &RedisOptions::default(), "");
    let mut nodes = [Node::start(&site).await, Node::start(&site).await];
    let fronts = [nodes[0].front.address(), nodes[1].front.address()];
    let options = ClientOptions {
        max_unflushed_bytes: 256 << 10,
        answer_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(500),
        handshake_timeout: Duration::from_secs(5),
        ..ClientOptions::default()
    };
    let client = Client::connect(fronts, VdiskId::new("vda").unwrap(), options).await.unwrap();
    let mut events = client.events();
    let causes = tokio::spawn(async move {
        let mut causes: BTreeMap<&'static str, u64> = BTreeMap::new();
        while let Some(event) = events.next().await {
            if let Event::Reconnecting { cause, .. } = event {
                *causes.entry(cause.kind()).or_default() += 1;
            }
        }
        causes
    });
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write(client.clone(), random.random(), Arc::clone(&done)));

    // More is durable than now.
    let progress = async |more: u64, what: &str| {
        let (began, goal) = (Instant::now(), Sequence(client.stats().durable_blocks + more));
        let durable = tokio::time::timeout(Duration::from_secs(60), client.durable_up_to(goal)).await;
        durable.unwrap_or_else(|_| panic!("{what}: nothing becomes durable; {client:?}")).unwrap();
        began.elapsed()
    };
    let mut slowest: BTreeMap<Fault, Duration> = BTreeMap::new();
    for round in 0..rounds {
        progress(random.random_range(1..100), "before").await;
        let current = loop {
            let server = client.server();
            let at = fronts.iter().position(|front| server.as_deref() == Some(&*front.to_string()));
            match at {
                Some(at) => break at,
                None => tokio::task::yield_now().await,
            }
        };
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        nodes[current].suffer(fault).await;
        let took = progress(50, &format!("round {round}, {fault:?}")).await;
        let slowest = slowest.entry(fault).or_default();
        *slowest = took.max(*slowest);
        nodes[current].recover(fault, &site).await;
    }
    done.store(true, Ordering::Relaxed);
    let Writing { handles, content } = writing.await.unwrap();
    client.flush().await.unwrap();
    let blocks = handles.len() as u64;
    for handle in handles {
        handle.await.unwrap();
    }
    let stats = client.stats();
    println!("{blocks} blocks, {} sent again, {} reconnects", stats.resent_blocks, stats.reconnects);
    println!("longest until 50 more were durable: {slowest:?}");
    assert_eq!((stats.durable_blocks, stats.unflushed_blocks, stats.unexpected_responses), (blocks, 0, 0));
    client.close().await;
    println!("connections lost: {:?}", causes.await.unwrap());

    // One session goes on through all of it, so there is one generation, and it has every sequence once, in order.
    let history = site.place.tlog_ok(&["history", "vda", "--json"]);
    let mut next = 1;
    for line in history.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["generation"], 1, "{line}");
        assert_eq!(line["first_sequence"], next, "{line}");
        next = line["last_sequence"].as_u64().unwrap() + 1;
    }
    assert_eq!(next, blocks + 1);
    let zeros = Bytes::from(vec![0; BLOCK]);
    let last = content.keys().next_back().unwrap();
    let expected: Vec<u8> =
        (0..=*last).flat_map(|index| content.get(&index).unwrap_or(&zeros).to_vec()).collect();
    assert!(site.restored("vda") == expected, "the disk is not what was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_is_immediate_whatever_happens_to_the_server_and_everything_is_given_back() {
    let site = Site::with(6, &RedisOptions::default(), "");
    let mut node = Node::start(&site).await;
    for fault in FAULTS {
        let vdisk = VdiskId::new(&format!("{fault:?}")).unwrap();
        let client = Client::connect(node.front.address(), vdisk, ClientOptions::default()).await.unwrap();
        let mut handles = Vec::new();
        let mut writes = async |blocks: u64| {
            for index in 0..blocks {
                handles.push(client.set(BlockIndex::new(index).unwrap(), vec![1; BLOCK]).await.unwrap());
            }
        };
        writes(50).await;
        node.suffer(fault).await;
        writes(50).await;
        let began = Instant::now();
        let ending = client.close().await;
        let took = began.elapsed();
        println!("close() where the server is {fault:?}: {took:?}");
        assert!(took < Duration::from_secs(2), "{fault:?}: {took:?}; usually well below a millisecond");
        // Each handle has its answer, and what is not acknowledged is given back.
        let mut unacknowledged = Vec::new();
        for handle in handles {
            let sequence = handle.sequence();
            if handle.await.is_err() {
                unacknowledged.push(sequence);
            }
        }
        let left: Vec<_> = client.unflushed().await.iter().map(|block| block.sequence).collect();
        assert_eq!(left, unacknowledged);
        assert_eq!(*ending.unacknowledged(), unacknowledged.into_iter().collect());
        node.recover(fault, &site).await;
    }
}
