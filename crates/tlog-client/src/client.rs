//! The client as its callers see it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tlog_proto::{
    Block, BlockFault, BlockHash, BlockIndex, Operation, Sequence, SessionId, UnverifiedBlock, VdiskId,
};
use tokio::sync::{SemaphorePermit, TryAcquireError, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::dial::{Accepted, Connector, Dialer};
use crate::driver::{Driver, Request, jitter};
use crate::plan::{Plan, Step};
use crate::shared::{Draft, Handed, Shared, Ticket};
use crate::{
    AppendError, ClientOptions, ConnectError, Durable, Ending, Events, Servers, SlaveSyncError, Stats,
};

/// A client for the log of one vdisk, on one or several servers.
///
/// Cheap to clone, and any number of tasks may use it: blocks get their sequences in the order in which they are handed
/// over. A task in the background does the reading and writing; it ends with [`Client::close`], when the last clone is dropped,
/// which is like `close`, and when going on would be wrong ([`EndCause`](crate::EndCause)).
///
/// # What is guaranteed
///
/// A block is durable when its [`Durable`] handle, or a [`Client::flush`] begun after it was handed over, resolves to `Ok`;
/// nothing else says so. Blocks that are not durable are kept in memory. When the connection is lost, by whatever cause, the
/// servers are tried in turn, and what is not durable is sent again: the log has each block once. When the client
/// ends before that, [`Client::unflushed`] gives the blocks back.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    max_block_bytes: usize,
    vdisk: VdiskId,
    first_sequence: Sequence,
    session: SessionId,
    last_flushed: Option<Sequence>,
}

impl Client {
    /// Connects to the first of `servers` that accepts, for `vdisk`, and begins where [`ClientOptions::start`] says. Must be called
    /// within a tokio runtime, on which the client then lives.
    ///
    /// Each server has the time that the options give for connecting and for the handshake; each is tried once, or again and again
    /// for [`ClientOptions::connect_deadline`]. The server hands the vdisk over to the newest client: an older one, of whomever, is
    /// closed by it and told that it was taken over.
    pub async fn connect(
        servers: impl Into<Servers>,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        Self::begin(None, servers.into(), vdisk, options).await
    }

    /// The same over connections that `connector` makes. The TLS of the options is not looked at: what it takes is the connector's
    /// business.
    pub async fn connect_over(
        connector: Arc<dyn Connector>,
        servers: impl Into<Servers>,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        Self::begin(Some(connector), servers.into(), vdisk, options).await
    }

