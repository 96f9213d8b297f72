//! The client for callers without a runtime: the same, with calls that block.
//!
//! ```no_run
//! use tlog_client::{ClientOptions, blocking};
//! use tlog_proto::{BlockIndex, VdiskId};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = blocking::Client::connect("127.0.0.1:11211", VdiskId::new("myimg")?, ClientOptions::default())?;
//! let durable = client.set(BlockIndex::default(), vec![7; 4096])?;
//! client.flush()?;
//! durable.wait()?;
//! client.close();
//! # Ok(())
//! # }
//! ```

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tlog_proto::{Block, BlockIndex, Operation, Sequence, SessionId, VdiskId};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    AppendError, ClientOptions, ConnectError, Ending, Events, Servers, SlaveSyncError, Stats, Unacknowledged,
};

/// A [`Client`](crate::Client) with a thread of its own, on which its connection lives. Cheap to clone; any number of threads
/// may use it. The methods are those of the other one, and promise and fail alike.
///
/// Not for use within asynchronous code: the methods that wait panic there, as they would keep the runtime's thread from its work.
#[derive(Clone, Debug)]
pub struct Client {
    client: crate::Client,
    runtime: Arc<Background>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum BlockingConnectError {
    /// The system gives no thread, or what one needs to wait for sockets.
    #[error("no thread for the client: {0}")]
    NoThread(#[source] io::Error),
    /// No server accepted.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// The fate of one block: [`Durable`](crate::Durable), to wait for.
#[derive(Debug)]
pub struct Durable {
    durable: crate::Durable,
    runtime: Arc<Background>,
}

impl Durable {
    /// The block's sequence.
    pub fn sequence(&self) -> Sequence {
        self.durable.sequence()
    }

    /// Waits until the block is durable, or the client has ended before that.
    pub fn wait(self) -> Result<(), Unacknowledged> {
        self.runtime.handle.block_on(self.durable)
    }
}

impl Client {
    /// Connects: see [`Client::connect`](crate::Client::connect).
    pub fn connect(
        servers: impl Into<Servers>,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Self, BlockingConnectError> {
        let runtime = Arc::new(Background::start().map_err(BlockingConnectError::NoThread)?);
        let client = runtime.handle.block_on(crate::Client::connect(servers, vdisk, options))?;
        Ok(Self { client, runtime })
    }

    /// The client behind it: for everything that does not wait, and for asynchronous code.
    pub fn as_async(&self) -> &crate::Client {
        &self.client
    }

    /// See [`Client::append`](crate::Client::append).
    pub fn append(
        &self,
        operation: Operation,
        index: BlockIndex,
        data: impl Into<Bytes>,
    ) -> Result<Durable, AppendError> {
        let data = data.into();
        match self.client.try_append(operation, index, data.clone()) {
            Err(AppendError::Full) => self.wait_for(self.client.append(operation, index, data)),
            appended => appended.map(|durable| self.durable(durable)),
        }
    }

    /// See [`Client::try_append`](crate::Client::try_append).
    pub fn try_append(
        &self,
        operation: Operation,
        index: BlockIndex,
        data: impl Into<Bytes>,
    ) -> Result<Durable, AppendError> {
        Ok(self.durable(self.client.try_append(operation, index, data)?))
    }

    /// See [`Client::set`](crate::Client::set).
    pub fn set(&self, index: BlockIndex, data: impl Into<Bytes>) -> Result<Durable, AppendError> {
        self.append(Operation::Set, index, data)
    }

    /// See [`Client::delete`](crate::Client::delete).
    pub fn delete(&self, index: BlockIndex) -> Result<Durable, AppendError> {
        self.append(Operation::Delete, index, Bytes::new())
    }

    /// See [`Client::send`](crate::Client::send).
    pub fn send(&self, block: Block) -> Result<Durable, AppendError> {
        match self.client.try_send(block.clone()) {
            Err(AppendError::Full) => self.wait_for(self.client.send(block)),
            sent => sent.map(|durable| self.durable(durable)),
        }
    }

    /// See [`Client::try_send`](crate::Client::try_send).
    pub fn try_send(&self, block: Block) -> Result<Durable, AppendError> {
        Ok(self.durable(self.client.try_send(block)?))
    }

    /// See [`Client::force_flush_at`](crate::Client::force_flush_at).
    pub fn force_flush_at(&self, sequence: Sequence) -> Result<(), Ending> {
        self.runtime.handle.block_on(self.client.force_flush_at(sequence))
    }

    /// See [`Client::servers`](crate::Client::servers).
    pub fn servers(&self) -> Servers {
        self.client.servers()
    }

    /// See [`Client::server`](crate::Client::server).
    pub fn server(&self) -> Option<Arc<str>> {
        self.client.server()
    }

    /// See [`Client::next_sequence`](crate::Client::next_sequence).
    pub fn next_sequence(&self) -> Sequence {
        self.client.next_sequence()
    }

    /// See [`Client::first_sequence`](crate::Client::first_sequence).
    pub fn first_sequence(&self) -> Sequence {
        self.client.first_sequence()
    }

    /// See [`Client::last_flushed_at_connect`](crate::Client::last_flushed_at_connect).
    pub fn last_flushed_at_connect(&self) -> Option<Sequence> {
        self.client.last_flushed_at_connect()
    }

    /// See [`Client::vdisk`](crate::Client::vdisk).
    pub fn vdisk(&self) -> &VdiskId {
        self.client.vdisk()
    }

    /// See [`Client::session`](crate::Client::session).
    pub fn session(&self) -> SessionId {
        self.client.session()
    }

    /// See [`Client::ending`](crate::Client::ending).
    pub fn ending(&self) -> Option<Ending> {
        self.client.ending()
    }

    /// See [`Client::flush`](crate::Client::flush).
    pub fn flush(&self) -> Result<(), Ending> {
        self.runtime.handle.block_on(self.client.flush())
    }

    /// See [`Client::durable_up_to`](crate::Client::durable_up_to).
    pub fn durable_up_to(&self, sequence: Sequence) -> Result<(), Ending> {
        self.runtime.handle.block_on(self.client.durable_up_to(sequence))
    }

    /// See [`Client::wait_nbd_slave_sync`](crate::Client::wait_nbd_slave_sync).
    pub fn wait_nbd_slave_sync(&self, timeout: Duration) -> Result<(), SlaveSyncError> {
        self.runtime.handle.block_on(self.client.wait_nbd_slave_sync(timeout))
    }

    /// See [`Client::set_servers`](crate::Client::set_servers).
    pub fn set_servers(&self, servers: impl Into<Servers>) -> Result<(), ConnectError> {
        self.client.set_servers(servers)
    }

    /// See [`Client::follow_servers`](crate::Client::follow_servers).
    pub fn follow_servers<S>(&self, lists: S)
    where
        S: Stream<Item: Into<Servers>> + Send + 'static,
    {
        let _within = self.runtime.handle.enter();
        self.client.follow_servers(lists);
    }

    /// See [`Client::events`](crate::Client::events); [`Client::next_event`] waits for one.
    pub fn events(&self) -> Events {
        self.client.events()
    }

    /// Waits for the next event of `events`: see [`Events::next`].
    pub fn next_event(&self, events: &mut Events) -> Option<crate::Event> {
        self.runtime.handle.block_on(events.next())
    }

    /// See [`Client::stats`](crate::Client::stats).
    pub fn stats(&self) -> Stats {
        self.client.stats()
    }

    /// See [`Client::unflushed`](crate::Client::unflushed).
    pub fn unflushed(&self) -> Vec<Block> {
        self.runtime.handle.block_on(self.client.unflushed())
    }

    /// See [`Client::close`](crate::Client::close).
    pub fn close(&self) -> Ending {
        self.runtime.handle.block_on(self.client.close())
    }

    /// See [`Client::close_after_flush`](crate::Client::close_after_flush).
    pub fn close_after_flush(&self) -> Result<(), Ending> {
        self.runtime.handle.block_on(self.client.close_after_flush())
    }

    fn durable(&self, durable: crate::Durable) -> Durable {
        Durable { durable, runtime: Arc::clone(&self.runtime) }
    }

    fn wait_for(
        &self,
        handed_over: impl Future<Output = Result<crate::Durable, AppendError>>,
    ) -> Result<Durable, AppendError> {
        Ok(self.durable(self.runtime.handle.block_on(handed_over)?))
    }
}

/// The thread on which the connection lives. It ends with the last clone of what uses it.
#[derive(Debug)]
struct Background {
    handle: Handle,
    _stop: DropGuard,
}

impl Background {
    fn start() -> io::Result<Self> {
        let runtime: Runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        thread::Builder::new().name("tlog-client".to_owned()).spawn(move || {
            runtime.block_on(stopped.cancelled());
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop.drop_guard() })
    }
}
