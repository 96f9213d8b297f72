//! Two servers that serve one vdisk on the same stores: the log must not fork.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tlog::settings::{Settings, SettingsArgs};
use tlog::storage::FlusherStorage;
use tlog_client::{Client, ClientOptions};
use tlog_crypto::{Keyring, MasterKey};
use tlog_player::LogReader;
use tlog_proto::{BlockIndex, VdiskId};
use tlog_server::{Server, ServerSettings};
use tlog_store::{MemoryStore, ShardStore};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The stores that both servers have.
struct Shared {
    stores: Vec<Arc<dyn ShardStore>>,
    settings: Settings,
}

impl Shared {
    fn new() -> Self {
        let store = |i| Arc::new(MemoryStore::new(format!("memory:{i}"))) as Arc<dyn ShardStore>;
        let settings = Settings::from_flags(&SettingsArgs::default().with("flush-size", "5")).unwrap();
        Self { stores: (0..6).map(store).collect(), settings }
    }

    fn storage(&self) -> FlusherStorage {
        let keyring = Arc::new(Keyring::new(MasterKey::from_bytes([3; 32])));
        FlusherStorage::new(&self.settings, self.stores.clone(), Some(keyring)).unwrap()
    }

    async fn serve(&self, shutdown: &CancellationToken) -> SocketAddr {
        let server = Server::new(ServerSettings::default(), Arc::new(self.storage()), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = shutdown.clone();
        tokio::spawn(async move { server.run(listener, shutdown).await });
        address
    }

    /// Sequences of everything in the log, in its order; the reader proves the chain on the way.
    async fn sequences(&self, vdisk: &VdiskId) -> Vec<u64> {
        let reader = LogReader::open(self.storage().store_set(vdisk).unwrap()).await.unwrap();
        let mut history = reader.history();
        let mut sequences = Vec::new();
        while let Some(batch) = history.next_batch().await.unwrap() {
            for info in batch {
                sequences.extend(info.first_sequence.0..=info.last_sequence.0);
            }
        }
        sequences
    }
}

async fn write(client: &Client, blocks: u64, value: u8) -> Result<(), Box<dyn std::error::Error>> {
    for index in 0..blocks {
        client.set(BlockIndex::new(index).unwrap(), vec![value; 512]).await?;
    }
    Ok(client.flush().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_servers_is_fenced_at_its_next_write_and_the_log_does_not_fork() {
    let shared = Shared::new();
    let shutdown = CancellationToken::new();
    let vdisk = VdiskId::new("contended").unwrap();
    let (first, second) = (shared.serve(&shutdown).await, shared.serve(&shutdown).await);
    let options = ClientOptions { reconnect_deadline: Some(Duration::ZERO), ..ClientOptions::default() };
    let connect = |address: SocketAddr| Client::connect(address, vdisk.clone(), options.clone());

    let older = connect(first).await.unwrap();
    write(&older, 12, 1).await.unwrap();
    let newer = connect(second).await.unwrap();
    assert_eq!(
        newer.first_sequence().0,
        older.next_sequence().0,
        "the second server knows what the first made durable"
    );

    // The first server does not know yet that it is the older one. It must not acknowledge anything more.
    assert!(write(&older, 7, 2).await.is_err());
    write(&newer, 9, 3).await.unwrap();

    // Back and forth: whoever opened last writes, and everything acknowledged is there once, in order.
    let third = connect(first).await.unwrap();
    write(&third, 4, 4).await.unwrap();
    assert!(write(&newer, 1, 5).await.is_err());
    third.close().await;
    shutdown.cancel();
    assert_eq!(shared.sequences(&vdisk).await, (1..=12 + 9 + 4).collect::<Vec<_>>());
}