    async fn begin(
        connector: Option<Arc<dyn Connector>>,
        servers: Servers,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        let options = Arc::new(options.bounded());
        let dialer = Dialer::new(vdisk, Arc::clone(&options), connector)?;
        servers.check()?;
        let mut plan = Plan::new(servers, options.backoff, Some(options.connect_deadline));
        let accepted = begin(&dialer, &mut plan).await?;

        let Accepted { first, last_flushed, .. } = accepted;
        let shared = Arc::new(Shared::new(first, options.max_unflushed_bytes, plan.servers().clone()));
        let (requests, questions) = mpsc::channel(16);
        let inner = Inner {
            shared: Arc::clone(&shared),
            requests,
            max_block_bytes: options.limits.max_block_bytes,
            vdisk: dialer.vdisk.clone(),
            first_sequence: first,
            session: dialer.session,
            last_flushed,
        };
        shared.server.send_replace(Some(Arc::clone(&accepted.server)));
        tokio::spawn(Driver::new(shared, questions, dialer, plan, &accepted).run(accepted));
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Hands over a write, or a deletion, of block `index`, with the next sequence and the current time. It is on its way when this
    /// returns, and durable when the handle resolves; the handle may be dropped. `data` is that of a set; that of a delete is
    /// empty.
    ///
    /// Waits while [`ClientOptions::max_unflushed_bytes`] are not durable, and then asks the server to flush at once rather
    /// than when its aggregation is full or old: so without a server it waits until there is one again. Callers get room in the
    /// order in which they wait. On an error, and where the future is dropped before it resolves, nothing was handed over.
    pub async fn append(
        &self,
        operation: Operation,
        index: BlockIndex,
        data: impl Into<Bytes>,
    ) -> Result<Durable, AppendError> {
        let draft = self.draft(operation, index, data.into())?;
        self.hand_over_when_possible(draft).await
    }

    /// Like [`Client::append`], but [`AppendError::Full`] where it would wait.
    pub fn try_append(
        &self,
        operation: Operation,
        index: BlockIndex,
        data: impl Into<Bytes>,
    ) -> Result<Durable, AppendError> {
        self.hand_over_now(self.draft(operation, index, data.into())?)
    }

    /// Appends a write of `data` to block `index`: see [`Client::append`].
    pub async fn set(&self, index: BlockIndex, data: impl Into<Bytes>) -> Result<Durable, AppendError> {
        self.append(Operation::Set, index, data).await
    }

    /// Appends a deletion of block `index`, which from then on reads as zeros: see [`Client::append`].
    pub async fn delete(&self, index: BlockIndex) -> Result<Durable, AppendError> {
        self.append(Operation::Delete, index, Bytes::new()).await
    }

    /// Hands over a block with the caller's own sequence and timestamp. Else like [`Client::append`].
    ///
    /// The sequence must be [`Client::next_sequence`]. The block is checked as the server will, its hash included.
    pub async fn send(&self, block: Block) -> Result<Durable, AppendError> {
        let draft = self.draft_block(block)?;
        self.hand_over_when_possible(draft).await
    }

    /// Like [`Client::send`], but [`AppendError::Full`] where it would wait.
    pub fn try_send(&self, block: Block) -> Result<Durable, AppendError> {
        self.hand_over_now(self.draft_block(block)?)
    }

    /// Asks the server to flush everything handed over so far, by any clone, and waits until it is durable.
    ///
    /// Goes on over lost connections, and fails only where the client has ended or ends before, also if all that it took is durable:
    /// who flushes wants to know that the disk is still there. There is no timeout of its own; dropping the future takes
    /// nothing back.
    pub async fn flush(&self) -> Result<(), Ending> {
        if let Some(ending) = self.ending() {
            return Err(ending);
        }
        let Some(last) = self.next_sequence().previous() else {
            return Ok(());
        };
        if let Some(answer) = self.shared().progress.borrow().answer(last) {
            return answer;
        }
        self.force_flush_at(last).await?;
        self.durable_up_to(last).await
    }

    /// Waits until every block up to and including `sequence` is durable, without asking the server to flush. A block that
    /// was not handed over yet is waited for; what lies before this client's first sequence is not.
    pub async fn durable_up_to(&self, sequence: Sequence) -> Result<(), Ending> {
        let mut progress = self.shared().progress.subscribe();
        let found = progress.wait_for(|progress| progress.answer(sequence).is_some()).await;
        found
            .ok()
            .and_then(|progress| progress.answer(sequence))
            .unwrap_or_else(|| Err(self.shared().ending()))
    }

    /// Asks the server to flush as soon as it has every block up to `sequence`, be it handed over or not. The bare command:
    /// returns as soon as it is queued behind what was handed over before, and waits only while a thousand commands are. A server
    /// that comes next is asked again, where that is not durable yet.
    pub async fn force_flush_at(&self, sequence: Sequence) -> Result<(), Ending> {
        let shared = self.shared();
        let slot = shared.command_slots.acquire().await.map_err(|_| shared.ending())?;
        self.queue(Handed::ForceFlush(sequence))?;
        slot.forget();
        Ok(())
    }

    /// Waits until the slave cluster holds everything that was flushed before this call.
    ///
    /// After it the server no longer syncs the vdisk to the slave, which is then somebody's primary; this cannot be taken
    /// back, not by a timeout either: after one the next server is not asked, and the one that was asked may still do it. Where the
    /// document of the vdisk names no slave the answer comes at once; a server that knows that waiting is of no use, such as for a
    /// slave that needs a resync, closes the connection, and says why in its log. Where the connection is lost
    /// before the answer, the next server is asked.
    pub async fn wait_nbd_slave_sync(&self, timeout_after: Duration) -> Result<(), SlaveSyncError> {
        let shared = self.shared();
        let synced = async {
            let unanswered = shared.slave_sync_slots.acquire().await.map_err(|_| shared.ending())?;
            let slot = shared.command_slots.acquire().await.map_err(|_| shared.ending())?;
            let (done, synced) = oneshot::channel();
            self.queue(Handed::WaitSlaveSync(done))?;
            unanswered.forget();
            slot.forget();
            Ok(synced.await.map_err(|_| shared.ending())?)
        };
        match timeout(timeout_after, synced).await {
            Ok(answer) => answer,
            Err(_) => Err(SlaveSyncError::TimedOut { timeout: timeout_after }),
        }
    }

    /// Replaces the list of servers, at once: a server that is connected and no longer listed is left for the first of the new list,
    /// and what is not durable is sent there. An empty list, and one with something in it that is no `host:port`, is refused, and the
    /// old one stays.
    pub fn set_servers(&self, servers: impl Into<Servers>) -> Result<(), ConnectError> {
        let servers = servers.into();
        servers.check()?;
        self.shared().servers.send_replace(servers);
        Ok(())
    }

    /// Follows a list of servers that changes, such as that of a configuration: each list that comes is taken as by
    /// [`Client::set_servers`], until the stream or the client ends. A list that `set_servers` would refuse is logged, and the one before
    /// stays. Must be called within a tokio runtime. Following another stream does not end following the first.
    pub fn follow_servers<S>(&self, lists: S)
    where
        S: Stream<Item: Into<Servers>> + Send + 'static,
    {
        let (shared, vdisk) = (Arc::clone(&self.inner.shared), self.inner.vdisk.clone());
        tokio::spawn(async move {
            let (mut lists, mut progress) = (pin!(lists), shared.progress.subscribe());
            loop {
                let list = tokio::select! {
                    _ = progress.wait_for(|progress| progress.ending.is_some()) => return,
                    list = poll_fn(|context| lists.as_mut().poll_next(context)) => list,
                };
                let Some(list) = list.map(Into::into) else { return };
                match list.check() {
                    Ok(()) => drop(shared.servers.send_replace(list)),
                    Err(error) => {
                        warn!(%vdisk, %error, "a new list of servers cannot be used, the old one stays")
                    }
                }
            }
        });
    }

    /// The list of servers.
    pub fn servers(&self) -> Servers {
        self.shared().servers.borrow().clone()
    }

    /// The server that is connected; none while there is no connection.
    pub fn server(&self) -> Option<Arc<str>> {
        self.shared().server.borrow().clone()
    }

    /// Every block that was handed over and is not known to be durable, in order. Their data is shared, not copied. Does not
    /// wait for a server.
    ///
    /// After the client has ended this is what another one has to send. Some of it may be durable all the same, where the
    /// acknowledgement was lost: with the same session and [`Client::send`] the server knows these for duplicates.
    pub async fn unflushed(&self) -> Vec<Block> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inner.requests.send(Request::Unflushed { reply }).await;
        match answer.await {
            Ok(blocks) => blocks,
            Err(_) => {
                self.shared().intake().ended.as_ref().map(|ended| ended.unflushed.clone()).unwrap_or_default()
            }
        }
    }

