//! A disk that is written to all the time, and what of it must be there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_client::{Client, ClientOptions, Ending, Start};
use tlog_proto::{BlockIndex, VdiskId};
use tokio::task::JoinHandle;

pub const BLOCK: usize = 512;
const BLOCKS: u64 = 200;
/// Written together, each to another place.
const TOGETHER: usize = 5;

/// What a disk must hold.
#[derive(Clone, Debug, Default)]
pub struct Content {
    acknowledged: BTreeMap<u64, Bytes>,
    /// Handed over last, and not acknowledged: it may be there.
    possible: BTreeMap<u64, Bytes>,
}

impl Content {
    /// Compares a restored disk with it.
    pub fn check(&self, disk: &[u8]) {
        for index in 0..BLOCKS {
            let at = index as usize * BLOCK;
            let found = disk.get(at..at + BLOCK).unwrap_or(&[0; BLOCK]);
            let zeros = Bytes::from_static(&[0; BLOCK]);
            let expected = self.acknowledged.get(&index).unwrap_or(&zeros);
            let or = self.possible.get(&index);
            assert!(found == expected || or.is_some_and(|or| found == or), "block {index} is another one");
        }
    }

    /// The blocks that must be there.
    pub fn indices(&self) -> impl Iterator<Item = &u64> {
        self.acknowledged.keys()
    }

    /// The same with what was written later.
    pub fn followed_by(&self, later: &Self) -> Self {
        let mut content = self.clone();
        content.acknowledged.extend(later.acknowledged.clone());
        content.possible = later.possible.clone();
        content
    }

    /// The same with one block deleted.
    pub fn without(&self, index: u64) -> Self {
        let mut content = self.clone();
        content.acknowledged.remove(&index);
        content
    }

    pub fn is_empty(&self) -> bool {
        self.acknowledged.is_empty()
    }
}

/// Writes until it is stopped or its client ends.
pub struct Writer {
    content: Arc<Mutex<Content>>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<Option<Ending>>,
    pub client: Client,
}

impl Writer {
    pub async fn begin(server: String, vdisk: &str, start: Start, seed: u64) -> Self {
        let options = ClientOptions {
            start,
            connect_deadline: Duration::from_secs(60),
            reconnect_deadline: Some(Duration::from_secs(60)),
            ..ClientOptions::default()
        };
        let client = Client::connect(server, VdiskId::new(vdisk).unwrap(), options).await.unwrap();
        let (content, stop, written) = <(Arc<Mutex<Content>>, Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let writing =
            write(client.clone(), seed, Arc::clone(&content), Arc::clone(&stop), Arc::clone(&written));
        Self { content, stop, written, task: tokio::spawn(writing), client }
    }

    /// Waits until so many more blocks were acknowledged.
    pub async fn acknowledges(&self, blocks: u64) {
        let from = self.written.load(Ordering::Acquire);
        let more = async {
            while self.written.load(Ordering::Acquire) < from + blocks {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), more).await.expect("nothing is acknowledged");
    }

    /// Stops writing; everything is acknowledged.
    pub async fn stop(self) -> Content {
        let client = self.client.clone();
        let content = self.stop_writing().await;
        client.close_after_flush().await.unwrap();
        content
    }

    /// The same, and its client stays.
    pub async fn stop_writing(self) -> Content {
        self.stop.store(true, Ordering::Release);
        let ended = self.task.await.unwrap();
        assert!(ended.is_none(), "{ended:?}");
        let content = self.content.lock().unwrap().clone();
        assert!(content.possible.is_empty() && !content.is_empty());
        content
    }

    /// Waits until the client ends, and answers why.
    pub async fn ends(self) -> (Ending, Content, Client) {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.task).await.expect("it goes on");
        let content = self.content.lock().unwrap().clone();
        (ended.unwrap().unwrap(), content, self.client)
    }
}

/// Answers how the client ended; none where it was told to stop.
async fn write(
    client: Client,
    seed: u64,
    content: Arc<Mutex<Content>>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> Option<Ending> {
    let mut random = SmallRng::seed_from_u64(seed);
    while !stop.load(Ordering::Acquire) {
        let mut blocks = BTreeMap::new();
        while blocks.len() < TOGETHER {
            let data: Vec<u8> = (0..BLOCK).map(|_| random.random()).collect();
            blocks.insert(random.random_range(0..BLOCKS), Bytes::from(data));
        }
        content.lock().unwrap().possible = blocks.clone();
        let mut handles = Vec::new();
        for (index, data) in &blocks {
            match client.set(BlockIndex::new(*index).unwrap(), data.clone()).await {
                Ok(handle) => handles.push(handle),
                Err(_) => return client.ending(),
            }
        }
        for handle in handles {
            if handle.await.is_err() {
                return client.ending();
            }
        }
        let mut content = content.lock().unwrap();
        content.possible.clear();
        content.acknowledged.append(&mut blocks);
        written.fetch_add(TOGETHER as u64, Ordering::Release);
    }
    None
}
