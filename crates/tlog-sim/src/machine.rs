//! Servers: the real one, on a simulated network and simulated stores, started and killed at will.

// The adapter between the server's port and the writer that the binaries use. It belongs to the composition root, on which nothing
// may depend, so it is compiled here once more.
#[allow(dead_code, unreachable_pub)]
#[path = "../../tlog/src/open_log.rs"]
mod open_log;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use tlog_client::{Connecting, Connector, Reader, Writer};
use tlog_flusher::Log;
use tlog_proto::{Limits, VdiskId};
use tlog_server::{LogStorage, OpenError, Server, ServerSettings, VdiskLog};

use self::open_log::{AnyLog, OpenLog};
use crate::net::{Host, Stream};
use crate::stores::Process;
use crate::world::World;

/// Largest block that servers take: small, so that little memory may be full.
const MAX_BLOCK_BYTES: usize = 4096;

/// A machine on which a server runs, or does not.
#[derive(Default)]
pub(crate) struct Machine {
    number: usize,
    running: Mutex<Option<Running>>,
}

struct Running {
    server: Server,
    process: Arc<Process>,
}

/// The server's port to the writer, as the composition root has it.
struct Storage {
    world: Weak<World>,
    machine: usize,
    process: Arc<Process>,
}

#[async_trait]
impl LogStorage for Storage {
    async fn open(&self, _: &VdiskId) -> Result<Arc<dyn VdiskLog>, OpenError> {
        let failed = |what: &'static str| OpenError::Failed(what.into());
        let world = self.world.upgrade().ok_or_else(|| failed("the world is gone"))?;
        let set = world.stores(&self.process).ok_or_else(|| failed("as many stores as shards"))?;
        let opened = Log::open(set, world.keys.clone(), world.scenario.log.clone()).await;
        let machine = self.machine;
        world.note_opening(matches!(opened, Err(tlog_flusher::OpenError::UncertainEnd(_))));
        match opened {
            Ok(log) => {
                world.tally(|tally| tally.openings += 1);
                world.tell(|| {
                    format!("server {machine} has opened the log: epoch {}, {:?}", log.epoch(), log.end())
                });
                Ok(Arc::new(OpenLog::new(AnyLog::Two(Arc::new(log)))))
            }
            Err(error) => {
                world.tell(|| format!("server {machine} cannot open the log: {error}"));
                // That stores hold too little of what is committed must never be, whatever is in reach.
                if let tlog_flusher::OpenError::DataLost { .. } = error {
                    world.find(format!("server {machine}: {error}"));
                }
                Err(OpenError::Failed(error.into()))
            }
        }
    }
}

impl Machine {
    pub(crate) fn new(number: usize) -> Self {
        Self { number, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// Starts a server, if none runs.
    pub(crate) fn start(&self, world: &Arc<World>) {
        let mut running = self.running();
        if running.is_some() {
            return;
        }
        let process = Process::new();
        let storage =
            Storage { world: Arc::downgrade(world), machine: self.number, process: Arc::clone(&process) };
        let scenario = &world.scenario;
        let settings = ServerSettings {
            limits: Limits { max_block_bytes: MAX_BLOCK_BYTES, ..Limits::default() },
            vdisk_idle: scenario.vdisk_idle,
            max_unflushed_bytes: scenario.max_unflushed_bytes,
            max_window_span: 64,
            ..ServerSettings::default()
        };
        match Server::new(settings, Arc::new(storage), None) {
            Ok(server) => *running = Some(Running { server, process }),
            Err(error) => world.find(format!("a server does not start: {error}")),
        }
        world.tell(|| format!("server {} starts", self.number));
    }

    /// Its process is gone at once.
    pub(crate) fn kill(&self, world: &World) {
        if let Some(Running { server, process }) = self.running().take() {
            world.tell(|| format!("server {} is killed", self.number));
            process.die();
            world.net.cut_off(Host::Server(self.number));
            server.kill();
        }
    }

    /// Asks it to stop; it may take a while. Another one can be started meanwhile.
    pub(crate) fn stop(&self, world: &Arc<World>) {
        if let Some(Running { server, .. }) = self.running().take() {
            let (number, world) = (self.number, Arc::clone(world));
            world.tell(|| format!("server {number} is asked to stop"));
            tokio::spawn(async move {
                let report = server.stop().await;
                world.tell(|| {
                    format!("server {number} has stopped, everything durable: {}", report.all_durable())
                });
            });
        }
    }

    /// Which places it cannot reach from now on.
    pub(crate) fn cut_off(&self, places: Vec<usize>) {
        if let Some(running) = &*self.running() {
            running.process.cut_off(places);
        }
    }

    fn accept(&self, stream: Stream, peer: std::net::SocketAddr) -> bool {
        match &*self.running() {
            Some(running) => {
                running.server.serve_stream(stream, peer);
                true
            }
            None => false,
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({})", self.number)
    }
}

/// Connects a client's host to servers, which are called `s0:1`, `s1:1` and so on.
pub(crate) struct ClientHost {
    pub(crate) world: Arc<World>,
    pub(crate) number: u64,
}

impl Connector for ClientHost {
    fn connect(&self, server: &str) -> Connecting {
        let number = server.strip_prefix('s').and_then(|rest| rest.split(':').next()?.parse().ok());
        let (world, client) = (Arc::clone(&self.world), self.number);
        Box::pin(async move {
            let machine = number.and_then(|number: usize| world.machines.get(number));
            let machine = machine.ok_or(io::ErrorKind::NotFound)?;
            let (ours, theirs, peer) = world.net.connect(client, machine.number).await;
            if !machine.accept(theirs, peer) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (reader, writer): (Reader, Writer) = (Box::new(ours.read), Box::new(ours.write));
            Ok((reader, writer))
        })
    }
}