    /// How the client ended; none while it goes on.
    pub fn ending(&self) -> Option<Ending> {
        self.shared().progress.borrow().ending.clone()
    }

    /// What happens from now on. Nobody has to read them: see [`Events`].
    pub fn events(&self) -> Events {
        // Under the lock, so that the end is either seen here or comes as an event.
        let intake = self.shared().intake();
        Events::new(self.shared().events.subscribe(), intake.ended.as_ref().map(|ended| ended.ending.clone()))
    }

    /// Numbers of this client so far.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// The sequence that the next block gets.
    pub fn next_sequence(&self) -> Sequence {
        self.shared().intake().next
    }

    /// The sequence that the client began with.
    pub fn first_sequence(&self) -> Sequence {
        self.inner.first_sequence
    }

    /// The last sequence that the log durably held when the client began, as the server said; none where it held nothing, or the
    /// server does not tell.
    pub fn last_flushed_at_connect(&self) -> Option<Sequence> {
        self.inner.last_flushed
    }

    /// Whose log it is.
    pub fn vdisk(&self) -> &VdiskId {
        &self.inner.vdisk
    }

    /// Which client instance the servers know this one as.
    pub fn session(&self) -> SessionId {
        self.inner.session
    }

    /// Ends the client at once, in any state, for all clones. Does not wait for a server: what is not durable by now
    /// fails, and [`Client::unflushed`] has it. Answers how the client ended, which may have been earlier.
    pub async fn close(&self) -> Ending {
        self.shared().close.cancel();
        let mut progress = self.shared().progress.subscribe();
        let found = progress.wait_for(|progress| progress.ending.is_some()).await;
        found.ok().and_then(|progress| progress.ending.clone()).unwrap_or_else(|| self.shared().ending())
    }

    /// Takes no more blocks, flushes what was handed over, and closes, also where the flush fails. `Ok` says that everything
    /// handed over is durable. As long as the servers take; [`Client::close`] may be called meanwhile to cut it short.
    pub async fn close_after_flush(&self) -> Result<(), Ending> {
        self.shared().intake().closing = true;
        let flushed = self.flush().await;
        self.close().await;
        flushed
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn check_size(&self, bytes: usize) -> Result<(), AppendError> {
        // A list on the wire has 29 bits for its length.
        let max = self.inner.max_block_bytes.min((1 << 29) - 1);
        if bytes > max { Err(AppendError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    fn draft(&self, operation: Operation, index: BlockIndex, data: Bytes) -> Result<Draft, AppendError> {
        self.check_size(data.len())?;
        match operation {
            Operation::Set if data.is_empty() => return Err(BlockFault::SetWithoutData.into()),
            Operation::Delete if !data.is_empty() => {
                return Err(BlockFault::DeleteWithData(data.len()).into());
            }
            _ => {}
        }
        Ok(Draft { own: None, index, operation, hash: BlockHash::of(&data), data })
    }

    fn draft_block(&self, block: Block) -> Result<Draft, AppendError> {
        self.check_size(block.size())?;
        self.shared().intake().check(Some(block.sequence))?;
        let Block { sequence, index, operation, timestamp, hash, data } =
            UnverifiedBlock::from(block).verify()?;
        Ok(Draft { own: Some((sequence, timestamp)), index, operation, hash, data })
    }

    async fn hand_over_when_possible(&self, draft: Draft) -> Result<Durable, AppendError> {
        let shared = self.shared();
        // A caller that always finds room must not keep its thread from the task that writes.
        tokio::task::consume_budget().await;
        let cost = shared.cost(draft.data.len());
        let room = match shared.room.try_acquire_many(cost) {
            Ok(room) => room,
            Err(TryAcquireError::Closed) => return Err(shared.ending().into()),
            Err(TryAcquireError::NoPermits) => {
                let _waits = shared.wait_for_room();
                shared.room.acquire_many(cost).await.map_err(|_| shared.ending())?
            }
        };
        self.hand_over(draft, cost, room)
    }

    fn hand_over_now(&self, draft: Draft) -> Result<Durable, AppendError> {
        let shared = self.shared();
        let cost = shared.cost(draft.data.len());
        match shared.room.try_acquire_many(cost) {
            Ok(room) => self.hand_over(draft, cost, room),
            Err(TryAcquireError::Closed) => Err(shared.ending().into()),
            Err(TryAcquireError::NoPermits) => Err(AppendError::Full),
        }
    }

    fn hand_over(&self, draft: Draft, cost: u32, room: SemaphorePermit<'_>) -> Result<Durable, AppendError> {
        let (ticket, outcome) = Ticket::new();
        let sequence = self.shared().intake().hand_over(draft, cost as usize, ticket)?;
        room.forget(); // comes back when the block is durable
        self.shared().wake.notify_one();
        Ok(Durable { sequence, outcome })
    }

    fn queue(&self, handed: Handed) -> Result<(), Ending> {
        let mut intake = self.shared().intake();
        if let Some(ended) = &intake.ended {
            return Err(ended.ending.clone());
        }
        intake.queue.push(handed);
        drop(intake);
        self.shared().wake.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("vdisk", self.vdisk())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close.cancel();
    }
}

/// The first connection, to the first server that accepts.
async fn begin(dialer: &Dialer, plan: &mut Plan) -> Result<Accepted, ConnectError> {
    let mut failures = VecDeque::new();
    loop {
        match plan.poll(Instant::now(), jitter()) {
            Step::Dial(server) => match dialer.begin(&server).await {
                Ok(accepted) => return Ok(accepted),
                Err(error) => {
                    tracing::debug!(vdisk = %dialer.vdisk, %error, "not connected");
                    plan.handle_failed(!error.is_retryable());
                    if failures.len() >= plan.servers().len() {
                        failures.pop_front();
                    }
                    failures.push_back(error);
                }
            },
            Step::Wait(until) => sleep_until(until).await,
            Step::GiveUp => return Err(ConnectError::all_of(failures.into())),
        }
    }
}
